"""Clocks: what *now* is for a backend, and by what its process counts leases and waits.

Nothing here looks a function up in the module `time` when it is called: libraries that freeze time in tests replace
the functions there, and a wait by a frozen clock never ends.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import RLock
from typing import ClassVar, Protocol

__all__ = ["Clock", "Follower", "SystemClock"]


class Follower(Protocol):
    """What a clock that is moved by hand tells of each move; it keeps a weak reference to it."""

    def moving(self) -> AbstractContextManager[None]:
        """Return what to enter around the move; nobody can see the new time before it is left."""

    def moved(self) -> None:
        """React to the new time before those who wait for it are woken."""


class Clock(ABC):
    """A backend's *now*, and the time that its process counts by.

    Attributes:
        by_hand: Whether it stands still until it is moved.
        lease_time: Returns seconds that never go back, by which a process counts its leases; in step with `now_ms`.
        wait_time: Returns seconds that never go back, by which a process counts its waits.
    """

    by_hand: ClassVar[bool] = False
    lease_time: Callable[[], float] = staticmethod(time.monotonic)
    wait_time: Callable[[], float] = staticmethod(time.monotonic)

    @abstractmethod
    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970."""

    def step_lock(self) -> AbstractContextManager[object]:
        """Return the lock under which a store takes its steps, so that the time can't move within one."""
        return RLock()

    def on_move(self, callback: Callable[[], None]) -> None:  # noqa: B027 - time that flows is never moved
        """Call back, from any thread, after each move by hand."""

    def off_move(self, callback: Callable[[], None]) -> None:  # noqa: B027 - as `on_move`
        """Call back no more."""

    def follow(self, follower: Follower) -> None:  # noqa: B027 - as `on_move`
        """Tell it of each move by hand, for as long as it is referenced elsewhere."""


class SystemClock(Clock):
    """The time of the system.

    Attributes:
        fine_time: Returns seconds by the finest counter, for waits of microseconds.
    """

    fine_time: ClassVar[Callable[[], float]] = staticmethod(time.perf_counter)
    _time_ns = staticmethod(time.time_ns)

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970."""
        return self._time_ns() // 1_000_000
