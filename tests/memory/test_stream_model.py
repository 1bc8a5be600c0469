"""The memory stream does, step for step, what a model does that is too simple to be wrong.

The model is a list of entries and a dict of what is out; it looks at everything in every step and has no clock of its
own. Hypothesis plays both with the same steps.
"""

import itertools
from typing import Any

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from ailf.driver import Action, Receipt, Settlement
from ailf.runtime import ThreadRuntime, run
from ailf.testing import ManualClock
from ailf.values import EARLIEST, LATEST
from ailf_memory import MemoryStore
from ailf_memory.backend import MemoryDriver

STREAM, GROUP = "tasks", "workers"
MAX_DELIVERIES = 3
LEASE = 10.0

consumers = st.sampled_from(["anna", "bert", "carl"])


@attrs.define
class Out:
    """An entry that was delivered and is not done with.

    Attributes:
        due: When it may be delivered again, in milliseconds of the model.
        holder: Who has it; None while it waits.
        grants: How often it was delivered.
        forgiven: How many of these don't count.
    """

    due: int
    holder: str | None
    grants: int = 1
    forgiven: int = 0


@attrs.define
class Model:
    """A stream with one group."""

    now: int = 0
    entries: list[bytes] = attrs.field(factory=list)
    taken: int = 0
    out: dict[int, Out] = attrs.field(factory=dict)
    dead: list[tuple[int, str, int]] = attrs.field(factory=list)

    def fetch(self, consumer: str, count: int) -> tuple[list[tuple[int, int, int]], list[int]]:
        """Return what is claimed, as (entry, attempt, grant), and what becomes a dead letter."""
        claims: list[tuple[int, int, int]] = []
        dead = []
        until = self.now + round(LEASE * 1000)
        for entry in sorted(self.out, key=lambda each: (self.out[each].due, each)):
            out = self.out[entry]
            if len(claims) == count or out.due > self.now:
                break
            if out.grants - out.forgiven >= MAX_DELIVERIES:
                dead.append(entry)
                self.bury(entry, "max_deliveries")
            else:
                self.out[entry] = Out(until, consumer, out.grants + 1, out.forgiven)
                claims.append((entry, out.grants + 1 - out.forgiven, out.grants + 1))
        while len(claims) < count and self.taken < len(self.entries):
            self.out[self.taken] = Out(until, consumer)
            claims.append((self.taken, 1, 1))
            self.taken += 1
        return claims, dead

    def mine(self, entry: int, consumer: str, grant: int) -> Out | None:
        """Return what a receipt proves."""
        out = self.out.get(entry)
        valid = out is not None and (out.holder, out.grants) == (consumer, grant) and out.due > self.now
        return out if valid else None

    def bury(self, entry: int, reason: str) -> None:
        """Make it a dead letter."""
        out = self.out.pop(entry)
        self.dead.append((entry, reason, out.grants - out.forgiven))

    def settle(self, entry: int, consumer: str, grant: int, action: Action, delay: float) -> bool:
        """Do what was asked, if the lease still holds."""
        out = self.mine(entry, consumer, grant)
        if out is None:
            return False
        if action is Action.ACK:
            del self.out[entry]
        elif action is Action.REJECT:
            self.bury(entry, "rejected")
        elif action is Action.NACK and out.grants - out.forgiven >= MAX_DELIVERIES:
            self.bury(entry, "max_deliveries")
        elif action is Action.NACK:
            out.holder, out.due = None, self.now + round(delay * 1000)
        else:
            self.release(out)
        return True

    def release(self, out: Out) -> None:
        """Give it back; the delivery doesn't count."""
        out.holder, out.due, out.forgiven = None, self.now, out.forgiven + 1

    def leave(self, consumer: str) -> None:
        """Give back everything that a consumer still has."""
        for out in self.out.values():
            if out.holder == consumer and out.due > self.now:
                self.release(out)


