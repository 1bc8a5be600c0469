"""Stream drivers of memory, each broken in one way: adding, reading, retention, waiting; see `broken_groups` too."""

import asyncio
from collections.abc import Sequence
from typing import Any

import attrs
from msgspec.structs import replace

import ailf
from ailf.driver import Action, Draft, Fetched, Outcome, Receipt, Record, Settlement, Swept
from ailf_memory.stream import MemoryStreamDriver, MemoryWaiter

# --- adding and reading ------------------------------------------------------------------------------------------


class ChangesDrafts(MemoryStreamDriver):
    """Entries are added otherwise than they were drafted: how is what the others say."""

    changes: dict[str, Any]

    async def add(self, stream: str, drafts: Sequence[Draft], **options: Any) -> list[str]:
        return await super().add(stream, [replace(each, **self.changes) for each in drafts], **options)

    async def add_once(self, stream: str, draft: Draft, **options: Any) -> ailf.Added:
        return await super().add_once(stream, replace(draft, **self.changes), **options)


class ForgetsHeaders(ChangesDrafts):
    """Entries lose their headers."""

    changes = {"headers": {}}  # noqa: RUF012 - nobody changes it


class IgnoresDelays(ChangesDrafts):
    """Whatever is for later comes at once."""

    changes = {"delay": 0.0, "at": 0.0}  # noqa: RUF012 - nobody changes it


class IgnoresTimes(ChangesDrafts):
    """A delay counts, a time does not."""

    changes = {"at": 0.0}  # noqa: RUF012 - nobody changes it


class IgnoresKeys(ChangesDrafts):
    """The messages of one key are delivered at once."""

    changes = {"key": ""}  # noqa: RUF012 - nobody changes it


class IgnoresOverrides(ChangesDrafts):
    """A message's own number of deliveries doesn't count."""

    changes = {"max_deliveries": None}  # noqa: RUF012 - nobody changes it


class LosesMessages(MemoryStreamDriver):
    """Every third entry is answered with an id and not kept."""

    added = 0

    async def add(self, stream: str, drafts: Sequence[Draft], **options: Any) -> list[str]:
        ids = await super().add(stream, drafts, **options)
        state = self._state(stream)
        for _ in drafts:
            type(self).added += 1
            if self.added % 3 == 0:
                state.remove(len(state.keys) - 1, len(state.keys))
        return ids


class CutsBodies(MemoryStreamDriver):
    """A body ends at its first zero byte."""

    async def add(self, stream: str, drafts: Sequence[Draft], **options: Any) -> list[str]:
        cut = [replace(each, body=each.body.partition(b"\0")[0]) for each in drafts]
        return await super().add(stream, cut, **options)


class MixesReplies(MemoryStreamDriver):
    """Replies wait in one queue, where a caller that was cancelled leaves its own to the next one."""

    def __init__(self, backend: Any) -> None:
        super().__init__(backend)
        self._replies: list[list[str]] = []

    async def add(self, stream: str, drafts: Sequence[Draft], **options: Any) -> list[str]:
        self._replies.append(await super().add(stream, drafts, **options))
        await asyncio.sleep(0)
        return self._replies.pop(0)


class SharesNames(MemoryStreamDriver):
    """What stands in braces is all that counts of a name."""

    def _state(self, stream: str) -> Any:
        inside = stream.partition("{")[2].partition("}")[0]
        return super()._state("braces" if "{" in stream else inside or stream)


class ReadsTwice(MemoryStreamDriver):
    """Reading on begins with what was read last."""

    async def read(self, stream: str, start: str, end: str, limit: int, *, after: bool = False) -> list[Record]:
        return await super().read(stream, start, end, limit)


class MistakesTimes(MemoryStreamDriver):
    """A time is the place after what was added since the second began."""

    def id_before(self, timestamp: float) -> str:
        return super().id_before(int(timestamp) + 1)


class CancelsAnything(MemoryStreamDriver):
    """Cancelling removes an entry, whether its time has come or not."""

    async def cancel(self, stream: str, entry_id: str) -> bool:
        state = self._state(stream)
        found = [at for at, record in enumerate(state.records) if record.id == entry_id]
        state.locate(entry_id)
        for at in found:
            state.remove(at, at + 1)
        return bool(found)


