"""Trust within a namespace, and a server that loses its data: the guide's statements hold."""

import time

import pytest
import redis

import ailf
from tests.support.servers import NewServer, Server


def test_a_namespace_is_one_trust_zone(any_server: Server, namespace: str) -> None:
    """A pattern of the same namespace receives the replies of others; one of another namespace receives nothing."""
    with (
        ailf.connect(f"{any_server.url}?namespace={namespace}") as backend,
        ailf.connect(f"{any_server.url}?namespace={namespace}") as inside,
        ailf.connect(f"{any_server.url}?namespace={namespace}-other") as outside,
    ):
        responder = backend.pubsub()
        responder.subscribe("ask", lambda _: "a secret")
        answering = responder.run_in_thread()
        with (
            inside.pubsub().listen(pattern="ailf.inbox.*") as seen,
            outside.pubsub().listen(pattern="*") as unseen,
        ):
            assert backend.pubsub().request("ask", 1, timeout=5).data == "a secret"
            reply = seen.get(5)
            assert isinstance(reply, ailf.Message)
            assert reply.data == "a secret"
            outside.pubsub().publish("end", 1)
            last = unseen.get(5)
            assert isinstance(last, ailf.Message)
            assert last.channel == "end"
        responder.stop()
        answering.join(5)


def test_a_reply_stays_within_the_namespace(any_server: Server, namespace: str) -> None:
    """A request names the channel of its reply, which is always within the responder's own namespace."""
    raw = redis.Redis(port=any_server.port)
    with raw, raw.pubsub() as everything, ailf.connect(f"{any_server.url}?namespace={namespace}") as backend:
        responder = backend.pubsub()
        responder.subscribe("ask", lambda _: "answer")
        answering = responder.run_in_thread()
        everything.psubscribe("*")
        headers = {"ailf-reply-to": "elsewhere:channel:x", "ailf-request": "1"}
        raw.publish(f"{namespace}:channel:ask", ailf.codecs.seal_envelope(b"1", headers))
        until = time.monotonic() + 5
        channels: list[bytes] = []
        while len(channels) < 2 and time.monotonic() < until:
            message = everything.get_message(ignore_subscribe_messages=True, timeout=0.1)
            if message and message["channel"].startswith(namespace.encode()):
                channels.append(message["channel"])
        assert channels[1:] == [f"{namespace}:channel:elsewhere:channel:x".encode()]
        responder.stop()
        answering.join(5)


def test_a_flush(new_server: NewServer) -> None:
    """After FLUSHALL limits begin anew, a held lock is granted again, its first holder's lease is lost, fences rise."""
    server = new_server()
    with ailf.connect(server.url) as backend, server.client() as admin:
        limiter = backend.rate_limiter("r", "2/day")
        assert [limiter.try_acquire("k").allowed for _ in range(3)] == [True, True, False]
        lease = backend.lock("l").acquire(5)
        admin.flushall()
        assert limiter.try_acquire("k").allowed
        other = backend.lock("l").try_acquire()
        assert other is not None
        assert other.fence > lease.fence
        with pytest.raises(ailf.LeaseLostError):
            lease.extend()


def test_when_a_fence_falls(new_server: NewServer) -> None:
    """A fence falls only if the data is lost and the clock is behind: here the last fence came from a clock ahead."""
    server = new_server()
    with ailf.connect(server.url) as backend, server.client() as admin:
        ahead = (int(time.time()) + 3600) * 1_000_000
        admin.set("{ailf:lock:l}:fence", ahead)
        with backend.lock("l") as lease:
            assert lease.fence == ahead + 1
        admin.flushall()
        with backend.lock("l") as later:
            assert later.fence < lease.fence
