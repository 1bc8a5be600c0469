"""The state of one group of a stream: its position, its pending messages, its dead letters. Pure: *now* is an argument.

A pending message is leased, delayed, or queued in the lane of its ordering key. Its name is the id of its entry, or "r"
and a number if it is a redriven dead letter. A heap of (due, turn, name) says which message is delivered next; "r"
sorts after digits. A message with an ordering key that becomes due gets a turn: it comes behind all that are due
already. So ordering keys take turns.

The rule of this file: no step handles more than a page of messages besides those that it is given or returns. What is
left is for the next step.
"""

import bisect
import heapq
import itertools
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from ailf.checks import to_ms
from ailf.driver import Action, Claim, ConsumerState, Fetched, Letter, Outcome, Receipt, Record, Settlement
from ailf.values import LATEST, GroupInfo, MessageInfo, MessageState
from ailf_memory.state.entries import FIRST, PLAIN, Entries, Key, Terms, key_of, text_of

__all__ = ["GroupState"]

PAGE: Final = 500
"""The most messages that one step handles besides those that it is given or returns."""

DROPPED: Final = 4
"""The most due times that a step looks at to drop superseded ones; a step supersedes one or two."""

LOOK_AHEAD: Final = 150
"""The most entries that a fetch reads on, to find the messages of other ordering keys."""

LOOKED_AT: Final = 100
"""The most redriven messages that are compared with an entry."""

NEVER: Final = sys.maxsize
"""The due time of a message that is queued in its lane; it is not in the heap."""

# No number is used twice in this process, so old receipts are invalid even if their group was deleted and made again.
_grants = itertools.count(1)


@attrs.define
class PendingMessage:
    """A message that the group has read from the stream, or that was redriven, and that is not settled.

    Attributes:
        record: The entry.
        terms: The producer's options.
        redriven_ms: When it was redriven; None for an entry of the stream.
        due_ms: When it may be delivered (again): the end of its lease or of its delay.
        turn: Its number among those of ordering keys that became due in the same millisecond; 0 without one.
        holder: The consumer that has leased it; None while it waits.
        grant: The number of its last lease.
        attempts: The number of deliveries that count.
        error: The last error.
        entry_removed: Whether its entry was removed from the stream.
    """

    record: Record
    terms: Terms
    redriven_ms: int | None = None
    due_ms: int = NEVER
    turn: int = 0
    holder: str | None = None
    grant: int = 0
    attempts: int = 0
    error: str = ""
    entry_removed: bool = False

    def spent(self, max_deliveries: int) -> bool:
        """Tell whether all of its deliveries are used up."""
        return self.attempts >= (self.terms.max_deliveries or max_deliveries)

    def since_ms(self) -> int:
        """Return when it was added or redriven."""
        return key_of(self.record.id)[0] if self.redriven_ms is None else self.redriven_ms


@attrs.frozen
class StoredDeadLetter:
    """A dead letter, with the terms to redrive it."""

    letter: Letter
    terms: Terms


@attrs.define
class Lane:
    """The pending messages of one ordering key.

    Attributes:
        active: The names of the messages that may be delivered: leased, or waiting for their turn or their time.
        queued: The names of the messages behind them, in id order.
        redriven: The names of redriven messages, in order; they come after all entries of the stream.
    """

    active: dict[str, None] = attrs.field(factory=dict)
    queued: deque[str] = attrs.field(factory=deque)
    redriven: deque[str] = attrs.field(factory=deque)

    def next(self, pending: Mapping[str, PendingMessage]) -> str | None:
        """Return the next queued message, or None."""
        while queue := self.queued or self.redriven:
            if queue[0] in pending:
                return queue[0]
            queue.popleft()  # Ctrl-C may have interrupted the step that finished it
        return None

    def forget(self, name: str, message: PendingMessage) -> None:
        """Remove a message that isn't active from its queue, if it is there."""
        if message.redriven_ms is None:
            queue, at = self.queued, bisect.bisect_left(self.queued, key_of(name), key=key_of)
        else:
            queue, at = self.redriven, bisect.bisect_left(self.redriven, name)
        if at < len(queue) and queue[at] == name:
            del queue[at]

    def put_back(self, name: str, message: PendingMessage) -> None:
        """Queue an active message again, before those that never were."""
        del self.active[name]
        if message.redriven_ms is None:
            self.queued.insert(bisect.bisect(self.queued, key_of(name), key=key_of), name)
        else:
            self.redriven.insert(bisect.bisect(self.redriven, name), name)


