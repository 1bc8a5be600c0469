"""Groups of memory streams with planted bugs: leases, dead letters, ordering keys."""

from collections.abc import Sequence
from typing import Any

import attrs
from msgspec.structs import replace

import ailf
from ailf.driver import Action, Claim, Draft, Fetched, Letter, Outcome, Receipt, Settlement
from ailf_memory.state.entries import key_of
from ailf_memory.state.group import GroupState
from ailf_memory.stream import MemoryStreamDriver
from tests.contract.planted.base import caught_by

# --- leases and attempts -----------------------------------------------------------------------------------------


@caught_by("stream.test_delivery.test_one_lease_at_a_time", "stream.test_stream.test_many_producers")
class DeliversTwice(MemoryStreamDriver):
    """The group's position doesn't move."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        fetched = await super().fetch(stream, group, consumer, **options)
        state = self._state(stream).groups[group]
        state.seek((0, 0), 0)
        return fetched


@caught_by("stream.test_delivery.test_expired_leases_come_back", "stream.test_takeover.test_max_processing")
class NeverExpiresLeases(MemoryStreamDriver):
    """A lease lasts until its message is settled."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        return await super().fetch(stream, group, consumer, **{**options, "lease": 1e9})

    async def extend(self, stream: str, group: str, receipts: Sequence[Receipt], *, lease: float) -> list[bool]:
        return await super().extend(stream, group, receipts, lease=1e9)


@caught_by("stream.test_delivery.test_one_lease_at_a_time")
class GrantsNoLeases(MemoryStreamDriver):
    """A message is available again as soon as it was delivered."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        return await super().fetch(stream, group, consumer, **{**options, "lease": 0.0})


@caught_by("stream.test_delivery.test_fenced_settles")
class AcceptsStaleReceipts(GroupState):
    """A consumer may settle a message after its lease has ended."""

    def leased(self, receipt: Receipt, now_ms: int) -> Any:
        return self.pending.get(receipt.id)


@caught_by("stream.test_delivery.test_settling_two_ways_in_one_request", first=Action.ACK)
class AcceptsTwoSettlements(MemoryStreamDriver):
    """One request may settle a lease in two ways."""

    async def settle(self, stream: str, group: str, settlements: Sequence[Settlement], **options: Any) -> list[Outcome]:
        last = {each.receipt: each for each in settlements}
        outcomes = dict(zip(last, await super().settle(stream, group, list(last.values()), **options), strict=True))
        return [outcomes[each.receipt] for each in settlements]


@caught_by("stream.test_positions.test_old_deliveries_after_a_seek")
@caught_by("stream.test_positions.test_old_deliveries_after_a_reset", what="group")
class RepeatsLeaseNumbers(GroupState):
    """A lease is numbered by its attempt, which begins anew after a seek."""

    def _claim(self, name: str, consumer: str, until_ms: int) -> Claim:
        claim = super()._claim(name, consumer, until_ms)
        self.pending[name].grant = claim.attempt
        return replace(claim, receipt=replace(claim.receipt, grant=claim.attempt))


@caught_by("stream.test_delivery.test_attempts", "stream.test_delivery.test_a_release_with_a_delay")
class CountsReleases(GroupState):
    """A release counts as an attempt."""

    def release(self, name: str, due_ms: int, now_ms: int) -> None:
        self.park(name, due_ms, now_ms)


@caught_by("stream.test_delivery.test_a_release_with_a_delay")
class IgnoresReleaseDelays(GroupState):
    """The delay of a release is ignored."""

    def release(self, name: str, due_ms: int, now_ms: int) -> None:
        super().release(name, now_ms, now_ms)


@caught_by("stream.test_delivery.test_attempts")
class AcksOnNack(MemoryStreamDriver):
    """A nack loses the message."""

    async def settle(self, stream: str, group: str, settlements: Sequence[Settlement], **options: Any) -> list[Outcome]:
        changed = [replace(each, action=Action.ACK) if each.action is Action.NACK else each for each in settlements]
        return await super().settle(stream, group, changed, **options)


@caught_by("stream.test_delivery.test_nack_delays")
class IgnoresNackDelays(MemoryStreamDriver):
    """The delay of a nack is ignored."""

    async def settle(self, stream: str, group: str, settlements: Sequence[Settlement], **options: Any) -> list[Outcome]:
        return await super().settle(stream, group, [replace(each, delay=0.0) for each in settlements], **options)


@caught_by("stream.test_delivery.test_dead_letters", way="nack")
@caught_by("stream.test_delivery.test_dead_letters", way="expire")
class IgnoresMaxDeliveries(MemoryStreamDriver):
    """The number of deliveries is not limited."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        return await super().fetch(stream, group, consumer, **{**options, "max_deliveries": 10**9})

    async def settle(self, stream: str, group: str, settlements: Sequence[Settlement], **_: Any) -> list[Outcome]:
        return await super().settle(stream, group, settlements, max_deliveries=10**9)


