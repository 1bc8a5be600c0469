"""R1 to R9, R11, R12: what a rate limiter decides, what remains, when the rest passes, and what is given back."""

import asyncio
import random
from typing import Any

import pytest

import ailf
from ailf import Concurrency, FixedWindow, Limit, SlidingWindow, TokenBucket
from ailf.driver import Capability
from contract_tests.fixtures import needs
from contract_tests.helpers.envelopes import Call, excess
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.RATE_LIMITER,)

TICK = 0.001
"""Seconds that a backend may count in."""

HOUR = 3600.0
"""Seconds in which next to nothing comes back while a test runs."""

SLOW = [
    TokenBucket(10, per=HOUR),
    SlidingWindow(10, per=HOUR),
    FixedWindow(10, per=24 * HOUR),
    Concurrency(10, ttl=60.0),
]
QUICK: list[TokenBucket | SlidingWindow | FixedWindow] = [
    TokenBucket(10, per=0.2),
    TokenBucket(30, per=0.2, burst=4),
    SlidingWindow(7, per=0.1),
    SlidingWindow(5, per=0.1, buckets=4),
    FixedWindow(6, per=0.1),
]

slow = pytest.mark.parametrize("limit", SLOW, ids=str)
slow_rates = pytest.mark.parametrize("limit", SLOW[:3], ids=str)
quick = pytest.mark.parametrize("limit", QUICK, ids=str)


def call_of(told: Any, cost: int) -> Call:
    """Return an admitted call, by the decision or the permit that tells its time."""
    return round(told.at * 1000), cost


async def denied(limiter: Any, cost: int) -> Any:
    """Return the first denial of calls that cost so much."""
    for _ in range(1000):
        decision = await limiter.try_acquire(cost=cost)
        if not decision:
            return decision
    pytest.fail("nothing is ever denied")


async def settle_all(decision: Any, **actual: int) -> None:
    """Settle what was allowed."""
    assert decision.permit is not None, decision
    await decision.permit.settle(**actual)


async def test_all_or_nothing(world: World) -> None:
    """R1: a call that one of several limits denies is charged to none; one that all allow is charged to all."""
    backend = await world.connect()
    limiter = backend.rate_limiter("r", a=SLOW[0], b=TokenBucket(3, per=HOUR), c=SlidingWindow(20, per=HOUR), d=SLOW[3])
    first = await limiter.try_acquire("k", a=4, b=2, c=5, d=1)
    assert first.allowed
    assert first.bound is None
    assert {name: each.remaining for name, each in first.limits.items()} == {"a": 6, "b": 1, "c": 15, "d": 9}
    for costs in ({"b": 2}, {"a": 7, "b": 1}, {"c": 16}, {"d": 10}, {"a": 11}):
        refused = await limiter.try_acquire("k", **{"a": 0, "b": 0, "c": 0, "d": 0} | costs)
        assert not refused
        assert refused.permit is None
        assert refused.bound in costs
        assert {name: each.remaining for name, each in refused.limits.items()} == {"a": 6, "b": 1, "c": 15, "d": 9}
    assert await limiter.try_acquire("k", a=6, b=1, c=15, d=9)
    assert (await limiter.peek("k")).remaining == 0
    assert (await limiter.peek("other")).limits["b"].remaining == 3


@slow_rates
async def test_denied_calls(world: World, limit: Limit) -> None:
    """R1: trap 27: denied calls count nothing, however many; unless that is asked for, and then no more than fits."""
    backend = await world.connect()
    limiter = backend.rate_limiter("r", limit)
    await limiter.try_acquire(cost=7)
    for _ in range(30):
        assert not await limiter.try_acquire(cost=4)
    assert (await limiter.peek()).remaining == 3
    counting = backend.rate_limiter("counting", limit, count_denied=True)
    await counting.try_acquire(cost=7)
    for _ in range(3):
        assert not await counting.try_acquire(cost=4)
    assert (await counting.peek()).remaining == 0


