"""Threads of the suite's own, in which blocking calls are made."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

__all__ = ["OneThread", "at_work", "in_thread"]

OWN = "contract-"
"""What the names of the suite's own threads begin with."""

LOOKUPS = "asyncio_"
"""The same of a loop's own, in which it looks up names of hosts; it ends them when it ends."""


def at_work() -> set[threading.Thread]:
    """Return the threads of this process but the suite's and the loop's own."""
    return {each for each in threading.enumerate() if not each.name.startswith((OWN, LOOKUPS))}


class _Threads:
    """Threads to block in, used again and again; a test that gives up on a call is not held back by its thread."""

    def __init__(self) -> None:
        self._idle: list[queue.SimpleQueue[Callable[[], None]]] = []

    def start(self, work: Callable[[], None]) -> None:
        """Run it in an idle thread, or a new one."""
        box = self.take()

        def once() -> None:
            work()
            self.give_back(box)

        box.put(once)

    def take(self) -> "queue.SimpleQueue[Callable[[], None]]":
        """Return the box of a thread that nobody else uses until it is given back."""
        try:
            return self._idle.pop()
        except IndexError:
            box: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
            threading.Thread(target=self._serve, args=(box,), name=f"{OWN}call", daemon=True).start()
            return box

    def give_back(self, box: "queue.SimpleQueue[Callable[[], None]]") -> None:
        """Let others use this thread."""
        self._idle.append(box)

    def _serve(self, box: "queue.SimpleQueue[Callable[[], None]]") -> None:
        while True:
            box.get()()


_threads = _Threads()


class OneThread:
    """A thread and a context for a `with` block, which is entered and left in one and the same.

    Attributes:
        context: What the calls run in.
    """

    def __init__(self) -> None:
        self.context = copy_context()
        self._box = _threads.take()

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a blocking call in this thread."""
        return await _run(self._box.put, self.context.run, function, *args)

    def close(self) -> None:
        """Use it no more."""
        _threads.give_back(self._box)


async def in_thread(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Run a blocking call in a thread of its own, in the caller's context as far as it can be seen there."""
    return await _run(_threads.start, function, *args, **options)


async def _run(
    start: Callable[[Callable[[], None]], None], function: Callable[..., Any], *args: Any, **options: Any
) -> Any:
    context = copy_context()
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def work() -> None:
        try:
            result, error = context.run(function, *args, **options), None
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

    start(work)
    return await answer
