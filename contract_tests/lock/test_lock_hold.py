"""L8, L9, L15, L17: a held lock is renewed, a loss is signalled in time, and the body ends in the right way.

Time really passes here, on the backend and in this process.
"""

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest.mock import patch

import pytest

import ailf
from ailf.driver import Capability, LockRequest
from contract_tests.backend.test_cancel import MOMENTS, cancelled
from contract_tests.fixtures import asyncio_only, needs
from contract_tests.helpers.threads import in_thread, running_threads
from contract_tests.lock.raw_lock import AWAY, RawLockClient, fences, in_queue, same
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.LOCK,)

TTL = 0.3
"""Seconds of a lease; it is renewed after a third of this."""

DAY = 86_400.0
"""Seconds: longer than any test."""

SLACK = 0.15
"""Seconds by which a busy machine may be late."""

TRIES = 3
"""The number of tries: a busy machine is late at times, a wrong implementation always."""


class RequestLog:
    """Records a backend's requests to its lock driver from now on, and may inject faults.

    Attributes:
        requests: The requests: for each the driver's method and its first argument.
        inject: Called before each request of the renewal thread; it may raise or block.
    """

    def __init__(self, backend: Any) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.inject: Callable[[], object] = lambda: None
        driver = backend.engine.driver
        lock, with_runtime = driver.lock, driver.with_runtime
        driver.lock = lambda: _LoggedDriver(self, lock(), lambda: None)
        driver.with_runtime = lambda runtime: self._logged(with_runtime(runtime))

    def _logged(self, driver: Any) -> Any:
        lock = driver.lock
        driver.lock = lambda: _LoggedDriver(self, lock(), self.inject)
        return driver

    def count(self, method: str) -> int:
        """Return the number of requests for a method."""
        return [each for each, _ in self.requests].count(method)


class _LoggedDriver:
    def __init__(self, log: RequestLog, inner: Any, inject: Callable[[], object]) -> None:
        self._log, self._inner, self._inject = log, inner, inject

    def __getattr__(self, method: str) -> Any:
        async def request(*args: Any) -> Any:
            self._log.requests.append((method, args[0]))
            self._inject()
            return await getattr(self._inner, method)(*args)

        return getattr(self._inner, method) if method == "server_of" else request  # that one makes no request


@contextlib.asynccontextmanager
async def time_flows(world: World) -> AsyncIterator[None]:
    """Let the backend's time pass at the rate of real time, also while this thread is blocked."""
    over = threading.Event()

    async def flow() -> None:
        flowing = asyncio.ensure_future(world.elapse(DAY))
        await in_thread(over.wait)
        flowing.cancel()

    flowing = asyncio.ensure_future(in_thread(asyncio.run, flow()))
    await asyncio.sleep(0)
    try:
        yield
    finally:
        over.set()
        await flowing


async def in_body(world: World, lock: Any, body: Callable[[Any], Any]) -> "asyncio.Task[Any]":
    """Start a task that holds a lock and runs the body; return the task once it is in the body."""
    entered = asyncio.Event()

    async def hold() -> Any:
        async with lock.hold(world.patience) as lease:
            entered.set()
            return await body(lease)

    task = asyncio.ensure_future(hold())
    await world.within_patience(entered.wait())
    return task


async def outcome(world: World, task: "asyncio.Task[Any]") -> Any:
    """Return the result of a task, or the exception that it raises."""
    return (await world.within_patience(asyncio.gather(task, return_exceptions=True)))[0]


# --- entering and leaving ----------------------------------------------------------------------------------------


async def test_holding(world: World) -> None:
    """L9, L8: trap 25: the body runs only with the lock, and the lock is free afterwards, however the body ends."""
    backend, other = await world.connect(), await world.connect()
    lock, theirs = backend.lock("l"), other.lock("l")
    for error in (None, ValueError("of the body"), ailf.LeaseLostError("of another lock"), KeyboardInterrupt()):
        holding = lock.hold(timeout=1)
        lease = await holding.__aenter__()
        assert await fences(theirs) == [lease.fence]
        assert await theirs.try_acquire() is None
        assert not await holding.__aexit__(type(error) if error else None, error, None)
        assert await theirs.inspect() == ailf.LockInfo()
        assert (lease.lost, lease.remaining()) == (False, 0)
    holder = await theirs.acquire(timeout=0)
    for timeout in (0, 0.02):
        with pytest.raises(ailf.LockTimeoutError):
            async with lock.hold(timeout):
                pytest.fail("the body ran without the lock")
    await holder.release()


