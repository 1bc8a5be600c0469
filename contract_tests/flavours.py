"""One text for both flavours: tests are written against the asyncio API, and blocking objects are dressed as it.

`Dressed` turns each blocking call into one that runs in a thread of its own, so that many may block at once.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Self, TypeVar

import ailf
from ailf.group import DeadLetters
from contract_tests.harness import Harness

__all__ = ["OWN", "Dressed", "World", "in_thread", "live"]

BLOCKING = (
    ailf.Backend, ailf.PubSub, ailf.Subscription, ailf.Stream, ailf.Group, ailf.Consumer, ailf.Delivery, DeadLetters,
)  # fmt: skip
IMMEDIATE = {"pubsub", "stream", "group", "consumer", "listen", "stop", "tail", "unwrap"}
"""Methods that don't wait, and are plain functions on asyncio too."""

END = object()
OWN = "contract-"
"""What the names of the suite's own threads begin with."""

DEADLINE = 6
"""How many times the patience with one wait a whole test may take."""

T = TypeVar("T")


class _Threads:
    """Threads to block in, used again and again; a test that gives up on a call is not held back by its thread."""

    def __init__(self) -> None:
        self._idle: list[queue.SimpleQueue[Callable[[], None]]] = []

    def start(self, work: Callable[[], None]) -> None:
        """Run it in an idle thread, or a new one."""
        try:
            box = self._idle.pop()
        except IndexError:
            box = queue.SimpleQueue()
            threading.Thread(target=self._serve, args=(box,), name=f"{OWN}call", daemon=True).start()
        box.put(work)

    def _serve(self, box: "queue.SimpleQueue[Callable[[], None]]") -> None:
        while True:
            box.get()()
            self._idle.append(box)


_threads = _Threads()


async def in_thread(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Run a blocking call in a thread of its own."""
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

    _threads.start(work)
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
    """What a test has: a place, a flavour, patience, and what it opened, which is closed behind it.

    Attributes:
        harness: The place.
        flavour: The flavour of what `connect` opens.
        lease: Seconds for a lease that the test lets end.
        patience: Seconds to wait for what must come.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self, harness: Harness, flavour: str) -> None:
        self.harness = harness
        self.flavour = flavour
        self.lease = harness.lease
        self.patience = harness.patience
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
            return asyncio.run_coroutine_threadsafe(value(shown), self.loop).result(DEADLINE * self.patience)

        return blocking

    async def advance(self, seconds: float) -> None:
        """Let the backend's *now* advance."""
        await self.harness.advance(seconds)

    # --- waiting, never for ever ---------------------------------------------------------------------------------

    async def soon(self, waiting: Awaitable[T], within: float | None = None) -> T:
        """Return what is waited for; fail when it takes longer than our patience."""
        seconds = self.patience if within is None else within
        future = asyncio.ensure_future(waiting)
        try:
            done, _ = await asyncio.wait([future], timeout=seconds)
        except asyncio.CancelledError:
            future.cancel()
            raise
        if not done:
            future.cancel()
            future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # else it is complained of
            what = getattr(future, "get_coro", lambda: future)()
            raise AssertionError(f"{getattr(what, '__qualname__', what)} did not end within {seconds:g} s")
        return future.result()

    async def take(self, source: Any) -> Any:
        """Return the next delivery or message, which must come."""
        item = await self.soon(source.get(self.patience), 2 * self.patience)
        assert item is not None, f"nothing came within {self.patience} s"
        return item

    async def nothing(self, source: Any) -> None:
        """Fail if a message comes: one that is there now is, after one round trip."""
        item = await source.get(self.harness.blink)
        assert item is None, f"{item} came, and nothing should"

    async def until(self, condition: Callable[[], Any]) -> None:
        """Return when a condition holds, which it must soon."""
        for _ in range(round(self.patience / 0.01)):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"did not come true within {self.patience} s: {condition}")

    async def close(self) -> None:
        """Close what the test opened."""
        for backend in reversed(self._opened):
            await self.soon(backend.aclose(), 2 * self.patience)


async def live(world: World, test: Callable[..., Coroutine[Any, Any, None]], **more: Any) -> None:
    """Run one contract test in its world, within a deadline."""
    world.loop = asyncio.get_running_loop()
    try:
        await world.soon(test(world=world, **more), DEADLINE * world.patience)
    finally:
        await world.close()
