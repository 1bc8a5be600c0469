"""Clocks: a backend's *now*, and the monotonic time by which its process counts leases and waits.

Rule: no call looks a function up in the module `time`. Libraries that freeze time in tests replace the functions
there, and a wait on a frozen clock never ends.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import RLock
from typing import ClassVar, Protocol

__all__ = ["Clock", "Follower", "SystemClock"]


class Follower(Protocol):
    """An observer that a clock moved by hand notifies of each move. The clock keeps a weak reference to it."""

    def moving(self) -> AbstractContextManager[None]:
        """Return the context of a move: the new time becomes visible when the context is left."""

    def moved(self) -> None:
        """React to the new time, before its waiters are woken."""


class Clock(ABC):
    """A backend's *now*, and the monotonic time of its process.

    >>> from ailf.testing import Clock, ManualClock
    >>> clock: Clock = ManualClock(start=1_700_000_000.0)
    >>> clock.now_ms(), clock.by_hand
    (1700000000000, True)

    Attributes:
        by_hand: Whether it stands still until it is moved by hand.
        lease_time: Returns monotonic seconds for leases; they advance with `now_ms`.
        wait_time: Returns monotonic seconds for waits.
    """

    by_hand: ClassVar[bool] = False
    lease_time: Callable[[], float] = staticmethod(time.monotonic)
    wait_time: Callable[[], float] = staticmethod(time.monotonic)

    @abstractmethod
    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970."""

    def step_lock(self) -> AbstractContextManager[object]:
        """Return the lock that a store holds for each transition, so that the time doesn't move during one."""
        return RLock()

    def on_move(self, callback: Callable[[], None]) -> None:  # noqa: B027 - a clock that runs is never moved
        """Call `callback`, from any thread, after each move by hand."""

    def off_move(self, callback: Callable[[], None]) -> None:  # noqa: B027 - as `on_move`
        """Stop calling `callback`."""

    def follow(self, follower: Follower) -> None:  # noqa: B027 - as `on_move`
        """Notify `follower` of each move by hand, for as long as something else refers to it."""


class SystemClock(Clock):
    """The system's clock.

    >>> from ailf.testing import SystemClock
    >>> from ailf_memory import MemoryBackend
    >>> with MemoryBackend(SystemClock()) as backend:  # the default
    ...     entry_id = backend.stream("tasks").add("a report")

    Attributes:
        fine_time: Returns seconds of the finest counter, for waits of microseconds.
    """

    fine_time: ClassVar[Callable[[], float]] = staticmethod(time.perf_counter)
    _time_ns = staticmethod(time.time_ns)

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970."""
        return self._time_ns() // 1_000_000
