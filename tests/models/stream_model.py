"""A reference model of a stream and its groups, too simple to be wrong: lists that every step searches completely.

Entries, dead letters and leases are numbered in the order in which they were made. Times are in seconds.
"""

import math
from collections.abc import Iterable, Sequence

import attrs

from ailf.driver import Action, Outcome, Swept
from ailf.values import Retention

__all__ = ["Claimed", "Entry", "Found", "Full", "Group", "Info", "Letter", "Model"]

GIVEN_UP = "every lease ended unsettled"

LOOK_AHEAD = 150
"""How many entries a fetch reads on."""


class Full(Exception):  # noqa: N818 - a result, not an error
    """The stream has no room."""


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
    """A message that a group has read and not settled: an entry, or a redriven dead letter.

    Attributes:
        entry: The entry.
        again: The number of the redrive, or 0 for the entry itself.
        since: When it was added or redriven.
        due: When it can be delivered, or its lease ends; None while it waits in its lane.
        turn: Its number among those that came due in turn; 0 for others, which come first.
        holder: The consumer that it is leased to.
        lease: The number of its last lease.
        attempts: The number of its deliveries.
        error: Its last error.
        aside: Whether it is an entry that was read and not delivered yet.
    """

    entry: Entry
    again: int = 0
    since: float = 0.0
    due: float | None = None
    turn: int = 0
    holder: str | None = None
    lease: int = 0
    attempts: int = 0
    error: str = ""
    aside: bool = False

    @property
    def order(self) -> tuple[int, int]:
        """The sort key: entries by number, then redriven ones."""
        return self.again, self.entry.number


@attrs.define
class Group:
    """A group.

    Attributes:
        unread: The number of the first entry that it has not read.
        out: The messages that it has read and not settled.
        dead: Its dead letters.
        all_dead: The numbers of all dead letters that it ever had.
        alive: Until when each consumer counts as alive.
        paused: Whether it is paused.
        width: How many messages of one ordering key may be leased at once.
    """

    unread: int
    out: list[Item] = attrs.field(factory=list)
    dead: list[Letter] = attrs.field(factory=list)
    all_dead: list[int] = attrs.field(factory=list)
    alive: dict[str, float] = attrs.field(factory=dict)
    paused: bool = False
    width: int = 1


@attrs.frozen
class Claimed:
    """An entry that was leased."""

    entry: Entry
    lease: int
    attempt: int


@attrs.frozen
class Found:
    """The result of a fetch; ``upcoming`` are the seconds until the next message is due."""

    claims: list[Claimed]
    dead: list[int]
    upcoming: float | None
    reset: bool


