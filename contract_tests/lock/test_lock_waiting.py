"""L1, L10 to L13, L21: waiters get a lock in order, soon after it is free; those that give up leave nothing behind."""

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any

import attrs
import pytest

import ailf
from ailf.driver import Capability, LockRequest, WaiterInfo
from ailf.runtime import run
from contract_tests.backend.test_cancel import MOMENTS, cancelled
from contract_tests.fixtures import asyncio_only, needs
from contract_tests.helpers.threads import in_thread
from contract_tests.lock.raw_lock import AWAY, TICK, RawLockClient, fences, in_queue
from contract_tests.lock.test_lock_hold import RequestLog
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.LOCK,)

PROMPT = 0.5
"""Seconds within which a freed lock reaches a waiter: much less than the interval at which it checks by itself."""

TRIES = 3
"""The number of tries: a busy machine is late at times, a backend that isn't prompt always."""

FATES = ["released"] * 24 + ["extended"] * 4 + ["broken"] * 4 + ["expires"] * 4
"""The ends of the grants in the history that is checked."""

fair_or_not = pytest.mark.parametrize("fair", [False, True], ids=["plain", "fair"])


@attrs.define
class ObservedGrant:
    """A grant in the history.

    Attributes:
        fence: Its fence.
        step: A step of the history at which it certainly existed.
        when: The backend's *now* at that step, or later.
        ends: The backend's *now* at which it expires, or earlier.
        freed: The step before which it was certainly not released or broken.
    """

    fence: int
    step: int
    when: float
    ends: float
    freed: float = float("inf")


def too_many(history: Sequence[ObservedGrant], permits: int) -> list[ObservedGrant]:
    """Return the grants that were made while `permits` other grants certainly existed."""

    def beside(other: ObservedGrant, each: ObservedGrant) -> bool:
        return other.fence < each.fence and each.step < other.freed and each.when < other.ends

    return [each for each in history if sum(beside(other, each) for other in history) >= permits]


def waits(lock: Any, order: list[object] | None = None, name: object = None) -> "asyncio.Future[Any]":
    """Wait for a lock in a task, so long that only a wake-up helps; append the name to `order` when it is granted."""

    async def acquire() -> Any:
        lease = await lock.acquire(AWAY)
        if order is not None:
            order.append(name)
        return lease

    return asyncio.ensure_future(acquire())


@pytest.mark.parametrize("permits", [1, 3])
async def test_never_too_many_holders(world: World, permits: int) -> None:
    """L1, L2, L16: in the history of all grants there are never more holders than permits, however grants end."""
    other = next((each for each in world.harness.flavours if each != world.flavour), world.flavour)
    backends = [await world.connect(), await world.connect(other)]
    steps, history, now = itertools.count(), list[ObservedGrant](), world.harness.now
    fates = random.Random(permits).sample(FATES, len(FATES))

    async def worker(number: int) -> None:
        while fates:
            fate = fates.pop()
            ttl = 0.05 if fate == "expires" else AWAY
            lock = backends[number % 2].semaphore("l", permits, ttl=ttl, renew=False, fair=number % 3 == 0)
            lease = await lock.acquire(world.patience)
            step, when = next(steps), now()
            own = [holder for holder in (await lock.inspect()).holders if holder.fence == lease.fence]
            ends = when + (own[0].remaining if own else 0) - TICK
            history.append(held := ObservedGrant(lease.fence, step, when, ends))
            if fate == "extended":
                await lease.extend()
            await asyncio.sleep(0.001)
            if fate != "expires":
                held.freed = next(steps)
                await (backends[0].lock("l").break_(lease.fence) if fate == "broken" else lease.release())

    time_flows = asyncio.ensure_future(world.elapse(3 * world.patience))
    await world.within_patience(asyncio.gather(*(worker(number) for number in range(8))))
    time_flows.cancel()
    assert len({each.fence for each in history}) == len(FATES)
    assert too_many(history, permits) == []


# --- giving up ---------------------------------------------------------------------------------------------------


