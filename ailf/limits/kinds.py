"""All kinds of limits, and the arithmetic of each."""

from typing import TypeAlias

from ailf.limits.base import Algorithm
from ailf.limits.concurrency import Concurrency, Slots
from ailf.limits.fixed_window import Fixed, FixedWindow
from ailf.limits.sliding_window import Sliding, SlidingWindow
from ailf.limits.token_bucket import Bucket, TokenBucket

__all__ = ["Limit", "algorithm"]


Limit: TypeAlias = TokenBucket | SlidingWindow | FixedWindow | Concurrency


def algorithm(limit: Limit) -> Algorithm:
    """Return the arithmetic of a limit."""
    if isinstance(limit, TokenBucket):
        return Bucket(limit)
    if isinstance(limit, FixedWindow):
        return Fixed(limit)
    return Sliding(limit) if isinstance(limit, SlidingWindow) else Slots(limit)
