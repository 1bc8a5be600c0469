"""Brings together what several tasks ask for in one turn of the event loop, so that it is one request.

Threads have no such turns, and where asking is no round trip there is nothing to save: there each is a request.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from ailf.errors import OutcomeUnknownError
from ailf.runtime.aio import start_task

__all__ = ["Batcher", "batcher"]

X = TypeVar("X")
Y = TypeVar("Y")
Work = Callable[[Sequence[X]], Awaitable[Sequence[Y | Exception]]]
"""Does something for each item; an exception among the results is that item's."""


Then = Callable[[Y | BaseException], Awaitable[None]]
"""Is told the result for one item, or the error."""


class Batcher(ABC, Generic[X, Y]):
    """Does one thing for many."""

    @abstractmethod
    def do(self, item: X) -> Awaitable[Y]:
        """Return the result for this item, done together with others where there are any."""

    @abstractmethod
    async def post(self, item: X, then: Then[Y]) -> None:
        """Have it done without waiting for the result, where there is somebody else to wait for it."""


def batcher(work: Work[X, Y], most: int, *, in_turns: bool, check_loop: Callable[[], None]) -> Batcher[X, Y]:
    """Return what does this work.

    Arguments:
        work: What is done.
        most: For how many items at once at most.
        in_turns: Whether it is done for all items of one turn of the event loop together; else for each by itself.
        check_loop: Raises where it must not be asked for in the running loop; called in each new one.
    """
    return _InTurns(work, most, check_loop) if in_turns else _AtOnce(work)


class _AtOnce(Batcher[X, Y]):
    def __init__(self, work: Work[X, Y]) -> None:
        self._work = work

    async def do(self, item: X) -> Y:
        (result,) = await self._work([item])
        if isinstance(result, Exception):
            raise result
        return result

    async def post(self, item: X, then: Then[Y]) -> None:
        (result,) = await _results(self._work, [item])
        await then(result)


class _InTurns(Batcher[X, Y]):
    def __init__(self, work: Work[X, Y], most: int, check_loop: Callable[[], None]) -> None:
        self._work = work
        self._most = most
        self._check_loop = check_loop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[tuple[X, asyncio.Future[Y] | Then[Y]]] = []
        self._next: asyncio.Task[None] | None = None  # who takes what waits, when its turn of the loop has come
        self._running: set[asyncio.Task[None]] = set()

    def do(self, item: X) -> Awaitable[Y]:
        answer: asyncio.Future[Y] = asyncio.Future()
        self._wait(item, answer)
        return answer

    async def post(self, item: X, then: Then[Y]) -> None:
        self._wait(item, then)

    def _wait(self, item: X, told: asyncio.Future[Y] | Then[Y]) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._move(loop)
        if self._next is None:
            self._start()
        self._waiting.append((item, told))

    def _move(self, loop: asyncio.AbstractEventLoop) -> None:
        """Go on in another loop; what one has left that has ended, nobody waits for."""
        self._check_loop()
        self._loop, self._waiting, self._next = loop, [], None

    def _start(self) -> None:
        self._next = task = start_task(self._run())
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        if task is self._next:  # it was cancelled before it began
            self._start()

    async def _run(self) -> None:
        batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        self._next = None
        if self._waiting:
            self._start()
        wanted = [each for each in batch if not isinstance(each[1], asyncio.Future) or not each[1].done()]
        if not wanted:  # all were cancelled
            return
        interruption: BaseException | None = None
        try:
            results = await _results(self._work, [item for item, _ in wanted])
        except BaseException as error:  # noqa: BLE001 - it goes on when those that asked have been told
            interruption = error
            results = [_unknown(error)] * len(wanted)
        for (_, told), result in zip(wanted, results, strict=True):
            if not isinstance(told, asyncio.Future):
                await told(result)
            elif told.done():  # it was cancelled
                continue
            elif isinstance(result, BaseException):
                told.set_exception(result)
            else:
                told.set_result(result)
        if interruption is not None:
            raise interruption


def _unknown(interruption: BaseException) -> OutcomeUnknownError:
    return OutcomeUnknownError(
        f"the request was interrupted by {type(interruption).__name__}, and may have been carried out",
        maybe_applied=True,
    )


async def _results(work: Work[X, Y], items: Sequence[X]) -> Sequence[Y | BaseException]:
    """Return the result for each item; an error of the whole is each one's, an interruption is nobody's."""
    try:
        return await work(items)
    except Exception as error:  # noqa: BLE001 - it is those who asked that it concerns
        return [error] * len(items)
