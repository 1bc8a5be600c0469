"""A stream driver under test, and its comparison with the model.

Backends have their own ids of entries, dead letters and leases; a side maps the model's numbers to them.
"""

import enum
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import attrs
import msgspec
from msgspec.structs import replace

from ailf.driver import Claim, Draft, Fetched, Receipt, Record, StreamDriver
from ailf.errors import StreamFullError
from ailf.runtime import ThreadRuntime, run
from ailf.testing import ManualClock
from ailf_memory import MemoryStore
from ailf_memory.driver import MemoryDriver
from tests.models.stream_model import Entry, Found, Info, Letter
from tests.support.one_partition import NUMBER, ONE, OnePartitionDriver

__all__ = ["MOST", "NEVER", "MemorySide", "PartitionedSide", "Side", "Times", "Timing", "Wanted"]

NEVER = 1e9
"""Seconds: longer than any example."""

MOST = 3
"""The groups' `max_deliveries`."""

INEXACT = 5.0
"""Seconds by which a side that isn't exact may differ, as an example takes real time."""


@attrs.frozen
class Times:
    """The durations of the steps, in seconds.

    Attributes:
        tick: The time that passes after each step.
        lease: The lease of each fetch.
        alive: How long a heartbeat counts.
        delays: The delays of settlements.
        extensions: The leases that an extend asks for.
        waits: The delays of added entries.
        windows: The windows of dedup ids.
        ages: The `max_age` of retentions.
        passing: The time that a `wait` step lets pass.
    """

    tick: float
    lease: float
    alive: float
    delays: Sequence[float]
    extensions: Sequence[float]
    waits: Sequence[float]
    windows: Sequence[float]
    ages: Sequence[float | None]
    passing: Sequence[float]


class Timing(enum.Enum):
    """How an added entry is scheduled."""

    NONE = enum.auto()
    DELAY = enum.auto()
    AT = enum.auto()
    PAST = enum.auto()
    BOTH = enum.auto()


@attrs.frozen
class Wanted:
    """An entry to add; ``wait`` is the index in `Times.waits` of its delay, its time, or both."""

    key: str = ""
    timing: Timing = Timing.NONE
    wait: int = 0
    most: int | None = None

    def seconds(self, times: Times) -> tuple[float, float]:
        """Return its delay, and the seconds from now to its time."""
        wait, other = times.waits[self.wait], times.waits[self.wait - 1]
        schedules = {Timing.DELAY: (wait, -NEVER), Timing.AT: (0.0, wait), Timing.BOTH: (wait, other)}
        return schedules.get(self.timing, (0.0, -NEVER))


def body_of(number: int) -> bytes:
    """Return the body of an entry."""
    return b"%d" % number


def headers_of(number: int) -> dict[str, str]:
    """Return the headers of an entry; every other one has some."""
    return {"number": str(number)} if number % 2 else {}


