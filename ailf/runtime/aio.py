"""The asyncio runtime: flows are tasks of the running event loop."""

import asyncio
import contextlib
import functools
import inspect
import logging
import sys
import time
from asyncio import _get_running_loop
from collections.abc import Callable
from types import CoroutineType
from typing import Any

from ailf.errors import InvalidArgumentError, UnsupportedError
from ailf.logs import Log
from ailf.runtime.base import Event, Flow, Runtime, SingleFlight, Task
from ailf.runtime.user_code import check_callable, check_result, name_of
from ailf.user_errors import is_cancelled

__all__ = [
    "AsyncioRuntime",
    "LoopEvent",
    "LoopSingleFlight",
    "asyncio_only",
    "check_ended",
    "other_library",
    "start_task",
]


start_task = asyncio.Task
"""Start a task, which first runs in the next iteration of the running loop.

This is the class itself and not the loop's task factory: an eager one (`asyncio.eager_task_factory`) would run the
first step within the call, and callers rely on nothing running before the call returns.
"""


def check_ended(loop: asyncio.AbstractEventLoop, what: str) -> None:
    """Refuse to use an object of an event loop that still runs, as that loop runs in another thread.

    Arguments:
        loop: The loop that the object belongs to.
        what: The object, for the message: "the connection to host:6379".

    Raises:
        InvalidArgumentError: The loop still runs.
    """
    if loop.is_running():
        raise InvalidArgumentError(
            f"{what} belongs to another event loop, which still runs; open one backend in each event loop"
        )


def other_library() -> str:
    """Return the name of the library that runs coroutines here in place of asyncio, such as trio; "" for none known."""
    sniffio = sys.modules.get("sniffio")  # such a library imports it, to tell that it runs
    if sniffio is None:
        return ""
    try:
        name: str = sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        return ""
    return "" if name == "asyncio" else name


def asyncio_only(what: str) -> UnsupportedError:
    """Return the error of a call of an asyncio class where asyncio doesn't run."""
    return UnsupportedError(
        f"{what} is for asyncio only, and {other_library() or 'no event loop of asyncio'} runs here. Run asyncio "
        "instead: asyncio.run(main()), or anyio.run(main, backend='asyncio'). Or use the blocking backend, "
        "ailf.connect(…), in a thread, as by trio.to_thread.run_sync or anyio.to_thread.run_sync"
    )


class LoopEvent(Event):
    """An event whose waiters are futures; each is woken through its own event loop."""

    def __init__(self) -> None:
        self._flag = False
        self._waiters: set[asyncio.Future[None]] = set()

    def set(self) -> None:
        self._flag = True
        for waiter in tuple(self._waiters):
            loop = waiter.get_loop()
            if loop is asyncio._get_running_loop():
                _finish(waiter)
            else:
                with contextlib.suppress(RuntimeError):  # the loop is closed, so its waiter never runs again
                    loop.call_soon_threadsafe(_finish, waiter)

    def clear(self) -> None:
        self._flag = False

    def is_set(self) -> bool:
        return self._flag

    async def wait(self, timeout: float | None = None) -> bool:
        if self._flag:
            return True
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.add(waiter)
        timer = None if timeout is None else loop.call_later(timeout, _finish, waiter)
        try:
            if not self._flag:  # another thread may have set it just before the waiter was registered
                await waiter
        finally:
            self._waiters.discard(waiter)
            if timer is not None:
                timer.cancel()
        return self._flag


