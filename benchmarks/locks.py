"""One contended lock: 20 waiters, 50 rounds each, beside redis-py's lock and python-redis-lock's, in one run.

Prints the median of some runs: hand-overs per second, the longest wait as a multiple of the mean wait, and our round
trips per hand-over. ``make bench`` installs the peers into an environment of its own and starts a server; or name one:
python benchmarks/locks.py --url redis://localhost:6379/0
"""

import argparse
import asyncio
import contextlib
import logging
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis
import redis_lock

import ailf

WAITERS, ROUNDS = 20, 50

Release = Callable[[], Any]


class Result:
    """What one run showed."""

    def __init__(self, seconds: float, waits: list[float], order: list[int]) -> None:
        self.rate = WAITERS * ROUNDS / seconds
        self.longest = max(waits) / statistics.mean(waits)
        rounds = [order[start : start + WAITERS] for start in range(0, len(order), WAITERS)]
        self.in_turn = all(each == rounds[1] for each in rounds[1:])  # the first shows who was started first


def on_threads(acquire: Callable[[], Release]) -> Result:
    """Contend from threads."""
    waits: list[float] = []
    order: list[int] = []

    def work(number: int) -> None:
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            release = acquire()
            waits.append(time.perf_counter() - begun)
            order.append(number)
            release()

    acquire()()  # connects
    threads = [threading.Thread(target=work, args=(number,)) for number in range(WAITERS)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Result(time.perf_counter() - begun, waits, order)


async def on_tasks(lock: ailf.AsyncLock) -> Result:
    """Contend from tasks."""
    waits: list[float] = []
    order: list[int] = []

    async def work(number: int) -> None:
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            lease = await lock.acquire(60)
            waits.append(time.perf_counter() - begun)
            order.append(number)
            await lease.release()

    with contextlib.suppress(ailf.LockTimeoutError):  # connects, also for waiting
        async with lock.hold():
            await lock.acquire(0.001)
    begun = time.perf_counter()
    await asyncio.gather(*(work(number) for number in range(WAITERS)))
    return Result(time.perf_counter() - begun, waits, order)


def tasks(url: str, *, fair: bool) -> Result:
    """Contend from tasks on a loop of their own."""

    async def main() -> Result:
        async with ailf.connect_async(url) as backend:
            return await on_tasks(backend.lock(f"tasks {fair}", fair=fair))

    return asyncio.run(main())


def contestants(url: str, raw: redis.Redis, backend: ailf.Backend) -> dict[str, Callable[[], Result]]:
    """Return who is compared."""

    def redis_py(sleep: float) -> Callable[[], Release]:
        def acquire() -> Release:
            lock = raw.lock(f"redis-py {sleep}", timeout=30, sleep=sleep)
            lock.acquire()
            return lock.release

        return acquire

    def python_redis_lock() -> Release:
        lock = redis_lock.Lock(raw, "python-redis-lock", expire=30)
        lock.acquire()
        return lock.release

    plain, fair = backend.lock("plain"), backend.lock("fair", fair=True)
    return {
        "redis-py, sleep=0.1 (default)": lambda: on_threads(redis_py(0.1)),
        "redis-py, sleep=0.001": lambda: on_threads(redis_py(0.001)),
        "python-redis-lock": lambda: on_threads(python_redis_lock),
        "ailf": lambda: on_threads(lambda: plain.acquire(60).release),
        "ailf, fair": lambda: on_threads(lambda: fair.acquire(60).release),
        "ailf, asyncio": lambda: tasks(url, fair=False),
        "ailf, asyncio, fair": lambda: tasks(url, fair=True),
    }


def scripts_run(raw: redis.Redis) -> int:
    """Return how many scripts the server has run: each of our requests is one."""
    stats: dict[str, dict[str, int]] = raw.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))


@contextlib.contextmanager
def server(url: str | None) -> Iterator[str]:
    """Return where the server is; start one where none is named."""
    if url is not None:
        yield url
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests import binaries  # noqa: PLC0415 - only needed here
    from tests.servers import Server  # noqa: PLC0415

    version, binary = next(reversed(binaries.found().items()))
    with Server.start(binary, version=version) as started:
        yield started.url


def main() -> None:
    """Run them in turn, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a Redis server; one is started unless told")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)
    with server(arguments.url) as url, redis.Redis.from_url(url) as raw, ailf.connect(url) as backend:
        print(f"{'20 waiters x 50 rounds':32}{'hand-overs/s':>14}{'longest/mean':>14}{'round trips':>13}  in turn")
        for name, contest in contestants(url, raw, backend).items():
            before = scripts_run(raw)
            results = [contest() for _ in range(arguments.runs)]
            asked = (scripts_run(raw) - before) / (arguments.runs * WAITERS * ROUNDS)
            rate = statistics.median(result.rate for result in results)
            longest = statistics.median(result.longest for result in results)
            trips = f"{asked:.2f}" if name.startswith("ailf") else ""
            print(f"{name:32}{rate:14.0f}{longest:14.1f}{trips:>13}  {all(each.in_turn for each in results)}")


if __name__ == "__main__":
    main()
