"""Stream drivers of memory, each broken in one way, that the contract suite must catch."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

import ailf
from ailf.driver import (
    Action,
    Fetched,
    Receipt,
    Record,
    Settlement,
)
from ailf_memory.stream import MemoryStreamDriver, MemoryWaiter


class LosesMessages(MemoryStreamDriver):
    """Every third entry is answered with an id and not kept."""

    added = 0

    async def add(self, stream: str, entries: Sequence[tuple[bytes, Mapping[str, str]]]) -> list[str]:
        ids = await super().add(stream, entries)
        state = self._state(stream)
        for _ in entries:
            type(self).added += 1
            if self.added % 3 == 0:
                state.keys.pop()
                state.records.pop()
        return ids


class DeliversTwice(MemoryStreamDriver):
    """The group's position doesn't move."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        fetched = await super().fetch(stream, group, consumer, **options)
        known = self._state(stream).groups[group]
        known.position = (0, 0)
        known.pending.clear()
        return fetched


class IgnoresLeases(MemoryStreamDriver):
    """A lease never ends by itself."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        return await super().fetch(stream, group, consumer, **{**options, "lease": 1e9})


class SettlesStale(MemoryStreamDriver):
    """Whoever once had a message may settle it."""

    def _mine(self, group: Any, receipt: Receipt) -> Any:
        return group.pending.get(tuple(int(part) for part in receipt.id.split("-")))


class CountsReleases(MemoryStreamDriver):
    """A release counts as an attempt."""

    def _release(self, group: Any, key: Any) -> None:
        self._park(group, key, 0.0)


class AcksOnNack(MemoryStreamDriver):
    """A nack loses the message."""

    async def settle(self, stream: str, group: str, settlements: Sequence[Settlement], **options: Any) -> list[bool]:
        changed = [
            attrs.evolve(each, action=Action.ACK) if each.action is Action.NACK else each for each in settlements
        ]
        return await super().settle(stream, group, changed, **options)


class DropsOnLeave(MemoryStreamDriver):
    """What a consumer held goes with it."""

    async def leave(self, stream: str, group: str, consumer: str) -> None:
        known = self._state(stream).groups.get(group)
        for key, pending in list(known.pending.items() if known else ()):
            if pending.holder == consumer:
                del known.pending[key]  # type: ignore[union-attr]  # it has items


class KeepsOnLeave(MemoryStreamDriver):
    """What a consumer held waits for its lease."""

    async def leave(self, stream: str, group: str, consumer: str) -> None:
        return


class MovesGroups(MemoryStreamDriver):
    """Opening a group again moves it."""

    async def open_group(self, stream: str, group: str, start: str) -> bool:
        made = await super().open_group(stream, group, start)
        self._state(stream).groups[group].position = self._position(self._state(stream), start)
        return made


class StartsLate(MemoryStreamDriver):
    """A new group starts at the end."""

    async def open_group(self, stream: str, group: str, start: str) -> bool:
        return await super().open_group(stream, group, ailf.LATEST if start == ailf.EARLIEST else start)


class LosesDeadLetters(MemoryStreamDriver):
    """What a group gives up on is gone."""

    def _bury(self, state: Any, group: Any, key: Any, reason: str, error: str) -> None:
        del group.pending[key]


class ForgetsHeaders(MemoryStreamDriver):
    """Entries lose their headers."""

    async def add(self, stream: str, entries: Sequence[tuple[bytes, Mapping[str, str]]]) -> list[str]:
        return await super().add(stream, [(body, {}) for body, _ in entries])


class Reorders(MemoryStreamDriver):
    """A page of new entries leaves last first."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        fetched = await super().fetch(stream, group, consumer, **options)
        return attrs.evolve(fetched, claims=fetched.claims[::-1])


class NeverCloses(MemoryStreamDriver):
    """A wait is deaf to the end."""

    def waiter(self, stream: str, group: str | None) -> MemoryWaiter:
        class Deaf(MemoryWaiter):
            async def wait(self, position: Any, timeout: float) -> None:
                self._interrupted = False
                await super().wait(position, 60.0)

            def interrupt(self) -> None:
                return

        return Deaf(self._backend, stream)


class KeepsGroupsSilently(MemoryStreamDriver):
    """A group that vanished is made again and nobody is told."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        return attrs.evolve(await super().fetch(stream, group, consumer, **options), reset=False)


class SharesNames(MemoryStreamDriver):
    """What stands in braces is all that counts of a name."""

    def _state(self, stream: str) -> Any:
        inside = stream.partition("{")[2].partition("}")[0]
        return super()._state("braces" if "{" in stream else inside or stream)


class LeasesNothing(MemoryStreamDriver):
    """A message is for anybody again as soon as it was delivered."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        return await super().fetch(stream, group, consumer, **{**options, "lease": 0.0})