@caught_by("stream.test_scheduling.test_delays")
class DelaysEntriesBehindScheduledOnes(GroupState):
    """A scheduled message delays those behind it."""

    def _admit(self, name: str, out: Any, now_ms: int) -> bool:
        held_up = max([out.terms.at_ms, *(each.terms.at_ms for each in self.pending.values())])
        return super()._admit(name, attrs.evolve(out, terms=attrs.evolve(out.terms, at_ms=held_up)), now_ms)


@caught_by("stream.test_scheduling.test_delays")
class CountsScheduling(GroupState):
    """Reading a scheduled message counts as its first attempt."""

    def schedule(self, name: str, due_ms: int, turn: int = 0) -> None:
        out = self.pending[name]
        if due_ms == out.terms.at_ms:
            out.attempts += 1
        super().schedule(name, due_ms, turn)


# --- dead letters ------------------------------------------------------------------------------------------------


@caught_by("stream.test_stream.test_broken_entries")
class FailsOnBrokenEntries(MemoryStreamDriver):
    """A fetch raises at the first unreadable entry."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        fetched = await super().fetch(stream, group, consumer, **options)
        if problems := [each.record.problem for each in fetched.claims if each.record.problem]:
            raise ailf.BackendError(problems[0])
        return fetched


@caught_by("stream.test_stream.test_broken_entries")
class DeliversBrokenEntries(MemoryStreamDriver):
    """An unreadable entry is delivered instead of becoming a dead letter."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        fetched = await super().fetch(stream, group, consumer, **options)
        claims = [replace(each, record=replace(each.record, problem="")) for each in fetched.claims]
        return replace(fetched, claims=claims)


@caught_by("stream.test_delivery.test_dead_letters", way="reject")
@caught_by("stream.test_stream.test_undecodable")
class LosesDeadLetters(GroupState):
    """A message is dropped where it should become a dead letter."""

    def make_dead_letter(self, name: str, reason: str, error: str, now_ms: int) -> Outcome:
        self.finish(name, now_ms)
        return Outcome.DEAD


@caught_by("stream.test_origins.test_where_dead_letters_belong")
class DatesDeathsBack(GroupState):
    """A dead letter tells the time of its entry as that of its death."""

    def dead_letters(self, after: int, limit: int) -> list[Letter]:
        return [replace(each, died=key_of(each.record.id)[0] / 1000) for each in super().dead_letters(after, limit)]


@caught_by("stream.test_origins.test_where_dead_letters_belong")
class RenamesDeadLetters(MemoryStreamDriver):
    """The entry of a dead letter has the id of another one."""

    async def dead_letters(self, stream: str, group: str, after: str, limit: int) -> list[Letter]:
        letters = await super().dead_letters(stream, group, after, limit)
        return [replace(each, record=replace(each.record, id="1-1")) for each in letters]


@caught_by("stream.test_ordering.test_keys_are_told")
class HidesKeys(MemoryStreamDriver):
    """A delivery has no ordering key."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        fetched = await super().fetch(stream, group, consumer, **options)
        claims = [replace(each, record=replace(each.record, key="")) for each in fetched.claims]
        return replace(fetched, claims=claims)


@caught_by("stream.test_delivery.test_dead_letters", way="nack")
class ForgetsErrors(GroupState):
    """A dead letter has no error."""

    def make_dead_letter(self, name: str, reason: str, error: str, now_ms: int) -> Outcome:
        return super().make_dead_letter(name, reason, "", now_ms)


@caught_by("stream.test_events.test_dead_letter_events")
class HidesDeadLetters(MemoryStreamDriver):
    """A fetch reports no dead letter that it made."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        return replace(await super().fetch(stream, group, consumer, **options), dead=())


@caught_by("stream.test_dead_letters.test_redrive", "stream.test_dead_letters.test_redriven_and_failed_again")
class RedrivesWithOldAttempts(GroupState):
    """The attempts of a redriven message continue those of its dead letter."""

    def take_dead_letter(self, number: int, now_ms: int, *, redrive: bool) -> bool:
        before, letter = set(self.pending), self.dead.get(number)
        taken = super().take_dead_letter(number, now_ms, redrive=redrive)
        for name in set(self.pending) - before:
            self.pending[name].attempts = letter.letter.attempts if letter else 0
        return taken


@caught_by("stream.test_dead_letters.test_a_bad_id_among_many", bad="junk")
class ChecksIdsByThePage(MemoryStreamDriver):
    """The form of a dead letter's id is checked by the request that takes it, and not before."""

    def check_letter(self, letter: str) -> None:
        pass


