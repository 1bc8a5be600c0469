"""R10: waiting calls pass a rate limiter in order, as soon as they can, and leave nothing behind if they give up."""

import asyncio
import contextlib
import time
from typing import Any

import pytest

import ailf
from ailf import Concurrency, TokenBucket
from ailf.driver import Capability
from contract_tests.fixtures import asyncio_only
from contract_tests.helpers.envelopes import Call, excess
from contract_tests.ratelimit.test_ratelimit import call_of
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.RATE_LIMITER,)

HOUR = 3600.0
LATE = 2.0
"""Seconds after which a call has certainly joined the wait queue."""


async def waiting(world: World, limiter: Any, key: str = "", cost: int = 1) -> None:
    """Wait until a call is in the wait queue: then a call that would fit is denied, and no limit is its `bound`."""
    until = time.monotonic() + LATE
    while time.monotonic() < until:
        decision = await limiter.try_acquire(key, cost=cost)
        if not decision and decision.bound is None:
            return
        if decision:
            await decision.permit.cancel()
        await asyncio.sleep(0.005)
    pytest.fail(f"no call joined the wait queue within {LATE} s")


async def test_calls_pass_in_order(world: World) -> None:
    """R10: waiting calls of all backends pass in the order in which they came, and new calls wait behind them."""
    backends = [await world.connect() for _ in range(2)]
    limiters = [backend.rate_limiter("r", TokenBucket(50, per=1.0, burst=2)) for backend in backends]
    await limiters[0].try_acquire("k", cost=2)
    passed: list[int] = []

    async def wait(number: int) -> None:
        await limiters[number % 2].acquire("k", timeout=world.patience, cost=1 + number % 2)
        passed.append(number)

    tasks = []
    for number in range(12):
        tasks.append(asyncio.create_task(wait(number)))
        await asyncio.sleep(0.05)  # so that each call joins the wait queue before the next one
        await world.advance(0.01)
    for _ in range(100):
        if all(task.done() for task in tasks):
            break
        await world.advance(0.02)
        await asyncio.sleep(0.01)
    await world.within_patience(asyncio.gather(*tasks))
    assert passed == sorted(passed)


async def test_small_calls_do_not_starve_a_large_one(world: World) -> None:
    """R10: while a call with a large cost waits, small calls of the same key are denied and don't overtake it."""
    limiter = (await world.connect()).rate_limiter("r", TokenBucket(10, per=HOUR))
    await limiter.try_acquire("k", cost=5)
    held = (await limiter.try_acquire("k", cost=3)).permit
    large = asyncio.create_task(limiter.acquire("k", timeout=2 * world.patience, cost=5))
    await waiting(world, limiter, "k")
    assert not await limiter.try_acquire("k")
    assert await limiter.try_acquire("other"), "another key shares the wait queue"
    await held.cancel()
    assert await world.within_patience(large)
    assert not await limiter.try_acquire("k")


async def test_refunds_wake_waiting_calls(world: World) -> None:
    """R10: a settled call, a freed slot or a reset wakes the first waiter at once, not only at its next check."""
    limiter = (await world.connect()).rate_limiter("r", rate=TokenBucket(10, per=HOUR), parallel=Concurrency(1, ttl=60))
    for giving in ("settle", "release", "reset"):
        await limiter.reset("k")
        held = (await limiter.try_acquire("k", rate=10 if giving != "release" else 1)).permit
        if giving != "release":
            await held.release()
        waiter = asyncio.create_task(limiter.acquire("k", timeout=2 * world.patience, rate=3))
        await asyncio.sleep(0.2)
        assert not waiter.done()
        begin = time.monotonic()
        if giving == "reset":
            await limiter.reset("k")
        else:
            await (held.settle(rate=2) if giving == "settle" else held.release())
        permit = await world.within_patience(waiter)
        assert time.monotonic() - begin < 1.5, giving
        await permit.release()


async def test_a_timed_out_call_leaves_nothing(world: World) -> None:
    """R10: a call that times out is charged nothing and leaves the wait queue, and the next one passes."""
    limiter = (await world.connect()).rate_limiter("r", TokenBucket(10, per=HOUR))
    await limiter.try_acquire("k", cost=5)
    begin = time.monotonic()
    with pytest.raises(ailf.RateLimitedError, match=r"0\.2 s") as raised:
        await world.within_patience(limiter.acquire("k", timeout=0.2, cost=6))
    assert 0.15 <= time.monotonic() - begin < 0.2 + world.patience / 2
    assert (raised.value.retry_after or 0) > 60
    assert (await limiter.peek("k")).remaining == 5
    first = asyncio.create_task(limiter.acquire("k", timeout=1.0, cost=6))
    await waiting(world, limiter, "k")
    second = asyncio.create_task(limiter.acquire("k", timeout=2 * world.patience, cost=5))
    with pytest.raises(ailf.RateLimitedError):
        await world.within_patience(first)
    assert await world.within_patience(second)
    assert (await limiter.peek("k")).remaining == 0


