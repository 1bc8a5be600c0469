"""The thread runtime: a wait in a flow blocks the thread that runs the flow."""

import contextlib
import inspect
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from ailf.errors import InvalidArgumentError
from ailf.logs import Log
from ailf.runtime.base import Event, Flow, Runtime, SingleFlight, Task, run
from ailf.runtime.process import process_id
from ailf.runtime.user_code import check_callable, check_result, is_one_of, name_of

__all__ = ["ThreadEvent", "ThreadRuntime", "ThreadSingleFlight"]


_SLICE: Final = 1.0
"""Seconds for which the main thread blocks at a time, and by which a signal handler may be late."""


def _wait_for(wait: Callable[[float], bool], timeout: float | None) -> bool:
    """Call `wait` until it returns True, for `timeout` seconds at most; return what it returned.

    Python runs signal handlers in the main thread only, and a signal wakes that thread only while it already blocks.
    One that comes a moment earlier, or that another thread receives, has its handler run at the end of the slice.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return wait(threading.TIMEOUT_MAX if timeout is None else min(timeout, threading.TIMEOUT_MAX))
    if timeout is not None and timeout <= _SLICE:
        return wait(timeout)
    until = None if timeout is None else time.monotonic() + timeout
    while not wait(left := _SLICE if until is None else max(0.0, min(_SLICE, until - time.monotonic()))):
        if left == 0:
            return False
    return True


class ThreadEvent(threading.Event, Event):
    """An event that blocks the waiting thread."""

    async def wait(self, timeout: float | None = None) -> bool:  # type: ignore[override]
        return _wait_for(super().wait, timeout)


class ThreadSingleFlight(SingleFlight):
    """A single flight whose first caller runs the flow itself, while the others wait for the lock."""

    def __init__(self) -> None:
        self._lock: Any = threading.RLock()

    async def run(self, flow: Flow, timeout: float | None = None) -> None:
        try:
            if self._lock.acquire(blocking=False):
                await flow()
            else:
                _wait_for(lambda left: self._lock.acquire(timeout=left), timeout)
        finally:  # asks the lock, not the result of `acquire`: Ctrl-C may come between the two
            if self._lock._is_owned():
                self._lock.release()

    async def run_inline(self, flow: Flow) -> None:
        await self.run(flow)

    async def wait_idle(self, timeout: float) -> bool:
        if not self._lock.acquire(timeout=timeout):
            return False
        self._lock.release()
        return True


log = Log("ailf")


class _Thread(Task):
    def __init__(self, flow: Flow, name: str) -> None:
        self._flow = flow
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            run(self._flow())
        except BaseException as error:  # noqa: BLE001 - no caller could catch it
            log.failure(logging.ERROR, None, "%s failed", self._thread.name, error=error)

    async def join(self, timeout: float | None = None) -> bool:
        return self._thread is not threading.current_thread() and _wait_for(self._ended, timeout)

    def _ended(self, timeout: float) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def done(self) -> bool:
        return not self._thread.is_alive()

    def cancel(self) -> None:
        pass


class ThreadRuntime(Runtime):
    """The runtime for threads: a flow blocks the thread that runs it.

    Example:
        >>> from ailf.runtime import ThreadRuntime, run
        >>> run(ThreadRuntime().event().wait(0.01))
        False
    """

    flavour = "blocking"
    uses_caller = True
    here = staticmethod(process_id)
    caller = staticmethod(threading.current_thread)

    def _event(self) -> Event:
        return ThreadEvent()

    def single_flight(self) -> SingleFlight:
        return ThreadSingleFlight()

    def guard(self) -> contextlib.AbstractContextManager[object]:
        return threading.Lock()

    def spawn(self, flow: Flow, *, name: str) -> Task:
        return _Thread(flow, name)

    async def checkpoint(self) -> None:
        pass

    async def call_user_code(self, function: Callable[..., Any], *args: Any) -> tuple[Any, BaseException | None]:
        try:
            result = function(*args)
        except BaseException as error:  # noqa: BLE001 - the caller decides what it means
            return None, error
        if result is None or type(result) is bool:
            return result, None
        return result, check_result(function, result)

    def check_callable(self, what: str, function: object, *, may_yield: bool = False) -> None:
        check_callable(what, function, may_yield=may_yield)
        if is_one_of(function, inspect.iscoroutinefunction):
            raise _coroutine_refused(what, function)

    def from_signal(self, callback: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            # In a thread: the interrupted one may hold the lock that the callback needs.
            threading.Thread(target=callback, name="ailf-signal", daemon=True).start()

        return call


def _coroutine_refused(what: str, function: object) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{what} {name_of(function)} is a coroutine function, which a blocking object can't await: "
        "use the Async… class, or pass a plain function"
    )