class CancelsNothing(MemoryStreamDriver):
    """Cancelling is answered and not done."""

    async def cancel(self, stream: str, entry_id: str) -> bool:
        state = self._state(stream)
        return state.parked(state.locate(entry_id), self._now())


class CancelsSilently(MemoryStreamDriver):
    """A cancelled entry leaves the stream, and the groups that had read it wait for it."""

    async def cancel(self, stream: str, entry_id: str) -> bool:
        state = self._state(stream)
        done = state.parked(state.locate(entry_id), self._now())
        if done:
            at = state.after(state.locate(entry_id)) - 1
            state.remove(at, at + 1)
        return done


# --- adding once -------------------------------------------------------------------------------------------------


class ForgetsDedupIds(MemoryStreamDriver):
    """Every id is new."""

    async def add_once(self, stream: str, draft: Draft, **options: Any) -> ailf.Added:
        self._state(stream)._once.clear()
        return await super().add_once(stream, draft, **options)


class RemembersForEver(MemoryStreamDriver):
    """A window never ends."""

    async def add_once(self, stream: str, draft: Draft, **options: Any) -> ailf.Added:
        return await super().add_once(stream, draft, **{**options, "window": 1e9})


class SlidesWindows(MemoryStreamDriver):
    """A window begins anew with each that finds its id."""

    async def add_once(self, stream: str, draft: Draft, **options: Any) -> ailf.Added:
        added = await super().add_once(stream, draft, **options)
        state = self._state(stream)
        until_ms = self._after(options["window"])
        state._once[options["dedup_id"]] = attrs.evolve(state._once[options["dedup_id"]], until_ms=until_ms)
        state._ends = [(until_ms, options["dedup_id"])]
        return added


class CancelsWithoutTheId(MemoryStreamDriver):
    """The dedup id of a message that is cancelled stays taken."""

    async def cancel(self, stream: str, entry_id: str) -> bool:
        state = self._state(stream)
        before = dict(state._once)
        done = await super().cancel(stream, entry_id)
        state._once = before
        return done


class ForgetsTheCall(MemoryStreamDriver):
    """After a cancel the call that had added the message adds it again, when it is repeated."""

    async def cancel(self, stream: str, entry_id: str) -> bool:
        done = await super().cancel(stream, entry_id)
        state = self._state(stream)
        state._once = {name: once for name, once in state._once.items() if not once.cancelled}
        return done


class FreesAnyId(MemoryStreamDriver):
    """Cancelling frees the dedup id that a message was added under, although it stands for another one by now."""

    async def cancel(self, stream: str, entry_id: str) -> bool:
        state = self._state(stream)
        terms = state.terms.get(entry_id)
        done = await super().cancel(stream, entry_id)
        if done and terms is not None:
            state._once.pop(terms.dedup_id, None)
        return done


class ForgetsWhatIsTrimmed(MemoryStreamDriver):
    """A dedup id is forgotten with its entry."""

    async def add_once(self, stream: str, draft: Draft, **options: Any) -> ailf.Added:
        state = self._state(stream)
        here = {record.id for record in state.records}
        state._once = {name: once for name, once in state._once.items() if once.entry_id in here}
        return await super().add_once(stream, draft, **options)


class AddsFirst(MemoryStreamDriver):
    """Whether an id is known is looked up in one step, and added in another."""

    async def add_once(self, stream: str, draft: Draft, **options: Any) -> ailf.Added:
        known = self._state(stream).known(options["dedup_id"], options["token"], self._now())
        await self._handle.runtime.event().wait(0.005)
        if known is None:
            self._state(stream)._once.clear()
        return await super().add_once(stream, draft, **options)


class RemembersRefused(MemoryStreamDriver):
    """The id of what a full stream refused is taken."""

    async def add_once(self, stream: str, draft: Draft, **options: Any) -> ailf.Added:
        try:
            return await super().add_once(stream, draft, **options)
        except ailf.StreamFullError:
            await super().add_once(stream, draft, **{**options, "retention": None})
            state = self._state(stream)
            state.remove(len(state.keys) - 1, len(state.keys))
            raise


class KeepsDedupIds(MemoryStreamDriver):
    """Deleting a stream leaves its dedup ids."""

    async def delete(self, stream: str) -> None:
        before = self._state(stream)
        await super().delete(stream)
        self._state(stream)._once = before._once
        self._state(stream)._ends = before._ends