class StreamMachine(RuleBasedStateMachine):
    """Plays the driver and the model side by side."""

    receipts: Bundle[tuple[int, Receipt]] = Bundle("receipts")

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.driver = MemoryDriver(MemoryStore(self.clock), ThreadRuntime()).stream()
        self.model = Model()
        self.ids: list[str] = []
        run(self.driver.open_group(STREAM, GROUP, EARLIEST))

    @rule(count=st.integers(1, 3))
    def add(self, count: int) -> None:
        """Entries are appended with growing ids."""
        bodies = [b"%d" % (len(self.ids) + number) for number in range(count)]
        self.ids += run(self.driver.add(STREAM, [(body, {}) for body in bodies]))
        self.model.entries += bodies

    @rule(target=receipts, consumer=consumers, count=st.integers(1, 4))
    def fetch(self, consumer: str, count: int) -> Any:
        """Both claim the same entries in the same order, and give up the same ones."""
        found = run(self.driver.fetch(STREAM, GROUP, consumer, count=count, lease=LEASE, max_deliveries=MAX_DELIVERIES))
        claims, dead = self.model.fetch(consumer, count)
        assert [(each.record.id, each.attempt) for each in found.claims] == [
            (self.ids[entry], attempt) for entry, attempt, _ in claims
        ]
        assert [each.record.body for each in found.claims] == [self.model.entries[entry] for entry, _, _ in claims]
        assert [each.receipt for each in found.claims] == [
            Receipt(self.ids[entry], consumer, grant) for entry, _, grant in claims
        ]
        assert list(found.dead) == [self.ids[entry] for entry in dead]
        assert not found.reset
        upcoming = min((each.due for each in self.model.out.values()), default=None)
        if len(claims) < count:
            assert found.next_due == (None if upcoming is None else (upcoming - self.model.now) / 1000)
        return multiple(*((entry, each.receipt) for (entry, _, _), each in zip(claims, found.claims, strict=True)))

    @rule(held=receipts, action=st.sampled_from(Action), delay=st.sampled_from([0.0, 1.0, 15.0]))
    def settle(self, held: tuple[int, Receipt], action: Action, delay: float) -> None:
        """Any receipt ever given out is worth the same to both, also an old one."""
        entry, receipt = held
        asked = Settlement(receipt, action, delay, reason="rejected", error="e")
        done = run(self.driver.settle(STREAM, GROUP, [asked], max_deliveries=MAX_DELIVERIES))
        assert done == [self.model.settle(entry, receipt.consumer, receipt.grant, action, delay)]

    @rule(held=receipts, seconds=st.sampled_from([0.5, 5.0, 30.0]))
    def extend(self, held: tuple[int, Receipt], seconds: float) -> None:
        """A lease that holds ends later or earlier; one that has ended stays so."""
        entry, receipt = held
        out = self.model.mine(entry, receipt.consumer, receipt.grant)
        assert run(self.driver.extend(STREAM, GROUP, [receipt], lease=seconds)) == [out is not None]
        if out is not None:
            out.due = self.model.now + round(seconds * 1000)

    @rule(seconds=st.sampled_from([0.001, 1.0, 9.999, 10.0, 40.0]))
    def advance(self, seconds: float) -> None:
        """Time passes for both."""
        self.clock.advance(seconds)
        self.model.now += round(seconds * 1000)

    @rule(consumer=consumers)
    def leave(self, consumer: str) -> None:
        """A consumer that leaves gives back what it has."""
        run(self.driver.leave(STREAM, GROUP, consumer))
        self.model.leave(consumer)

    @invariant()
    def the_dead_letters_are_the_models(self) -> None:
        """The group's dead letters are complete and in order."""
        letters = run(self.driver.dead_letters(STREAM, GROUP, "", 1000))
        assert [(each.origin, each.reason, each.attempts) for each in letters] == [
            (self.ids[entry], reason, attempts) for entry, reason, attempts in self.model.dead
        ]

    @invariant()
    def the_stream_keeps_every_entry(self) -> None:
        """Whatever groups do, the stream has all entries in order, with growing ids (S1, S17)."""
        records = run(self.driver.read(STREAM, EARLIEST, LATEST, 1000))
        assert [each.body for each in records] == self.model.entries
        assert [each.id for each in records] == self.ids
        numbers = [tuple(map(int, each.split("-"))) for each in self.ids]
        assert all(one < other for one, other in itertools.pairwise(numbers))

    def teardown(self) -> None:
        """In the end nothing was lost: everything that isn't done with can still be had (S6)."""
        self.clock.advance(100)
        self.model.now += 100_000
        unsettled = len(self.model.out) + len(self.model.entries) - self.model.taken
        found = run(self.driver.fetch(STREAM, GROUP, "last", count=1000, lease=LEASE, max_deliveries=MAX_DELIVERIES))
        assert len(found.claims) + len(found.dead) == unsettled


StreamMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class TestStream(StreamMachine.TestCase):  # type: ignore[misc]
    """The machine, for pytest to find."""
