"""User code: which functions are refused, and how messages name them."""

import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from types import CoroutineType
from typing import Any

from ailf.errors import InvalidArgumentError

__all__ = ["check_callable", "check_result", "is_one_of", "name_of"]


def is_one_of(function: object, kind: Callable[[Any], bool]) -> bool:
    """Return whether `kind` holds for a function, or for the ``__call__`` of a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    return kind(function) or kind(type(function).__call__)


def check_callable(what: str, function: object, *, may_yield: bool) -> None:
    """Refuse what can't be called, and what yields unless `may_yield`; see `Runtime.check_callable`."""
    if not callable(function):
        raise InvalidArgumentError(f"{what} must be callable, not {type(function).__name__}")
    if may_yield:
        return
    if is_one_of(function, inspect.isgeneratorfunction) or is_one_of(function, inspect.isasyncgenfunction):
        raise InvalidArgumentError(
            f"{what} {name_of(function)} yields, so calling it runs none of its code; pass a function without `yield`"
        )


def check_result(function: object, result: object) -> InvalidArgumentError | None:
    """Return the error of a function whose result is lazy, such as a coroutine or generator; None for other results."""
    if isinstance(result, CoroutineType):
        result.close()
    elif not isinstance(result, Awaitable | Generator | AsyncGenerator | map | filter):
        return None
    return InvalidArgumentError(
        f"{name_of(function)} returned a {type(result).__name__}, which has not run: pass a function without `yield` "
        "that runs it itself; for a coroutine function use the Async… class"
    )


def name_of(function: object) -> str:
    """Return the name of a function for messages, without its arguments."""
    return str(getattr(function, "__qualname__", type(function).__qualname__))
