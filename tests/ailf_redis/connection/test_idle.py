"""The cost of waiting: an idle consumer sends about one command per second, and a waiter for a lock nearly none."""

import threading
import time

import ailf
from tests.support.servers import NewServer, Server

SECONDS = 6.0


def commands(server: Server) -> int:
    """Return how many commands the server has processed; a script counts once."""
    with server.client() as admin:
        stats: dict[str, dict[str, int]] = admin.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval", "xread", "ping"))


def test_an_idle_consumer(new_server: NewServer) -> None:
    """S6: a consumer that waits for a message sends about one command per second at most, and is woken at once."""
    server = new_server()
    with ailf.connect(server.url) as backend:
        stream = backend.stream("s")
        with stream.group("g").consumer() as consumer:
            came: list[float] = []
            waiting = threading.Thread(target=lambda: came.append(time.monotonic() if consumer.get(30) else 0.0))
            waiting.start()
            time.sleep(0.5)
            before = commands(server)
            time.sleep(SECONDS)
            assert commands(server) - before <= 1.6 * SECONDS
            added = time.monotonic()
            stream.add(1)
            waiting.join(5)
            assert came[0] - added < 0.25


def test_a_waiter_for_a_lock(new_server: NewServer) -> None:
    """L11: a call that waits for a lock sends nearly nothing, and is woken at once."""
    server = new_server()
    with ailf.connect(server.url) as backend:
        lock = backend.lock("l")
        lease = lock.acquire()
        came: list[float] = []
        waiting = threading.Thread(target=lambda: (lock.acquire(30).release(), came.append(time.monotonic())))
        waiting.start()
        time.sleep(0.5)
        before = commands(server)
        time.sleep(SECONDS)
        assert commands(server) - before <= 0.5 * SECONDS + 1
        released = time.monotonic()
        lease.release()
        waiting.join(5)
        assert came[0] - released < 0.25
