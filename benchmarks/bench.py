"""The parts that all benchmarks share: a server of their own, interleaved rounds, medians, tables.

A contender is measured by a function that returns a number for each column. All contenders play their first round, then
all their second, and so on, so that other load on the machine affects all of them. The tables show medians.
"""

import argparse
import asyncio
import contextlib
import importlib
import math
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import peers
import redis

OURS = "ailf"
"""The row that the others are compared with, and the prefix of all rows of ailf."""

BODY = bytes(range(32, 127)) + b"12345"
"""The 100 bytes that most benchmarks send."""

Call = Callable[[], Any]
AsyncCall = Callable[[], Awaitable[Any]]
Numbers = Mapping[str, float]
"""The results of one round, by column."""

Measure = Callable[[], Numbers]


class MissingPeerError(Exception):
    """A peer is not installed; the message says why."""


def peer(name: str) -> Any:
    """Import a module of a peer.

    Raises:
        MissingPeerError: The peer is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = peers.missing().get(name.partition(".")[0], f"not installed ({error}); run make bench")
        raise MissingPeerError(reason) from error


# --- options and the server --------------------------------------------------------------------------------------


@attrs.frozen
class Effort:
    """How much is measured.

    Attributes:
        quick: Whether to measure for about a minute only.
        runs: The number of rounds, whose median is shown.
        only: The contenders to measure; none means all.
    """

    quick: bool
    runs: int
    only: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Seconds for which one number is measured in one round."""
        return 0.1 if self.quick else 0.5

    def pick(self, quick: int, full: int) -> int:
        """Return one of two numbers, by `quick`."""
        return quick if self.quick else full

    def chosen(self, contenders: Mapping[str, Measure]) -> dict[str, Measure]:
        """Return the contenders to measure."""
        return {name: each for name, each in contenders.items() if not self.only or name in self.only}


def effort(doc: str | None) -> Effort:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("contender", nargs="*", help="the rows to measure, by their names in the tables; default: all")
    parser.add_argument("--quick", action="store_true", help="measure less of everything")
    parser.add_argument("--runs", type=int, help="the number of rounds, whose median is shown: 5, or 1 with --quick")
    options = parser.parse_args()
    return Effort(options.quick, options.runs or (1 if options.quick else 5), tuple(options.contender))


@contextlib.contextmanager
def server(url: str | None = None) -> Iterator[str]:
    """Use the server at `url`, or start one on a free port and stop it at the end."""
    if url is not None:
        yield url
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.support import binaries  # noqa: PLC0415 - only from a checkout
    from tests.support.servers import Server  # noqa: PLC0415 - as above

    version, binary = list(binaries.found().items())[-1]
    with Server.start(binary, version=version) as started:
        print(f"server {version}, Python {sys.version.split()[0]}", flush=True)
        yield started.url


def clear(url: str) -> None:
    """Delete everything on a server."""
    with redis.Redis.from_url(url) as client:
        client.flushall()


# --- timing ------------------------------------------------------------------------------------------------------


def per_call(call: Call, seconds: float, *, batch: int = 50) -> float:
    """Repeat a call for `seconds`; return how many microseconds it takes: the median over batches."""
    took = []
    until = time.perf_counter() + seconds
    while not took or time.perf_counter() < until:
        began = time.perf_counter()
        for _ in range(batch):
            call()
        took.append(time.perf_counter() - began)
    return statistics.median(took) / batch * 1e6


def least_cpu(call: Call, seconds: float, *, batch: int = 20) -> float:
    """Repeat a call for `seconds`; return the microseconds of this thread's CPU time that it takes.

    It is the least over batches: other programs on the machine make it rougher, and hardly larger.
    """
    least = math.inf
    until = time.perf_counter() + seconds
    while least == math.inf or time.perf_counter() < until:
        began = time.thread_time()
        for _ in range(batch):
            call()
        least = min(least, time.thread_time() - began)
    return least / batch * 1e6


async def rate(calls: Sequence[AsyncCall], seconds: float, *, warm: int = 20) -> float:
    """Return the calls per second of many callers together; each is a task that makes one call after another."""
    done = 0
    until = 0.0

    async def repeat(call: AsyncCall) -> None:
        nonlocal done
        while time.perf_counter() < until:
            await call()
            done += 1

    await asyncio.gather(*(_times(call, warm) for call in calls))
    began = time.perf_counter()
    until = began + seconds
    await asyncio.gather(*map(repeat, calls))
    return done / (time.perf_counter() - began)


async def _times(call: AsyncCall, count: int) -> None:
    for _ in range(count):
        await call()


# --- rounds and tables -------------------------------------------------------------------------------------------


@attrs.frozen
class Column:
    """A column of a table.

    Attributes:
        name: The key of its numbers, and its title.
        less: Whether less is better, as of a time and not of a rate.
        digits: The digits behind the point.
    """

    name: str
    less: bool = False
    digits: int = 0

    def cell(self, value: float | None, ours: float | None) -> str:
        """Return a number, and how many times better ailf's is."""
        if value is None:
            return "-"
        number = f"{value:,.{self.digits}f}"
        if ours is None or not value or not ours:
            return f"{number}        "
        ratio = value / ours if self.less else ours / value
        return f"{number} {f'({ratio:.{1 if ratio >= 1 else 2}f}x)':>7}"


@attrs.define
class Row:
    """The results of a contender.

    Attributes:
        rounds: The results of each round.
        trouble: The reason why it is not measured any more, or "".
    """

    rounds: list[Numbers] = attrs.field(factory=list)
    trouble: str = ""

    def median(self, column: str) -> float | None:
        """Return the median of a column, or None if it was not measured."""
        values = [each[column] for each in self.rounds if column in each]
        return statistics.median(values) if values else None


def play(contenders: Mapping[str, Measure], runs: int) -> dict[str, Row]:
    """Play all rounds, each time in another order; a contender that fails is left out from then on, with the reason."""
    rows = {name: Row() for name in contenders}
    for _ in range(runs):
        for name in random.sample(list(contenders), len(contenders)):
            if not rows[name].trouble:
                _round(contenders[name], rows[name])
    return rows


def _round(measure: Measure, row: Row) -> None:
    try:
        row.rounds.append(measure())
    except MissingPeerError as error:
        row.trouble = f"not installed: {error}"
    except Exception as error:  # noqa: BLE001 - the table shows the failure, and the others go on
        row.trouble = f"failed: {type(error).__name__}: {error}".partition("\n")[0]


def table(title: str, columns: Sequence[Column], rows: Mapping[str, Row], ours: str = OURS) -> None:
    """Print medians, and in brackets how many times better the row `ours` is."""
    reference = rows.get(ours, Row())
    print(f"\n{title}")
    print(f"{'':27}{''.join(f'{each.name:>18}' for each in columns)}")
    for name, row in rows.items():
        if row.trouble:
            print(f"{name:27}{row.trouble}")
            continue
        own = row is reference
        cells = [
            each.cell(row.median(each.name), None if own else reference.median(each.name)).rjust(18) for each in columns
        ]
        print(f"{name:27}{''.join(cells)}", flush=True)
