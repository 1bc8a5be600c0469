"""The world of a test: a harness, a flavour, and bounded waits. Tests are written once, against the asyncio API.

`BlockingAdapter` runs each blocking call in a thread of its own, so that many may block at once.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

import ailf
from contract_tests.blocking_adapter import BLOCKING, BlockingAdapter
from contract_tests.harness import Harness
from contract_tests.helpers.threads import in_thread
from contract_tests.helpers.unmanaged_consumer import UnmanagedConsumer

__all__ = ["World", "run_test"]
DEADLINE = 6
"""A test may take this many times the patience of one wait."""

T = TypeVar("T")


class World:
    """The context of a test: its harness and flavour. It bounds each wait, and closes what the test opened.

    Attributes:
        harness: The harness.
        flavour: The flavour of the backends that `connect` opens: "blocking" or "asyncio".
        lease: Seconds of a lease that the test lets end.
        patience: Seconds to wait for something that must happen.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self, harness: Harness, flavour: str) -> None:
        self.harness = harness
        self.flavour = flavour
        self.lease = harness.lease
        self.patience = harness.patience
        self._opened: list[Any] = []

    def unmanaged_consumer(
        self, backend: Any, stream: str, group: str = "g", name: str = "unmanaged", **options: Any
    ) -> UnmanagedConsumer:
        """Return a consumer of a group that acts like one in another process."""
        unmanaged = UnmanagedConsumer(backend, stream, group, name, **options)
        self._opened.append(unmanaged)
        return unmanaged

    async def connect(self, flavour: str | None = None, harness: Harness | None = None) -> Any:
        """Open a backend; a blocking one is adapted to the asyncio API."""
        chosen = harness or self.harness
        if (flavour or self.flavour) == "asyncio":
            backend: Any = await chosen.connect_async()
        else:
            backend = BlockingAdapter(self.adapt_handler, await in_thread(chosen.connect))
        self._opened.append(backend)
        return backend

    def in_other_flavour(self, backend: Any) -> Any:
        """Return an open backend in the other flavour."""
        if isinstance(backend, BlockingAdapter):
            made: Any = backend.to_async()
        else:
            made = BlockingAdapter(self.adapt_handler, backend.to_blocking())
        self._opened.append(made)
        return made

    def untrack(self, backend: Any) -> None:
        """Don't close this backend at the end of the test: the test drops it."""
        self._opened = [each for each in self._opened if each is not backend]

    def adapt_handler(self, value: Any) -> Any:
        """Return a blocking handler that runs a test's coroutine function; return any other value as it is."""
        if not asyncio.iscoroutinefunction(value):
            return value

        def blocking(argument: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(value(self._adapted(argument)), self.loop).result(
                DEADLINE * self.patience
            )

        return blocking

    def _adapted(self, argument: Any) -> Any:
        """Return the argument of a handler with the asyncio API: a delivery, a list of them, or any other value."""
        if isinstance(argument, list):
            return [self._adapted(each) for each in argument]
        return BlockingAdapter(self.adapt_handler, argument) if isinstance(argument, BLOCKING) else argument

    async def advance(self, seconds: float) -> None:
        """Advance the backend's *now* by this many seconds."""
        await self.harness.advance(seconds)

    async def elapse(self, seconds: float) -> None:
        """Wait, and advance the backend's *now* at the same rate, for work that goes on beside the test."""
        start, backend_start = time.monotonic(), self.harness.now()
        while (left := start + seconds - (begin := time.monotonic())) > 0:
            step = min(left, 0.02)
            behind = begin - start - (self.harness.now() - backend_start)  # a busy machine sleeps too long
            await self.advance(step + max(0.0, behind))
            await asyncio.sleep(max(0.0, begin + step - time.monotonic()))

    def when(self, later: float = 0.0) -> datetime:
        """Return the backend's *now* plus `later` seconds as a datetime."""
        return datetime.fromtimestamp(self.harness.now() + later, UTC)

    # --- bounded waits -------------------------------------------------------------------------------------------

    async def within_patience(self, waiting: Awaitable[T], within: float | None = None) -> T:
        """Return the result of an awaitable; fail if it takes longer than `within` seconds, or the patience."""
        seconds = self.patience if within is None else within
        future = asyncio.ensure_future(waiting)
        try:
            done, _ = await asyncio.wait([future], timeout=seconds)
        except asyncio.CancelledError:
            future.cancel()
            raise
        if not done:
            future.cancel()
            future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # else asyncio logs an error
            what = getattr(future, "get_coro", lambda: future)()
            raise AssertionError(f"{getattr(what, '__qualname__', what)} did not end within {seconds:g} s")
        return future.result()

    async def take(self, source: Any) -> Any:
        """Return the next delivery or message; fail if there is none within the patience."""
        item = await self.within_patience(source.get(self.patience), 2 * self.patience)
        assert item is not None, f"no item arrived within {self.patience} s"
        return item

    async def expect_item(self, waiting: Awaitable[Any]) -> Any:
        """Return the item of a `get` that is under way; fail if it returns None."""
        item = await self.within_patience(waiting)
        assert item is not None, "get() returned None, and an item was expected"
        return item

    async def expect_none(self, source: Any) -> None:
        """Fail if a consumer gets a message now, or a subscription within the harness's `arrival_grace`."""
        consumes = isinstance(getattr(source, "_inner", source), ailf.Consumer | ailf.AsyncConsumer)
        item = await source.get(0.0 if consumes else self.harness.arrival_grace)
        assert item is None, f"{item} arrived, and no item should"

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until the condition holds; fail if it doesn't within the patience."""
        for _ in range(round(self.patience / 0.01)):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"the condition did not hold within {self.patience} s: {condition}")

    async def until_async(self, condition: Callable[[], Awaitable[Any]]) -> None:
        """Wait until a condition that has to be awaited holds; fail if it doesn't within the patience."""
        for _ in range(round(self.patience / 0.01)):
            if await condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"the condition did not hold within {self.patience} s: {condition}")

    async def close(self) -> None:
        """Close everything that the test opened."""
        for backend in reversed(self._opened):
            await self.within_patience(backend.aclose(), 2 * self.patience)


async def run_test(world: World, test: Callable[..., Coroutine[Any, Any, None]], **more: Any) -> None:
    """Run one contract test in its world, within its deadline."""
    world.loop = asyncio.get_running_loop()
    world.loop.set_task_factory(world.harness.task_factory)
    try:
        await world.within_patience(test(world=world, **more), DEADLINE * world.patience)
    finally:
        await world.close()
