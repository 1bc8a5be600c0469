"""Limits as values: `TokenBucket`, `SlidingWindow`, `FixedWindow`, `Concurrency`, and their text form.

The arithmetic is integer, in milliseconds and units of cost, so that every backend agrees to the bit; what would not
fit into the 53 bits that Lua's numbers have is refused here.
"""

import math
import re
from typing import Any, Final, TypeAlias

import attrs

from ailf.checks import check_count, valid_count, valid_seconds
from ailf.errors import InvalidArgumentError

__all__ = ["LARGEST", "Concurrency", "FixedWindow", "Limit", "SlidingWindow", "TokenBucket", "as_limit", "parse_limit"]

LARGEST: Final = 2**53
"""What no number may exceed."""

MAX_BUCKETS = 64

UNITS = {"ms": 1, "s": 1000, "second": 1000, "m": 60_000, "minute": 60_000, "h": 3_600_000, "hour": 3_600_000}
UNITS |= {"sec": 1000, "min": 60_000, "d": 86_400_000, "day": 86_400_000}
NAMED = {1000: "second", 60_000: "minute", 3_600_000: "hour", 86_400_000: "day"}

_RATE = re.compile(
    r"(?P<limit>[\d_]+) *(?:[^\W\d][\w -]*?)? */ *(?P<times>\d+(?:\.\d+)?)? *(?P<unit>[a-z]+)"
    r"(?: +burst +(?P<burst>[\d_]+))?(?: +(?P<kind>fixed|sliding)(?: +in +(?P<buckets>\d+))?)?"
)
_PARALLEL = re.compile(r"(?P<limit>[\d_]+) +parallel(?: +ttl +(?P<ttl>\d+(?:\.\d+)?) *s?)?")


def _valid_period(value: Any, field: "attrs.Attribute[float]", seconds: float) -> None:
    valid_seconds(value, field, seconds)
    if abs(seconds * 1000 - round(seconds * 1000)) > 1e-6 * seconds:
        raise InvalidArgumentError(f"{field.name} must be a whole number of milliseconds, not {seconds!r} s")


def _check_size(what: str, size: int) -> None:
    if size > LARGEST:
        raise InvalidArgumentError(f"{what} is more than 2**53, which not every backend can count exactly to")


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


def _period(milliseconds: int) -> str:
    return NAMED.get(milliseconds) or f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".") + "s"


@attrs.frozen(cache_hash=True)
class TokenBucket:
    """So much per time, and so much at once: a bucket that is refilled evenly.

    Over any time t no more than ``burst + rate * t / per`` is admitted.

    Attributes:
        rate: What is refilled in ``per`` seconds; whole: for less than one a second say ``per=60``.
        per: Seconds, to the millisecond.
        burst: What the bucket holds, so what passes at once after a pause; ``rate`` unless told.
    """

    rate: int = attrs.field(validator=valid_count)
    per: float = attrs.field(default=1.0, validator=_valid_period)
    burst: int = attrs.field(default=attrs.Factory(lambda self: self.rate, takes_self=True), validator=valid_count)

    def __attrs_post_init__(self) -> None:
        """Refuse what can't be counted exactly."""
        _check_size(f"a rate of {self.rate}", self.rate)
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

    def __str__(self) -> str:
        burst = "" if self.burst == self.rate else f" burst {self.burst}"
        return f"{self.rate}/{_period(self.per_ms)}{burst}"


@attrs.frozen(cache_hash=True)
class FixedWindow:
    """So much per window, where windows begin at whole multiples of ``per`` on the backend's clock, for all alike.

    Twice the limit can pass around the end of a window; `SlidingWindow` doesn't allow that.

    Attributes:
        limit: What a window admits.
        per: Its seconds, to the millisecond.
    """

    limit: int = attrs.field(validator=valid_count)
    per: float = attrs.field(default=1.0, validator=_valid_period)

    def __attrs_post_init__(self) -> None:
        """Refuse what can't be counted exactly."""
        _check_size(f"a limit of {self.limit}", self.limit)

    @property
    def per_ms(self) -> int:
        """The window in milliseconds."""
        return round(self.per * 1000)

    @property
    def capacity(self) -> int:
        """The largest cost that can ever pass."""
        return self.limit

    def __str__(self) -> str:
        return f"{self.limit}/{_period(self.per_ms)} fixed"


