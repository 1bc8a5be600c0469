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
    """A clock that stands still until a test moves it, so that leases and delays end without sleeping.

    >>> from ailf.testing import ManualClock
    >>> from ailf_memory import MemoryBackend
    >>> clock = ManualClock()
    >>> with MemoryBackend(clock) as backend:
    ...     first = backend.stream("tasks").add("report", delay=3600.0)
    ...     clock.advance(3600)
    ...     with backend.stream("tasks").group("workers").consumer() as consumer, consumer.take(0) as delivery:
    ...         assert delivery.data == "report"

    A move is one step: when `advance` returns, leases that ended within it are lost, and all others are renewed. A
    consumer of this process stays alive, however far the clock is moved.

    Waits also count the time that really passes, so a wait with a timeout can't hang a test.

    Arguments:
        start: The time at which the clock stands, in seconds since 1970.
    """

    by_hand: ClassVar[bool] = True

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._start_ms = round(start * 1000)
        self._passed_ms = 0  # a move changes only this, so that all times move at once
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
        """Return the seconds by which the clock was advanced, plus those that really passed."""
        return SystemClock.wait_time() + self._passed_ms / 1000

    def step_lock(self) -> contextlib.AbstractContextManager[object]:
        """Return the lock that is held while the clock moves."""
        return self._lock

    def advance(self, seconds: float) -> None:
        """Move the clock forward, renew the leases that don't end within the move, and wake all waits.

        Arguments:
            seconds: The length of the move, at least 0.

        Raises:
            InvalidArgumentError: ``seconds`` isn't a number of seconds.
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
        """Set the backend's time back, as an operator may. Leases and waits of this process don't get longer.

        Arguments:
            seconds: The length of the move, at least 0.

        Raises:
            InvalidArgumentError: ``seconds`` isn't a number of seconds.
        """
        with self._lock:
            self._start_ms -= round(check_seconds("seconds", seconds) * 1000)

    def on_move(self, callback: Callable[[], None]) -> None:
        """Call a function after each `advance`, in the thread that moves the clock."""
        with self._lock:
            self._callbacks.append(callback)

    def off_move(self, callback: Callable[[], None]) -> None:
        """Undo `on_move`."""
        with self._lock, contextlib.suppress(ValueError):
            self._callbacks.remove(callback)

    def follow(self, follower: Follower) -> None:
        """Notify a follower of each `advance`; the clock keeps a weak reference to it."""
        with self._lock:
            self._followers.add(follower)
