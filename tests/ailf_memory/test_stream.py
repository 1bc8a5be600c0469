"""What the model in `tests/models` doesn't play: waiting, times as positions, texts that are no ids, and ties."""

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest

from ailf.driver import Action, Draft, Fetched, Settlement
from ailf.errors import InvalidArgumentError
from ailf.runtime import ThreadRuntime, run
from ailf.testing import Clock, ManualClock
from ailf.values import EARLIEST, LATEST, Retention
from ailf_memory import MemoryStore
from ailf_memory.driver import MemoryDriver

STREAM, GROUP = "tasks", "workers"


class FlowingClock(Clock):
    """Goes by itself, so that nobody is told."""

    def __init__(self) -> None:
        self.ms = 1_000_000

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970."""
        return self.ms


class Place:
    """A stream with a group, in memory, whose time passes unnoticed."""

    def __init__(self) -> None:
        self.clock = FlowingClock()
        self.driver = MemoryDriver(MemoryStore(self.clock), ThreadRuntime()).stream()
        self.waiter = self.driver.waiter(STREAM, GROUP)
        self.ask("open_group", GROUP, EARLIEST)

    def ask(self, method: str, *args: Any, **options: Any) -> Any:
        """Make a step."""
        return run(getattr(self.driver, method)(STREAM, *args, **options))

    def add(self, *bodies: bytes, **how: Any) -> list[str]:
        """Add entries."""
        ids: list[str] = self.ask("add", [Draft(body, **how) for body in bodies], retention=None)
        return ids

    def fetch(self, consumer: str = "anna", count: int = 10, alive: float = 10.0) -> Fetched:
        """Fetch."""
        fetched: Fetched = self.ask("fetch", GROUP, consumer, count=count, lease=30.0, alive=alive, max_deliveries=3)
        return fetched

    def settle(self, fetched: Fetched, action: Action) -> None:
        """Settle all that was fetched."""
        settlements = [Settlement(claim.receipt, action) for claim in fetched.claims]
        self.ask("settle", GROUP, settlements, max_deliveries=3)

    def wait(self, position: Any) -> bool:
        """Look without waiting whether something may have come."""
        return run(self.waiter.wait(position, 0.0))


@attrs.frozen
class Case:
    """What makes something available: what is before, and what then happens with it."""

    before: Callable[[Place], Any]
    then: Callable[[Place, Any], Any]


def held(place: Place) -> Fetched:
    """Somebody has a message."""
    place.add(b"a", key="k")
    place.add(b"b", key="k")
    return place.fetch()


def parked(place: Place) -> list[str]:
    """A message waits for its time, and another one for its turn."""
    ids = place.add(b"a", key="k", delay=100.0)
    place.add(b"b", key="k")
    return ids


def dead(place: Place) -> None:
    """There is a dead letter."""
    place.add(b"a")
    place.settle(place.fetch(), Action.REJECT)


def two_held(place: Place) -> Fetched:
    """Somebody has two messages, and dies."""
    place.add(b"a", b"b")
    return place.fetch(alive=5.0)


def left_over(place: Place, _: Any) -> None:
    """Time passes unnoticed; the fetch that finds somebody dead takes but one of his messages."""
    place.clock.ms += 6000
    assert len(place.fetch("carl", count=1).claims) == 1


WAKING = {
    "add": Case(lambda place: None, lambda place, _: place.add(b"a")),
    "ack of the one before": Case(held, lambda place, fetched: place.settle(fetched, Action.ACK)),
    "reject of the one before": Case(held, lambda place, fetched: place.settle(fetched, Action.REJECT)),
    "nack": Case(held, lambda place, fetched: place.settle(fetched, Action.NACK)),
    "release": Case(held, lambda place, fetched: place.settle(fetched, Action.RELEASE)),
    "leave": Case(held, lambda place, _: place.ask("leave", GROUP, "anna")),
    "cancel of the one before": Case(parked, lambda place, ids: place.ask("cancel", ids[0])),
    "trim of the one before": Case(parked, lambda place, _: place.ask("trim", Retention(max_len=1, hard=True))),
    "redrive": Case(dead, lambda place, _: place.ask("take_dead_letters", GROUP, ["1"], redrive=True)),
    "seek": Case(dead, lambda place, _: place.ask("seek", GROUP, EARLIEST)),
    "delete the group": Case(dead, lambda place, _: place.ask("delete_group", GROUP)),
    "another's death": Case(two_held, left_over),
}


@pytest.mark.parametrize("case", WAKING.values(), ids=WAKING)
def test_whatever_makes_a_message_available_ends_a_wait(case: Case) -> None:
    """A wait from a position at which there was nothing ends at once when there is something, and only then (S6)."""
    place = Place()
    before = case.before(place)
    nothing = place.fetch("bert")
    assert not nothing.claims
    assert not place.wait(nothing.position)
    case.then(place, before)
    assert place.wait(nothing.position)
    assert place.fetch("bert").claims


def test_resuming_ends_a_wait() -> None:
    """A paused group has nothing for anybody, until it is resumed."""
    place = Place()
    place.add(b"a")
    place.ask("pause", GROUP, paused=True)
    nothing = place.fetch("bert")
    assert (nothing.claims, nothing.next_due) == ([], None)
    place.ask("pause", GROUP, paused=False)
    assert place.wait(nothing.position)
    assert place.fetch("bert").claims


def test_moving_the_clock_ends_a_wait() -> None:
    """Time that a test moves may end leases anywhere."""
    clock = ManualClock()
    driver = MemoryDriver(MemoryStore(clock), ThreadRuntime()).stream()
    nothing = run(driver.fetch(STREAM, GROUP, "anna", count=1, lease=30, alive=10, max_deliveries=3))
    clock.advance(0.001)
    assert run(driver.waiter(STREAM, GROUP).wait(nothing.position, 0.0))


def test_following_waits_for_what_is_after_an_id() -> None:
    """A position may be an id, as a reader has it that needs no group; what went doesn't bring it back."""
    place = Place()
    assert not place.wait(EARLIEST)
    first, last = place.add(b"a") + place.add(b"b", delay=1.0)
    assert [place.wait(each) for each in (EARLIEST, first, last, LATEST)] == [True, True, False, False]
    place.ask("cancel", last)
    assert [place.wait(each) for each in (first, last)] == [False, False]
    assert place.ask("last_id") == last
    assert place.add(b"c") > [last]
    assert place.wait(last)