# --- a group -----------------------------------------------------------------------------------------------------


class GroupState:
    """One group.

    Attributes:
        entries: The entries of the stream.
        position: The key of the last entry that the group has read.
        pending: The pending messages by name; those of the stream in the order of their ids.
        held: The names of the messages that each consumer has leased.
        dead: The dead letters by number, oldest first.
        alive: Until when each consumer counts as alive.
        paused: Whether the group is paused.
        key_concurrency: How many messages of one ordering key may be leased at once, as the last fetch said.
    """

    def __init__(self, entries: Entries, position: Key) -> None:
        self.entries = entries
        self.position = position
        self.pending: dict[str, PendingMessage] = {}
        self.held: dict[str, dict[str, None]] = {}
        self.dead: dict[int, StoredDeadLetter] = {}
        self.alive: dict[str, int] = {}
        self.paused = False
        self.key_concurrency = 1
        self._numbers = itertools.count(1)
        self._turns = itertools.count(1)
        self._due: list[tuple[int, int, str]] = []  # a heap, with times that were superseded
        self._old_due: list[tuple[int, int, str]] = []  # another one, whose times move to the first or are dropped
        self._lanes: dict[str, Lane] = {}
        self._aside: set[str] = set()  # entries that were read and not delivered yet
        self._redriven: dict[str, PendingMessage] = {}
        self._again: deque[tuple[str, PendingMessage]] = deque()  # after a seek: redriven ones that are to be put back

    # --- due times

    def schedule(self, name: str, due_ms: int, turn: int = 0) -> None:
        """Set the due time of a message; an earlier one no longer counts."""
        message = self.pending[name]
        if message.due_ms == due_ms and message.turn == turn:
            return
        message.due_ms, message.turn = due_ms, turn
        heapq.heappush(self._due, (due_ms, turn, name))
        if len(self._due) + len(self._old_due) > 2 * len(self.pending) + PAGE:
            self._drop_superseded()

    def _drop_superseded(self) -> None:
        """Drop a few superseded times, as there are many more times than messages.

        An old heap is emptied from its end, so it stays a heap; what still counts moves to the new one.
        """
        if not self._old_due:
            self._old_due, self._due = self._due, []
        for _ in range(min(DROPPED, len(self._old_due))):
            due_ms, turn, name = self._old_due.pop()
            message = self.pending.get(name)
            if message is not None and message.due_ms == due_ms and message.turn == turn:
                heapq.heappush(self._due, (due_ms, turn, name))

    def _schedule_turn(self, name: str, now_ms: int) -> None:
        """Let a message with an ordering key be due now, behind all that are due already."""
        self.schedule(name, now_ms, next(self._turns))

    def next_due(self) -> tuple[int, str] | None:
        """Return the first due time and its message; remove superseded times from the heap."""
        while self._due or self._old_due:
            heap = self._due
            if self._old_due and not (heap and heap[0] < self._old_due[0]):
                heap = self._old_due
            due_ms, turn, name = heap[0]
            message = self.pending.get(name)
            if message is not None and message.due_ms == due_ms and message.turn == turn:
                return due_ms, name
            heapq.heappop(heap)
        return None

    def _ready(self, now_ms: int) -> str | None:
        first = self.next_due()
        return first[1] if first is not None and first[0] <= now_ms else None

    # --- admitting and removing messages

    def _admit(self, name: str, message: PendingMessage, now_ms: int) -> bool:
        """Make a message pending; return whether it can be delivered now, with no wait in its lane or for its time."""
        self.pending[name] = message
        if message.terms is PLAIN:
            return True
        if message.terms.key and not self._enter_lane(name, message):
            return False
        if message.terms.at_ms > now_ms:
            self.schedule(name, message.terms.at_ms)
            return False
        return True

    def _make_due(self, name: str, message: PendingMessage, now_ms: int) -> None:
        """Let a message be due now, in its turn if it has an ordering key."""
        if message.terms.key:
            self._schedule_turn(name, now_ms)
        else:
            self.schedule(name, now_ms)

    def _enter_lane(self, name: str, message: PendingMessage) -> bool:
        """Put a message in the lane of its ordering key; return whether it is active."""
        lane = self._lanes.get(message.terms.key)
        if lane is None:
            lane = self._lanes[message.terms.key] = Lane()
        if self._has_room(lane):
            lane.active[name] = None
            return True
        (lane.queued if message.redriven_ms is None else lane.redriven).append(name)
        return False

    def _has_room(self, lane: Lane) -> bool:
        """Tell whether a new message of a lane is active at once."""
        return len(lane.active) < self.key_concurrency and lane.next(self.pending) is None

    def _fill(self, lane: Lane, now_ms: int) -> None:
        """Make the next messages of a lane active, up to `key_concurrency`."""
        while len(lane.active) < self.key_concurrency and (name := lane.next(self.pending)) is not None:
            (lane.queued or lane.redriven).popleft()
            lane.active[name] = None
            at_ms = self.pending[name].terms.at_ms
            if at_ms > now_ms:
                self.schedule(name, at_ms)
            else:
                self._schedule_turn(name, now_ms)

    def _take_turn(self, name: str, message: PendingMessage, now_ms: int) -> bool:
        """Tell whether a due message may be leased; then the others of its ordering key that are due wait for a turn.

        If `key_concurrency` was lowered too many of them may be active.
        """
        lane = self._lanes[message.terms.key]
        if len(lane.active) > 1:
            others = [each for each in lane.active if each != name]
            due = [each for each in others if self.pending[each].due_ms <= now_ms]
            if len(others) - len(due) >= self.key_concurrency:
                message.due_ms = NEVER
                if message.holder is not None:
                    self._let_go(name, message.holder)
                    message.holder = None
                self._aside.discard(name)
                lane.put_back(name, message)
                return False
            for _, _, each in sorted((self.pending[each].due_ms, self.pending[each].turn, each) for each in due):
                self._schedule_turn(each, now_ms)
        self._fill(lane, now_ms)
        return True

    def finish(self, name: str, now_ms: int) -> PendingMessage:
        """Forget a message, and release the next one of its ordering key."""
        message = self.pending.pop(name)
        self._aside.discard(name)
        if message.redriven_ms is not None:
            del self._redriven[name]
        if message.holder is not None:
            self._let_go(name, message.holder)
        if message.terms.key:
            self._leave_lane(name, message, now_ms)
        if len(self._due) + len(self._old_due) > 2 * len(self.pending) + PAGE:
            self._drop_superseded()
        return message

    def _leave_lane(self, name: str, message: PendingMessage, now_ms: int) -> None:
        """Let the next message of an ordering key be active in place of this one, or remove the empty lane."""
        lane = self._lanes[message.terms.key]
        if name in lane.active:
            del lane.active[name]
            self._fill(lane, now_ms)
        else:
            lane.forget(name, message)
        if not lane.active:
            del self._lanes[message.terms.key]

    def _let_go(self, name: str, consumer: str) -> None:
        """Note that a consumer doesn't hold a message any more."""
        names = self.held.get(consumer, {})
        names.pop(name, None)  # Ctrl-C may have interrupted an earlier step
        if not names:
            self.held.pop(consumer, None)

    def _some_held(self, consumer: str, most: int) -> list[str]:
        """Return the names of up to `most` messages that a consumer holds, in the order of their ids."""
        names = list(itertools.islice(self.held.get(consumer, ()), most))
        for name in names:
            message = self.pending.get(name)
            if message is None or message.holder != consumer:  # as above
                self._let_go(name, consumer)
        return sorted((name for name in names if name in self.held.get(consumer, ())), key=self._order)

    def _order(self, name: str) -> tuple[bool, Key, str]:
        """Return the sort key of a pending message: entries of the stream by their ids, then redriven messages."""
        redriven = self.pending[name].redriven_ms is not None
        return redriven, FIRST if redriven else key_of(name), name

    def on_entry_removed(self, name: str, now_ms: int) -> None:
        """Note that an entry was removed from the stream: its holder may still settle it; it isn't delivered again.

        A message that waits is finished; if it was the first of its ordering key, the next one of the key is due.
        """
        message = self.pending.get(name)
        if message is None:
            return
        message.entry_removed = True
        if message.holder is None:
            self.finish(name, now_ms)

    def make_dead_letter(self, name: str, reason: str, error: str, now_ms: int) -> Outcome:
        """Make a message a dead letter, unless its entry was removed: then only finish it."""
        message = self.finish(name, now_ms)
        if message.entry_removed:
            return Outcome.DONE
        number = next(self._numbers)
        letter = Letter(str(number), message.record, reason, error, message.attempts, now_ms / 1000)
        self.dead[number] = StoredDeadLetter(letter, message.terms)
        return Outcome.DEAD

    def park(self, name: str, due_ms: int, now_ms: int) -> None:
        """End the lease of a message, and let it wait until ``due_ms``."""
        message = self.pending[name]
        if message.entry_removed:
            self.finish(name, now_ms)
            return
        if message.holder is not None:
            self._let_go(name, message.holder)
            message.holder = None
        if due_ms == now_ms < message.due_ms:
            self._make_due(name, message, now_ms)
        else:
            self.schedule(name, due_ms)

    def release(self, name: str, due_ms: int, now_ms: int) -> None:
        """End the lease of a message as `park` does; this delivery doesn't count."""
        self.pending[name].attempts -= 1
        self.park(name, due_ms, now_ms)

    # --- fetching

    def fetch(
        self,
        consumer: str,
        count: int,
        *,
        until_ms: int,
        alive_ms: int,
        max_deliveries: int,
        key_concurrency: int,
        now_ms: int,
    ) -> Fetched:
        """End the leases of dead consumers; lease messages that are due again, then new entries.

        If the step ended early, `next_due` is 0.
        """
        self.alive[consumer] = alive_ms
        self.key_concurrency = key_concurrency
        more = not self._end_leases(now_ms)
        if self._again and not self.continue_seek(now_ms):  # nothing is leased before all are put back
            return Fetched([], next_due=0)
        if self.paused:
            return Fetched([])
        dead = []
        claims: list[Claim] = []
        steps = 0
        while len(claims) < count and (name := self._ready(now_ms)) is not None:
            message = self.pending[name]
            steps += 1
            if steps > count + PAGE:
                more = True
                break
            if message.entry_removed:
                self.finish(name, now_ms)
            elif message.spent(max_deliveries):
                dead.append(message.record.id)
                self.make_dead_letter(name, "max_deliveries", message.error or "every lease ended unsettled", now_ms)
            elif not message.terms.key or self._take_turn(name, message, now_ms):
                claims.append(self._claim(name, consumer, until_ms))
        ready, rest = self._admit_new(0 if more else count - len(claims), now_ms)
        claims += [self._claim(name, consumer, until_ms) for name in ready]
        if self._lanes and len(claims) == count and self._keys_compete():
            self._look_ahead(now_ms)
        if more or rest:
            return Fetched(claims, dead, next_due=0)
        upcoming = self.next_due()
        return Fetched(claims, dead, next_due=None if upcoming is None else max(0, upcoming[0] - now_ms) / 1000)

    def _end_leases(self, now_ms: int) -> bool:
        """End leases of consumers that no longer count as alive, and forget these; return whether all are ended."""
        left = PAGE
        ended = [(until_ms, name) for name, until_ms in self.alive.items() if until_ms <= now_ms]
        for _, consumer in sorted(ended):
            names = self._some_held(consumer, left)
            left -= len(names)
            for name in names:
                self.park(name, min(self.pending[name].due_ms, now_ms), now_ms)
            if consumer in self.held:
                return False
            del self.alive[consumer]
        return True

    def _admit_new(self, count: int, now_ms: int) -> tuple[list[str], bool]:
        """Admit new entries until `count` of them can be delivered now.

        Returns:
            The names of these, and whether the step ended early.
        """
        keys, records, terms = self.entries.keys, self.entries.records, self.entries.terms
        ready: list[str] = []
        begin = self.entries.after(self.position)
        for index in range(begin, len(keys)):
            if len(ready) >= count:
                break
            if index - begin >= count + PAGE:
                return ready, True
            self.position = keys[index]
            record = records[index]
            if self._admit(record.id, PendingMessage(record, terms.get(record.id, PLAIN)), now_ms):
                ready.append(record.id)
            else:
                self._aside.add(record.id)
        return ready, False

    def _keys_compete(self) -> bool:
        """Tell whether something is set aside, or the next entry would be, behind others of its ordering key."""
        if self._aside:
            return True
        entry = self.entries.read(text_of(self.position), LATEST, 1, after=True)
        lane = self._lanes.get(self.entries.terms.get(entry[0].id, PLAIN).key) if entry else None
        return lane is not None and not self._has_room(lane)

    def _look_ahead(self, now_ms: int) -> None:
        """Read on, so that messages behind a backlog of other ordering keys take their turns from now on."""
        keys, records, terms = self.entries.keys, self.entries.records, self.entries.terms
        begin = self.entries.after(self.position)
        for index in range(begin, min(begin + LOOK_AHEAD, len(keys))):
            self.position, record = keys[index], records[index]
            message = PendingMessage(record, terms.get(record.id, PLAIN))
            self._aside.add(record.id)
            if self._admit(record.id, message, now_ms):
                self._schedule_turn(record.id, now_ms)

    def _claim(self, name: str, consumer: str, until_ms: int) -> Claim:
        message = self.pending[name]
        self._aside.discard(name)
        if message.holder != consumer:
            if message.holder is not None:
                self._let_go(name, message.holder)
            self.held.setdefault(consumer, {})[name] = None
            message.holder = consumer
        message.grant = next(_grants)
        message.attempts += 1
        self.schedule(name, until_ms)
        return Claim(message.record, Receipt(name, consumer, message.grant), message.attempts)

    # --- settling and extending

    def leased(self, receipt: Receipt, now_ms: int) -> PendingMessage | None:
        """Return the message of a receipt while its lease lasts, else None."""
        message = self.pending.get(receipt.id)
        if message is None or message.holder != receipt.consumer or message.grant != receipt.grant:
            return None
        return message if message.due_ms > now_ms else None

    def settle(self, settlement: Settlement, max_deliveries: int, now_ms: int) -> Outcome:
        """Settle a delivery if its lease lasts."""
        message = self.leased(settlement.receipt, now_ms)
        name = settlement.receipt.id
        if message is None:
            return Outcome.LOST
        if settlement.action is Action.REJECT:
            return self.make_dead_letter(name, settlement.reason, settlement.error, now_ms)
        if settlement.action is Action.NACK and message.spent(max_deliveries):
            return self.make_dead_letter(name, "max_deliveries", settlement.error, now_ms)
        if settlement.action is Action.ACK:
            self.finish(name, now_ms)
        elif settlement.action is Action.NACK:
            message.error = settlement.error
            self.park(name, now_ms + to_ms(settlement.delay), now_ms)
        else:
            self.release(name, now_ms + to_ms(settlement.delay), now_ms)
        return Outcome.DONE

    def extend(self, receipt: Receipt, until_ms: int, now_ms: int) -> bool:
        """Let a lease end at ``until_ms``; return False if it has ended."""
        if self.leased(receipt, now_ms) is None:
            return False
        self.schedule(receipt.id, until_ms)
        return True

    def leave(self, consumer: str, now_ms: int) -> bool:
        """Release leases of a consumer; forget it when none is left, and return whether that is so.

        A delivery whose lease had ended counts.
        """
        for name in self._some_held(consumer, PAGE):
            message = self.pending[name]
            if message.due_ms > now_ms:
                self.release(name, now_ms, now_ms)
            else:
                self.park(name, message.due_ms, now_ms)
        if consumer in self.held:
            return False
        self.alive.pop(consumer, None)
        return True

    # --- seeking, dead letters, state

    def seek(self, position: Key, now_ms: int) -> list[object]:
        """Move to a position, and forget all pending messages but the redriven ones, which `continue_seek` puts back.

        Returns:
            What was forgotten. To free it takes time: keep it until the store's lock is released.
        """
        forgotten: list[object] = [self.pending, self.held, self._due, self._old_due, self._lanes, self._aside]
        self._again = deque(itertools.chain(self._redriven.items(), self._again))  # in the order of their redrives
        self.pending, self.held, self._lanes, self._redriven = {}, {}, {}, {}
        self._due, self._old_due = [], []
        self._aside = set()
        self.position = position
        self.continue_seek(now_ms)
        return forgotten

    def continue_seek(self, now_ms: int) -> bool:
        """Put redriven messages back after a seek, as new ones; return whether all are."""
        for _ in range(min(PAGE, len(self._again))):
            name, message = self._again.popleft()
            self._put(name, PendingMessage(message.record, message.terms, message.redriven_ms), now_ms)
        return not self._again

    def _put(self, name: str, message: PendingMessage, now_ms: int) -> None:
        """Make a redriven message pending."""
        self._redriven[name] = message
        if self._admit(name, message, now_ms):
            self._make_due(name, message, now_ms)

    def dead_letters(self, after: int, limit: int) -> list[Letter]:
        """Return a page of dead letters."""
        page = (stored.letter for number, stored in self.dead.items() if number > after)
        return list(itertools.islice(page, limit))

    def take_dead_letter(self, number: int, now_ms: int, *, redrive: bool) -> bool:
        """Remove a dead letter; with ``redrive`` make it a pending message, as new."""
        stored = self.dead.pop(number, None)
        if stored is not None and redrive:
            name, message = f"r{next(self._numbers):012}", PendingMessage(stored.letter.record, stored.terms, now_ms)
            if self._again:  # it comes behind those that were redriven before
                self._again.append((name, message))
            else:
                self._put(name, message, now_ms)
        return stored is not None

    def settled(self, key: Key, name: str) -> bool:
        """Tell whether an entry of the stream is settled."""
        return key <= self.position and name not in self.pending

    def inspect(self, entry_id: str, now_ms: int) -> MessageInfo:
        """Return what the group has made of an entry."""
        key = key_of(entry_id)
        message = self.pending.get(text_of(key))
        if message is None:
            some = itertools.islice(self._redriven.values(), LOOKED_AT)
            message = next((each for each in some if key_of(each.record.id) == key), None)
        if message is not None:
            state = MessageState.WAITING if message.holder is None else MessageState.LEASED
            due = None if message.due_ms >= NEVER else max(0, message.due_ms - now_ms) / 1000
            return MessageInfo(state, message.holder, due, message.attempts)
        if key > self.position:
            return MessageInfo(MessageState.UNREAD)
        return MessageInfo(MessageState.UNKNOWN if len(self._redriven) > LOOKED_AT else MessageState.SETTLED)

    def info(self, now_ms: int) -> GroupInfo:
        """Return the state of the group; the stream adds ``evicted``."""
        consumers = {name: 0 for name, until_ms in self.alive.items() if until_ms > now_ms}
        consumers.update({name: len(names) for name, names in self.held.items()})
        unread = self.entries.after(self.position)
        held = sum(consumers.values())
        oldest = self._oldest(unread)
        return GroupInfo(
            length=len(self.entries.keys),
            lag=len(self.entries.keys) - unread,
            pending=held,
            delayed=len(self.pending) + len(self._again) - held,
            dead=len(self.dead),
            consumers=consumers,
            oldest=None if oldest is None else max(0, now_ms - oldest) / 1000,
            paused=self.paused,
        )

    def consumers(self, names: Sequence[str], now_ms: int) -> list[ConsumerState]:
        """Return the consumers of these names."""
        states = []
        for name in names:
            until_ms, held = self.alive.get(name), self.held.get(name, {})
            states.append(ConsumerState(name, None if until_ms is None else (until_ms - now_ms) / 1000, len(held)))
        return states

    def _oldest(self, unread: int) -> int | None:
        """Return when the oldest unsettled message was added or redriven; None if there is none.

        Arguments:
            unread: The index of the first entry that was not read.
        """
        firsts = itertools.chain(
            itertools.islice((each for each in self.pending.values() if each.redriven_ms is None), 1),
            itertools.islice(self._redriven.values(), 1),
            (message for _, message in itertools.islice(self._again, 1)),
        )
        times = [each.since_ms() for each in firsts] + [key[0] for key in self.entries.keys[unread : unread + 1]]
        return min(times, default=None)
