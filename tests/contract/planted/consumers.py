"""Groups of memory streams with planted bugs: consumers, positions, pauses, retention, info."""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

import ailf
from ailf.driver import Fetched
from ailf.values import MessageInfo, MessageState
from ailf_memory.state.entries import key_of
from ailf_memory.state.group import GroupState
from ailf_memory.stream import MemoryStreamDriver
from tests.contract.planted.base import caught_by

# --- consumers ---------------------------------------------------------------------------------------------------


@caught_by("backend.test_close.test_close_gives_back", "stream.test_stream.test_leaving_drops_nothing")
class DropsMessagesOnLeave(MemoryStreamDriver):
    """The messages of a consumer that leaves are dropped."""

    async def leave(self, stream: str, group: str, consumer: str) -> None:
        state = self._group(stream, group)
        for name, out in list(state.pending.items() if state else ()):
            if state and out.holder == consumer:
                state.finish(name, self._now())


@caught_by("backend.test_close.test_close_gives_back")
class KeepsLeasesOnLeave(MemoryStreamDriver):
    """The messages of a consumer that leaves stay leased until their leases end."""

    async def leave(self, stream: str, group: str, consumer: str) -> None:
        return


@caught_by(
    "stream.test_takeover.test_a_dead_consumer",
    "stream.test_takeover.test_heartbeats",
    "stream.test_takeover.test_heartbeats_end_with_the_work",
)
class NeverExpiresConsumers(MemoryStreamDriver):
    """A heartbeat counts for ever."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        return await super().fetch(stream, group, consumer, **{**options, "alive": 1e9})

    async def heartbeat(self, stream: str, group: str, consumers: Sequence[str], *, alive: float) -> None:
        await super().heartbeat(stream, group, consumers, alive=1e9)


@caught_by("stream.test_takeover.test_heartbeats", "stream.test_takeover.test_a_slow_consumer_keeps_its_messages")
class IgnoresHeartbeats(MemoryStreamDriver):
    """Only a fetch is a heartbeat."""

    async def heartbeat(self, stream: str, group: str, consumers: Sequence[str], *, alive: float) -> None:
        return


@caught_by("stream.test_takeover.test_a_dead_consumer")
class DropsMessagesOfDeadConsumers(GroupState):
    """The messages of a dead consumer are dropped."""

    def _end_leases(self, now_ms: int) -> None:
        for name, out in list(self.pending.items()):
            if out.holder is not None and self.alive.get(out.holder, now_ms + 1) <= now_ms:
                self.finish(name, now_ms)
        super()._end_leases(now_ms)


@caught_by("stream.test_takeover.test_a_dead_consumer")
class UncountsDeliveriesToDeadConsumers(GroupState):
    """A delivery to a consumer that died counts no attempt."""

    def _end_leases(self, now_ms: int) -> None:
        for out in self.pending.values():
            out.attempts -= out.holder is not None and self.alive.get(out.holder, now_ms + 1) <= now_ms
        super()._end_leases(now_ms)


@caught_by("stream.test_takeover.test_heartbeats")
class ListsDeadConsumers(GroupState):
    """A dead consumer is still listed."""

    def _end_leases(self, now_ms: int) -> None:
        died = {name: until_ms for name, until_ms in self.alive.items() if until_ms <= now_ms}
        super()._end_leases(now_ms)
        self.alive.update(dict.fromkeys(died, now_ms + 10**9))


# --- positions and pauses ----------------------------------------------------------------------------------------


@caught_by("stream.test_stream.test_group_starts")
class MovesGroupsOnOpen(MemoryStreamDriver):
    """Opening a group again moves it."""

    async def open_group(self, stream: str, group: str, start: str) -> bool:
        made = await super().open_group(stream, group, start)
        state = self._state(stream)
        state.groups[group].position = state.locate(start)
        return made


@caught_by("stream.test_stream.test_group_starts")
class StartsGroupsAtTheEnd(MemoryStreamDriver):
    """A new group starts at the end."""

    async def open_group(self, stream: str, group: str, start: str) -> bool:
        return await super().open_group(stream, group, ailf.LATEST if start == ailf.EARLIEST else start)


@caught_by("stream.test_stream.test_a_vanished_group_is_made_again")
class HidesGroupResets(MemoryStreamDriver):
    """A group that vanished is made again without an event."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        return replace(await super().fetch(stream, group, consumer, **options), reset=False)


