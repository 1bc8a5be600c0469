"""The base classes of the two runtimes: a flow is written once, and threads or asyncio run it.

A flow is an ``async def`` that waits only through a `Runtime`, or through a driver bound to one. On asyncio it is
awaited as usual. On threads its awaitables block the calling thread and never suspend, so `run` drives the whole flow
to its end with a single ``send(None)``: no event loop, no background thread, about 0.2 µs.

Any thread may set an event, whichever runtime made it.
"""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

from ailf.runtime.clock import Clock, SystemClock

__all__ = ["Event", "Flow", "MovedEvent", "Runtime", "SingleFlight", "Task", "finish", "run"]

Flow: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class Event(ABC):
    """A flag that flows wait for. Any thread may set it."""

    @abstractmethod
    def set(self) -> None:
        """Set the flag and wake every waiter."""

    @abstractmethod
    def clear(self) -> None:
        """Reset the flag."""

    @abstractmethod
    def is_set(self) -> bool:
        """Return whether the flag is set."""

    @abstractmethod
    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is set, for `timeout` seconds at most; return whether it is set."""


class SingleFlight(ABC):
    """Single flight, as in Go's ``singleflight``: one run at a time, shared by all callers that want its effect."""

    @abstractmethod
    async def run(self, flow: Flow, timeout: float | None = None) -> None:
        """Run the flow, or wait for the run under way.

        On asyncio the flow runs in a task of its own: it continues when its caller is cancelled, and its error reaches
        every caller. On threads the first caller runs the flow itself, and only that caller gets its error.

        Arguments:
            flow: The work; it is not called while another run is under way.
            timeout: Seconds to wait at most; None: without limit. It doesn't bound a flow that the caller starts on a
                thread, nor, where it is 0 or less, one that the caller starts on asyncio.
        """

    @abstractmethod
    async def run_inline(self, flow: Flow) -> None:
        """Like `run`, but run the flow in the caller's task.

        If this caller is cancelled meanwhile, so is the flow, and one of the callers that wait for it runs it anew.
        """

    @abstractmethod
    async def wait_idle(self, timeout: float) -> bool:
        """Wait until no run is under way, for `timeout` seconds at most; return whether none is."""


async def finish(flow: Flow, flight: SingleFlight) -> None:
    """Run a flow that ends something, and that may be run again.

    If the caller is cancelled meanwhile, run it again as this flight, in a task of its own: the caller may be cancelled
    once more, as by a scope of anyio at each await.
    """
    try:
        await flow()
    except asyncio.CancelledError:
        await flight.run(flow)
        raise


class _Wait:
    """One wait for a `MovedEvent`.

    Attributes:
        wake_up: Set when the event is set, and when the clock is moved.
        over: Whether the event was set since the wait began.
    """

    def __init__(self, wake_up: Event) -> None:
        self.wake_up = wake_up
        self.over = False


class MovedEvent(Event):
    """An event on a clock that is moved by hand: a wait also ends when the clock is moved past its timeout."""

    def __init__(self, clock: Clock, make_event: Callable[[], Event]) -> None:
        self._clock = clock
        self._make_event = make_event
        self._flag = False
        self._waits: set[_Wait] = set()

    def set(self) -> None:
        self._flag = True
        for wait in tuple(self._waits):
            wait.over = True
            wait.wake_up.set()

    def clear(self) -> None:
        self._flag = False

    def is_set(self) -> bool:
        return self._flag

    async def wait(self, timeout: float | None = None) -> bool:
        wait = _Wait(self._make_event())
        until = None if timeout is None else self._clock.wait_time() + timeout
        self._waits.add(wait)
        self._clock.on_move(wait.wake_up.set)
        if self._flag:  # another thread may have set it just before this wait was registered
            wait.over = True
        try:
            while not wait.over:
                left = None if until is None else until - self._clock.wait_time()
                if left is not None and left <= 0:
                    break
                await wait.wake_up.wait(left)
                wait.wake_up.clear()
        finally:
            self._clock.off_move(wait.wake_up.set)
            self._waits.discard(wait)
        return wait.over


