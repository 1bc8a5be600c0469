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
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from types import CoroutineType
from typing import Any, TypeVar

from ailf.errors import InvalidArgumentError

__all__ = ["AsyncioRuntime", "Event", "Flight", "Runtime", "Task", "ThreadRuntime", "run"]

T = TypeVar("T")
Flow = Callable[[], Coroutine[Any, Any, None]]

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


class Event(ABC):
    """A flag that flows wait for and any thread may set."""

    @abstractmethod
    def set(self) -> None:
        """Raise the flag and wake everybody who waits for it."""

    @abstractmethod
    def clear(self) -> None:
        """Lower the flag."""

    @abstractmethod
    def is_set(self) -> bool:
        """Tell whether the flag is up."""

    @abstractmethod
    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is up, or for so many seconds; return whether it is."""


class Flight(ABC):
    """Work that runs at most once at a time, for everybody who wants its effect."""

    @abstractmethod
    async def join(self, flow: Flow, timeout: float | None = None) -> None:
        """Start the flow, or wait for the one under way, for so many seconds (a thread's own flow bounds itself).

        A cancelled caller leaves it running.
        """

    @abstractmethod
    async def fly(self, flow: Flow) -> None:
        """As `join`, for a caller that nobody cancels, as it is in a flight itself: it takes no task of its own."""

    @abstractmethod
    async def landed(self, timeout: float) -> bool:
        """Wait until nothing is under way, for so many seconds at most; return whether that is so."""


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

    Attributes:
        flavour: "blocking" or "asyncio".
        uses_caller: Whether `spawn` costs a thread, so that a caller who waits anyway had better do a share itself.
    """

    flavour: str
    uses_caller: bool

    now = staticmethod(time.monotonic)
    """Return this process's monotonic time in seconds."""

    @abstractmethod
    def event(self) -> Event:
        """Make an event."""

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


class _ThreadEvent(threading.Event, Event):
    async def wait(self, timeout: float | None = None) -> bool:  # type: ignore[override]
        return threading.Event.wait(self, None if timeout is None else min(timeout, threading.TIMEOUT_MAX))


class _ThreadFlight(Flight):
    def __init__(self) -> None:
        self._lock = threading.Lock()

    async def join(self, flow: Flow, timeout: float | None = None) -> None:
        if self._lock.acquire(blocking=False):
            try:
                await flow()
            finally:
                self._lock.release()
        elif self._lock.acquire(timeout=-1 if timeout is None else timeout):
            self._lock.release()

    async def fly(self, flow: Flow) -> None:
        await self.join(flow)

    async def landed(self, timeout: float) -> bool:
        if not self._lock.acquire(timeout=timeout):
            return False
        self._lock.release()
        return True


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

    def event(self) -> Event:
        return _ThreadEvent()

    def flight(self) -> Flight:
        return _ThreadFlight()

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


class _LoopEvent(Event):
    """An event whose waiters are futures, each woken through its own loop."""

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
                with contextlib.suppress(RuntimeError):  # a loop that is closed has nobody to wake
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
            if not self._flag:  # set by another thread just before it could see the waiter
                await waiter
        finally:
            self._waiters.discard(waiter)
            if timer is not None:
                timer.cancel()
        return self._flag


def _finish(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


class _Trip:
    """A flight under way: who waits for its end, and how it ended."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.task: asyncio.Task[None] | None = None
        self._over = False
        self._error: BaseException | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    def end(self, error: BaseException | None) -> None:
        """Wake everybody: it is over."""
        if not self._over:
            self._over, self._error = True, error
            for waiter in self._waiters:
                _finish(waiter)

    async def over(self, timeout: float | None) -> bool:
        """Wait for its end, for so many seconds at most; return whether it came."""
        if self._over:
            return True
        waiter: asyncio.Future[None] = self.loop.create_future()
        self._waiters.add(waiter)
        timer = None if timeout is None else self.loop.call_later(timeout, _finish, waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
            if timer is not None:
                timer.cancel()
        return self._over

    def check(self) -> None:
        """Raise what it ended with."""
        if self._error is not None:
            raise self._error


class _LoopFlight(Flight):
    def __init__(self) -> None:
        self._trip: _Trip | None = None

    def _under_way(self) -> _Trip | None:
        """Return the trip under way; one of a loop that has ended never lands."""
        trip = self._trip
        return trip if trip is None or trip.loop is asyncio.get_running_loop() else None

    async def join(self, flow: Flow, timeout: float | None = None) -> None:
        trip = self._under_way()
        if trip is None:
            trip = self._trip = _Trip()
            trip.task = trip.loop.create_task(self._fly(trip, flow))
            trip.task.add_done_callback(functools.partial(self._ended, trip))
            if timeout is not None and timeout <= 0:  # who has no time to wait has it for what he starts himself
                timeout = None
        if await trip.over(timeout):
            trip.check()

    async def fly(self, flow: Flow) -> None:
        trip = self._under_way()
        if trip is None:
            trip = self._trip = _Trip()
            await self._fly(trip, flow)
        else:
            await trip.over(None)
        trip.check()

    async def _fly(self, trip: _Trip, flow: Flow) -> None:
        try:
            await flow()
        except BaseException as error:
            self._land(trip, error)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
        else:
            self._land(trip, None)

    def _land(self, trip: _Trip, error: BaseException | None) -> None:
        if self._trip is trip:
            self._trip = None
        trip.end(error)

    def _ended(self, trip: _Trip, _: "asyncio.Task[None]") -> None:
        """See that the trip is over, also where its task was cancelled before it began."""
        self._land(trip, asyncio.CancelledError())

    async def landed(self, timeout: float) -> bool:
        trip = self._under_way()
        return trip is None or await trip.over(timeout)


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

    def event(self) -> Event:
        return _LoopEvent()

    def flight(self) -> Flight:
        return _LoopFlight()

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