def test_an_interrupted_waiter_waits_no_more() -> None:
    """Neither does a closed one."""
    place = Place()
    nothing = place.fetch()
    place.waiter.interrupt()
    assert place.wait(nothing.position)
    run(place.waiter.close())
    assert place.wait(nothing.position)


@pytest.mark.parametrize(("seconds", "bodies"), [(1000.0, b"abc"), (1000.005, b"c"), (1000.006, b""), (0.0, b"abc")])
def test_a_time_is_before_all_that_is_added_at_it(seconds: float, bodies: bytes) -> None:
    """What was added in the very millisecond comes after the position, what was added before it doesn't."""
    place = Place()
    place.add(b"a", b"b")
    place.clock.ms += 5
    place.add(b"c")
    assert b"".join(_bodies(place.ask("read", place.driver.id_before(seconds), LATEST, 10, after=True))) == bodies


def _bodies(records: Sequence[Any]) -> list[bytes]:
    return [record.body for record in records]


@pytest.mark.parametrize("text", ["", "x", "1-x", "-1", "1-", "1.5", "²", "tomorrow"])
def test_a_text_that_is_no_id_is_refused(text: str) -> None:
    """Whatever is asked for with it."""
    place = Place()
    for method, *args in (
        ("read", text, LATEST, 1),
        ("read", EARLIEST, text, 1),
        ("open_group", "another", text),
        ("seek", GROUP, text),
        ("cancel", text),
        ("dead_letters", GROUP, text or "x", 1),
    ):
        with pytest.raises(InvalidArgumentError, match="is not the id of"):
            place.ask(method, *args)
    with pytest.raises(InvalidArgumentError, match="is not the id of a dead letter"):
        place.ask("take_dead_letters", GROUP, ["1", text], redrive=True)


@pytest.mark.parametrize("position", [EARLIEST, LATEST])
def test_only_an_id_names_an_entry(position: str) -> None:
    """A position that is none names no entry to be cancelled."""
    with pytest.raises(InvalidArgumentError, match="is not the id of"):
        Place().ask("cancel", position)


def test_ties_are_broken_by_the_text_of_ids() -> None:
    """What is due in the same millisecond comes in the order of the ids' text, as elsewhere."""
    place = Place()
    place.add(*(b"%d" % number for number in range(12)))
    place.settle(place.fetch(count=20), Action.NACK)
    again = [claim.record.body for claim in place.fetch(count=20).claims]
    assert again == [b"0", b"1", b"10", b"11", *(b"%d" % number for number in range(2, 10))]


def test_a_delay_is_due_at_its_millisecond() -> None:
    """A delay of 2.007 s is over after 2007 ms, and not one sooner; a dedup id is free again then."""
    place = Place()
    first = place.ask("add_once", Draft(b"x", delay=2.007), dedup_id="id", token="a", window=2.007, retention=None)
    assert place.fetch().next_due == 2.007
    place.clock.ms += 2006
    assert place.fetch().claims == []
    assert place.ask("add_once", Draft(b"y"), dedup_id="id", token="b", window=1.0, retention=None).duplicate
    place.clock.ms += 1
    assert [claim.record.id for claim in place.fetch().claims] == [first.id]
    assert not place.ask("add_once", Draft(b"y"), dedup_id="id", token="b", window=1.0, retention=None).duplicate


def test_a_dedup_id_that_is_taken_again_has_its_own_window() -> None:
    """After a cancel the window of the first message ends, and the second one's goes on, be it longer or shorter."""
    for first, second in ((1.0, 3.0), (3.0, 1.0)):
        place = Place()
        options = {"dedup_id": "id", "retention": None}
        one = place.ask("add_once", Draft(b"1", delay=9.0), token="a", window=first, **options)
        assert place.ask("cancel", one.id)
        place.ask("add_once", Draft(b"2"), token="b", window=second, **options)
        place.clock.ms += 999
        assert place.ask("add_once", Draft(b"3"), token="c", window=0.001, **options).duplicate
        place.clock.ms += 1
        assert place.ask("add_once", Draft(b"3"), token="c", window=0.001, **options).duplicate is (second > 1)
        place.clock.ms += 2000
        assert not place.ask("add_once", Draft(b"4"), token="d", window=1.0, **options).duplicate
