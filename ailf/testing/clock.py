"""A clock that a test moves by hand."""

import contextlib
import threading
import weakref
from collections.abc import Callable
from typing import ClassVar

from ailf.checks import check_seconds
from ailf.runtime.clock import Clock, Follower, SystemClock

__all__ = ["Clock", "ManualClock", "SystemClock"]


class ManualClock(Clock):
    """A clock that stands still until a test moves it: leases end and delays are over without sleeping.

    A move is one step: leases that end within it are lost when `advance` returns, and those that don't are renewed. A
    consumer of this process is alive all the time, however far the clock is moved.

    Waits count the time that really passes as well, so no wait with a timeout can hang a test.
    """

    by_hand: ClassVar[bool] = True

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._start_ms = round(start * 1000)
        self._passed_ms = 0  # the one thing that a move changes, so that all times move at once
        self._lock = threading.RLock()
        self._callbacks: list[Callable[[], None]] = []
        self._followers: weakref.WeakSet[Follower] = weakref.WeakSet()

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970."""
        return self._start_ms + self._passed_ms

    def lease_time(self) -> float:
        """Return the seconds by which the clock was advanced."""
        return self._passed_ms / 1000

    def wait_time(self) -> float:
        """Return the seconds by which the clock was advanced, and those that really passed."""
        return SystemClock.wait_time() + self._passed_ms / 1000

    def step_lock(self) -> contextlib.AbstractContextManager[object]:
        """Return the lock that is held while the clock moves."""
        return self._lock

    def advance(self, seconds: float) -> None:
        """Move the clock forward, let living holders renew their leases, and wake all waits.

        Arguments:
            seconds: By how much; at least 0.
        """
        step_ms = round(check_seconds("seconds", seconds) * 1000)
        with self._lock:
            followers = tuple(self._followers)
            with contextlib.ExitStack() as around:
                for follower in followers:
                    around.enter_context(follower.moving())
                self._passed_ms += step_ms
            callbacks = tuple(self._callbacks)
        for follower in followers:
            follower.moved()
        for callback in callbacks:
            callback()

    def step_back(self, seconds: float) -> None:
        """Set the clock back, as an operator may; nothing that ended begins anew, and nobody is woken."""
        with self._lock:
            self._start_ms -= round(check_seconds("seconds", seconds) * 1000)

    def on_move(self, callback: Callable[[], None]) -> None:
        """Call back, from any thread, after each move by hand."""
        with self._lock:
            self._callbacks.append(callback)

    def off_move(self, callback: Callable[[], None]) -> None:
        """Call back no more."""
        with self._lock, contextlib.suppress(ValueError):
            self._callbacks.remove(callback)

    def follow(self, follower: Follower) -> None:
        """Tell it of each move by hand, for as long as it is referenced elsewhere."""
        with self._lock:
            self._followers.add(follower)
