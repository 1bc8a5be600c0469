"""The sliding window: at most `limit` in any period of one length, counted in buckets."""

from typing import ClassVar

import attrs

from ailf.checks import valid_count
from ailf.errors import InvalidArgumentError
from ailf.limits.base import (
    LARGEST,
    MAX_BUCKETS,
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

__all__ = ["SlidingWindow", "SlidingWindowAlgorithm"]


@attrs.frozen(cache_hash=True)
class SlidingWindow(Limit):
    """A sliding window: at most `limit` in any ``per`` seconds, wherever they begin.

    Costs are counted in buckets of ``per / buckets`` seconds. The newest bucket counts until its last call is ``per``
    seconds old. An older bucket counts until the end of the bucket is ``per`` seconds old, which may be up to
    ``per / buckets`` seconds too long. No wait is longer than ``per``.

    Attributes:
        limit: The total cost that any window admits.
        per: The length of a window in seconds, to the millisecond.
        buckets: The number of buckets in a window, at most 64; more buckets count more finely.

    Example:
        >>> from ailf import SlidingWindow
        >>> str(SlidingWindow(100, per=3600, buckets=30))
        '100/hour sliding in 30'
    """

    code: ClassVar[str] = "s"

    limit: int = attrs.field(validator=valid_count)
    per: float = attrs.field(default=1.0, validator=valid_period)
    buckets: int = attrs.field(default=10, validator=valid_count)

    def __attrs_post_init__(self) -> None:
        """Raise for a limit that can't be counted exactly, or not in that many buckets."""
        check_size(f"a limit of {self.limit}", self.limit)
        if self.buckets > min(MAX_BUCKETS, self.per_ms):
            most = min(MAX_BUCKETS, self.per_ms)
            raise InvalidArgumentError(
                f"a window of {self.per:g} s can have at most {most} buckets, not {self.buckets}"
            )

    @property
    def per_ms(self) -> int:
        """The length of a window in milliseconds."""
        return round(self.per * 1000)

    @property
    def width_ms(self) -> int:
        """The width of a bucket in milliseconds, rounded up."""
        return -(-self.per_ms // self.buckets)

    @property
    def capacity(self) -> int:
        """The largest cost that can ever pass."""
        return self.limit

    @property
    def numbers(self) -> tuple[int, int, int]:
        """The width of a bucket and the length of a window in milliseconds, and the limit."""
        return self.width_ms, self.per_ms, self.limit

    @property
    def identity(self) -> str:
        """The kind, the width of a bucket and the length of a window."""
        return f"s{self.width_ms} {self.per_ms}"

    def algorithm(self) -> Algorithm:
        """Return its arithmetic."""
        return SlidingWindowAlgorithm(self)

    def __str__(self) -> str:
        buckets = "" if self.buckets == SlidingWindow(1, 1).buckets else f" in {self.buckets}"
        return f"{self.limit}/{period_text(self.per_ms)} sliding{buckets}"


class SlidingWindowAlgorithm(Algorithm):
    """The arithmetic of `SlidingWindow`: a state is (time of the last charge, charges by bucket from the newest).

    The time of the newest bucket's last charge is exact, so no wait is longer than the window.
    """

    def __init__(self, limit: SlidingWindow) -> None:
        self.width, self.per, self.capacity = limit.width_ms, limit.per_ms, limit.limit

    def _expiry(self, last: int, bucket: int) -> int:
        """Return the time from which a bucket no longer counts, given the time of the last charge."""
        return min(last, (bucket + 1) * self.width - 1) + self.per

    def _at(self, state: State, now: int) -> tuple[int, dict[int, int]]:
        """Return the effective time and the charges by bucket of those that still count, the newest first."""
        if not state:
            return now, {}
        last = state[0]
        latest, newest = max(now, last), last // self.width
        counted = {newest - age: count for age, count in enumerate(state[1:])}
        return latest, {bucket: count for bucket, count in counted.items() if self._expiry(last, bucket) > latest}

    def remaining(self, state: State, now: int) -> int:
        return max(0, self.capacity - sum(self._at(state, now)[1].values()))

    def ends(self, state: State) -> int:
        newest = state[0] // self.width if state else 0
        return next((self._expiry(state[0], newest - age) for age, count in enumerate(state[1:]) if count), 0)

    def wait(self, state: State, now: int, cost: int) -> int | None:
        if cost > self.capacity:
            return None
        _, counted = self._at(state, now)
        over = sum(counted.values()) + cost - self.capacity
        if not cost or over <= 0:
            return 0
        for bucket in sorted(counted):
            over -= counted[bucket]
            if over <= 0:
                return self._expiry(state[0], bucket) - now
        raise AssertionError("a cost within the capacity passes when every bucket has expired")

    def charge(self, state: State, now: int, cost: int, token: str) -> tuple[State, ChargeReceipt]:
        latest, counted = self._at(state, now)
        bucket = latest // self.width
        return self._add(latest, counted, bucket, cost), (bucket,)

    def take(self, state: State, now: int, cost: int) -> Taken | None:
        if not state or now >= state[0] + self.per:
            return super().take((), now, cost)
        last = state[0]
        latest, charged = max(now, last), last // self.width
        newest, oldest = latest // self.width, (latest + 1 - self.per) // self.width
        counts = state[1 : max(1, charged - oldest + 2)]  # the others have expired
        left = self.capacity - sum(counts) - cost
        if left < 0:
            return None
        older = counts[1:] if newest == charged else ((0,) * (newest - charged - 1) + counts)
        counts = (cost + (counts[0] if newest == charged else 0), *older)
        while not counts[-1]:
            counts = counts[:-1]
        return (latest, *counts), (newest,), left, latest + self.per - now

    def _add(self, last: int, counted: dict[int, int], bucket: int, cost: int) -> State:
        """Return the state after a charge in a bucket, where `last` is the time of the last charge."""
        counted[bucket] = max(0, min(counted.get(bucket, 0) + cost, LARGEST))
        first = max(min(counted), (last + 1 - self.per) // self.width)  # those before it have expired
        counts = [counted.get(each, 0) for each in range(last // self.width, first - 1, -1)]
        while len(counts) > 1 and not counts[-1]:
            counts.pop()
        return (last, *counts)

    def settle(self, state: State, now: int, receipt: ChargeReceipt, charged: int, actual: int) -> State:
        latest, counted = self._at(state, now)
        bucket = receipt[0]
        end = (bucket + 1) * self.width - 1
        last = state[0] if state and state[0] // self.width >= bucket else end
        if self._expiry(last, bucket) <= latest or not (state or actual > charged):
            return state
        return self._add(last, counted, bucket, actual - charged)

    def observe(self, state: State, now: int, remaining: int | None, reset_ms: int, pause_ms: int) -> State:
        latest, counted = self._at(state, now)
        over = self.remaining(state, now) - left_of_window(remaining, pause_ms, self.capacity)
        return self._add(latest, counted, latest // self.width, over) if over > 0 else state