@slow
async def test_together(world: World, limit: Limit) -> None:
    """R2: of calls at the same time exactly as many pass as fit, as though they had come one after another."""
    backends = [await world.connect() for _ in range(2)]
    limiters = [backend.rate_limiter("r", limit) for backend in backends]
    calls = [limiters[number % 2].try_acquire("k", cost=1) for number in range(24)]
    decisions = await asyncio.gather(*calls)
    passed = [each for each in decisions if each]
    assert sorted(each.remaining for each in passed) == list(range(10))
    assert all(each.remaining == 0 for each in decisions if not each)


@quick
async def test_retry_after_is_exact(world: World, limit: Limit) -> None:
    """R3: a call that is denied passes after ``retry_after`` on the backend's clock, and not a tick earlier."""
    limiter = (await world.connect()).rate_limiter("r", limit)
    chance = random.Random(1)
    for _ in range(4):
        cost = chance.randint(1, limit.capacity)
        decision = await denied(limiter, cost)
        assert decision.retry_after > 0
        until = decision.at + decision.retry_after
        if until - world.harness.now() > 3 * TICK:
            await world.advance(max(0.0, until - world.harness.now() - 2 * TICK))
        for _ in range(1000):
            decision = await limiter.try_acquire(cost=cost)
            if decision:
                break
            assert decision.at < until - TICK / 2
            assert decision.at + decision.retry_after == pytest.approx(until, abs=TICK / 2)
            await world.advance(TICK)
        assert decision.at >= until - TICK / 2


@pytest.mark.parametrize("limit", QUICK[2:4], ids=str)
async def test_a_window_slides(world: World, limit: SlidingWindow) -> None:
    """R3: what passed keeps counting for the whole length of a sliding window, whenever it passed."""
    limiter = (await world.connect()).rate_limiter("r", limit)
    for _ in range(3):
        decision = await limiter.try_acquire(cost=limit.capacity)
        assert decision.allowed
        until = decision.at + limit.per
        while (decision := await limiter.try_acquire()).at < until - TICK / 2:
            assert not decision.allowed
            await world.advance(max(TICK, min(limit.per / 10, until - decision.at - TICK)))
        await world.advance(1.3 * limit.per)  # to begin anywhere between the turns of the clock


@slow
async def test_too_large(world: World, limit: Limit) -> None:
    """R3: trap 29: what costs more than the capacity never passes: `acquire` says so at once; nothing is charged."""
    limiter = (await world.connect()).rate_limiter("r", limit)
    decision = await limiter.try_acquire(cost=11)
    assert not decision.allowed
    assert decision.retry_after is None
    with pytest.raises(ailf.RateLimitedError, match="never") as raised:
        await world.soon(limiter.acquire(cost=11))
    assert raised.value.retry_after is None
    assert (await limiter.peek()).remaining == 10


@slow
async def test_what_remains(world: World, limit: Limit) -> None:
    """R4: what is told to remain passes, one more doesn't, and the decision itself tells it."""
    limiter = (await world.connect()).rate_limiter("r", limit)
    left = 10
    for cost in (1, 4, 2):
        decision = await limiter.try_acquire("k", cost=cost)
        left -= cost
        assert decision.remaining == decision.limits[""].remaining == left
        assert (await limiter.peek("k")).remaining == left
    assert not await limiter.try_acquire("k", cost=left + 1)
    assert (await limiter.try_acquire("k", cost=left)).remaining == 0


@quick
async def test_reset_after(world: World, limit: Limit) -> None:
    """R4, R8: after ``reset_after`` everything passes again, also when nobody has asked meanwhile; and before, not."""
    limiter = (await world.connect()).rate_limiter("r", limit)
    fresh = await limiter.peek()
    assert (fresh.remaining, fresh.reset_after) == (limit.capacity, 0)
    decision = await limiter.try_acquire(cost=limit.capacity)
    assert decision.allowed
    until = decision.at + decision.reset_after
    seen = await limiter.peek()
    while seen.at < until - TICK / 2:
        assert seen.at + seen.reset_after == pytest.approx(until, abs=TICK / 2)
        assert seen.remaining < limit.capacity
        await world.advance(0.007)
        seen = await limiter.peek()
    assert (seen.remaining, seen.reset_after) == (limit.capacity, 0)
    await world.advance(1.2)  # what a backend may keep it for beyond that
    assert (await limiter.try_acquire(cost=limit.capacity)).remaining == 0