@caught_by("stream.test_events.test_one_event_for_each_reset")
class RepeatsGroupResets(MemoryStreamDriver):
    """Each consumer gets its own event for the same reset."""

    vanished = False

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        fetched = await super().fetch(stream, group, consumer, **options)
        type(self).vanished |= fetched.reset
        return replace(fetched, reset=self.vanished)


@caught_by("stream.test_positions.test_seek", where="latest")
@caught_by("stream.test_positions.test_dead_letters_survive_a_seek")
class SeekKeepsLeases(GroupState):
    """A seek moves the group and keeps its pending messages."""

    def seek(self, position: Any, now_ms: int) -> list[object]:
        self.position = position
        return []


@caught_by(
    "stream.test_positions.test_dead_letters_survive_a_seek",
    "stream.test_positions.test_an_entry_and_its_redriven_letter",
)
class SeekLosesRedrivenMessages(GroupState):
    """A seek drops redriven messages."""

    def seek(self, position: Any, now_ms: int) -> list[object]:
        self._redriven.clear()
        return super().seek(position, now_ms)


@caught_by("stream.test_positions.test_dead_letters_survive_a_seek")
class SeekLosesDeadLetters(GroupState):
    """A seek drops the dead letters."""

    def seek(self, position: Any, now_ms: int) -> list[object]:
        self.dead.clear()
        return super().seek(position, now_ms)


@caught_by("stream.test_positions.test_pause")
class IgnoresPauses(MemoryStreamDriver):
    """A paused group still delivers."""

    async def pause(self, stream: str, group: str, *, paused: bool) -> bool:
        return True


@caught_by("stream.test_positions.test_steering_a_missing_group", there=True)
@caught_by("stream.test_positions.test_steering_a_missing_group", there=False)
class SeekMakesGroups(MemoryStreamDriver):
    """A seek makes a missing group."""

    async def seek(self, stream: str, group: str, position: str) -> bool:
        await self.open_group(stream, group, position)
        return await super().seek(stream, group, position)


@caught_by("stream.test_positions.test_steering_a_missing_group", there=False)
class PausesMissingGroups(MemoryStreamDriver):
    """Pausing a missing group succeeds and does nothing."""

    async def pause(self, stream: str, group: str, *, paused: bool) -> bool:
        await super().pause(stream, group, paused=paused)
        return True


@caught_by("stream.test_positions.test_a_pause_makes_no_dead_letters")
class DeadLettersWhilePaused(GroupState):
    """A paused group still makes dead letters."""

    def fetch(self, consumer: str, count: int, **options: Any) -> Fetched:
        if self.paused:
            for name, out in list(self.pending.items()):
                if out.due_ms <= options["now_ms"] and out.spent(options["max_deliveries"]):
                    self.make_dead_letter(name, "max_deliveries", "", options["now_ms"])
        return super().fetch(consumer, count, **options)


@caught_by("stream.test_positions.test_delete_a_group")
class KeepsDeadLettersOfDeletedGroups(MemoryStreamDriver):
    """The dead letters of a group stay when it is deleted."""

    async def delete_group(self, stream: str, group: str) -> None:
        state = self._state(stream)
        before = state.groups.pop(group, None)
        if before is not None:
            state.open(group).dead = before.dead


# --- retention ---------------------------------------------------------------------------------------------------


@caught_by("stream.test_retention.test_unsettled_entries_stay", state="held")
@caught_by("stream.test_retention.test_unsettled_entries_stay", state="scheduled")
@caught_by("stream.test_retention.test_queued_entries_stay")
class TrimsPendingEntries(GroupState):
    """An entry counts as settled once the group has read it."""

    def settled(self, key: Any, name: str) -> bool:
        return bool(key <= self.position)


class _TrimsUnreadEntries(GroupState):
    """An entry that the group has not read counts as settled."""

    def settled(self, key: Any, name: str) -> bool:
        return name not in self.pending


@caught_by("stream.test_retention.test_unsettled_entries_stay", state="unread")
@caught_by("stream.test_retention.test_two_groups")
class TrimsUnreadEntries(MemoryStreamDriver):
    """An entry that a group has not read counts as settled, in every method."""

    group_class = _TrimsUnreadEntries

    def _state(self, stream: str) -> Any:
        state = super()._state(stream)
        state._read = lambda _: len(state.keys)  # type: ignore[method-assign]
        return state


@caught_by("stream.test_retention.test_hard_removes_pending_entries")
class DeliversTrimmedEntries(GroupState):
    """An entry that was trimmed while it was pending is still delivered."""

    def on_entry_removed(self, name: str, now_ms: int) -> None:
        return


