"""Streams in memory beyond the model in `tests/models`: waiting, times as positions, invalid ids, and ties."""

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest

import ailf
from ailf.driver import Action, Draft, Fetched, Settlement
from ailf.errors import InvalidArgumentError
from ailf.runtime import ThreadRuntime, run
from ailf.testing import Clock, ManualClock
from ailf.values import EARLIEST, LATEST, Retention
from ailf_memory import MemoryStore
from ailf_memory.driver import MemoryDriver

STREAM, GROUP = "tasks", "workers"


class FlowingClock(Clock):
    """A clock that moves without calling back, like the system's."""

    def __init__(self) -> None:
        self.ms = 1_000_000

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970."""
        return self.ms


class Scenario:
    """A stream with a group, in memory, on a clock that moves without calling back."""

    def __init__(self) -> None:
        self.clock = FlowingClock()
        self.store = MemoryStore(self.clock)
        self.driver = MemoryDriver(self.store, ThreadRuntime()).stream()
        self.waiter = self.driver.waiter(STREAM, GROUP)
        self.ask("open_group", GROUP, EARLIEST)

    def ask(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the driver."""
        return run(getattr(self.driver, method)(STREAM, *args, **options))

    def add(self, *bodies: bytes, **how: Any) -> list[str]:
        """Add entries."""
        ids: list[str] = self.ask("add", [Draft(body, **how) for body in bodies], retention=None)
        return ids

    def fetch(self, consumer: str = "anna", count: int = 10, alive: float = 10.0) -> Fetched:
        """Fetch for a consumer."""
        fetched: Fetched = self.ask("fetch", GROUP, consumer, count=count, lease=30.0, alive=alive, max_deliveries=3)
        return fetched

    def settle(self, fetched: Fetched, action: Action) -> None:
        """Settle all claims of a fetch."""
        settlements = [Settlement(claim.receipt, action) for claim in fetched.claims]
        self.ask("settle", GROUP, settlements, max_deliveries=3)

    def wait(self, position: Any) -> bool:
        """Tell, without waiting, whether there may be new entries."""
        return run(self.waiter.wait(position, 0.0))


@attrs.frozen
class Case:
    """A change that makes a message available: a preparation, and the change."""

    before: Callable[[Scenario], Any]
    then: Callable[[Scenario, Any], Any]


def held(scenario: Scenario) -> Fetched:
    """A consumer has leased a message."""
    scenario.add(b"a", key="k")
    scenario.add(b"b", key="k")
    return scenario.fetch()


def parked(scenario: Scenario) -> list[str]:
    """A message waits for its time, and another one for its turn in the same lane."""
    ids = scenario.add(b"a", key="k", delay=100.0)
    scenario.add(b"b", key="k")
    return ids


def dead(scenario: Scenario) -> None:
    """There is a dead letter."""
    scenario.add(b"a")
    scenario.settle(scenario.fetch(), Action.REJECT)


def two_held(scenario: Scenario) -> Fetched:
    """A consumer has leased two messages, and dies."""
    scenario.add(b"a", b"b")
    return scenario.fetch(alive=5.0)


def left_over(scenario: Scenario, _: Any) -> None:
    """Time passes; the fetch that ends a dead consumer's leases leases only one of its messages."""
    scenario.clock.ms += 6000
    assert len(scenario.fetch("carl", count=1).claims) == 1


WAKING = {
    "add": Case(lambda scenario: None, lambda scenario, _: scenario.add(b"a")),
    "ack of the one before": Case(held, lambda scenario, fetched: scenario.settle(fetched, Action.ACK)),
    "reject of the one before": Case(held, lambda scenario, fetched: scenario.settle(fetched, Action.REJECT)),
    "nack": Case(held, lambda scenario, fetched: scenario.settle(fetched, Action.NACK)),
    "release": Case(held, lambda scenario, fetched: scenario.settle(fetched, Action.RELEASE)),
    "leave": Case(held, lambda scenario, _: scenario.ask("leave", GROUP, "anna")),
    "cancel of the one before": Case(parked, lambda scenario, ids: scenario.ask("cancel", ids[0])),
    "trim of the one before": Case(parked, lambda scenario, _: scenario.ask("trim", Retention(max_len=1, hard=True))),
    "redrive": Case(dead, lambda scenario, _: scenario.ask("take_dead_letters", GROUP, ["1"], redrive=True)),
    "seek": Case(dead, lambda scenario, _: scenario.ask("seek", GROUP, EARLIEST)),
    "delete the group": Case(dead, lambda scenario, _: scenario.ask("delete_group", GROUP)),
    "another's death": Case(two_held, left_over),
}