# --- retention ---------------------------------------------------------------------------------------------------


class TrimsUnsettled(MemoryStreamDriver):
    """Every retention is hard."""

    async def add(self, stream: str, drafts: Sequence[Draft], *, retention: ailf.Retention | None) -> list[str]:
        return await super().add(stream, drafts, retention=retention and attrs.evolve(retention, hard=True))

    async def trim(self, stream: str, retention: ailf.Retention, **options: Any) -> Swept:
        return await super().trim(stream, attrs.evolve(retention, hard=True), **options)


class NeverTrims(MemoryStreamDriver):
    """Adding removes nothing."""

    def _make_room(self, stream: str, count: int, retention: Any) -> None:
        return


class NeverFull(MemoryStreamDriver):
    """What can't be removed is exceeded."""

    def _make_room(self, stream: str, count: int, retention: Any) -> None:
        if retention is not None:
            self._state(stream).make_room(count, retention, self._now())


class StopsAtTheUnsettled(MemoryStreamDriver):
    """A stream whose oldest entry is not settled is full, whatever is behind it."""

    def _make_room(self, stream: str, count: int, retention: ailf.Retention) -> None:
        state, most = self._state(stream), retention.max_len
        if most is not None and len(state.keys) + count > most and not state._settled(0):
            raise ailf.StreamFullError("full")
        super()._make_room(stream, count, retention)


class RefusesWhenBehind(MemoryStreamDriver):
    """A stream is full while it is too long, also where more could be removed."""

    def _make_room(self, stream: str, count: int, retention: ailf.Retention) -> None:
        super()._make_room(stream, count, retention)
        if retention.max_len is not None and len(self._state(stream).keys) + count > retention.max_len:
            raise ailf.StreamFullError("full")


class RefusesOnlyWhenSure(MemoryStreamDriver):
    """A stream of which not everything was looked at is never full."""

    def _make_room(self, stream: str, count: int, retention: ailf.Retention) -> None:
        state = self._state(stream)
        before = len(state.keys)
        _, whole = state.trim(retention, self._now(), room=count)
        if whole and before <= 100:
            super()._make_room(stream, count, retention)


class TrimsAPage(MemoryStreamDriver):
    """The first step of a trim is the last."""

    async def trim(self, stream: str, retention: ailf.Retention, **options: Any) -> Swept:
        return replace(await super().trim(stream, retention, **options), after="")


class KeepsTheSettled(MemoryStreamDriver):
    """What is settled is kept by every retention without a length."""

    async def trim(self, stream: str, retention: ailf.Retention, **options: Any) -> Swept:
        return await super().trim(stream, attrs.evolve(retention, keep_settled=True), **options)

    def _make_room(self, stream: str, count: int, retention: ailf.Retention) -> None:
        super()._make_room(stream, count, attrs.evolve(retention, keep_settled=True))


class SettlesForNobody(MemoryStreamDriver):
    """Where a stream has no group, everything counts as settled."""

    def _make_room(self, stream: str, count: int, retention: ailf.Retention) -> None:
        state = self._state(stream)
        if not retention.keep_settled and not state.groups:
            state.remove(0, len(state.keys))
        super()._make_room(stream, count, retention)


class CountsWhatWas(MemoryStreamDriver):
    """The length is that which the stream once had."""

    async def length(self, stream: str) -> int:
        known = vars(self._state(stream))
        known["longest"] = max(known.get("longest", 0), await super().length(stream))
        return int(known["longest"])


class AddsHalf(MemoryStreamDriver):
    """Of many, those are added that there is room for."""

    async def add(self, stream: str, drafts: Sequence[Draft], *, retention: ailf.Retention | None) -> list[str]:
        ids: list[str] = []
        for draft in drafts:
            ids += await super().add(stream, [draft], retention=retention)
        return ids


class CountsNoEvictions(MemoryStreamDriver):
    """What a hard retention took unsettled is not counted."""

    def _make_room(self, stream: str, count: int, retention: Any) -> None:
        super()._make_room(stream, count, retention)
        self._state(stream).evicted = 0


