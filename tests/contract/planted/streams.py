"""Memory streams with planted bugs: adding, reading, retention, waiting. `groups` and `consumers` have the others."""

import asyncio
from collections.abc import Sequence
from typing import Any

import attrs
from msgspec.structs import replace

import ailf
from ailf.driver import Action, Draft, Fetched, Outcome, Receipt, Record, Settlement, Swept
from ailf_memory.stream import MemoryStreamDriver, MemoryWaiter
from tests.contract.planted.base import caught_by

# --- adding and reading ------------------------------------------------------------------------------------------


class ChangesDrafts(MemoryStreamDriver):
    """Entries differ from their drafts; subclasses define in what."""

    changes: dict[str, Any]

    async def add(self, stream: str, drafts: Sequence[Draft], **options: Any) -> list[str]:
        return await super().add(stream, [replace(each, **self.changes) for each in drafts], **options)

    async def add_once(self, stream: str, draft: Draft, **options: Any) -> ailf.Added:
        return await super().add_once(stream, replace(draft, **self.changes), **options)


@caught_by("backend.test_backend.test_largest", "stream.test_scheduling.test_every_way_to_add_has_the_options")
class ForgetsHeaders(ChangesDrafts):
    """Entries lose their headers."""

    changes = {"headers": {}}  # noqa: RUF012 - it is never changed


@caught_by("stream.test_ordering.test_each_at_its_own_time", "stream.test_scheduling.test_delays")
class IgnoresSchedules(ChangesDrafts):
    """A scheduled message is delivered at once."""

    changes = {"delay": 0.0, "at": 0.0}  # noqa: RUF012 - it is never changed


@caught_by("stream.test_scheduling.test_delays")
class IgnoresTimes(ChangesDrafts):
    """A delay counts, and a time doesn't."""

    changes = {"at": 0.0}  # noqa: RUF012 - it is never changed


@caught_by("stream.test_ordering.test_one_after_another", "stream.test_ordering.test_ordered_work")
class IgnoresOrderingKeys(ChangesDrafts):
    """The messages of one ordering key are delivered at once."""

    changes = {"key": ""}  # noqa: RUF012 - it is never changed


@caught_by("stream.test_scheduling.test_deliveries_of_one_message", way="nack")
@caught_by("stream.test_scheduling.test_deliveries_of_one_message", way="expire")
class IgnoresMaxDeliveriesOfMessages(ChangesDrafts):
    """A message's own `max_deliveries` doesn't count."""

    changes = {"max_deliveries": None}  # noqa: RUF012 - it is never changed


@caught_by("stream.test_stream.test_readable_on_return")
class LosesMessages(MemoryStreamDriver):
    """Every third entry gets an id and is not stored."""

    added = 0

    async def add(self, stream: str, drafts: Sequence[Draft], **options: Any) -> list[str]:
        ids = await super().add(stream, drafts, **options)
        state = self._state(stream)
        for _ in drafts:
            type(self).added += 1
            if self.added % 3 == 0:
                state.remove(len(state.keys) - 1, len(state.keys))
        return ids


@caught_by("backend.test_backend.test_largest")
class CutsBodies(MemoryStreamDriver):
    """A body ends at its first zero byte."""

    async def add(self, stream: str, drafts: Sequence[Draft], **options: Any) -> list[str]:
        cut = [replace(each, body=each.body.partition(b"\0")[0]) for each in drafts]
        return await super().add(stream, cut, **options)


@caught_by("backend.test_cancel.test_cancelled_adds", asyncio_only=True)
class MixesReplies(MemoryStreamDriver):
    """Replies are kept in one queue, where a cancelled call leaves its reply for the next one."""

    def __init__(self, backend: Any) -> None:
        super().__init__(backend)
        self._replies: list[list[str]] = []

    async def add(self, stream: str, drafts: Sequence[Draft], **options: Any) -> list[str]:
        self._replies.append(await super().add(stream, drafts, **options))
        await asyncio.sleep(0)
        return self._replies.pop(0)


