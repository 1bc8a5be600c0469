"""One text for both flavours: what a flow needs in order to wait, run by threads or by asyncio.

A flow is an ``async def`` that waits only through a `Runtime` (or through a driver bound to one). On asyncio it is
awaited as usual. On threads the awaitables block the calling thread and never suspend, so that `run` drives the whole
flow to its end with a single ``send(None)``: no event loop, no background thread, about 0.2 µs.

Events may be set from any thread, whichever runtime made them.
"""

import asyncio
import contextlib
import inspect
import logging
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from types import CoroutineType
from typing import Any, TypeVar

from ailf.clock import Clock, SystemClock
from ailf.errors import InvalidArgumentError
from ailf.events import Event, Flight, Flow, LoopEvent, LoopFlight, MovedEvent, ThreadEvent, ThreadFlight

__all__ = ["AsyncioRuntime", "Event", "Flight", "Runtime", "Task", "ThreadRuntime", "run"]

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
        clock: The clock.
        now: Returns this process's monotonic time in seconds, for waits and pauses.
        lease_now: The same for what a backend grants for a time; on a clock that is moved by hand it stands still.
    """

    flavour: str
    uses_caller: bool

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
    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a user's function; on asyncio, await what it returns where that can be awaited."""

    @abstractmethod
    def check_callable(self, what: str, function: object) -> None:
        """Refuse what `call` can't call, when it is handed over and not when it is needed."""

    @abstractmethod
    def on_signals(self, callback: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
        """Call back on SIGTERM and Ctrl-C while the context lasts; a second one acts as it did before.

        Outside the main thread it does nothing: Python delivers signals only there.
        """


# --- threads -----------------------------------------------------------------------------------------------------


class _Thread(Task):
    def __init__(self, flow: Flow, name: str) -> None:
        self._flow = flow
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            run(self._flow())
        except BaseException:
            log.exception("%s failed", self._thread.name)

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

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        result = function(*args)
        if inspect.iscoroutine(result):
            result.close()
            raise _wrong_flavour("the handler", function)
        return result

    def check_callable(self, what: str, function: object) -> None:
        _check_callable(what, function)
        if inspect.iscoroutinefunction(function):
            raise _wrong_flavour(what, function)

    @contextlib.contextmanager
    def on_signals(self, callback: Callable[[], None]) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {}

        def restore() -> None:
            while before:
                signal.signal(*before.popitem())

        def handle(_number: int, _frame: object) -> None:
            restore()
            # From a thread: the signal may have interrupted this one while it holds the lock that the callback needs.
            threading.Thread(target=callback, name="ailf-signal", daemon=True).start()

        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, handle)
        try:
            yield
        finally:
            restore()


# --- asyncio -----------------------------------------------------------------------------------------------------


class _LoopTask(Task):
    def __init__(self, flow: Flow, name: str) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(flow), name=name)

    async def _run(self, flow: Flow) -> None:
        try:
            await flow()
        except Exception:
            log.exception("%s failed", self._task.get_name())

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

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        result = function(*args)
        if type(result) is CoroutineType or isinstance(result, Awaitable):  # the second costs ten times the first
            return await result
        return result

    def check_callable(self, what: str, function: object) -> None:
        _check_callable(what, function)

    @contextlib.contextmanager
    def on_signals(self, callback: Callable[[], None]) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        numbers = {signal.SIGTERM, signal.SIGINT}

        def restore() -> None:
            while numbers:
                loop.remove_signal_handler(numbers.pop())

        def handle() -> None:
            restore()
            callback()

        for number in tuple(numbers):
            loop.add_signal_handler(number, handle)
        try:
            yield
        finally:
            restore()


def _check_callable(what: str, function: object) -> None:
    if not callable(function):
        raise InvalidArgumentError(f"{what} must be callable, not {type(function).__name__}")


def _wrong_flavour(what: str, function: object) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{what} {getattr(function, '__qualname__', function)!s} is a coroutine function, which a blocking object "
        "can't await; use the Async… twin, or a plain function"
    )
