"""Traps 16 to 19, from other pub/sub libraries: each test shows redis-py alone failing, and then ailf without it."""

import contextlib
import threading
import time
from collections.abc import Iterator

import redis

import ailf
from tests.support.servers import NewServer, Server


@contextlib.contextmanager
def subscribed(raw: redis.Redis, *channels: str, patterns: tuple[str, ...] = ()) -> Iterator[redis.client.PubSub]:
    """Subscribe as redis-py's documentation does, and wait for the confirmations."""
    with raw.pubsub(ignore_subscribe_messages=True) as listener:
        if channels:
            listener.subscribe(*channels)
        if patterns:
            listener.psubscribe(*patterns)
        for _ in range(len(channels) + len(patterns)):
            listener.get_message(timeout=1)
        yield listener


def messages(listener: redis.client.PubSub, within: float = 0.5) -> list[bytes]:
    """Return the bodies of the messages that arrive."""
    found, until = [], time.monotonic() + within
    while time.monotonic() < until:
        message = listener.get_message(timeout=0.05)
        if message is not None:
            found.append(message["data"])
    return found


def test_trap_16_a_silent_reconnect(new_server: NewServer) -> None:
    """P5, trap 16: after CLIENT KILL redis-py reconnects and doesn't report missed messages; ailf yields a Gap."""
    server = new_server()
    with server.client() as admin, ailf.connect(server.url) as backend:
        with redis.Redis(port=server.port) as raw, subscribed(raw, "c") as naive:
            admin.client_kill_filter(_type="pubsub")
            assert admin.publish("c", "missed") == 0
            naive.get_message(timeout=0.2)
            for _ in range(50):
                if admin.publish("c", "after"):
                    break
                naive.get_message(timeout=0.05)
            assert set(messages(naive)) == {b"after"}, "redis-py reported the gap"
        with backend.pubsub(type=str).listen("c") as subscription:
            admin.client_kill_filter(_type="pubsub")
            admin.publish("ailf:channel:c", '"missed"')
            assert isinstance(subscription.get(10), ailf.Gap)


def test_trap_17_once_per_message(server: Server, backend: ailf.Backend, namespace: str) -> None:
    """P3, trap 17: a connection delivers a message twice if a channel and a pattern match it; ailf delivers it once."""
    with redis.Redis(port=server.port) as raw:
        with subscribed(raw, namespace, patterns=(f"{namespace}*",)) as naive:
            raw.publish(namespace, "x")
            assert messages(naive) == [b"x", b"x"]
        pubsub = backend.pubsub()
        with pubsub.listen("c", pattern="c*") as subscription:
            pubsub.publish("c", 1)
            pubsub.publish("c", 2)
            assert [subscription.get(5), subscription.get(5)] == [ailf.Message("c", 1), ailf.Message("c", 2)]
            assert subscription.get(0.1) is None


def test_trap_17_database_numbers(server: Server, namespace: str) -> None:
    """B6, trap 17: pub/sub ignores the database number; a namespace keeps two programs apart."""
    with (
        redis.Redis(port=server.port, db=0) as zero,
        redis.Redis(port=server.port, db=1) as one,
        subscribed(zero, namespace) as naive,
    ):
        one.publish(namespace, "from another database")
        assert messages(naive) == [b"from another database"]
    urls = [f"{server.url}?namespace={namespace}-{each}" for each in "ab"]
    with ailf.connect(urls[0]) as here, ailf.connect(urls[1]) as there, here.pubsub().listen("c") as subscription:
        there.pubsub().publish("c", "from another namespace")
        here.pubsub().publish("c", "ours")
        assert subscription.get(5) == ailf.Message("c", "ours")


def test_trap_18_a_slow_subscriber(new_server: NewServer) -> None:
    """P4, trap 18: a server disconnects a subscriber that doesn't read; ailf reads on, and counts what it drops."""
    server = new_server("--client-output-buffer-limit", "pubsub 1mb 1mb 0")
    body = b"x" * 100_000
    with redis.Redis(port=server.port) as raw, ailf.connect(server.url) as backend:
        with subscribed(raw, "slow"):  # which reads nothing from here on
            heard = [raw.publish("slow", body) for _ in range(200)]
            assert heard[0] == 1
            assert heard[-1] == 0, "the server has not disconnected it"
        with backend.pubsub(type=bytes).listen("c", buffer=10) as subscription:
            begun = time.monotonic()
            for _ in range(200):
                raw.publish("ailf:channel:c", body)
                time.sleep(0.001)
            assert time.monotonic() - begun < 5, "the publisher waited for the subscriber"
            time.sleep(0.3)
            assert subscription.dropped >= 150
            assert subscription.dropped_bytes == subscription.dropped * len(body)
            assert all(isinstance(subscription.get(5), ailf.Message) for _ in range(10))


def test_trap_19_replies_on_a_connection_of_their_own(new_server: NewServer) -> None:
    """P9, trap 19: a request sent before the subscription to its reply is confirmed misses the reply; ailf gets it."""
    server = new_server()
    with redis.Redis(port=server.port) as raw, raw.pubsub() as requests:
        requests.subscribe("ask")
        requests.get_message(timeout=1)
        raw.publish("ask", "to: replies")  # the naive asker publishes first,
        assert messages(requests) == [b"to: replies"]
        assert raw.publish("replies", "the answer") == 0  # is answered at once,
        with subscribed(raw, "replies") as naive:  # and only now listens
            assert messages(naive, 0.2) == []
    with ailf.connect(server.url) as backend, server.client() as admin:
        responder = backend.pubsub()
        responder.subscribe("ask", lambda message: message.data)
        thread = responder.run_in_thread()
        asker = backend.pubsub()
        asker.request("ask", 0)
        before = len(admin.client_list())
        threads = [
            threading.Thread(target=lambda first=first: [asker.request("ask", first + step) for step in range(25)])
            for first in range(0, 100, 25)
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join(20)
        for number in range(100):
            assert asker.request("ask", number, timeout=5).data == number
        assert len(admin.client_list()) <= before + len(threads), "calls made or left connections of their own"
        responder.stop()
        thread.join(5)