@caught_by("stream.test_dead_letters.test_redriven_once")
class RedrivesTwice(GroupState):
    """A dead letter stays when it is redriven, so that it can be redriven again."""

    def take_dead_letter(self, number: int, now_ms: int, *, redrive: bool) -> bool:
        letter = self.dead.get(number)
        taken = super().take_dead_letter(number, now_ms, redrive=redrive)
        if letter is not None and redrive:
            self.dead[number] = letter
        return taken


@caught_by("stream.test_dead_letters.test_purge")
class RedrivesOnPurge(GroupState):
    """Purging redrives."""

    def take_dead_letter(self, number: int, now_ms: int, *, redrive: bool) -> bool:
        return super().take_dead_letter(number, now_ms, redrive=True)


@caught_by("stream.test_dead_letters.test_redrive")
class RedrivesToAllGroups(MemoryStreamDriver):
    """A dead letter is redriven by adding it to the stream again, for every group."""

    async def take_dead_letters(self, stream: str, group: str, letters: Sequence[str], *, redrive: bool) -> list[bool]:
        state = self._group(stream, group)
        bodies = {str(number): letter.letter.record.body for number, letter in state.dead.items()} if state else {}
        taken = await super().take_dead_letters(stream, group, letters, redrive=False)
        await self.add(stream, [Draft(bodies[each]) for each in letters if redrive and each in bodies], retention=None)
        return taken


@caught_by("stream.test_dead_letters.test_redriven_after_its_entry_is_gone")
class RedrivesOnlyKeptEntries(GroupState):
    """A dead letter can't be redriven when its entry is gone."""

    def take_dead_letter(self, number: int, now_ms: int, *, redrive: bool) -> bool:
        letter = self.dead.get(number)
        here = {record.id for record in self.entries.records}
        return letter is None or (
            letter.letter.record.id in here and super().take_dead_letter(number, now_ms, redrive=redrive)
        )


# --- ordering keys -----------------------------------------------------------------------------------------------


@caught_by(
    "stream.test_ordering.test_failed_messages_block_their_lane",
    "stream.test_ordering.test_closing_keeps_the_order_of_a_key",
)
class FreesLanesOnFailure(GroupState):
    """A message that comes back frees its lane for the next message of its ordering key."""

    def park(self, name: str, due_ms: int, now_ms: int) -> None:
        super().park(name, due_ms, now_ms)
        lane = self._lanes.get(self.pending[name].terms.key)
        for queued in lane.queued if lane else ():
            self.schedule(queued, now_ms)


@caught_by("stream.test_ordering.test_the_end_of_one_frees_the_next", way="reject")
@caught_by("stream.test_ordering.test_the_end_of_one_frees_the_next", way="expire")
class KeepsLanesOfDeadLetters(GroupState):
    """A dead letter keeps its lane blocked."""

    def make_dead_letter(self, name: str, reason: str, error: str, now_ms: int) -> Outcome:
        lane = self._lanes.get(self.pending[name].terms.key)
        if lane is not None:
            lane.active = {"no message": None}
        return super().make_dead_letter(name, reason, error, now_ms)


@caught_by("stream.test_fair_keys.test_keys_take_turns")
class GivesNoTurns(GroupState):
    """A message with an ordering key that comes due does so by its id, not behind those that are due."""

    def _schedule_turn(self, name: str, now_ms: int) -> None:
        self.schedule(name, now_ms)


@caught_by("stream.test_fair_keys.test_a_backlog_of_one_key_hides_no_other")
class DoesNotReadOn(GroupState):
    """A fetch reads no more entries than it leases."""

    def _look_ahead(self, now_ms: int) -> None:
        pass


@caught_by("stream.test_fair_keys.test_at_most_n_of_a_key", width=2)
class IgnoresKeyConcurrency(GroupState):
    """One message of a key is out at a time, whatever the group says."""

    def fetch(self, consumer: str, count: int, **options: Any) -> Fetched:
        return super().fetch(consumer, count, **{**options, "key_concurrency": 1})


@caught_by("stream.test_fair_keys.test_at_most_n_of_a_key", width=2)
@caught_by("stream.test_fair_keys.test_a_number_that_changes")
class KeepsTheLargestKeyConcurrency(GroupState):
    """More messages of a key are out than the group says."""

    def fetch(self, consumer: str, count: int, **options: Any) -> Fetched:
        return super().fetch(consumer, count, **{**options, "key_concurrency": 3})


@caught_by("stream.test_ordering.test_a_redriven_message_queues")
class RedrivesAheadOfTheQueue(GroupState):
    """A redriven message goes to the front of its lane."""

    def take_dead_letter(self, number: int, now_ms: int, *, redrive: bool) -> bool:
        taken = super().take_dead_letter(number, now_ms, redrive=redrive)
        for lane in self._lanes.values():
            lane.queued.extendleft(lane.redriven)
            lane.redriven.clear()
        return taken
