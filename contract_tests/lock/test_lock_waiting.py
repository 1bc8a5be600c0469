"""L1, L10 to L13: who waits for a lock gets it in turn, soon after it is free, and leaves nothing when he gives up."""

import asyncio
import itertools
import random
import time
from collections.abc import Sequence
from typing import Any

import attrs
import pytest

import ailf
from ailf.driver import Capability, LockRequest, WaiterInfo
from contract_tests.backend.test_cancel import MOMENTS, cancelled
from contract_tests.fixtures import asyncio_only, needs
from contract_tests.lock.raw_lock import AWAY, TICK, RawLocks, fences, in_line
from contract_tests.lock.test_lock_hold import Tap
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.LOCK,)

PROMPT = 0.5
"""Seconds after which a freed lock has reached a waiter at the latest: long before he looks again by himself."""

TURNS = 3
"""How often something may be late: a busy machine is now and then, a backend that isn't prompt always."""

FATES = ["released"] * 24 + ["extended"] * 4 + ["broken"] * 4 + ["expires"] * 4
"""What becomes of the grants in the history that is checked."""

fair_or_not = pytest.mark.parametrize("fair", [False, True], ids=["plain", "fair"])


@attrs.define
class Held:
    """A grant, as the history tells it.

    Attributes:
        fence: Its number.
        step: At which step of the history it certainly existed.
        when: The backend's *now* then, or later.
        ends: The backend's *now* when it ended by itself, or earlier.
        freed: Before which step it certainly wasn't ended.
    """

    fence: int
    step: int
    when: float
    ends: float
    freed: float = float("inf")


def too_many(history: Sequence[Held], permits: int) -> list[Held]:
    """Return the grants that were made while as many as may exist certainly did."""

    def beside(other: Held, each: Held) -> bool:
        return other.fence < each.fence and each.step < other.freed and each.when < other.ends

    return [each for each in history if sum(beside(other, each) for other in history) >= permits]


def waits(lock: Any, order: list[object] | None = None, name: object = None) -> "asyncio.Future[Any]":
    """Begin to wait for a lock, for so long that only being woken helps; note the name when it is had."""

    async def acquire() -> Any:
        lease = await lock.acquire(AWAY)
        if order is not None:
            order.append(name)
        return lease

    return asyncio.ensure_future(acquire())


@pytest.mark.parametrize("permits", [1, 3])
async def test_never_too_many(world: World, permits: int) -> None:
    """L1, L2, L16: by the history of all grants, never more have it than may, whoever wants it and whatever becomes."""
    other = next((each for each in world.harness.flavours if each != world.flavour), world.flavour)
    backends = [await world.connect(), await world.connect(other)]
    steps, history, now = itertools.count(), list[Held](), world.harness.now
    fates = random.Random(permits).sample(FATES, len(FATES))

    async def worker(number: int) -> None:
        while fates:
            fate = fates.pop()
            ttl = 0.05 if fate == "expires" else AWAY
            lock = backends[number % 2].semaphore("l", permits, ttl=ttl, renew=False, fair=number % 3 == 0)
            lease = await lock.acquire(world.patience)
            step, when = next(steps), now()
            known = [holder for holder in (await lock.inspect()).holders if holder.fence == lease.fence]
            history.append(held := Held(lease.fence, step, when, when + (known[0].remaining if known else 0) - TICK))
            if fate == "extended":
                await lease.extend()
            await asyncio.sleep(0.001)
            if fate != "expires":
                held.freed = next(steps)
                await (backends[0].lock("l").break_(lease.fence) if fate == "broken" else lease.release())

    time_flows = asyncio.ensure_future(world.elapse(3 * world.patience))
    await world.soon(asyncio.gather(*(worker(number) for number in range(8))))
    time_flows.cancel()
    assert len({each.fence for each in history}) == len(FATES)
    assert too_many(history, permits) == []


# --- giving up ---------------------------------------------------------------------------------------------------


@asyncio_only("a thread can't be cancelled")
@fair_or_not
@pytest.mark.parametrize("how", ["try_acquire", "acquire", "hold"])
async def test_cancelled_tries(world: World, fair: bool, how: str) -> None:
    """L10: trap 21: a try that is cancelled, at whatever await, leaves no grant and no place in line."""
    backend, other = await world.connect(), await world.connect()
    mine, theirs = backend.lock("l", fair=fair), other.lock("l", fair=fair)
    for held, moment in itertools.product((False, True), MOMENTS):
        holder = await theirs.acquire(timeout=0) if held else None
        outcome = await cancelled(world, moment, mine.hold().__aenter__() if how == "hold" else getattr(mine, how)())
        if isinstance(outcome, ailf.AsyncLease):
            await outcome.release()
        assert (await theirs.inspect()).waiting == 0
        assert await fences(theirs) == ([holder.fence] if holder else [])
        if holder:
            await holder.release()
        await (await theirs.acquire(timeout=0)).release()


