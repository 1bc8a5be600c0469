"""Foreign data in a lock's keys: values that can't be ours are ignored, and every call works."""

import time

import pytest
import redis

import ailf
from ailf.driver import Granted, LockRequest, WaiterInfo
from ailf.runtime import run

KEY = "{ailf:lock:l}"
FENCES, FENCE, QUEUE, WAITERS = (f"{KEY}:{each}" for each in ("fences", "fence", "queue", "waiters"))
INFINITE = "9" * 400
LARGEST = 2**53 - 1
"""The largest fence."""

Score = str | float

HOLDERS: dict[str | bytes, Score] = {"a": "inf", "b": 1e300, "c": 2**53 + 2, "d": "-inf", "": "inf", b"\xff\x00": "inf"}
NO_FENCES = [
    "junk", "", "inf", "-inf", "nan", "1e300", "-1e300", "-5", "1.5", " 5", "5 ", "0x10", f"{2**53}", f"{LARGEST}",
    f"{10**20}", INFINITE, b"\xff", "٣",
]  # fmt: skip
WAITING = [
    "junk", "", f"{INFINITE} {INFINITE} c", "inf inf c", f"{10**13} {INFINITE} c", f"{10**20} 1 c", "-1 -1 c",
    "nan nan c", f"{10**13}", b"\xff", "1e300 1 c", f"1 {10**13} 0 c", f"{10**13} 1 - c",
]  # fmt: skip


def scripts(raw: redis.Redis) -> int:
    """Return how many scripts ran since the test began."""
    stats = raw.info("commandstats")
    return sum(stats.get(f"cmdstat_{each}", {}).get("calls", 0) for each in ("eval", "evalsha"))


def test_holders_that_never_end(backend: ailf.Backend, raw: redis.Redis) -> None:
    """L1, L16: a grant that would never end doesn't count, for a lock, a semaphore and `inspect`."""
    raw.zadd(KEY, HOLDERS)
    assert backend.lock("l").inspect() == ailf.LockInfo(())
    lease = backend.lock("l").acquire(timeout=0.5)
    raw.zadd(KEY, HOLDERS)
    lease.extend()
    assert 0 < raw.pttl(KEY) <= 30_000
    assert 0 < raw.pttl(FENCES) <= 30_000
    assert [each.fence for each in backend.lock("l").inspect().holders] == [lease.fence]
    assert backend.lock("l").try_acquire() is None
    lease.release()
    semaphore = backend.semaphore("l", 2)
    for _ in range(2):
        raw.zadd(KEY, HOLDERS)
        assert semaphore.acquire(timeout=0.5)
    assert semaphore.try_acquire() is None
    assert not run(backend.engine.driver.lock().extend([LockRequest(("l",), "a", 30.0)]))[0]


def test_many_holders_that_never_end(backend: ailf.Backend, raw: redis.Redis) -> None:
    """L1: each request removes some of them, and the lock is granted after a few."""
    raw.zadd(KEY, {f"{number}": "inf" for number in range(450)})
    assert backend.lock("l").acquire(timeout=2)
    assert scripts(raw) < 10


def test_a_holder_without_a_fence(backend: ailf.Backend, raw: redis.Redis) -> None:
    """L1, L11: a grant of another program is shown with fence 0, and waiting for it isn't a busy loop."""
    lock = backend.lock("l")
    for fences in ({}, *({"a": each} for each in NO_FENCES if each != f"{LARGEST}")):
        raw.delete(KEY, FENCES)
        raw.zadd(KEY, {"a": time.time() * 1000 + 60_000.5, "b": time.time() * 1000 + 50_000})
        if fences:
            raw.hset(FENCES, mapping=fences)
        shown = lock.inspect().holders
        assert [each.fence for each in shown] == [0, 0]
        assert all(49 < each.remaining < 60.1 for each in shown)
        assert lock.try_acquire() is None
        assert not lock.break_(5)
    raw.delete(KEY)
    raw.zadd(KEY, {"a": time.time() * 1000 + 200.5})
    before = scripts(raw)
    assert lock.acquire(timeout=2)
    assert scripts(raw) - before < 10


@pytest.mark.parametrize("stored", NO_FENCES)
def test_no_fences(backend: ailf.Backend, raw: redis.Redis, stored: str | bytes) -> None:
    """L2: after a stored value that is no fence, or the last one, fences rise, and grants can be seen and broken."""
    raw.set(FENCE, stored)
    lock, fences = backend.lock("l"), []
    for _ in range(2):
        lease = lock.acquire(timeout=0.5)
        fences.append(lease.fence)
        assert [each.fence for each in lock.inspect().holders] == [lease.fence]
        assert lock.break_(lease.fence)
    assert 0 < fences[0] < fences[1] < LARGEST
    assert raw.get(FENCE) == b"%d" % fences[1]


