"""The base classes of limits: the value (`Limit`) and its arithmetic on the state of a key (`Algorithm`).

The arithmetic is pure, on integers, and the reference for every backend. Time is the backend's, in milliseconds. A
state is a tuple; ``()`` is the state without a charge. If time steps back, the latest time in the state counts (R6).
A limit may change while a key has state (R12).

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
"""The largest number in a state: every backend counts exactly up to it."""

MAX_BUCKETS = 64
NAMED = {1000: "second", 60_000: "minute", 3_600_000: "hour", 86_400_000: "day"}


def valid_period(value: Any, field: "attrs.Attribute[float]", seconds: float) -> None:
    """Check a period: seconds above 0, in whole milliseconds."""
    valid_seconds(value, field, seconds)
    if abs(seconds * 1000 - round(seconds * 1000)) > 1e-6 * seconds:
        raise InvalidArgumentError(f"{field.name} must be a whole number of milliseconds, not {seconds!r} s")


def check_size(what: str, size: int) -> None:
    """Raise for a number that is too large for an exact count."""
    if size > LARGEST:
        raise InvalidArgumentError(f"{what} is too large: backends count exactly up to 2**53")


def period_text(milliseconds: int) -> str:
    """Return a period as `parse_limit` reads it."""
    return NAMED.get(milliseconds) or f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".") + "s"


State: TypeAlias = tuple[Any, ...]
ChargeReceipt: TypeAlias = tuple[Any, ...]
"""The data by which a limit settles a charge later."""

Taken: TypeAlias = tuple[State, ChargeReceipt, int, int]
"""The result of a charge that passed: the state, the receipt, the remaining cost, the ms to full capacity."""

FLOORS: Final = 4
"""The number of lows of a bucket's debt that are kept."""


class Limit(ABC):
    """A limit of a `RateLimiter`: a `TokenBucket`, a `FixedWindow`, a `SlidingWindow` or a `Concurrency`.

    Attributes:
        code: The letter that stands for the kind in scripts.
        leased: Whether each call holds leased slots until it ends.
        reservable: Whether a call can be charged in advance, by `RateLimiter.reserve`.
        longest_wait: The longest wait in seconds that `RateLimiter.observe` can take into account.

    Example:
        >>> from ailf import Limit, parse_limit
        >>> isinstance(parse_limit("60/minute"), Limit)
        True
    """

    __slots__ = ()

    code: ClassVar[str]
    leased: ClassVar[bool] = False
    reservable: ClassVar[bool] = False

    @property
    def longest_wait(self) -> float:
        """The longest wait in seconds that can be observed."""
        return float("inf")

    @property
    @abstractmethod
    def capacity(self) -> int:
        """The largest cost that can ever pass."""

    @property
    @abstractmethod
    def numbers(self) -> tuple[int, int, int]:
        """The three numbers that backends count by, in milliseconds and whole units; 0 where the kind needs fewer."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """The part of the limit that its states depend on: a limit takes over states of the same identity."""

    @abstractmethod
    def algorithm(self) -> "Algorithm":
        """Return the arithmetic of this limit."""


class Algorithm(ABC):
    """The arithmetic of one limit.

    >>> import ailf
    >>> bucket = ailf.TokenBucket(10, per=1.0).algorithm()
    >>> bucket.capacity, bucket.wait((), 0, 11)
    (10, None)

    Attributes:
        capacity: The largest cost that can ever pass.
    """

    capacity: int

    @abstractmethod
    def remaining(self, state: State, now: int) -> int:
        """Return the largest cost that passes now (R4)."""

    @abstractmethod
    def ends(self, state: State) -> int:
        """Return the time from which the limit has its full capacity and needs no state; 0 without a charge."""

    @abstractmethod
    def wait(self, state: State, now: int, cost: int) -> int | None:
        """Return the ms until a cost passes if nothing else is charged: 0 for now, None for never (R3)."""

    @abstractmethod
    def charge(self, state: State, now: int, cost: int, token: str) -> tuple[State, ChargeReceipt]:
        """Charge a cost, whether it fits or not. The token identifies the call."""

    def take(self, state: State, now: int, cost: int) -> "Taken | None":
        """Charge a cost above 0 without a token if it passes now, else return None.

        This is the fast path, as nearly every call passes: `wait`, `charge`, `remaining` and `ends` in one step.
        """
        if self.wait(state, now, cost) != 0:
            return None
        after, receipt = self.charge(state, now, cost, "")
        return after, receipt, self.remaining(after, now), self.ends(after) - now

    @abstractmethod
    def settle(self, state: State, now: int, receipt: ChargeReceipt, charged: int, actual: int) -> State:
        """Return the state as though `actual` had been charged instead, at the time of the charge (R7)."""

    @abstractmethod
    def observe(self, state: State, now: int, remaining: int | None, reset_ms: int, pause_ms: int) -> State:
        """Return the state lowered to a provider's report; it never lets more pass than before.

        Arguments:
            state: The state.
            now: The time.
            remaining: The cost that may pass now; None if it is not reported.
            reset_ms: The least time until a bucket is back at full capacity; windows ignore it.
            pause_ms: The time for which a bucket lets nothing pass; a window lets nothing pass until it is over.
        """

    def true_up(self, state: State, now: int, token: str, receipt: ChargeReceipt, charged: int, actual: int) -> State:
        """Return the state as `settle` does; a call without a charge is charged now."""
        if charged:
            return self.settle(state, now, receipt or (token,), charged, actual)
        return self.charge(state, now, actual, token)[0] if actual else state

    def without(self, state: State, token: str) -> State:
        """Return the state without the slots of a token, whose request is repeated."""
        return state


def left_of_window(remaining: int | None, pause_ms: int, capacity: int) -> int:
    """Return the cost that may pass in the current window according to a provider's report."""
    return 0 if pause_ms else capacity if remaining is None else remaining
