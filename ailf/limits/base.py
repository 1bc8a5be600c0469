"""What every limit is made of: the value (`Limit`), its arithmetic (`Algorithm`), and the state of a key.

The arithmetic is pure, on integers, and the reference for every backend. Time is the backend's, in milliseconds. A
state is a tuple, ``()`` where nothing was ever charged. If time steps back, the latest time that a state has seen
counts on (R6). A limit may change while its state is there (R12).

A new kind of limit is a file beside this one, with a value and an algorithm, and a file in ``ailf_redis/lua``.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final, TypeAlias

import attrs

from ailf.checks import valid_seconds
from ailf.errors import InvalidArgumentError

__all__ = [
    "FLOORS",
    "LARGEST",
    "MAX_BUCKETS",
    "NAMED",
    "Algorithm",
    "ChargeReceipt",
    "Limit",
    "State",
    "Taken",
    "check_size",
    "left_of_window",
    "period_text",
    "valid_period",
]

LARGEST: Final = 2**53
"""What no number may exceed."""

MAX_BUCKETS = 64
NAMED = {1000: "second", 60_000: "minute", 3_600_000: "hour", 86_400_000: "day"}


def valid_period(value: Any, field: "attrs.Attribute[float]", seconds: float) -> None:
    """Check a period: seconds above 0, to the millisecond."""
    valid_seconds(value, field, seconds)
    if abs(seconds * 1000 - round(seconds * 1000)) > 1e-6 * seconds:
        raise InvalidArgumentError(f"{field.name} must be a whole number of milliseconds, not {seconds!r} s")


def check_size(what: str, size: int) -> None:
    """Refuse a number that not every backend can count exactly to."""
    if size > LARGEST:
        raise InvalidArgumentError(f"{what} is more than 2**53, which not every backend can count exactly to")


def period_text(milliseconds: int) -> str:
    """Return a period as `parse_limit` reads it."""
    return NAMED.get(milliseconds) or f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".") + "s"


State: TypeAlias = tuple[Any, ...]
ChargeReceipt: TypeAlias = tuple[Any, ...]
"""What a charge is remembered by when it is settled."""

Taken: TypeAlias = tuple[State, ChargeReceipt, int, int]
"""What became of a charge that passed: the state, its mark, what remains, ms until it is as good as fresh."""

FLOORS: Final = 4
"""How many lows of a bucket's debt are remembered."""


class Limit(ABC):
    """A limit of a `RateLimiter`: a `TokenBucket`, a `FixedWindow`, a `SlidingWindow` or a `Concurrency`.

    Attributes:
        code: The letter by which scripts know the kind.
        leased: Whether each call holds a lease for as long as it takes.
        reservable: Whether a call can be charged in advance, by `RateLimiter.reserve`.
        longest_wait: Seconds: the longest that `RateLimiter.observe` can be told.
    """

    __slots__ = ()

    code: ClassVar[str]
    leased: ClassVar[bool] = False
    reservable: ClassVar[bool] = False

    @property
    def longest_wait(self) -> float:
        """Seconds: the longest wait that can be observed."""
        return float("inf")

    @property
    @abstractmethod
    def capacity(self) -> int:
        """The largest cost that can ever pass."""

    @property
    @abstractmethod
    def numbers(self) -> tuple[int, int, int]:
        """The limit as backends count by it, in milliseconds and whole units; 0 where the kind has no number."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What a key's state depends on: where it differs, the state of another limit is not taken over (R12)."""

    @abstractmethod
    def algorithm(self) -> "Algorithm":
        """Return the arithmetic of this limit."""


class Algorithm(ABC):
    """One limit's arithmetic.

    Attributes:
        capacity: The largest cost that can ever pass.
    """

    capacity: int

    @abstractmethod
    def remaining(self, state: State, now: int) -> int:
        """Return the largest cost that passes now (R4)."""

    @abstractmethod
    def ends(self, state: State) -> int:
        """Return the time from which the state is as good as fresh; 0 for a fresh one."""

    @abstractmethod
    def wait(self, state: State, now: int, cost: int) -> int | None:
        """Return after how many ms a cost passes if nothing else happens: 0 for now, None for never (R3)."""

    @abstractmethod
    def charge(self, state: State, now: int, cost: int, token: str) -> tuple[State, ChargeReceipt]:
        """Charge a cost, whether it fits or not; the token tells whose it is."""

    def take(self, state: State, now: int, cost: int) -> "Taken | None":
        """Charge a cost, which isn't 0 and nobody's, if it passes now; return None if it doesn't.

        It says in one step what `wait`, `charge`, `remaining` and `ends` say, as nearly every call is one that passes.
        """
        if self.wait(state, now, cost) != 0:
            return None
        after, receipt = self.charge(state, now, cost, "")
        return after, receipt, self.remaining(after, now), self.ends(after) - now

    @abstractmethod
    def settle(self, state: State, now: int, receipt: ChargeReceipt, charged: int, actual: int) -> State:
        """Return the state as though ``actual`` had been charged instead, when it was (R7)."""

    @abstractmethod
    def observe(self, state: State, now: int, remaining: int | None, reset_ms: int, pause_ms: int) -> State:
        """Return a state that lets no more pass than this; it never lets more pass than before.

        Arguments:
            state: What is known.
            now: The time.
            remaining: What may pass now; None where that isn't known.
            reset_ms: How long it is at least until everything may pass again, for a bucket.
            pause_ms: How long nothing may pass, for a bucket.
        """

    def true_up(self, state: State, now: int, token: str, receipt: ChargeReceipt, charged: int, actual: int) -> State:
        """Return the state as `settle` does; a call that was charged nothing is charged now."""
        if charged:
            return self.settle(state, now, receipt or (token,), charged, actual)
        return self.charge(state, now, actual, token)[0] if actual else state

    def without(self, state: State, token: str) -> State:
        """Return the state without what somebody has who asks again."""
        return state


def left_of_window(remaining: int | None, pause_ms: int, capacity: int) -> int:
    """Return what may pass of a window that nothing more is known of."""
    return 0 if pause_ms else capacity if remaining is None else remaining
