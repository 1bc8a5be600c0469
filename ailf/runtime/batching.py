"""Batching: the calls that tasks make in one iteration of the event loop share one request.

A call that comes while no other is under way doesn't wait for the iteration's end, but makes its request itself; the
calls that come meanwhile share one. So a single caller pays no task and no iteration, and of many callers one request
more is made than there are batches.

Threads have no such iterations, and a backend in the same process has no round trip to save. There each call is a
request of its own.
"""

import asyncio
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from ailf.errors import OutcomeUnknownError
from ailf.runtime.aio import start_task

__all__ = ["Batcher", "batcher"]

X = TypeVar("X")
Y = TypeVar("Y")
Work = Callable[[Sequence[X]], Awaitable[Sequence[Y | Exception]]]
"""Makes one request for all items; an exception among its results belongs to its item alone."""


Callback = Callable[[Y | BaseException], Awaitable[None]]
"""Gets the result for one item, or its error."""


class Batcher(ABC, Generic[X, Y]):
    """Makes one kind of request, for one item or for many."""

    @abstractmethod
    def do(self, item: X) -> Awaitable[Y]:
        """Queue the item; return an awaitable of its result, or of its error."""

    @abstractmethod
    async def post(self, item: X, then: Callback[Y]) -> None:
        """Queue the item and return; `then` gets its result. Without batching that is before this returns."""


def batcher(
    work: Work[X, Y],
    max_batch: int,
    *,
    batched: bool,
    check_loop: Callable[[], None],
    unclaimed: Callable[[X, Y], Awaitable[None]] | None = None,
) -> Batcher[X, Y]:
    """Return a batcher for this work.

    Arguments:
        work: Makes the request.
        max_batch: The largest number of items in one request.
        batched: Whether the items of one iteration of the event loop share a request; else each has its own.
        check_loop: Raises where the running event loop must not be used; called once in each new loop.
        unclaimed: Gets an item and its result if the caller was cancelled while the batch was under way.
    """
    return _LoopBatcher(work, max_batch, check_loop, unclaimed) if batched else _SingleCalls(work)


class _SingleCalls(Batcher[X, Y]):
    def __init__(self, work: Work[X, Y]) -> None:
        self._work = work

    async def do(self, item: X) -> Y:
        (result,) = await self._work([item])
        if isinstance(result, Exception):
            raise result
        return result

    async def post(self, item: X, then: Callback[Y]) -> None:
        (result,) = await _results(self._work, [item])
        await then(result)


class _LoopBatcher(Batcher[X, Y]):
    def __init__(
        self,
        work: Work[X, Y],
        max_batch: int,
        check_loop: Callable[[], None],
        unclaimed: Callable[[X, Y], Awaitable[None]] | None,
    ) -> None:
        self._work = work
        self._max_batch = max_batch
        self._check_loop = check_loop
        self._unclaimed = unclaimed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[tuple[X, asyncio.Future[Y] | Callback[Y]]] = []
        self._next: asyncio.Task[None] | None = None  # sends what waits, in the next iteration
        self._running: set[asyncio.Task[None]] = set()
        self._alone: weakref.ref[Coroutine[Any, Any, Y]] | None = None  # that of a caller that makes its request itself

    def do(self, item: X) -> Awaitable[Y]:
        # A cancelled caller cancels its own request, so one whose result must not be lost doesn't make it itself.
        if self._unclaimed is None and not self._running and (self._alone is None or self._alone() is None):
            alone = self._do_alone(item)
            self._alone = weakref.ref(alone)
            return alone
        future: asyncio.Future[Y] = asyncio.Future()
        self._queue(item, future)
        return future

    async def _do_alone(self, item: X) -> Y:
        try:
            if self._loop is not (loop := asyncio.get_running_loop()):
                self._move(loop)
            (result,) = await self._work([item])
        finally:
            self._alone = None
        if isinstance(result, Exception):
            raise result
        return result

    async def post(self, item: X, then: Callback[Y]) -> None:
        self._queue(item, then)

    def _queue(self, item: X, receiver: asyncio.Future[Y] | Callback[Y]) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._move(loop)
        if self._next is None:
            self._start()
        self._waiting.append((item, receiver))

    def _move(self, loop: asyncio.AbstractEventLoop) -> None:
        """Continue in another event loop. The old one has ended, so no caller waits for its items."""
        self._check_loop()
        self._loop, self._waiting, self._next, self._running = loop, [], None, set()

    def _start(self) -> None:
        self._next = task = start_task(self._run())
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        if task is self._next:  # it was cancelled before its first step
            self._start()

    async def _run(self) -> None:  # noqa: C901 - cut in two, each request would take one call more
        batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
        self._next = None
        if self._waiting:
            self._start()
        wanted = [each for each in batch if not isinstance(each[1], asyncio.Future) or not each[1].done()]
        if not wanted:  # all were cancelled
            return
        interruption: BaseException | None = None
        try:
            results = await _results(self._work, [item for item, _ in wanted])
        except BaseException as error:  # noqa: BLE001 - it is raised again below
            interruption = error
            results = [_unknown(error)] * len(wanted)
        unclaimed: list[tuple[X, Y]] = []
        for (item, receiver), result in zip(wanted, results, strict=True):
            if not isinstance(receiver, asyncio.Future):
                await receiver(result)
            elif receiver.done():  # it was cancelled
                if self._unclaimed is not None and not isinstance(result, BaseException):
                    unclaimed.append((item, result))
            elif isinstance(result, BaseException):
                receiver.set_exception(result)
            else:
                receiver.set_result(result)
        if interruption is not None:
            raise interruption
        for each in unclaimed:
            await self._unclaimed(*each)  # type: ignore[misc]  # else there are none


def _unknown(interruption: BaseException) -> OutcomeUnknownError:
    return OutcomeUnknownError(
        f"the request was interrupted by {type(interruption).__name__} and may have been carried out; "
        "repeat it only if doing it twice does no harm",
        maybe_applied=True,
    )


async def _results(work: Work[X, Y], items: Sequence[X]) -> Sequence[Y | BaseException]:
    """Return the result for each item. An error of the request is every item's; an interruption is raised."""
    try:
        return await work(items)
    except Exception as error:  # noqa: BLE001 - each caller gets it
        return [error] * len(items)
