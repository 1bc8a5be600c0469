"""A fair semaphore: at most `count` hold a slot at once, and the others get one in the order in which they came."""

import contextlib
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final

from ailf.runtime.base import Event, Runtime

__all__ = ["FairSemaphore", "Slot"]


class Slot:
    """The right that a semaphore grants. A slot that is collected without being released gives itself back."""

    _home: "Callable[[], FairSemaphore | None]" = staticmethod(lambda: None)  # until it is made

    def __init__(self, home: "weakref.ref[FairSemaphore]") -> None:
        self._home = home

    def __del__(self) -> None:
        """Give the slot back: Ctrl-C came between taking and releasing it."""
        semaphore = self._home()
        if semaphore is not None:
            semaphore.release(Slot(weakref.ref(semaphore)))


class FairSemaphore:
    """A semaphore whose waiters get a slot in the order of arrival. A free slot is taken without waiting.

    It holds no lock, as a slot may give itself back in the middle of anything: each step is one of a deque's.

    Arguments:
        runtime: What waiters wait with.
        count: How many slots there are.
    """

    CHECK_INTERVAL: Final = 0.5
    """Seconds after which a waiter checks by itself: Ctrl-C may have come between a slot's return and the wake-up."""

    def __init__(self, runtime: Runtime, count: int) -> None:
        self._runtime = runtime
        home = weakref.ref(self)
        self._free = deque(Slot(home) for _ in range(count))
        self._waiters: deque[Event] = deque()

    def free(self) -> int:
        """Return the number of slots that nobody holds."""
        return len(self._free)

    async def take(self, timeout: float) -> Slot | None:
        """Return a slot, or None if there was none within `timeout` seconds."""
        if not self._waiters:
            with contextlib.suppress(IndexError):
                return self._free.popleft()
        until = self._runtime.now() + timeout
        turn = self._runtime.event()
        self._waiters.append(turn)
        try:
            while True:
                with contextlib.suppress(IndexError):
                    if self._waiters[0] is turn:
                        return self._free.popleft()
                left = until - self._runtime.now()
                if left <= 0:
                    return None
                if await turn.wait(min(left, self.CHECK_INTERVAL)):  # its waker has taken it out of the queue
                    turn = self._runtime.event()
                    self._waiters.appendleft(turn)
        finally:
            self._leave(turn)

    def _leave(self, turn: Event) -> None:
        """Leave the queue; a waiter that was woken meanwhile wakes the next one, as a slot may be left."""
        with contextlib.suppress(ValueError):
            self._waiters.remove(turn)
        if self._free:
            self._wake_next()

    def release(self, slot: Slot) -> None:
        """Give a slot back, and wake the first waiter."""
        self._free.append(slot)
        self._wake_next()

    def _wake_next(self) -> None:
        with contextlib.suppress(IndexError):
            self._waiters.popleft().set()