class Side(ABC):
    """A stream driver under test.

    Attributes:
        driver: The driver.
        stream: The stream's name.
        exact: Whether the machine controls its clock, so that times and ages equal those of the model.
        whole: Whether one fetch returns all that it can, and not a bounded part.
        ids: The ids of its entries, by the model's number.
        letters: The ids of its dead letters, by the model's number.
        receipts: All receipts that it has returned, with their groups.
    """

    exact = False
    whole = False

    def __init__(self, driver: StreamDriver, stream: str) -> None:
        self.driver = driver
        self.stream = stream
        self.ids: list[str] = []
        self.letters: dict[int, str] = {}
        self.receipts: set[tuple[str, Receipt]] = set()

    @abstractmethod
    def now(self) -> float:
        """Return the time, in seconds since 1970."""

    @abstractmethod
    def let_pass(self, seconds: float) -> None:
        """Let time pass."""

    def close(self) -> None:
        """Delete the stream."""
        self.call("delete")

    def draft(self, entry: Wanted, number: int, times: Times) -> Draft:
        """Return the draft of an entry."""
        delay, at = entry.seconds(times)
        at = self.now() + at if at > 0 else float(entry.timing is Timing.PAST)
        return Draft(body_of(number), headers_of(number), key=entry.key, delay=delay, at=at, max_deliveries=entry.most)

    # --- steps ---------------------------------------------------------------------------------------------------

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the driver for the stream."""
        return run(getattr(self.driver, method)(self.stream, *args, **options))

    def is_full(self, method: str, *args: Any, **options: Any) -> bool:
        """Return whether a call raises StreamFullError."""
        try:
            self.call(method, *args, **options)
        except StreamFullError:
            return True
        return False

    def fetch(self, group: str, consumer: str, count: int, times: Times, width: int = 1) -> Fetched:
        """Fetch until there are `count` claims, or no more entries."""
        options = {"lease": times.lease, "alive": times.alive, "max_deliveries": MOST, "key_concurrency": width}
        claims: list[Claim] = []
        dead: list[str] = []
        reset = False
        while True:
            fetched = cast(Fetched, self.call("fetch", group, consumer, count=count - len(claims), **options))
            claims += fetched.claims
            dead += fetched.dead
            reset |= fetched.reset
            if self.whole or fetched.position is not None or len(claims) >= count:
                return replace(fetched, claims=claims, dead=dead, reset=reset)

    # --- agreement -----------------------------------------------------------------------------------------------

    def agree_on_records(self, records: Sequence[Record], entries: Sequence[Entry]) -> None:
        """Compare entries, one by one."""
        numbers = [entry.number for entry in entries]
        assert [record.id for record in records] == [self.ids[number] for number in numbers]
        assert [record.body for record in records] == [body_of(number) for number in numbers]
        assert [record.headers for record in records] == [headers_of(number) for number in numbers]

    def agree_on_fetched(self, group: str, fetched: Fetched, expected: Found, *, full: bool) -> None:
        """Compare the result of a fetch; a full one, of `count` claims, need not know when the next entry is due."""
        self.agree_on_records([each.record for each in fetched.claims], [claim.entry for claim in expected.claims])
        assert [each.attempt for each in fetched.claims] == [claim.attempt for claim in expected.claims]
        assert list(fetched.dead) == [self.ids[number] for number in expected.dead]
        assert fetched.reset == expected.reset
        receipts = {(group, each.receipt) for each in fetched.claims}
        assert len(receipts) == len(fetched.claims)
        assert not receipts & self.receipts, "a receipt was returned twice"
        self.receipts |= receipts
        if not full:
            self._agree_on_time(fetched.next_due, expected.upcoming)

    def agree_on_letters(self, group: str, expected: Sequence[Letter]) -> None:
        """Compare dead letters, one by one, and read a page of them."""
        letters = self.call("dead_letters", group, "", 1000)
        assert [letter.record.id for letter in letters] == [self.ids[its.entry.number] for its in expected]
        for letter, its in zip(letters, expected, strict=True):
            assert self.letters.setdefault(its.number, letter.id) == letter.id
            record, number = letter.record, its.entry.number
            assert (record.body, record.headers, record.key) == (body_of(number), headers_of(number), its.entry.key)
            assert (letter.reason, letter.error, letter.attempts) == (its.reason, its.error, its.attempts)
        if len(letters) > 1:
            assert self.call("dead_letters", group, letters[0].id, 1) == letters[1:2]

    def agree_on_info(self, group: str, expected: Info) -> None:
        """Compare the result of `info`."""
        info = self.call("info", group)
        if not self.exact:  # ages differ
            assert (info.oldest is None) == (expected.oldest is None)
            info = replace(info, oldest=expected.oldest)
        assert msgspec.structs.asdict(info) == attrs.asdict(expected)

    def _agree_on_time(self, seconds: float | None, expected: float | None) -> None:
        """Compare the seconds until a time; those longer than any example count as equal."""
        assert (seconds is None) == (expected is None)
        if seconds is not None and expected is not None:
            off = abs(min(seconds, NEVER / 2) - min(expected, NEVER / 2))
            assert off <= (0.0 if self.exact else INEXACT)


class MemorySide(Side):
    """The memory backend with a manual clock."""

    exact = whole = True

    def __init__(self) -> None:
        self.clock = ManualClock()
        super().__init__(MemoryDriver(MemoryStore(self.clock), ThreadRuntime()).stream(), "tasks")

    def now(self) -> float:
        """Return the time of the clock."""
        return self.clock.now_ms() / 1000

    def let_pass(self, seconds: float) -> None:
        """Move the clock."""
        self.clock.advance(seconds)


class PartitionedSide(MemorySide):
    """The same over a partitioned stream, all of whose messages go to one partition."""

    whole = False

    def __init__(self) -> None:
        super().__init__()
        self.driver = OnePartitionDriver(self.driver, self.stream, ThreadRuntime(self.clock))

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the driver; a trim begins and ends with the partition that has the messages."""
        if method == "delete":  # without a number it would delete marked partitions only
            super().call("declare", NUMBER)
        if method != "trim":
            return super().call(method, *args, **options)
        options["after"] = options.get("after") or f"{ONE}:"
        swept = super().call(method, *args, **options)
        return replace(swept, after="" if swept.after == f"{ONE + 1}:" else swept.after)

    def _agree_on_time(self, seconds: float | None, expected: float | None) -> None:
        """Compare the seconds until a time, or until an earlier fetch that finds dead consumers."""
        assert (seconds is None) == (expected is None)
        if seconds is not None and expected is not None:
            assert seconds <= expected