@caught_by("backend.test_backend.test_names")
class TreatsBracesAsHashTags(MemoryStreamDriver):
    """Only the part of a stream's name in braces counts."""

    def _state(self, stream: str) -> Any:
        inside = stream.partition("{")[2].partition("}")[0]
        return super()._state("braces" if "{" in stream else inside or stream)


@caught_by("stream.test_stream.test_read")
@caught_by("stream.test_stream.test_tail", begin="earliest")
class ReadsLastEntryTwice(MemoryStreamDriver):
    """Reading after an entry begins with that entry."""

    async def read(self, stream: str, start: str, end: str, limit: int, *, after: bool = False) -> list[Record]:
        return await super().read(stream, start, end, limit)


@caught_by("stream.test_positions.test_times")
class RoundsTimes(MemoryStreamDriver):
    """A time is the position at the end of its second."""

    def id_before(self, timestamp: float) -> str:
        return super().id_before(int(timestamp) + 1)


@caught_by("stream.test_scheduling.test_cancel_changes_nothing_else")
class CancelsAnything(MemoryStreamDriver):
    """Cancelling removes an entry, whether its time has come or not."""

    async def cancel(self, stream: str, entry_id: str) -> bool:
        state = self._state(stream)
        found = [at for at, record in enumerate(state.records) if record.id == entry_id]
        state.locate(entry_id)
        for at in found:
            state.remove(at, at + 1)
        return bool(found)


@caught_by("stream.test_scheduling.test_cancel")
class CancelsNothing(MemoryStreamDriver):
    """Cancelling is confirmed and not carried out."""

    async def cancel(self, stream: str, entry_id: str) -> bool:
        state = self._state(stream)
        return state.parked(state.locate(entry_id), self._now())


@caught_by("stream.test_ordering.test_the_end_of_one_frees_the_next", way="cancel")
@caught_by("stream.test_scheduling.test_cancel", "stream.test_info.test_counts_after_anything")
class CancelsOutsideGroups(MemoryStreamDriver):
    """A cancelled entry leaves the stream, and stays pending in the groups that had read it."""

    async def cancel(self, stream: str, entry_id: str) -> bool:
        state = self._state(stream)
        done = state.parked(state.locate(entry_id), self._now())
        if done:
            at = state.after(state.locate(entry_id)) - 1
            state.remove(at, at + 1)
        return done


# --- adding once -------------------------------------------------------------------------------------------------


@caught_by("stream.test_scheduling.test_add_once")
class ForgetsDedupIds(MemoryStreamDriver):
    """Every dedup id is new."""

    async def add_once(self, stream: str, draft: Draft, **options: Any) -> ailf.Added:
        self._state(stream)._once.clear()
        return await super().add_once(stream, draft, **options)


@caught_by("stream.test_scheduling.test_add_once")
class NeverEndsDedupWindows(MemoryStreamDriver):
    """A dedup window never ends."""

    async def add_once(self, stream: str, draft: Draft, **options: Any) -> ailf.Added:
        return await super().add_once(stream, draft, **{**options, "window": 1e9})


@caught_by("stream.test_scheduling.test_add_once")
class SlidesDedupWindows(MemoryStreamDriver):
    """A dedup window starts again with each duplicate."""

    async def add_once(self, stream: str, draft: Draft, **options: Any) -> ailf.Added:
        added = await super().add_once(stream, draft, **options)
        state = self._state(stream)
        until_ms = self._after(options["window"])
        state._once[options["dedup_id"]] = attrs.evolve(state._once[options["dedup_id"]], until_ms=until_ms)
        state._ends = [(until_ms, options["dedup_id"])]
        return added


