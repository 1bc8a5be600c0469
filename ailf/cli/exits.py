"""The exit codes, and the one line on stderr for each error. Pure."""

from typing import Final

from ailf.cli.text import visible
from ailf.errors import (
    AilfError,
    BackendTimeoutError,
    ConnectionLostError,
    DecodeError,
    EncodeError,
    InvalidArgumentError,
    NotFoundError,
    OutcomeUnknownError,
    PermissionDeniedError,
    UnsupportedError,
)
from ailf.safe_text import text_of

__all__ = [
    "BROKEN_PIPE",
    "DONE",
    "FAILED",
    "INTERRUPTED",
    "USAGE",
    "ClosedPipeError",
    "CommandError",
    "code_for",
    "line_for",
]

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
DENIED: Final = 4
UNSUPPORTED: Final = 5
NOT_FOUND: Final = 6
UNKNOWN: Final = 7
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141

LONGEST: Final = 1000
"""The most characters of an error's text that are shown."""

_CODES: Final[tuple[tuple[type[BaseException], int], ...]] = (
    (InvalidArgumentError, USAGE),
    (EncodeError, USAGE),
    (ConnectionLostError, UNREACHABLE),
    (BackendTimeoutError, UNREACHABLE),
    (PermissionDeniedError, DENIED),
    (UnsupportedError, UNSUPPORTED),
    (NotFoundError, NOT_FOUND),
    (OutcomeUnknownError, UNKNOWN),
    (DecodeError, FAILED),
    (AilfError, FAILED),
)


class ClosedPipeError(Exception):
    """The reader of our output has gone. It is no `OSError`, as typer ends the process at some of those."""


class CommandError(Exception):
    """A command can't do what it was asked; its text is one line for the user.

    Arguments:
        text: The line.
        code: The exit code.
    """

    def __init__(self, text: str, code: int = FAILED) -> None:
        super().__init__(text)
        self.code = code


def code_for(error: BaseException) -> int:
    """Return the exit code for an error."""
    if isinstance(error, CommandError):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def line_for(error: BaseException) -> str:
    """Return the line that says what happened, without anything that a terminal would interpret."""
    text = " ".join(text_of(error).split())
    known = isinstance(error, CommandError | AilfError)
    text = text if known else f"{type(error).__name__}: {text}"
    return visible(text if len(text) <= LONGEST else text[:LONGEST] + "…")
