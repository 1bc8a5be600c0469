"""Classify exceptions of user code: whether one interrupts the process, is a cancellation, or ends the calling loop."""

import asyncio
import threading
from asyncio import _get_running_loop
from collections.abc import Iterator

__all__ = ["interrupts", "is_cancelled", "is_fatal", "leaves_of"]


def leaves_of(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions in a group, at any depth, in order; or the exception itself if it isn't a group."""
    pending = [error]
    while pending:
        each = pending.pop()
        if isinstance(each, BaseExceptionGroup):
            pending.extend(reversed(each.exceptions))
        else:
            yield each


def interrupts(error: BaseException | None) -> bool:
    """Tell whether an error of user code interrupts the process: Ctrl-C or `sys.exit`, also in a group.

    In any other thread than the main one `sys.exit` ends only the function, so there it is an error of the function.
    """
    if error is None or isinstance(error, Exception):
        return False
    ends = threading.current_thread() is threading.main_thread() or _get_running_loop() is not None
    return any(
        isinstance(each, KeyboardInterrupt) or (ends and isinstance(each, SystemExit)) for each in leaves_of(error)
    )


def is_cancelled(error: BaseException) -> bool:
    """Tell whether an error is a cancellation, or a group with one, as task groups of other libraries raise."""
    return any(isinstance(each, asyncio.CancelledError) for each in leaves_of(error))


def is_fatal(error: BaseException | None) -> bool:
    """Tell whether an error of user code ends the loop that called the code: no `Exception` and no cancellation."""
    if error is None or isinstance(error, Exception):
        return False
    return not all(isinstance(each, Exception | asyncio.CancelledError) for each in leaves_of(error))
