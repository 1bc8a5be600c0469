"""A reference model of rate limits: it keeps the list of all charges, which is slow and has no derived state.

Each answer is computed from all charges since the beginning, so that settling a charge is a change of its cost in the
list.
"""

from fractions import Fraction

import attrs

from ailf.limits import FixedWindow, Limit, SlidingWindow, TokenBucket

__all__ = ["History"]


@attrs.define
class Charged:
    """A charge: its time in ms and its cost."""

    at: int
    cost: int


class History:
    """All charges of one limit, in the order of time."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.charges: list[Charged] = []

    def charge(self, now: int, cost: int) -> Charged:
        """Charge a cost."""
        charged = Charged(now, cost)
        self.charges.append(charged)
        return charged

    def used(self, now: int) -> Fraction:
        """Return how much of the capacity is in use."""
        limit = self.limit
        if isinstance(limit, TokenBucket):
            debt, at = Fraction(0), 0
            for each in self.charges:
                debt = max(Fraction(0), debt - Fraction(limit.rate * (each.at - at), limit.per_ms)) + each.cost
                at = each.at
            return max(Fraction(0), debt - Fraction(limit.rate * (now - at), limit.per_ms))
        if isinstance(limit, FixedWindow):
            begin = now - now % limit.per_ms
            return Fraction(sum(each.cost for each in self.charges if each.at >= begin))
        assert isinstance(limit, SlidingWindow)
        alive: list[Charged] = []
        last = 0
        for each in self.charges:
            alive = [*self._counted(alive, last, each.at), each]
            last = each.at
        return Fraction(sum(each.cost for each in self._counted(alive, last, now)))

    def _counted(self, charges: list[Charged], last: int, now: int) -> list[Charged]:
        """Return the charges of a sliding window that count at `now`, where `last` is the time of the last charge."""
        width, per = self.limit.width_ms, self.limit.per_ms  # type: ignore[union-attr]
        return [each for each in charges if min(last, (each.at // width + 1) * width - 1) + per > now]

    def remaining(self, now: int) -> int:
        """Return the largest cost that passes."""
        return max(0, int((self.limit.capacity - self.used(now)) // 1))

    def wait(self, now: int, cost: int, longest: int = 10**9) -> int | None:
        """Return the ms after which a cost passes, found by bisection; None if it never passes."""
        if cost > self.limit.capacity:
            return None

        def fits(later: int) -> bool:
            return cost == 0 or self.used(now + later) + cost <= self.limit.capacity

        if fits(0):
            return 0
        low, high = 0, longest
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        return high
