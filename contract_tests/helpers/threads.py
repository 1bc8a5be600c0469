"""The suite's own threads, in which it makes blocking calls."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

__all__ = ["OneThread", "in_thread", "running_threads"]

OWN = "contract-"
"""The prefix of the names of the suite's own threads."""

LOOKUPS = "asyncio_"
"""The prefix of the threads in which an event loop resolves host names; they end with the loop."""


def running_threads() -> set[threading.Thread]:
    """Return the threads of this process, without those of the suite and of the event loop."""
    return {each for each in threading.enumerate() if not each.name.startswith((OWN, LOOKUPS))}


class _Threads:
    """A pool of threads for blocking calls. It is unbounded: a call that a test gave up on delays no other call."""

    def __init__(self) -> None:
        self._idle: list[queue.SimpleQueue[Callable[[], None]]] = []

    def start(self, work: Callable[[], None]) -> None:
        """Run the function in an idle thread, or in a new one."""
        box = self.take()

        def once() -> None:
            work()
            self.give_back(box)

        box.put(once)

    def take(self) -> "queue.SimpleQueue[Callable[[], None]]":
        """Return the queue of a thread, for the caller alone until it is given back."""
        try:
            return self._idle.pop()
        except IndexError:
            box: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
            threading.Thread(target=self._serve, args=(box,), name=f"{OWN}call", daemon=True).start()
            return box

    def give_back(self, box: "queue.SimpleQueue[Callable[[], None]]") -> None:
        """Return a thread to the pool."""
        self._idle.append(box)

    def _serve(self, box: "queue.SimpleQueue[Callable[[], None]]") -> None:
        while True:
            box.get()()


_threads = _Threads()


class OneThread:
    """One thread and one context, in which a `with` block is both entered and left.

    Attributes:
        context: The context of the calls.
    """

    def __init__(self) -> None:
        self.context = copy_context()
        self._box = _threads.take()

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a blocking call in this thread."""
        return await _run(self._box.put, self.context.run, function, *args)

    def close(self) -> None:
        """Return the thread to the pool."""
        _threads.give_back(self._box)


async def in_thread(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Run a blocking call in a thread of its own, in a copy of the caller's context."""
    return await _run(_threads.start, function, *args, **options)


async def _run(
    start: Callable[[Callable[[], None]], None], function: Callable[..., Any], *args: Any, **options: Any
) -> Any:
    context = copy_context()
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Any] = loop.create_future()

    def work() -> None:
        try:
            result, error = context.run(function, *args, **options), None
        except BaseException as raised:  # noqa: BLE001 - raised again in the test
            result, error = None, raised
        with contextlib.suppress(RuntimeError):  # the test has given up, and its loop is closed
            loop.call_soon_threadsafe(deliver, result, error)

    def deliver(result: Any, error: BaseException | None) -> None:
        if outcome.done():
            return
        if error is None:
            outcome.set_result(result)
        else:
            outcome.set_exception(error)

    start(work)
    return await outcome
