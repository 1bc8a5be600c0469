"""One group of a stream: what is out, what comes next, what it gave up on. Pure: *now* is an argument.

Whatever is out (leased, delayed, or queued for its turn) has a name: the id of its entry, or "r" and a number where it
is a dead letter that was redriven. A heap of (due, name) says what is delivered next; "r" sorts after digits.
"""

import heapq
import itertools
import sys
from collections import deque
from typing import Final

import attrs

from ailf.checks import to_ms
from ailf.driver import Action, Claim, Fetched, Outcome, Receipt, Record, Settlement
from ailf.values import DeadLetter, GroupInfo
from ailf_memory.state.entries import PLAIN, Entries, Key, Terms, key_of

__all__ = ["GroupState"]

NEVER: Final = sys.maxsize
"""When something is due that waits for its turn; it is not in the heap."""

# No number comes twice in this process, so that old receipts prove nothing, whatever became of their group.
_grants = itertools.count(1)


@attrs.define
class Out:
    """A message that was taken in by a group and is not settled.

    Attributes:
        record: The message.
        terms: What its producer asked for.
        redriven_ms: When it was put back, for a dead letter that was.
        due_ms: When it may be delivered (again): the end of its lease, or of its delay.
        holder: The consumer that has it leased; None while it waits.
        grant: The number of its last lease.
        attempts: How many deliveries count.
        error: What was last said of it.
        gone: Whether its entry was removed from the stream.
    """

    record: Record
    terms: Terms
    redriven_ms: int | None = None
    due_ms: int = NEVER
    holder: str | None = None
    grant: int = 0
    attempts: int = 0
    error: str = ""
    gone: bool = False

    def spent(self, max_deliveries: int) -> bool:
        """Tell whether it was delivered as often as it may be."""
        return self.attempts >= (self.terms.max_deliveries or max_deliveries)

    def since_ms(self) -> int:
        """Return when the group could have had it first."""
        return key_of(self.record.id)[0] if self.redriven_ms is None else self.redriven_ms


@attrs.frozen
class Letter:
    """A dead letter, and what is needed to put it back."""

    shown: DeadLetter
    record: Record
    terms: Terms


@attrs.define
class Lane:
    """The messages of one ordering key that are out.

    Attributes:
        turn: The name of the one that may be delivered.
        queued: The names of those behind it, in id order; some may be done with.
        again: Those that were put back: behind all entries of the stream.
    """

    turn: str
    queued: deque[str] = attrs.field(factory=deque)
    again: deque[str] = attrs.field(factory=deque)

    def pop(self) -> str | None:
        """Take the next one out of the queue."""
        queue = self.queued or self.again
        return queue.popleft() if queue else None


# --- a group -----------------------------------------------------------------------------------------------------


