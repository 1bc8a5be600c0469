"""Limiters' decisions on Redis: ailf, limits, throttled-py and pyrate-limiter.

    python benchmarks/limiters.py [--quick] [--runs 5] [CONTENDER …]

One key, limits that are never reached, one decision after another: in microseconds for one blocking caller, in
decisions a second for a hundred asyncio callers. The algorithms differ in their state: a window's counter is one
number; a log of calls (moving window, pyrate-limiter) grows with every allowed call.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from typing import Any, Final

import bench
import redis
from bench import AsyncCall, Call, Column, Numbers
from redis import asyncio as aredis

import ailf

CALLERS: Final = 100
PLENTY: Final = 1_000_000_000
HOUR: Final = 3600.0
BLOCKING: Final = "blocking, µs"
ASYNCIO: Final = f"{CALLERS} callers, /s"

OURS: Final = "ailf, token bucket"
"""The row that the others are compared with."""

Open = Callable[[str], AbstractContextManager[Call]]
OpenAsync = Callable[[str], AbstractAsyncContextManager[AsyncCall]]


# --- ours --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ours(limit: ailf.Limit, url: str) -> Iterator[Call]:
    """Yield ailf's decision."""
    with ailf.connect(url) as backend:
        limiter = backend.rate_limiter("bench", limit)
        yield lambda: limiter.try_acquire("user")


@contextlib.asynccontextmanager
async def async_ours(limit: ailf.Limit, url: str) -> AsyncIterator[AsyncCall]:
    """Yield the same for asyncio."""
    async with ailf.connect_async(url) as backend:
        limiter = backend.rate_limiter("bench", limit)
        yield lambda: limiter.try_acquire("user")


# --- peers -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def limits(strategy: str, url: str) -> Iterator[Call]:
    """Yield the decision of limits, over redis-py."""
    storage = bench.peer("limits.storage").RedisStorage(url)
    limiter = getattr(bench.peer("limits.strategies"), strategy)(storage)
    item = bench.peer("limits").RateLimitItemPerHour(PLENTY)
    yield lambda: limiter.hit(item, "user")


@contextlib.asynccontextmanager
async def async_limits(strategy: str, url: str) -> AsyncIterator[AsyncCall]:
    """Yield the same for asyncio, over redis-py too."""
    storage = bench.peer("limits.aio.storage").RedisStorage(f"async+{url}", implementation="redispy")
    limiter = getattr(bench.peer("limits.aio.strategies"), strategy)(storage)
    item = bench.peer("limits").RateLimitItemPerHour(PLENTY)
    yield lambda: limiter.hit(item, "user")


@contextlib.contextmanager
def throttled(algorithm: str, url: str) -> Iterator[Call]:
    """Yield the decision of throttled-py."""
    yield _throttle(bench.peer("throttled"), algorithm, url)


@contextlib.asynccontextmanager
async def async_throttled(algorithm: str, url: str) -> AsyncIterator[AsyncCall]:
    """Yield the same for asyncio."""
    yield _throttle(bench.peer("throttled.asyncio"), algorithm, url)


def _throttle(module: Any, algorithm: str, url: str) -> Any:
    quota = module.rate_limiter.per_hour(PLENTY, burst=PLENTY)
    throttle = module.Throttled(using=algorithm, quota=quota, store=module.RedisStore(server=url))
    return lambda: throttle.limit("user")


@contextlib.contextmanager
def pyrate(url: str) -> Iterator[Call]:
    """Yield the decision of pyrate-limiter."""
    module = bench.peer("pyrate_limiter")
    with redis.Redis.from_url(url) as client:
        bucket = module.RedisBucket.init([module.Rate(PLENTY, module.Duration.HOUR)], client, "pyrate")
        with module.Limiter(bucket) as limiter:
            yield lambda: limiter.try_acquire("user", blocking=False)


@contextlib.asynccontextmanager
async def async_pyrate(url: str) -> AsyncIterator[AsyncCall]:
    """Yield the same for asyncio."""
    module = bench.peer("pyrate_limiter")
    async with aredis.Redis.from_url(url) as client:
        bucket = await module.RedisBucket.init([module.Rate(PLENTY, module.Duration.HOUR)], client, "pyrate")
        with module.Limiter(bucket) as limiter:
            yield lambda: limiter.try_acquire_async("user", blocking=False)


def _pair(blocking: Callable[..., Any], concurrent: Callable[..., Any], *which: Any) -> tuple[Open, OpenAsync]:
    return partial(blocking, *which), partial(concurrent, *which)


CONTENDERS: Mapping[str, tuple[Open, OpenAsync]] = {
    OURS: _pair(ours, async_ours, ailf.TokenBucket(PLENTY, per=HOUR)),
    "ailf, sliding window": _pair(ours, async_ours, ailf.SlidingWindow(PLENTY, per=HOUR)),
    "ailf, fixed window": _pair(ours, async_ours, ailf.FixedWindow(PLENTY, per=HOUR)),
    "limits, sliding window": _pair(limits, async_limits, "SlidingWindowCounterRateLimiter"),
    "limits, fixed window": _pair(limits, async_limits, "FixedWindowRateLimiter"),
    "limits, moving window": _pair(limits, async_limits, "MovingWindowRateLimiter"),
    "throttled-py, token bucket": _pair(throttled, async_throttled, "token_bucket"),
    "throttled-py, GCRA": _pair(throttled, async_throttled, "gcra"),
    "throttled-py, fixed window": _pair(throttled, async_throttled, "fixed_window"),
    "pyrate-limiter": _pair(pyrate, async_pyrate),
}


def measure(opens: tuple[Open, OpenAsync], url: str, seconds: float) -> Numbers:
    """Measure blocking and asyncio calls."""
    open_blocking, open_async = opens
    bench.clear(url)
    with open_blocking(url) as call:
        blocking = bench.per_call(call, seconds)
    bench.clear(url)
    return {BLOCKING: blocking, ASYNCIO: asyncio.run(_concurrent(open_async, url, seconds))}


async def _concurrent(open_async: OpenAsync, url: str, seconds: float) -> float:
    async with open_async(url) as call:
        return await bench.rate([call] * CALLERS, seconds)


def main() -> None:
    """Measure the chosen contenders, and print the table."""
    effort = bench.effort(__doc__)
    with bench.server() as url:
        contenders = {name: partial(measure, each, url, effort.seconds) for name, each in CONTENDERS.items()}
        rows = bench.play(effort.chosen(contenders), effort.runs)
    columns = [Column(BLOCKING, less=True, digits=1), Column(ASYNCIO)]
    bench.table(
        "decisions on Redis (in brackets: how many times better ailf's token bucket is)",
        columns,
        rows,
        OURS,
    )


if __name__ == "__main__":
    main()