@caught_by("stream.test_scheduling.test_add_once_after_cancel")
class KeepsDedupIdsOfCancelled(MemoryStreamDriver):
    """The dedup id of a cancelled message stays taken."""

    async def cancel(self, stream: str, entry_id: str) -> bool:
        state = self._state(stream)
        before = dict(state._once)
        done = await super().cancel(stream, entry_id)
        state._once = before
        return done


@caught_by("stream.test_scheduling.test_add_once_again_after_cancel")
class AddsAgainAfterCancel(MemoryStreamDriver):
    """After a cancel, a repetition of the call that added the message adds it again."""

    async def cancel(self, stream: str, entry_id: str) -> bool:
        done = await super().cancel(stream, entry_id)
        state = self._state(stream)
        state._once = {name: once for name, once in state._once.items() if not once.cancelled}
        return done


@caught_by("stream.test_scheduling.test_add_once_after_cancel")
class FreesReusedDedupIds(MemoryStreamDriver):
    """Cancelling a message frees its dedup id, although another message has taken it since."""

    async def cancel(self, stream: str, entry_id: str) -> bool:
        state = self._state(stream)
        terms = state.terms.get(entry_id)
        done = await super().cancel(stream, entry_id)
        if done and terms is not None:
            state._once.pop(terms.dedup_id, None)
        return done


@caught_by("stream.test_scheduling.test_add_once_after_trim", retention=ailf.Retention.settled())
class ForgetsDedupIdsOfTrimmed(MemoryStreamDriver):
    """A dedup id is forgotten with its entry."""

    async def add_once(self, stream: str, draft: Draft, **options: Any) -> ailf.Added:
        state = self._state(stream)
        here = {record.id for record in state.records}
        state._once = {name: once for name, once in state._once.items() if once.entry_id in here}
        return await super().add_once(stream, draft, **options)


@caught_by("stream.test_scheduling.test_add_once_by_many")
class ChecksDedupIdsSeparately(MemoryStreamDriver):
    """A dedup id is looked up in one step, and the message added in another."""

    async def add_once(self, stream: str, draft: Draft, **options: Any) -> ailf.Added:
        added = self._state(stream).added_before(options["dedup_id"], options["token"], self._now())
        await self._handle.runtime.event().wait(0.005)
        if added is None:
            self._state(stream)._once.clear()
        return await super().add_once(stream, draft, **options)


@caught_by("stream.test_retention.test_full")
class KeepsDedupIdsOfRefused(MemoryStreamDriver):
    """The dedup id of a message that a full stream refused is taken."""

    async def add_once(self, stream: str, draft: Draft, **options: Any) -> ailf.Added:
        try:
            return await super().add_once(stream, draft, **options)
        except ailf.StreamFullError:
            await super().add_once(stream, draft, **{**options, "retention": None})
            state = self._state(stream)
            state.remove(len(state.keys) - 1, len(state.keys))
            raise


@caught_by("stream.test_scheduling.test_add_once_ids")
class KeepsDedupIdsOfDeletedStreams(MemoryStreamDriver):
    """Deleting a stream leaves its dedup ids."""

    async def delete(self, stream: str) -> None:
        before = self._state(stream)
        await super().delete(stream)
        self._state(stream)._once = before._once
        self._state(stream)._ends = before._ends


# --- retention ---------------------------------------------------------------------------------------------------


@caught_by("stream.test_retention.test_full", "stream.test_retention.test_two_groups")
class TrimsUnsettled(MemoryStreamDriver):
    """Every retention is hard."""

    async def add(self, stream: str, drafts: Sequence[Draft], *, retention: ailf.Retention | None) -> list[str]:
        return await super().add(stream, drafts, retention=retention and attrs.evolve(retention, hard=True))

    async def trim(self, stream: str, retention: ailf.Retention, **options: Any) -> Swept:
        return await super().trim(stream, attrs.evolve(retention, hard=True), **options)


@caught_by("stream.test_retention.test_without_groups")
class NeverTrims(MemoryStreamDriver):
    """Adding removes nothing."""

    def _make_room(self, stream: str, count: int, retention: Any) -> None:
        return


