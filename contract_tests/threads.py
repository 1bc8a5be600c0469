"""Threads of the suite's own, in which blocking calls are made."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

__all__ = ["at_work", "in_thread"]

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
    """Run a blocking call in a thread of its own, in the caller's context as far as it can be seen there."""
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

    _threads.start(work)
    return await answer