def _finish(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


class _Call:
    """A run of a single flight.

    Attributes:
        loop: The event loop in which it runs.
        task: Its task, where it has one of its own; the reference keeps the task alive.
    """

    __slots__ = ("_ended", "_error", "_over", "loop", "task")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.task: asyncio.Task[None] | None = None
        self._ended = False
        self._over: LoopEvent | None = None  # made for the first caller that waits
        self._error: BaseException | None = None

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, for `timeout` seconds at most; return whether it has."""
        if not self._ended:
            if self._over is None:
                self._over = LoopEvent()
            await self._over.wait(timeout)
        return self._ended

    def end(self, error: BaseException | None) -> None:
        """Record the outcome and wake every caller; only the first call counts."""
        if not self._ended:
            self._ended, self._error = True, error
            if self._over is not None:
                self._over.set()

    def check(self) -> None:
        """Raise the exception that it ended with, if any."""
        if self._error is not None:
            raise self._error

    @property
    def was_cancelled(self) -> bool:
        """Whether it ended because the caller in whose task it ran was cancelled."""
        return self.task is None and isinstance(self._error, asyncio.CancelledError)


class LoopSingleFlight(SingleFlight):
    """A single flight whose run has a task of its own, so it continues when the caller that started it is cancelled."""

    def __init__(self) -> None:
        self._call: _Call | None = None

    def _under_way(self) -> _Call | None:
        """Return the run under way; one of an event loop that has ended will never finish, so it doesn't count."""
        call = self._call
        return call if call is None or call.loop is asyncio.get_running_loop() else None

    async def run(self, flow: Flow, timeout: float | None = None) -> None:
        call = self._under_way()
        if call is None:
            call = self._call = _Call()
            call.task = start_task(self._run_in_task(call, flow))
            call.task.add_done_callback(functools.partial(self._ended, call))
            if timeout is not None and timeout <= 0:  # a caller without time to wait still waits for its own run
                timeout = None
        if await call.wait(timeout):
            if call.was_cancelled:
                return await self.run(flow, timeout)
            call.check()
        return None

    async def run_inline(self, flow: Flow) -> None:
        call = self._under_way()
        while call is not None:
            await call.wait()
            if not call.was_cancelled:
                return call.check()
            call = self._under_way()
        call = self._call = _Call()
        try:
            await flow()
        except BaseException as error:
            self._finish(call, error)
            raise
        self._finish(call, None)
        return None

    async def _run_in_task(self, call: _Call, flow: Flow) -> None:
        try:
            await flow()
        except BaseException as error:
            self._finish(call, error)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
        else:
            self._finish(call, None)

    def _finish(self, call: _Call, error: BaseException | None) -> None:
        if self._call is call:
            self._call = None
        call.end(error)

    def _ended(self, call: _Call, _: "asyncio.Task[None]") -> None:
        """End the run even if its task was cancelled before its first step."""
        self._finish(call, asyncio.CancelledError())

    async def wait_idle(self, timeout: float) -> bool:
        call = self._under_way()
        return call is None or await call.wait(timeout)


log = Log("ailf")

_BLOCKS = 0.1
"""Seconds after which a plain function counts as blocking the event loop."""

_NAMED = 100
"""The most functions that one backend names in the log as blocking."""


class _LoopTask(Task):
    def __init__(self, flow: Flow, name: str) -> None:
        self._task = start_task(self._run(flow), name=name)

    async def _run(self, flow: Flow) -> None:
        try:
            await flow()
        except Exception as error:  # noqa: BLE001 - no caller awaits the task, so its error is logged
            log.failure(logging.ERROR, None, "%s failed", self._task.get_name(), error=error)

    async def join(self, timeout: float | None = None) -> bool:
        if self._task is not asyncio.current_task():
            await asyncio.wait([self._task], timeout=timeout)
        return self._task.done()

    def done(self) -> bool:
        return self._task.done()

    def cancel(self) -> None:
        self._task.cancel()


class AsyncioRuntime(Runtime):
    """The runtime for asyncio: flows are tasks of the running event loop.

    Example:
        >>> import asyncio
        >>> from ailf.runtime import AsyncioRuntime
        >>> asyncio.run(AsyncioRuntime().event().wait(0.01))
        False
    """

    flavour = "asyncio"
    uses_caller = False
    _blocking: frozenset[str] = frozenset()  # the functions that were named in the log
    here = staticmethod(_get_running_loop)
    caller = staticmethod(asyncio.current_task)

    def _event(self) -> Event:
        return LoopEvent()

    def single_flight(self) -> SingleFlight:
        return LoopSingleFlight()

    def guard(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def spawn(self, flow: Flow, *, name: str) -> Task:
        return _LoopTask(flow, name)

    async def checkpoint(self) -> None:
        await asyncio.sleep(0)

    async def call_user_code(self, function: Callable[..., Any], *args: Any) -> tuple[Any, BaseException | None]:
        task = asyncio.current_task()
        cancelled = 0 if task is None else task.cancelling()
        begin = time.monotonic()
        try:
            result = function(*args)
            if time.monotonic() > begin + _BLOCKS:
                self._report_blocking(function, time.monotonic() - begin)
            while type(result) is CoroutineType or (result is not None and inspect.isawaitable(result)):
                result = await result
        except asyncio.CancelledError as error:
            if task is not None and task.cancelling() > cancelled:
                raise
            return None, error
        except GeneratorExit as error:
            if _current_task() is not task:  # the loop has ended, and the coroutine is being closed
                raise
            return None, error
        except BaseException as error:
            if task is not None and task.cancelling() > cancelled and is_cancelled(error):  # a group holds it
                raise asyncio.CancelledError from error
            return None, error
        if result is None or type(result) is bool:
            return result, None
        return result, check_result(function, result)

    def _report_blocking(self, function: object, seconds: float) -> None:
        """Name a function that has blocked the event loop, once."""
        name = name_of(function)
        if name in self._blocking or len(self._blocking) >= _NAMED:
            return
        self._blocking |= {name}
        log.warning(
            None,
            "%s has blocked the event loop for %.1f s: make it a coroutine function that awaits, or let a handler of a "
            "group run in a thread, with process(…, threads=True)",
            name,
            seconds,
        )

    def check_callable(self, what: str, function: object, *, may_yield: bool = False) -> None:
        check_callable(what, function, may_yield=may_yield)

    def from_signal(self, callback: Callable[[], None]) -> Callable[[], None]:
        loop = asyncio.get_running_loop()

        def call() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so nothing in it is left to stop
                loop.call_soon_threadsafe(callback)

        return call


def _current_task() -> "asyncio.Task[Any] | None":
    """Return the current task; None outside of an event loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
