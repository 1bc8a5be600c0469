"""A fair semaphore: at most `count` callers hold a slot at once; the others queue for one, first come, first served."""

import contextlib
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final

from ailf.runtime.base import Event, Runtime

__all__ = ["FairSemaphore", "Slot"]


class Slot:
    """A permit of a semaphore. A slot that is garbage-collected without being released returns itself."""

    _semaphore: "Callable[[], FairSemaphore | None]" = staticmethod(lambda: None)  # until `__init__` has run

    def __init__(self, semaphore: "Callable[[], FairSemaphore | None]") -> None:
        self._semaphore = semaphore

    def __del__(self) -> None:
        """Return the slot: Ctrl-C came between taking and releasing it.

        This wakes no waiter: the garbage collector may run this within a wait, whose lock `Event.set` takes too.
        """
        semaphore = self._semaphore()
        if semaphore is not None:
            semaphore.put_back(Slot(self._semaphore))


class FairSemaphore:
    """A semaphore whose waiters get a slot in the order of arrival. A free slot is taken without waiting.

    It uses no lock: the garbage collector may return a slot at any point. Each step is one atomic operation of a deque.

    Arguments:
        runtime: The runtime of its waiters.
        count: The number of slots.
    """

    CHECK_INTERVAL: Final = 0.5
    """Seconds after which a waiter checks by itself, as a slot that returns itself, or Ctrl-C, wakes nobody."""

    def __init__(self, runtime: Runtime, count: int) -> None:
        self._runtime = runtime
        self._reference = weakref.ref(self)  # kept here: the collector clears a weak reference that it finds in garbage
        self._free = deque(Slot(self._reference) for _ in range(count))
        self._waiters: deque[Event] = deque()

    def free(self) -> int:
        """Return the number of free slots."""
        return len(self._free)

    async def take(self, timeout: float) -> Slot | None:
        """Return a slot, or None if there was none within `timeout` seconds."""
        if not self._waiters:
            with contextlib.suppress(IndexError):
                return self._free.popleft()
        until = self._runtime.now() + timeout
        waiter = self._runtime.event()
        self._waiters.append(waiter)
        try:
            while True:
                with contextlib.suppress(IndexError):
                    if self._waiters[0] is waiter:
                        return self._free.popleft()
                left = until - self._runtime.now()
                if left <= 0:
                    return None
                if await waiter.wait(min(left, self.CHECK_INTERVAL)):  # `_wake_next` has removed it from the queue
                    waiter = self._runtime.event()
                    self._waiters.appendleft(waiter)
                elif self._free:  # the first waiter takes no slot: Ctrl-C may have ended it and left it in the queue
                    self._wake_next()
        finally:
            self._leave(waiter)

    def _leave(self, waiter: Event) -> None:
        """Leave the queue. A waiter that was woken and takes no slot wakes the next one in its place."""
        with contextlib.suppress(ValueError):
            self._waiters.remove(waiter)
        if self._free:
            self._wake_next()

    def release(self, slot: Slot) -> None:
        """Return a slot, and wake the first waiter."""
        self._free.append(slot)
        self._wake_next()

    def put_back(self, slot: Slot) -> None:
        """Return a slot without waking a waiter; the first one finds it within `CHECK_INTERVAL` seconds."""
        self._free.append(slot)

    def _wake_next(self) -> None:
        with contextlib.suppress(IndexError):
            self._waiters.popleft().set()