@slow
async def test_looking_changes_nothing(world: World, limit: Limit) -> None:
    """R5: a peek and a cost of 0 change nothing; a reset makes a key fresh, and no other."""
    limiter = (await world.connect()).rate_limiter("r", limit)
    for _ in range(3):
        assert (await limiter.peek("k")).remaining == 10
        free = await limiter.try_acquire("k", cost=0)
        assert free.allowed
        assert free.permit is None
    await limiter.try_acquire("k", cost=10)
    await limiter.try_acquire("other", cost=2)
    assert (await limiter.try_acquire("k", cost=0)).allowed
    await limiter.reset("k")
    assert (await limiter.peek("k")).remaining == 10
    assert (await limiter.peek("other")).remaining == 8


@needs("step_back")
@slow_rates
async def test_time_steps_back(world: World, limit: Limit) -> None:
    """R6: trap 30: if the backend's clock is set back, nothing comes back that wasn't there, and nothing is lost."""
    limiter = (await world.connect()).rate_limiter("r", limit)
    assert await limiter.try_acquire(cost=10)
    for _ in range(4):
        await world.harness.step_back(7 * HOUR)
        assert (await limiter.peek()).remaining == 0
        assert not await limiter.try_acquire()
    await world.advance((await limiter.try_acquire()).retry_after)
    assert await limiter.try_acquire()


@slow_rates
async def test_settle(world: World, limit: Limit) -> None:
    """R7: a settled call counts what it cost: less is given back, more is charged, and later calls wait for it."""
    limiter = (await world.connect()).rate_limiter("r", limit)
    await settle_all(await limiter.try_acquire(cost=6), cost=2)
    assert (await limiter.peek()).remaining == 8
    await settle_all(await limiter.try_acquire(cost=2), cost=5)
    assert (await limiter.peek()).remaining == 3
    more = await limiter.try_acquire(cost=3)
    await settle_all(more, cost=9)
    seen = await limiter.peek()
    assert seen.remaining == 0
    later = await limiter.try_acquire(cost=1)
    if isinstance(limit, TokenBucket):
        assert later.retry_after == pytest.approx(7 * HOUR / 10, abs=5)
    await limiter.reset()
    kept = await limiter.try_acquire(cost=4)
    await kept.permit.cancel()
    assert (await limiter.peek()).remaining == 10


@slow_rates
async def test_settled_once(world: World, limit: Limit) -> None:
    """R7: trap 30: a call is settled once: again the same changes nothing, another way is refused, so is a stranger."""
    limiter = (await world.connect()).rate_limiter("r", limit)
    await limiter.try_acquire(cost=2)
    permit = (await limiter.try_acquire(cost=6)).permit
    await permit.settle(cost=1)
    await permit.settle(cost=1)
    assert (await limiter.peek()).remaining == 7
    for again in (permit.settle(cost=0), permit.cancel()):
        with pytest.raises(ailf.SettledError):
            await again
    with pytest.raises(ailf.InvalidArgumentError, match="tokens"):
        await (await limiter.try_acquire()).permit.settle(tokens=1)
    assert (await limiter.peek()).remaining == 6