@pytest.mark.parametrize("case", WAKING.values(), ids=WAKING)
def test_whatever_makes_a_message_available_ends_a_wait(case: Case) -> None:
    """A wait from a position without messages ends at once when one is available, and only then (S6)."""
    scenario = Scenario()
    before = case.before(scenario)
    nothing = scenario.fetch("bert")
    assert not nothing.claims
    assert not scenario.wait(nothing.position)
    case.then(scenario, before)
    assert scenario.wait(nothing.position)
    assert scenario.fetch("bert").claims


def test_resuming_ends_a_wait() -> None:
    """A paused group delivers nothing until it is resumed."""
    scenario = Scenario()
    scenario.add(b"a")
    scenario.ask("pause", GROUP, paused=True)
    nothing = scenario.fetch("bert")
    assert (nothing.claims, nothing.next_due) == ([], None)
    scenario.ask("pause", GROUP, paused=False)
    assert scenario.wait(nothing.position)
    assert scenario.fetch("bert").claims


def test_moving_the_clock_ends_a_wait() -> None:
    """A move of the clock may end leases, so it ends waits."""
    clock = ManualClock()
    driver = MemoryDriver(MemoryStore(clock), ThreadRuntime()).stream()
    nothing = run(driver.fetch(STREAM, GROUP, "anna", count=1, lease=30, alive=10, max_deliveries=3))
    clock.advance(0.001)
    assert run(driver.waiter(STREAM, GROUP).wait(nothing.position, 0.0))


def test_following_waits_for_what_is_after_an_id() -> None:
    """A position may be an id, as for a reader without a group; a removed entry doesn't count."""
    scenario = Scenario()
    assert not scenario.wait(EARLIEST)
    first, last = scenario.add(b"a") + scenario.add(b"b", delay=1.0)
    assert [scenario.wait(each) for each in (EARLIEST, first, last, LATEST)] == [True, True, False, False]
    scenario.ask("cancel", last)
    assert [scenario.wait(each) for each in (first, last)] == [False, False]
    assert scenario.ask("last_id") == last
    assert scenario.add(b"c") > [last]
    assert scenario.wait(last)


def test_an_interruption_ends_one_wait() -> None:
    """An interruption ends the next wait if none is under way, and no later one; nor does closing the waiter."""
    scenario = Scenario()
    nothing = scenario.fetch()
    scenario.waiter.interrupt()
    scenario.add(b"a")
    assert not scenario.wait(nothing.position)
    assert scenario.wait(nothing.position)
    run(scenario.waiter.close())
    assert scenario.wait(nothing.position)


@pytest.mark.parametrize(("seconds", "bodies"), [(1000.0, b"abc"), (1000.005, b"c"), (1000.006, b""), (0.0, b"abc")])
def test_a_time_is_before_all_that_is_added_at_it(seconds: float, bodies: bytes) -> None:
    """Entries added in the millisecond of the position come after it; earlier ones don't."""
    scenario = Scenario()
    scenario.add(b"a", b"b")
    scenario.clock.ms += 5
    scenario.add(b"c")
    assert b"".join(_bodies(scenario.ask("read", scenario.driver.id_before(seconds), LATEST, 10, after=True))) == bodies


def _bodies(records: Sequence[Any]) -> list[bytes]:
    return [record.body for record in records]


@pytest.mark.parametrize("text", ["", "x", "1-x", "-1", "1-", "1.5", "²", "tomorrow"])
def test_a_text_that_is_no_id_is_refused(text: str) -> None:
    """Every method that takes an id or position refuses it."""
    scenario = Scenario()
    for method, *args in (
        ("read", text, LATEST, 1),
        ("read", EARLIEST, text, 1),
        ("open_group", "another", text),
        ("seek", GROUP, text),
        ("cancel", text),
        ("dead_letters", GROUP, text or "x", 1),
    ):
        with pytest.raises(InvalidArgumentError, match="is not the id of"):
            scenario.ask(method, *args)
    with pytest.raises(InvalidArgumentError, match="is not the id of a dead letter"):
        scenario.ask("take_dead_letters", GROUP, ["1", text], redrive=True)


@pytest.mark.parametrize("position", [EARLIEST, LATEST])
def test_only_an_id_names_an_entry(position: str) -> None:
    """EARLIEST and LATEST can't be cancelled."""
    with pytest.raises(InvalidArgumentError, match="is not the id of"):
        Scenario().ask("cancel", position)