@asyncio_only("a thread can't be cancelled")
async def test_cancelled_again(world: World) -> None:
    """L10: nor does one that is the first to wait in its backend, or is cancelled again while it withdraws."""
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
            (outcome,) = await world.soon(asyncio.gather(waiting, return_exceptions=True))
            assert isinstance(outcome, asyncio.CancelledError)
            await in_line(world, theirs, 0)
            await holder.release()
            await (await theirs.acquire(PROMPT)).release()


@asyncio_only("a thread can't be cancelled")
@fair_or_not
async def test_who_is_cancelled_passes_it_on(world: World, fair: bool) -> None:
    """L10, L11: a waiter that is cancelled just when it is woken doesn't keep the lock from the next one."""
    first, second, holders = [(await world.connect()).lock("l", fair=fair) for _ in range(3)]
    took = []
    for moment in MOMENTS:
        holder = await holders.acquire(timeout=0)
        leaving = waits(first)
        await in_line(world, holders, 1)
        staying = waits(second)
        await in_line(world, holders, 2)
        begin = time.monotonic()
        releasing = asyncio.ensure_future(holder.release())
        if isinstance(outcome := await cancelled(world, moment, leaving), ailf.AsyncLease):
            await outcome.release()
        await releasing
        await (await world.soon(staying)).release()
        took.append(time.monotonic() - begin)
        assert await holders.inspect() == ailf.LockInfo()
    assert sorted(took)[-TURNS] < PROMPT, took


@fair_or_not
async def test_in_time_or_not_at_all(world: World, fair: bool) -> None:
    """L13, L10: who waits for so long and no longer is told then, also where many do, and leaves nothing in line."""
    backend, other = await world.connect(), await world.connect()
    holder = await other.lock("l").acquire(timeout=0)

    async def waiter(limit: float) -> float:
        begin = time.monotonic()
        with pytest.raises(ailf.LockTimeoutError):
            await backend.lock("l", fair=fair).acquire(timeout=limit)
        return time.monotonic() - begin - limit

    late = [await world.soon(asyncio.gather(*map(waiter, (0.01, 0.03, 0.05)))) for _ in range(TURNS)]
    assert -0.01 < min(map(min, late)) <= min(map(max, late)) < 0.15, late
    assert ((await other.lock("l").inspect()).waiting, await fences(other.lock("l"))) == (0, [holder.fence])
    await holder.release()
    await (await other.lock("l").acquire(timeout=0)).release()


@fair_or_not
async def test_not_waiting(world: World, fair: bool) -> None:
    """L13: with a timeout of 0 there is one request and no waiting, whoever waits beside."""
    backend, other = await world.connect(), await world.connect()
    tap, lock = Tap(backend), backend.lock("l", fair=fair)
    holder = await other.lock("l").acquire(timeout=0)
    waiting = waits(lock)
    await in_line(world, other.lock("l"), 1)
    took = []
    for _ in range(TURNS):
        tap.asked.clear()
        begin = time.monotonic()
        with pytest.raises(ailf.LockTimeoutError):
            await lock.acquire(timeout=0)
        took.append(time.monotonic() - begin)
        assert [method for method, _ in tap.asked] == ["acquire"]
    assert min(took) < 0.05
    await holder.release()
    await (await world.soon(waiting)).release()


# --- being woken -------------------------------------------------------------------------------------------------


@fair_or_not
@pytest.mark.parametrize("way", ["release", "break"])
async def test_a_freed_lock_wakes_a_waiter(world: World, fair: bool, way: str) -> None:
    """L11: trap 25: whoever waits, in the same backend or another, has a freed lock at once."""
    backend, other = await world.connect(), await world.connect()
    took: dict[Any, list[float]] = {backend: [], other: []}
    for _, waiter in itertools.product(range(TURNS), (backend, other)):
        holder = await backend.lock("l", ttl=AWAY, fair=fair).acquire(timeout=0)
        waiting = waits(waiter.lock("l", fair=fair))
        await in_line(world, backend.lock("l"), 1)
        begin = time.monotonic()
        await (holder.release() if way == "release" else other.lock("l").break_(holder.fence))
        lease = await world.soon(waiting)
        took[waiter].append(time.monotonic() - begin)
        await lease.release()
    assert max(min(each) for each in took.values()) < PROMPT, took


