"""What a limit's envelope allows, checked over the list of admitted calls."""

import itertools
from collections.abc import Sequence

from ailf import FixedWindow, Limit, SlidingWindow, TokenBucket

__all__ = ["Call", "excess"]

Call = tuple[int, int]
"""When a call was allowed, in ms of the backend's clock, and what it cost."""


def excess(limit: Limit, admitted: Sequence[Call], *, tick: int = 0) -> list[str]:
    """Return where a list of admitted calls, in whatever order, leaves the limit's envelope.

    Arguments:
        limit: The limit.
        admitted: The calls.
        tick: Milliseconds that a bucket's times may be off.
    """
    calls = sorted(admitted)
    sums = [0, *itertools.accumulate(cost for _, cost in calls)]
    found = []
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
            found.append(f"{cost} within {span} ms, from {begin} on")
    return found
