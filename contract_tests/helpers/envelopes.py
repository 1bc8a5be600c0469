"""Checks that a list of admitted calls stays within the envelope of a limit."""

import itertools
from collections.abc import Sequence

from ailf import FixedWindow, Limit, SlidingWindow, TokenBucket

__all__ = ["Call", "excess"]

Call = tuple[int, int]
"""The time at which a call was allowed, in ms of the backend's clock, and its cost."""


def excess(limit: Limit, admitted: Sequence[Call], *, tick: int = 0) -> list[str]:
    """Return each span of time in which the admitted calls exceed the limit's envelope.

    Arguments:
        limit: The limit.
        admitted: The calls, in any order.
        tick: Milliseconds by which the times of a token bucket may be wrong.
    """
    calls = sorted(admitted)
    sums = [0, *itertools.accumulate(cost for _, cost in calls)]
    excesses = []
    for (one, (begin, _)), (two, (end, _)) in itertools.combinations_with_replacement(enumerate(calls), 2):
        cost, span = sums[two + 1] - sums[one], end - begin
        if isinstance(limit, TokenBucket):
            over = (cost - limit.burst) * limit.per_ms > limit.rate * (span + tick)
        elif isinstance(limit, SlidingWindow):
            over = span < limit.per_ms and cost > limit.limit
        else:
            over = (
                isinstance(limit, FixedWindow) and begin // limit.per_ms == end // limit.per_ms and cost > limit.limit
            )
        if over:
            excesses.append(f"{cost} within {span} ms, from {begin} on")
    return excesses
