"""The fixed window: at most `limit` in each period; the count begins at 0 in the next one."""

from typing import ClassVar

import attrs

from ailf.checks import valid_count
from ailf.limits.base import (
    LARGEST,
    Algorithm,
    ChargeReceipt,
    Limit,
    State,
    Taken,
    check_size,
    left_of_window,
    period_text,
    valid_period,
)

__all__ = ["FixedWindow", "FixedWindowAlgorithm"]


@attrs.frozen(cache_hash=True)
class FixedWindow(Limit):
    """A fixed window: at most `limit` in each window of ``per`` seconds.

    Windows begin at whole multiples of ``per`` on the backend's clock. Up to twice the limit can pass around the end of
    a window; `SlidingWindow` doesn't allow that.

    Attributes:
        limit: The total cost that a window admits.
        per: The length of a window in seconds, to the millisecond.

    Example:
        >>> from ailf import FixedWindow
        >>> str(FixedWindow(1000, per=86_400))
        '1000/day fixed'
    """

    code: ClassVar[str] = "f"

    limit: int = attrs.field(validator=valid_count)
    per: float = attrs.field(default=1.0, validator=valid_period)

    def __attrs_post_init__(self) -> None:
        """Raise for a limit that can't be counted exactly."""
        check_size(f"a limit of {self.limit}", self.limit)

    @property
    def per_ms(self) -> int:
        """The length of a window in milliseconds."""
        return round(self.per * 1000)

    @property
    def capacity(self) -> int:
        """The largest cost that can ever pass."""
        return self.limit

    @property
    def numbers(self) -> tuple[int, int, int]:
        """The length of a window in milliseconds, and the limit."""
        return self.per_ms, self.limit, 0

    @property
    def identity(self) -> str:
        """The kind and the period."""
        return f"f {self.per_ms}"

    def algorithm(self) -> Algorithm:
        """Return its arithmetic."""
        return FixedWindowAlgorithm(self)

    def __str__(self) -> str:
        return f"{self.limit}/{period_text(self.per_ms)} fixed"


class FixedWindowAlgorithm(Algorithm):
    """The arithmetic of `FixedWindow`: a state is (begin of the window, total charge in it)."""

    def __init__(self, limit: FixedWindow) -> None:
        self.per, self.capacity = limit.per_ms, limit.limit

    def _at(self, state: State, now: int) -> tuple[int, int]:
        """Return the begin of the current window and the total charge in it."""
        begin = now - now % self.per
        return (state[0], state[1]) if state and state[0] >= begin else (begin, 0)

    def remaining(self, state: State, now: int) -> int:
        return max(0, self.capacity - self._at(state, now)[1])

    def ends(self, state: State) -> int:
        return state[0] + self.per if state and state[1] else 0

    def wait(self, state: State, now: int, cost: int) -> int | None:
        if cost > self.capacity:
            return None
        begin, used = self._at(state, now)
        return begin + self.per - now if cost and used + cost > self.capacity else 0

    def charge(self, state: State, now: int, cost: int, token: str) -> tuple[State, ChargeReceipt]:
        begin, used = self._at(state, now)
        return (begin, min(used + cost, LARGEST)), (begin,)

    def take(self, state: State, now: int, cost: int) -> Taken | None:
        begin, used = self._at(state, now)
        left = self.capacity - used - cost
        return None if left < 0 else ((begin, used + cost), (begin,), left, begin + self.per - now)

    def settle(self, state: State, now: int, receipt: ChargeReceipt, charged: int, actual: int) -> State:
        begin, used = self._at(state, now)
        if receipt[0] != begin or not (state or actual > charged):
            return state
        return begin, max(0, min(used + actual - charged, LARGEST))

    def observe(self, state: State, now: int, remaining: int | None, reset_ms: int, pause_ms: int) -> State:
        begin, used = self._at(state, now)
        target = self.capacity - min(left_of_window(remaining, pause_ms, self.capacity), self.capacity)
        return (begin, target) if target > used else state