@caught_by("stream.test_retention.test_full", "stream.test_retention.test_waiting_for_room")
class NeverFull(MemoryStreamDriver):
    """A stream grows beyond its max_len where nothing can be removed."""

    def _make_room(self, stream: str, count: int, retention: Any) -> None:
        if retention is not None:
            self._state(stream).make_room(count, retention, self._now())


@caught_by("stream.test_retention.test_full")
@caught_by(
    "stream.test_retention.test_one_unsettled_entry_does_not_fill_a_stream", retention="settled", state="scheduled"
)
class StopsTrimmingAtUnsettled(MemoryStreamDriver):
    """A stream is full when its oldest entry is unsettled, although later ones are settled."""

    def _make_room(self, stream: str, count: int, retention: ailf.Retention) -> None:
        state, most = self._state(stream), retention.max_len
        if most is not None and len(state.keys) + count > most and not state._settled(0):
            raise ailf.StreamFullError("full")
        super()._make_room(stream, count, retention)


@caught_by("stream.test_retention.test_later_adds_trim_the_rest")
class RefusesWhileTrimming(MemoryStreamDriver):
    """A stream is full while it is too long, although more can be removed."""

    def _make_room(self, stream: str, count: int, retention: ailf.Retention) -> None:
        super()._make_room(stream, count, retention)
        if retention.max_len is not None and len(self._state(stream).keys) + count > retention.max_len:
            raise ailf.StreamFullError("full")


@caught_by("stream.test_retention.test_full_of_many")
class NeverFullBeyondOneStep(MemoryStreamDriver):
    """A stream with more entries than one step checks is never full."""

    def _make_room(self, stream: str, count: int, retention: ailf.Retention) -> None:
        state = self._state(stream)
        before = len(state.keys)
        _, whole = state.trim(retention, self._now(), room=count)
        if whole and before <= 100:
            super()._make_room(stream, count, retention)


@caught_by("stream.test_retention.test_a_trim_finds_all", way="age", share=0.5)
@caught_by("stream.test_retention.test_many_at_once")
class TrimsOnePage(MemoryStreamDriver):
    """A trim ends after its first step."""

    async def trim(self, stream: str, retention: ailf.Retention, **options: Any) -> Swept:
        return replace(await super().trim(stream, retention, **options), after="")


@caught_by("stream.test_retention.test_settled")
class KeepsSettled(MemoryStreamDriver):
    """A retention without a length keeps settled entries."""

    async def trim(self, stream: str, retention: ailf.Retention, **options: Any) -> Swept:
        return await super().trim(stream, attrs.evolve(retention, keep_settled=True), **options)

    def _make_room(self, stream: str, count: int, retention: ailf.Retention) -> None:
        super()._make_room(stream, count, attrs.evolve(retention, keep_settled=True))


@caught_by("stream.test_retention.test_settled", "stream.test_retention.test_settled_and_full")
class TrimsWithoutGroups(MemoryStreamDriver):
    """Where a stream has no group, everything counts as settled."""

    def _make_room(self, stream: str, count: int, retention: ailf.Retention) -> None:
        state = self._state(stream)
        if not retention.keep_settled and not state.groups:
            state.remove(0, len(state.keys))
        super()._make_room(stream, count, retention)


@caught_by("stream.test_retention.test_length")
class ReportsLongestLength(MemoryStreamDriver):
    """The length is the longest that the stream ever had."""

    async def length(self, stream: str) -> int:
        stored = vars(self._state(stream))
        stored["longest"] = max(stored.get("longest", 0), await super().length(stream))
        return int(stored["longest"])


@caught_by("stream.test_retention.test_full")
class AddsInParts(MemoryStreamDriver):
    """`add_many` adds as many as there is room for."""

    async def add(self, stream: str, drafts: Sequence[Draft], *, retention: ailf.Retention | None) -> list[str]:
        ids: list[str] = []
        for draft in drafts:
            ids += await super().add(stream, [draft], retention=retention)
        return ids