async def test_entering(world: World) -> None:
    """L18: trap 25: entering a lock or semaphore acquires it, and leaving releases it, however the body ends."""
    backend, other = await world.connect(), await world.connect()
    theirs = other.lock("l")
    for lock in (backend.lock("l"), backend.lock("l", fair=True), backend.semaphore("l", 1)):
        for error in (None, ValueError("of the body"), KeyboardInterrupt()):
            lease = await lock.__aenter__()
            assert await fences(theirs) == [lease.fence]
            assert await theirs.try_acquire() is None
            assert await lock.try_acquire() is None, "it is not re-entrant"
            assert not await lock.__aexit__(type(error) if error else None, error, None)
            assert await theirs.inspect() == ailf.LockInfo()
            assert not lease.lost
    with pytest.raises(ailf.LeaseLostError):
        async with backend.lock("l") as lease:
            assert await theirs.break_(lease.fence)


async def test_held_functions(world: World) -> None:
    """L18: a decorated function runs only with the lock, which is free when it has ended, in whatever way."""
    backend, other = await world.connect(), await world.connect()
    theirs = other.lock("l")

    async def body(error: Any) -> str:
        assert len(await fences(theirs)) == 1
        assert await theirs.try_acquire() is None
        if error is not None:
            raise error
        return "done"

    decorated = backend.lock("l").held(timeout=0.02)(world.adapt_handler(body) if world.flavour == "blocking" else body)
    call = functools.partial(in_thread, decorated) if world.flavour == "blocking" else decorated
    for _ in range(2):
        assert await call(None) == "done"
        assert await theirs.inspect() == ailf.LockInfo()
    with pytest.raises(ZeroDivisionError):
        await call(ZeroDivisionError())
    holder = await theirs.acquire(timeout=0)
    with pytest.raises(ailf.LockTimeoutError):
        await call(AssertionError("the function ran without the lock"))
    await holder.release()
    assert await call(None) == "done"


@pytest.mark.parametrize("permits", [1, 2])
async def test_entering_at_once(world: World, permits: int) -> None:
    """L18, L16: many workers may enter one object at once: each gets its own lease, and at most n are inside."""
    lock, inside, most, seen = (await world.connect()).semaphore("l", permits), 0, 0, set[int]()

    async def worker() -> None:
        nonlocal inside, most
        for _ in range(3):
            async with lock as lease:
                inside += 1
                most = max(most, inside)
                seen.add(lease.fence)
                await asyncio.sleep(0.002)
                inside -= 1

    await world.within_patience(asyncio.gather(*(worker() for _ in range(4))))
    assert (most, len(seen)) == (permits, 12)
    assert await lock.inspect() == ailf.LockInfo()


async def test_each_entry_is_its_own(world: World) -> None:
    """L18: of two bodies inside at once, only the one whose lease was broken gets LeaseLostError."""
    backend = await world.connect()
    lock, fences_of = backend.semaphore("l", 2), dict[str, int]()
    both, broken = asyncio.Event(), asyncio.Event()

    async def body(name: str) -> None:
        async with lock as lease:
            fences_of[name] = lease.fence
            if len(fences_of) == 2:
                both.set()
            await broken.wait()

    tasks = {name: asyncio.ensure_future(body(name)) for name in ("loses", "keeps")}
    await world.within_patience(both.wait())
    assert await lock.break_(fences_of["loses"])
    assert await fences(lock) == [fences_of["keeps"]]
    broken.set()
    assert isinstance(await outcome(world, tasks["loses"]), ailf.LeaseLostError)
    assert await outcome(world, tasks["keeps"]) is None
    assert await lock.inspect() == ailf.LockInfo()


