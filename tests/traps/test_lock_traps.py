"""Traps 20 to 25, from other locks: each test shows the failure with redis-py alone, and then ailf without it."""

import asyncio
import contextlib
import threading
import time
import uuid

import pytest
import redis
import redis.asyncio

import ailf
from ailf.driver import LockRequest
from ailf.runtime import run
from tests.support.servers import NewServer, Server


def test_trap_20_a_token_that_tasks_share(server: Server, namespace: str) -> None:
    """L3, L4, trap 20: redis-py's asyncio Lock has one token for all tasks; in ailf each lease has its own."""

    async def naive() -> bool:
        async with redis.asyncio.Redis(port=server.port) as client:
            shared = client.lock(f"{namespace}:naive", timeout=0.1)
            assert await shared.acquire(blocking=False)  # task A, whose lease then ends
            await asyncio.sleep(0.15)
            assert await asyncio.ensure_future(shared.acquire(blocking=False))  # task B
            with contextlib.suppress(redis.exceptions.LockError):
                await shared.release()  # A, late
            return await client.exists(f"{namespace}:naive") == 1

    async def ours() -> bool:
        async with ailf.connect_async(f"{server.url}?namespace={namespace}") as backend:
            shared = backend.lock("l", ttl=0.1, renew=False)
            first = await shared.acquire()
            await asyncio.sleep(0.15)
            second = await asyncio.ensure_future(shared.acquire())
            with pytest.raises(ailf.LeaseLostError):
                await first.release()
            return [each.fence for each in (await shared.inspect()).holders] == [second.fence]

    assert not asyncio.run(naive()), "A's late release has taken B's lock away"
    assert asyncio.run(ours())


def test_trap_21_a_lost_answer(backend: ailf.Backend, raw: redis.Redis, namespace: str) -> None:
    """L4, trap 21: SET NX sent again after a lost reply says that it is held; in ailf it is the same grant."""
    token = uuid.uuid4().hex
    assert raw.set(f"{namespace}:naive", token, nx=True, px=1000)
    assert not raw.set(f"{namespace}:naive", token, nx=True, px=1000), "held, by ourselves"
    request = LockRequest(("l",), token, ttl=1.0)
    driver = backend.engine.driver.lock()
    first, again = (run(driver.acquire(request)) for _ in range(2))
    assert first == again
    assert len(backend.lock("l").inspect().holders) == 1


def test_trap_22_a_watchdog_that_dies_of_one_error(new_server: NewServer) -> None:
    """L17, L8, trap 22: a renewal thread that catches no errors ends with the first one; ailf's renews on."""
    server = new_server()
    with redis.Redis(port=server.port, socket_timeout=0.2, retry=None) as raw, ailf.connect(server.url) as backend:
        raw.set("naive", "mine", px=1500)
        died = threading.Event()

        def watchdog() -> None:
            try:
                while True:
                    raw.pexpire("naive", 1500)
                    time.sleep(0.3)
            except redis.RedisError:
                died.set()

        threading.Thread(target=watchdog, daemon=True).start()
        lease = backend.lock("l", ttl=3).acquire()
        server.pause()
        time.sleep(0.9)  # longer than the sleep and the timeout of the watchdog together
        server.resume()
        assert died.wait(5)
        time.sleep(3.2)
        assert raw.get("naive") is None, "the dead watchdog still renewed the lease"
        assert not lease.lost
        lease.release()


def test_trap_23_a_stale_holder_comes_back(backend: ailf.Backend, raw: redis.Redis, namespace: str) -> None:
    """L6, trap 23: an extend that sets the key again revives an ended lease; ailf refuses. No tiny ttl is cut to 0."""
    raw.set(f"{namespace}:naive", "mine", px=50)
    time.sleep(0.1)
    raw.set(f"{namespace}:naive", "mine", px=1000)  # "extend"
    assert raw.get(f"{namespace}:naive") == b"mine"
    lock = backend.lock("l", ttl=0.05, renew=False)
    lease = lock.acquire()
    time.sleep(0.1)
    with pytest.raises(ailf.LeaseLostError):
        lease.extend()
    assert lock.inspect() == ailf.LockInfo()
    with pytest.raises(redis.ResponseError):
        raw.set(f"{namespace}:tiny", "mine", nx=True, ex=int(0.9))  # a ttl below 1 s, cut to whole seconds
    assert backend.lock("tiny", ttl=0.9).acquire().remaining() > 0.5


def test_trap_24_fences_that_stay_for_ever_or_fall(new_server: NewServer) -> None:
    """L2, trap 24: a counter leaks a key per name, and restarts after FLUSHALL; ailf's has a TTL, and keeps rising."""
    server = new_server()
    with redis.Redis(port=server.port) as raw, ailf.connect(server.url) as backend:
        before = raw.incr("naive:fence")
        assert raw.ttl("naive:fence") == -1
        lock = backend.lock("l")
        lease = lock.acquire()
        lease.release()
        raw.flushall()
        assert raw.incr("naive:fence") <= before
        again = lock.acquire()
        assert again.fence > lease.fence
        again.release()
        assert all(raw.pttl(key) > 0 for key in raw.scan_iter("*lock*"))


def test_trap_25_wakeups(backend: ailf.Backend, raw: redis.Redis, namespace: str) -> None:
    """L11, trap 25: polling waits out its interval; ailf's waiter is woken, and at the ttl if the wake-up is lost."""
    naive = raw.lock(f"{namespace}:naive", timeout=10, sleep=1.0, thread_local=False)  # else only this thread may
    naive.acquire()
    threading.Timer(0.1, naive.release).start()
    begun = time.monotonic()
    raw.lock(f"{namespace}:naive", timeout=10, sleep=1.0).acquire()
    assert time.monotonic() - begun > 0.9, "a second for a lock that was free after a tenth"
    lock = backend.lock("l", ttl=10)
    lease = lock.acquire().hand_over()
    threading.Timer(0.1, lease.release).start()
    begun = time.monotonic()
    lock.acquire(5).release()
    assert time.monotonic() - begun < 0.6
    with backend.lock("dead", ttl=0.5, renew=False).hold() as held, pytest.raises(ailf.LockTimeoutError):
        held.hand_over()
        backend.lock("dead").acquire(0.1)
    backend.lock("silent", ttl=0.5, renew=False).acquire()  # like a dead holder: no release wakes a waiter
    begun = time.monotonic()
    backend.lock("silent").acquire(5)
    assert 0.3 < time.monotonic() - begun < 1.5