@caught_by("stream.test_retention.test_hard")
class CountsNoEvictions(MemoryStreamDriver):
    """Unsettled entries that a hard retention removed are not counted."""

    def _make_room(self, stream: str, count: int, retention: Any) -> None:
        super()._make_room(stream, count, retention)
        self._state(stream).evicted = 0


@caught_by("stream.test_retention.test_age")
class IgnoresMaxAge(MemoryStreamDriver):
    """No entry is too old."""

    async def trim(self, stream: str, retention: ailf.Retention, **options: Any) -> Swept:
        return await super().trim(stream, attrs.evolve(retention, max_age=None), **options)

    def _make_room(self, stream: str, count: int, retention: Any) -> None:
        super()._make_room(stream, count, retention and attrs.evolve(retention, max_age=None))


# --- waiting -----------------------------------------------------------------------------------------------------


@caught_by(
    "stream.test_delivery.test_returned_messages_wake_other_consumers",
    "stream.test_ordering.test_the_next_of_a_key_wakes_a_waiting_consumer",
)
class WakesNoConsumer(MemoryStreamDriver):
    """A waiting consumer is not woken by new messages."""

    def _changed(self, stream: str) -> None:
        return


@caught_by("backend.test_close.test_close_wakes_every_call")
class NeverEndsWaits(MemoryStreamDriver):
    """A wait goes on after its consumer has ended."""

    def waiter(self, stream: str, group: str | None) -> MemoryWaiter:
        class Uninterruptible(MemoryWaiter):
            async def wait(self, position: Any, timeout: float) -> bool:
                self._interrupted = False
                return await super().wait(position, 60.0)

            def interrupt(self) -> None:
                return

        return Uninterruptible(self._handle, stream)


@caught_by("backend.test_close.test_consuming_ends_promptly", way="backend")
@caught_by("backend.test_close.test_consuming_ends_promptly", way="process")
class EndsWaitsLate(MemoryStreamDriver):
    """A wait lasts until its timeout, although its consumer has ended."""

    def waiter(self, stream: str, group: str | None) -> MemoryWaiter:
        class Uninterruptible(MemoryWaiter):
            def interrupt(self) -> None:
                return

        return Uninterruptible(self._handle, stream)


class WakesNoConsumerAfterSteps(MemoryStreamDriver):
    """A waiting consumer is not woken by some steps; subclasses define them.

    Attributes:
        silent: The methods that wake no consumer.
    """

    silent: frozenset[str]

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in {"silent", "_store"} or name not in self.silent:
            return found

        async def silently(*args: Any, **options: Any) -> Any:
            subscribers, self._store._subscribers = self._store._subscribers, []
            version = self._store.version
            try:
                return await found(*args, **options)
            finally:
                self._store._subscribers, self._store.version = subscribers, version

        return silently


@caught_by("stream.test_dead_letters.test_a_redrive_wakes_a_waiting_consumer", way="one")
class WakesNoConsumerAfterRedrives(WakesNoConsumerAfterSteps):
    """A waiting consumer is not woken by a redrive."""

    silent = frozenset({"take_dead_letters"})


@caught_by("stream.test_positions.test_steering_wakes_a_waiting_consumer", way="resume")
@caught_by("stream.test_positions.test_steering_wakes_a_waiting_consumer", way="seek")
class WakesNoConsumerAfterSteering(WakesNoConsumerAfterSteps):
    """A waiting consumer is not woken by a resume or a seek."""

    silent = frozenset({"pause", "seek"})


