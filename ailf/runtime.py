"""One text for both flavours: what a flow needs in order to wait, run by threads or by asyncio.

A flow is an ``async def`` that waits only through a `Runtime` (or through a driver bound to one). On asyncio it is
awaited as usual. On threads the awaitables block the calling thread and never suspend, so that `run` drives the whole
flow to its end with a single ``send(None)``: no event loop, no background thread, about 0.2 µs.

Events may be set from any thread, whichever runtime made them.
"""

import asyncio
import contextlib
import functools
import inspect
import logging
import os
import threading
from abc import ABC, abstractmethod
from asyncio import _get_running_loop
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from types import CoroutineType
from typing import Any, TypeVar

from ailf.clock import Clock, SystemClock
from ailf.errors import InvalidArgumentError
from ailf.events import Event, Flight, Flow, LoopEvent, LoopFlight, MovedEvent, ThreadEvent, ThreadFlight, start_task
from ailf.safe_text import log_failure
from ailf.user_errors import is_cancelled

__all__ = [
    "AsyncioRuntime",
    "Event",
    "Flight",
    "Runtime",
    "Task",
    "ThreadRuntime",
    "name_of",
    "run",
]

T = TypeVar("T")

log = logging.getLogger("ailf")


def run(flow: Coroutine[Any, Any, T]) -> T:
    """Run a flow of the thread runtime to its end and return its result.

    Raises:
        RuntimeError: The flow suspended, so it waits for something that isn't bound to the thread runtime.
    """
    try:
        flow.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    flow.close()
    raise RuntimeError("a blocking flow suspended: its driver is not bound to the thread runtime")


class Task(ABC):
    """A flow that runs beside its starter."""

    @abstractmethod
    async def join(self, timeout: float | None = None) -> bool:
        """Wait for its end, for so many seconds at most; return whether it ended."""

    @abstractmethod
    def cancel(self) -> None:
        """Interrupt it at its next await; a thread can't be interrupted and goes on to its end."""


