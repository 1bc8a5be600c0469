"""The cost of one call: publish, add to a stream, lock and unlock, a limiter's decision; ailf and clients of Redis.

    python benchmarks/calls.py [--quick] [--runs 5] [CONTENDER …]

Blocking calls are shown in microseconds for one caller, asyncio calls in calls per second for one caller and for a
hundred. Clients have no limiter: they run a short script that counts a window. valkey-glide has no lock either: the
benchmark does the steps of redis-py's lock with it. The bare socket sends the bytes of the command, and reads the
reply.

Then come calls in memory, without a server, beside other libraries for limits and queues in one process; and the share
of the core in each call, above its bare driver.
"""

import asyncio
from collections.abc import Mapping
from functools import partial

import bench
import clients
import memory
from bench import Column, Effort, Numbers

CALLERS = 100

SLICES = 5
"""The parts of a round of blocking calls: the time of a wake-up changes from one second to the next."""

NAMES = ("publish", "add", "lock", "limit")
MICROSECONDS = [Column(name, less=True, digits=1) for name in NAMES]
RATES = [Column(name) for name in NAMES]


def blocking(open_client: clients.Open, url: str, seconds: float) -> Numbers:
    """Measure each call of one caller."""
    bench.clear(url)
    with open_client(url) as calls:
        return {name: bench.per_call(make(0), seconds) for name, make in calls.items()}


def concurrent(open_client: clients.OpenAsync, url: str, seconds: float, callers: int) -> Numbers:
    """Measure each call of many callers."""
    bench.clear(url)
    return asyncio.run(_concurrent(open_client, url, seconds, callers))


async def _concurrent(open_client: clients.OpenAsync, url: str, seconds: float, callers: int) -> Numbers:
    async with open_client(url) as calls:
        return {name: await bench.rate([make(n) for n in range(callers)], seconds) for name, make in calls.items()}


def on_server(url: str, effort: Effort) -> None:
    """Print the three tables of calls to a server."""
    contenders = {
        name: partial(blocking, each, url, effort.seconds / SLICES) for name, each in clients.BLOCKING.items()
    }
    legend = "in brackets: how many times better ailf is"
    rows = bench.play(effort.chosen(contenders), effort.runs * SLICES)
    bench.table(f"blocking, µs a call ({legend})", MICROSECONDS, rows)
    for callers in (1, CALLERS):
        contenders = {
            name: partial(concurrent, each, url, effort.seconds, callers) for name, each in clients.ASYNCIO.items()
        }
        title = f"asyncio, {callers} {'caller' if callers == 1 else 'callers'}, calls/s ({legend})"
        bench.table(title, RATES, bench.play(effort.chosen(contenders), effort.runs))


def in_memory(effort: Effort) -> None:
    """Print the cost of calls in memory, and the core's share of it."""
    contenders: Mapping[str, bench.Measure] = {
        name: partial(each, effort.seconds) for name, each in memory.CONTENDERS.items()
    }
    columns = [Column(name, less=True, digits=1) for name in memory.NAMES]
    bench.table(
        "memory, µs (in brackets: how many times better ailf is)",
        columns,
        bench.play(effort.chosen(contenders), effort.runs),
    )
    rows = bench.play({"core and driver": partial(memory.core, effort.seconds)}, effort.runs)
    for which in ("driver alone", "core's share"):
        rows[which] = bench.Row([{name: each[f"{name}, {which}"] for name in NAMES} for each in _rounds(rows)])
    bench.table("the core above the bare memory driver, blocking, µs a call", MICROSECONDS, rows)


def _rounds(rows: Mapping[str, bench.Row]) -> list[Numbers]:
    return rows["core and driver"].rounds


def main() -> None:
    """Measure the chosen contenders, and print the tables."""
    effort = bench.effort(__doc__)
    with bench.server() as url:
        on_server(url, effort)
    in_memory(effort)


if __name__ == "__main__":
    main()
