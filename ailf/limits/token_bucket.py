"""The token bucket: it holds up to `burst` tokens and is refilled at a steady rate.

The state keeps a debt instead of tokens, in units of cost times period. `rate` of it leaks away per millisecond, so
nothing is ever rounded. (The generic cell rate algorithm, GCRA, of ITU-T I.371 is the same bucket with its debt counted
in time.) The state also keeps the lows of the debt: coarsely, the lowest debts since given times. A refund never
exceeds the low since its charge, as the rest of the charge has leaked away (R7).

A debt above the capacity has one of two origins (R12). If this limit made it, by a reservation or a settlement, all of
it counts. If a larger limit made it, only as much as the capacity counts, from the time of its charge. The maker, a
text at the end of the state, tells the two apart.
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
"""The divisors of a bucket's rate and period, of which the smallest sufficient one is used. So most rates of one period
are divided alike, and a changed limit takes over the charges."""


def _in_units(rate: int, per_ms: int, burst: int) -> tuple[int, int] | None:
    """Return rate and period in ms, divided by a common divisor so that the bucket's largest number fits, or None."""
    common = math.gcd(rate, per_ms)
    for divisor in (*DIVISORS, common):
        if common % divisor == 0 and burst * (per_ms // divisor) <= LARGEST:
            return rate // divisor, per_ms // divisor
    return None


@attrs.frozen(cache_hash=True)
class TokenBucket(Limit):
    """A token bucket: it holds up to `burst` tokens and is refilled evenly, at `rate` tokens per ``per`` seconds.

    In any time t it admits at most ``burst + rate * t / per``.

    Attributes:
        rate: The tokens refilled in ``per`` seconds, a whole number; less than one per second needs a longer ``per``.
        per: The period in seconds, to the millisecond.
        burst: The tokens that the bucket holds, which is the cost that passes at once after a pause; by default `rate`.

    Example:
        >>> from ailf import TokenBucket
        >>> str(TokenBucket(100, per=60, burst=20))
        '100/minute burst 20'
    """

    code: ClassVar[str] = "b"
    reservable: ClassVar[bool] = True

    rate: int = attrs.field(validator=valid_count)
    per: float = attrs.field(default=1.0, validator=valid_period)
    burst: int = attrs.field(default=attrs.Factory(lambda self: self.rate, takes_self=True), validator=valid_count)

    def __attrs_post_init__(self) -> None:
        """Raise for a limit that can't be counted exactly."""
        check_size(f"a rate of {self.rate}", self.rate)
        if _in_units(self.rate, self.per_ms, self.burst) is None:
            raise InvalidArgumentError(
                f"a token bucket of {self.rate} in {self.per:g} s with burst {self.burst} can't be counted exactly: "
                f"burst * period in ms is more than 2**53 = {LARGEST}, even after rate and period are divided by their "
                "greatest common divisor. Give it a smaller burst or a rounder rate, write it with a shorter period, "
                "or use a FixedWindow or a SlidingWindow"
            )

    @property
    def per_ms(self) -> int:
        """The period in milliseconds."""
        return round(self.per * 1000)

    @property
    def unit_rate(self) -> int:
        """The rate as backends count it: the tokens refilled in `unit_ms`."""
        return self.rate // (self.per_ms // self.unit_ms)

    @property
    def unit_ms(self) -> int:
        """The period as backends count it, in milliseconds: `per_ms`, divided if ``burst * unit_ms`` wouldn't fit."""
        units = _in_units(self.rate, self.per_ms, self.burst)
        assert units is not None, "checked when the limit was made"  # noqa: S101 - for the type checker
        return units[1]

    @property
    def capacity(self) -> int:
        """The largest cost that can ever pass."""
        return self.burst

    @property
    def longest_wait(self) -> float:
        """The longest wait in seconds that can be observed: the debt of a longer one can't be counted exactly."""
        return LARGEST / 2 / (self.unit_rate * 1000)

    @property
    def numbers(self) -> tuple[int, int, int]:
        """The rate, the period in milliseconds, and the burst, in units."""
        return self.unit_rate, self.unit_ms, self.burst

    @property
    def identity(self) -> str:
        """The kind and the period, in units."""
        return f"b {self.unit_ms}"

    def algorithm(self) -> Algorithm:
        """Return its arithmetic."""
        return TokenBucketAlgorithm(self)

    def __str__(self) -> str:
        burst = "" if self.burst == self.rate else f" burst {self.burst}"
        return f"{self.rate}/{period_text(self.per_ms)}{burst}"


class TokenBucketAlgorithm(Algorithm):
    """The arithmetic of `TokenBucket`: a state is (time, debt, age of a low, low, age, low, …).

    The lows and their times rise. If the debt is above the capacity, its maker follows as a text.
    """

    def __init__(self, limit: TokenBucket) -> None:
        self.rate, self.per, self.capacity = limit.unit_rate, limit.unit_ms, limit.burst
        self.full = self.capacity * self.per
        self.maker = f"{self.rate},{self.capacity}"

    def _own_debt(self, state: State) -> State:
        """Return the state without its maker, and with no more debt than counts for this limit (R12)."""
        if not len(state) % 2 and (not state or state[1] <= self.full):
            return state
        numbers = state[:-1] if len(state) % 2 else state
        return numbers if state[-1] == self.maker or numbers[1] <= self.full else (numbers[0], self.full, *numbers[2:])

    def _with_maker(self, state: State) -> State:
        """Return the state as it is stored: with its maker, if the debt is above the capacity."""
        return (*state, self.maker) if state[1] > self.full else state

    def _at(self, state: State, now: int) -> tuple[int, int]:
        """Return the effective time and the debt at it, of a state that `_own_debt` returned."""
        if not state:
            return now, 0
        latest, debt = state[0], state[1]
        if latest >= now:
            return latest, debt
        left = debt - self.rate * (now - latest)
        return now, left if left > 0 else 0

    def remaining(self, state: State, now: int) -> int:
        left = self.full - self._at(self._own_debt(state), now)[1]
        return left // self.per if left > 0 else 0

    def ends(self, state: State) -> int:
        state = self._own_debt(state)
        return state[0] - -state[1] // self.rate if state else 0

    def wait(self, state: State, now: int, cost: int) -> int | None:
        if cost > self.capacity:
            return None
        latest, debt = self._at(self._own_debt(state), now)
        over = debt + cost * self.per - self.full
        return latest - now - -over // self.rate if cost and over > 0 else 0

    def charge(self, state: State, now: int, cost: int, token: str) -> tuple[State, ChargeReceipt]:
        state = self._own_debt(state)
        latest, debt = self._at(state, now)
        raised = self._raise(state, latest, debt, debt + cost * self.per)
        return self._with_maker(raised), (latest, raised[1])

    def take(self, state: State, now: int, cost: int) -> Taken | None:
        if state and (state[1] > self.full or len(state) % 2):
            state = self._own_debt(state)
        latest, debt = self._at(state, now)
        target = debt + cost * self.per
        left = self.full - target
        if left < 0:
            return None
        after = self._raise(state, latest, debt, target) if debt else (latest, target, 0, 0)
        return after, (latest, target), left // self.per, latest - -target // self.rate - now

    def _raise(self, state: State, latest: int, debt: int, target: int) -> State:
        """Return the state with the debt raised to the target, after noting the debt as a low."""
        target = min(target, LARGEST)
        if not debt:  # no low is lower
            return latest, target, 0, 0
        if state[0] == latest and state[-2] == 0 and state[-1] < debt:  # a lower one was noted in this millisecond
            return latest, target, *state[2:]
        lows = [low for low in _lows(state) if low[1] < debt]
        if not lows or lows[-1][0] < latest:
            lows.append((latest, debt))
        if len(lows) > FLOORS:  # join the two that differ least; the lower low counts for both
            steps = [higher[1] - lower[1] for lower, higher in itertools.pairwise(lows)]
            at = steps.index(min(steps))
            lows[at : at + 2] = [(lows[at + 1][0], lows[at][1])]
        return _with_lows(latest, target, lows)

    def settle(self, state: State, now: int, receipt: ChargeReceipt, charged: int, actual: int) -> State:
        since, owed = receipt
        stored, state = state, self._own_debt(state)
        more = (actual - charged) * self.per
        if more >= 0:
            # The addition counts from the time of the charge, so some of it may have leaked away since. Without a
            # state, the leak of this charge alone is known.
            latest = max(now, state[0] if state else since)
            leaked = self.rate * (latest - (state[0] if state else since))
            base = state[1] if state else owed
            added = max(0, base + more - leaked) - max(0, base - leaked)
            if not added:
                return stored
            return self._with_maker(_with_lows(latest, min(self._at(state, latest)[1] + added, LARGEST), _lows(state)))
        if not state:
            return stored
        latest, debt = self._at(state, now)
        lows = _lows(state)
        refund = min([-more, debt, *(low for time, low in lows if time > since)])
        lowered = [(time, low if time <= since else max(0, low - refund)) for time, low in lows]
        rising = [each for each, after in zip(lowered, [*lowered[1:], (0, LARGEST)], strict=True) if each[1] < after[1]]
        return self._with_maker(_with_lows(latest, debt - refund, rising))

    def observe(self, state: State, now: int, remaining: int | None, reset_ms: int, pause_ms: int) -> State:
        stored, state = state, self._own_debt(state)
        latest, debt = self._at(state, now)
        target = max(
            debt,
            0 if remaining is None else self.full - min(remaining, self.capacity) * self.per,
            self.rate * reset_ms,
            self.full - self.per + self.rate * pause_ms if pause_ms else 0,
        )
        return self._with_maker(self._raise(state, latest, debt, target)) if target > debt else stored


def _lows(state: State) -> list[tuple[int, int]]:
    """Return the lows of a state with their times."""
    return [(state[0] - age, low) for age, low in zip(state[2::2], state[3::2], strict=True)]


def _with_lows(latest: int, debt: int, lows: Sequence[tuple[int, int]]) -> State:
    return (latest, debt, *(number for time, low in lows for number in (latest - time, low)))
