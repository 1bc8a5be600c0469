"""R10: who waits at a rate limiter passes in turn, soon after it is possible, and gives all back if he gives up."""

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
"""Seconds after which somebody has certainly come into line."""


async def waiting(world: World, limiter: Any, key: str = "", cost: int = 1) -> None:
    """Return when somebody is in line: a call that would fit is denied then, as it isn't its turn."""
    until = time.monotonic() + LATE
    while time.monotonic() < until:
        seen = await limiter.try_acquire(key, cost=cost)
        if not seen and seen.bound is None:
            return
        if seen:
            await seen.permit.cancel()
        await asyncio.sleep(0.005)
    pytest.fail("nobody came into line")


async def test_in_turn(world: World) -> None:
    """R10: those who wait pass in the order in which they came, from whichever backend, and others wait behind them."""
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
        await asyncio.sleep(0.05)  # each comes into line before the next; those in front may have passed
        await world.advance(0.01)
    for _ in range(100):
        if all(task.done() for task in tasks):
            break
        await world.advance(0.02)
        await asyncio.sleep(0.01)
    await world.soon(asyncio.gather(*tasks))
    assert passed == sorted(passed)


async def test_small_calls_do_not_starve_a_large_one(world: World) -> None:
    """R10: while a call waits for much, those that want little and don't wait are denied: nobody overtakes."""
    limiter = (await world.connect()).rate_limiter("r", TokenBucket(10, per=HOUR))
    await limiter.try_acquire("k", cost=5)
    held = (await limiter.try_acquire("k", cost=3)).permit
    large = asyncio.create_task(limiter.acquire("k", timeout=2 * world.patience, cost=5))
    await waiting(world, limiter, "k")
    assert not await limiter.try_acquire("k")
    assert await limiter.try_acquire("other"), "each key has a line of its own"
    await held.cancel()
    assert await world.soon(large)
    assert not await limiter.try_acquire("k")


async def test_what_is_given_back_wakes_who_waits(world: World) -> None:
    """R10: a settled call, a freed place and a reset let the first in line pass at once, not when it looks again."""
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
        permit = await world.soon(waiter)
        assert time.monotonic() - begin < 1.5, giving
        await permit.release()


async def test_who_gives_up_gives_everything_back(world: World) -> None:
    """R10: whoever waits for too long is charged nothing, leaves the line, and the next one passes in his place."""
    limiter = (await world.connect()).rate_limiter("r", TokenBucket(10, per=HOUR))
    await limiter.try_acquire("k", cost=5)
    begin = time.monotonic()
    with pytest.raises(ailf.RateLimitedError, match=r"0\.2 s") as raised:
        await world.soon(limiter.acquire("k", timeout=0.2, cost=6))
    assert 0.15 <= time.monotonic() - begin < 0.2 + world.patience / 2
    assert (raised.value.retry_after or 0) > 60
    assert (await limiter.peek("k")).remaining == 5
    first = asyncio.create_task(limiter.acquire("k", timeout=1.0, cost=6))
    await waiting(world, limiter, "k")
    second = asyncio.create_task(limiter.acquire("k", timeout=2 * world.patience, cost=5))
    with pytest.raises(ailf.RateLimitedError):
        await world.soon(first)
    assert await world.soon(second)
    assert (await limiter.peek("k")).remaining == 0


@asyncio_only("a thread can't be cancelled")
async def test_cancelled_at_any_moment(world: World) -> None:
    """R10, B8: a cancelled `acquire` is charged nothing, whenever that happens, and holds no place in line."""
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
        for _ in range(int(world.patience / 0.02)):  # a round trip later, with 400 ahead of it
            seen = await limiter.peek("k")
            if seen.remaining == 2 and seen.limits["rate"].remaining == 10:
                break
            await asyncio.sleep(0.02)
        assert (seen.limits["rate"].remaining, seen.limits["parallel"].remaining) == (10, 2), moment
    assert await limiter.try_acquire("k", rate=10)


@asyncio_only("a thread can't be cancelled")
async def test_many_cancelled_tries(world: World) -> None:
    """R10, B8: of many tries that are cancelled at the same moment none keeps a place, whenever that is."""
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
        for _ in range(int(world.patience / 0.02)):  # a round trip later, with 400 ahead of it
            if (await limiter.peek("k")).remaining == 1000:
                break
            await asyncio.sleep(0.02)
        assert (await limiter.peek("k")).remaining == 1000, moment


async def test_close_ends_waiting(world: World) -> None:
    """R10, B3: closing the backend ends every wait with `ClosedError`, and what waited holds no place in line."""
    backend, other = await world.connect(), await world.connect()
    limiter = backend.rate_limiter("r", TokenBucket(2, per=HOUR))
    held = (await other.rate_limiter("r", TokenBucket(2, per=HOUR)).try_acquire(cost=1)).permit
    tasks = [asyncio.create_task(limiter.acquire(cost=2)) for _ in range(3)]
    await waiting(world, other.rate_limiter("r", TokenBucket(2, per=HOUR)))
    await world.soon(backend.aclose())
    for task in tasks:
        with pytest.raises(ailf.ClosedError):
            await world.soon(task)
    await held.cancel()
    assert await other.rate_limiter("r", TokenBucket(2, per=HOUR)).try_acquire(cost=2)
    with pytest.raises(ailf.ClosedError):
        await limiter.try_acquire()


async def test_nobody_is_left_out(world: World) -> None:
    """R10: of many who wait again and again all pass, and the admitted total stays within the envelope."""
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
    await world.soon(asyncio.gather(*tasks))
    assert len(admitted) == 60
    assert excess(limit, admitted) == []
