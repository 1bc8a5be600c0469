"""Many waiters of one process contend for one lock: redis-py, python-redis-lock and ailf.

    python benchmarks/locks.py [--quick] [--url …] [--waiters 20] [--rounds 50] [--runs 5] [--hold 0] [CONTENDER …]

Each waiter acquires the lock ROUNDS times, as fast as it can. *Grants* counts all of them. A *hand-over* is a grant to
another waiter than the one before: a waiter that takes back the lock that it has just released makes many grants, and
keeps the others waiting. *Overtaken* counts the grants that came before one that was requested 20 ms earlier or more.

It needs redis-py and python-redis-lock, and a server: the one at URL, or one that it starts.
"""

import argparse
import asyncio
import itertools
import statistics
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, ExitStack
from typing import Any

import attrs
import bench
import redis
import redis_lock
from redis import asyncio as aredis

import ailf

TTL = 30
"""Seconds that a grant lasts."""

EARLIER = 0.02
"""Seconds by which an overtaken request must be earlier, as a request takes time itself."""


@attrs.frozen
class Grant:
    """One grant of the lock: its waiter, and when it was requested, granted and released."""

    waiter: int
    requested: float
    granted: float
    released: float


@attrs.frozen
class Plan:
    """The options of a measurement.

    Attributes:
        url: The server.
        waiters: The number of waiters.
        rounds: How often each waiter acquires the lock.
        hold: Seconds for which a waiter holds the lock.
    """

    url: str
    waiters: int
    rounds: int
    hold: float


class Contender(ABC):
    """A library's lock."""

    commands: Sequence[str] = ("evalsha", "eval")
    """The commands that it sends; those that a script runs are no round trips."""

    @abstractmethod
    def play(self, plan: Plan) -> list[Grant]:
        """Run all waiters; return the grants."""


