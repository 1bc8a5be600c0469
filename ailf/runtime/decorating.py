"""Decorators that run a function within a context manager: each call, or the whole iteration of a generator.

What is wrong with the function is an error when it is decorated, and not at its first call.
"""

import functools
import inspect
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, TypeAlias, TypeVar, cast

from ailf.errors import InvalidArgumentError
from ailf.runtime.threads import ThreadRuntime
from ailf.runtime.user_code import check_callable, name_of

__all__ = ["Step", "within", "within_async"]

F = TypeVar("F", bound=Callable[..., Any])

Step: TypeAlias = Callable[..., Awaitable[Any]]
"""Runs an async generator up to its next `yield`: it calls a method of it, such as ``asend``, with arguments."""


def within(
    what: str,
    context: Callable[..., AbstractContextManager[object]],
    function: F,
    iteration: Callable[..., AbstractContextManager[object]],
) -> F:
    """Return the function, decorated. A generator function runs within the context for as long as it is iterated.

    Arguments:
        what: The role of the function, for messages: "the limited function".
        context: Returns the context of a call, given its arguments.
        function: A function or generator function.
        iteration: Returns the context of a generator function's iteration.

    Raises:
        InvalidArgumentError: The function isn't callable, or is one for asyncio.
    """
    kind = _called(function)
    ThreadRuntime().check_callable(what, kind, may_yield=True)
    if inspect.isasyncgenfunction(kind):
        raise _wrong_kind(function, "an async generator function: use the Async… class")

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
    what: str,
    context: Callable[..., AbstractAsyncContextManager[object]],
    function: F,
    iteration: Callable[..., AbstractAsyncContextManager[Step]],
) -> F:
    """Return the function, decorated. An async generator function runs within the context while it is iterated.

    Arguments:
        what: The role of the function, for messages: "the limited function".
        context: Returns the context of a call, given its arguments.
        function: A coroutine function or async generator function.
        iteration: Returns the context of an async generator function's iteration; it gives what runs each step of the
            generator.

    Raises:
        InvalidArgumentError: The function isn't callable, or is a generator function.
    """
    kind = _called(function)
    check_callable(what, kind, may_yield=True)
    if inspect.isgeneratorfunction(kind):
        raise _wrong_kind(function, "a generator function, which would block the event loop: make it an async one")

    @functools.wraps(function)
    async def generate(*args: Any, **options: Any) -> Any:
        async with iteration(*args, **options) as step:
            inner = function(*args, **options)
            try:  # as `yield from` does, which async generators don't have
                item = await step(inner.__anext__)
                while True:
                    try:
                        sent = yield item
                    except GeneratorExit:
                        raise
                    except BaseException as error:  # noqa: BLE001 - thrown in here, for the inner generator
                        item = await step(inner.athrow, error)
                    else:
                        item = await step(inner.asend, sent)
            except StopAsyncIteration:
                return
            finally:
                await inner.aclose()

    @functools.wraps(function)
    async def call(*args: Any, **options: Any) -> Any:
        async with context(*args, **options):
            result = function(*args, **options)
            if not inspect.isawaitable(result):
                raise _wrong_kind(function, "a plain function, which can't wait: make it a coroutine function")
            return await result

    return cast("F", generate if inspect.isasyncgenfunction(kind) else call)


def _called(function: Any) -> Any:
    """Return the function that runs when this is called: one inside `partial` or `staticmethod`, or `__call__`."""
    while isinstance(function, functools.partial | staticmethod):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    if inspect.isroutine(function) or isinstance(function, type) or not callable(function):
        return function
    return type(function).__call__


def _wrong_kind(function: object, what: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"can't decorate {name_of(function)}: it is {what}")
