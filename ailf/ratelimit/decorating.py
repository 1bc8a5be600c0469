"""Decorators that run a function within a context manager: each call, or the whole iteration of a generator."""

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, TypeVar, cast

from ailf.errors import InvalidArgumentError
from ailf.runtime import name_of

__all__ = ["called", "within", "within_async"]

F = TypeVar("F", bound=Callable[..., Any])


def called(function: Any) -> Any:
    """Return the function that runs when this is called: the one inside `functools.partial`, or `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function) or isinstance(function, type) or not callable(function):
        return function
    return type(function).__call__


def within(
    context: Callable[..., AbstractContextManager[object]],
    function: F,
    iteration: Callable[..., AbstractContextManager[object]],
) -> F:
    """Return the function, decorated. A generator function runs within the context for as long as it is iterated.

    Arguments:
        context: Returns the context of a call, given its arguments.
        function: A function or generator function.
        iteration: Returns the context of a generator function's iteration.

    Raises:
        InvalidArgumentError: The function is an async generator function.
    """
    kind = called(function)
    if inspect.isasyncgenfunction(kind):
        raise _wrong_kind(function, "an async generator function: use a limiter of an asyncio backend")

    @functools.wraps(function)
    def generate(*args: Any, **options: Any) -> Any:
        with iteration(*args, **options):
            return (yield from function(*args, **options))

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        with context(*args, **options):
            return function(*args, **options)

    return cast("F", generate if inspect.isgeneratorfunction(kind) else call)


def within_async(
    context: Callable[..., AbstractAsyncContextManager[object]],
    function: F,
    iteration: Callable[..., AbstractAsyncContextManager[object]],
) -> F:
    """Return the function, decorated. An async generator function runs within the context while it is iterated.

    Arguments:
        context: Returns the context of a call, given its arguments.
        function: A coroutine function or async generator function.
        iteration: Returns the context of an async generator function's iteration.

    Raises:
        InvalidArgumentError: The function is a generator function.
    """
    kind = called(function)
    if inspect.isgeneratorfunction(kind):
        raise _wrong_kind(function, "a generator function, which would block the event loop: make it an async one")

    @functools.wraps(function)
    async def generate(*args: Any, **options: Any) -> Any:
        async with iteration(*args, **options):
            inner = function(*args, **options)
            try:  # as `yield from` does, which async generators don't have
                item = await anext(inner)
                while True:
                    try:
                        sent = yield item
                    except GeneratorExit:
                        raise
                    except BaseException as error:  # noqa: BLE001 - thrown in here, for the inner generator
                        item = await inner.athrow(error)
                    else:
                        item = await inner.asend(sent)
            except StopAsyncIteration:
                return
            finally:
                await inner.aclose()

    @functools.wraps(function)
    async def call(*args: Any, **options: Any) -> Any:
        async with context(*args, **options):
            return await function(*args, **options)

    return cast("F", generate if inspect.isasyncgenfunction(kind) else call)


def _wrong_kind(function: object, what: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"can't decorate {name_of(function)}: it is {what}")
