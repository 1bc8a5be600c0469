"""One text for both flavours: tests are written against the asyncio API, and blocking objects are dressed as it.

`BlockingAdapter` turns each blocking call into one that runs in a thread of its own, so that many may block at once.
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

__all__ = ["World", "live"]
DEADLINE = 6
"""How many times the patience with one wait a whole test may take."""

T = TypeVar("T")


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

    def rival(
        self, backend: Any, stream: str, group: str = "g", name: str = "rival", **options: Any
    ) -> UnmanagedConsumer:
        """Return a member of a group that is in another process, as it were."""
        rival = UnmanagedConsumer(backend, stream, group, name, **options)
        self._opened.append(rival)
        return rival

    async def connect(self, flavour: str | None = None, harness: Harness | None = None) -> Any:
        """Open a backend, as if it were for asyncio."""
        place = harness or self.harness
        if (flavour or self.flavour) == "asyncio":
            backend: Any = await place.connect_async()
        else:
            backend = BlockingAdapter(self.undress, await in_thread(place.connect))
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
            shown = BlockingAdapter(self.undress, argument) if isinstance(argument, BLOCKING) else argument
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
