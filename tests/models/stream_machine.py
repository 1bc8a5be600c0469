"""Plays the model and any number of drivers with the same steps, and compares what they answer and how they stand.

Time passes by hand: one tick after each step, so that no two steps happen at once, and more when a step says so. A
consumer that crashes is one that says no more while time passes.
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
"""What a retention keeps: also what is settled, only what isn't, or only the newest."""
picks = st.integers(0, 99)
"""Which of things that there may be many of, counted from the latest."""


@attrs.frozen
class Ticket:
    """A lease: what it is to the model, and the receipt on each side."""

    group: str
    consumer: str
    lease: int
    receipts: tuple[Receipt, ...]


ordered = st.builds(Wanted, key=st.sampled_from(["k", "k", "l"]))
wanted = st.builds(
    Wanted,
    key=st.sampled_from(["", "", "k", "l"]),
    timing=st.sampled_from([Timing.NONE, *Timing]),
    wait=kinds,
    most=st.sampled_from([None, None, 1, 2, 4]),
)


class Machine(RuleBasedStateMachine):
    """The steps."""

    def __init__(self, times: Times, sides: Sequence[Side]) -> None:
        super().__init__()
        self.times = times
        self.sides = sides
        self.model = Model(times.lease, times.alive, MOST)
        self.tickets: list[Ticket] = []
        self.agreed = False

    # --- helpers -------------------------------------------------------------------------------------------------

    def each(self, method: str, *args: Any, **options: Any) -> list[Any]:
        """Make the same step on every side; return the answers."""
        return [side.ask(method, *args, **options) for side in self.sides]

    def group(self, name: str) -> Group | None:
        """Return the model's group."""
        return self.model.groups.get(name)

    def letters(self, name: str) -> list[Letter]:
        """Return a group's dead letters."""
        known = self.group(name)
        return list(known.dead) if known else []

    def live(self) -> list[Ticket]:
        """Return the leases that hold, or all where none does."""
        holding = [each for each in self.tickets if self.model.find(self.group(each.group), each.consumer, each.lease)]
        return holding or self.tickets

    def retention(self, keep: int | None, age: int, what: str) -> Retention | None:
        """Return a retention, or None where nothing is limited."""
        if what == "unsettled":
            return Retention.settled(max_len=keep)
        max_age = self.times.ages[age]
        return None if keep is max_age is None else Retention(max_len=keep, max_age=max_age, hard=what == "hard")

    def buriers(self) -> list[str]:
        """Return the groups that have or had dead letters."""
        return [name for name, group in self.model.groups.items() if group.buried]

    def position(self, place: str, pick: int) -> tuple[int, list[str]]:
        """Return a position as the number of the first entry after it, and as each side has it."""
        if place == EARLIEST:
            return 0, [EARLIEST for _ in self.sides]
        if place == LATEST or not self.model.added:
            return self.model.added, [LATEST for _ in self.sides]
        number = self.model.added - 1 - pick % self.model.added
        return number + 1, [side.ids[number] for side in self.sides]

    def entry(self, asked: Wanted) -> Entry:
        """Return what the model is to add."""
        at = self.model.now + max(asked.seconds(self.times))
        return Entry(0, self.model.now, asked.key, at, asked.most)

    def let_pass(self, seconds: float) -> None:
        """Let time pass for all."""
        self.model.now += seconds
        for side in self.sides:
            side.let_pass(seconds)

    # --- the stream ----------------------------------------------------------------------------------------------

    @initialize(opened=st.sampled_from([("g",), ("g", "h"), ()]), asked=st.lists(wanted, max_size=6))
    def begin(self, opened: Sequence[str], asked: Sequence[Wanted]) -> None:
        """There are often groups and some entries to begin with."""
        for group in opened:
            self.open_group(group, EARLIEST, 0)
        self.append(asked, None)

    @rule(asked=st.lists(wanted, min_size=1, max_size=3))
    def add(self, asked: Sequence[Wanted]) -> None:
        """Entries are appended."""
        self.append(asked, None)

    @rule(asked=st.lists(ordered, min_size=2, max_size=4))
    def add_ordered(self, asked: Sequence[Wanted]) -> None:
        """Entries with ordering keys are appended."""
        self.append(asked, None)

    @rule(asked=st.lists(wanted, min_size=1, max_size=3), keep=st.sampled_from([3, 5, 8]), age=kinds, what=kept)
    def add_within(self, asked: Sequence[Wanted], keep: int, age: int, what: str) -> None:
        """Entries are appended where there is room."""
        self.append(asked, self.retention(keep, age, what))

    def append(self, asked: Sequence[Wanted], retention: Retention | None) -> None:
        """Add entries, all of them or none."""
        first = self.model.added
        drafts = [
            [side.draft(each, first + index, self.times) for index, each in enumerate(asked)] for side in self.sides
        ]
        try:
            self.model.add([self.entry(each) for each in asked], retention)
        except Full:
            for side, mine in zip(self.sides, drafts, strict=True):
                assert side.is_full("add", mine, retention=retention)
        else:
            for side, mine in zip(self.sides, drafts, strict=True):
                side.ids += side.ask("add", mine, retention=retention)

    @rule(
        asked=wanted,
        dedup_id=st.sampled_from(["one", "other"]),
        token=st.sampled_from("xy"),
        window=kinds,
        retention=st.sampled_from([None, None, Retention(max_len=3), Retention(max_len=3, hard=True)]),
    )
    def add_once(self, asked: Wanted, retention: Retention | None, dedup_id: str, token: str, window: int) -> None:
        """A dedup id is taken for its window; the call that took it may ask again."""
        first, seconds = self.model.added, self.times.windows[window]
        options = {"dedup_id": dedup_id, "token": token, "window": seconds, "retention": retention}
        try:
            number, duplicate = self.model.add_once(self.entry(asked), retention, dedup_id, token, seconds)
        except Full:
            assert all(side.is_full("add_once", side.draft(asked, first, self.times), **options) for side in self.sides)
            return
        for side in self.sides:
            added = side.ask("add_once", side.draft(asked, first, self.times), **options)
            if number == first:
                side.ids.append(added.id)
            assert (added.id, added.duplicate) == (side.ids[number], duplicate)

    @precondition(lambda self: self.model.added)
    @rule(pick=picks, waiting=st.sampled_from([True, True, False]))
    def cancel(self, pick: int, *, waiting: bool) -> None:
        """Only what waits for its time can be cancelled."""
        numbers = [each.number for each in self.model.entries if each.at > self.model.now] if waiting else []
        numbers = numbers or list(range(self.model.added))
        number = numbers[-1 - pick % len(numbers)]
        done = self.model.cancel(number)
        assert [side.ask("cancel", side.ids[number]) for side in self.sides] == [done] * len(self.sides)

    @rule(keep=st.sampled_from([None, 1, 2, 4]), age=kinds, what=kept)
    def trim(self, keep: int | None, age: int, what: str) -> None:
        """The same number of entries goes, and as many of them unsettled."""
        retention = self.retention(keep, age, what)
        if retention is not None:
            swept = self.model.trim(keep or math.inf, retention)
            assert self.each("trim", retention) == [swept] * len(self.sides)

    @precondition(lambda self: self.model.added)
    @rule(start=picks, end=picks, limit=st.integers(1, 4), after=st.booleans())
    def read(self, start: int, end: int, limit: int, *, after: bool) -> None:
        """A range may begin and end at an entry that has gone."""
        first, last = start % self.model.added, end % self.model.added
        entries = self.model.read(first + after, last, limit)
        for side in self.sides:
            side.agree_on_records(side.ask("read", side.ids[first], side.ids[last], limit, after=after), entries)

    # --- groups --------------------------------------------------------------------------------------------------

    @rule(
        how=st.sampled_from(["open", "open", "open", "pause", "resume", "resume", "delete group", "delete"]),
        group=groups,
        place=places,
        pick=picks,
    )
    def steer(self, how: str, group: str, place: str, pick: int) -> None:
        """A group, or all of the stream, is brought to another state by hand."""
        if how == "open":
            self.open_group(group, place, pick)
        elif how in {"pause", "resume"}:
            self.pause(group, paused=how == "pause")
        elif how == "delete group":
            self.model.groups.pop(group, None)
            self.each("delete_group", group)
        elif pick % 3 == 0:  # not often: it ends whatever was going on
            self.model.delete()
            self.each("delete")

    def open_group(self, group: str, place: str, pick: int) -> None:
        """A group that exists isn't moved."""
        unread, positions = self.position(place, pick)
        made = group not in self.model.groups
        self.model.groups.setdefault(group, Group(unread))
        for side, position in zip(self.sides, positions, strict=True):
            assert side.ask("open_group", group, position) == made

    @rule(place=places, pick=picks)
    def seek_back(self, place: str, pick: int) -> None:
        """A group is moved that has dead letters, which stay, and redriven ones, which are still to be delivered."""
        for group in self.buriers():
            self.seek(group, place, pick)

    @rule(group=groups, place=places, pick=picks)
    def seek(self, group: str, place: str, pick: int) -> None:
        """A group is moved; one that is missing is not made."""
        unread, positions = self.position(place, pick)
        known = self.model.seek(group, unread)
        for side, position in zip(self.sides, positions, strict=True):
            assert side.ask("seek", group, position) == known

    def pause(self, group: str, *, paused: bool) -> None:
        """A group is paused, or goes on; one that is missing is not made."""
        known = self.group(group)
        if known:
            known.paused = paused
        assert self.each("pause", group, paused=paused) == [known is not None] * len(self.sides)

    # --- deliveries ----------------------------------------------------------------------------------------------

    @rule(group=groups, consumer=consumers, count=st.integers(1, 4))
    def fetch(self, group: str, consumer: str, count: int) -> None:
        """The same entries are claimed in the same order, and the same ones given up."""
        found = self.model.fetch(group, consumer, count)
        answers = [side.fetch(group, consumer, count, self.times) for side in self.sides]
        for side, answer in zip(self.sides, answers, strict=True):
            side.agree_on_fetched(group, answer, found, full=len(found.claims) == count)
        for index, claim in enumerate(found.claims):
            receipts = tuple(answer.claims[index].receipt for answer in answers)
            self.tickets.append(Ticket(group, consumer, claim.lease, receipts))

    @rule(group=groups, consumer=consumers)
    def fetch_all(self, group: str, consumer: str) -> None:
        """A consumer has time for everything."""
        self.fetch(group, consumer, 100)

    @precondition(lambda self: self.tickets)
    @rule(pick=picks, action=st.sampled_from(Action), delay=kinds)
    def settle_one(self, pick: int, action: Action, delay: int) -> None:
        """A consumer says what became of a message."""
        live = self.live()
        ticket = live[-1 - pick % len(live)]
        self.settle(ticket.group, [(ticket, action, delay)])

    @precondition(lambda self: self.tickets)
    @rule(group=groups, actions=st.lists(st.sampled_from(Action), min_size=1, max_size=4), delay=kinds)
    def settle_all(self, group: str, actions: Sequence[Action], delay: int) -> None:
        """A group's consumers say what became of all that they have, in one step."""
        live = [each for each in self.live() if each.group == group]
        self.settle(group, [(each, actions[at % len(actions)], delay) for at, each in enumerate(live)])

    @precondition(lambda self: self.tickets)
    @rule(group=groups, asked=st.lists(st.tuples(picks, st.sampled_from(Action), kinds), min_size=1, max_size=3))
    def settle_any(self, group: str, asked: Sequence[tuple[int, Action, int]]) -> None:
        """Any receipt ever given out is worth the same everywhere, also an old one, also twice in one step."""
        tickets = [each for each in self.tickets if each.group == group]
        if tickets:
            self.settle(group, [(tickets[-1 - each[0] % len(tickets)], *each[1:]) for each in asked])

    def settle(self, group: str, asked: Sequence[tuple[Ticket, Action, int]]) -> None:
        """Settle deliveries of one group."""
        known, delays = self.group(group), self.times.delays
        outcomes = [
            self.model.settle(known, each.consumer, each.lease, action, delays[delay], "why", f"e{delay}")
            for each, action, delay in asked
        ]
        for index, side in enumerate(self.sides):
            settlements = [
                Settlement(each.receipts[index], action, delays[delay], reason="why", error=f"e{delay}")
                for each, action, delay in asked
            ]
            assert side.ask("settle", group, settlements, max_deliveries=MOST) == outcomes

    @precondition(lambda self: self.tickets)
    @rule(pick=picks, seconds=kinds, live=st.booleans())
    def extend(self, pick: int, seconds: int, *, live: bool) -> None:
        """A lease that holds ends later or earlier; one that has ended stays so."""
        tickets = self.live() if live else self.tickets
        ticket, lease = tickets[-1 - pick % len(tickets)], self.times.extensions[seconds]
        kept = self.model.extend(self.group(ticket.group), ticket.consumer, ticket.lease, lease)
        for index, side in enumerate(self.sides):
            assert side.ask("extend", ticket.group, [ticket.receipts[index]], lease=lease) == [kept]

    @rule(group=groups, who=st.lists(consumers, min_size=1, max_size=2))
    def heartbeat(self, group: str, who: Sequence[str]) -> None:
        """Consumers give a sign of life."""
        known = self.group(group)
        if known:
            known.alive.update(dict.fromkeys(who, self.model.now + self.times.alive))
            self.each("heartbeat", group, who, alive=self.times.alive)

    @rule(group=groups, consumer=consumers, busy=st.booleans())
    def leave(self, group: str, consumer: str, *, busy: bool) -> None:
        """A consumer that leaves gives back what it has, but for what it has no longer."""
        if busy and (known := self.group(group)):
            consumer = next((item.holder for item in known.out if item.holder), consumer)
        self.model.leave(self.group(group), consumer)
        self.each("leave", group, consumer)

    @rule(how=kinds)
    def wait(self, how: int) -> None:
        """Time passes: leases end, delays are over, and who says nothing for long is taken for dead."""
        self.let_pass(self.times.passing[how])

    # --- dead letters --------------------------------------------------------------------------------------------

    @precondition(lambda self: self.buriers())
    @rule(pick=picks, chosen=st.lists(picks, min_size=1, max_size=3), redrive=st.sampled_from([True, True, False]))
    def take_dead_letters(self, pick: int, chosen: Sequence[int], *, redrive: bool) -> None:
        """Letters are put back or removed, each once; there are old ones among those that are asked for."""
        group = self.buriers()[pick % len(self.buriers())]
        buried = self.model.groups[group].buried
        self.take(group, [buried[-1 - each % len(buried)] for each in chosen], redrive=redrive)

    @rule(group=groups)
    def redrive_all(self, group: str) -> None:
        """All letters of a group are put back; not ten, whose names in one millisecond needn't sort as numbers."""
        self.take(group, [letter.number for letter in self.letters(group)][:9], redrive=True)

    @precondition(lambda self: self.tickets)
    @rule(group=groups)
    def mend(self, group: str) -> None:
        """Nobody could handle what there was; now it is tried again."""
        self.settle_all(group, [Action.REJECT], 0)
        for side in self.sides:
            side.agree_on_letters(group, self.letters(group))
        self.redrive_all(group)

    def take(self, group: str, numbers: Sequence[int], *, redrive: bool) -> None:
        """Take letters."""
        taken = self.model.take_dead_letters(self.group(group), numbers, redrive=redrive)
        for side in self.sides:
            letters = [side.letters[number] for number in numbers]
            assert side.ask("take_dead_letters", group, letters, redrive=redrive) == taken

    # --- agreement -----------------------------------------------------------------------------------------------

    @invariant()
    def all_agree(self) -> None:
        """Every side has the model's entries, and its groups stand like the model's."""
        self.agreed = False
        for side in self.sides:
            side.agree_on_records(side.ask("read", EARLIEST, LATEST, 1000), self.model.entries)
            for group in GROUPS:
                side.agree_on_letters(group, self.letters(group))
                side.agree_on_info(group, self.model.stands(group))
        self.agreed = True
        self.let_pass(self.times.tick)

    def teardown(self) -> None:
        """In the end nothing was lost: whatever isn't done with can still be had, when those before it are done."""
        if self.agreed:
            self.let_pass(self.times.lease * 2)
            for group in GROUPS:
                self.pause(group, paused=False)
                self.fetch(group, "last", 1000)
            self.all_agree()
        for side in self.sides:
            side.close()
