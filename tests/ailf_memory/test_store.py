"""A step of the store does a bounded amount of work, however many names the store has."""

import gc
import itertools
import weakref

import pytest

from ailf import TokenBucket
from ailf.driver import Draft, Granted, LimiterKey, LimitRequest, LockRequest
from ailf.runtime import ThreadRuntime, run
from ailf_memory import MemoryStore
from ailf_memory.driver import MemoryDriver
from ailf_memory.state.lock import IDLE_MS, LockState
from ailf_memory.state.ratelimit import LimiterState
from ailf_memory.store import CHECKED
from tests.models.test_lock_memory import TurnedClock

NAMES = 2000
LIMITS = (("", TokenBucket(1, per=1.0)),)


class Names:
    """Locks and limiters of many names, on a clock that the test moves."""

    def __init__(self) -> None:
        self.clock = TurnedClock()
        self.store = MemoryStore(self.clock)
        driver = MemoryDriver(self.store, ThreadRuntime())
        self.locks, self.limiters, self.streams = driver.lock(), driver.rate_limiter(), driver.stream()

    def use(self, kind: str, first: int, end: int) -> None:
        """Acquire and release a lock, or charge a limiter's key, for each number in a range."""
        for number in range(first, end):
            if kind == "locks":
                request = LockRequest((f"lock {number}",), f"token {number}", 10.0)
                assert isinstance(run(self.locks.acquire(request)), Granted)
                run(self.locks.release(request))
            else:
                run(self.limiters.decide(LIMITS, [LimitRequest(LimiterKey("limiter", f"key {number}"), (1,))]))


@pytest.mark.parametrize(("kind", "state"), [("locks", LockState), ("limiters", LimiterState)])
def test_a_new_name_checks_two_others(kind: str, state: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step that adds a name checks two of the others, in turn, so none is checked twice before all were."""
    names, checked, idle = Names(), list[int](), state.idle
    monkeypatch.setattr(state, "idle", lambda self, now_ms: checked.append(id(self)) or idle(self, now_ms))
    for number in range(NAMES):
        before = len(checked)
        names.use(kind, number, number + 1)
        assert len(checked) - before <= CHECKED
    latest = checked[-NAMES // 2 :]
    assert len({*latest}) == len(latest)
    assert len(getattr(names.store, kind)) == NAMES


@pytest.mark.parametrize("kind", ["locks", "limiters"])
def test_idle_names_go(kind: str) -> None:
    """Half as many new names as there are idle ones remove these; what isn't idle stays."""
    names = Names()
    names.use(kind, 0, NAMES)
    names.clock.ms += 2 * IDLE_MS
    names.use(kind, NAMES, NAMES + NAMES // 2)
    assert len(getattr(names.store, kind)) == NAMES // 2


@pytest.mark.parametrize("kind", ["locks", "limiters"])
def test_the_garbage_collector_visits_no_name(kind: str) -> None:
    """A full collection takes no longer for many names than for few: it sees none of their objects."""
    names = Names()
    names.use(kind, 0, 10)
    gc.collect()
    before = len(gc.get_objects())
    names.use(kind, 10, NAMES)
    gc.collect()
    assert len(gc.get_objects()) - before < NAMES / 10


@pytest.mark.parametrize("kind", ["locks", "limiters"])
def test_a_store_with_names_is_collected(kind: str) -> None:
    """What the collector doesn't visit keeps no store alive."""
    names = Names()
    names.use(kind, 0, 10)
    request = LockRequest(("lock 0",), "holder", 10.0)
    run(names.locks.acquire(request))
    store = weakref.ref(names.store)
    del names
    gc.collect()
    assert store() is None


def test_an_add_forgets_few_dedup_ids() -> None:
    """Dedup ids whose windows end at one time are free at once; each later add forgets a few of them."""
    names = Names()

    def add(dedup_id: str) -> bool:
        options = {"dedup_id": dedup_id, "token": dedup_id + "'s", "window": 1.0, "retention": None}
        return run(names.streams.add_once("s", Draft(b""), **options)).duplicate  # type: ignore[arg-type]

    for number in range(NAMES):
        add(f"id {number}")
    once = names.store.streams["s"]._once
    names.clock.ms += 1000
    sizes = [NAMES]
    for number in range(NAMES, 2 * NAMES - 1, 2):
        assert not add(f"id {NAMES - 1}" if number == NAMES else f"id {number}")
        sizes.append(len(once))
    assert all(before - after <= 4 for before, after in itertools.pairwise(sizes))
    assert sizes[-1] <= NAMES // 2
