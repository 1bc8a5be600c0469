"""Limits written as text, such as "100/minute"."""

import re

from ailf.checks import check_count
from ailf.errors import InvalidArgumentError
from ailf.limits.base import Limit
from ailf.limits.concurrency import Concurrency
from ailf.limits.fixed_window import FixedWindow
from ailf.limits.sliding_window import SlidingWindow
from ailf.limits.token_bucket import TokenBucket

__all__ = ["as_limit", "parse_limit"]

KINDS = (TokenBucket, SlidingWindow, FixedWindow, Concurrency)
"""The classes of limits that every backend implements."""

UNITS = {"ms": 1, "s": 1000, "second": 1000, "m": 60_000, "minute": 60_000, "h": 3_600_000, "hour": 3_600_000}
UNITS |= {"sec": 1000, "min": 60_000, "d": 86_400_000, "day": 86_400_000}

_RATE = re.compile(
    r"(?P<limit>[\d_]+) *(?:[^\W\d][\w -]*?)? */ *(?P<times>\d+(?:\.\d+)?)? *(?P<unit>[a-z]+)"
    r"(?: +burst +(?P<burst>[\d_]+))?(?: +(?P<kind>fixed|sliding)(?: +in +(?P<buckets>\d+))?)?"
)
_PARALLEL = re.compile(r"(?P<limit>[\d_]+) +parallel(?: +ttl +(?P<ttl>\d+(?:\.\d+)?) *s?)?")


def parse_limit(text: str) -> Limit:
    """Return the limit that a text describes; ``str`` of a limit is such a text.

    ``"60/minute"``, ``"100000 tokens/minute burst 20000"`` and ``"10/5s"`` are token buckets, ``"1000/day fixed"`` and
    ``"100/hour sliding"`` are windows, ``"8 parallel"`` and ``"8 parallel ttl 120s"`` are concurrency limits.

    Raises:
        InvalidArgumentError: The text doesn't describe a limit, or the limit can't be counted exactly.
    """
    words = " ".join(str(text).lower().split())
    parallel, rate = _PARALLEL.fullmatch(words), _RATE.fullmatch(words)
    if parallel:
        return Concurrency(_whole(parallel["limit"]), *([float(parallel["ttl"])] if parallel["ttl"] else []))
    unit = UNITS.get(rate["unit"], UNITS.get(rate["unit"].removesuffix("s"))) if rate else None
    if not rate or not unit or (rate["burst"] and rate["kind"]) or (rate["kind"] == "fixed" and rate["buckets"]):
        raise InvalidArgumentError(
            f"{text!r} is not a limit; write one like '60/minute', '100000 tokens/minute burst 20000', "
            "'1000/day fixed', '100/hour sliding' or '8 parallel'"
        )
    limit, per = _whole(rate["limit"]), float(rate["times"] or 1) * unit / 1000
    if rate["kind"] == "fixed":
        return FixedWindow(limit, per)
    if rate["kind"] == "sliding":
        return SlidingWindow(limit, per, *([_whole(rate["buckets"])] if rate["buckets"] else []))
    return TokenBucket(limit, per, *([_whole(rate["burst"])] if rate["burst"] else []))


def as_limit(what: str, limit: object) -> Limit:
    """Return the limit, parsed if it is a text; `what` names it in the error.

    Raises:
        InvalidArgumentError: It is neither a limit nor a text that describes one.
    """
    if isinstance(limit, str):
        return parse_limit(limit)
    if isinstance(limit, KINDS):
        return limit
    raise InvalidArgumentError(
        f"{what} must be a TokenBucket, SlidingWindow, FixedWindow, Concurrency, or a text such as '60/minute', "
        f"not {limit!r}"
    )


def _whole(digits: str) -> int:
    try:
        number = int(digits)
    except ValueError:
        raise InvalidArgumentError(f"{digits!r} is not a whole number") from None
    return check_count("a number in a limit", number)
