"""A slot that no caller holds any more returns itself, whatever collects it."""

import contextlib
import gc
import threading
import time
from typing import Any

import pytest

from ailf.runtime import run
from ailf.runtime import semaphore as semaphore_module
from ailf.runtime.semaphore import FairSemaphore
from ailf.runtime.threads import ThreadRuntime
from tests.support.interruption import Interruption


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


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_ctrl_c_anywhere_in_a_wait() -> None:
    """The next caller gets the slot soon, wherever Ctrl-C comes: no waiter that is gone stays the first."""
    semaphore = FairSemaphore(ThreadRuntime(), 1)
    moment = 0
    while True:
        moment += 1
        slots: list[Any] = [run(semaphore.take(1.0))]
        assert slots[0] is not None
        returning = threading.Timer(0.05, lambda slots=slots: semaphore.release(slots.pop()))
        returning.start()
        with (
            Interruption(
                moment, within=(semaphore_module.__file__,), spared=("Slot.__del__", "FairSemaphore.put_back")
            ) as interruption,
            contextlib.suppress(KeyboardInterrupt),
        ):
            slots.append(run(semaphore.take(1.0)))
            semaphore.release(slots.pop())
        returning.join()
        gc.collect()
        if not interruption.at:
            break
        begin = time.monotonic()
        slot = run(semaphore.take(5.0))
        assert slot is not None, interruption.at
        assert time.monotonic() - begin < 2.0, interruption.at
        semaphore.release(slot)
        del slot
        assert not semaphore._waiters, interruption.at
    assert moment > 10
