"""A server that refuses writes: calls that free something work, others are refused, and the error says why."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

import ailf
from ailf.errors import BackendError, BackendFullError, BackendReadOnlyError, ConnectionLostError
from ailf.ratelimit.permit import PermitLease
from ailf.runtime import run
from tests.support.servers import Server


@contextlib.contextmanager
def full(server: Server) -> Iterator[None]:
    """Leave the server without memory."""
    with server.client() as admin:
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", 1)
        try:
            yield
        finally:
            admin.config_set("maxmemory", 0)


def refused(call: Callable[[], Any]) -> None:
    """Expect that a call is refused for lack of memory."""
    with pytest.raises(BackendFullError, match="no memory left"):
        call()


def test_streams_drain_without_memory(own_server: Server, namespace: str) -> None:
    """Workers and operators can handle and remove what is stored; adding and redriving are refused."""
    with ailf.connect(f"{own_server.url}?namespace={namespace}") as backend:
        stream = backend.stream("s")
        stream.add_many(range(12))
        later = stream.add("later", delay=60)
        for number in range(3):
            stream.add(number, key="k")
        group = stream.group("g", max_deliveries=3)
        group.open()
        with group.consumer() as consumer:
            for _ in range(3):
                delivery = consumer.get(0)
                assert delivery is not None
                delivery.reject("no")
        letters = group.dead_letters.list()
        with full(own_server):
            with group.consumer(prefetch=3) as consumer, stream.group("other").consumer() as other:
                taken = [consumer.get(0) for _ in range(5)]
                assert other.get(0) is not None
                first, second, third, fourth, fifth = [each for each in taken if each is not None]
                first.ack()
                second.nack(delay=0, reason="not now")
                third.release()
                fourth.reject("no")
                fifth.extend(30)
                group.pause()
                assert group.info().paused
                group.resume()
                again = consumer.get(0)
                assert again is not None
                again.nack(delay=60)
            for call in (lambda: stream.add(1), lambda: stream.add_once("id", 1), lambda: stream.add_many([1, 2]),
                         lambda: stream.add(1, delay=5), group.dead_letters.redrive_all):  # fmt: skip
                refused(call)
            assert group.dead_letters.list()[:3] == letters
            assert group.dead_letters.purge(letters[0].id) == 1
            assert stream.cancel(later)
            group.seek(ailf.EARLIEST)
            assert sorted(each for each in handle_all(group) if isinstance(each, int))[-3:] == [9, 10, 11]
            assert (group.info().pending, group.info().lag) == (0, 0)
            assert group.dead_letters.purge_all() == 3
            stream.group("other").delete()
            assert stream.trim(ailf.Retention(max_len=4)).removed == 11
            bounded = backend.stream("s", retention=ailf.Retention(max_len=4))
            for number in range(3):
                bounded.add(number)
                assert group.info().length <= 4 + number
                handle_all(group)
            stream.delete()


def handle_all(group: Any) -> list[Any]:
    """Let a worker handle all messages; return their data."""
    seen = []

    def handle(delivery: Any) -> None:
        seen.append(delivery.data)
        if not group.info().lag and group.info().pending == 1:
            group.stop()

    group.process(handle, prefetch=1)
    return seen


def test_locks_and_permits_without_memory(own_server: Server, namespace: str) -> None:
    """Leases are extended and released; nothing more is granted."""
    with ailf.connect(f"{own_server.url}?namespace={namespace}") as backend:
        lock, limiter = (
            backend.lock("l", ttl=30),
            backend.rate_limiter("r", rate="100/minute", parallel=ailf.Concurrency(3)),
        )
        lease, permit, other = lock.acquire(), limiter.acquire("k"), limiter.acquire("k")
        with full(own_server):
            lease.extend()
            assert lock.inspect().holders
            assert run(PermitLease.renew(backend.engine.driver, [each._flow._lease for each in (permit, other)])) == [
                True,
                True,
            ]
            permit.settle(rate=2)
            other.cancel()
            limiter.observe("k", limit="rate", remaining=1)
            refused(backend.lock("another").try_acquire)
            refused(lambda: limiter.try_acquire("other"))
            lease.release()
            limiter.reset("k")


def fail_snapshot(admin: Any) -> None:
    """Let a snapshot fail, with a directory in its place."""
    admin.config_set("save", "3600 1")
    Path(admin.config_get("dir")["dir"], "dump.rdb").mkdir(exist_ok=True)
    admin.bgsave()
    until = time.monotonic() + 10
    while admin.info("persistence")["rdb_last_bgsave_status"] == "ok" and time.monotonic() < until:
        time.sleep(0.01)


CAUSES: dict[str, tuple[type[BackendError], Callable[[Any], None], Callable[[Any], None]]] = {
    "OOM": (
        BackendFullError,
        lambda admin: admin.config_set("maxmemory", 1),
        lambda admin: admin.config_set("maxmemory", 0),
    ),
    "READONLY": (
        BackendReadOnlyError,
        lambda admin: admin.replicaof("127.0.0.1", 1),
        lambda admin: admin.replicaof("NO", "ONE"),
    ),
    "MISCONF": (BackendReadOnlyError, fail_snapshot, lambda admin: admin.config_set("save", "")),
    "NOREPLICAS": (
        ConnectionLostError,
        lambda admin: admin.config_set("min-replicas-to-write", 1),
        lambda admin: admin.config_set("min-replicas-to-write", 0),
    ),
}
"""The reasons to refuse: the error, how to cause it, and how to end it."""


@pytest.mark.parametrize("cause", CAUSES)
def test_refusals_within_scripts(own_server: Server, namespace: str, cause: str) -> None:
    """A refusal is the same error within a script and outside, on every version."""
    expected, begin, end = CAUSES[cause]
    with ailf.connect(f"{own_server.url}?retry_for=0&namespace={namespace}") as backend, own_server.client() as admin:
        plain, scripted = backend.stream("s"), backend.stream("s", retention=ailf.Retention(max_len=100))
        scripted.add(1)
        begin(admin)
        try:
            for call in (lambda: plain.add(1), lambda: scripted.add(1), backend.lock("l").try_acquire,
                         lambda: backend.rate_limiter("r", "5/second").try_acquire("k")):  # fmt: skip
                with pytest.raises(expected) as caught:
                    call()
                assert "script" not in str(caught.value)
        finally:
            end(admin)


def test_a_server_that_runs_a_long_script(own_server: Server, namespace: str) -> None:
    """A server that is busy with a script is an error that says it isn't ready."""
    with ailf.connect(f"{own_server.url}?retry_for=0&namespace={namespace}") as backend, own_server.client() as admin:
        admin.config_set("lua-time-limit", 1)
        with own_server.client() as long, contextlib.suppress(redis.ResponseError):
            running = threading.Thread(target=lambda: error_of(long.eval, "while true do end", 0))
            running.start()
            until = time.monotonic() + 10
            while time.monotonic() < until and not error_of(admin.ping):
                time.sleep(0.01)
            with pytest.raises(ConnectionLostError, match="is not ready: BUSY"):
                backend.stream("s").add(1)
            admin.script_kill()
            running.join(5)
        assert backend.stream("s").add(1)


def error_of(call: Callable[..., Any], *args: Any) -> str:
    """Return the error text of a call, or ""."""
    try:
        call(*args)
    except redis.ResponseError as error:
        return str(error)
    return ""
