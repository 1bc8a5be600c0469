"""Clocks: the system's, and one that a test moves by hand."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from ailf.checks import check_seconds

__all__ = ["Clock", "ManualClock", "SystemClock"]


class Clock(ABC):
    """A backend's *now*."""

    @abstractmethod
    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970."""

    def on_move(self, callback: Callable[[], None]) -> None:  # noqa: B027 - time that flows moves nothing suddenly
        """Call back, from any thread, whenever the time is moved by hand."""


class SystemClock(Clock):
    """The time of the system."""

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970."""
        return time.time_ns() // 1_000_000


class ManualClock(Clock):
    """A clock that stands still until a test moves it: leases end and delays are over without sleeping."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now_ms = round(start * 1000)
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970."""
        return self._now_ms

    def advance(self, seconds: float) -> None:
        """Move the clock forward and wake whoever waits for it."""
        with self._lock:
            self._now_ms += round(check_seconds("seconds", seconds) * 1000)
            callbacks = tuple(self._callbacks)
        for callback in callbacks:
            callback()

    def step_back(self, seconds: float) -> None:
        """Set the clock back, as an operator may; nothing that ended begins anew, and nobody is woken."""
        with self._lock:
            self._now_ms -= round(check_seconds("seconds", seconds) * 1000)

    def on_move(self, callback: Callable[[], None]) -> None:
        """Call back, from any thread, whenever the time is moved by hand."""
        self._callbacks.append(callback)
