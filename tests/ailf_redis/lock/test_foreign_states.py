"""What another program left in a lock's keys: what can't be ours counts for nothing, and no call suffers."""

import time
from collections.abc import Iterator

import pytest
import redis

import ailf
from ailf.driver import Granted, LockRequest, WaiterInfo
from ailf.runtime import run
from tests.support import binaries
from tests.support.servers import Server

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
    "nan nan c", f"{10**13}", b"\xff", "1e300 1 c",
]  # fmt: skip


@pytest.fixture(scope="module", params=sorted(binaries.found()))
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of each version, whose commands nobody else counts."""
    with Server.start(binaries.found()[request.param], version=request.param) as server:
        yield server


@pytest.fixture
def raw(own_server: Server) -> Iterator[redis.Redis]:
    """A client of redis-py's, on an empty server."""
    with own_server.client() as client:
        client.flushall()
        client.config_resetstat()
        yield client


@pytest.fixture
def backend(own_server: Server, raw: redis.Redis) -> Iterator[ailf.Backend]:
    """A backend of ours, which doesn't wait long for a server that is stuck."""
    with ailf.connect(f"{own_server.url}?timeout=2&retry_for=0") as opened:
        yield opened


def scripts(raw: redis.Redis) -> int:
    """Return how many scripts were run since the test began."""
    ran = raw.info("commandstats")
    return sum(ran.get(f"cmdstat_{each}", {}).get("calls", 0) for each in ("eval", "evalsha"))


def test_holders_that_never_end(backend: ailf.Backend, raw: redis.Redis) -> None:
    """L1, L16: a grant that ends after any time is none, for a lock, a semaphore and what it shows."""
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
    """L1: each look passes some of them, and the lock is had after a few."""
    raw.zadd(KEY, {f"{number}": "inf" for number in range(450)})
    assert backend.lock("l").acquire(timeout=2)
    assert scripts(raw) < 10


def test_a_holder_without_a_fence(backend: ailf.Backend, raw: redis.Redis) -> None:
    """L1, L11: a grant of another program is shown with fence 0, and waited for without a loop."""
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


@pytest.mark.parametrize("known", NO_FENCES)
def test_no_fences(backend: ailf.Backend, raw: redis.Redis, known: str | bytes) -> None:
    """L2: after what is no fence, or the last one, fences are numbers that rise, and grants can be seen and broken."""
    raw.set(FENCE, known)
    lock, fences = backend.lock("l"), []
    for _ in range(2):
        lease = lock.acquire(timeout=0.5)
        fences.append(lease.fence)
        assert [each.fence for each in lock.inspect().holders] == [lease.fence]
        assert lock.break_(lease.fence)
    assert 0 < fences[0] < fences[1] < LARGEST
    assert raw.get(FENCE) == b"%d" % fences[1]


def test_the_largest_fence(backend: ailf.Backend, raw: redis.Redis) -> None:
    """L2: the largest fence is granted exactly, seen and broken."""
    raw.set(FENCE, LARGEST - 1)
    lock = backend.lock("l")
    lease = lock.acquire(timeout=0.5)
    assert lease.fence == LARGEST
    assert [each.fence for each in lock.inspect().holders] == [LARGEST]
    assert lock.break_(LARGEST)


@pytest.mark.parametrize("known", [None, "junk", INFINITE, f"{2**53}"])
def test_a_grant_whose_fence_was_taken(backend: ailf.Backend, raw: redis.Redis, known: str | None) -> None:
    """L4: the same try sent again is granted, with a fence; also where the lock is fair and somebody waits."""
    driver, bid = backend.engine.driver.lock(), LockRequest(("l",), "mine", 30.0, fair=True)
    first = run(driver.acquire(bid))
    run(driver.acquire(LockRequest(("l",), "other", 30.0, fair=True, waiter=WaiterInfo("c", 60.0))))
    raw.hdel(FENCES, "mine")
    if known is not None:
        raw.hset(FENCES, "mine", known)
    again = run(driver.acquire(bid))
    assert isinstance(first, Granted)
    assert isinstance(again, Granted)
    assert again.fence > first.fence
    assert run(driver.release(bid))


def test_a_fence_that_nobody_holds(backend: ailf.Backend, raw: redis.Redis) -> None:
    """L3: breaking finds the grant among tokens with the same fence that have none."""
    lock = backend.lock("l")
    lease = lock.acquire()
    ((token, _),) = raw.hgetall(FENCES).items()
    raw.delete(FENCES)
    raw.hset(FENCES, mapping={f"{number}": lease.fence for number in range(50)})
    raw.hset(FENCES, token, lease.fence)
    assert lock.break_(lease.fence)
    assert not lock.break_(lease.fence)


@pytest.mark.parametrize("place", ["inf", "-inf", 1e300, 2**53, 0.5])
def test_waiters_that_nobody_is(backend: ailf.Backend, raw: redis.Redis, place: Score) -> None:
    """L11, L12, R10: who stands in line with times or a place that can't be ours is passed; the others keep theirs."""
    driver, limiter = backend.engine.driver.lock(), backend.rate_limiter("r", "5/day")
    for number, known in enumerate(WAITING):
        for queue in (QUEUE, "{ailf:limit:r:k}:queue"):
            raw.zadd(queue, {f"{number}": place, b"\xff%d" % number: place})
            raw.hset(queue.replace("queue", "waiters"), mapping={f"{number}": known, b"\xff%d" % number: known})
    raw.hset(WAITERS, "in no line", "junk")
    assert backend.lock("l").inspect().waiting == 0
    lease = backend.lock("l", fair=True).acquire(timeout=0.5)
    if place != "-inf":
        raw.zadd(QUEUE, {"behind": place})
    for token in ("first", "second", "alphabetically before"):
        run(driver.acquire(LockRequest(("l",), token, 30.0, fair=True, waiter=WaiterInfo("c", 60.0))))
    order = [each for each in raw.zrange(QUEUE, 0, -1) if b" " in each or each in (b"first", b"second")]
    assert order == [b"first", b"second", b"alphabetically before"]
    assert backend.lock("l").inspect().waiting == 3
    lease.release()
    assert isinstance(run(driver.acquire(LockRequest(("l",), "first", 30.0, fair=True))), Granted)
    assert limiter.acquire("k", timeout=0.5)
    assert [limiter.try_acquire("k").allowed for _ in range(5)] == [True] * 4 + [False]


def test_a_line_that_lives_until_the_end_of_numbers(backend: ailf.Backend, raw: redis.Redis) -> None:
    """L12: waiters can stand in a line whose keys live as long as a server can count."""
    lease, driver = backend.lock("l").acquire(), backend.engine.driver.lock()
    for early in range(0, 2000, 100):
        raw.zadd(QUEUE, {"a": 1})
        raw.hset(WAITERS, "a", f"{10**13} 1 c")
        for key in (QUEUE, WAITERS, KEY, FENCES, FENCE):
            raw.pexpireat(key, 2**63 - 1 - early)
        run(driver.acquire(LockRequest(("l",), f"{early}", 30.0, waiter=WaiterInfo("c", 60.0))))
    assert backend.lock("l").inspect().waiting == 21
    lease.release()
    assert backend.lock("l").acquire(timeout=0.5)
