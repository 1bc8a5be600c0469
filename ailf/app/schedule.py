"""Schedules: the times at which a function is due. All is pure: a time goes in, the next one comes out.

Times are seconds since 1970. Every replica computes the same ones, so each run has a name that all of them know.
"""

from abc import ABC, abstractmethod
from datetime import datetime, tzinfo
from types import ModuleType
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import attrs

from ailf.checks import check_seconds, check_text
from ailf.errors import InvalidArgumentError, UnsupportedError

__all__ = ["Cron", "Every", "Schedule"]

SHORTEST = 0.1
"""The shortest period, in seconds."""


class Schedule(ABC):
    """The times at which a function is due."""

    @abstractmethod
    def after(self, now: float) -> float:
        """Return the first time after `now`."""


@attrs.frozen
class Every(Schedule):
    """The multiples of a period since 1970.

    Attributes:
        seconds: The period.
    """

    seconds: float

    def __attrs_post_init__(self) -> None:
        """Check the period."""
        check_seconds("the period of every()", self.seconds, least=SHORTEST)

    def after(self, now: float) -> float:
        """Return the first multiple after `now`."""
        step = int(now / self.seconds)
        while step * self.seconds <= now:
            step += 1
        return step * self.seconds

    def __str__(self) -> str:
        return f"every {self.seconds:g} s"


@attrs.frozen
class Cron(Schedule):
    """The times of a cron expression, with five fields, or six where the first one is seconds.

    Attributes:
        expression: The expression.
        zone: The time zone in which it is read.
    """

    expression: str
    zone: tzinfo

    @classmethod
    def of(cls, expression: object, zone: object) -> "Cron":
        """Check the expression and the zone.

        Raises:
            InvalidArgumentError: One of them isn't valid, or the expression has no time in the next years.
            UnsupportedError: The extra `cron` isn't installed.
        """
        text = check_text("the cron expression", expression)
        schedule = cls(text, _zone(zone))
        cronsim = _cronsim()
        try:
            next(cronsim.CronSim(text, datetime(2000, 1, 1, tzinfo=schedule.zone)))
        except cronsim.CronSimError as error:
            raise InvalidArgumentError(f"the cron expression {text!r} is invalid: {error}") from error
        except StopIteration:
            raise InvalidArgumentError(f"the cron expression {text!r} never comes true") from None
        return schedule

    def after(self, now: float) -> float:
        """Return its first time after `now`."""
        found: datetime = next(_cronsim().CronSim(self.expression, datetime.fromtimestamp(now, self.zone)))
        return found.timestamp()

    def __str__(self) -> str:
        return f"cron {self.expression!r} ({self.zone})"


def _zone(zone: object) -> tzinfo:
    if isinstance(zone, tzinfo):
        return zone
    name = check_text("the time zone", zone)
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidArgumentError(
            f"there is no time zone {name!r}; write a name like 'Europe/Vienna'. On a system without time zones, "
            "install the package tzdata"
        ) from error


def _cronsim() -> Any:
    """Return the module that reads cron expressions; it is imported at the first use."""
    try:
        import cronsim  # noqa: PLC0415 - an extra, and a process without cron needn't pay for it
    except ImportError as error:
        raise UnsupportedError(
            "app.cron needs the package cronsim, which is not installed; run: pip install 'ailf[cron]'"
        ) from error
    module: ModuleType = cronsim
    return module
