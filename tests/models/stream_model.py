"""A stream and its groups, too simple to be wrong: lists, searched from end to end in every step.

Entries have numbers, in the order in which they were added; so have dead letters and leases. Times are in seconds.
"""

import math
from collections.abc import Iterable, Sequence

import attrs

from ailf.driver import Action, Outcome, Swept
from ailf.values import Retention

__all__ = ["Claimed", "Entry", "Found", "Full", "Group", "Letter", "Model", "Stands"]

GIVEN_UP = "every lease ended unsettled"


class Full(Exception):  # noqa: N818 - an answer, not a fault
    """There is no room."""


@attrs.frozen
class Entry:
    """An entry as it was added, at the time ``since``."""

    number: int
    since: float
    key: str = ""
    at: float = 0.0
    most: int | None = None


@attrs.frozen
class Letter:
    """A dead letter."""

    number: int
    entry: Entry
    reason: str
    error: str
    attempts: int


@attrs.define
class Item:
    """What a group has taken in and not settled: an entry, or, with ``again``, a letter that was redriven.

    ``due`` is None while it waits for its turn; ``lease`` is the number of the one that it was last given out under.
    """

    entry: Entry
    again: int = 0
    since: float = 0.0
    due: float | None = None
    holder: str | None = None
    lease: int = 0
    attempts: int = 0
    error: str = ""

    @property
    def order(self) -> tuple[int, int]:
        """Entries by their ids, then what was redriven."""
        return self.again, self.entry.number


@attrs.define
class Group:
    """A group: the first entry it has not read, what is out, what it gave up on; ``buried`` are all letters it had."""

    unread: int
    out: list[Item] = attrs.field(factory=list)
    dead: list[Letter] = attrs.field(factory=list)
    buried: list[int] = attrs.field(factory=list)
    alive: dict[str, float] = attrs.field(factory=dict)
    paused: bool = False


@attrs.frozen
class Claimed:
    """An entry that was leased."""

    entry: Entry
    lease: int
    attempt: int


@attrs.frozen
class Found:
    """What a fetch found; ``upcoming`` is in how many seconds the next one is due."""

    claims: list[Claimed]
    dead: list[int]
    upcoming: float | None
    reset: bool


@attrs.frozen
class Stands:
    """How a group stands."""

    length: int
    lag: int
    pending: int = 0
    delayed: int = 0
    dead: int = 0
    consumers: dict[str, int] = attrs.field(factory=dict)
    oldest: float | None = None
    evicted: int = 0
    paused: bool = False
    exists: bool = True