class Runtime(ABC):
    """What flows wait with. A driver is bound to one when it is made.

    Arguments:
        clock: The backend's clock, where this process has it; else the system's.

    Attributes:
        flavour: "blocking" or "asyncio".
        uses_caller: Whether `spawn` costs a thread, so that a caller who waits anyway had better do a share itself.
        here: Returns what connections and waits belong to: the id of the process, or the running event loop, which is
            None outside of one. A forked child is never in its parent's loop.
        clock: The clock.
        now: Returns this process's monotonic time in seconds, for waits and pauses.
        lease_now: The same for what a backend grants for a time; on a clock that is moved by hand it stands still.
    """

    flavour: str
    uses_caller: bool
    here: Callable[[], object]

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.now = self.clock.wait_time
        self.lease_now = self.clock.lease_time

    def event(self) -> Event:
        """Make an event."""
        return MovedEvent(self.clock, self._event) if self.clock.by_hand else self._event()

    @abstractmethod
    def _event(self) -> Event:
        """Make an event for time that flows."""

    @abstractmethod
    def flight(self) -> Flight:
        """Make a flight."""

    @abstractmethod
    def guard(self) -> contextlib.AbstractContextManager[object]:
        """Make a lock that keeps a few lines whole against other threads; on asyncio up to their first suspension."""

    @abstractmethod
    def spawn(self, flow: Flow, *, name: str) -> Task:
        """Start a flow beside this one. What it raises is logged."""

    @abstractmethod
    async def breathe(self) -> None:
        """Let others run, where they have to be let."""

    @abstractmethod
    async def call_user_code(self, function: Callable[..., Any], *args: Any) -> tuple[Any, BaseException | None]:
        """Call a user's function, and return its result, or the exception that it raised, whatever that is.

        It is the one place where the code of users is called. On asyncio it awaits what can be awaited. A function that
        yields does nothing when it is called, so its generator counts as an `InvalidArgumentError`.

        Raises:
            asyncio.CancelledError: The task was cancelled meanwhile. A `CancelledError` of the function's own, which
                awaited something that was cancelled, is returned.
        """

    @abstractmethod
    def check_callable(self, what: str, function: object, *, may_yield: bool = False) -> None:
        """Refuse what can't be called, when it is handed over and not when it is needed.

        Arguments:
            what: What the function is, for the message.
            function: The function.
            may_yield: Whether its generator is iterated; `call_user_code` doesn't do that.
        """

    @abstractmethod
    def from_signal(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Return what a signal handler may call: it has the callback called elsewhere, where that may block."""


# --- threads -----------------------------------------------------------------------------------------------------


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

    def flight(self) -> Flight:
        return ThreadFlight()

    def guard(self) -> contextlib.AbstractContextManager[object]:
        return threading.Lock()

    def spawn(self, flow: Flow, *, name: str) -> Task:
        return _Thread(flow, name)

    async def breathe(self) -> None:
        pass

    async def call_user_code(self, function: Callable[..., Any], *args: Any) -> tuple[Any, BaseException | None]:
        try:
            result = function(*args)
        except BaseException as error:  # noqa: BLE001 - what it means is the caller's to say
            return None, error
        if result is None or type(result) is bool:
            return result, None
        return result, _undone(function, result)

    def check_callable(self, what: str, function: object, *, may_yield: bool = False) -> None:
        _check_callable(what, function, may_yield=may_yield)
        if _is_one_of(function, inspect.iscoroutinefunction):
            raise _wrong_flavour(what, function)

    def from_signal(self, callback: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            # From a thread: the signal may have interrupted this one while it holds the lock that the callback needs.
            threading.Thread(target=callback, name="ailf-signal", daemon=True).start()

        return call


# --- asyncio -----------------------------------------------------------------------------------------------------


class _LoopTask(Task):
    def __init__(self, flow: Flow, name: str) -> None:
        self._task = start_task(self._run(flow), name=name)

    async def _run(self, flow: Flow) -> None:
        try:
            await flow()
        except Exception as error:  # noqa: BLE001 - as above
            log_failure(log, logging.ERROR, "%s failed", self._task.get_name(), error=error)

    async def join(self, timeout: float | None = None) -> bool:
        if self._task is not asyncio.current_task():
            await asyncio.wait([self._task], timeout=timeout)
        return self._task.done()

    def cancel(self) -> None:
        self._task.cancel()


class AsyncioRuntime(Runtime):
    """Flows are tasks of the running event loop."""

    flavour = "asyncio"
    uses_caller = False
    here = staticmethod(_get_running_loop)

    def _event(self) -> Event:
        return LoopEvent()

    def flight(self) -> Flight:
        return LoopFlight()

    def guard(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def spawn(self, flow: Flow, *, name: str) -> Task:
        return _LoopTask(flow, name)

    async def breathe(self) -> None:
        await asyncio.sleep(0)

    async def call_user_code(self, function: Callable[..., Any], *args: Any) -> tuple[Any, BaseException | None]:
        task = asyncio.current_task()
        cancelled = 0 if task is None else task.cancelling()
        try:
            result = function(*args)
            while type(result) is CoroutineType or (result is not None and inspect.isawaitable(result)):
                result = await result
        except asyncio.CancelledError as error:
            if task is not None and task.cancelling() > cancelled:
                raise
            return None, error
        except GeneratorExit as error:
            if _current_task() is not task:  # the loop has ended, and closes what it leaves
                raise
            return None, error
        except BaseException as error:
            if task is not None and task.cancelling() > cancelled and is_cancelled(error):  # in a group
                raise asyncio.CancelledError from error
            return None, error
        if result is None or type(result) is bool:
            return result, None
        return result, _undone(function, result)

    def check_callable(self, what: str, function: object, *, may_yield: bool = False) -> None:
        _check_callable(what, function, may_yield=may_yield)

    def from_signal(self, callback: Callable[[], None]) -> Callable[[], None]:
        loop = asyncio.get_running_loop()

        def call() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing of it is left to be stopped
                loop.call_soon_threadsafe(callback)

        return call


# --- the functions of users ------------------------------------------------------------------------------------------


def _current_task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _is_one_of(function: object, kind: Callable[[Any], bool]) -> bool:
    """Tell whether a function is of a kind; of an object that can be called, its ``__call__`` counts."""
    while isinstance(function, functools.partial):
        function = function.func
    return kind(function) or kind(type(function).__call__)


def _check_callable(what: str, function: object, *, may_yield: bool) -> None:
    if not callable(function):
        raise InvalidArgumentError(f"{what} must be callable, not {type(function).__name__}")
    if may_yield:
        return
    if _is_one_of(function, inspect.isgeneratorfunction) or _is_one_of(function, inspect.isasyncgenfunction):
        raise InvalidArgumentError(
            f"{what} {name_of(function)} yields, so calling it runs nothing of it; write a function without `yield`"
        )


def _undone(function: object, result: object) -> InvalidArgumentError | None:
    """Return the error of a function that returned something that has yet to be run; None for any other result."""
    if isinstance(result, CoroutineType):
        result.close()
    elif not isinstance(result, Awaitable | Generator | AsyncGenerator | map | filter):
        return None
    return InvalidArgumentError(
        f"{name_of(function)} returned a {type(result).__name__}, which has yet to be run: write a function without "
        "`yield` that runs what it makes; a coroutine function needs the Async… twin"
    )


def _wrong_flavour(what: str, function: object) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{what} {name_of(function)} is a coroutine function, which a blocking object can't await; "
        "use the Async… twin, or a plain function"
    )


def name_of(function: object) -> str:
    """Return what a message calls a function, without its arguments."""
    return str(getattr(function, "__qualname__", type(function).__qualname__))
