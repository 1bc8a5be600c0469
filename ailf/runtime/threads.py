"""Flows on threads: what they wait for blocks the thread that runs them."""

import contextlib
import inspect
import logging
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ailf.errors import InvalidArgumentError
from ailf.runtime.base import Event, Flow, Runtime, SingleFlight, Task, run
from ailf.runtime.user_code import check_callable, check_result, is_one_of, name_of
from ailf.safe_text import log_failure

__all__ = ["ThreadEvent", "ThreadRuntime", "ThreadSingleFlight"]


class ThreadEvent(threading.Event, Event):
    """An event that threads wait for."""

    async def wait(self, timeout: float | None = None) -> bool:  # type: ignore[override]
        return threading.Event.wait(self, None if timeout is None else min(timeout, threading.TIMEOUT_MAX))


class ThreadSingleFlight(SingleFlight):
    """A flight that the first thread flies itself."""

    def __init__(self) -> None:
        self._lock: Any = threading.RLock()

    async def run(self, flow: Flow, timeout: float | None = None) -> None:
        try:
            if self._lock.acquire(blocking=False):
                await flow()
            else:
                self._lock.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))
        finally:  # by its owner, not by what `acquire` returned: Ctrl-C may come in between
            if self._lock._is_owned():
                self._lock.release()

    async def run_inline(self, flow: Flow) -> None:
        await self.run(flow)

    async def wait_idle(self, timeout: float) -> bool:
        if not self._lock.acquire(timeout=timeout):
            return False
        self._lock.release()
        return True


T = TypeVar("T")

log = logging.getLogger("ailf")


class _Thread(Task):
    def __init__(self, flow: Flow, name: str) -> None:
        self._flow = flow
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            run(self._flow())
        except BaseException as error:  # noqa: BLE001 - it ends the thread anyway, and its owner has been told
            log_failure(log, logging.ERROR, "%s failed", self._thread.name, error=error)

    async def join(self, timeout: float | None = None) -> bool:
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def cancel(self) -> None:
        pass


class ThreadRuntime(Runtime):
    """Flows block the thread that runs them."""

    flavour = "blocking"
    uses_caller = True
    here = staticmethod(os.getpid)

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
        except BaseException as error:  # noqa: BLE001 - what it means is the caller's to say
            return None, error
        if result is None or type(result) is bool:
            return result, None
        return result, check_result(function, result)

    def check_callable(self, what: str, function: object, *, may_yield: bool = False) -> None:
        check_callable(what, function, may_yield=may_yield)
        if is_one_of(function, inspect.iscoroutinefunction):
            raise _wrong_flavour(what, function)

    def from_signal(self, callback: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            # From a thread: the signal may have interrupted this one while it holds the lock that the callback needs.
            threading.Thread(target=callback, name="ailf-signal", daemon=True).start()

        return call


def _wrong_flavour(what: str, function: object) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{what} {name_of(function)} is a coroutine function, which a blocking object can't await; "
        "use the Async… twin, or a plain function"
    )