@asyncio_only("a thread can't be cancelled")
async def test_cancelled_at_any_moment(world: World) -> None:
    """R10, B8: an `acquire` that is cancelled at any await is charged nothing and leaves no place in the wait queue."""
    limiter = (await world.connect()).rate_limiter("r", rate=TokenBucket(10, per=HOUR), parallel=Concurrency(2, ttl=60))
    for moment in range(40):
        if moment % 2:
            held = (await limiter.try_acquire("k", rate=8)).permit
        trying = asyncio.ensure_future(limiter.acquire("k", timeout=world.patience, rate=5))
        for _ in range(moment):
            await asyncio.sleep(0)
        trying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await trying).cancel()
        if moment % 2:
            await held.cancel()
        for _ in range(int(world.patience / 0.02)):  # the withdrawal takes another round trip
            seen = await limiter.peek("k")
            if seen.remaining == 2 and seen.limits["rate"].remaining == 10:
                break
            await asyncio.sleep(0.02)
        assert (seen.limits["rate"].remaining, seen.limits["parallel"].remaining) == (10, 2), moment
    assert await limiter.try_acquire("k", rate=10)


@asyncio_only("a thread can't be cancelled")
async def test_many_cancelled_tries(world: World) -> None:
    """R10, B8: many calls that are cancelled at the same moment, at any await, leave no slot taken."""
    limiter = (await world.connect()).rate_limiter("r", Concurrency(1000, ttl=60))
    for moment in range(0, 24, 3):
        tries = [asyncio.ensure_future(limiter.try_acquire("k")) for _ in range(400)]
        for _ in range(moment):
            await asyncio.sleep(0)
        for each in tries:
            each.cancel()
        for each in await asyncio.gather(*tries, return_exceptions=True):
            if not isinstance(each, BaseException):
                await each.permit.release()
        for _ in range(int(world.patience / 0.02)):  # the withdrawal takes another round trip
            if (await limiter.peek("k")).remaining == 1000:
                break
            await asyncio.sleep(0.02)
        assert (await limiter.peek("k")).remaining == 1000, moment


async def test_close_ends_waiting(world: World) -> None:
    """R10, B3: closing the backend ends every wait with `ClosedError` and leaves no place in the wait queue."""
    backend, other = await world.connect(), await world.connect()
    limiter = backend.rate_limiter("r", TokenBucket(2, per=HOUR))
    held = (await other.rate_limiter("r", TokenBucket(2, per=HOUR)).try_acquire(cost=1)).permit
    tasks = [asyncio.create_task(limiter.acquire(cost=2)) for _ in range(3)]
    await waiting(world, other.rate_limiter("r", TokenBucket(2, per=HOUR)))
    await world.within_patience(backend.aclose())
    for task in tasks:
        with pytest.raises(ailf.ClosedError):
            await world.within_patience(task)
    await held.cancel()
    assert await other.rate_limiter("r", TokenBucket(2, per=HOUR)).try_acquire(cost=2)
    with pytest.raises(ailf.ClosedError):
        await limiter.try_acquire()


async def test_no_call_starves(world: World) -> None:
    """R10: calls of many tasks that wait again and again all pass, and their total stays within the envelope."""
    limit = TokenBucket(100, per=1.0, burst=10)
    limiter = (await world.connect()).rate_limiter("r", limit)
    admitted: list[Call] = []

    async def work() -> None:
        for _ in range(12):
            permit = await limiter.acquire("k", timeout=3 * world.patience)
            admitted.append(call_of(permit, 1))

    tasks = [asyncio.create_task(work()) for _ in range(5)]
    until = time.monotonic() + 3 * world.patience
    while not all(task.done() for task in tasks) and time.monotonic() < until:
        await world.advance(0.01)
        await asyncio.sleep(0.001)
    await world.within_patience(asyncio.gather(*tasks))
    assert len(admitted) == 60
    assert excess(limit, admitted) == []
