"""Events and flights: what flows wait for, on threads and on asyncio. A `ailf.runtime.Runtime` makes them."""

import asyncio
import contextlib
import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from ailf.clock import Clock
from ailf.errors import InvalidArgumentError

__all__ = [
    "Event",
    "Flight",
    "Flow",
    "LoopEvent",
    "LoopFlight",
    "MovedEvent",
    "ThreadEvent",
    "ThreadFlight",
    "check_ended",
    "start_task",
]

Flow: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


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


class _Wait:
    """One wait for a `MovedEvent`: its bell, which a move rings too, and whether the event was set meanwhile."""

    def __init__(self, bell: Event) -> None:
        self.bell = bell
        self.over = False


class MovedEvent(Event):
    """An event for a clock that is moved by hand: a wait also ends when the clock is moved past its timeout."""

    def __init__(self, clock: Clock, plain: Callable[[], Event]) -> None:
        self._clock = clock
        self._plain = plain
        self._flag = False
        self._waits: set[_Wait] = set()

    def set(self) -> None:
        self._flag = True
        for wait in tuple(self._waits):
            wait.over = True
            wait.bell.set()

    def clear(self) -> None:
        self._flag = False

    def is_set(self) -> bool:
        return self._flag

    async def wait(self, timeout: float | None = None) -> bool:
        wait = _Wait(self._plain())
        until = None if timeout is None else self._clock.wait_time() + timeout
        self._waits.add(wait)
        self._clock.on_move(wait.bell.set)
        if self._flag:  # also when another thread set it just before it could see this wait
            wait.over = True
        try:
            while not wait.over:
                left = None if until is None else until - self._clock.wait_time()
                if left is not None and left <= 0:
                    break
                await wait.bell.wait(left)
                wait.bell.clear()
        finally:
            self._clock.off_move(wait.bell.set)
            self._waits.discard(wait)
        return wait.over


# --- threads -----------------------------------------------------------------------------------------------------


class ThreadEvent(threading.Event, Event):
    """An event that threads wait for."""

    async def wait(self, timeout: float | None = None) -> bool:  # type: ignore[override]
        return threading.Event.wait(self, None if timeout is None else min(timeout, threading.TIMEOUT_MAX))


class ThreadFlight(Flight):
    """A flight that the first thread flies itself."""

    def __init__(self) -> None:
        self._lock: Any = threading.RLock()

    async def join(self, flow: Flow, timeout: float | None = None) -> None:
        try:
            if self._lock.acquire(blocking=False):
                await flow()
            else:
                self._lock.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))
        finally:  # by its owner, not by what `acquire` returned: Ctrl-C may come in between
            if self._lock._is_owned():
                self._lock.release()

    async def fly(self, flow: Flow) -> None:
        await self.join(flow)

    async def landed(self, timeout: float) -> bool:
        if not self._lock.acquire(timeout=timeout):
            return False
        self._lock.release()
        return True


# --- asyncio -----------------------------------------------------------------------------------------------------


start_task = asyncio.Task
"""Starts a task that begins with the next turn of the running loop.

It is the class itself: the loop's own task factory is passed by, as an eager one (`asyncio.eager_task_factory`) would
run the first step within the call. Callers count on it that nothing runs before the call has returned.
"""


def check_ended(loop: asyncio.AbstractEventLoop, what: str) -> None:
    """Refuse to take over what belongs to an event loop that still runs, which then is one of another thread.

    Arguments:
        loop: The loop that it belongs to.
        what: What is to be taken over, for the message.

    Raises:
        InvalidArgumentError: The loop still runs.
    """
    if loop.is_running():
        raise InvalidArgumentError(
            f"{what} belongs to another event loop, which still runs; open a backend of its own in each event loop"
        )


class LoopEvent(Event):
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
    """A flight under way: when it is over, and how it ended."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.task: asyncio.Task[None] | None = None
        self.over = LoopEvent()
        self._error: BaseException | None = None

    def end(self, error: BaseException | None) -> None:
        """Wake everybody: it is over."""
        if not self.over.is_set():
            self._error = error
            self.over.set()

    def check(self) -> None:
        """Raise what it ended with."""
        if self._error is not None:
            raise self._error


class LoopFlight(Flight):
    """A flight in a task of its own, which goes on when who started it is cancelled."""

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
            trip.task = start_task(self._fly(trip, flow))
            trip.task.add_done_callback(functools.partial(self._ended, trip))
            if timeout is not None and timeout <= 0:  # who has no time to wait has it for what he starts himself
                timeout = None
        if await trip.over.wait(timeout):
            trip.check()

    async def fly(self, flow: Flow) -> None:
        trip = self._under_way()
        if trip is None:
            trip = self._trip = _Trip()
            await self._fly(trip, flow)
        else:
            await trip.over.wait()
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
        return trip is None or await trip.over.wait(timeout)