@attrs.define
class Model:
    """One stream; ``added`` is how many entries there ever were."""

    lease: float
    alive: float
    most: int
    now: float = 0.0
    added: int = 0
    entries: list[Entry] = attrs.field(factory=list)
    groups: dict[str, Group] = attrs.field(factory=dict)
    once: dict[str, tuple[int, str, float, bool]] = attrs.field(factory=dict)
    evicted: int = 0
    leases: int = 0
    letters: int = 0

    # --- the stream

    def add(self, entries: Sequence[Entry], retention: Retention | None) -> int:
        """Add entries, if there is room; return the number of the first."""
        if retention is not None:
            most = math.inf if retention.max_len is None else retention.max_len - len(entries)
            self.trim(most, retention)
            if len(self.entries) > most:
                raise Full
        first = self.added
        self.entries += [attrs.evolve(entry, number=first + index) for index, entry in enumerate(entries)]
        self.added += len(entries)
        return first

    def add_once(
        self, entry: Entry, retention: Retention | None, dedup_id: str, token: str, window: float
    ) -> tuple[int, bool]:
        """Add, unless it was within its window."""
        number, known, until, cancelled = self.once.get(dedup_id, (0, "", -math.inf, False))
        if until > self.now and (not cancelled or known == token):
            return number, known != token
        number = self.add([entry], retention)
        self.once[dedup_id] = number, token, self.now + window, False
        return number, False

    def cancel(self, number: int) -> bool:
        """Remove it, if it is there and its time is to come."""
        for entry in self.entries:
            if entry.number == number and entry.at > self.now:
                self.entries.remove(entry)
                for dedup_id, (added, token, until, _) in self.once.items():
                    if added == number:
                        self.once[dedup_id] = added, token, until, True
                self.let_find()
                return True
        return False

    def trim(self, keep: float, retention: Retention) -> Swept:
        """Remove what is settled and too much or too old, or before the first that isn't; or, if hard, the oldest."""
        removed = unsettled = 0
        behind = retention.keep_settled
        for entry in list(self.entries):
            old = retention.max_age is not None and self.now - entry.since > retention.max_age
            if behind and len(self.entries) <= keep and not old:
                break
            settled = all(self.has_settled(group, entry) for group in self.groups.values())
            if not (retention.keep_settled or self.groups):
                settled = False
            behind |= not settled
            if settled or retention.hard:
                self.entries.remove(entry)
                removed += 1
                unsettled += not settled
        self.evicted += unsettled
        self.let_find()
        return Swept(removed, unsettled)

    def has_settled(self, group: Group, entry: Entry) -> bool:
        """Tell whether the group has read it and doesn't have it out."""
        return entry.number < group.unread and all(item.again or item.entry != entry for item in group.out)

    def read(self, first: int, last: int, limit: int) -> list[Entry]:
        """Return those with numbers from the one to the other."""
        return [entry for entry in self.entries if first <= entry.number <= last][:limit]

    def delete(self) -> None:
        """Begin anew; entries, letters and leases are never numbered twice."""
        self.entries, self.groups, self.once, self.evicted = [], {}, {}, 0

    # --- who has what, and what is next

    def holds(self, item: Item) -> bool:
        """Tell whether somebody has it under a lease that lasts."""
        return item.holder is not None and item.due is not None and item.due > self.now

    def find(self, group: Group | None, consumer: str, lease: int) -> Item | None:
        """Return what a receipt is worth."""
        for item in group.out if group else []:
            if (item.holder, item.lease) == (consumer, lease) and self.holds(item):
                return item
        return None

    def blocked(self, group: Group, item: Item) -> bool:
        """Tell whether another one with its ordering key has the turn: one that is due some time."""
        key = item.entry.key
        return bool(key) and any(
            other is not item and other.entry.key == key and other.due is not None for other in group.out
        )

    def gone(self, item: Item) -> bool:
        """Tell whether its entry is no longer in the stream; a letter that was redriven needs none."""
        return not item.again and item.entry not in self.entries

    def tidy(self, group: Group) -> None:
        """Let those whose turn it is have it."""
        group.out = [item for item in group.out if item.due is not None or not self.gone(item)]
        for item in sorted(group.out, key=lambda item: item.order):
            if item.due is None and not self.blocked(group, item):
                item.due = max(self.now, item.entry.at)

    def let_find(self) -> None:
        """What has gone from the stream, and is nobody's, is for the next fetch to find."""
        for group in self.groups.values():
            for item in group.out:
                if self.gone(item) and item.holder is None and item.due is not None:
                    item.due = min(item.due, self.now)
            self.tidy(group)

    def bury(self, group: Group, item: Item, reason: str, error: str) -> bool:
        """Make it a dead letter; return False where there is nothing left of it."""
        group.out.remove(item)
        if self.gone(item):
            return False
        self.letters += 1
        group.buried.append(self.letters)
        group.dead.append(Letter(self.letters, item.entry, reason, error, item.attempts))
        return True

    def let_go(self, group: Group, item: Item, due: float) -> None:
        """Take it from whoever has it, until then, or for good."""
        item.holder, item.due = None, due
        if self.gone(item):
            group.out.remove(item)

    # --- groups

    def fetch(self, name: str, consumer: str, count: int) -> Found:
        """Lease what is due, then what is new."""
        reset = name not in self.groups
        group = self.groups.setdefault(name, Group(0))
        group.alive[consumer] = self.now + self.alive
        self.end_leases(group)
        claims: list[Claimed] = []
        dead: list[int] = []
        while not group.paused and len(claims) < count and (item := self.first_due(group)):
            if self.gone(item):
                group.out.remove(item)
            elif item.attempts >= (item.entry.most or self.most):
                dead.append(item.entry.number)
                self.bury(group, item, "max_deliveries", item.error or GIVEN_UP)
            else:
                claims.append(self.claim(item, consumer))
            self.tidy(group)
        while not group.paused and len(claims) < count and (item := self.next_new(group)):
            if item.due == self.now:
                claims.append(self.claim(item, consumer))
        dues = [item.due for item in group.out if item.due is not None]
        return Found(claims, dead, None if group.paused or not dues else min(dues) - self.now, reset)

    def end_leases(self, group: Group) -> None:
        """Take from the dead what they have."""
        for consumer in [each for each, until in group.alive.items() if until <= self.now]:
            del group.alive[consumer]
            for item in list(group.out):
                if item.holder == consumer and item.due is not None:
                    self.let_go(group, item, min(item.due, self.now))
        self.tidy(group)

    def first_due(self, group: Group) -> Item | None:
        """Return what is to be delivered again now."""
        due = [item for item in group.out if item.due is not None and item.due <= self.now]
        return min(due, key=lambda item: (item.due, item.order), default=None)

    def next_new(self, group: Group) -> Item | None:
        """Take in the next entry, which may have to wait."""
        for entry in self.entries:
            if entry.number >= group.unread:
                group.unread = entry.number + 1
                item = Item(entry, since=entry.since)
                group.out.append(item)
                self.tidy(group)
                return item
        return None

    def claim(self, item: Item, consumer: str) -> Claimed:
        """Lease it."""
        self.leases += 1
        item.holder, item.due, item.lease = consumer, self.now + self.lease, self.leases
        item.attempts += 1
        return Claimed(item.entry, item.lease, item.attempts)

    def settle(
        self, group: Group | None, consumer: str, lease: int, action: Action, delay: float, reason: str, error: str
    ) -> Outcome:
        """Do what was asked, if the lease still holds."""
        item = self.find(group, consumer, lease)
        if group is None or item is None:
            return Outcome.LOST
        dead = False
        if action is Action.ACK:
            group.out.remove(item)
        elif action is Action.REJECT:
            dead = self.bury(group, item, reason, error)
        elif action is Action.NACK and item.attempts >= (item.entry.most or self.most):
            dead = self.bury(group, item, "max_deliveries", error)
        elif action is Action.NACK:
            item.error = error
            self.let_go(group, item, self.now + delay)
        else:
            item.attempts -= 1
            self.let_go(group, item, self.now + delay)
        self.tidy(group)
        return Outcome.DEAD if dead else Outcome.DONE

    def extend(self, group: Group | None, consumer: str, lease: int, seconds: float) -> bool:
        """Let a lease that still holds end later or earlier."""
        item = self.find(group, consumer, lease)
        if item is not None:
            item.due = self.now + seconds
        return item is not None

    def leave(self, group: Group | None, consumer: str) -> None:
        """Give back what the consumer has; a lease that had ended was an attempt."""
        if group is None:
            return
        for item in list(group.out):
            if item.holder == consumer and item.due is not None:
                item.attempts -= self.holds(item)
                self.let_go(group, item, min(item.due, self.now))
        group.alive.pop(consumer, None)
        self.tidy(group)

    def seek(self, name: str, unread: int) -> bool:
        """Forget what is out, but for what was redriven; return False where there is no such group."""
        group = self.groups.get(name)
        if group is not None:
            group.unread = unread
            group.out = [Item(item.entry, item.again, item.since) for item in group.out if item.again]
            self.tidy(group)
        return group is not None

    def take_dead_letters(self, group: Group | None, numbers: Iterable[int], *, redrive: bool) -> list[bool]:
        """Remove letters, and put them back."""
        return [group is not None and self.take_letter(group, number, redrive=redrive) for number in numbers]

    def take_letter(self, group: Group, number: int, *, redrive: bool) -> bool:
        """Remove one, and put it back."""
        for letter in group.dead:
            if letter.number == number:
                group.dead.remove(letter)
                if redrive:
                    self.letters += 1
                    group.out.append(Item(letter.entry, self.letters, self.now))
                    self.tidy(group)
                return True
        return False

    def stands(self, name: str) -> Stands:
        """Tell how a group stands, which may be missing."""
        group = self.groups.get(name)
        if group is None:
            return Stands(len(self.entries), len(self.entries), exists=False)
        held = [item.holder for item in group.out if item.holder is not None]
        alive = [each for each, until in group.alive.items() if until > self.now]
        unread = [entry for entry in self.entries if entry.number >= group.unread]
        oldest = min([item.since for item in group.out] + [entry.since for entry in unread], default=None)
        return Stands(
            length=len(self.entries),
            lag=len(unread),
            pending=len(held),
            delayed=len(group.out) - len(held),
            dead=len(group.dead),
            consumers={each: held.count(each) for each in {*held, *alive}},
            oldest=None if oldest is None else self.now - oldest,
            evicted=self.evicted,
            paused=group.paused,
        )
