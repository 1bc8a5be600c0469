"""`Finding`: what a backend's diagnosis finds about itself, for `BackendDriver.diagnose`."""

import enum

import attrs

__all__ = ["Finding", "Level"]


class Level(enum.Enum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    """It works, and may fail or lose something later."""
    FAIL = "fail"
    """Something doesn't work, or is being lost."""


@attrs.frozen
class Finding:
    """One thing that was checked.

    >>> from ailf.driver import Finding, Level
    >>> Finding("eviction", Level.WARN, "the policy is allkeys-lru", "set maxmemory-policy to noeviction").level.value
    'warn'

    Attributes:
        check: What was checked, in a word or two, such as ``eviction``.
        level: How bad it is.
        message: What was found, for an operator.
        mend: What to do about it; "" where nothing is to be done.
    """

    check: str
    level: Level
    message: str
    mend: str = ""