@attrs.frozen(cache_hash=True)
class SlidingWindow:
    """So much in any ``per`` seconds, wherever they begin.

    What was admitted is counted in buckets of ``per / buckets`` seconds. Of the newest bucket it is known when its last
    call was admitted; an older one counts until the last call that it may hold is ``per`` seconds old, so up to
    ``per / buckets`` longer than it had to. No wait is longer than ``per``.

    Attributes:
        limit: What any window admits.
        per: Its seconds, to the millisecond.
        buckets: How finely it is counted.
    """

    limit: int = attrs.field(validator=valid_count)
    per: float = attrs.field(default=1.0, validator=_valid_period)
    buckets: int = attrs.field(default=10, validator=valid_count)

    def __attrs_post_init__(self) -> None:
        """Refuse what can't be counted exactly, or so finely."""
        _check_size(f"a limit of {self.limit}", self.limit)
        if self.buckets > min(MAX_BUCKETS, self.per_ms):
            most = min(MAX_BUCKETS, self.per_ms)
            raise InvalidArgumentError(f"at most {most} buckets are possible in {self.per:g} s, not {self.buckets}")

    @property
    def per_ms(self) -> int:
        """The window in milliseconds."""
        return round(self.per * 1000)

    @property
    def width_ms(self) -> int:
        """A bucket in milliseconds."""
        return -(-self.per_ms // self.buckets)

    @property
    def capacity(self) -> int:
        """The largest cost that can ever pass."""
        return self.limit

    def __str__(self) -> str:
        buckets = "" if self.buckets == SlidingWindow(1, 1).buckets else f" in {self.buckets}"
        return f"{self.limit}/{_period(self.per_ms)} sliding{buckets}"


@attrs.frozen(cache_hash=True)
class Concurrency:
    """So many at the same time. Each has a lease of its own, renewed until it is given back.

    A call that costs several takes as many places, and the backend as much work.

    Attributes:
        limit: How many.
        ttl: Seconds after which the place of a process that has died is free again.
    """

    limit: int = attrs.field(validator=valid_count)
    ttl: float = attrs.field(default=60.0, validator=_valid_period)

    @property
    def ttl_ms(self) -> int:
        """The lease in milliseconds."""
        return round(self.ttl * 1000)

    @property
    def capacity(self) -> int:
        """The largest cost that can ever pass."""
        return self.limit

    def __str__(self) -> str:
        return f"{self.limit} parallel ttl {_period(self.ttl_ms) if self.ttl_ms not in NAMED else f'{self.ttl:g}s'}"


Limit: TypeAlias = TokenBucket | SlidingWindow | FixedWindow | Concurrency


def parse_limit(text: str) -> Limit:
    """Return the limit that a text stands for; ``str`` of a limit is such a text.

    ``"60/minute"``, ``"100000 tokens/minute burst 20000"``, ``"10/5s"`` are token buckets, ``"1000/day fixed"`` and
    ``"100/hour sliding"`` windows, ``"8 parallel"`` and ``"8 parallel ttl 120s"`` concurrency.

    Raises:
        InvalidArgumentError: It stands for none.
    """
    words = " ".join(str(text).lower().split())
    parallel, rate = _PARALLEL.fullmatch(words), _RATE.fullmatch(words)
    if parallel:
        return Concurrency(_whole(parallel["limit"]), *([float(parallel["ttl"])] if parallel["ttl"] else []))
    unit = UNITS.get(rate["unit"], UNITS.get(rate["unit"].removesuffix("s"))) if rate else None
    if not rate or not unit or (rate["burst"] and rate["kind"]) or (rate["kind"] == "fixed" and rate["buckets"]):
        raise InvalidArgumentError(
            f"{text!r} is no limit; write one like '60/minute', '100000 tokens/minute burst 20000', '1000/day fixed', "
            "'100/hour sliding' or '8 parallel'"
        )
    limit, per = _whole(rate["limit"]), float(rate["times"] or 1) * unit / 1000
    if rate["kind"] == "fixed":
        return FixedWindow(limit, per)
    if rate["kind"] == "sliding":
        return SlidingWindow(limit, per, *([_whole(rate["buckets"])] if rate["buckets"] else []))
    return TokenBucket(limit, per, *([_whole(rate["burst"])] if rate["burst"] else []))


def as_limit(what: str, limit: object) -> Limit:
    """Return a limit, or the limit that a text stands for.

    Raises:
        InvalidArgumentError: It is neither.
    """
    if isinstance(limit, str):
        return parse_limit(limit)
    if isinstance(limit, TokenBucket | SlidingWindow | FixedWindow | Concurrency):
        return limit
    raise InvalidArgumentError(
        f"{what} must be a TokenBucket, SlidingWindow, FixedWindow, Concurrency, or a text like '60/minute', "
        f"not {limit!r}"
    )


def _whole(digits: str) -> int:
    try:
        return check_count("a limit", int(digits))
    except ValueError:
        raise InvalidArgumentError(f"{digits!r} is no whole number") from None