@asyncio_only("a thread can't be cancelled")
@fair_or_not
@pytest.mark.parametrize("how", ["try_acquire", "acquire", "hold"])
async def test_cancelled_tries(world: World, fair: bool, how: str) -> None:
    """L10: trap 21: a request that is cancelled at any await leaves no grant and no place in the wait queue."""
    backend, other = await world.connect(), await world.connect()
    lock, theirs = backend.lock("l", fair=fair), other.lock("l", fair=fair)
    for held, moment in itertools.product((False, True), MOMENTS):
        holder = await theirs.acquire(timeout=0) if held else None
        outcome = await cancelled(world, moment, lock.hold().__aenter__() if how == "hold" else getattr(lock, how)())
        if isinstance(outcome, ailf.AsyncLease):
            await outcome.release()
        assert (await theirs.inspect()).waiting == 0
        assert await fences(theirs) == ([holder.fence] if holder else [])
        if holder:
            await holder.release()
        await (await theirs.acquire(timeout=0)).release()


@asyncio_only("a thread can't be cancelled")
async def test_cancelled_again(world: World) -> None:
    """L10: the first waiter of its backend, also one cancelled again while it withdraws, leaves no grant or place."""
    other = await world.connect()
    theirs = other.lock("l")
    for moment, again in itertools.product(MOMENTS[::2], (0, 1, 3)):
        async with await world.connect() as backend:
            holder = await theirs.acquire(timeout=0)
            waiting = waits(backend.lock("l"))
            await asyncio.sleep(0.0002 * moment)
            for _ in range(2):
                waiting.cancel()
                for _ in range(again):
                    await asyncio.sleep(0)
            (outcome,) = await world.within_patience(asyncio.gather(waiting, return_exceptions=True))
            assert isinstance(outcome, asyncio.CancelledError)
            await in_queue(world, theirs, 0)
            await holder.release()
            await (await theirs.acquire(PROMPT)).release()


@asyncio_only("a thread can't be cancelled")
@fair_or_not
async def test_a_cancelled_waiter_passes_the_lock_on(world: World, fair: bool) -> None:
    """L10, L11: a waiter that is cancelled just as it is woken doesn't keep the lock from the next one."""
    first, second, holders = [(await world.connect()).lock("l", fair=fair) for _ in range(3)]
    took = []
    for moment in MOMENTS:
        holder = await holders.acquire(timeout=0)
        leaving = waits(first)
        await in_queue(world, holders, 1)
        staying = waits(second)
        await in_queue(world, holders, 2)
        begin = time.monotonic()
        releasing = asyncio.ensure_future(holder.release())
        if isinstance(outcome := await cancelled(world, moment, leaving), ailf.AsyncLease):
            await outcome.release()
        await releasing
        await (await world.within_patience(staying)).release()
        took.append(time.monotonic() - begin)
        assert await holders.inspect() == ailf.LockInfo()
    assert sorted(took)[-TRIES] < PROMPT, took


@fair_or_not
async def test_lock_timeouts(world: World, fair: bool) -> None:
    """L13, L10: a wait ends with LockTimeoutError at its timeout, also beside other waits, and leaves no waiter."""
    backend, other = await world.connect(), await world.connect()
    holder = await other.lock("l").acquire(timeout=0)

    async def waiter(limit: float) -> float:
        begin = time.monotonic()
        with pytest.raises(ailf.LockTimeoutError):
            await backend.lock("l", fair=fair).acquire(timeout=limit)
        return time.monotonic() - begin - limit

    late = [await world.within_patience(asyncio.gather(*map(waiter, (0.01, 0.03, 0.05)))) for _ in range(TRIES)]
    assert -0.01 < min(map(min, late)) <= min(map(max, late)) < 0.15, late
    assert ((await other.lock("l").inspect()).waiting, await fences(other.lock("l"))) == (0, [holder.fence])
    await holder.release()
    await (await other.lock("l").acquire(timeout=0)).release()


@fair_or_not
async def test_a_lock_timeout_of_zero(world: World, fair: bool) -> None:
    """L13: acquire with a timeout of 0 sends one request and doesn't wait, also beside another waiter."""
    backend, other = await world.connect(), await world.connect()
    log, lock = RequestLog(backend), backend.lock("l", fair=fair)
    holder = await other.lock("l").acquire(timeout=0)
    waiting = waits(lock)
    await in_queue(world, other.lock("l"), 1)
    took = []
    for _ in range(TRIES):
        log.requests.clear()
        begin = time.monotonic()
        with pytest.raises(ailf.LockTimeoutError):
            await lock.acquire(timeout=0)
        took.append(time.monotonic() - begin)
        assert [method for method, _ in log.requests] == ["acquire"]
    assert min(took) < 0.05
    await holder.release()
    await (await world.within_patience(waiting)).release()


