"""One text for both flavours: tests are written against the asyncio API, and blocking objects are dressed as it.

`Dressed` turns each blocking call into one that runs in a thread of its own, so that many may block at once.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self

import ailf
from ailf.group import DeadLetters
from contract_tests.harness import Harness

__all__ = ["Dressed", "World", "in_thread"]

BLOCKING = (
    ailf.Backend, ailf.PubSub, ailf.Subscription, ailf.Stream, ailf.Group, ailf.Consumer, ailf.Delivery, DeadLetters,
)  # fmt: skip
IMMEDIATE = {"pubsub", "stream", "group", "consumer", "listen", "stop", "tail", "unwrap"}
"""Methods that don't wait, and are plain functions on asyncio too."""

END = object()
WITHIN = 10.0
"""Seconds that any single wait of a test may take."""


async def in_thread(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Run a blocking call in a new daemon thread; a test that gives up on it is not held back by it."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def work() -> None:
        try:
            result, error = function(*args, **options), None
        except BaseException as raised:  # noqa: BLE001 - it is the test's
            result, error = None, raised
        with contextlib.suppress(RuntimeError):  # the test has given up and its loop is gone
            loop.call_soon_threadsafe(deliver, result, error)

    def deliver(result: Any, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return await answer


class Dressed:
    """A blocking object that looks like its asyncio twin."""

    def __init__(self, world: "World", inner: Any) -> None:
        self._world = world
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, "close" if name == "aclose" else name)
        if not callable(value):
            return self._dress(value)
        if name in IMMEDIATE:
            return lambda *args, **options: self._dress(value(*args, **options))

        async def call(*args: Any, **options: Any) -> Any:
            args = tuple(self._world.undress(each) for each in args)
            return self._dress(await in_thread(value, *args, **options))

        return call

    def _dress(self, value: Any) -> Any:
        return Dressed(self._world, value) if isinstance(value, BLOCKING) or hasattr(value, "send") else value

    async def __aenter__(self) -> Self:
        await in_thread(self._inner.__enter__)
        return self

    async def __aexit__(self, *error: object) -> Any:
        return await in_thread(self._inner.__exit__, *error)

    def __aiter__(self) -> "Dressed":
        return self

    async def __anext__(self) -> Any:
        value = await in_thread(next, self._inner, END)
        if value is END:
            raise StopAsyncIteration
        return self._dress(value)


class World:
    """What a test has: a place, a flavour, and what it opened, which is closed behind it."""

    def __init__(self, harness: Harness, flavour: str) -> None:
        self.harness = harness
        self.flavour = flavour
        self.lease = harness.lease
        self.loop = asyncio.get_running_loop()
        self._opened: list[Any] = []

    async def connect(self, flavour: str | None = None, harness: Harness | None = None) -> Any:
        """Open a backend, as if it were for asyncio."""
        place = harness or self.harness
        if (flavour or self.flavour) == "asyncio":
            backend: Any = await place.connect_async()
        else:
            backend = Dressed(self, await in_thread(place.connect))
        self._opened.append(backend)
        return backend

    def undress(self, value: Any) -> Any:
        """Turn a coroutine function that a test passes as a handler into a blocking one."""
        if not asyncio.iscoroutinefunction(value):
            return value

        def blocking(argument: Any) -> Any:
            shown = Dressed(self, argument) if isinstance(argument, BLOCKING) else argument
            return asyncio.run_coroutine_threadsafe(value(shown), self.loop).result(WITHIN)

        return blocking

    async def advance(self, seconds: float) -> None:
        """Let the backend's *now* advance."""
        await self.harness.advance(seconds)

    async def close(self) -> None:
        """Close what the test opened."""
        for backend in reversed(self._opened):
            await asyncio.wait_for(backend.aclose(), WITHIN)


async def live(harness: Harness, flavour: str, test: Callable[..., Coroutine[Any, Any, None]], **more: Any) -> None:
    """Run one contract test in a world of its own, within a deadline."""
    world = World(harness, flavour)
    try:
        await asyncio.wait_for(test(world=world, flavour=flavour, **more), 3 * WITHIN)
    finally:
        await world.close()