@quick
async def test_settled_late(world: World, limit: TokenBucket | SlidingWindow | FixedWindow) -> None:
    """R7: what is settled when the call no longer counts gives nothing back; nothing rises above the capacity."""
    limiter = (await world.connect()).rate_limiter("r", limit)
    old = await limiter.try_acquire(cost=limit.capacity)
    await world.advance(old.reset_after + TICK)
    await limiter.reset()
    before = await limiter.try_acquire(cost=limit.capacity)
    await settle_all(old, cost=0)
    seen = await limiter.peek()
    begins = [round(each.at * 1000) // limit.per_ms for each in (before, seen)]
    if seen.at - before.at < TICK / 2 and (not isinstance(limit, FixedWindow) or begins[0] == begins[1]):
        assert seen.remaining == 0
    await world.advance(before.reset_after + TICK)
    await settle_all(before, cost=0)
    assert (await limiter.peek()).remaining == limit.capacity


async def test_large_numbers(world: World) -> None:
    """R9: trap 28: large limits and costs are as exact as small ones, and what can't be exact is refused at once."""
    backend = await world.connect()
    large = 2**53 // round(HOUR * 1000)
    for limit in (
        TokenBucket(1, per=HOUR, burst=large),
        TokenBucket(1000, per=24 * HOUR, burst=720_000_000),
        SlidingWindow(2**53, per=HOUR),
        FixedWindow(2**53, per=24 * HOUR),
    ):
        limiter = backend.rate_limiter(str(limit), limit)
        assert (await limiter.try_acquire(cost=limit.capacity - 1)).remaining == 1
        assert not await limiter.try_acquire(cost=2)
        assert (await limiter.try_acquire(cost=1)).remaining == 0
        assert not await limiter.try_acquire(cost=1)
    with pytest.raises(ailf.InvalidArgumentError, match="2\\*\\*53"):
        TokenBucket(1, per=HOUR, burst=large + 1)


MADE_SMALLER: list[tuple[Limit, Limit, float]] = [  # and the seconds in which the smaller one is full by itself
    (TokenBucket(1000, per=0.4), TokenBucket(4, per=0.4), 0.4),
    (TokenBucket(1000, per=0.4), TokenBucket(8, per=0.4, burst=4), 0.2),
    (FixedWindow(1000, per=0.4), FixedWindow(4, per=0.4), 0.4),
    (SlidingWindow(1000, per=0.4, buckets=4), SlidingWindow(4, per=0.4, buckets=4), 0.5),
]


@pytest.mark.parametrize(("large", "small", "longest"), MADE_SMALLER, ids=[f"{each[1]}" for each in MADE_SMALLER])
async def test_a_limit_is_made_smaller(world: World, large: Limit, small: Limit, longest: float) -> None:
    """R12: what a larger limit charged makes a key wait for the smaller one's own time at most, however often asked."""
    backend = await world.connect()
    before, after = backend.rate_limiter("r", large), backend.rate_limiter("r", small)
    charged = await before.try_acquire("k", cost=large.capacity)
    latest = charged.at + longest + TICK
    for _ in range(3):
        asked = await after.try_acquire("k", cost=small.capacity)
        if asked:  # on a busy machine; what it charged is of the smaller limit
            break
        assert asked.retry_after is not None
        assert asked.at + asked.retry_after <= latest
        assert asked.at + asked.reset_after <= latest
        await world.advance(asked.retry_after / 2 + TICK)
    await world.advance(longest + TICK)
    assert await after.try_acquire("k", cost=small.capacity)


@pytest.mark.parametrize("limit", QUICK, ids=str)
async def test_envelope(world: World, limit: Limit) -> None:
    """R2, R3: whatever is asked for, and however quickly, what is admitted stays within the limit's envelope."""
    limiters = [(await world.connect()).rate_limiter("r", limit) for _ in range(2)]
    chance = random.Random(7)
    admitted: list[Call] = []

    async def ask(limiter: Any) -> None:
        for _ in range(60):
            cost = chance.choice([1, 1, 1, 2, limit.capacity])
            decision = await limiter.try_acquire(cost=cost)
            if decision:
                admitted.append(call_of(decision, cost))
            elif chance.random() < 0.3:
                await world.advance(chance.choice([TICK, decision.retry_after, 0.03]))

    await asyncio.gather(*(ask(limiter) for limiter in limiters))
    assert len(admitted) > 5
    assert excess(limit, admitted) == []


async def test_parallel_places(world: World) -> None:
    """R1, R7: a limit of concurrency is one charge beside rates; its places are given back on leaving, once."""
    limiter = (await world.connect()).rate_limiter("r", calls=SLOW[0], parallel=Concurrency(2, ttl=60.0))
    async with limiter.hold("k", timeout=0) as one:
        async with limiter.hold("k", timeout=0):
            assert (await limiter.peek("k")).limits["parallel"].remaining == 0
            with pytest.raises(ailf.RateLimitedError, match="parallel"):
                await limiter.acquire("k", timeout=0)
            assert (await limiter.peek("k")).limits["calls"].remaining == 8
        assert (await limiter.peek("k")).limits["parallel"].remaining == 1
        await one.release()
        await one.release()
        assert (await limiter.peek("k")).limits["parallel"].remaining == 2
        assert not one.lost
    seen = await limiter.peek("k")
    assert {name: each.remaining for name, each in seen.limits.items()} == {"calls": 8, "parallel": 2}


async def test_places_end(world: World) -> None:
    """R7, R8: the place of a process that has died is free after its ttl; a living one keeps it as long as it wants."""
    backend, dying = await world.connect(), await world.connect()
    ttl = min(world.lease, 0.5)
    limiter = backend.rate_limiter("r", Concurrency(1, ttl=ttl))
    permit = await limiter.acquire(timeout=0)
    for _ in range(4):
        await world.elapse(ttl / 2)
        assert not (await limiter.try_acquire()).allowed
    assert not permit.lost
    await permit.release()
    abandoned = (await dying.rate_limiter("r", Concurrency(1, ttl=ttl)).try_acquire()).permit
    dying.engine.renewer.discard(abandoned._flow._lease)
    assert not await limiter.try_acquire()
    await world.advance(ttl * 1.1)
    assert await limiter.try_acquire()


async def test_remembered_denials(world: World) -> None:
    """R11: a limiter that remembers denials decides as one that doesn't, to the tick, and gives nothing back."""
    backend = await world.connect()
    limit = TokenBucket(10, per=0.5)
    limiter = backend.rate_limiter("r", limit, cache_denials=True)
    admitted = []
    first = await limiter.try_acquire("k", cost=8)
    for _ in range(3):
        assert await limiter.try_acquire("other", cost=2)
        decision = await limiter.try_acquire("k", cost=6)
        for _ in range(100):
            if decision:
                break
            assert decision.retry_after > 0
            await world.advance(decision.retry_after)
            decision = await limiter.try_acquire("k", cost=6)
        assert decision
        admitted.append(call_of(decision, 6))
        assert not await limiter.try_acquire("k", cost=9)
        if (small := await limiter.try_acquire("k", cost=1)).allowed:  # a smaller one may pass
            admitted.append(call_of(small, 1))
    assert excess(limit, [call_of(first, 8), *admitted]) == []
    for giving in (first.permit.settle(cost=1), first.permit.cancel(), limiter.reset("k")):
        with pytest.raises(ailf.UnsupportedError, match="cache_denials"):
            await giving
    assert (await backend.rate_limiter("r", limit).peek("k")).remaining == 10, "it shares nothing with others"
    with pytest.raises(ailf.InvalidArgumentError, match="Concurrency"):
        backend.rate_limiter("r", SLOW[3], cache_denials=True)


async def test_reserve(world: World) -> None:
    """R3, R7: a reservation is charged at once, is ready when it would have passed, and others pass behind it."""
    limiter = (await world.connect()).rate_limiter("r", TokenBucket(10, per=HOUR))
    now = world.loop.time()
    assert (await limiter.reserve(cost=10)).ready_at <= world.loop.time()
    second = await limiter.reserve(cost=5)
    third = await limiter.reserve(cost=5)
    assert second.ready_at - now == pytest.approx(HOUR / 2, abs=30)
    assert third.ready_at - now == pytest.approx(HOUR, abs=30)
    with pytest.raises(ailf.RateLimitedError):
        await limiter.reserve(cost=5, within=HOUR)
    assert (await limiter.try_acquire(cost=1)).retry_after == pytest.approx(1.1 * HOUR, abs=30)
    await third.cancel()
    assert (await limiter.try_acquire(cost=1)).retry_after == pytest.approx(0.6 * HOUR, abs=30)
    for limit in SLOW[1:]:
        with pytest.raises(ailf.UnsupportedError, match="token buckets"):
            await (await world.connect()).rate_limiter("no", limit).reserve()


@slow_rates
async def test_observe(world: World, limit: Limit) -> None:
    """R4: what a provider says lowers what remains, and never raises it."""
    limiter = (await world.connect()).rate_limiter("r", limit)
    await limiter.try_acquire(cost=2)
    await limiter.observe(remaining=9)
    assert (await limiter.peek()).remaining == 8
    await limiter.observe(remaining=3)
    assert (await limiter.peek()).remaining == 3
    await limiter.observe(retry_after=60.0)
    seen = await limiter.try_acquire()
    assert not seen.allowed
    assert seen.retry_after >= 55