async def test_leaving_in_another_task(world: World) -> None:
    """L18: leaving a lock that another thread or task entered raises InvalidArgumentError and doesn't release it."""
    backend = await world.connect()
    lock, entered, over = backend.lock("l"), asyncio.Event(), asyncio.Event()

    async def holder() -> None:
        async with lock as lease:
            entered.set()
            await over.wait()
            assert not lease.lost

    holding = asyncio.ensure_future(holder())
    await world.within_patience(entered.wait())
    with pytest.raises(ailf.InvalidArgumentError, match=r"has not entered it.*hold\(\)"):
        await lock.__aexit__(None, None, None)
    assert len(await fences(lock)) == 1
    over.set()
    await world.within_patience(holding)
    assert await fences(lock) == []


@asyncio_only("a thread can't be cancelled")
async def test_cancelled_releases(world: World) -> None:
    """L4, L8: a release that is cancelled at any await and then repeated is no loss."""
    backend = await world.connect()
    lock = backend.lock("l", ttl=AWAY)
    for moment in MOMENTS:
        lease = await lock.acquire(timeout=0)
        await cancelled(world, moment, lease.release())
        await lease.release()
        assert not lease.lost
        assert await fences(lock) == []


@asyncio_only("a thread can't be cancelled")
async def test_cancelled_bodies(world: World) -> None:
    """L9, L10: a body that is cancelled, and cancelled again during the release, leaves the lock free."""
    backend, other = await world.connect(), await world.connect()
    for again in range(8):
        task = await in_body(world, backend.lock("l"), lambda _: asyncio.sleep(world.patience))
        task.cancel()
        for _ in range(again):
            await asyncio.sleep(0)
        task.cancel()
        assert isinstance(await outcome(world, task), asyncio.CancelledError)
        await (await other.lock("l").acquire(0.5)).release()


@pytest.mark.parametrize("fair", [False, True])
async def test_closing_with_locks(world: World, fair: bool) -> None:
    """B3, L12: closing a backend ends all its waits with ClosedError, and delays no waiter of another backend."""
    backend, other = await world.connect(), await world.connect()
    lock, own = other.lock("l", ttl=AWAY, fair=fair), backend.lock("l", fair=fair)
    holder = await lock.acquire(timeout=0)
    kept = await backend.lock("kept").acquire(timeout=0)
    waiting = [asyncio.ensure_future(own.acquire(world.patience)) for _ in range(3)]
    await in_queue(world, lock, 3 if fair else 1)
    staying = asyncio.ensure_future(lock.acquire(world.patience))
    await in_queue(world, lock, 4 if fair else 2)
    await world.within_patience(backend.aclose())
    for each in waiting:
        with pytest.raises(ailf.ClosedError):
            await world.within_patience(each, 1.0)
    calls = (own.try_acquire, own.acquire, own.inspect, lambda: own.break_(1), kept.extend, kept.release)
    for call in (*calls, own.hold().__aenter__):
        with pytest.raises(ailf.ClosedError):
            await world.within_patience(call())
    with pytest.raises(ailf.ClosedError):
        backend.lock("l")
    await in_queue(world, lock, 1)
    await holder.release()
    await (await world.within_patience(staying)).release()


# --- losses ------------------------------------------------------------------------------------------------------


@patch("ailf.engine.renewal.MOVE_TIMEOUT", 0.05)
async def test_lost_by_the_deadline(world: World) -> None:
    """L8, L17: trap 22: a lease that can't be renewed, as the backend hangs, is lost by its deadline, and for good."""
    backend = await world.connect()
    log, answers = RequestLog(backend), threading.Event()
    log.inject = lambda: answers.wait(2 * world.patience)
    begin = time.monotonic()
    try:
        leases = [await backend.lock(f"{renew}", ttl=TTL, renew=renew).acquire(timeout=0) for renew in (True, False)]
        await world.advance(TTL / 2)
        assert not any(lease.lost for lease in leases) or time.monotonic() > begin + TTL * 0.9
        await world.advance(TTL / 2)
        assert [(lease.lost, lease.remaining()) for lease in leases] == [(True, 0), (True, 0)]
    finally:
        answers.set()
    await asyncio.sleep(0.05)
    assert all(lease.lost for lease in leases), "a late reply revived a lost lease"
    assert log.count("extend") == 1


