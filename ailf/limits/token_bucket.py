"""The token bucket: holds up to `burst` tokens and is refilled at a steady rate.

Its state keeps no tokens but a debt, in units of cost times the period, of which `rate` leaks away per millisecond: so
nothing is ever rounded. (The generic cell rate algorithm of ITU-T I.371 is the same bucket with the debt counted in
time.) It also keeps how low the debt has been since when, coarsely: a charge that is taken back later can only give
back what would still be owed without it (R7).

A debt above the capacity is one of two things (R12). Either this limit charged it, in advance or beyond what there was:
then it counts. Or a larger limit did: then no more of it counts than the capacity, from when it was charged. A text at
the end of the state tells which limit made it.
"""

import itertools
import math
from collections.abc import Sequence
from typing import ClassVar, Final

import attrs

from ailf.checks import valid_count
from ailf.errors import InvalidArgumentError
from ailf.limits.base import (
    FLOORS,
    LARGEST,
    Algorithm,
    ChargeReceipt,
    Limit,
    State,
    Taken,
    check_size,
    period_text,
    valid_period,
)

__all__ = ["TokenBucket", "TokenBucketAlgorithm"]


DIVISORS: Final = (1, 10, 100, 1000, 10_000, 100_000)
"""By what a bucket's rate and period are divided if need be, the smallest that is enough: so most rates of one period
are divided alike, and a limit that is changed goes on with what was charged."""


