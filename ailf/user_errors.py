"""What an exception of user code means: does it interrupt the process, does it end the loop that called the code."""

import asyncio
import threading
from asyncio import _get_running_loop
from collections.abc import Iterator

__all__ = ["interrupts", "is_cancelled", "is_fatal", "leaves_of"]


def leaves_of(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions that a group holds, at any depth, in their order; or the exception itself."""
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if isinstance(each, BaseExceptionGroup):
            waiting.extend(reversed(each.exceptions))
        else:
            yield each


def interrupts(error: BaseException | None) -> bool:
    """Tell whether an error of user code is an interruption of its process: Ctrl-C or `sys.exit`, also in a group.

    `sys.exit` in a thread beside the main one ends nothing but the function, so there it is the function's own error.
    """
    if error is None or isinstance(error, Exception):
        return False
    ends = threading.current_thread() is threading.main_thread() or _get_running_loop() is not None
    return any(
        isinstance(each, KeyboardInterrupt) or (ends and isinstance(each, SystemExit)) for each in leaves_of(error)
    )


def is_cancelled(error: BaseException) -> bool:
    """Tell whether an error is a cancellation, or a group that holds one, as other libraries' task groups raise it."""
    return any(isinstance(each, asyncio.CancelledError) for each in leaves_of(error))


def is_fatal(error: BaseException | None) -> bool:
    """Tell whether an error of user code ends the loop that called it: it is no `Exception` and no cancellation."""
    if error is None or isinstance(error, Exception):
        return False
    return not all(isinstance(each, Exception | asyncio.CancelledError) for each in leaves_of(error))
