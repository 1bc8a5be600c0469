"""Connections of pub/sub: a slow subscriber is read on, and all replies share one connection."""

import threading
import time

import ailf
from tests.support.servers import NewServer


def test_a_slow_subscriber_is_not_cut_off(new_server: NewServer) -> None:
    """P4: the connection of an idle subscription is read on, so the server's output buffer limit isn't reached."""
    server = new_server("--client-output-buffer-limit", "pubsub 1mb 1mb 0")
    body = b"x" * 100_000
    with (
        ailf.connect(server.url) as backend,
        server.client() as raw,
        backend.pubsub(type=bytes).listen("c", buffer=10) as subscription,
    ):
        for _ in range(200):
            assert raw.publish("ailf:channel:c", body) == 1
            time.sleep(0.001)
        until = time.monotonic() + 5
        while subscription.dropped < 190 and time.monotonic() < until:
            time.sleep(0.01)
        assert (subscription.dropped, subscription.dropped_bytes) == (190, 190 * len(body))
        assert all(isinstance(subscription.get(5), ailf.Message) for _ in range(10))


def test_requests_open_no_connections(new_server: NewServer) -> None:
    """P9: replies come over one connection, however many requests there are; none is left behind."""
    server = new_server()
    with ailf.connect(server.url) as backend, server.client() as admin:
        responder, requester = backend.pubsub(), backend.pubsub()
        responder.subscribe("ask", lambda message: message.data)
        answering = responder.run_in_thread()
        requester.request("ask", 0, timeout=5)
        before = len(admin.client_list())

        def ask() -> None:
            for number in range(25):
                assert requester.request("ask", number, timeout=5).data == number

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(20)
        ask()
        assert len(admin.client_list()) <= before + len(threads), "the pool has more than one for each thread"
        responder.stop()
        answering.join(5)
