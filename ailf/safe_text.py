"""Make users' texts safe before they go to a driver or a log: error texts, reasons, tracebacks.

An exception's `__str__` may raise. Its text may have 50 MB, or a lone surrogate, which can't be encoded. Neither may
harm the settlement of another message, or a log line. Every function here returns text that is short and can be
encoded. Nothing here waits.
"""

import itertools
import traceback
from typing import Final

from ailf.errors import InvalidArgumentError
from ailf.user_errors import leaves_of

__all__ = [
    "LONGEST",
    "LONGEST_TRACEBACK",
    "can_be_shown",
    "describe",
    "rendered",
    "safe_reason",
    "safe_text",
    "text_of",
]

LONGEST: Final = 2000
"""The longest text that is kept, in characters."""

LONGEST_TRACEBACK: Final = 20_000
"""The longest text in place of a traceback, in characters."""

MOST_ERRORS: Final = 32
"""How many exceptions of a chain or a group a text or a log shows."""

MOST_FRAMES: Final = 32
"""How many frames, the innermost, are shown of a traceback that a log can't show itself."""


def safe_text(text: str, longest: int = LONGEST) -> str:
    """Return text that can be encoded, cut to ``longest`` characters. Each lone surrogate becomes its escape."""
    cut = text[:longest]
    try:
        cut.encode()
    except UnicodeEncodeError:
        return cut.encode("utf-8", "backslashreplace").decode()[:longest]
    return cut


def safe_reason(what: str, reason: object) -> str:
    """Return a user's reason, made safe.

    Arguments:
        what: The name of the argument, for the error.
        reason: The reason.

    Raises:
        InvalidArgumentError: The reason isn't a text.
    """
    if not isinstance(reason, str):
        raise InvalidArgumentError(f"{what} must be text, not {type(reason).__name__}")
    return safe_text(reason)


def text_of(error: BaseException) -> str:
    """Return the text of an exception, made safe; its type if the text is empty; a note if its `__str__` raises."""
    try:
        return safe_text(str(error)) or type(error).__name__
    except BaseException as failure:  # noqa: BLE001 - `__str__` is user code, and may raise anything
        return f"<no text: {type(error).__name__}.__str__ raised {type(failure).__name__}>"


def describe(error: BaseException) -> str:
    """Return the type and text of an exception; for a group, also those of the exceptions in it."""
    description = _typed(error)
    if isinstance(error, BaseExceptionGroup):
        leaves = itertools.islice(leaves_of(error), MOST_ERRORS)
        description = f"{description}: {'; '.join(map(_typed, leaves))}"
    return safe_text(description)


def _typed(error: BaseException) -> str:
    name, text = type(error).__name__, text_of(error)
    return name if text == name else f"{name}: {text}"


def can_be_shown(error: BaseException) -> bool:
    """Tell whether a log can show an exception and those that its traceback includes: causes, contexts, groups."""
    pending, seen = [error], 0
    while pending:
        each = pending.pop()
        seen += 1
        if seen > MOST_ERRORS or not _is_plain(each):
            return False
        pending += [linked for linked in (each.__cause__, each.__context__) if linked is not None]
        if isinstance(each, BaseExceptionGroup):
            pending += each.exceptions
    return True


def _is_plain(error: BaseException) -> bool:
    try:
        texts = [str(error), *getattr(error, "__notes__", ())]
        return all(len(text) <= LONGEST and text == safe_text(text) for text in texts)
    except BaseException:  # noqa: BLE001 - as `text_of`
        return False


def rendered(error: BaseException) -> str:
    """Return the frames of an exception's traceback, and its description."""
    frames = "".join(traceback.format_tb(error.__traceback__, limit=-MOST_FRAMES))
    return f"Traceback (most recent call last):\n{frames}{describe(error)}"