class GroupState:
    """One group: where it stands, what is out, what it gave up on."""

    def __init__(self, entries: Entries, position: Key) -> None:
        self.entries = entries
        self.position = position
        self.pending: dict[str, Out] = {}
        self.dead: dict[int, Letter] = {}
        self.alive: dict[str, int] = {}
        self.paused = False
        self._numbers = itertools.count(1)
        self._clear()

    def _clear(self) -> None:
        self.pending.clear()
        self._due: list[tuple[int, str]] = []
        self._lanes: dict[str, Lane] = {}

    # --- when what is due

    def schedule(self, name: str, due_ms: int) -> None:
        """Let it be due then, and no longer at any other time."""
        self.pending[name].due_ms = due_ms
        heapq.heappush(self._due, (due_ms, name))

    def next_due(self) -> tuple[int, str] | None:
        """Return what is due first; superseded times fall out here."""
        while self._due:
            due_ms, name = self._due[0]
            out = self.pending.get(name)
            if out is not None and out.due_ms == due_ms:
                return due_ms, name
            heapq.heappop(self._due)
        return None

    def _ready(self, now_ms: int) -> str | None:
        first = self.next_due()
        return first[1] if first is not None and first[0] <= now_ms else None

    # --- coming and going

    def _admit(self, name: str, out: Out, now_ms: int) -> bool:
        """Take it in; return whether it can be delivered now, and doesn't wait for its turn or its time."""
        self.pending[name] = out
        if out.terms is PLAIN:
            return True
        if out.terms.key and not self._gets_turn(name, out):
            return False
        if out.terms.at_ms > now_ms:
            self.schedule(name, out.terms.at_ms)
            return False
        return True

    def _gets_turn(self, name: str, out: Out) -> bool:
        lane = self._lanes.get(out.terms.key)
        if lane is None:
            self._lanes[out.terms.key] = Lane(name)
            return True
        (lane.queued if out.redriven_ms is None else lane.again).append(name)
        return False

    def _pass_turn(self, key: str, now_ms: int) -> None:
        lane = self._lanes[key]
        while (name := lane.pop()) is not None:
            if name in self.pending:
                lane.turn = name
                self.schedule(name, max(now_ms, self.pending[name].terms.at_ms))
                return
        del self._lanes[key]

    def finish(self, name: str, now_ms: int) -> Out:
        """It is done with: forget it, and let the next of its ordering key have its turn."""
        out = self.pending.pop(name)
        key = out.terms.key
        if key and self._lanes[key].turn == name:
            self._pass_turn(key, now_ms)
        return out

    def vanish(self, name: str, now_ms: int) -> None:
        """Its entry is removed from the stream: who has it leased may still settle it, and nobody gets it again.

        One that waits for its time is for the next fetch to find, which lets others of its ordering key go on.
        """
        out = self.pending.get(name)
        if out is None:
            return
        out.gone = True
        if out.due_ms == NEVER:
            self.finish(name, now_ms)
        elif out.holder is None:
            self.schedule(name, min(out.due_ms, now_ms))

    def bury(self, name: str, reason: str, error: str, now_ms: int) -> Outcome:
        """Make it a dead letter, unless its entry has gone, so that there is nothing to keep."""
        out = self.finish(name, now_ms)
        if out.gone:
            return Outcome.DONE
        number = next(self._numbers)
        record = out.record
        shown = DeadLetter(str(number), record.id, record.body, dict(record.headers), reason, error, out.attempts)
        self.dead[number] = Letter(shown, record, out.terms)
        return Outcome.DEAD

    def park(self, name: str, due_ms: int, now_ms: int) -> None:
        """Take it from whoever has it, until then."""
        if self.pending[name].gone:
            self.finish(name, now_ms)
            return
        self.pending[name].holder = None
        self.schedule(name, due_ms)

    def release(self, name: str, due_ms: int, now_ms: int) -> None:
        """Take it from whoever has it, until then; this delivery doesn't count."""
        self.pending[name].attempts -= 1
        self.park(name, due_ms, now_ms)

    # --- fetching

    def fetch(
        self, consumer: str, count: int, *, until_ms: int, alive_ms: int, max_deliveries: int, now_ms: int
    ) -> Fetched:
        """Lease what is due again, then new entries; end the leases of consumers that died."""
        self.alive[consumer] = alive_ms
        self._end_leases(now_ms)
        if self.paused:
            return Fetched([])
        dead = []
        claims: list[Claim] = []
        while len(claims) < count and (name := self._ready(now_ms)) is not None:
            out = self.pending[name]
            if out.gone:
                self.finish(name, now_ms)
            elif out.spent(max_deliveries):
                dead.append(out.record.id)
                self.bury(name, "max_deliveries", out.error or "every lease ended unsettled", now_ms)
            else:
                claims.append(self._claim(name, consumer, until_ms))
        claims += [self._claim(name, consumer, until_ms) for name in self._read_on(count - len(claims), now_ms)]
        upcoming = self.next_due()
        return Fetched(claims, dead, next_due=None if upcoming is None else max(0, upcoming[0] - now_ms) / 1000)

    def _end_leases(self, now_ms: int) -> None:
        """Take from consumers that died what they hold, and forget them."""
        died = {name for name, until_ms in self.alive.items() if until_ms <= now_ms}
        if not died:
            return
        for name, out in list(self.pending.items()):
            if out.holder in died:
                self.park(name, min(out.due_ms, now_ms), now_ms)
        for consumer in died:
            del self.alive[consumer]

    def _read_on(self, count: int, now_ms: int) -> list[str]:
        """Take in new entries until so many of them can be delivered now; return these."""
        keys, records, terms = self.entries.keys, self.entries.records, self.entries.terms
        ready: list[str] = []
        for index in range(self.entries.after(self.position), len(keys)):
            if len(ready) >= count:
                break
            self.position = keys[index]
            record = records[index]
            if self._admit(record.id, Out(record, terms.get(record.id, PLAIN)), now_ms):
                ready.append(record.id)
        return ready

    def _claim(self, name: str, consumer: str, until_ms: int) -> Claim:
        out = self.pending[name]
        out.holder = consumer
        out.grant = next(_grants)
        out.attempts += 1
        self.schedule(name, until_ms)
        return Claim(out.record, Receipt(name, consumer, out.grant), out.attempts)

    # --- what holders do

    def mine(self, receipt: Receipt, now_ms: int) -> Out | None:
        """Return what the receipt proves, while its lease lasts."""
        out = self.pending.get(receipt.id)
        if out is None or out.holder != receipt.consumer or out.grant != receipt.grant:
            return None
        return out if out.due_ms > now_ms else None

    def settle(self, asked: Settlement, max_deliveries: int, now_ms: int) -> Outcome:
        """Do what was asked, if the lease still holds."""
        out = self.mine(asked.receipt, now_ms)
        name = asked.receipt.id
        if out is None:
            return Outcome.LOST
        if asked.action is Action.REJECT:
            return self.bury(name, asked.reason, asked.error, now_ms)
        if asked.action is Action.NACK and out.spent(max_deliveries):
            return self.bury(name, "max_deliveries", asked.error, now_ms)
        if asked.action is Action.ACK:
            self.finish(name, now_ms)
        elif asked.action is Action.NACK:
            out.error = asked.error
            self.park(name, now_ms + to_ms(asked.delay), now_ms)
        else:
            self.release(name, now_ms + to_ms(asked.delay), now_ms)
        return Outcome.DONE

    def extend(self, receipt: Receipt, until_ms: int, now_ms: int) -> bool:
        """Let the lease end then, if it still holds."""
        if self.mine(receipt, now_ms) is None:
            return False
        self.schedule(receipt.id, until_ms)
        return True

    def leave(self, consumer: str, now_ms: int) -> None:
        """Release what the consumer holds, and forget it; where a lease had ended, the delivery counts."""
        for name, out in list(self.pending.items()):
            if out.holder != consumer:
                continue
            if out.due_ms > now_ms:
                self.release(name, now_ms, now_ms)
            else:
                self.park(name, out.due_ms, now_ms)
        self.alive.pop(consumer, None)

    # --- steering

    def seek(self, position: Key, now_ms: int) -> None:
        """Forget what is out, but for what was redriven, and go on after the position."""
        redriven = [(name, out) for name, out in self.pending.items() if out.redriven_ms is not None]
        self._clear()
        self.position = position
        for name, out in redriven:
            self._put(name, Out(out.record, out.terms, out.redriven_ms), now_ms)

    def _put(self, name: str, out: Out, now_ms: int) -> None:
        if self._admit(name, out, now_ms):
            self.schedule(name, now_ms)

    def letters(self, after: int, limit: int) -> list[DeadLetter]:
        """Return a page of dead letters."""
        found = (letter.shown for number, letter in self.dead.items() if number > after)
        return list(itertools.islice(found, limit))

    def take_letter(self, number: int, now_ms: int, *, redrive: bool) -> bool:
        """Remove a dead letter; with ``redrive`` let it be delivered as a new one."""
        letter = self.dead.pop(number, None)
        if letter is not None and redrive:
            self._put(f"r{next(self._numbers):012}", Out(letter.record, letter.terms, now_ms), now_ms)
        return letter is not None

    def settled(self, key: Key, name: str) -> bool:
        """Tell whether this entry of the stream is done with."""
        return key <= self.position and name not in self.pending

    def info(self, now_ms: int) -> GroupInfo:
        """Return how the group stands, as far as it knows."""
        consumers = {name: 0 for name, until_ms in self.alive.items() if until_ms > now_ms}
        for out in self.pending.values():
            if out.holder is not None:
                consumers[out.holder] = consumers.get(out.holder, 0) + 1
        unread = self.entries.after(self.position)
        unsettled = [out.since_ms() for out in self.pending.values()] + [
            key[0] for key in self.entries.keys[unread:][:1]
        ]
        held = sum(consumers.values())
        return GroupInfo(
            length=len(self.entries.keys),
            lag=len(self.entries.keys) - unread,
            pending=held,
            delayed=len(self.pending) - held,
            dead=len(self.dead),
            consumers=consumers,
            oldest=max(0, now_ms - min(unsettled)) / 1000 if unsettled else None,
            paused=self.paused,
        )