# --- wake-ups ----------------------------------------------------------------------------------------------------


@fair_or_not
@pytest.mark.parametrize("way", ["release", "break"])
async def test_a_freed_lock_wakes_a_waiter(world: World, fair: bool, way: str) -> None:
    """L11: trap 25: a waiter, of the same backend or another, gets a freed lock at once."""
    backend, other = await world.connect(), await world.connect()
    took: dict[Any, list[float]] = {backend: [], other: []}
    for _, waiter in itertools.product(range(TRIES), (backend, other)):
        holder = await backend.lock("l", ttl=AWAY, fair=fair).acquire(timeout=0)
        waiting = waits(waiter.lock("l", fair=fair))
        await in_queue(world, backend.lock("l"), 1)
        begin = time.monotonic()
        await (holder.release() if way == "release" else other.lock("l").break_(holder.fence))
        lease = await world.within_patience(waiting)
        took[waiter].append(time.monotonic() - begin)
        await lease.release()
    assert max(min(each) for each in took.values()) < PROMPT, took


@fair_or_not
async def test_an_expired_lock_reaches_a_waiter(world: World, fair: bool) -> None:
    """L11, L5: trap 25: a waiter gets the lock of a dead holder when its ttl is over, and not before."""
    backend, other = await world.connect(), await world.connect()
    client, now, late = RawLockClient(world, backend), world.harness.now, list[float]()
    for repeat in range(TRIES):
        begin = now()
        await client.expect_granted(LockRequest(("l",), f"dead {repeat}", world.lease))
        waiting = {waits(each.lock("l", fair=fair)) for each in (backend, other)}
        await in_queue(world, backend.lock("l"), 2)
        await world.advance(max(0.0, begin + world.lease * 0.9 - now()))
        assert not any(each.done() for each in waiting) or now() > begin + world.lease - TICK
        await world.advance(max(0.0, begin + world.lease - now()))
        expired = time.monotonic()
        done, rest = await asyncio.wait(waiting, timeout=world.patience, return_when=asyncio.FIRST_COMPLETED)
        late.append(time.monotonic() - expired)
        assert now() > begin + world.lease - TICK
        for each in (*done, *rest):
            await (await world.within_patience(each)).release()
        if late[-1] < PROMPT:
            return
    pytest.fail(f"in each of {TRIES} tries the lock reached no waiter within {PROMPT} s of its expiry: {late}")


async def test_a_successor_that_died(world: World) -> None:
    """L11, L12: a waiter checks again at the end of the current grant, not of the one that it found when it came."""
    backend = await world.connect()
    client, late = RawLockClient(world, backend), list[float]()
    holder, first = (
        LockRequest(("l",), "holder", AWAY),
        LockRequest(("l",), "first", world.lease, fair=True, waiter=WaiterInfo("c", AWAY)),
    )
    for _ in range(2):
        await client.expect_granted(holder)
        await client.expect_denied(first)
        waiting = waits(backend.lock("l", fair=True))
        await in_queue(world, backend.lock("l"), 2)
        await client.call("release", holder)
        await client.expect_granted(first)
        await world.advance(world.lease)
        expired = time.monotonic()
        await (await world.within_patience(waiting)).release()
        late.append(time.monotonic() - expired)
    assert min(late) < PROMPT, late


@needs("interrupt_subscriptions")
@fair_or_not
async def test_a_lost_wakeup(world: World, fair: bool) -> None:
    """L11: trap 25: a waiter that missed its wake-up, because its connection broke, still gets the lock soon."""
    backend, other = await world.connect(), await world.connect()
    for _ in range(TRIES):
        holder = await other.lock("l").acquire(timeout=0)
        waiting = waits(backend.lock("l", fair=fair))
        await in_queue(world, other.lock("l"), 1)
        await asyncio.gather(world.harness.interrupt_subscriptions(), holder.release())
        await (await world.within_patience(waiting)).release()


async def test_no_polling(world: World) -> None:
    """L11: while nothing changes a waiter sends a request when it comes and when it leaves, and hardly any between."""
    backend, other = await world.connect(), await world.connect()
    log = RequestLog(backend)

    async def waiter(fair: bool, permits: int) -> None:
        name = f"{fair} {permits}"
        for _ in range(permits):
            await other.semaphore(name, permits, ttl=AWAY).acquire(timeout=0)
        with pytest.raises(ailf.LockTimeoutError):
            await backend.semaphore(name, permits, fair=fair).acquire(timeout=0.3)
        assert sum(method == "acquire" and request.names == (name,) for method, request in log.requests) <= 3

    await world.within_patience(asyncio.gather(*itertools.starmap(waiter, itertools.product((False, True), (1, 2)))))