T = TypeVar("T")


def run(flow: Coroutine[Any, Any, T]) -> T:
    """Run a flow of the thread runtime to its end and return its result.

    Raises:
        RuntimeError: The flow suspended: it awaited something that isn't bound to the thread runtime.
    """
    try:
        flow.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    flow.close()
    raise RuntimeError(
        "a blocking flow suspended: its driver is not bound to the thread runtime; "
        "get one from `driver.with_runtime(ThreadRuntime())`"
    )


class Task(ABC):
    """A flow that was started with `Runtime.spawn` and runs concurrently: an asyncio task, or a thread."""

    @abstractmethod
    async def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, for `timeout` seconds at most; return whether it has. A task may join itself."""

    @abstractmethod
    def done(self) -> bool:
        """Return whether it has ended. A task that was cancelled before its first step has run nothing of its flow."""

    @abstractmethod
    def cancel(self) -> None:
        """Cancel the flow at its next await. A thread can't be interrupted and runs to its end."""


class Runtime(ABC):
    """Everything that flows wait with: events, locks, tasks and time. A driver is bound to one when it is made.

    Arguments:
        clock: The backend's clock, where this process owns it; None: the system's.

    Attributes:
        flavour: "blocking" or "asyncio".
        uses_caller: Whether `spawn` costs a thread, so a caller that waits anyway should do a share of the work itself.
        here: Returns the context that connections and waits belong to: the process id, or the running event loop
            (None outside of one). A forked child is never in its parent's loop.
        caller: Returns the calling thread or task.
        clock: The clock.
        now: Returns this process's monotonic time in seconds, for waits and pauses.
        lease_now: Returns the monotonic time in seconds for leases. It stands still while a clock moved by hand does.
    """

    flavour: str
    uses_caller: bool
    here: Callable[[], object]
    caller: Callable[[], object]

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.now = self.clock.wait_time
        self.lease_now = self.clock.lease_time

    def event(self) -> Event:
        """Make an event."""
        return MovedEvent(self.clock, self._event) if self.clock.by_hand else self._event()

    @abstractmethod
    def _event(self) -> Event:
        """Make an event on a clock that runs by itself."""

    @abstractmethod
    def single_flight(self) -> SingleFlight:
        """Make a single flight."""

    @abstractmethod
    def guard(self) -> contextlib.AbstractContextManager[object]:
        """Make a lock that excludes other threads. On asyncio it does nothing: a section without an await is atomic."""

    @abstractmethod
    def spawn(self, flow: Flow, *, name: str) -> Task:
        """Start a flow that runs concurrently. An exception that it raises is logged."""

    @abstractmethod
    async def checkpoint(self) -> None:
        """Yield to the event loop. Does nothing on threads, which are pre-empted."""

    @abstractmethod
    async def call_user_code(self, function: Callable[..., Any], *args: Any) -> tuple[Any, BaseException | None]:
        """Call a user's function; return its result and None, or None and the exception that it raised.

        All user code is called here. On asyncio an awaitable result is awaited. A function that yields runs nothing
        when it is called, so a generator as the result comes with an `InvalidArgumentError`.

        Raises:
            asyncio.CancelledError: The calling task was cancelled. A `CancelledError` of the function's own, which
                awaited a task that was cancelled, is returned instead.
        """

    @abstractmethod
    def check_callable(self, what: str, function: object, *, may_yield: bool = False) -> None:
        """Refuse a function that this runtime can't call, when it is registered and not when it is first called.

        Arguments:
            what: The role of the function, for the message: "the handler".
            function: The function.
            may_yield: Whether its caller iterates its generator; `call_user_code` doesn't.

        Raises:
            InvalidArgumentError: It isn't callable, it yields, or it is a coroutine function and the runtime blocks.
        """

    @abstractmethod
    def from_signal(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Return a function for a signal handler: it runs `callback` outside of the handler, where it may block."""