@caught_by("stream.test_scheduling.test_in_time", way="delay")
@caught_by("stream.test_scheduling.test_in_time", way="at")
@caught_by("stream.test_scheduling.test_in_time", way="nack")
class WakesNoConsumerOnTime(MemoryStreamDriver):
    """A waiting consumer is not woken when a message becomes due."""

    def __init__(self, backend: Any) -> None:
        super().__init__(backend)
        self._store.clock._callbacks.clear()  # type: ignore[attr-defined]  # ManualClock

    def waiter(self, stream: str, group: str | None) -> MemoryWaiter:
        waiter = super().waiter(stream, group)
        waiter._event = self._handle.runtime._event()  # an event that a move of the clock doesn't set
        return waiter


@caught_by("stream.test_waiting.test_a_consumer_that_leaves", way="stop", processes=1)
@caught_by("stream.test_waiting.test_a_consumer_that_leaves", way="close", processes=1)
class InterruptsWaitersForGood(MemoryStreamDriver):
    """A waiter that was interrupted once sees no arrival any more."""

    def waiter(self, stream: str, group: str | None) -> MemoryWaiter:
        class Interrupted(MemoryWaiter):
            was = False

            def interrupt(self) -> None:
                self.was = True
                super().interrupt()

            async def wait(self, position: Any, timeout: float) -> bool:
                came = await super().wait(position, timeout)
                if self.was:
                    await self._handle.runtime.event().wait(timeout)
                return came and not self.was

        return Interrupted(self._handle, stream)


# --- messages in general -----------------------------------------------------------------------------------------


@caught_by(
    "backend.test_backend.test_pairs_of_names",
    "stream.test_stream.test_groups_are_independent",
    "stream.test_ordering.test_groups_have_lanes_of_their_own",
)
class SharesGroups(MemoryStreamDriver):
    """All groups of a stream share one state."""

    async def open_group(self, stream: str, group: str, start: str) -> bool:
        return await super().open_group(stream, group[:0], start)

    def _group(self, stream: str, group: str) -> Any:
        return self._state(stream).groups.get("")


@caught_by("stream.test_stream.test_read")
class DeletesOnAck(MemoryStreamDriver):
    """An ack in one group removes the entry for all groups."""

    async def settle(self, stream: str, group: str, settlements: Sequence[Settlement], **options: Any) -> list[Outcome]:
        state = self._state(stream)
        outcomes = await super().settle(stream, group, settlements, **options)
        for each in settlements:
            if each.action is Action.ACK:
                at = next(at for at, record in enumerate(state.records) if record.id == each.receipt.id)
                state.remove(at, at + 1)
        return outcomes


@caught_by("stream.test_stream.test_id_order")
class DeliversInReverse(MemoryStreamDriver):
    """A page of new entries is delivered in reverse."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        fetched = await super().fetch(stream, group, consumer, **options)
        return replace(fetched, claims=fetched.claims[::-1])


@caught_by("stream.test_delivery.test_extend", "stream.test_delivery.test_leases_are_renewed")
class NeverExtendsLeases(MemoryStreamDriver):
    """Extending is confirmed and not carried out."""

    async def extend(self, stream: str, group: str, receipts: Sequence[Receipt], *, lease: float) -> list[bool]:
        return [True] * len(receipts)

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        self._store.clock.advance(0.2)  # type: ignore[attr-defined]  # ManualClock; a test of renewal waits in real time
        return await super().fetch(stream, group, consumer, **options)


@caught_by("stream.test_batches.test_batches_are_handled")
class SettlesTheFirstOfEach(MemoryStreamDriver):
    """A request settles its first delivery alone, and confirms all of them."""

    async def settle(
        self, stream: str, group: str, settlements: Sequence[Settlement], *, max_deliveries: int
    ) -> list[Outcome]:
        return await super().settle(stream, group, settlements[:1], max_deliveries=max_deliveries) * len(settlements)


@caught_by("stream.test_delivery.test_fenced_settles")
class ExtendsEndedLeases(MemoryStreamDriver):
    """Extending an ended lease succeeds."""

    async def extend(self, stream: str, group: str, receipts: Sequence[Receipt], *, lease: float) -> list[bool]:
        await super().extend(stream, group, receipts, lease=lease)
        return [True] * len(receipts)
