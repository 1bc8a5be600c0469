"""The memory backend's locks do, step for step, what the model does."""

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
"""Round numbers, so that things often happen at one and the same time, or just at the end of something."""


class TurnedClock(Clock):
    """A clock that is moved both ways, and tells nobody."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970."""
        return self.ms


class Ears:
    """A listener to whom everything on one channel comes."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def offer(self, channel: str, body: bytes, *, sharded: bool = False) -> bool:
        """Take a body that is for us."""
        if channel == HEARD and not sharded:
            self.heard.append(body.decode())
        return channel == HEARD and not sharded


class MemorySide(LockSide):
    """A store with a clock that is moved."""

    exact = True

    def __init__(self) -> None:
        self.clock = TurnedClock()
        self.ears = Ears()
        self.store = MemoryStore(self.clock)
        self.store.listeners.append(self.ears)  # type: ignore[arg-type]  # it hears like one
        super().__init__(MemoryDriver(self.store, ThreadRuntime()).lock(), "")

    def let_pass(self, seconds: float) -> None:
        """Move the clock."""
        self.clock.ms += round(seconds * 1000)

    def woken(self) -> list[str]:
        """Return what came."""
        heard, self.ears.heard = self.ears.heard, []
        return heard

    def line(self, name: str) -> list[str]:
        """Return the live waiters, in order."""
        state = self.store.locks.get(name)
        waiters = state.queue.waiters.items() if state else ()
        return [token for token, each in waiters if each.alive_ms > self.clock.ms]

    def close(self) -> None:
        """Leave it to the collector."""


@SLOW
def test_memory_does_what_the_model_does() -> None:
    """Every answer is the model's, and so are who is woken and how each lock stands after every step."""
    run_state_machine_as_test(
        lambda: LockMachine(TIMES, [MemorySide()]),
        settings=examples(400, stateful_step_count=50),
    )
