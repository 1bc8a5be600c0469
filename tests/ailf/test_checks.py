"""Durations and points in time: their rounding, and the values that are refused."""

import math
import sys
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest

from ailf import Backoff, InvalidArgumentError, Retention, Retry
from ailf.checks import MAX_SECONDS, check_seconds, check_time, floor_ms, to_ms

TOO_LONG = [MAX_SECONDS + 1, 1e16, 1e300, math.inf, sys.maxsize, pytest.param(10**5000, id="huge")]


class NoOffset(tzinfo):
    """A time zone without an offset."""

    def utcoffset(self, _: datetime | None) -> timedelta | None:
        """Return none."""
        return None

    def dst(self, _: datetime | None) -> timedelta | None:
        """Return none."""
        return None

    def tzname(self, _: datetime | None) -> str:
        """Return something."""
        return "?"


def test_whole_milliseconds_stay() -> None:
    """A duration of whole milliseconds keeps their number, whatever its binary fraction is."""
    for ms in range(10_001):
        assert (to_ms(ms / 1000), floor_ms(ms / 1000)) == (ms, ms)


@pytest.mark.parametrize("second", [1_795_434_347, 253_402_300_799 // 60])
def test_whole_milliseconds_of_the_clock_stay(second: int) -> None:
    """The same holds for a point in time."""
    for ms in range(0, 1000, 7):
        assert (to_ms(second + ms / 1000), floor_ms(second + ms / 1000)) == (second * 1000 + ms, second * 1000 + ms)


@pytest.mark.parametrize(
    ("seconds", "up", "down"),
    [
        (0.0, 0, 0),
        (0.000_001, 1, 0),
        (0.000_5, 1, 0),
        (0.001_001, 2, 1),
        (2.007, 2007, 2007),
        (2.007_001, 2008, 2007),
        (2.007_000_1, 2007, 2007),
        (0.07, 70, 70),
        (1.001, 1001, 1001),
        (7, 7000, 7000),
        (MAX_SECONDS, 3_155_760_000_000, 3_155_760_000_000),
    ],
)
def test_fractions_of_a_millisecond(seconds: float, up: int, down: int) -> None:
    """A fraction of a microsecond or more counts: `to_ms` rounds it up, `floor_ms` down."""
    assert (to_ms(seconds), floor_ms(seconds)) == (up, down)


@pytest.mark.parametrize("seconds", TOO_LONG)
def test_too_long(seconds: Any) -> None:
    """A duration of over a hundred years is refused; the error names the longest that is allowed."""
    with pytest.raises(InvalidArgumentError, match=r"3,155,760,000|finite"):
        check_seconds("ttl", seconds)
    for value in ({"max_age": seconds}, {"wait": seconds}):
        with pytest.raises(InvalidArgumentError, match=next(iter(value))):
            Retention(**value)
    with pytest.raises(InvalidArgumentError, match="3,155,760,000"):
        Retry(delay=seconds)
    assert check_seconds("ttl", MAX_SECONDS) == check_seconds("ttl", int(MAX_SECONDS)) == MAX_SECONDS


@pytest.mark.parametrize(
    "seconds",
    [-1, -0.001, pytest.param(-(10**5000), id="-huge"), -math.inf, math.nan, True, "1", None, date(2030, 1, 1)],
)
def test_no_duration(seconds: Any) -> None:
    """A value that is no duration is refused with a readable error."""
    with pytest.raises(InvalidArgumentError, match="ttl must be"):
        check_seconds("ttl", seconds)


def test_shortest() -> None:
    """The shortest duration that is allowed is accepted, and so is 0 if it is allowed."""
    assert check_seconds("ttl", 0) == 0.0
    assert check_seconds("ttl", 0.001, least=0.001) == 0.001
    for value, options in ((0, {"zero": False}), (0, {"least": 0.001}), (0.0009, {"least": 0.001})):
        with pytest.raises(InvalidArgumentError, match="ttl must be"):
            check_seconds("ttl", value, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "time",
    [
        datetime(2030, 1, 1),  # noqa: DTZ001 - the case is that it has no zone
        datetime(2030, 1, 1, tzinfo=NoOffset()),
        date(2030, 1, 1),
        "2030-01-01",
        0,
        None,
    ],
)
def test_no_time(time: Any) -> None:
    """A datetime without a zone, or in a zone without an offset, is refused, and so is any other value."""
    with pytest.raises(InvalidArgumentError, match="time zone"):
        check_time("at", time)


def test_any_time() -> None:
    """Every datetime with an offset can be used; one before 1970 counts as 1970."""
    assert check_time("at", datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))) == 0.0
    last = datetime.max.replace(tzinfo=timezone(timedelta(hours=-14)))
    assert to_ms(check_time("at", last)) < 2**53
    assert check_time("at", datetime(2030, 1, 1, tzinfo=UTC)) == 1_893_456_000.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial": -1.0},
        {"initial": math.nan},
        {"initial": math.inf},
        {"initial": "1"},
        {"initial": 61.0},
        {"factor": 0.5},
        {"factor": math.inf},
        {"factor": math.nan},
        {"factor": 1e10},
        {"maximum": 0.5},
        {"maximum": math.inf},
        {"maximum": 1e300},
        {"jitter": -0.1},
        {"jitter": 1.1},
        {"jitter": math.nan},
        {"jitter": None},
        {"jitter": True},
    ],
)
def test_bad_backoffs(wrong: dict[str, Any]) -> None:
    """A backoff with a value out of bounds is refused."""
    with pytest.raises(InvalidArgumentError):
        Backoff(**wrong)


def test_backoffs() -> None:
    """The delays rise from the first to the maximum, and stay there; jitter only shortens them."""
    backoff = Backoff(initial=1.0, factor=3.0, maximum=10.0, jitter=0.5)
    assert [backoff.delay(attempt, lambda: 0.0) for attempt in (1, 2, 3, 4, 10**6)] == [1.0, 3.0, 9.0, 10.0, 10.0]
    assert backoff.delay(4, lambda: 1.0) == 5.0
    assert Backoff(initial=0.0, factor=1000.0, jitter=0.0).delay(10**6) == 0.0
    assert Backoff(initial=MAX_SECONDS, factor=1000.0, maximum=MAX_SECONDS, jitter=0.0).delay(65) == MAX_SECONDS
