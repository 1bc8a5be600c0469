"""The loggers of ailf. Each record names its subject: at the beginning of its text, and in fields for a formatter.

The rule of this file: no other module makes a logger, so every record of the loggers ``ailf.*`` has all of `FIELDS`.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final, Protocol, TypedDict

import attrs

from ailf.safe_text import LONGEST_TRACEBACK, can_be_shown, rendered, safe_text

__all__ = ["FIELDS", "About", "Fields", "Log", "Subject"]


class Fields(TypedDict, total=False):
    """The fields of a record; one that is left out doesn't apply.

    Attributes:
        backend: The backend's URL without credentials.
        stream: The stream's name.
        group: The group's name.
        entry_id: The entry's id in its stream.
        attempt: The number of the delivery.
        consumer: The consumer's name.
        lock: The lock's name; several are joined by ``" + "``.
        key: The ordering key of a message, or the key of a rate limiter.
    """

    backend: str
    stream: str
    group: str
    entry_id: str
    attempt: int | None
    consumer: str
    lock: str
    key: str


FIELDS: Final[Fields] = {
    "backend": "", "stream": "", "group": "", "entry_id": "", "attempt": None, "consumer": "", "lock": "", "key": "",
}  # fmt: skip
"""All fields, with the values that stand for a field that doesn't apply."""


class Subject(Protocol):
    """What a record is about. Its `str` is the beginning of the record's text."""

    def log_fields(self) -> Fields:
        """Return its fields."""


@attrs.frozen
class About:
    """A subject that has no object of its own.

    Attributes:
        text: The beginning of the record's text.
        fields: Its fields.
    """

    text: str
    fields: Fields

    def log_fields(self) -> Fields:
        """Return its fields."""
        return self.fields

    def __str__(self) -> str:
        return self.text


class Log:
    """One logger. Each method takes the subject, or None, and then what `logging` takes.

    Arguments:
        name: The logger's name; ``docs/guides/observability.md`` lists them.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, about: Subject | None, message: str, *args: object) -> None:
        """Log what helps to find a fault in ailf or in a program."""
        self._log(logging.DEBUG, about, message, args)

    def info(self, about: Subject | None, message: str, *args: object) -> None:
        """Log an event of normal operation."""
        self._log(logging.INFO, about, message, args)

    def warning(self, about: Subject | None, message: str, *args: object) -> None:
        """Log what ailf will repair or bear, and an operator should know."""
        self._log(logging.WARNING, about, message, args)

    def error(self, about: Subject | None, message: str, *args: object) -> None:
        """Log that a message or a handler has failed."""
        self._log(logging.ERROR, about, message, args)

    def failure(
        self, level: int, about: Subject | None, message: str, *args: object, error: BaseException | None
    ) -> None:
        """Log a message with an exception: with its traceback if a log can show it, else its frames and description.

        Arguments:
            level: The level.
            about: The subject.
            message: The message, with ``%s`` for each argument.
            args: The arguments. Their texts must be safe.
            error: The exception; None for none.
        """
        self._log(level, about, message, args, error)

    def _log(
        self,
        level: int,
        about: Subject | None,
        message: str,
        args: tuple[object, ...],
        error: BaseException | None = None,
    ) -> None:
        if not self._logger.isEnabledFor(level):
            return
        extra: Mapping[str, Any] = FIELDS
        if about is not None:
            message, args, extra = f"%s: {message}", (about, *args), {**FIELDS, **about.log_fields()}
        if error is not None and not can_be_shown(error):
            message, args = f"{message}\n%s", (*args, safe_text(rendered(error), LONGEST_TRACEBACK))
            error = None
        self._logger.log(level, message, *args, exc_info=error, extra=extra, stacklevel=3)