@patch("ailf.engine.renewal.MOVE_TIMEOUT", 0.05)
async def test_a_body_that_lost_its_lock(world: World) -> None:
    """L9, L8: a body whose lease is lost ends with LeaseLostError: on asyncio at once, in a thread at its end."""
    other, answers = await world.connect(), threading.Event()

    async def lose(way: str) -> None:
        backend = await world.connect()
        if way == "hung":
            RequestLog(backend).inject = lambda: answers.wait(2 * world.patience)
        begin = time.monotonic()
        async with backend.lock(way, ttl=TTL, renew=way != "expired").hold() as lease:
            if way == "broken":
                begin = time.monotonic()
                assert await other.lock(way).break_(lease.fence)
            try:
                await asyncio.sleep(world.patience if world.flavour == "asyncio" else 1.3 * TTL)
            finally:
                took.append(time.monotonic() - begin - (TTL / 3 if way == "broken" else TTL))
            assert world.flavour == "blocking"

    for _ in range(TRIES):
        took: list[float] = []
        answers.clear()
        try:
            async with time_flows(world):
                losing = [lose(way) for way in ("broken", "hung", "expired")]
                errors = await world.within_patience(asyncio.gather(*losing, return_exceptions=True))
                assert [type(each) for each in errors] == [ailf.LeaseLostError] * 3
                for way in ("broken", "hung", "expired"):
                    await (await other.lock(way).acquire(world.patience)).release()
        finally:
            answers.set()
        if max(took) < SLACK or world.flavour == "blocking":
            return
    pytest.fail(f"in each of {TRIES} tries a body ended too late; seconds after the loss: {took}")


async def test_on_lost_signal(world: World) -> None:
    """L9: with OnLost.SIGNAL the body goes on, can see the loss at its lease, and nothing is raised."""
    backend, other = await world.connect(), await world.connect()
    async with backend.lock("l", ttl=TTL).hold(on_lost=ailf.OnLost.SIGNAL) as lease:
        assert await other.lock("l").break_(lease.fence)
        theirs = await other.lock("l").acquire(timeout=0)
        await world.until(lambda: lease.lost)
        await asyncio.sleep(0.05)
    assert await fences(other.lock("l")) == [theirs.fence]


async def test_lost_at_the_very_end(world: World) -> None:
    """L9: a body that ends before the loss of its lease is noticed gets LeaseLostError on leaving."""
    backend, other = await world.connect(), await world.connect()
    with pytest.raises(ailf.LeaseLostError):
        async with backend.lock("l").hold() as lease:
            assert await other.lock("l").break_(lease.fence)
    assert lease.lost


@needs(Capability.SEVERAL_LOCKS)
async def test_one_of_several_is_lost(world: World) -> None:
    """L15, L3, L9: a lease that lost one of its names has lost all: none is extended, and all become free."""
    backend = await world.connect()
    client, a, b = RawLockClient(world, backend), backend.lock("a"), backend.lock("b")
    lease = await backend.lock("a", "b", ttl=AWAY, renew=False).acquire(timeout=0)
    assert await a.break_(lease.fence)
    before = await b.inspect()
    assert await client.call("extend", [LockRequest(("a", "b"), lease.token, 1000.0)]) == [False]
    assert same(before, await b.inspect())
    assert await a.inspect() == ailf.LockInfo()
    with pytest.raises(ailf.LeaseLostError):
        await lease.release()
    assert await b.inspect() == ailf.LockInfo()
    with pytest.raises(ailf.LeaseLostError):
        async with backend.lock("a", "b", ttl=2 * TTL).hold() as lease:
            assert await a.break_(lease.fence)
            await asyncio.sleep(world.patience if world.flavour == "asyncio" else TTL)
    await (await b.acquire(TTL)).release()