def test_the_largest_fence(backend: ailf.Backend, raw: redis.Redis) -> None:
    """L2: the largest fence is granted exactly, and can be seen and broken."""
    raw.set(FENCE, LARGEST - 1)
    lock = backend.lock("l")
    lease = lock.acquire(timeout=0.5)
    assert lease.fence == LARGEST
    assert [each.fence for each in lock.inspect().holders] == [LARGEST]
    assert lock.break_(LARGEST)


@pytest.mark.parametrize("stored", [None, "junk", INFINITE, f"{2**53}"])
def test_a_grant_whose_fence_was_removed(backend: ailf.Backend, raw: redis.Redis, stored: str | None) -> None:
    """L4: the same request sent again is granted with a fence, also if the lock is fair and another token waits."""
    driver, request = backend.engine.driver.lock(), LockRequest(("l",), "mine", 30.0, fair=True)
    first = run(driver.acquire(request))
    run(driver.acquire(LockRequest(("l",), "other", 30.0, fair=True, waiter=WaiterInfo("c", 60.0))))
    raw.hdel(FENCES, "mine")
    if stored is not None:
        raw.hset(FENCES, "mine", stored)
    again = run(driver.acquire(request))
    assert isinstance(first, Granted)
    assert isinstance(again, Granted)
    assert again.fence > first.fence
    assert run(driver.release(request))


def test_a_fence_of_several_tokens(backend: ailf.Backend, raw: redis.Redis) -> None:
    """L3: breaking finds the grant among tokens that have the same fence and no grant."""
    lock = backend.lock("l")
    lease = lock.acquire()
    ((token, _),) = raw.hgetall(FENCES).items()
    raw.delete(FENCES)
    raw.hset(FENCES, mapping={f"{number}": lease.fence for number in range(50)})
    raw.hset(FENCES, token, lease.fence)
    assert lock.break_(lease.fence)
    assert not lock.break_(lease.fence)


@pytest.mark.parametrize("position", ["inf", "-inf", 1e300, 2**53, 0.5])
def test_waiters_that_are_not_ours(backend: ailf.Backend, raw: redis.Redis, position: Score) -> None:
    """L11, L12, R10: waiters with times or a position that can't be ours are passed; the others keep theirs."""
    driver, limiter = backend.engine.driver.lock(), backend.rate_limiter("r", "5/day")
    for number, stored in enumerate(WAITING):
        for queue in (QUEUE, "{ailf:limit:r:k}:queue"):
            raw.zadd(queue, {f"{number}": position, b"\xff%d" % number: position})
            raw.hset(queue.replace("queue", "waiters"), mapping={f"{number}": stored, b"\xff%d" % number: stored})
    raw.hset(WAITERS, "in no queue", "junk")
    assert backend.lock("l").inspect().waiting == 0
    lease = backend.lock("l", fair=True).acquire(timeout=0.5)
    if position != "-inf":
        raw.zadd(QUEUE, {"behind": position})
    for token in ("first", "second", "alphabetically before"):
        run(driver.acquire(LockRequest(("l",), token, 30.0, fair=True, waiter=WaiterInfo("c", 60.0))))
    order = [each for each in raw.zrange(QUEUE, 0, -1) if b" " in each or each in (b"first", b"second")]
    assert order == [b"first", b"second", b"alphabetically before"]
    assert backend.lock("l").inspect().waiting == 3
    lease.release()
    assert isinstance(run(driver.acquire(LockRequest(("l",), "first", 30.0, fair=True))), Granted)
    assert limiter.acquire("k", timeout=0.5)
    assert [limiter.try_acquire("k").allowed for _ in range(5)] == [True] * 4 + [False]


def test_a_wait_queue_with_the_largest_ttl(backend: ailf.Backend, raw: redis.Redis) -> None:
    """L12: a wait queue whose keys have the largest TTL that a server can count takes more waiters."""
    lease, driver = backend.lock("l").acquire(), backend.engine.driver.lock()
    for early in range(0, 2000, 100):
        raw.zadd(QUEUE, {"a": 1})
        raw.hset(WAITERS, "a", f"{10**13} 1 0 c")
        for key in (QUEUE, WAITERS, KEY, FENCES, FENCE):
            raw.pexpireat(key, 2**63 - 1 - early)
        run(driver.acquire(LockRequest(("l",), f"{early}", 30.0, waiter=WaiterInfo("c", 60.0))))
    assert backend.lock("l").inspect().waiting == 21
    lease.release()
    assert backend.lock("l").acquire(timeout=0.5)