def test_ties_are_broken_by_the_text_of_ids() -> None:
    """Messages that are due in the same millisecond come in the order of the text of their ids, as on Redis."""
    scenario = Scenario()
    scenario.add(*(b"%d" % number for number in range(12)))
    scenario.settle(scenario.fetch(count=20), Action.NACK)
    again = [claim.record.body for claim in scenario.fetch(count=20).claims]
    assert again == [b"0", b"1", b"10", b"11", *(b"%d" % number for number in range(2, 10))]


def test_a_delay_is_due_at_its_millisecond() -> None:
    """A delay of 2.007 s is over after 2007 ms, and not earlier; the same holds for the window of a dedup id."""
    scenario = Scenario()
    first = scenario.ask("add_once", Draft(b"x", delay=2.007), dedup_id="id", token="a", window=2.007, retention=None)
    assert scenario.fetch().next_due == 2.007
    scenario.clock.ms += 2006
    assert scenario.fetch().claims == []
    assert scenario.ask("add_once", Draft(b"y"), dedup_id="id", token="b", window=1.0, retention=None).duplicate
    scenario.clock.ms += 1
    assert [claim.record.id for claim in scenario.fetch().claims] == [first.id]
    assert not scenario.ask("add_once", Draft(b"y"), dedup_id="id", token="b", window=1.0, retention=None).duplicate


def test_a_dedup_id_that_is_taken_again_has_its_own_window() -> None:
    """After a cancel the window of the second message counts, be it longer or shorter than that of the first."""
    for first, second in ((1.0, 3.0), (3.0, 1.0)):
        scenario = Scenario()
        options = {"dedup_id": "id", "retention": None}
        one = scenario.ask("add_once", Draft(b"1", delay=9.0), token="a", window=first, **options)
        assert scenario.ask("cancel", one.id)
        scenario.ask("add_once", Draft(b"2"), token="b", window=second, **options)
        scenario.clock.ms += 999
        assert scenario.ask("add_once", Draft(b"3"), token="c", window=0.001, **options).duplicate
        scenario.clock.ms += 1
        assert scenario.ask("add_once", Draft(b"3"), token="c", window=0.001, **options).duplicate is (second > 1)
        scenario.clock.ms += 2000
        assert not scenario.ask("add_once", Draft(b"4"), token="d", window=1.0, **options).duplicate