@fair_or_not
async def test_freed_permits_wake_as_many_waiters(world: World, fair: bool) -> None:
    """L11, L16: when several permits are freed at once, as many waiters get one soon."""
    backend, other = await world.connect(), await world.connect()
    client, semaphore = RawLockClient(world, backend), other.semaphore("s", 3, fair=fair)
    held = [LockRequest(("s",), f"holder {number}", AWAY, permits=3) for number in range(3)]
    for request in held:
        await client.expect_granted(request)
    order: list[object] = []
    waiting = [waits(each.semaphore("s", 3, fair=fair), order) for each in (backend, other) * 2]
    await in_queue(world, semaphore, 4 if fair else 2)
    begin = time.monotonic()
    await asyncio.gather(*(client.call("release", request) for request in held))
    await world.until(lambda: len(order) == 3)
    assert time.monotonic() - begin < 3 * PROMPT
    assert len(await fences(semaphore)) == 3
    for each in asyncio.as_completed(waiting):
        await (await world.within_patience(each)).release()


@needs(Capability.SEVERAL_LOCKS)
async def test_a_pair_does_not_starve_single_locks(world: World) -> None:
    """L15, L11: without fairness, a waiter for two locks keeps neither from the waiters for only one of them."""
    backend, other = await world.connect(), await world.connect()
    a, b = [await backend.lock(name).acquire(timeout=0) for name in ("a", "b")]
    pair = waits(backend.lock("a", "b"))
    await in_queue(world, backend.lock("a"), 1)
    single = waits(other.lock("a"))
    await in_queue(world, backend.lock("a"), 2)
    await a.release()
    lease = await world.within_patience(single, 2 * PROMPT)
    await b.release()
    assert not pair.done()
    await lease.release()
    await (await world.within_patience(pair, 2 * PROMPT)).release()


# --- fair order --------------------------------------------------------------------------------------------------


