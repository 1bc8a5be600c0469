"""Run plain functions for an event loop, in threads of their own."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

from ailf.runtime.base import run
from ailf.runtime.threads import ThreadRuntime

__all__ = ["ThreadPool"]

Outcome = tuple[Any, BaseException | None]
Job = tuple["asyncio.Future[Outcome]", Context, Callable[..., Any], tuple[Any, ...]]


class ThreadPool:
    """Up to ``size`` daemon threads, started as they are needed. A function that never ends keeps no process alive.

    Arguments:
        size: The most threads, and so the most functions that run at once.
        name: The beginning of the threads' names.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._threads = 0
        self._idle = 0  # threads without a function; counted in the event loop, so it needs no lock
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._runtime = ThreadRuntime()

    async def call_user_code(self, function: Callable[..., Any], *args: Any) -> Outcome:
        """Call a function in a thread, in a copy of this context; return its result and its exception.

        A cancelled caller returns at once, and the function runs on.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if self._idle <= 0 and self._threads < self._size:
            self._threads += 1
            self._idle += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._threads}", daemon=True).start()
        self._idle -= 1
        self._jobs.put((future, copy_context(), function, args))
        return await future

    def close(self) -> None:
        """Let each thread end after the function that it runs."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, context, function, args = job
            outcome = context.run(run, self._runtime.call_user_code(function, *args))
            with contextlib.suppress(RuntimeError):  # the loop is closed, so no caller waits
                future.get_loop().call_soon_threadsafe(self._end, future, outcome)
            del job, future, context, function, args, outcome  # an idle thread keeps nothing alive

    def _end(self, future: "asyncio.Future[Outcome]", outcome: Outcome) -> None:
        self._idle += 1
        if not future.done():  # its caller may have been cancelled
            future.set_result(outcome)