@fair_or_not
async def test_an_expired_lock_reaches_a_waiter(world: World, fair: bool) -> None:
    """L11, L5: trap 25: a dead holder's lock is a waiter's when its ttl is over, and not before."""
    backend, other = await world.connect(), await world.connect()
    bidder, now, late = RawLocks(world, backend), world.harness.now, list[float]()
    for turn in range(TURNS):
        begin = now()
        await bidder.win(LockRequest(("l",), f"dead {turn}", world.lease))
        waiting = {waits(each.lock("l", fair=fair)) for each in (backend, other)}
        await in_line(world, backend.lock("l"), 2)
        await world.advance(max(0.0, begin + world.lease * 0.9 - now()))
        assert not any(each.done() for each in waiting) or now() > begin + world.lease - TICK
        await world.advance(max(0.0, begin + world.lease - now()))
        over = time.monotonic()
        done, rest = await asyncio.wait(waiting, timeout=world.patience, return_when=asyncio.FIRST_COMPLETED)
        late.append(time.monotonic() - over)
        assert now() > begin + world.lease - TICK
        for each in (*done, *rest):
            await (await world.soon(each)).release()
        if late[-1] < PROMPT:
            return
    pytest.fail(f"it took longer than {PROMPT} s: {late}")


async def test_a_successor_that_died(world: World) -> None:
    """L11, L12: who waits looks again when the grant ends that is there now, not that which was there when he came."""
    backend = await world.connect()
    bidder, late = RawLocks(world, backend), list[float]()
    holder, first = (
        LockRequest(("l",), "holder", AWAY),
        LockRequest(("l",), "first", world.lease, fair=True, waiter=WaiterInfo("c", AWAY)),
    )
    for _ in range(2):
        await bidder.win(holder)
        await bidder.lose(first)
        waiting = waits(backend.lock("l", fair=True))
        await in_line(world, backend.lock("l"), 2)
        await bidder.ask("release", holder)
        await bidder.win(first)
        await world.advance(world.lease)
        over = time.monotonic()
        await (await world.soon(waiting)).release()
        late.append(time.monotonic() - over)
    assert min(late) < PROMPT, late


@needs("interrupt_subscriptions")
@fair_or_not
async def test_a_lost_wakeup(world: World, fair: bool) -> None:
    """L11: trap 25: who missed his wake-up, because his connection broke, has the lock soon all the same."""
    backend, other = await world.connect(), await world.connect()
    for _ in range(TURNS):
        holder = await other.lock("l").acquire(timeout=0)
        waiting = waits(backend.lock("l", fair=fair))
        await in_line(world, other.lock("l"), 1)
        await asyncio.gather(world.harness.interrupt_subscriptions(), holder.release())
        await (await world.soon(waiting)).release()


async def test_nobody_polls(world: World) -> None:
    """L11: who waits for something that doesn't change asks when he comes, when he goes, and hardly ever between."""
    backend, other = await world.connect(), await world.connect()
    tap = Tap(backend)

    async def waiter(fair: bool, permits: int) -> None:
        name = f"{fair} {permits}"
        for _ in range(permits):
            await other.semaphore(name, permits, ttl=AWAY).acquire(timeout=0)
        with pytest.raises(ailf.LockTimeoutError):
            await backend.semaphore(name, permits, fair=fair).acquire(timeout=0.3)
        assert sum(method == "acquire" and request.names == (name,) for method, request in tap.asked) <= 3

    await world.soon(asyncio.gather(*itertools.starmap(waiter, itertools.product((False, True), (1, 2)))))


@fair_or_not
async def test_permits_wake_as_many(world: World, fair: bool) -> None:
    """L11, L16: as many waiters have their permits soon as are freed at once."""
    backend, other = await world.connect(), await world.connect()
    bidder, semaphore = RawLocks(world, backend), other.semaphore("s", 3, fair=fair)
    held = [LockRequest(("s",), f"holder {number}", AWAY, permits=3) for number in range(3)]
    for request in held:
        await bidder.win(request)
    order: list[object] = []
    waiting = [waits(each.semaphore("s", 3, fair=fair), order) for each in (backend, other) * 2]
    await in_line(world, semaphore, 4 if fair else 2)
    begin = time.monotonic()
    await asyncio.gather(*(bidder.ask("release", request) for request in held))
    await world.until(lambda: len(order) == 3)
    assert time.monotonic() - begin < 3 * PROMPT
    assert len(await fences(semaphore)) == 3
    for each in asyncio.as_completed(waiting):
        await (await world.soon(each)).release()