def _in_units(rate: int, per_ms: int, burst: int) -> tuple[int, int] | None:
    """Return a rate and a period in ms, divided by a common divisor so that what a bucket counts to fits; or None."""
    common = math.gcd(rate, per_ms)
    for divisor in (*DIVISORS, common):
        if common % divisor == 0 and burst * (per_ms // divisor) <= LARGEST:
            return rate // divisor, per_ms // divisor
    return None


@attrs.frozen(cache_hash=True)
class TokenBucket(Limit):
    """So much per time, and so much at once: a bucket that is refilled evenly.

    Over any time t no more than ``burst + rate * t / per`` is admitted.

    Attributes:
        rate: What is refilled in ``per`` seconds; whole: for less than one a second say ``per=60``.
        per: Seconds, to the millisecond.
        burst: What the bucket holds, so what passes at once after a pause; ``rate`` unless told.
    """

    code: ClassVar[str] = "b"
    reservable: ClassVar[bool] = True

    rate: int = attrs.field(validator=valid_count)
    per: float = attrs.field(default=1.0, validator=valid_period)
    burst: int = attrs.field(default=attrs.Factory(lambda self: self.rate, takes_self=True), validator=valid_count)

    def __attrs_post_init__(self) -> None:
        """Refuse what can't be counted exactly."""
        check_size(f"a rate of {self.rate}", self.rate)
        if _in_units(self.rate, self.per_ms, self.burst) is None:
            raise InvalidArgumentError(
                f"a token bucket of {self.rate} in {self.per:g} s with burst {self.burst} can't be counted exactly: "
                f"burst * period in ms is more than 2**53 = {LARGEST}, also after dividing rate and period by their "
                "greatest common divisor. Give it a smaller burst or a rounder rate, write it with a shorter period, "
                "or use a FixedWindow or a SlidingWindow"
            )

    @property
    def per_ms(self) -> int:
        """The period in milliseconds."""
        return round(self.per * 1000)

    @property
    def unit_rate(self) -> int:
        """The rate as backends count it: what comes back in `unit_ms`."""
        return self.rate // (self.per_ms // self.unit_ms)

    @property
    def unit_ms(self) -> int:
        """The period as backends count it, in milliseconds: `per_ms`, or so much less that ``burst * unit_ms`` fits."""
        units = _in_units(self.rate, self.per_ms, self.burst)
        assert units is not None, "it was checked when it was made"  # noqa: S101 - for the type checker
        return units[1]

    @property
    def capacity(self) -> int:
        """The largest cost that can ever pass."""
        return self.burst

    @property
    def longest_wait(self) -> float:
        """Seconds: what is owed after a longer one can't be counted exactly."""
        return LARGEST / 2 / (self.unit_rate * 1000)

    @property
    def numbers(self) -> tuple[int, int, int]:
        """Rate, period in milliseconds, burst."""
        return self.unit_rate, self.unit_ms, self.burst

    @property
    def identity(self) -> str:
        """The kind and the period."""
        return f"b {self.unit_ms}"

    def algorithm(self) -> Algorithm:
        """Return its arithmetic."""
        return TokenBucketAlgorithm(self)

    def __str__(self) -> str:
        burst = "" if self.burst == self.rate else f" burst {self.burst}"
        return f"{self.rate}/{period_text(self.per_ms)}{burst}"


class TokenBucketAlgorithm(Algorithm):
    """`TokenBucket`: a state is (time, debt, age of a low, low, age, low, …), the lows and their times rising.

    Where the debt is above the capacity, a text follows: the limit that made it.
    """

    def __init__(self, limit: TokenBucket) -> None:
        self.rate, self.per, self.capacity = limit.unit_rate, limit.unit_ms, limit.burst
        self.full = self.capacity * self.per
        self.receipt = f"{self.rate},{self.capacity}"

    def _mine(self, state: State) -> State:
        """Return a state without the text, and with no more debt than this limit can have made (R12)."""
        if not len(state) % 2 and (not state or state[1] <= self.full):
            return state
        numbers = state[:-1] if len(state) % 2 else state
        return (
            numbers if state[-1] == self.receipt or numbers[1] <= self.full else (numbers[0], self.full, *numbers[2:])
        )

    def _marked(self, state: State) -> State:
        """Return a state as it is kept: with whose debt it is, where that is above the capacity."""
        return (*state, self.receipt) if state[1] > self.full else state

    def _at(self, state: State, now: int) -> tuple[int, int]:
        """Return the time that counts, and the debt then; of a state as `_mine` returns it."""
        if not state:
            return now, 0
        latest, debt = state[0], state[1]
        if latest >= now:
            return latest, debt
        left = debt - self.rate * (now - latest)
        return now, left if left > 0 else 0

    def remaining(self, state: State, now: int) -> int:
        left = self.full - self._at(self._mine(state), now)[1]
        return left // self.per if left > 0 else 0

    def ends(self, state: State) -> int:
        state = self._mine(state)
        return state[0] - -state[1] // self.rate if state else 0

    def wait(self, state: State, now: int, cost: int) -> int | None:
        if cost > self.capacity:
            return None
        latest, debt = self._at(self._mine(state), now)
        over = debt + cost * self.per - self.full
        return latest - now - -over // self.rate if cost and over > 0 else 0

    def charge(self, state: State, now: int, cost: int, token: str) -> tuple[State, ChargeReceipt]:
        state = self._mine(state)
        latest, debt = self._at(state, now)
        raised = self._raise(state, latest, debt, debt + cost * self.per)
        return self._marked(raised), (latest, raised[1])

    def take(self, state: State, now: int, cost: int) -> Taken | None:
        if state and (state[1] > self.full or len(state) % 2):
            state = self._mine(state)
        latest, debt = self._at(state, now)
        target = debt + cost * self.per
        left = self.full - target
        if left < 0:
            return None
        after = self._raise(state, latest, debt, target) if debt else (latest, target, 0, 0)
        return after, (latest, target), left // self.per, latest - -target // self.rate - now

    def _raise(self, state: State, latest: int, debt: int, target: int) -> State:
        """Raise the debt, after noting how low it was."""
        target = min(target, LARGEST)
        if not debt:  # no low is lower
            return latest, target, 0, 0
        if state[0] == latest and state[-2] == 0 and state[-1] < debt:  # it was noted in this tick
            return latest, target, *state[2:]
        lows = [low for low in _lows(state) if low[1] < debt]
        if not lows or lows[-1][0] < latest:
            lows.append((latest, debt))
        if len(lows) > FLOORS:  # join the two that differ least: the lower one counts for both
            steps = [higher[1] - lower[1] for lower, higher in itertools.pairwise(lows)]
            at = steps.index(min(steps))
            lows[at : at + 2] = [(lows[at + 1][0], lows[at][1])]
        return _with_lows(latest, target, lows)

    def settle(self, state: State, now: int, receipt: ChargeReceipt, charged: int, actual: int) -> State:
        since, owed = receipt
        kept, state = state, self._mine(state)
        more = (actual - charged) * self.per
        if more >= 0:
            # It counts from then on, so some of it may have leaked away meanwhile. Where nothing is stored any more,
            # all that can be known is that this charge alone has.
            latest = max(now, state[0] if state else since)
            leaked = self.rate * (latest - (state[0] if state else since))
            base = state[1] if state else owed
            added = max(0, base + more - leaked) - max(0, base - leaked)
            if not added:
                return kept
            return self._marked(_with_lows(latest, min(self._at(state, latest)[1] + added, LARGEST), _lows(state)))
        if not state:
            return kept
        latest, debt = self._at(state, now)
        lows = _lows(state)
        back = min([-more, debt, *(low for time, low in lows if time > since)])
        lowered = [(time, low if time <= since else max(0, low - back)) for time, low in lows]
        left = [each for each, after in zip(lowered, [*lowered[1:], (0, LARGEST)], strict=True) if each[1] < after[1]]
        return self._marked(_with_lows(latest, debt - back, left))

    def observe(self, state: State, now: int, remaining: int | None, reset_ms: int, pause_ms: int) -> State:
        kept, state = state, self._mine(state)
        latest, debt = self._at(state, now)
        target = max(
            debt,
            0 if remaining is None else self.full - min(remaining, self.capacity) * self.per,
            self.rate * reset_ms,
            self.full - self.per + self.rate * pause_ms if pause_ms else 0,
        )
        return self._marked(self._raise(state, latest, debt, target)) if target > debt else kept


def _lows(state: State) -> list[tuple[int, int]]:
    """Return a bucket's lows with their times."""
    return [(state[0] - age, low) for age, low in zip(state[2::2], state[3::2], strict=True)]


def _with_lows(latest: int, debt: int, lows: Sequence[tuple[int, int]]) -> State:
    return (latest, debt, *(number for time, low in lows for number in (latest - time, low)))