@attrs.frozen
class Info:
    """The state of a group, as `GroupInfo` has it."""

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
    """One stream; ``added`` is the number of all entries that it ever had."""

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
    turns: int = 0

    # --- the stream

    def add(self, entries: Sequence[Entry], retention: Retention | None) -> int:
        """Add entries and return the number of the first; raise Full if there is no room."""
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
        """Add an entry unless the dedup id is taken; return the number, and whether it is a duplicate."""
        number, first_token, until, cancelled = self.once.get(dedup_id, (0, "", -math.inf, False))
        if until > self.now and (not cancelled or first_token == token):
            return number, first_token != token
        number = self.add([entry], retention)
        self.once[dedup_id] = number, token, self.now + window, False
        return number, False

    def cancel(self, number: int) -> bool:
        """Remove an entry if it is not due yet; return whether it was removed."""
        for entry in self.entries:
            if entry.number == number and entry.at > self.now:
                self.entries.remove(entry)
                for dedup_id, (added, token, until, _) in self.once.items():
                    if added == number:
                        self.once[dedup_id] = added, token, until, True
                self.notice_removed()
                return True
        return False

    def trim(self, keep: float, retention: Retention) -> Swept:
        """Remove the entries that a retention doesn't keep."""
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
        self.notice_removed()
        return Swept(removed, unsettled)

    def has_settled(self, group: Group, entry: Entry) -> bool:
        """Return whether the group has read and settled an entry."""
        return entry.number < group.unread and all(item.again or item.entry != entry for item in group.out)

    def read(self, first: int, last: int, limit: int) -> list[Entry]:
        """Return the entries with numbers from `first` to `last`."""
        return [entry for entry in self.entries if first <= entry.number <= last][:limit]

    def delete(self) -> None:
        """Delete the stream; the numbers of entries, dead letters and leases go on."""
        self.entries, self.groups, self.once, self.evicted = [], {}, {}, 0

    # --- leases and lanes

    def holds(self, item: Item) -> bool:
        """Return whether a message has a lease that has not ended."""
        return item.holder is not None and item.due is not None and item.due > self.now

    def leased(self, name: str, key: str) -> int:
        """Return how many messages of an ordering key are leased."""
        return sum(self.holds(item) for item in self.lane(self.groups[name], key))

    def find(self, group: Group | None, consumer: str, lease: int) -> Item | None:
        """Return the message of a lease that has not ended."""
        for item in group.out if group else []:
            if (item.holder, item.lease) == (consumer, lease) and self.holds(item):
                return item
        return None

    def lane(self, group: Group, key: str) -> list[Item]:
        """Return the messages of an ordering key, in order."""
        return sorted((item for item in group.out if item.entry.key == key), key=lambda item: item.order)

    def enter(self, group: Group, item: Item) -> None:
        """Add a message to the group; it is due unless it has to wait behind others of its key."""
        lane = self.lane(group, item.entry.key) if item.entry.key else []
        group.out.append(item)
        if self.has_room(group, lane):
            self.set_due(item, item.entry.at)

    def has_room(self, group: Group, lane: Sequence[Item]) -> bool:
        """Return whether a new message behind these of its key is due at once."""
        return len(lane) < group.width and all(other.due is not None for other in lane)

    def fill(self, group: Group, key: str) -> None:
        """Make the next messages of an ordering key due, up to the group's width."""
        lane = self.lane(group, key)
        for item in lane:
            if item.due is None and sum(other.due is not None for other in lane) < group.width:
                self.set_due(item, item.entry.at)

    def set_due(self, item: Item, due: float) -> None:
        """Let a message be due at a time; one with an ordering key that is due now comes behind all that are due."""
        item.due, item.turn = max(self.now, due), 0
        if item.entry.key and due <= self.now:
            self.give_turn(item)

    def give_turn(self, item: Item) -> None:
        """Let a message be due now, behind all that are due."""
        self.turns += 1
        item.due, item.turn = self.now, self.turns

    def remove(self, group: Group, item: Item) -> None:
        """Remove a message from the group; the next one of its ordering key may be due."""
        group.out.remove(item)
        if item.due is not None:
            self.fill(group, item.entry.key)

    def gone(self, item: Item) -> bool:
        """Return whether its entry was removed from the stream; a redriven dead letter needs none."""
        return not item.again and item.entry not in self.entries

    def holds_removed(self) -> bool:
        """Return whether a message is leased whose entry was removed."""
        return any(self.gone(item) for group in self.groups.values() for item in group.out)

    def notice_removed(self) -> None:
        """Drop removed messages without a lease."""
        for group in self.groups.values():
            for item in sorted(group.out, key=lambda item: item.order):
                if self.gone(item) and item.holder is None:
                    self.remove(group, item)

    def make_dead_letter(self, group: Group, item: Item, reason: str, error: str) -> bool:
        """Make a message a dead letter; return False if its entry was removed."""
        self.remove(group, item)
        if self.gone(item):
            return False
        self.letters += 1
        group.all_dead.append(self.letters)
        group.dead.append(Letter(self.letters, item.entry, reason, error, item.attempts))
        return True

    def give_back(self, group: Group, item: Item, due: float) -> None:
        """End the lease of a message; it is due at this time, or dropped if its entry was removed."""
        item.holder = None
        if self.gone(item):
            self.remove(group, item)
        elif due < self.now or due == item.due:  # the lease had ended
            item.due = due
        else:
            self.set_due(item, due)

    # --- groups

    def fetch(self, name: str, consumer: str, count: int, width: int = 1) -> Found:
        """Lease due messages, then new ones."""
        reset = name not in self.groups
        group = self.groups.setdefault(name, Group(0))
        group.alive[consumer] = self.now + self.alive
        group.width = width
        self.end_leases(group)
        claims: list[Claimed] = []
        dead: list[int] = []
        while not group.paused and len(claims) < count and (item := self.first_due(group)):
            if self.gone(item):
                self.remove(group, item)
            elif item.attempts >= (item.entry.most or self.most):
                dead.append(item.entry.number)
                self.make_dead_letter(group, item, "max_deliveries", item.error or GIVEN_UP)
            elif self.take_turn(group, item):
                claims.append(self.claim(item, consumer))
        while not group.paused and len(claims) < count and (item := self.next_new(group)):
            if item.due == self.now:
                claims.append(self.claim(item, consumer))
        if len(claims) == count and self.keys_compete(group):
            self.look_ahead(group)
        dues = [item.due for item in group.out if item.due is not None]
        return Found(claims, dead, None if group.paused or not dues else min(dues) - self.now, reset)

    def end_leases(self, group: Group) -> None:
        """End the leases of dead consumers."""
        for until, consumer in sorted((until, each) for each, until in group.alive.items()):
            if until <= self.now:
                del group.alive[consumer]
                for item in self.held(group, consumer):
                    self.give_back(group, item, min(item.due or 0.0, self.now))

    def held(self, group: Group, consumer: str) -> list[Item]:
        """Return the messages of a consumer, in order."""
        return sorted((item for item in group.out if item.holder == consumer), key=lambda item: item.order)

    def first_due(self, group: Group) -> Item | None:
        """Return the first message that is due."""
        due = [item for item in group.out if item.due is not None and item.due <= self.now]
        return min(due, key=lambda item: (item.due, item.turn, item.order), default=None)

    def take_turn(self, group: Group, item: Item) -> bool:
        """Return whether a message may be leased; then the others of its key that are due come behind all that are."""
        others = [each for each in self.lane(group, item.entry.key) if item.entry.key and each is not item]
        due = [each for each in others if each.due is not None and each.due <= self.now]
        if sum(each.due is not None for each in others) - len(due) >= group.width:
            item.holder, item.due, item.aside = None, None, False
            return False
        for each in sorted(due, key=lambda each: (each.due, each.turn, each.order)):
            self.give_turn(each)
        self.fill(group, item.entry.key)
        return True

    def next_new(self, group: Group) -> Item | None:
        """Read the next entry, which may have to wait."""
        for entry in self.entries:
            if entry.number >= group.unread:
                group.unread = entry.number + 1
                item = Item(entry, since=entry.since, aside=True)
                self.enter(group, item)
                return item
        return None

    def keys_compete(self, group: Group) -> bool:
        """Return whether something is set aside, or the next entry would be, beside unsettled messages with keys."""
        if any(item.aside for item in group.out):
            return any(item.entry.key for item in group.out)
        entry = next((entry for entry in self.entries if entry.number >= group.unread), None)
        return entry is not None and bool(entry.key) and not self.has_room(group, self.lane(group, entry.key))

    def look_ahead(self, group: Group) -> None:
        """Read on; what could be delivered comes behind all that are due."""
        for _ in range(LOOK_AHEAD):
            item = self.next_new(group)
            if item is not None and item.due == self.now:
                self.give_turn(item)

    def claim(self, item: Item, consumer: str) -> Claimed:
        """Lease a message."""
        self.leases += 1
        item.holder, item.due, item.turn, item.lease = consumer, self.now + self.lease, 0, self.leases
        item.attempts += 1
        item.aside = False
        return Claimed(item.entry, item.lease, item.attempts)

    def settle(
        self, group: Group | None, consumer: str, lease: int, action: Action, delay: float, reason: str, error: str
    ) -> Outcome:
        """Settle a delivery, if its lease has not ended."""
        item = self.find(group, consumer, lease)
        if group is None or item is None:
            return Outcome.LOST
        dead = False
        if action is Action.ACK:
            self.remove(group, item)
        elif action is Action.REJECT:
            dead = self.make_dead_letter(group, item, reason, error)
        elif action is Action.NACK and item.attempts >= (item.entry.most or self.most):
            dead = self.make_dead_letter(group, item, "max_deliveries", error)
        elif action is Action.NACK:
            item.error = error
            self.give_back(group, item, self.now + delay)
        else:
            item.attempts -= 1
            self.give_back(group, item, self.now + delay)
        return Outcome.DEAD if dead else Outcome.DONE

    def extend(self, group: Group | None, consumer: str, lease: int, seconds: float) -> bool:
        """Set the end of a lease that has not ended."""
        item = self.find(group, consumer, lease)
        if item is not None:
            item.due = self.now + seconds
        return item is not None

    def leave(self, group: Group | None, consumer: str) -> None:
        """Give back the consumer's messages; only a lease that had ended counts as an attempt."""
        if group is None:
            return
        for item in self.held(group, consumer):
            item.attempts -= self.holds(item)
            self.give_back(group, item, min(item.due or 0.0, self.now))
        group.alive.pop(consumer, None)

    def seek(self, name: str, unread: int) -> bool:
        """Move a group, which drops all but redriven messages; return False if there is no such group."""
        group = self.groups.get(name)
        if group is not None:
            group.unread = unread
            redriven = sorted((item for item in group.out if item.again), key=lambda item: item.order)
            group.out = []
            for item in redriven:
                self.enter(group, Item(item.entry, item.again, item.since))
        return group is not None

    def take_dead_letters(self, group: Group | None, numbers: Iterable[int], *, redrive: bool) -> list[bool]:
        """Remove dead letters, and redrive them if asked to."""
        return [group is not None and self.take_letter(group, number, redrive=redrive) for number in numbers]

    def take_letter(self, group: Group, number: int, *, redrive: bool) -> bool:
        """Remove one dead letter, and redrive it if asked to."""
        for letter in group.dead:
            if letter.number == number:
                group.dead.remove(letter)
                if redrive:
                    self.letters += 1
                    self.enter(group, Item(letter.entry, self.letters, self.now))
                return True
        return False

    def info(self, name: str) -> Info:
        """Return the state of a group, which may be missing."""
        group = self.groups.get(name)
        if group is None:
            return Info(len(self.entries), len(self.entries), exists=False)
        held = [item.holder for item in group.out if item.holder is not None]
        alive = [each for each, until in group.alive.items() if until > self.now]
        unread = [entry for entry in self.entries if entry.number >= group.unread]
        oldest = min([item.since for item in group.out] + [entry.since for entry in unread], default=None)
        return Info(
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
