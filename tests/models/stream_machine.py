"""A state machine that takes the same random steps on the model and on stream drivers, and compares them.

It compares the results and the states. Time passes only in steps: one tick after each, so that no two steps happen at
the same time, and more in a `wait`. A consumer that crashes is one that makes no more calls while time passes.
"""

import math
from collections.abc import Sequence
from typing import Any

import attrs
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ailf.driver import Action, Receipt, Settlement
from ailf.values import EARLIEST, LATEST, Retention
from tests.models.side import MOST, Side, Times, Timing, Wanted
from tests.models.stream_model import Entry, Full, Group, Letter, Model

__all__ = ["Machine"]

GROUPS = ("g", "h")

groups = st.sampled_from(("g", "g", "h"))
consumers = st.sampled_from(("anna", "bert", "carl"))
places = st.sampled_from((EARLIEST, LATEST, "id", "id"))
kinds = st.integers(0, 2)
kept = st.sampled_from(("settled", "settled", "unsettled", "hard"))
"""The kind of a retention: it keeps settled entries too, only unsettled ones, or is hard."""
picks = st.integers(0, 99)
"""An index from the latest item of a list back; it is taken modulo the length of the list."""


@attrs.frozen
class LeaseOnSides:
    """A lease: its consumer and number in the model, and its receipt on each side."""

    group: str
    consumer: str
    lease: int
    receipts: tuple[Receipt, ...]


widths = st.sampled_from((None, None, None, 1, 2, 3))
"""How many messages of a key may be leased at once, or None for as many as before."""
ordered = st.builds(Wanted, key=st.sampled_from(["k", "k", "l", "m"]))
wanted = st.builds(
    Wanted,
    key=st.sampled_from(["", "", "k", "l"]),
    timing=st.sampled_from([Timing.NONE, *Timing]),
    wait=kinds,
    most=st.sampled_from([None, None, 1, 2, 4]),
)