class IgnoresAge(MemoryStreamDriver):
    """Nothing is too old."""

    async def trim(self, stream: str, retention: ailf.Retention, **options: Any) -> Swept:
        return await super().trim(stream, attrs.evolve(retention, max_age=None), **options)

    def _make_room(self, stream: str, count: int, retention: Any) -> None:
        super()._make_room(stream, count, retention and attrs.evolve(retention, max_age=None))


# --- waiting -----------------------------------------------------------------------------------------------------


class RingsNobody(MemoryStreamDriver):
    """Who waits is not told that something came."""

    def _changed(self) -> None:
        return


class NeverCloses(MemoryStreamDriver):
    """A wait is deaf to the end."""

    def waiter(self, stream: str, group: str | None) -> MemoryWaiter:
        class Deaf(MemoryWaiter):
            async def wait(self, position: Any, timeout: float) -> bool:
                self._interrupted = False
                return await super().wait(position, 60.0)

            def interrupt(self) -> None:
                return

        return Deaf(self._handle, stream)


class ClosesLate(MemoryStreamDriver):
    """A wait is waited out, whatever ends meanwhile."""

    def waiter(self, stream: str, group: str | None) -> MemoryWaiter:
        class Deaf(MemoryWaiter):
            def interrupt(self) -> None:
                return

        return Deaf(self._handle, stream)


class DeafToSteps(MemoryStreamDriver):
    """Who waits is not told of some steps: which is what the others say."""

    deaf_to: frozenset[str]

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in {"deaf_to", "_store"} or name not in self.deaf_to:
            return found

        async def silently(*args: Any, **options: Any) -> Any:
            bells, self._store._bells = self._store._bells, []
            version = self._store.version
            try:
                return await found(*args, **options)
            finally:
                self._store._bells, self._store.version = bells, version

        return silently


class DeafToRedrives(DeafToSteps):
    """Who waits is not told what was redriven."""

    deaf_to = frozenset({"take_dead_letters"})


class DeafToSteering(DeafToSteps):
    """Who waits is not told that the group goes on, or where."""

    deaf_to = frozenset({"pause", "seek"})


class DeafToTime(MemoryStreamDriver):
    """Who waits is not told that something has come due."""

    def __init__(self, backend: Any) -> None:
        super().__init__(backend)
        self._store.clock._callbacks.clear()  # type: ignore[attr-defined]  # ManualClock

    def waiter(self, stream: str, group: str | None) -> MemoryWaiter:
        waiter = super().waiter(stream, group)
        waiter._bell = self._handle.runtime._event()  # one that a move of the clock doesn't ring
        return waiter


# --- messages in general -----------------------------------------------------------------------------------------


class SharesGroups(MemoryStreamDriver):
    """All groups of a stream are one."""

    async def open_group(self, stream: str, group: str, start: str) -> bool:
        return await super().open_group(stream, group[:0], start)

    def _group(self, stream: str, group: str) -> Any:
        return self._state(stream).groups.get("")


class DeletesOnAck(MemoryStreamDriver):
    """What one group has done is gone for everybody."""

    async def settle(self, stream: str, group: str, settlements: Sequence[Settlement], **options: Any) -> list[Outcome]:
        state = self._state(stream)
        outcomes = await super().settle(stream, group, settlements, **options)
        for each in settlements:
            if each.action is Action.ACK:
                at = next(at for at, record in enumerate(state.records) if record.id == each.receipt.id)
                state.remove(at, at + 1)
        return outcomes


class Reorders(MemoryStreamDriver):
    """A page of new entries leaves last first."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        fetched = await super().fetch(stream, group, consumer, **options)
        return replace(fetched, claims=fetched.claims[::-1])


class NeverExtends(MemoryStreamDriver):
    """Extending is answered and not done."""

    async def extend(self, stream: str, group: str, receipts: Sequence[Receipt], *, lease: float) -> list[bool]:
        return [True] * len(receipts)

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        self._store.clock.advance(0.2)  # type: ignore[attr-defined]  # ManualClock; a test of renewal waits in real time
        return await super().fetch(stream, group, consumer, **options)


class RevivesLeases(MemoryStreamDriver):
    """A lease that has ended can be extended."""

    async def extend(self, stream: str, group: str, receipts: Sequence[Receipt], *, lease: float) -> list[bool]:
        await super().extend(stream, group, receipts, lease=lease)
        return [True] * len(receipts)
