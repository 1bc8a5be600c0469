"""The memory backend's calls beside other libraries' within one process; and the core's share of a call.

All numbers are microseconds: a blocking limiter's decision; publish and get; add, get and ack (asyncio, one task).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, cast

import bench
from bench import BODY, AsyncCall, Call, Numbers

import ailf
from ailf.runtime import run

NAMES: Final = ("limit", "publish, get", "add, get, ack")

PLENTY: Final = 1_000_000_000
LIMIT: Final = ailf.TokenBucket(PLENTY, per=3600.0)
KEPT: Final = ailf.Retention(max_len=1000)
"""The retention of streams, so that memory doesn't fill up."""


async def _per_call(call: AsyncCall, seconds: float) -> float:
    return 1e6 / await bench.rate([call], seconds)


# --- beside other libraries --------------------------------------------------------------------------------------


def ours(seconds: float) -> Numbers:
    """Measure ailf."""
    with ailf.connect("memory://bench-limits") as backend:
        limiter = backend.rate_limiter("bench", LIMIT)
        limit = bench.per_call(lambda: limiter.try_acquire("user"), seconds)
    return {"limit": limit, **asyncio.run(_messages(seconds))}


async def _messages(seconds: float) -> Numbers:
    async with ailf.connect_async("memory://bench-messages") as backend:
        pubsub = backend.pubsub(type=bytes)
        stream = backend.stream("bench", type=bytes, retention=KEPT)
        async with pubsub.listen("bench") as messages, stream.group("workers").consumer() as consumer:

            async def publish() -> None:
                await pubsub.publish("bench", BODY)
                await messages.get()

            async def work() -> None:
                await stream.add(BODY)
                delivery = await consumer.get()
                assert delivery is not None
                await delivery.ack()

            return {
                "publish, get": await _per_call(publish, seconds),
                "add, get, ack": await _per_call(work, seconds),
            }


def limits(seconds: float) -> Numbers:
    """Measure limits' sliding window counter."""
    module = bench.peer("limits")
    limiter = bench.peer("limits.strategies").SlidingWindowCounterRateLimiter(
        bench.peer("limits.storage").MemoryStorage()
    )
    item = module.RateLimitItemPerHour(PLENTY)
    return {"limit": bench.per_call(lambda: limiter.hit(item, "user"), seconds)}


def throttled(seconds: float) -> Numbers:
    """Measure throttled-py's token bucket."""
    module = bench.peer("throttled")
    quota = module.rate_limiter.per_hour(PLENTY, burst=PLENTY)
    throttle = module.Throttled(using="token_bucket", quota=quota, store=module.store.MemoryStore())
    return {"limit": bench.per_call(lambda: throttle.limit("user"), seconds)}


def queue(seconds: float) -> Numbers:
    """Measure asyncio.Queue, which loses what is taken from it when a consumer fails."""

    async def measure() -> Numbers:
        waiting: asyncio.Queue[bytes] = asyncio.Queue()

        async def publish() -> None:
            await waiting.put(BODY)
            await waiting.get()

        async def work() -> None:
            await publish()
            waiting.task_done()

        return {"publish, get": await _per_call(publish, seconds), "add, get, ack": await _per_call(work, seconds)}

    return asyncio.run(measure())


CONTENDERS: Mapping[str, Callable[[float], Numbers]] = {
    "ailf": ours,
    "limits": limits,
    "throttled-py": throttled,
    "asyncio.Queue": queue,
}


# --- the core's share --------------------------------------------------------------------------------------------


class Recorder:
    """A driver that records its requests, and passes them to the real one."""

    def __init__(self, real: Any, requests: list[Call]) -> None:
        self._real = real
        self._requests = requests

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        """Return a method that records how to repeat the request, and calls the real method."""
        method = getattr(self._real, name)

        def request(*args: Any, **options: Any) -> Awaitable[Any]:
            self._requests.append(lambda: run(method(*args, **options)))
            return cast("Awaitable[Any]", method(*args, **options))

        return request


def core(seconds: float) -> Numbers:
    """Measure each call through the core, and the same requests to its driver alone."""
    with ailf.connect("memory://bench-core") as backend, ailf.connect("memory://bench-driver") as recorded:
        whole, alone = _through_core(backend), _driver_alone(recorded)
        numbers: dict[str, float] = {}
        for name, call in whole.items():
            numbers[name] = bench.per_call(call, seconds)
            numbers[f"{name}, driver alone"] = bench.per_call(alone[name], seconds)
            numbers[f"{name}, core's share"] = numbers[name] - numbers[f"{name}, driver alone"]
        return numbers


def core_cpu(seconds: float) -> Mapping[str, Numbers]:
    """Return the CPU time of each call through the core, of its driver alone, and the difference: the core's share."""
    with ailf.connect("memory://bench-core") as backend, ailf.connect("memory://bench-driver") as recorded:
        through, alone = _through_core(backend), _driver_alone(recorded)
        whole = {name: bench.least_cpu(call, seconds) for name, call in through.items()}
        driver = {name: bench.least_cpu(call, seconds) for name, call in alone.items()}
    share = {name: whole[name] - driver[name] for name in whole}
    return {"core and driver": whole, "driver alone": driver, "core's share": share}


def _through_core(backend: ailf.Backend) -> Mapping[str, Call]:
    pubsub = backend.pubsub(type=bytes)
    stream = backend.stream("core", type=bytes)
    lock = backend.lock("core")
    limiter = backend.rate_limiter("core", LIMIT)
    return {
        "publish": lambda: pubsub.publish("core", BODY),
        "add": lambda: stream.add(BODY),
        "lock": lambda: lock.acquire(0).release(),
        "limit": lambda: limiter.try_acquire("user"),
    }


def _driver_alone(backend: ailf.Backend) -> Mapping[str, Call]:
    """Return functions that repeat the requests of each call, without the core."""
    requests: list[Call] = []
    driver = backend.engine.driver
    for name in ("pubsub", "stream", "lock", "rate_limiter"):
        setattr(driver, name, partial(Recorder, getattr(driver, name)(), requests))
    return {name: _repeating(call, requests) for name, call in _through_core(backend).items()}


def _repeating(call: Call, requests: list[Call]) -> Call:
    requests.clear()
    call()
    recorded = tuple(requests)

    def repeat() -> None:
        for request in recorded:
            request()

    return repeat
