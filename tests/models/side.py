"""A driver as the machine plays it, and how it is compared with the model.

Backends name entries, dead letters and leases in their own ways: a side knows which of its names is which number of the
model's.
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
from tests.models.stream_model import Entry, Found, Letter, Stands

__all__ = ["MOST", "NEVER", "MemorySide", "Side", "Times", "Timing", "Wanted"]

NEVER = 1e9
"""Seconds that don't pass in any example."""

MOST = 3
"""How often an entry is delivered at most, unless it says otherwise."""

INEXACT = 5.0
"""Seconds by which a side that isn't exact may differ: the real ones that an example takes."""


@attrs.frozen
class Times:
    """How long things take, in seconds.

    Attributes:
        tick: What passes after each step.
        lease: Of every fetch.
        alive: How long a sign of life counts.
        delays: Of nacks.
        extensions: What leases are extended by.
        waits: Until an added entry may be delivered.
        windows: Of dedup ids.
        ages: Up to which entries are kept; None for any.
        passing: What passes in a step.
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
    """How an entry that is added comes by its time."""

    NONE = enum.auto()
    DELAY = enum.auto()
    AT = enum.auto()
    PAST = enum.auto()
    BOTH = enum.auto()


@attrs.frozen
class Wanted:
    """An entry to be added; ``wait`` is which of `Times.waits` its time is from now, as a delay, a time, or both."""

    key: str = ""
    timing: Timing = Timing.NONE
    wait: int = 0
    most: int | None = None

    def seconds(self, times: Times) -> tuple[float, float]:
        """Return its delay, and how far its time is from now."""
        wait, other = times.waits[self.wait], times.waits[self.wait - 1]
        known = {Timing.DELAY: (wait, -NEVER), Timing.AT: (0.0, wait), Timing.BOTH: (wait, other)}
        return known.get(self.timing, (0.0, -NEVER))


def body_of(number: int) -> bytes:
    """Return the body of an entry."""
    return b"%d" % number


def headers_of(number: int) -> dict[str, str]:
    """Return the headers of an entry; every other one has some."""
    return {"number": str(number)} if number % 2 else {}


class Side(ABC):
    """A driver that is played.

    Attributes:
        driver: The driver.
        stream: The stream's name.
        exact: Whether its clock is ours, so that times and the ages of entries are the model's.
        whole: Whether a fetch does all that can be done, and not a bounded part of it.
        ids: Its ids of the entries, by number.
        letters: Its ids of the dead letters, by number.
        receipts: Every one it has given out, with its group.
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
        """Leave nothing behind."""
        self.ask("delete")

    def draft(self, asked: Wanted, number: int, times: Times) -> Draft:
        """Return what to add."""
        delay, at = asked.seconds(times)
        at = self.now() + at if at > 0 else float(asked.timing is Timing.PAST)
        return Draft(body_of(number), headers_of(number), key=asked.key, delay=delay, at=at, max_deliveries=asked.most)

    # --- steps ---------------------------------------------------------------------------------------------------

    def ask(self, method: str, *args: Any, **options: Any) -> Any:
        """Make a step."""
        return run(getattr(self.driver, method)(self.stream, *args, **options))

    def is_full(self, method: str, *args: Any, **options: Any) -> bool:
        """Tell whether a step finds no room."""
        try:
            self.ask(method, *args, **options)
        except StreamFullError:
            return True
        return False

    def fetch(self, group: str, consumer: str, count: int, times: Times) -> Fetched:
        """Fetch until there are so many, or no more."""
        options = {"lease": times.lease, "alive": times.alive, "max_deliveries": MOST}
        claims: list[Claim] = []
        dead: list[str] = []
        reset = False
        while True:
            found = cast(Fetched, self.ask("fetch", group, consumer, count=count - len(claims), **options))
            claims += found.claims
            dead += found.dead
            reset |= found.reset
            if self.whole or found.position is not None or len(claims) >= count:
                return replace(found, claims=claims, dead=dead, reset=reset)

    # --- agreement -----------------------------------------------------------------------------------------------

    def agree_on_records(self, records: Sequence[Record], entries: Sequence[Entry]) -> None:
        """Compare entries, one by one."""
        numbers = [entry.number for entry in entries]
        assert [record.id for record in records] == [self.ids[number] for number in numbers]
        assert [record.body for record in records] == [body_of(number) for number in numbers]
        assert [record.headers for record in records] == [headers_of(number) for number in numbers]

    def agree_on_fetched(self, group: str, answer: Fetched, found: Found, *, full: bool) -> None:
        """Compare what was fetched; one that is full knows no more than that."""
        self.agree_on_records([each.record for each in answer.claims], [claim.entry for claim in found.claims])
        assert [each.attempt for each in answer.claims] == [claim.attempt for claim in found.claims]
        assert list(answer.dead) == [self.ids[number] for number in found.dead]
        assert answer.reset == found.reset
        receipts = {(group, each.receipt) for each in answer.claims}
        assert len(receipts) == len(answer.claims)
        assert not receipts & self.receipts, "a receipt was given out twice"
        self.receipts |= receipts
        if not full:
            self._agree_on_time(answer.next_due, found.upcoming)

    def agree_on_letters(self, group: str, expected: Sequence[Letter]) -> None:
        """Compare dead letters, one by one, and that they can be read in pages."""
        letters = self.ask("dead_letters", group, "", 1000)
        assert [letter.origin for letter in letters] == [self.ids[its.entry.number] for its in expected]
        for letter, its in zip(letters, expected, strict=True):
            assert self.letters.setdefault(its.number, letter.id) == letter.id
            assert (letter.body, letter.headers) == (body_of(its.entry.number), headers_of(its.entry.number))
            assert (letter.reason, letter.error, letter.attempts) == (its.reason, its.error, its.attempts)
        if len(letters) > 1:
            assert self.ask("dead_letters", group, letters[0].id, 1) == letters[1:2]

    def agree_on_info(self, group: str, stands: Stands) -> None:
        """Compare what `info` says."""
        info = self.ask("info", group)
        if not self.exact:  # how old an entry is
            assert (info.oldest is None) == (stands.oldest is None)
            info = replace(info, oldest=stands.oldest)
        assert msgspec.structs.asdict(info) == attrs.asdict(stands)

    def _agree_on_time(self, told: float | None, expected: float | None) -> None:
        """Compare times that are to come; beyond all examples they are all the same."""
        assert (told is None) == (expected is None)
        if told is not None and expected is not None:
            off = abs(min(told, NEVER / 2) - min(expected, NEVER / 2))
            assert off <= (0.0 if self.exact else INEXACT)


class MemorySide(Side):
    """A store with a clock that is moved."""

    exact = whole = True

    def __init__(self) -> None:
        self.clock = ManualClock()
        super().__init__(MemoryDriver(MemoryStore(self.clock), ThreadRuntime()).stream(), "tasks")

    def now(self) -> float:
        """Return the clock's time."""
        return self.clock.now_ms() / 1000

    def let_pass(self, seconds: float) -> None:
        """Move the clock."""
        self.clock.advance(seconds)
