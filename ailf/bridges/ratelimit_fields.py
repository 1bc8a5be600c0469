"""The HTTP fields that tell a client its limits: ``RateLimit-Policy``, ``RateLimit`` and ``Retry-After``. All is pure.

The first two are those of draft-ietf-httpapi-ratelimit-headers-10 (September 2025): lists of structured fields
(RFC 9651), with one item for each limit. The problem types for the body (RFC 9457) are those of the same draft.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import quote

from ailf.limits import Concurrency, FixedWindow, Limit, SlidingWindow, TokenBucket
from ailf.values import LimitState

__all__ = ["QUOTA_EXCEEDED", "REDUCED_CAPACITY", "policy_name", "policy_of", "retry_after_of", "states_of"]

TYPES: Final = "https://iana.org/assignments/http-problem-types"
QUOTA_EXCEEDED: Final = f"{TYPES}#quota-exceeded"
REDUCED_CAPACITY: Final = f"{TYPES}#temporary-reduced-capacity"

LARGEST: Final = 10**15 - 1
"""The largest integer of a structured field."""


def policy_name(limit: str) -> str:
    """Return the name of a limit's policy: its own, in ASCII; ``default`` for an unnamed one."""
    return quote(limit, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}") or "default"


def _item(limit: str, **parameters: float | str | None) -> str:
    """Return an item of a list: a string with parameters, of which those that are None are left out."""
    name = policy_name(limit).replace("\\", "\\\\").replace('"', '\\"')
    given = ((key, value) for key, value in parameters.items() if value is not None)
    texts = (f';{key}="{value}"' if isinstance(value, str) else f";{key}={_whole(value)}" for key, value in given)
    return f'"{name}"{"".join(texts)}'


def _whole(number: float) -> int:
    """Return a number as an integer of a structured field, rounded up."""
    return min(max(0, math.ceil(number)), LARGEST)


def _window(limit: Limit) -> float | None:
    """Return the seconds in which a limit admits its capacity; None where that is under a second, or no time counts."""
    seconds = 0.0
    if isinstance(limit, TokenBucket):
        seconds = limit.burst * limit.per / limit.rate
    elif isinstance(limit, FixedWindow | SlidingWindow):
        seconds = limit.per
    return seconds if seconds >= 1 else None


def policy_of(limits: Mapping[str, Limit]) -> str:
    """Return the value of ``RateLimit-Policy`` for the limits of a limiter.

    The quota ``q`` of a token bucket is its burst, and its window ``w`` the time in which that is refilled: so what is
    left (``r``) never exceeds the quota.

    >>> from ailf import Concurrency, TokenBucket
    >>> from ailf.bridges.ratelimit_fields import policy_of
    >>> policy_of({"": TokenBucket(100, per=60)})
    '"default";q=100;w=60'
    >>> policy_of({"requests": TokenBucket(100, per=60, burst=20), "parallel": Concurrency(8)})
    '"requests";q=20;w=12, "parallel";q=8;qu="concurrent-requests"'
    """
    return ", ".join(
        _item(
            name,
            q=limit.capacity,
            qu="concurrent-requests" if isinstance(limit, Concurrency) else None,
            w=_window(limit),
        )
        for name, limit in limits.items()
    )


def states_of(limits: Mapping[str, Limit], states: Mapping[str, LimitState], *, denied: bool) -> str:
    """Return the value of ``RateLimit`` for a decision, which may be empty.

    Of a denied call these are the limits that deny it, and ``t`` is when they allow it, so that none is later than
    ``Retry-After``. Of an allowed call ``t`` is when the limit is back at full capacity. A concurrency limit has none:
    nobody knows when the calls end.

    >>> from ailf import TokenBucket
    >>> from ailf.bridges.ratelimit_fields import states_of
    >>> from ailf.values import LimitState
    >>> states_of({"": TokenBucket(100, per=60)}, {"": LimitState(40, 0.0, 36.0)}, denied=False)
    '"default";r=40;t=36'
    """
    return ", ".join(
        _item(
            name,
            r=state.remaining,
            t=None if limits[name].leased else ((state.retry_after if denied else state.reset_after) or None),
        )
        for name, state in states.items()
        if not denied or state.retry_after != 0
    )


def retry_after_of(seconds: Iterable[float | None]) -> str | None:
    """Return the value of ``Retry-After`` for the times to wait; None if one of them never ends."""
    waits = list(seconds)
    known = [each for each in waits if each is not None]
    return str(max(1, *map(_whole, known))) if known and len(known) == len(waits) else None
