"""The options of the runner."""

from typing import Any

import attrs

from ailf.checks import check_text, valid_count, valid_flag, valid_seconds, valid_wait
from ailf.errors import InvalidArgumentError

__all__ = ["FORMAT", "GRACE", "LAST_PORT", "LEVELS", "WAIT", "RunnerOptions"]

GRACE = 40.0
"""Seconds that workers have to end by default: more than a worker's own drain, 30 s."""

WAIT = 30.0
"""Seconds for which a worker waits by default for a backend that isn't there yet."""

FORMAT = "%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s"
"""The lines of the log."""

LEVELS = ("debug", "info", "warning", "error", "critical")

LAST_PORT = 65_535


def _valid_port(_: Any, field: "attrs.Attribute[Any]", port: object) -> None:
    if port is None:
        return
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= LAST_PORT:
        raise InvalidArgumentError(f"{field.name} must be a port from 0 (any free one) to {LAST_PORT}, not {port!r}")


def _valid_text(_: Any, field: "attrs.Attribute[Any]", text: object) -> None:
    check_text(field.name, text)


def _valid_level(_: Any, field: "attrs.Attribute[Any]", level: object) -> None:
    if level not in LEVELS:
        raise InvalidArgumentError(f"{field.name} must be one of {', '.join(LEVELS)}, not {level!r}")


@attrs.frozen(kw_only=True)
class RunnerOptions:
    """What the runner runs, and how.

    Attributes:
        target: The app: ``module:app``; the name after the colon is "app" if it is left out.
        workers: The number of worker processes.
        reload: Whether workers are replaced when a Python file below the current directory changes.
        grace: Seconds that workers have to end after a stop, before they are killed.
        wait: Seconds for which a worker waits for a backend that isn't there yet when it starts.
        host: The address at which health and metrics are served.
        health_port: The port of ``/health`` and ``/ready``; None: they aren't served.
        metrics_port: The port of ``/metrics``, which may be the same; None: they aren't served.
        log_level: The level of the log of runner and workers.
        url: The URL of the backend, for an app that names none; None: that of the environment.
    """

    target: str = attrs.field(validator=_valid_text)
    workers: int = attrs.field(default=1, validator=valid_count)
    reload: bool = attrs.field(default=False, validator=valid_flag)
    grace: float = attrs.field(default=GRACE, validator=valid_seconds)
    wait: float = attrs.field(default=WAIT, validator=valid_wait)
    host: str = attrs.field(default="127.0.0.1", validator=_valid_text)
    health_port: int | None = attrs.field(default=None, validator=_valid_port)
    metrics_port: int | None = attrs.field(default=None, validator=_valid_port)
    log_level: str = attrs.field(default="info", validator=_valid_level)
    url: str | None = attrs.field(default=None, repr=False)