async def test_fair_order(world: World) -> None:
    """L12: a fair lock is granted to the remaining waiters of all backends in the order in which they came."""
    backends = [await world.connect(), await world.connect()]
    client, lock, logs = (
        RawLockClient(world, backends[0]),
        backends[0].lock("l", fair=True),
        [RequestLog(each) for each in backends],
    )
    holder = await lock.acquire(timeout=0)
    order, waiting, leavers = list[object](), list[Any](), (0, 3, 4)
    left = [LockRequest(("l",), f"leaver {number}", AWAY, 1, True, WaiterInfo("c", AWAY)) for number in leavers]
    for number in range(10):
        if number in leavers:
            await client.expect_denied(left[leavers.index(number)])
        else:
            waiting.append(waits(backends[number // 2 % 2].lock("l", fair=True), order, number))
        await in_queue(world, lock, number + 1)
    for request in left:
        assert not await client.call("release", request)
    for each in waiting:
        await holder.release()
        holder = await world.within_patience(each)
    assert order == [number for number in range(10) if number not in leavers]
    assert (await lock.inspect()).waiting == 0
    assert sum(log.count("acquire") for log in logs) <= 4 * len(waiting), "a release woke more than the next waiter"


async def test_a_dead_waiter(world: World) -> None:
    """L12: dead waiters delay those behind them until their waiter leases end, and no longer."""
    backend = await world.connect()
    client, lock = RawLockClient(world, backend), backend.lock("l", fair=True, ttl=AWAY)
    holder = await lock.acquire(timeout=0)
    begin = world.harness.now()
    for number in range(3):
        await client.expect_denied(
            LockRequest(("l",), f"dead {number}", AWAY, 1, True, WaiterInfo(f"dead {number}", world.lease))
        )
    waiting = waits(lock)
    await in_queue(world, lock, 4)
    await holder.release()
    await asyncio.sleep(0.02)
    assert not waiting.done() or world.harness.now() > begin + world.lease - TICK
    await world.advance(world.lease)
    await (await world.within_patience(waiting, 2 * PROMPT)).release()
    assert await lock.inspect() == ailf.LockInfo()


@needs(Capability.SEVERAL_LOCKS)
async def test_a_waiter_whose_lease_ended(world: World) -> None:
    """L12, L15: a waiter that lost its place in one of two wait queues has lost both, so two waiters can't deadlock."""
    client = RawLockClient(world, await world.connect())
    a, b = [LockRequest((name,), name, AWAY) for name in ("a", "b")]
    away = LockRequest(("a", "b"), "away", AWAY, 1, True, WaiterInfo("c", world.lease))
    there = LockRequest(("a", "b"), "there", AWAY, 1, True, WaiterInfo("d", AWAY))
    for request in (a, b):
        await client.expect_granted(request)
    for request in (away, there):
        await client.expect_denied(request)
    await world.advance(world.lease * 1.2)
    await client.call("release", a)
    for request in (there, away):
        await client.expect_denied(request)
    await client.call("release", b)
    await client.expect_denied(away)
    await client.expect_granted(there)


@needs(Capability.SEVERAL_LOCKS)
async def test_breaking_an_ended_grant(world: World) -> None:
    """L3, L12: breaking an ended grant changes nothing: its token keeps its place in the wait queue."""
    backend = await world.connect()
    client = RawLockClient(world, backend)
    pair = LockRequest(("a", "b"), "pair", world.lease, 1, False, WaiterInfo("c", AWAY))
    fence = await client.expect_granted(pair)
    assert await client.call("break_", "a", fence)
    await client.expect_granted(LockRequest(("a",), "single", AWAY))
    await client.expect_granted(LockRequest(("b",), "other", AWAY, 2))
    await client.expect_denied(pair)
    await world.advance(world.lease * 1.2)
    assert not await client.call("break_", "b", fence)
    assert (await backend.lock("b").inspect()).waiting == 1


# --- waiting for oneself -----------------------------------------------------------------------------------------


async def in_one_caller(world: World, backend: Any, steps: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
    """Run steps in one task with an asyncio backend, or in one thread with the blocking one inside the adapter.

    Arguments:
        world: The world of the test.
        backend: The backend.
        steps: A coroutine function of the backend, which awaits each call through `value`.
    """
    if world.flavour == "asyncio":
        return await world.within_patience(asyncio.create_task(steps(backend)))
    return await world.within_patience(in_thread(lambda: run(steps(backend._inner))))


def until_waiting(lock: ailf.Lock) -> None:
    """Return when a caller waits for a lock."""
    while not lock.inspect().waiting:
        time.sleep(0.005)


async def value(result: Any) -> Any:
    """Return the result of a call, awaited if it is awaitable."""
    return await result if isinstance(result, Awaitable) else result


@fair_or_not
@pytest.mark.parametrize("names", [("l",), ("k", "l")], ids=["one", "several"])
@needs(Capability.SEVERAL_LOCKS)
async def test_waiting_for_oneself(world: World, fair: bool, names: tuple[str, ...]) -> None:
    """L21: a thread or task that waits for a lock of its own gets DeadlockError, and one that asks is denied."""
    backend = await world.connect()

    async def steps(backend: Any) -> None:
        lock, other = backend.lock("l", fair=fair), backend.lock(*names, fair=fair)
        for _ in range(2):
            lease = await value(lock.acquire(world.patience))
            for waiting in (lock.acquire, other.acquire, partial(other.acquire, timeout=AWAY)):
                with pytest.raises(ailf.DeadlockError, match="'l'"):
                    await value(waiting())
            assert await value(other.try_acquire()) is None
            with pytest.raises(ailf.LockTimeoutError):
                await value(other.acquire(timeout=0))
            info = await value(lock.inspect())
            assert ([holder.fence for holder in info.holders], info.waiting) == ([lease.fence], 0)
            await value(lease.release())
        both = await value(other.acquire(world.patience))
        with pytest.raises(ailf.DeadlockError, match="'l'"):
            await value(lock.acquire())
        await value(both.release())
        await value((await value(lock.acquire(world.patience))).release())

    await in_one_caller(world, backend, steps)


async def test_a_broken_grant_of_ones_own(world: World) -> None:
    """L21: a grant that was broken, which its owner may not know yet, is none to wait for."""
    backend = await world.connect()

    async def steps(backend: Any) -> None:
        lock = backend.lock("l")
        lease = await value(lock.acquire(world.patience))
        assert await value(lock.break_(lease.fence))
        other = (await value(lock.acquire(world.patience))).hand_over()
        releasing = threading.Timer(0.1, in_loop(other.release) if world.flavour == "asyncio" else other.release)
        releasing.start()
        again = await value(lock.acquire(world.patience))
        assert again.fence > other.fence
        await value(again.release())
        releasing.join()

    def in_loop(release: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], object]:
        loop = asyncio.get_running_loop()
        return lambda: asyncio.run_coroutine_threadsafe(release(), loop)

    await in_one_caller(world, backend, steps)


async def test_waiting_within_a_block(world: World) -> None:
    """L21: a block within a block on the same lock gets DeadlockError, through another object, too."""
    backend = await world.connect()

    async def steps_async(backend: Any) -> None:
        async with backend.lock("l"):
            with pytest.raises(ailf.DeadlockError):
                async with backend.lock("l").hold(timeout=AWAY):
                    pytest.fail("the body ran without the lock")
        async with backend.lock("l").hold(timeout=world.patience):
            pass

    async def steps(backend: Any) -> None:
        with backend.lock("l"), pytest.raises(ailf.DeadlockError), backend.lock("l").hold(timeout=AWAY):
            pytest.fail("the body ran without the lock")
        with backend.lock("l").hold(timeout=world.patience):
            pass

    await in_one_caller(world, backend, steps_async if world.flavour == "asyncio" else steps)


@pytest.mark.parametrize("way", ["handed over", "a semaphore", "another backend"])
async def test_waits_that_another_caller_ends(world: World, way: str) -> None:
    """L21: a wait is no deadlock where another thread or task releases the lock, or may."""
    backend, other = await world.connect(), await world.connect()
    leases = asyncio.Queue[Any]()
    loop = asyncio.get_running_loop()
    taken = backend if world.flavour == "asyncio" or way != "another backend" else other

    async def steps(backend: Any) -> None:
        lock = backend.semaphore("l", 1) if way == "a semaphore" else backend.lock("l")
        lease = await value(lock.acquire(world.patience))
        loop.call_soon_threadsafe(leases.put_nowait, lease.hand_over() if way == "handed over" else lease)
        if way == "another backend":
            lock = (other if world.flavour == "asyncio" else other._inner).lock("l")
        await value((await value(lock.acquire(2 * world.patience))).release())

    waiting = asyncio.ensure_future(in_one_caller(world, backend, steps))
    lease = await world.within_patience(leases.get())
    await in_queue(world, taken.lock("l"), 1)
    await (in_thread(lease.release) if world.flavour == "blocking" else lease.release())
    await world.within_patience(waiting)


@pytest.mark.parametrize("renew", [True, False])
async def test_waits_that_the_end_of_a_lease_ends(world: World, renew: bool) -> None:
    """L21: a caller whose lease is lost, or will end before its wait does, waits for the lock and gets it."""
    backend, other = await world.connect(), await world.connect()
    begun = threading.Event()

    async def steps(backend: Any) -> None:
        lock = backend.lock("l", ttl=world.lease, renew=renew)
        lease = await value(lock.acquire(world.patience))
        if not renew:
            with pytest.raises(ailf.DeadlockError):
                await value(lock.acquire(world.lease * 0.5))
        begun.set()
        if renew:
            lease._flow.lease.take()  # as the renewal thread does that finds it lost
        await value((await value(lock.acquire(3 * world.lease + 2 * world.patience))).release())

    waiting = asyncio.ensure_future(in_one_caller(world, backend, steps))
    await world.until(begun.is_set)
    await in_queue(world, other.lock("l"), 1)
    await world.advance(world.lease * 1.2)
    await world.within_patience(waiting)


async def test_other_callers_wait(world: World) -> None:
    """L21: a child of the holder, which has a copy of its context, waits for the lock and gets it."""
    backend = await world.connect()

    async def steps(backend: Any) -> None:
        lock, taken = backend.lock("l"), threading.Event()
        lease = await value(lock.acquire(timeout=world.patience))

        async def child() -> None:
            await value((await value(lock.acquire(timeout=world.patience))).release())
            taken.set()

        if world.flavour == "asyncio":
            task = asyncio.create_task(child())
            await in_queue(world, lock, 1)
            await lease.release()
            await task
        else:
            context = copy_context()
            thread = threading.Thread(target=context.run, args=(run, child()))
            thread.start()
            until_waiting(lock)
            lease.release()
            thread.join(world.patience)
        assert taken.is_set()

    await in_one_caller(world, backend, steps)
