"""Rate limits as values, and the arithmetic of their decisions."""

from ailf.limits.base import LARGEST, Algorithm, ChargeReceipt, Limit, State
from ailf.limits.concurrency import Concurrency
from ailf.limits.decide import decide
from ailf.limits.fixed_window import FixedWindow
from ailf.limits.sliding_window import SlidingWindow
from ailf.limits.text import as_limit, parse_limit
from ailf.limits.token_bucket import TokenBucket

__all__ = [
    "LARGEST",
    "Algorithm",
    "ChargeReceipt",
    "Concurrency",
    "FixedWindow",
    "Limit",
    "SlidingWindow",
    "State",
    "TokenBucket",
    "as_limit",
    "decide",
    "parse_limit",
]
