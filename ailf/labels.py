"""The values by which telemetry groups its numbers, kept few: each different value is a time series of its own.

Names of streams and rate limiters are labels; those of channels and locks only where a program asks for them, as they
often hold the id of a user or an order. Ids of entries, keys of limiters and names of consumers never are.
"""

import threading
from collections.abc import Iterable
from typing import Final

from ailf.checks import check_list
from ailf.errors import InvalidArgumentError
from ailf.safe_text import safe_text

__all__ = ["DEFAULT_NAMES", "OTHER", "Labels", "error_type"]

KINDS: Final = ("stream", "channel", "lock", "rate_limiter")

DEFAULT_NAMES: Final = ("stream", "rate_limiter")
"""The kinds whose names are labels by default."""

OTHER: Final = "_other"
"""The value for names beyond the first `MOST`."""

MOST: Final = 500
"""How many different names of each kind are labels."""

LONGEST: Final = 200
"""The longest label, in characters."""


class Labels:
    """The labels of one instrument, which are bounded in number and length."""

    def __init__(self, names: Iterable[str]) -> None:
        """Choose the kinds whose names are labels.

        Arguments:
            names: Some of ``stream``, ``channel``, ``lock`` and ``rate_limiter``.

        Raises:
            InvalidArgumentError: A kind is not one of these.
        """
        chosen = check_list("names", names)
        if unknown := [each for each in chosen if each not in KINDS]:
            raise InvalidArgumentError(f"names: {unknown[0]!r} is none of {', '.join(KINDS)}")
        self._chosen = frozenset(chosen)
        self._seen: dict[str, dict[str, str]] = {}
        self._guard = threading.Lock()

    def name(self, kind: str, name: str) -> str:
        """Return the name of a stream, channel, lock or limiter as a label; "" if its kind isn't chosen."""
        return self.bounded(kind, name) if kind in self._chosen else ""

    def bounded(self, what: str, value: str) -> str:
        """Return a value as a label; `OTHER` if there have been `MOST` different ones of `what`."""
        seen = self._seen.get(what)
        label = None if seen is None else seen.get(value)
        return self._add(what, value) if label is None else label

    def error(self, error: BaseException | None) -> str:
        """Return the class of an error as a label; "" for none."""
        return "" if error is None else self.bounded("error", error_type(error))

    def _add(self, what: str, value: str) -> str:
        with self._guard:
            seen = self._seen.setdefault(what, {})
            if value in seen or len(seen) < MOST:
                return seen.setdefault(value, safe_text(value, LONGEST))
        return OTHER


def error_type(error: BaseException) -> str:
    """Return the name of an error's class, as OpenTelemetry's ``error.type`` has it."""
    return safe_text(type(error).__qualname__, LONGEST)