class RevivesLeases(MemoryStreamDriver):
    """A lease that has ended can be extended."""

    async def extend(self, stream: str, group: str, receipts: Sequence[Receipt], *, lease: float) -> list[bool]:
        await super().extend(stream, group, receipts, lease=lease)
        return [True] * len(receipts)


class NeverExtends(MemoryStreamDriver):
    """Extending is answered and not done."""

    async def extend(self, stream: str, group: str, receipts: Sequence[Receipt], *, lease: float) -> list[bool]:
        return [True] * len(receipts)

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        self._store.clock.advance(0.2)  # type: ignore[attr-defined]  # ManualClock; a test of renewal waits in real time
        return await super().fetch(stream, group, consumer, **options)


class NacksAtOnce(MemoryStreamDriver):
    """A nack's delay is forgotten."""

    async def settle(self, stream: str, group: str, settlements: Sequence[Settlement], **options: Any) -> list[bool]:
        return await super().settle(stream, group, [attrs.evolve(each, delay=0.0) for each in settlements], **options)


class TriesForEver(MemoryStreamDriver):
    """No number of deliveries is too many."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        return await super().fetch(stream, group, consumer, **{**options, "max_deliveries": 10**9})

    async def settle(self, stream: str, group: str, settlements: Sequence[Settlement], **_: Any) -> list[bool]:
        return await super().settle(stream, group, settlements, max_deliveries=10**9)


class ForgetsErrors(MemoryStreamDriver):
    """A dead letter doesn't say what went wrong."""

    def _bury(self, state: Any, group: Any, key: Any, reason: str, error: str) -> None:
        super()._bury(state, group, key, reason, "")


class RingsNobody(MemoryStreamDriver):
    """Who waits is not told that something came."""

    def _changed(self, state: Any) -> None:
        return


class ClosesLate(MemoryStreamDriver):
    """A wait is waited out, whatever ends meanwhile."""

    def waiter(self, stream: str, group: str | None) -> MemoryWaiter:
        class Deaf(MemoryWaiter):
            def interrupt(self) -> None:
                return

        return Deaf(self._backend, stream)


class SharesGroups(MemoryStreamDriver):
    """All groups of a stream are one."""

    async def open_group(self, stream: str, group: str, start: str) -> bool:
        return await super().open_group(stream, group[:0], start)

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        return await super().fetch(stream, group[:0], consumer, **options)

    async def settle(self, stream: str, group: str, settlements: Sequence[Settlement], **options: Any) -> list[bool]:
        return await super().settle(stream, group[:0], settlements, **options)

    async def leave(self, stream: str, group: str, consumer: str) -> None:
        await super().leave(stream, group[:0], consumer)

    async def dead_letters(self, stream: str, group: str, after: str, limit: int) -> list[ailf.DeadLetter]:
        return await super().dead_letters(stream, group[:0], after, limit)


class DeletesOnAck(MemoryStreamDriver):
    """What one group has done is gone for everybody."""

    async def settle(self, stream: str, group: str, settlements: Sequence[Settlement], **options: Any) -> list[bool]:
        state = self._state(stream)
        done = await super().settle(stream, group, settlements, **options)
        for each in settlements:
            if each.action is Action.ACK:
                index = next(at for at, record in enumerate(state.records) if record.id == each.receipt.id)
                del state.keys[index], state.records[index]
        return done


class ReadsTwice(MemoryStreamDriver):
    """Reading on begins with what was read last."""

    async def read(self, stream: str, start: str, end: str, limit: int, *, after: bool = False) -> list[Record]:
        return await super().read(stream, start, end, limit)


class CutsBodies(MemoryStreamDriver):
    """A body ends at its first zero byte."""

    async def add(self, stream: str, entries: Sequence[tuple[bytes, Mapping[str, str]]]) -> list[str]:
        return await super().add(stream, [(body.partition(b"\0")[0], headers) for body, headers in entries])


class MixesReplies(MemoryStreamDriver):
    """Replies wait in one queue, where a caller that was cancelled leaves its own to the next one."""

    def __init__(self, backend: Any) -> None:
        super().__init__(backend)
        self._replies: list[list[str]] = []

    async def add(self, stream: str, entries: Sequence[tuple[bytes, Mapping[str, str]]]) -> list[str]:
        self._replies.append(await super().add(stream, entries))
        await asyncio.sleep(0)
        return self._replies.pop(0)
