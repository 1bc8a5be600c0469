"""A consumer that waits on a server for longer than a call may take."""

import threading
import time

import ailf
from tests.support.servers import NewServer


def test_a_wait_longer_than_the_timeout(new_server: NewServer) -> None:
    """S6: a consumer can wait for longer than the `timeout` of calls, over one connection, and wakes at once."""
    server = new_server()
    with ailf.connect(f"{server.url}?timeout=0.2") as backend, server.client() as admin:
        stream = backend.stream("s")
        with stream.group("g", lease=60).consumer() as consumer:
            assert consumer.get(0) is None
            connected = admin.info("stats")["total_connections_received"]
            added: list[float] = []
            adding = threading.Timer(0.8, lambda: (added.append(time.monotonic()), stream.add(1)))
            adding.start()
            delivery = consumer.get(5)
            received = time.monotonic()
            adding.join()
            assert delivery is not None
            assert received - added[0] < 0.25
            opened = admin.info("stats")["total_connections_received"] - connected
            assert opened <= 2, "more than one to wait, and one for the thread that adds"
