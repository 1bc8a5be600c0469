"""The locks of the memory backend agree with the model, step by step."""

from hypothesis.stateful import run_state_machine_as_test

from ailf.runtime import ThreadRuntime
from ailf.testing import Clock
from ailf_memory import MemoryStore
from ailf_memory.driver import MemoryDriver
from tests.models.lock_machine import LockMachine, LockSide, LockTimes
from tests.models.lock_model import HEARD
from tests.support.effort import SLOW, examples

TIMES = LockTimes(
    ttls=(10.0, 20.0, 0.0015),
    leases=(5.0, 15.0, 0.0015),
    passing=(5.0, 10.0, 0.001, 5.0, 20.0, 100_000.0),
)
"""Round numbers, so that events often fall on the same time, or exactly on the end of a grant or waiter lease."""


class TurnedClock(Clock):
    """A clock that can be set forward and back, without callbacks."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970."""
        return self.ms


class WakeUpListener:
    """A listener of the memory backend that records the wake-ups on one channel."""

    def __init__(self) -> None:
        self.tokens: list[str] = []

    def offer(self, channel: str, body: bytes, *, sharded: bool = False) -> bool:
        """Record a body that was published on the channel."""
        if channel == HEARD and not sharded:
            self.tokens.append(body.decode())
        return channel == HEARD and not sharded


class MemorySide(LockSide):
    """The memory backend with a clock that the machine moves."""

    exact = True

    def __init__(self) -> None:
        self.clock = TurnedClock()
        self.listener = WakeUpListener()
        self.store = MemoryStore(self.clock)
        self.store.listeners.append(self.listener)  # type: ignore[arg-type]  # it has the method that the store calls
        super().__init__(MemoryDriver(self.store, ThreadRuntime()).lock(), "")

    def let_pass(self, seconds: float) -> None:
        """Move the clock."""
        self.clock.ms += round(seconds * 1000)

    def woken(self) -> list[str]:
        """Return the recorded tokens."""
        tokens, self.listener.tokens = self.listener.tokens, []
        return tokens

    def queue(self, name: str) -> list[str]:
        """Return the tokens of the live waiters in the stored wait queue, in order."""
        state = self.store.locks.get(name)
        waiters = state.queue.waiters.items() if state else ()
        return [token for token, each in waiters if each.alive_ms > self.clock.ms]

    def close(self) -> None:
        """Do nothing: the store is garbage-collected."""


@SLOW
def test_memory_does_what_the_model_does() -> None:
    """Each step has the model's result and wakes the same waiters, and each lock has the model's state after it."""
    run_state_machine_as_test(
        lambda: LockMachine(TIMES, [MemorySide()]),
        settings=examples(200, stateful_step_count=50),
    )
