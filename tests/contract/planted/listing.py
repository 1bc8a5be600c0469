"""Memory backends with planted bugs in listing."""

import fnmatch
from typing import Any

from msgspec.structs import replace

import ailf
from ailf.driver import ConsumerState
from ailf_memory.lock import MemoryLockDriver
from ailf_memory.pubsub import MemoryPubSubDriver
from ailf_memory.ratelimit import MemoryRateLimiterDriver
from ailf_memory.stream import MemoryStreamDriver
from tests.contract.planted.base import caught_by


@caught_by("listing.test_listing.test_streams_with_a_prefix")
class TakesPrefixesForPatterns(MemoryStreamDriver):
    """A prefix is a pattern: its characters don't stand for themselves."""

    async def list_streams(self, prefix: str, cursor: str, limit: int) -> ailf.Page[str]:
        page = await super().list_streams("", cursor, limit)
        return replace(page, items=tuple(each for each in page.items if fnmatch.fnmatchcase(each, f"{prefix}*")))


@caught_by("listing.test_listing.test_changes_between_pages")
class CountsPositions(MemoryStreamDriver):
    """A cursor is the number of names before it, so that a deleted one hides another."""

    async def list_streams(self, prefix: str, cursor: str, limit: int) -> ailf.Page[str]:
        begin = int(cursor.partition(":")[2] or "0")
        names: list[str] = []
        page: ailf.Page[str] = ailf.Page(cursor="streams:")
        while page.cursor:
            page = await super().list_streams(prefix, page.cursor, 1000)
            names += page.items
        end = begin + limit
        return ailf.Page(tuple(names[begin:end]), f"streams:{end}" if end < len(names) else "")


@caught_by("listing.test_listing.test_pages")
class ExceedsPages(MemoryStreamDriver):
    """A page has more items than were asked for."""

    async def list_streams(self, prefix: str, cursor: str, limit: int) -> ailf.Page[str]:
        return await super().list_streams(prefix, cursor, limit + 1)


@caught_by("listing.test_listing.test_cursors_that_are_none", "listing.test_listing.test_a_cursor_of_another_kind")
class TakesAnyCursor(MemoryLockDriver):
    """A text that is no cursor begins anew."""

    async def list_locks(self, prefix: str, cursor: str, limit: int) -> ailf.Page[ailf.HeldLock]:
        return await super().list_locks(prefix, cursor if cursor.startswith("locks:") else "", limit)


@caught_by("listing.test_listing.test_partitions_are_not_listed")
class ListsPartitions(MemoryStreamDriver):
    """The partitions of a stream are listed in its place."""

    async def list_streams(self, prefix: str, cursor: str, limit: int) -> ailf.Page[str]:
        return ailf.Page(tuple(name for name, state in self._store.streams.items() if state.used))


@caught_by("listing.test_listing.test_what_is_a_stream")
class ListsWhatWasAsked(MemoryStreamDriver):
    """A stream is listed because a program asked for it."""

    async def list_streams(self, prefix: str, cursor: str, limit: int) -> ailf.Page[str]:
        return ailf.Page(tuple(self._store.streams))


@caught_by("listing.test_listing.test_held_locks")
class ListsFreeLocks(MemoryLockDriver):
    """A lock is listed although it has no holder."""

    async def list_locks(self, prefix: str, cursor: str, limit: int) -> ailf.Page[ailf.HeldLock]:
        with self._store.lock:
            infos = [(name, self._inspect(name, self._now())) for name in self._store.locks]
        return ailf.Page(tuple(ailf.HeldLock(name, info.holders, info.waiting) for name, info in infos))


@caught_by("listing.test_listing.test_waiters_of_a_held_lock")
class ForgetsWaiters(MemoryLockDriver):
    """The waiters of a held lock are not counted."""

    async def list_locks(self, prefix: str, cursor: str, limit: int) -> ailf.Page[ailf.HeldLock]:
        page = await super().list_locks(prefix, cursor, limit)
        return replace(page, items=tuple(replace(each, waiting=0) for each in page.items))


@caught_by("listing.test_listing.test_charged_keys")
class ListsFullKeys(MemoryRateLimiterDriver):
    """A key is listed although it is at full capacity."""

    def _is_charged(self, name: ailf.LimiterName, now_ms: int) -> bool:
        return True


@caught_by("listing.test_members.test_groups_of_a_stream", partitions=None)
@caught_by("listing.test_members.test_groups_of_a_stream", partitions=4)
class ListsGroupsInAnyOrder(MemoryStreamDriver):
    """Groups come in the order in which they were made."""

    async def list_groups(self, stream: str, after: str, limit: int) -> list[str]:
        state = self._store.streams.get(stream)
        return [] if state is None else [name for name in state.groups if name > after][:limit]


@caught_by("listing.test_members.test_state_of_a_stream", partitions=None)
class TellsTheWrongEnd(MemoryStreamDriver):
    """The last entry of a stream is said to be the first."""

    async def stream_info(self, stream: str) -> ailf.StreamInfo:
        info = await super().stream_info(stream)
        return replace(info, last_id=info.first_id)


class ChangesConsumers(MemoryStreamDriver):
    """Consumers are listed wrongly; subclasses define how."""

    changes: dict[str, Any]

    async def list_consumers(self, stream: str, group: str, after: str, limit: int) -> list[ConsumerState]:
        return [replace(each, **self.changes) for each in await super().list_consumers(stream, group, after, limit)]


@caught_by("listing.test_members.test_consumers_of_a_group", partitions=None)
class ForgetsWhatConsumersHold(ChangesConsumers):
    """A consumer is listed as holding nothing."""

    changes = {"in_hand": 0}  # noqa: RUF012 - it is never changed


@caught_by("listing.test_members.test_consumers_of_dead_processes")
class ListsTheDeadAsAlive(ChangesConsumers):
    """A consumer whose process died is listed as alive."""

    changes = {"alive": 1.0}  # noqa: RUF012 - as above


@caught_by("listing.test_members.test_channels_with_subscribers")
class CountsOneSubscriber(MemoryPubSubDriver):
    """A channel has one subscriber, however many there are."""

    async def channels(self, prefix: str, *, sharded: bool = False) -> list[ailf.ChannelInfo]:
        return [replace(each, subscribers=1) for each in await super().channels(prefix, sharded=sharded)]


@caught_by("listing.test_members.test_list_of_sharded_channels")
class MixesShardedChannels(MemoryPubSubDriver):
    """Sharded channels are listed with the ordinary ones."""

    async def channels(self, prefix: str, *, sharded: bool = False) -> list[ailf.ChannelInfo]:
        return [*await super().channels(prefix, sharded=False), *await super().channels(prefix, sharded=True)]
