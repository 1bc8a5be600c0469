"""Subscriptions whose connection breaks come back by themselves and say so."""

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
    """P5: after CLIENT KILL the subscription yields a Gap, and then what is published after it came back."""
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
            until_heard(pubsub, subscription, "dd")


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
            until_heard(pubsub, subscription, "c")


def until_heard(pubsub: ailf.PubSub[object], subscription: ailf.Subscription[object], channel: str) -> None:
    """Publish until one arrives: the subscription is on its way back when the gap is out."""
    for number in range(50):
        pubsub.publish(channel, number)
        if isinstance(subscription.get(0.2), ailf.Message):
            return
    raise AssertionError("nothing arrived any more")


def test_a_right_that_was_taken_away_ends_the_subscription(new_server: NewServer) -> None:
    """A subscription that is refused when it comes back ends with the reason, and does not stay silent for ever."""
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
    """P5: a sharded channel's end that nobody asked for is an interruption; one that was asked for is none."""
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


def test_a_listener_remembers_only_what_is_asked_for(any_server: Server) -> None:
    """Channels that come and go leave nothing behind in a connection that stays, and one that comes again is heard."""
    driver = RedisDriver(Settings(port=any_server.port), ThreadRuntime())
    channels = [Filter(f"c{number}") for number in range(20)]
    listener = run(driver.pubsub().listen())
    try:
        run(listener.change(channels, ()))
        run(listener.change((), channels))
        assert not listener._channels
        run(listener.change(channels[:1], ()))
        heard: list[object] = []
        until = time.monotonic() + 5
        while heard.count(Confirmed(channels[0])) < 2 and time.monotonic() < until:
            heard += run(listener.receive(0.2))
        run(driver.pubsub().publish([("c0", b"again")]))
        while not any(isinstance(each, Frame) for each in heard) and time.monotonic() < until:
            heard += run(listener.receive(0.2))
        assert heard[-1] == Frame(channels[0], "c0", b"again")
    finally:
        run(listener.close())
        run(driver.close())
