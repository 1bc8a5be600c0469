"""One text for both flavours: tests are written against the asyncio API, and blocking objects are dressed as it.

`Dressed` turns each blocking call into one that runs in a thread of its own, so that many may block at once.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from typing import Any, TypeVar

from msgspec.structs import replace

import ailf
from ailf.lock.hold import Holding
from ailf.ratelimit.ratelimit import PermitHolding
from ailf.stream.group import DeadLetters
from contract_tests.harness import Harness
from contract_tests.rival import Rival
from contract_tests.threads import OneThread, in_thread

__all__ = ["Dressed", "World", "live"]

BLOCKING = (
    ailf.Backend, ailf.PubSub, ailf.Subscription, ailf.Stream, ailf.Group, ailf.Consumer, ailf.Delivery, DeadLetters,
    ailf.Lock, ailf.Lease, Holding, ailf.RateLimiter, ailf.Permit, PermitHolding,
)  # fmt: skip
IMMEDIATE = {
    "pubsub", "stream", "group", "consumer", "listen", "stop", "tail", "unwrap",
    "lock", "semaphore", "hold", "remaining", "rate_limiter",
}  # fmt: skip
"""Methods that don't wait, and are plain functions on asyncio too."""

END = object()
DEADLINE = 6
"""How many times the patience with one wait a whole test may take."""

T = TypeVar("T")


class Dressed:
    """A blocking object that looks like its asyncio twin."""

    def __init__(self, world: "World", inner: Any) -> None:
        self._world = world
        self._inner = inner
        self._set: list[tuple[ContextVar[Any], Token[Any]]] = []
        self._threads: dict[asyncio.Task[Any] | None, list[OneThread]] = {}

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, "close" if name == "aclose" else name)
        if not callable(value):
            return self._dress(value)
        if name in IMMEDIATE:
            return lambda *args, **options: self._dress(value(*args, **self._undressed(options)))

        async def call(*args: Any, **options: Any) -> Any:
            args = tuple(self._world.undress(each) for each in args)
            return self._dress(await in_thread(value, *args, **self._undressed(options)))

        return call

    def _undressed(self, options: dict[str, Any]) -> dict[str, Any]:
        return {name: self._world.undress(each) for name, each in options.items()}

    def _dress(self, value: Any) -> Any:
        if isinstance(value, ailf.Decision) and value.permit is not None:
            return replace(value, permit=self._dress(value.permit))
        return Dressed(self._world, value) if isinstance(value, BLOCKING) or hasattr(value, "send") else value

    async def __aenter__(self) -> Any:
        """Enter it; what that sets in its thread's context is set here too, as it would be on asyncio.

        A task stands for a thread: what it enters it leaves in the same thread, and no other task does.
        """
        thread = OneThread()
        try:
            entered = await thread.run(self._inner.__enter__)
        except Exception:
            thread.close()
            raise
        self._threads.setdefault(asyncio.current_task(), []).append(thread)
        self._set = [(each, each.set(value)) for each, value in thread.context.items() if each.get(END) is not value]
        return self if entered is self._inner else self._dress(entered)

    async def __aexit__(self, *error: object) -> Any:
        while self._set:
            each, token = self._set.pop()
            with contextlib.suppress(ValueError):  # left in another task than it was entered in
                each.reset(token)
        mine = self._threads.get(asyncio.current_task())
        if not mine:  # another task entered it
            return await in_thread(self._inner.__exit__, *error)
        thread = mine.pop()
        left = await asyncio.gather(thread.run(self._inner.__exit__, *error), return_exceptions=True)
        thread.close()  # not where the test gives up on a call that still blocks it
        if isinstance(left[0], BaseException):
            raise left[0]
        return left[0]

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

    def rival(self, backend: Any, stream: str, group: str = "g", name: str = "rival", **options: Any) -> Rival:
        """Return a member of a group that is in another process, as it were."""
        rival = Rival(backend, stream, group, name, **options)
        self._opened.append(rival)
        return rival

    async def connect(self, flavour: str | None = None, harness: Harness | None = None) -> Any:
        """Open a backend, as if it were for asyncio."""
        place = harness or self.harness
        if (flavour or self.flavour) == "asyncio":
            backend: Any = await place.connect_async()
        else:
            backend = Dressed(self, await in_thread(place.connect))
        self._opened.append(backend)
        return backend

    def forget(self, backend: Any) -> None:
        """Leave a backend to the test, which drops it: it is not closed behind it."""
        self._opened = [each for each in self._opened if each is not backend]

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

    async def elapse(self, seconds: float) -> None:
        """Let time really pass, the backend's and this process's together, for what happens beside the test."""
        start, showed = time.monotonic(), self.harness.now()
        while (left := start + seconds - (begin := time.monotonic())) > 0:
            step = min(left, 0.02)
            behind = begin - start - (self.harness.now() - showed)  # by what a busy machine slept too long
            await self.advance(step + max(0.0, behind))
            await asyncio.sleep(max(0.0, begin + step - time.monotonic()))

    def when(self, later: float = 0.0) -> datetime:
        """Return the backend's *now*, or so many seconds later, as the API takes it."""
        return datetime.fromtimestamp(self.harness.now() + later, UTC)

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

    async def came(self, waiting: Awaitable[Any]) -> Any:
        """Return what a `get` that was begun before brings, which must be something."""
        item = await self.soon(waiting)
        assert item is not None, "it waited, and nothing came"
        return item

    async def nothing(self, source: Any) -> None:
        """Fail if a message comes: to a consumer one that is there now, to a subscription one that comes soon."""
        looks = isinstance(getattr(source, "_inner", source), ailf.Consumer | ailf.AsyncConsumer)
        item = await source.get(0.0 if looks else self.harness.blink)
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
    world.loop.set_task_factory(world.harness.task_factory)
    try:
        await world.soon(test(world=world, **more), DEADLINE * world.patience)
    finally:
        await world.close()
