"""Run the handlers of a crew until no group has anything left to deliver now."""

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from typing import Any

from ailf.checks import check_seconds
from ailf.errors import InvalidArgumentError
from ailf.stream import AsyncDelivery, AsyncGroup, Delivery, Group

__all__ = ["run_until_idle", "run_until_idle_async"]


def run_until_idle(
    *crew: tuple[Group[Any], Callable[[Delivery[Any]], Any]], concurrency: int = 1, timeout: float = 10.0
) -> int:
    """Run the handlers of several groups until none of them has a message left; return how many calls there were.

    A handler may add messages for the other groups: they take turns until all are idle. It is
    ``group.process(handler, until_idle=True)`` for a whole crew.

    >>> import ailf
    >>> from ailf.testing import run_until_idle
    >>> with ailf.connect("memory://") as backend:
    ...     pages, texts = backend.stream("pages"), backend.stream("texts")
    ...     first = pages.add(1)
    ...     run_until_idle(
    ...         (pages.group("readers"), lambda delivery: texts.add(f"text of {delivery.data}")),
    ...         (texts.group("writers"), lambda delivery: None),
    ...     )
    2

    Arguments:
        crew: Pairs of a group and its handler.
        concurrency: How many handlers of a group run at once.
        timeout: Seconds of real time that all of it may take. A handler that runs then isn't interrupted.

    Raises:
        TimeoutError: Messages are left after ``timeout`` seconds.
        InvalidArgumentError: A pair isn't a blocking group and a handler.
    """
    _check(crew, Group, "run_until_idle")
    until = time.monotonic() + check_seconds("timeout", timeout)
    total = 0
    while True:
        handled = 0
        for group, handler in crew:
            counter = _Counter(handler)
            timer = threading.Timer(max(0.0, until - time.monotonic()), group.stop)
            timer.daemon = True
            timer.start()
            try:
                group.process(counter.call, concurrency=concurrency, until_idle=True, signals=False)
            finally:
                timer.cancel()
            handled += counter.calls
            _check_time(group, until, timeout)
        total += handled
        if not handled:
            return total


async def run_until_idle_async(
    *crew: tuple[AsyncGroup[Any], Callable[[AsyncDelivery[Any]], Any]], concurrency: int = 1, timeout: float = 10.0
) -> int:
    """Run the handlers of several groups until none of them has a message left; see `run_until_idle`.

    >>> import ailf, asyncio
    >>> from ailf.testing import run_until_idle_async
    >>> async def main() -> int:
    ...     async with ailf.connect_async("memory://") as backend:
    ...         await backend.stream("pages").add(1)
    ...         return await run_until_idle_async((backend.stream("pages").group("readers"), lambda delivery: None))
    >>> asyncio.run(main())
    1

    Arguments:
        crew: Pairs of a group and its handler.
        concurrency: How many handlers of a group run at once.
        timeout: Seconds that all of it may take, on the event loop's clock. Then handlers that run are abandoned.

    Raises:
        TimeoutError: Messages are left after ``timeout`` seconds.
        InvalidArgumentError: A pair isn't an asyncio group and a handler.
    """
    _check(crew, AsyncGroup, "run_until_idle_async")
    loop = asyncio.get_running_loop()
    until = loop.time() + check_seconds("timeout", timeout)
    total = 0
    while True:
        handled = 0
        for group, handler in crew:
            counter = _Counter(handler)
            timer = loop.call_at(until, group.stop)
            try:
                await group.process(
                    counter.call_async, concurrency=concurrency, until_idle=True, drain=0.0, signals=False
                )
            finally:
                timer.cancel()
            handled += counter.calls
            _check_time(group, until, timeout, loop.time)
        total += handled
        if not handled:
            return total


class _Counter:
    """Counts the calls of a handler."""

    def __init__(self, handler: Callable[[Any], Any]) -> None:
        self._handler = handler
        self._guard = threading.Lock()
        self.calls = 0

    def call(self, delivery: Any) -> Any:
        """Call the handler."""
        with self._guard:
            self.calls += 1
        return self._handler(delivery)

    async def call_async(self, delivery: Any) -> Any:
        """Call the handler, and await its result if it can be awaited."""
        result = self.call(delivery)
        return await result if inspect.isawaitable(result) else result


def _check(crew: tuple[Any, ...], kind: type, what: str) -> None:
    if not crew:
        raise InvalidArgumentError(f"{what} needs pairs of a group and its handler: {what}((group, handler))")
    for each in crew:
        if not (isinstance(each, tuple) and len(each) == 2 and isinstance(each[0], kind)):  # noqa: PLR2004 - a pair
            raise InvalidArgumentError(f"{what} takes pairs of {kind.__name__} and handler, not {each!r}")


def _check_time(group: Any, until: float, timeout: float, now: Callable[[], float] = time.monotonic) -> None:
    if now() >= until:
        raise TimeoutError(f"{group!r} was not idle within {timeout:g} s; its handlers may add messages for each other")