@asyncio_only("a thread can't be cancelled")
@pytest.mark.parametrize("first", ["ours", "foreign", "foreign only"])
async def test_foreign_cancellations(world: World, first: str) -> None:
    """L9: a foreign cancellation passes through unchanged, also when the lease is lost before or after it."""
    backend, other = await world.connect(), await world.connect()
    cleaning = asyncio.Event()

    async def body(lease: ailf.AsyncLease) -> None:
        if first == "ours":
            await other.lock("l").break_(lease.fence)
        try:
            await asyncio.sleep(world.patience)
        finally:
            cleaning.set()
            if first == "foreign":
                await other.lock("l").break_(lease.fence)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(world.patience if first != "foreign only" else 0.02)

    task = await in_body(world, backend.lock("l", ttl=TTL), body)
    if first == "ours":
        await world.within_patience(cleaning.wait())
    task.cancel("foreign")
    assert isinstance(await outcome(world, task), asyncio.CancelledError)
    assert task.cancelled()
    await (await other.lock("l").acquire(world.patience)).release()
    assert await other.lock("l").inspect() == ailf.LockInfo()


@asyncio_only("a thread can't be cancelled")
async def test_errors_of_the_body(world: World) -> None:
    """L9: a body's own error is raised although the lease was lost, and asyncio.timeout works as usual."""
    backend, other = await world.connect(), await world.connect()
    lock = backend.lock("l", ttl=TTL)

    async def loses(lease: ailf.AsyncLease) -> None:
        await other.lock("l").break_(lease.fence)
        await asyncio.sleep(world.patience)

    async def fails(lease: ailf.AsyncLease) -> None:
        try:
            await loses(lease)
        except asyncio.CancelledError:
            raise ValueError("of the body") from None

    async def in_time(lease: ailf.AsyncLease) -> None:
        async with asyncio.timeout(world.patience):
            await loses(lease)

    assert repr(await outcome(world, await in_body(world, lock, fails))) == "ValueError('of the body')"
    assert isinstance(await outcome(world, await in_body(world, lock, in_time)), ailf.LeaseLostError)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), lock.hold():
            await asyncio.sleep(world.patience)
    async with lock.hold() as lease:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await asyncio.sleep(world.patience)
        assert await fences(lock) == [lease.fence]


# --- renewal -----------------------------------------------------------------------------------------------------


@needs(Capability.SEVERAL_LOCKS)
async def test_renewed_while_held(world: World) -> None:
    """L17: trap 22: held leases are renewed together, in spite of errors and of a blocked event loop."""
    backend, other = await world.connect(), await world.connect()
    log, client = RequestLog(backend), RawLockClient(world, other)
    errors: list[Exception] = [ailf.ConnectionLostError("gone"), RuntimeError("bug")]

    def fail() -> None:
        if errors:
            raise errors.pop()

    log.inject = fail
    names = (("a",), ("b",), ("c", "d"))
    async with time_flows(world), backend.semaphore("s", 2, ttl=TTL).hold() as permit:
        leases = [permit, *[await backend.lock(*each, ttl=TTL).acquire(timeout=0) for each in names]]
        for _ in range(2):
            time.sleep(0.9 * TTL)  # noqa: ASYNC251 - the test blocks the event loop on purpose
            for name in "abcd":
                await client.expect_denied(LockRequest((name,), "other", AWAY))
            assert await fences(other.lock("s")) == [permit.fence]
            assert not any(lease.lost for lease in leases)
        assert errors == []
        assert log.count("extend") <= 15  # one request extends all leases
        for lease in leases[1:]:
            await lease.release()


async def test_renewal_ends_with_the_lease(world: World) -> None:
    """L17: trap 22: renewal stops within one interval of the end of a lease, and its thread ends with the last one."""
    backend, other = await world.connect(), await world.connect()

    # Long enough that a busy machine doesn't pause for a whole ttl here, which would lose the lease before its release.
    ttl = 4 * TTL
    before, log = running_threads(), RequestLog(backend)
    async with time_flows(world):
        released, broken = [await backend.lock(name, ttl=ttl).acquire(timeout=0) for name in ("released", "broken")]
        await world.until(lambda: log.count("extend"))
        await released.release()
        assert await other.lock("broken").break_(broken.fence)
        extends = log.count("extend")
        begin = time.monotonic()
        await world.until(lambda: running_threads() <= before)
        assert time.monotonic() - begin < ttl / 3 + 2 * SLACK
    assert log.count("extend") <= extends + 1
    assert (released.lost, broken.lost) == (False, True)
