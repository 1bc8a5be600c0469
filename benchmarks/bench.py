"""What all benchmarks share: a server of their own, rounds in turn, medians, tables.

A contender is measured by a function that returns a number for each column. All contenders have their first round, then
all their second, and so on: what else the machine does meanwhile falls on all of them. What is printed are medians.
"""

import argparse
import asyncio
import contextlib
import importlib
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
"""The row that the others are compared with, and what the rows of ours begin with."""

BODY = bytes(range(32, 127)) + b"12345"
"""100 bytes, what most benchmarks send."""

Call = Callable[[], Any]
AsyncCall = Callable[[], Awaitable[Any]]
Numbers = Mapping[str, float]
"""What one round found, by column."""

Measure = Callable[[], Numbers]


class MissingPeerError(Exception):
    """A peer is not here; the message says why."""


def peer(name: str) -> Any:
    """Import a module of a peer's.

    Raises:
        MissingPeerError: It is not here.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = peers.missing().get(name.partition(".")[0], f"not installed ({error}); run make bench")
        raise MissingPeerError(reason) from error


# --- options and the server --------------------------------------------------------------------------------------


@attrs.frozen
class Effort:
    """How much is done.

    Attributes:
        quick: Whether a minute must do.
        runs: How many rounds, of which the median is told.
        only: The contenders that are asked for; none means all.
    """

    quick: bool
    runs: int
    only: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """How long one number is measured in one round."""
        return 0.1 if self.quick else 0.5

    def pick(self, quick: int, full: int) -> int:
        """Return how many."""
        return quick if self.quick else full

    def chosen(self, contenders: Mapping[str, Measure]) -> dict[str, Measure]:
        """Return those who take part."""
        return {name: each for name, each in contenders.items() if not self.only or name in self.only}


def effort(doc: str | None) -> Effort:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("contender", nargs="*", help="whom to measure, by the names in the tables; all unless told")
    parser.add_argument("--quick", action="store_true", help="less of everything, for a look")
    parser.add_argument("--runs", type=int, help="rounds, of which the median is told: 5, or 1 with --quick")
    options = parser.parse_args()
    return Effort(options.quick, options.runs or (1 if options.quick else 5), tuple(options.contender))


@contextlib.contextmanager
def server(url: str | None = None) -> Iterator[str]:
    """Use the server that is given, or start one on a free port and stop it at the end."""
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
    """Empty a server that was started for this."""
    with redis.Redis.from_url(url) as client:
        client.flushall()


# --- timing ------------------------------------------------------------------------------------------------------


def per_call(call: Call, seconds: float, *, batch: int = 50) -> float:
    """Return how many microseconds a call takes, made again and again for so long: the median of batches."""
    took = []
    until = time.perf_counter() + seconds
    while not took or time.perf_counter() < until:
        began = time.perf_counter()
        for _ in range(batch):
            call()
        took.append(time.perf_counter() - began)
    return statistics.median(took) / batch * 1e6


async def rate(calls: Sequence[AsyncCall], seconds: float, *, warm: int = 20) -> float:
    """Return how many calls a second many callers get done together: a task for each, one call after another."""
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
        name: Of the numbers.
        less: Whether less is better: a time, and not a rate.
        digits: After the point.
    """

    name: str
    less: bool = False
    digits: int = 0

    def cell(self, mine: float | None, ours: float | None) -> str:
        """Return a number, and how many times better ours is."""
        if mine is None:
            return "-"
        shown = f"{mine:,.{self.digits}f}"
        if ours is None or not mine or not ours:
            return f"{shown}        "
        ratio = mine / ours if self.less else ours / mine
        return f"{shown} {f'({ratio:.{1 if ratio >= 1 else 2}f}x)':>7}"


@attrs.define
class Row:
    """What a contender has shown.

    Attributes:
        rounds: What each found.
        trouble: Why it takes no part any more, or "".
    """

    rounds: list[Numbers] = attrs.field(factory=list)
    trouble: str = ""

    def median(self, column: str) -> float | None:
        """Return the median of a column; None where it was not measured."""
        found = [each[column] for each in self.rounds if column in each]
        return statistics.median(found) if found else None


def play(contenders: Mapping[str, Measure], runs: int) -> dict[str, Row]:
    """Let all have their rounds in turn, each time in another order; who fails is out, and the reason is kept."""
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
    except Exception as error:  # noqa: BLE001 - one that fails is told of, and the others go on
        row.trouble = f"failed: {type(error).__name__}: {error}".partition("\n")[0]


def table(title: str, columns: Sequence[Column], rows: Mapping[str, Row], ours: str = OURS) -> None:
    """Print medians, and in brackets how many times better the row of ours is."""
    reference = rows.get(ours, Row())
    print(f"\n{title}")
    print(f"{'':30}{''.join(f'{each.name:>22}' for each in columns)}")
    for name, row in rows.items():
        if row.trouble:
            print(f"{name:30}{row.trouble}")
            continue
        own = row is reference
        cells = [
            each.cell(row.median(each.name), None if own else reference.median(each.name)).rjust(22) for each in columns
        ]
        print(f"{name:30}{''.join(cells)}", flush=True)