class Threads(Contender):
    """Waiters that are threads."""

    @abstractmethod
    def open(self, plan: Plan, stack: ExitStack) -> Callable[[], AbstractContextManager[Any]]:
        """Return a function whose result holds the lock as a context manager; called once for each waiter."""

    def play(self, plan: Plan) -> list[Grant]:
        """Start all threads at once, and join them."""
        grants: list[Grant] = []
        start = threading.Barrier(plan.waiters)

        def wait(number: int, hold: Callable[[], AbstractContextManager[Any]]) -> None:
            start.wait()
            for _ in range(plan.rounds):
                requested = time.monotonic()
                with hold():
                    granted = time.monotonic()
                    if plan.hold:
                        time.sleep(plan.hold)
                grants.append(Grant(number, requested, granted, time.monotonic()))

        with ExitStack() as stack:
            holds = [self.open(plan, stack) for _ in range(plan.waiters)]
            threads = [threading.Thread(target=wait, args=each) for each in enumerate(holds)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return grants


class Tasks(Contender):
    """Waiters that are tasks of one event loop."""

    @abstractmethod
    async def open(self, plan: Plan, stack: AsyncExitStack) -> Callable[[], AbstractAsyncContextManager[Any]]:
        """Return a function whose result holds the lock as a context manager; called once for each waiter."""

    def play(self, plan: Plan) -> list[Grant]:
        """Start all tasks at once, and await them."""
        return asyncio.run(self._play(plan))

    async def _play(self, plan: Plan) -> list[Grant]:
        grants: list[Grant] = []

        async def wait(number: int, hold: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
            for _ in range(plan.rounds):
                requested = time.monotonic()
                async with hold():
                    granted = time.monotonic()
                    if plan.hold:
                        await asyncio.sleep(plan.hold)
                grants.append(Grant(number, requested, granted, time.monotonic()))

        async with AsyncExitStack() as stack:
            holds = [await self.open(plan, stack) for _ in range(plan.waiters)]
            await asyncio.gather(*(wait(*each) for each in enumerate(holds)))
        return grants


# --- peers -------------------------------------------------------------------------------------------------------


class RedisPy(Threads):
    """redis-py's lock: a denied waiter sleeps and tries again."""

    commands = ("set", "evalsha", "eval")

    def __init__(self, sleep: float) -> None:
        self._sleep = sleep
        self._name = f"bench-{uuid.uuid4().hex}"

    def open(self, plan: Plan, stack: ExitStack) -> Callable[[], AbstractContextManager[Any]]:
        """Give each waiter a client."""
        client = stack.enter_context(redis.Redis.from_url(plan.url))
        client.ping()
        lock = client.lock(self._name, timeout=TTL, sleep=self._sleep)
        return lambda: lock


class AsyncRedisPy(Tasks):
    """The same on asyncio."""

    commands = RedisPy.commands

    def __init__(self, sleep: float) -> None:
        self._sleep = sleep
        self._name = f"bench-{uuid.uuid4().hex}"

    async def open(self, plan: Plan, stack: AsyncExitStack) -> Callable[[], AbstractAsyncContextManager[Any]]:
        """Give each waiter a client, and a lock of its own, as the lock keeps its token."""
        client = await stack.enter_async_context(aredis.Redis.from_url(plan.url))
        await client.ping()
        lock = client.lock(self._name, timeout=TTL, sleep=self._sleep)
        return lambda: lock


class PythonRedisLock(Threads):
    """python-redis-lock: a denied waiter waits in BLPOP."""

    commands = ("get", "set", "blpop", "evalsha", "eval")

    def __init__(self) -> None:
        self._name = f"bench-{uuid.uuid4().hex}"

    def open(self, plan: Plan, stack: ExitStack) -> Callable[[], AbstractContextManager[Any]]:
        """Give each waiter a client whose socket timeout is longer than its waits."""
        client = stack.enter_context(redis.Redis.from_url(plan.url, socket_timeout=2 * TTL))
        client.ping()
        return lambda: redis_lock.Lock(client, self._name, expire=TTL)


# --- ours --------------------------------------------------------------------------------------------------------


class Ours(Threads):
    """ailf's lock; with `apart` each waiter has a backend of its own, as in a process of its own."""

    def __init__(self, *, fair: bool, apart: bool = False) -> None:
        self._fair = fair
        self._apart = apart
        self._name = f"bench-{uuid.uuid4().hex}"
        self._backend: ailf.Backend | None = None

    def open(self, plan: Plan, stack: ExitStack) -> Callable[[], AbstractContextManager[Any]]:
        """Share one backend, or open another one."""
        if self._backend is None or self._apart:
            self._backend = stack.enter_context(ailf.connect(plan.url))
            stack.callback(setattr, self, "_backend", None)
        return self._backend.lock(self._name, ttl=TTL, fair=self._fair).hold


class AsyncOurs(Tasks):
    """The same on asyncio."""

    def __init__(self, *, fair: bool, apart: bool = False) -> None:
        self._fair = fair
        self._apart = apart
        self._name = f"bench-{uuid.uuid4().hex}"
        self._backend: ailf.AsyncBackend | None = None

    async def open(self, plan: Plan, stack: AsyncExitStack) -> Callable[[], AbstractAsyncContextManager[Any]]:
        """Share one backend, or open another one."""
        if self._backend is None or self._apart:
            self._backend = await stack.enter_async_context(ailf.connect_async(plan.url))
            stack.callback(setattr, self, "_backend", None)
        return self._backend.lock(self._name, ttl=TTL, fair=self._fair).hold


CONTENDERS: dict[str, Callable[[], Contender]] = {
    "redis-py": lambda: RedisPy(0.1),
    "redis-py, sleep=0.001": lambda: RedisPy(0.001),
    "python-redis-lock": PythonRedisLock,
    "ailf": lambda: Ours(fair=False),
    "ailf, fair": lambda: Ours(fair=True),
    "ailf, apart": lambda: Ours(fair=False, apart=True),
    "ailf, fair, apart": lambda: Ours(fair=True, apart=True),
    "redis-py, asyncio": lambda: AsyncRedisPy(0.1),
    "redis-py, asyncio, sleep=0.001": lambda: AsyncRedisPy(0.001),
    "ailf, asyncio": lambda: AsyncOurs(fair=False),
    "ailf, asyncio, fair": lambda: AsyncOurs(fair=True),
    "ailf, asyncio, apart": lambda: AsyncOurs(fair=False, apart=True),
    "ailf, asyncio, fair, apart": lambda: AsyncOurs(fair=True, apart=True),
}


# --- measuring ---------------------------------------------------------------------------------------------------


@attrs.frozen
class Result:
    """The result of one run; times are in seconds."""

    grants: float
    handovers: float
    longest: float
    mean: float
    trips: float
    overtaken: int


def calls(client: Any, commands: Sequence[str]) -> int:
    """Return how often the server has processed these commands."""
    stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{each}", {}).get("calls", 0) for each in commands)


def measure(contender: Contender, plan: Plan) -> Result:
    """Measure one run."""
    with redis.Redis.from_url(plan.url) as client:
        before = calls(client, contender.commands)
        grants = sorted(contender.play(plan), key=lambda each: each.granted)
        trips = calls(client, contender.commands) - before
    for one, other in itertools.pairwise(grants):
        assert other.granted > one.granted, "two waiters held the lock at once"
    assert len(grants) == plan.waiters * plan.rounds
    waits = [each.granted - each.requested for each in grants]
    seconds = grants[-1].released - grants[0].requested
    handovers = sum(one.waiter != other.waiter for one, other in itertools.pairwise(grants))
    return Result(
        grants=len(grants) / seconds,
        handovers=handovers / seconds,
        longest=max(waits),
        mean=statistics.mean(waits),
        trips=trips / len(grants),
        overtaken=overtaken(grants),
    )


def overtaken(grants: Sequence[Grant]) -> int:
    """Count the grants that came before one that was requested at least `EARLIER` seconds earlier."""
    count = 0
    earliest = float("inf")
    for grant in reversed(grants):
        count += earliest < grant.requested - EARLIER
        earliest = min(earliest, grant.requested)
    return count


def report(name: str, results: Sequence[Result]) -> None:
    """Print a line of medians."""
    columns = zip(*(attrs.astuple(each) for each in results), strict=True)
    grants, handovers, longest, mean, trips, late = (statistics.median(each) for each in columns)
    print(
        f"{name:32}{grants:9.0f}{handovers:13.0f}{longest * 1000:9.1f}{mean * 1000:8.2f}"
        f"{longest / mean:8.1f}{trips:8.2f}{late:11.0f}",
        flush=True,
    )


def main() -> None:
    """Measure the chosen contenders several times, and print their medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = "; ".join(CONTENDERS)
    parser.add_argument("contender", nargs="*", choices=[*CONTENDERS, []], metavar="CONTENDER", help=names)
    parser.add_argument("--url", help="the server; without it one is started")
    parser.add_argument("--quick", action="store_true", help="measure less of everything")
    parser.add_argument("--waiters", type=int, default=20, help="the number of waiters")
    parser.add_argument("--rounds", type=int, help="how often each waiter acquires the lock: 50, or 10 with --quick")
    parser.add_argument("--runs", type=int, help="the number of runs, whose median is shown: 5, or 1 with --quick")
    parser.add_argument("--hold", type=float, default=0.0, help="seconds for which a waiter holds the lock")
    options = parser.parse_args()
    chosen = options.contender or list(CONTENDERS)
    rounds = options.rounds or (10 if options.quick else 50)
    runs = options.runs or (1 if options.quick else 5)
    with bench.server(options.url) as url:
        plan = Plan(url, options.waiters, rounds, options.hold)
        print(f"{plan.waiters} waiters x {plan.rounds} rounds, medians of {runs}; waits in ms")
        print(
            f"{'':32}{'grants/s':>9}{'handovers/s':>13}{'longest':>9}{'mean':>8}{'ratio':>8}{'trips':>8}"
            f"{'overtaken':>11}"
        )
        for name in chosen:
            report(name, [measure(CONTENDERS[name](), plan) for _ in range(runs)])


if __name__ == "__main__":
    main()
