"""Subscriptions whose connection breaks reconnect by themselves, and report a gap."""

import time

import pytest

import ailf
from ailf.driver import Confirmed, Filter, Frame
from ailf.errors import ConnectionLostError, PermissionDeniedError
from ailf.runtime import ThreadRuntime, run
from ailf_redis.driver import RedisDriver
from ailf_redis.settings import Settings
from tests.support.servers import NewServer, Server


def test_a_killed_connection_is_a_gap(new_server: NewServer) -> None:
    """P5: after CLIENT KILL the subscription yields a Gap, and then the messages published after it reconnected."""
    server = new_server()
    with ailf.connect(server.url) as backend, server.client() as admin:
        pubsub = backend.pubsub()
        with pubsub.listen("c", pattern="d*") as subscription:
            pubsub.publish("c", 1)
            assert subscription.get(5) == ailf.Message("c", 1)
            admin.client_kill_filter(_type="pubsub")
            gap = subscription.get(10)
            assert isinstance(gap, ailf.Gap)
            assert gap.reason
            until_received(pubsub, subscription, "dd")


def test_a_restarted_server_is_a_gap(new_server: NewServer) -> None:
    """P5: a restart of the server is a Gap with the time it took."""
    server = new_server()
    with ailf.connect(server.url) as backend:
        pubsub = backend.pubsub()
        with pubsub.listen("c") as subscription:
            server.kill()
            time.sleep(0.5)
            server.restart()
            gap = subscription.get(10)
            assert isinstance(gap, ailf.Gap)
            assert gap.seconds >= 0.2
            until_received(pubsub, subscription, "c")


def until_received(pubsub: ailf.PubSub[object], subscription: ailf.Subscription[object], channel: str) -> None:
    """Publish until a message arrives: the subscription may still be reconnecting when it yields the gap."""
    for number in range(50):
        pubsub.publish(channel, number)
        if isinstance(subscription.get(0.2), ailf.Message):
            return
    raise AssertionError("nothing arrived any more")


def test_a_revoked_right_ends_the_subscription(new_server: NewServer) -> None:
    """A subscription that is refused when it reconnects ends with the reason, and isn't silent for ever."""
    server = new_server()
    with server.client() as admin:
        rules = {"enabled": True, "passwords": ["+pw"], "commands": ["+@all"], "keys": ["*"]}
        admin.acl_setuser("agent", channels=["*"], reset=True, **rules)
        url = f"redis://agent:pw@127.0.0.1:{server.port}/0"
        with ailf.connect(url) as backend, backend.pubsub().listen("c") as subscription:
            admin.acl_setuser("agent", channels=["ailf:channel:other"], reset=True, **rules)
            admin.client_kill_filter(_type="pubsub")
            assert isinstance(subscription.get(10), ailf.Gap)
            with pytest.raises(PermissionDeniedError):
                subscription.get(10)


def test_a_shard_that_moves_is_a_gap(any_server: Server) -> None:
    """P5: a sharded channel that ends without a request is an interruption; an unsubscription that we sent is none."""
    driver = RedisDriver(Settings(port=any_server.port), ThreadRuntime())
    name, wanted = driver.keys.channel("c").encode(), Filter("c", is_sharded=True)
    listener = run(driver.pubsub().listen())
    try:
        assert list(listener._events([b"ssubscribe", name, 1])) == [Confirmed(wanted)]
        with pytest.raises(ConnectionLostError, match="moved"):
            listener._events([b"sunsubscribe", name, 0])
        run(listener.change([], [wanted]))
        assert list(listener._events([b"sunsubscribe", name, 0])) == []
    finally:
        run(listener.close())
        run(driver.close())


def test_a_listener_keeps_only_its_filters(any_server: Server) -> None:
    """Removed channels leave nothing in a connection that stays, and one that is added again receives."""
    driver = RedisDriver(Settings(port=any_server.port), ThreadRuntime())
    channels = [Filter(f"c{number}") for number in range(20)]
    listener = run(driver.pubsub().listen())
    try:
        run(listener.change(channels, ()))
        run(listener.change((), channels))
        assert not listener._channels
        run(listener.change(channels[:1], ()))
        events: list[object] = []
        until = time.monotonic() + 5
        while events.count(Confirmed(channels[0])) < 2 and time.monotonic() < until:
            events += run(listener.receive(0.2))
        run(driver.pubsub().publish([("c0", b"again")]))
        while not any(isinstance(each, Frame) for each in events) and time.monotonic() < until:
            events += run(listener.receive(0.2))
        assert events[-1] == Frame(channels[0], "c0", b"again")
    finally:
        run(listener.close())
        run(driver.close())
