"""The functions of users: which of them are refused, and what a message calls them."""

import functools
import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from types import CoroutineType
from typing import Any, TypeVar

from ailf.errors import InvalidArgumentError

__all__ = ["name_of"]

T = TypeVar("T")

log = logging.getLogger("ailf")


def is_one_of(function: object, kind: Callable[[Any], bool]) -> bool:
    """Tell whether a function is of a kind; of an object that can be called, its ``__call__`` counts."""
    while isinstance(function, functools.partial):
        function = function.func
    return kind(function) or kind(type(function).__call__)


def check_callable(what: str, function: object, *, may_yield: bool) -> None:
    if not callable(function):
        raise InvalidArgumentError(f"{what} must be callable, not {type(function).__name__}")
    if may_yield:
        return
    if is_one_of(function, inspect.isgeneratorfunction) or is_one_of(function, inspect.isasyncgenfunction):
        raise InvalidArgumentError(
            f"{what} {name_of(function)} yields, so calling it runs nothing of it; write a function without `yield`"
        )


def check_result(function: object, result: object) -> InvalidArgumentError | None:
    """Return the error of a function that returned something that has yet to be run; None for any other result."""
    if isinstance(result, CoroutineType):
        result.close()
    elif not isinstance(result, Awaitable | Generator | AsyncGenerator | map | filter):
        return None
    return InvalidArgumentError(
        f"{name_of(function)} returned a {type(result).__name__}, which has yet to be run: write a function without "
        "`yield` that runs what it makes; a coroutine function needs the Async… twin"
    )


def name_of(function: object) -> str:
    """Return what a message calls a function, without its arguments."""
    return str(getattr(function, "__qualname__", type(function).__qualname__))