def test_redriving_during_a_seek(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3, S16: between the steps of a seek another one, and a redrive, leave redriven messages in order."""
    monkeypatch.setattr("ailf_memory.state.group.PAGE", 2)
    scenario = Scenario()
    scenario.add(*(b"%d" % number for number in range(6)), key="one")
    for _ in range(6):
        scenario.settle(scenario.fetch(), Action.REJECT)
    letters = [each.id for each in scenario.ask("dead_letters", GROUP, "", 10)]
    scenario.ask("take_dead_letters", GROUP, letters[:5], redrive=True)
    state = scenario.store.streams[STREAM].groups[GROUP]
    for _ in range(2):
        state.seek(state.position, scenario.clock.ms)
    scenario.ask("take_dead_letters", GROUP, letters[5:], redrive=True)
    taken: list[bytes] = []
    while len(taken) < 6:
        fetched = scenario.fetch()
        taken += [claim.record.body for claim in fetched.claims]
        scenario.settle(fetched, Action.ACK)
    assert taken == [b"%d" % number for number in range(6)]


def test_the_leases_of_many_dead_consumers(monkeypatch: pytest.MonkeyPatch) -> None:
    """S12: one step ends a page of leases, however many consumers are dead; the next ones do the rest."""
    monkeypatch.setattr("ailf_memory.state.group.PAGE", 2)
    scenario = Scenario()
    scenario.add(*(b"%d" % number for number in range(6)))
    for consumer in ("anna", "bert", "carl"):
        assert len(scenario.fetch(consumer, count=2).claims) == 2
    scenario.clock.ms += 11_000
    assert scenario.fetch("dora", count=0).next_due == 0
    assert scenario.ask("info", GROUP).pending == 4
    assert len(scenario.fetch("dora", count=6).claims) == 4
    assert len(scenario.fetch("dora", count=6).claims) == 2


class Moves(list[Any]):
    """A list that counts how often the elements behind a place are moved."""

    moves = 0

    def __setitem__(self, place: Any, value: Any) -> None:
        self.moves += 1
        super().__setitem__(place, value)

    def __delitem__(self, place: Any) -> None:
        self.moves += 1
        super().__delitem__(place)


def test_a_trim_moves_later_entries_once() -> None:
    """S8: a step of a trim moves the entries behind it once or twice, however many gaps it makes."""
    scenario = Scenario()
    ids = scenario.add(*[b"x"] * 2000)
    fetched = scenario.fetch(count=1500)
    odd = [claim for number, claim in enumerate(fetched.claims) if number % 2 == 0 or number < 10]
    scenario.ask("settle", GROUP, [Settlement(claim.receipt, Action.ACK) for claim in odd], max_deliveries=3)
    state = scenario.driver._store.streams[STREAM]
    removed, after = 0, ""
    for _ in range(20):
        state.keys, state.records = Moves(state.keys), Moves(state.records)
        swept = scenario.ask("trim", Retention(max_len=1), after=after)
        assert swept.removed <= 100
        assert state.keys.moves == state.records.moves <= 2
        removed, after = removed + swept.removed, swept.after
        if not after:
            break
    assert removed == len(odd) == 755
    gone = {claim.record.id for claim in odd}
    assert [each.id for each in scenario.ask("read", EARLIEST, LATEST, 3000)] == [
        each for each in ids if each not in gone
    ]
    assert [f"{ms}-{number}" for ms, number in state.keys] == [record.id for record in state.records]


def test_dedup_ids_expire_in_steps() -> None:
    """S7: however many dedup ids expire at once, each add forgets some of them, and none of them is taken any more."""
    scenario = Scenario()

    def add(dedup_id: int, window: float = 1.0) -> bool:
        options = {"dedup_id": str(dedup_id), "token": f"{scenario.clock.ms}", "window": window, "retention": None}
        added: bool = scenario.ask("add_once", Draft(b"x"), **options).duplicate
        return added

    for number in range(350):
        assert not add(number)
    state = scenario.driver._store.streams[STREAM]
    scenario.clock.ms += 2000
    for number in range(349, 344, -1):
        before = len(state._once)
        assert not add(number, 1000.0)
        assert before - 4 <= len(state._once) < before
    assert len(state._once) < 350 - 10
    scenario.clock.ms += 1000
    assert [add(number) for number in (349, 345, 0)] == [True, True, False]


def test_a_backlog_of_ten_thousand() -> None:
    """S20: a key behind 10,000 messages of another one is found, 150 at each fetch, and takes its turn."""
    with ailf.connect("memory://") as backend:
        stream = backend.stream("s")
        for _ in range(20):
            stream.add_many(range(500), key="busy")
        stream.add("quiet", key="quiet")
        group = stream.group("g", lease=60)
        with group.consumer(prefetch=1) as consumer:
            seen, lag = [], 10_001
            while "quiet" not in seen:
                delivery = consumer.get(1)
                assert delivery is not None
                seen.append(delivery.data)
                left = group.info().lag
                assert left is not None
                assert lag - left <= 151
                lag = left
                delivery.ack()
        assert len(seen) <= 10_000 / 150 + 2


@pytest.mark.parametrize("key", ["", "k"])
@pytest.mark.parametrize("last_first", [False, True])
def test_cancelled_messages_leave_nothing(key: str, last_first: bool) -> None:
    """Of delayed messages that a group has read and that are cancelled nothing is kept, behind one that stays, too."""
    scenario = Scenario()
    (first,) = scenario.add(b"it stays", key=key, delay=1000.0)
    state = scenario.store.streams[STREAM]
    group = state.groups[GROUP]
    for _ in range(20):
        ids = scenario.add(*[b"a"] * 100, key=key, delay=1000.0)
        assert not scenario.fetch().claims
        assert all(scenario.ask("cancel", each) for each in (reversed(ids) if last_first else ids))
    assert list(group.pending) == list(state.terms) == [first]
    assert group._aside == {first}
    assert [len(lane.active) + len(lane.queued) for lane in group._lanes.values()] == ([1] if key else [])
    assert len(group._due) + len(group._old_due) <= 900, "without a bound they were 2001"
    assert scenario.ask("cancel", first)
    assert not any((group.pending, group._lanes, group._aside, state.keys, state.terms))
    scenario.add(b"b", key=key)
    assert len(scenario.fetch().claims) == 1


def test_renewed_leases_leave_little() -> None:
    """The ends of a lease that was extended many times are not kept for as long as the lease lasts."""
    scenario = Scenario()
    scenario.add(b"a")
    (claim,) = scenario.fetch().claims
    for _ in range(3000):
        scenario.clock.ms += 1
        assert scenario.ask("extend", GROUP, [claim.receipt], lease=1000.0) == [True]
    group = scenario.store.streams[STREAM].groups[GROUP]
    assert len(group._due) + len(group._old_due) <= 600, "without a bound they were 3001"
    assert not scenario.fetch().claims
    scenario.clock.ms += 1_000_000
    assert len(scenario.fetch().claims) == 1