class Machine(RuleBasedStateMachine):
    """The random steps."""

    def __init__(self, times: Times, sides: Sequence[Side]) -> None:
        super().__init__()
        self.times = times
        self.sides = sides
        self.model = Model(times.lease, times.alive, MOST)
        self.leases: list[LeaseOnSides] = []
        self.width = 1
        self.agreed = False

    # --- helpers -------------------------------------------------------------------------------------------------

    def every(self, method: str, *args: Any, **options: Any) -> list[Any]:
        """Call a method on every side; return the results."""
        return [side.call(method, *args, **options) for side in self.sides]

    def group(self, name: str) -> Group | None:
        """Return the model's group."""
        return self.model.groups.get(name)

    def letters(self, name: str) -> list[Letter]:
        """Return a group's dead letters."""
        group = self.group(name)
        return list(group.dead) if group else []

    def live(self) -> list[LeaseOnSides]:
        """Return the leases that have not ended, or all if there are none."""
        live = [each for each in self.leases if self.model.find(self.group(each.group), each.consumer, each.lease)]
        return live or self.leases

    def retention(self, keep: int | None, age: int, what: str) -> Retention | None:
        """Return a retention, or None for no limit."""
        if what == "unsettled" and not self.model.holds_removed():  # else a driver may keep what is behind these
            return Retention.settled(max_len=keep)
        max_age = self.times.ages[age]
        return None if keep is max_age is None else Retention(max_len=keep, max_age=max_age, hard=what == "hard")

    def with_letters(self) -> list[str]:
        """Return the names of the groups that have or had dead letters."""
        return [name for name, group in self.model.groups.items() if group.all_dead]

    def position(self, place: str, pick: int) -> tuple[int, list[str]]:
        """Return a position: the number of the first entry after it, and its form on each side."""
        if place == EARLIEST:
            return 0, [EARLIEST for _ in self.sides]
        if place == LATEST or not self.model.added:
            return self.model.added, [LATEST for _ in self.sides]
        number = self.model.added - 1 - pick % self.model.added
        return number + 1, [side.ids[number] for side in self.sides]

    def entry(self, wanted: Wanted) -> Entry:
        """Return an entry for the model to add."""
        at = self.model.now + max(wanted.seconds(self.times))
        return Entry(0, self.model.now, wanted.key, at, wanted.most)

    def let_pass(self, seconds: float) -> None:
        """Let time pass on the model and on every side."""
        self.model.now += seconds
        for side in self.sides:
            side.let_pass(seconds)

    # --- the stream ----------------------------------------------------------------------------------------------

    @initialize(opened=st.sampled_from([("g",), ("g", "h"), ()]), entries=st.lists(wanted, max_size=6))
    def begin(self, opened: Sequence[str], entries: Sequence[Wanted]) -> None:
        """Begin with some groups and entries, or with none."""
        for group in opened:
            self.open_group(group, EARLIEST, 0)
        self.append(entries, None)

    @rule(entries=st.lists(wanted, min_size=1, max_size=3))
    def add(self, entries: Sequence[Wanted]) -> None:
        """Add entries."""
        self.append(entries, None)

    @rule(entries=st.lists(ordered, min_size=2, max_size=4))
    def add_ordered(self, entries: Sequence[Wanted]) -> None:
        """Add entries with ordering keys."""
        self.append(entries, None)

    @rule(entries=st.lists(wanted, min_size=1, max_size=3), keep=st.sampled_from([3, 5, 8]), age=kinds, what=kept)
    def add_within(self, entries: Sequence[Wanted], keep: int, age: int, what: str) -> None:
        """Add entries with a retention, which may refuse them."""
        self.append(entries, self.retention(keep, age, what))

    def append(self, entries: Sequence[Wanted], retention: Retention | None) -> None:
        """Add all entries or none, on the model and on every side."""
        first = self.model.added
        drafts = [
            [side.draft(each, first + index, self.times) for index, each in enumerate(entries)] for side in self.sides
        ]
        try:
            self.model.add([self.entry(each) for each in entries], retention)
        except Full:
            for side, own in zip(self.sides, drafts, strict=True):
                assert side.is_full("add", own, retention=retention)
        else:
            for side, own in zip(self.sides, drafts, strict=True):
                side.ids += side.call("add", own, retention=retention)

    @rule(
        entry=wanted,
        dedup_id=st.sampled_from(["one", "other"]),
        token=st.sampled_from("xy"),
        window=kinds,
        retention=st.sampled_from([None, None, Retention(max_len=3), Retention(max_len=3, hard=True)]),
    )
    def add_once(self, entry: Wanted, retention: Retention | None, dedup_id: str, token: str, window: int) -> None:
        """Add under a dedup id, which is taken for its window; a call with an earlier token is a repetition."""
        first, seconds = self.model.added, self.times.windows[window]
        options = {"dedup_id": dedup_id, "token": token, "window": seconds, "retention": retention}
        try:
            number, duplicate = self.model.add_once(self.entry(entry), retention, dedup_id, token, seconds)
        except Full:
            assert all(side.is_full("add_once", side.draft(entry, first, self.times), **options) for side in self.sides)
            return
        for side in self.sides:
            added = side.call("add_once", side.draft(entry, first, self.times), **options)
            if number == first:
                side.ids.append(added.id)
            assert (added.id, added.duplicate) == (side.ids[number], duplicate)

    @precondition(lambda self: self.model.added)
    @rule(pick=picks, waiting=st.sampled_from([True, True, False]))
    def cancel(self, pick: int, *, waiting: bool) -> None:
        """Cancel an entry; only one that is not due yet can be cancelled."""
        numbers = [each.number for each in self.model.entries if each.at > self.model.now] if waiting else []
        numbers = numbers or list(range(self.model.added))
        number = numbers[-1 - pick % len(numbers)]
        cancelled = self.model.cancel(number)
        assert [side.call("cancel", side.ids[number]) for side in self.sides] == [cancelled] * len(self.sides)

    @rule(keep=st.sampled_from([None, 1, 2, 4]), age=kinds, what=kept)
    def trim(self, keep: int | None, age: int, what: str) -> None:
        """Trim the stream; the same number of entries and of unsettled ones is removed."""
        retention = self.retention(keep, age, what)
        if retention is not None:
            swept = self.model.trim(keep or math.inf, retention)
            assert self.every("trim", retention) == [swept] * len(self.sides)

    @precondition(lambda self: self.model.added)
    @rule(start=picks, end=picks, limit=st.integers(1, 4), after=st.booleans())
    def read(self, start: int, end: int, limit: int, *, after: bool) -> None:
        """Read a range, which may begin and end at a removed entry."""
        first, last = start % self.model.added, end % self.model.added
        entries = self.model.read(first + after, last, limit)
        for side in self.sides:
            side.agree_on_records(side.call("read", side.ids[first], side.ids[last], limit, after=after), entries)

    # --- groups --------------------------------------------------------------------------------------------------

    @rule(
        how=st.sampled_from(["open", "open", "open", "pause", "resume", "resume", "delete group", "delete"]),
        group=groups,
        place=places,
        pick=picks,
    )
    def steer(self, how: str, group: str, place: str, pick: int) -> None:
        """Open, pause, resume or delete a group, or delete the stream."""
        if how == "open":
            self.open_group(group, place, pick)
        elif how in {"pause", "resume"}:
            self.pause(group, paused=how == "pause")
        elif how == "delete group":
            self.model.groups.pop(group, None)
            self.every("delete_group", group)
        elif pick % 3 == 0:  # seldom, as it ends everything that was going on
            self.model.delete()
            self.every("delete")

    def open_group(self, group: str, place: str, pick: int) -> None:
        """Open a group; one that exists isn't moved."""
        unread, positions = self.position(place, pick)
        made = group not in self.model.groups
        self.model.groups.setdefault(group, Group(unread))
        for side, position in zip(self.sides, positions, strict=True):
            assert side.call("open_group", group, position) == made

    @rule(place=places, pick=picks)
    def seek_back(self, place: str, pick: int) -> None:
        """Seek in groups that have dead letters, which stay, or redriven messages, which are still delivered."""
        for group in self.with_letters():
            self.seek(group, place, pick)

    @rule(group=groups, place=places, pick=picks)
    def seek(self, group: str, place: str, pick: int) -> None:
        """Seek in a group; a missing one is not made."""
        unread, positions = self.position(place, pick)
        exists = self.model.seek(group, unread)
        for side, position in zip(self.sides, positions, strict=True):
            assert side.call("seek", group, position) == exists

    def pause(self, group: str, *, paused: bool) -> None:
        """Pause or resume a group; a missing one is not made."""
        its = self.group(group)
        if its:
            its.paused = paused
        assert self.every("pause", group, paused=paused) == [its is not None] * len(self.sides)

    # --- deliveries ----------------------------------------------------------------------------------------------

    @rule(group=groups, consumer=consumers, count=st.integers(1, 4), width=widths)
    def fetch(self, group: str, consumer: str, count: int, width: int | None = None) -> None:
        """Fetch; the same entries are claimed in the same order, and the same ones become dead letters."""
        self.width = width or self.width
        expected = self.model.fetch(group, consumer, count, self.width)
        for claim in expected.claims:
            assert not claim.entry.key or self.model.leased(group, claim.entry.key) <= self.width
        results = [side.fetch(group, consumer, count, self.times, self.width) for side in self.sides]
        for side, fetched in zip(self.sides, results, strict=True):
            side.agree_on_fetched(group, fetched, expected, full=len(expected.claims) == count)
        for index, claim in enumerate(expected.claims):
            receipts = tuple(fetched.claims[index].receipt for fetched in results)
            self.leases.append(LeaseOnSides(group, consumer, claim.lease, receipts))

    @rule(group=groups, consumer=consumers)
    def fetch_all(self, group: str, consumer: str) -> None:
        """Fetch everything."""
        self.fetch(group, consumer, 100)

    @precondition(lambda self: self.leases)
    @rule(pick=picks, action=st.sampled_from(Action), delay=kinds)
    def settle_one(self, pick: int, action: Action, delay: int) -> None:
        """Settle one delivery."""
        live = self.live()
        lease = live[-1 - pick % len(live)]
        self.settle(lease.group, [(lease, action, delay)])

    @precondition(lambda self: self.leases)
    @rule(group=groups, actions=st.lists(st.sampled_from(Action), min_size=1, max_size=4), delay=kinds)
    def settle_all(self, group: str, actions: Sequence[Action], delay: int) -> None:
        """Settle all deliveries of a group in one call."""
        live = [each for each in self.live() if each.group == group]
        self.settle(group, [(each, actions[at % len(actions)], delay) for at, each in enumerate(live)])

    @precondition(lambda self: self.leases)
    @rule(group=groups, choices=st.lists(st.tuples(picks, st.sampled_from(Action), kinds), min_size=1, max_size=3))
    def settle_any(self, group: str, choices: Sequence[tuple[int, Action, int]]) -> None:
        """Settle with any receipt ever returned: also an old one, and also twice in one call."""
        leases = [each for each in self.leases if each.group == group]
        if leases:
            self.settle(group, [(leases[-1 - each[0] % len(leases)], *each[1:]) for each in choices])

    def settle(self, group: str, choices: Sequence[tuple[LeaseOnSides, Action, int]]) -> None:
        """Settle deliveries of one group in one call."""
        its, delays = self.group(group), self.times.delays
        outcomes = [
            self.model.settle(its, each.consumer, each.lease, action, delays[delay], "why", f"e{delay}")
            for each, action, delay in choices
        ]
        for index, side in enumerate(self.sides):
            settlements = [
                Settlement(each.receipts[index], action, delays[delay], reason="why", error=f"e{delay}")
                for each, action, delay in choices
            ]
            assert side.call("settle", group, settlements, max_deliveries=MOST) == outcomes

    @precondition(lambda self: self.leases)
    @rule(pick=picks, seconds=kinds, live=st.booleans())
    def extend(self, pick: int, seconds: int, *, live: bool) -> None:
        """Extend a lease, so that it ends later or earlier; an ended one stays ended."""
        leases = self.live() if live else self.leases
        lease, length = leases[-1 - pick % len(leases)], self.times.extensions[seconds]
        kept = self.model.extend(self.group(lease.group), lease.consumer, lease.lease, length)
        for index, side in enumerate(self.sides):
            assert side.call("extend", lease.group, [lease.receipts[index]], lease=length) == [kept]

    @rule(group=groups, names=st.lists(consumers, min_size=1, max_size=2))
    def heartbeat(self, group: str, names: Sequence[str]) -> None:
        """Send heartbeats of consumers."""
        its = self.group(group)
        if its:
            its.alive.update(dict.fromkeys(names, self.model.now + self.times.alive))
            self.every("heartbeat", group, names, alive=self.times.alive)

    @rule(group=groups, consumer=consumers, busy=st.booleans())
    def leave(self, group: str, consumer: str, *, busy: bool) -> None:
        """Let a consumer leave, which gives back the messages that it still holds."""
        if busy and (its := self.group(group)):
            consumer = next((item.holder for item in its.out if item.holder), consumer)
        self.model.leave(self.group(group), consumer)
        self.every("leave", group, consumer)

    @rule(how=kinds)
    def wait(self, how: int) -> None:
        """Let time pass: leases end, delays end, and consumers without heartbeats count as dead."""
        self.let_pass(self.times.passing[how])

    # --- dead letters --------------------------------------------------------------------------------------------

    @precondition(lambda self: self.with_letters())
    @rule(pick=picks, chosen=st.lists(picks, min_size=1, max_size=3), redrive=st.sampled_from([True, True, False]))
    def take_dead_letters(self, pick: int, chosen: Sequence[int], *, redrive: bool) -> None:
        """Redrive or purge dead letters, also ones that were taken before."""
        group = self.with_letters()[pick % len(self.with_letters())]
        numbers = self.model.groups[group].all_dead
        self.take(group, [numbers[-1 - each % len(numbers)] for each in chosen], redrive=redrive)

    @rule(group=groups)
    def redrive_all(self, group: str) -> None:
        """Redrive up to nine dead letters of a group; the ids of ten in one millisecond needn't sort as numbers."""
        self.take(group, [letter.number for letter in self.letters(group)][:9], redrive=True)

    @precondition(lambda self: self.leases)
    @rule(group=groups)
    def reject_and_redrive(self, group: str) -> None:
        """Reject all deliveries of a group, and redrive its dead letters."""
        self.settle_all(group, [Action.REJECT], 0)
        self.let_pass(self.times.tick)  # messages that come due in one step come in an order of their own
        for side in self.sides:
            side.agree_on_letters(group, self.letters(group))
        self.redrive_all(group)

    def take(self, group: str, numbers: Sequence[int], *, redrive: bool) -> None:
        """Take dead letters, on the model and on every side."""
        taken = self.model.take_dead_letters(self.group(group), numbers, redrive=redrive)
        for side in self.sides:
            letters = [side.letters[number] for number in numbers]
            assert side.call("take_dead_letters", group, letters, redrive=redrive) == taken

    # --- agreement -----------------------------------------------------------------------------------------------

    @invariant()
    def all_agree(self) -> None:
        """Every side has the same entries as the model, and its groups have the same state."""
        self.agreed = False
        for side in self.sides:
            side.agree_on_records(side.call("read", EARLIEST, LATEST, 1000), self.model.entries)
            for group in GROUPS:
                side.agree_on_letters(group, self.letters(group))
                side.agree_on_info(group, self.model.info(group))
        self.agreed = True
        self.let_pass(self.times.tick)

    def teardown(self) -> None:
        """In the end nothing is lost: every unsettled message that is due can still be fetched."""
        if self.agreed:
            self.let_pass(self.times.lease * 2)
            for group in GROUPS:
                self.pause(group, paused=False)
                self.fetch(group, "last", 1000)
            self.all_agree()
        for side in self.sides:
            side.close()
