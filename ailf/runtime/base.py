"""One text for both flavours: what a flow needs in order to wait, run by threads or by asyncio.

A flow is an ``async def`` that waits only through a `Runtime` (or through a driver bound to one). On asyncio it is
awaited as usual. On threads the awaitables block the calling thread and never suspend, so that `run` drives the whole
flow to its end with a single ``send(None)``: no event loop, no background thread, about 0.2 µs.

Events may be set from any thread, whichever runtime made them.
"""

import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

from ailf.runtime.clock import Clock, SystemClock

__all__ = ["Event", "Flow", "MovedEvent", "Runtime", "SingleFlight", "Task", "run"]

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


class SingleFlight(ABC):
    """Work that runs at most once at a time, for everybody who wants its effect."""

    @abstractmethod
    async def run(self, flow: Flow, timeout: float | None = None) -> None:
        """Start the flow, or wait for the one under way, for so many seconds (a thread's own flow bounds itself).

        A cancelled caller leaves it running.
        """

    @abstractmethod
    async def run_inline(self, flow: Flow) -> None:
        """As `run`, for a caller that nobody cancels, as it is in a flight itself: it takes no task of its own."""

    @abstractmethod
    async def wait_idle(self, timeout: float) -> bool:
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
    def single_flight(self) -> SingleFlight:
        """Make a flight."""

    @abstractmethod
    def guard(self) -> contextlib.AbstractContextManager[object]:
        """Make a lock that keeps a few lines whole against other threads; on asyncio up to their first suspension."""

    @abstractmethod
    def spawn(self, flow: Flow, *, name: str) -> Task:
        """Start a flow beside this one. What it raises is logged."""

    @abstractmethod
    async def checkpoint(self) -> None:
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
