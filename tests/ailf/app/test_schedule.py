"""The times of schedules, which every replica computes alike."""

import itertools
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

import ailf
from ailf.app.schedule import Cron, Every, Schedule


def times(schedule: Schedule, start: datetime, count: int) -> list[str]:
    """Return the first times after a start, in UTC."""
    found, now = [], start.timestamp()
    for _ in range(count):
        now = schedule.after(now)
        found.append(datetime.fromtimestamp(now, UTC).strftime("%m-%d %H:%M:%S"))
    return found


def test_periods_begin_at_multiples() -> None:
    """The times of a period are its multiples since 1970, whenever a replica starts."""
    begin = datetime(2026, 5, 1, 12, 0, 59, 500_000, UTC)
    assert times(Every(60), begin, 2) == ["05-01 12:01:00", "05-01 12:02:00"]
    assert times(Every(3600), begin, 1) == ["05-01 13:00:00"]


@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.7, 1 / 3, 60, 86_400, 1e9])
def test_times_increase(seconds: float) -> None:
    """Each time is after the one before and never more than a period later, and two replicas find the same ones."""
    schedule = Every(seconds)
    found = list(itertools.accumulate(range(1000), lambda now, _: schedule.after(now), initial=1_700_000_000.0))
    for before, after in itertools.pairwise(found):
        assert before < after <= before + seconds * 1.000_001 + 1e-6
        assert schedule.after((before + after) / 2) == after


def test_cron() -> None:
    """An expression of five fields has minutes, one of six seconds."""
    begin = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
    assert times(Cron.of("0 3 * * *", "UTC"), begin, 2) == ["05-02 03:00:00", "05-03 03:00:00"]
    assert times(Cron.of("*/20 * * * * *", "UTC"), begin, 2) == ["05-01 12:00:20", "05-01 12:00:40"]


def test_cron_is_read_in_its_zone() -> None:
    """The zone is a name or an object, and its summer time counts."""
    begin = datetime(2026, 3, 28, 12, 0, tzinfo=UTC)
    expected = ["03-29 01:00:00", "03-30 01:00:00"]  # at three o'clock, on the day of the change and the next
    assert times(Cron.of("0 3 * * *", "Europe/Vienna"), begin, 2) == expected
    assert times(Cron.of("0 3 * * *", ZoneInfo("Europe/Vienna")), begin, 2) == expected


@pytest.mark.parametrize("expression", ["", "* * *", "61 * * * *", "0 0 31 2 *", "x", "0 0 * * * * *", 3, None])
def test_invalid_expressions(expression: object) -> None:
    """An expression that isn't valid, or never comes true, is refused when it is declared."""
    with pytest.raises(ailf.InvalidArgumentError, match="cron expression"):
        Cron.of(expression, "UTC")


@pytest.mark.parametrize("zone", ["Mars", "", 3, None, "../etc/passwd"])
def test_invalid_zones(zone: object) -> None:
    """A zone that doesn't exist is refused when it is declared."""
    with pytest.raises(ailf.InvalidArgumentError, match="time zone"):
        Cron.of("0 3 * * *", zone)


@pytest.mark.parametrize("seconds", [0, -1, 0.01, float("nan"), float("inf"), "60", None, True])
def test_invalid_periods(seconds: object) -> None:
    """A period is a number of seconds, at least 0.1."""
    with pytest.raises(ailf.InvalidArgumentError, match=r"period of every\(\)"):
        Every(seconds)
