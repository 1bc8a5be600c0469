"""A slot that no caller holds any more returns itself, whatever collects it."""

import gc
import threading
import time
from typing import Any

from ailf.runtime import run
from ailf.runtime.semaphore import FairSemaphore
from ailf.runtime.threads import ThreadRuntime


class _Cycle:
    """An object in a reference cycle, such as an exception whose traceback has a frame that refers to it."""

    def __init__(self, content: Any) -> None:
        self.content = content
        self.itself = self


def test_the_only_slot_returns_itself_from_a_cycle() -> None:
    """The collector clears weak references that are garbage themselves, before it calls `__del__`."""
    semaphore = FairSemaphore(ThreadRuntime(), 1)
    for _ in range(2):  # the slot that has replaced the first one too
        _Cycle(run(semaphore.take(0.0)))
        gc.collect()
        assert semaphore.free() == 1


def test_a_slot_is_collected_within_a_wait() -> None:
    """No deadlock: a slot takes no lock that its waiter may hold, and the waiter finds it soon."""
    semaphore = FairSemaphore(ThreadRuntime(), 1)
    slots = [run(semaphore.take(0.0))]
    taken: list[Any] = []
    waiter = threading.Thread(target=lambda: taken.append(run(semaphore.take(5.0))), daemon=True)
    waiter.start()
    while not semaphore._waiters:
        time.sleep(0.001)
    event: Any = semaphore._waiters[0]
    with event._cond:  # as within `Event.wait`
        dropping = threading.Thread(target=slots.clear, daemon=True)
        dropping.start()
        dropping.join(2.0)
        assert not dropping.is_alive()
    waiter.join(2.0)
    assert taken
    assert taken[0] is not None