# --- info --------------------------------------------------------------------------------------------------------


@caught_by("stream.test_info.test_info_of_a_missing_group")
class InfoMakesGroups(MemoryStreamDriver):
    """Asking for the info of a missing group makes it."""

    async def info(self, stream: str, group: str) -> ailf.GroupInfo:
        await self.open_group(stream, group, ailf.EARLIEST)
        return await super().info(stream, group)


@caught_by("stream.test_info.test_info_of_a_missing_group")
class InfoShowsMissingGroups(MemoryStreamDriver):
    """The info of every group says that it exists."""

    async def info(self, stream: str, group: str) -> ailf.GroupInfo:
        return replace(await super().info(stream, group), exists=True)


@caught_by("stream.test_inspect.test_inspect_what_doesnt_exist")
class InspectMakesGroups(MemoryStreamDriver):
    """Inspecting an entry in a missing group makes the group."""

    async def inspect(self, stream: str, group: str, entry_id: str) -> MessageInfo | None:
        await self.open_group(stream, group, ailf.EARLIEST)
        return await super().inspect(stream, group, entry_id)


@caught_by("stream.test_inspect.test_inspect_in_every_state", "stream.test_inspect.test_inspect_many_redriven")
class InspectForgetsRedriven(GroupState):
    """A message that was redriven counts as settled."""

    def inspect(self, entry_id: str, now_ms: int) -> MessageInfo:
        if entry_id not in self.pending and self.position >= key_of(entry_id):
            return MessageInfo(MessageState.SETTLED)
        return super().inspect(entry_id, now_ms)


@caught_by("stream.test_inspect.test_inspect_in_every_state")
class InspectForgetsTheLease(GroupState):
    """The end of the lease isn't told."""

    def inspect(self, entry_id: str, now_ms: int) -> MessageInfo:
        return replace(super().inspect(entry_id, now_ms), due=None)


@caught_by("stream.test_inspect.test_inspect_after_a_seek", "stream.test_inspect.test_inspect_in_every_state")
class InspectSaysSettled(GroupState):
    """An entry that the group has not read counts as settled."""

    def inspect(self, entry_id: str, now_ms: int) -> MessageInfo:
        found = super().inspect(entry_id, now_ms)
        return MessageInfo(MessageState.SETTLED) if found.state is MessageState.UNREAD else found


class WrongInfo(GroupState):
    """A group whose info is wrong; subclasses define the wrong fields."""

    def wrong(self, info: ailf.GroupInfo) -> dict[str, Any]:
        """Return the wrong fields."""
        raise NotImplementedError

    def info(self, now_ms: int) -> ailf.GroupInfo:
        info = super().info(now_ms)
        return replace(info, **self.wrong(info))


@caught_by("stream.test_info.test_counts_after_anything")
class WrongLag(WrongInfo):
    """The lag counts all entries added since, as a server does, although some were removed."""

    def wrong(self, info: ailf.GroupInfo) -> dict[str, Any]:
        self.longest = max(getattr(self, "longest", 0), info.length)
        return {"lag": (info.lag or 0) + self.longest - info.length}


@caught_by("stream.test_info.test_the_lag_of_many", "stream.test_info.test_info_in_every_state")
class UnknownLag(WrongInfo):
    """The lag is never known."""

    def wrong(self, info: ailf.GroupInfo) -> dict[str, Any]:
        return {"lag": None}


@caught_by(
    "stream.test_info.test_counts_after_anything",
    "stream.test_info.test_info_in_every_state",
    "stream.test_info.test_info_of_queued_messages",
)
class WrongPending(WrongInfo):
    """Delayed messages count as pending."""

    def wrong(self, info: ailf.GroupInfo) -> dict[str, Any]:
        return {"pending": info.pending + info.delayed}


@caught_by("stream.test_info.test_info_in_every_state")
class WrongConsumers(WrongInfo):
    """Only consumers with pending messages are listed."""

    def wrong(self, info: ailf.GroupInfo) -> dict[str, Any]:
        return {"consumers": {name: count for name, count in info.consumers.items() if count}}


@caught_by("stream.test_info.test_the_oldest")
class WrongOldest(WrongInfo):
    """Unread entries don't count for the oldest."""

    def wrong(self, info: ailf.GroupInfo) -> dict[str, Any]:
        return {"oldest": info.oldest if self.pending else None}