@needs(Capability.SEVERAL_LOCKS)
async def test_a_pair_starves_nobody(world: World) -> None:
    """L15, L11: who waits for two locks keeps neither from those who want only that one, unless the locks are fair."""
    backend, other = await world.connect(), await world.connect()
    a, b = [await backend.lock(name).acquire(timeout=0) for name in ("a", "b")]
    pair = waits(backend.lock("a", "b"))
    await in_line(world, backend.lock("a"), 1)
    single = waits(other.lock("a"))
    await in_line(world, backend.lock("a"), 2)
    await a.release()
    lease = await world.soon(single, 2 * PROMPT)
    await b.release()
    assert not pair.done()
    await lease.release()
    await (await world.soon(pair, 2 * PROMPT)).release()


# --- whose turn it is --------------------------------------------------------------------------------------------


async def test_turns(world: World) -> None:
    """L12: a fair lock is granted in the order in which those came who still wait, in whatever backend."""
    backends = [await world.connect(), await world.connect()]
    bidder, lock, taps = (
        RawLocks(world, backends[0]),
        backends[0].lock("l", fair=True),
        [Tap(each) for each in backends],
    )
    holder = await lock.acquire(timeout=0)
    order, waiting, leavers = list[object](), list[Any](), (0, 3, 4)
    left = [LockRequest(("l",), f"leaver {number}", AWAY, 1, True, WaiterInfo("c", AWAY)) for number in leavers]
    for number in range(10):
        if number in leavers:
            await bidder.lose(left[leavers.index(number)])
        else:
            waiting.append(waits(backends[number // 2 % 2].lock("l", fair=True), order, number))
        await in_line(world, lock, number + 1)
    for request in left:
        assert not await bidder.ask("release", request)
    for each in waiting:
        await holder.release()
        holder = await world.soon(each)
    assert order == [number for number in range(10) if number not in leavers]
    assert (await lock.inspect()).waiting == 0
    assert sum(tap.count("acquire") for tap in taps) <= 4 * len(waiting), "all are woken, and one can have it"


async def test_a_dead_waiter(world: World) -> None:
    """L12: waiters that died hold up those behind them until their places end, and not longer."""
    backend = await world.connect()
    bidder, lock = RawLocks(world, backend), backend.lock("l", fair=True, ttl=AWAY)
    holder = await lock.acquire(timeout=0)
    begin = world.harness.now()
    for number in range(3):
        await bidder.lose(
            LockRequest(("l",), f"dead {number}", AWAY, 1, True, WaiterInfo(f"dead {number}", world.lease))
        )
    waiting = waits(lock)
    await in_line(world, lock, 4)
    await holder.release()
    await asyncio.sleep(0.02)
    assert not waiting.done() or world.harness.now() > begin + world.lease - TICK
    await world.advance(world.lease)
    await (await world.soon(waiting, 2 * PROMPT)).release()
    assert await lock.inspect() == ailf.LockInfo()


@needs(Capability.SEVERAL_LOCKS)
async def test_a_waiter_that_was_away(world: World) -> None:
    """L12, L15: who lost his place in one of two lines has lost it in both: two don't wait for each other for ever."""
    bidder = RawLocks(world, await world.connect())
    a, b = [LockRequest((name,), name, AWAY) for name in ("a", "b")]
    away = LockRequest(("a", "b"), "away", AWAY, 1, True, WaiterInfo("c", world.lease))
    there = LockRequest(("a", "b"), "there", AWAY, 1, True, WaiterInfo("d", AWAY))
    for request in (a, b):
        await bidder.win(request)
    for request in (away, there):
        await bidder.lose(request)
    await world.advance(world.lease * 1.2)
    await bidder.ask("release", a)
    for request in (there, away):
        await bidder.lose(request)
    await bidder.ask("release", b)
    await bidder.lose(away)
    await bidder.win(there)


@needs(Capability.SEVERAL_LOCKS)
async def test_breaking_what_has_ended(world: World) -> None:
    """L3, L12: to break a grant that has ended changes nothing: its token keeps its place in the queue."""
    backend = await world.connect()
    bidder = RawLocks(world, backend)
    pair = LockRequest(("a", "b"), "pair", world.lease, 1, False, WaiterInfo("c", AWAY))
    fence = await bidder.win(pair)
    assert await bidder.ask("break_", "a", fence)
    await bidder.win(LockRequest(("a",), "single", AWAY))
    await bidder.win(LockRequest(("b",), "other", AWAY, 2))
    await bidder.lose(pair)
    await world.advance(world.lease * 1.2)
    assert not await bidder.ask("break_", "b", fence)
    assert (await backend.lock("b").inspect()).waiting == 1
