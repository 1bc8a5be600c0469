"""Groups of memory streams, and their drivers, each broken in one way: consumers, steering, retention, info."""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

import ailf
from ailf.driver import Fetched
from ailf_memory.state.group import GroupState
from ailf_memory.stream import MemoryStreamDriver

# --- consumers ---------------------------------------------------------------------------------------------------


class DropsOnLeave(MemoryStreamDriver):
    """What a consumer held goes with it."""

    async def leave(self, stream: str, group: str, consumer: str) -> None:
        known = self._group(stream, group)
        for name, out in list(known.pending.items() if known else ()):
            if known and out.holder == consumer:
                known.finish(name, self._now())


class KeepsOnLeave(MemoryStreamDriver):
    """What a consumer held waits for its lease."""

    async def leave(self, stream: str, group: str, consumer: str) -> None:
        return


class NeverDie(MemoryStreamDriver):
    """One sign of life counts for ever."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        return await super().fetch(stream, group, consumer, **{**options, "alive": 1e9})

    async def heartbeat(self, stream: str, group: str, consumers: Sequence[str], *, alive: float) -> None:
        await super().heartbeat(stream, group, consumers, alive=1e9)


class IgnoresSignsOfLife(MemoryStreamDriver):
    """Only fetching is a sign of life."""

    async def heartbeat(self, stream: str, group: str, consumers: Sequence[str], *, alive: float) -> None:
        return


class LosesWorkOfTheDead(GroupState):
    """What a dead consumer held is nobody's."""

    def _end_leases(self, now_ms: int) -> None:
        for name, out in list(self.pending.items()):
            if out.holder is not None and self.alive.get(out.holder, now_ms + 1) <= now_ms:
                self.finish(name, now_ms)
        super()._end_leases(now_ms)


class ForgivesTheDead(GroupState):
    """What a dead consumer held was not delivered."""

    def _end_leases(self, now_ms: int) -> None:
        for out in self.pending.values():
            out.attempts -= out.holder is not None and self.alive.get(out.holder, now_ms + 1) <= now_ms
        super()._end_leases(now_ms)


class RemembersTheDead(GroupState):
    """A dead consumer is still listed."""

    def _end_leases(self, now_ms: int) -> None:
        died = {name: until_ms for name, until_ms in self.alive.items() if until_ms <= now_ms}
        super()._end_leases(now_ms)
        self.alive.update(dict.fromkeys(died, now_ms + 10**9))


# --- steering ----------------------------------------------------------------------------------------------------


class MovesGroups(MemoryStreamDriver):
    """Opening a group again moves it."""

    async def open_group(self, stream: str, group: str, start: str) -> bool:
        made = await super().open_group(stream, group, start)
        state = self._state(stream)
        state.groups[group].position = state.locate(start)
        return made


class StartsLate(MemoryStreamDriver):
    """A new group starts at the end."""

    async def open_group(self, stream: str, group: str, start: str) -> bool:
        return await super().open_group(stream, group, ailf.LATEST if start == ailf.EARLIEST else start)


class KeepsGroupsSilently(MemoryStreamDriver):
    """A group that vanished is made again and nobody is told."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        return replace(await super().fetch(stream, group, consumer, **options), reset=False)


class TellsResetsTwice(MemoryStreamDriver):
    """Each consumer is told anew that the group had vanished."""

    vanished = False

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        fetched = await super().fetch(stream, group, consumer, **options)
        type(self).vanished |= fetched.reset
        return replace(fetched, reset=self.vanished)


class SeeksSoftly(GroupState):
    """A seek moves the group and leaves what is out."""

    def seek(self, position: Any, now_ms: int) -> None:
        self.position = position


class SeekLosesRedriven(GroupState):
    """A seek forgets what was redriven."""

    def seek(self, position: Any, now_ms: int) -> None:
        self._clear()
        self.position = position


class SeekLosesLetters(GroupState):
    """A seek forgets the dead letters."""

    def seek(self, position: Any, now_ms: int) -> None:
        super().seek(position, now_ms)
        self.dead.clear()


class IgnoresPauses(MemoryStreamDriver):
    """A paused group goes on."""

    async def pause(self, stream: str, group: str, *, paused: bool) -> bool:
        return True


class SeeksTheMissing(MemoryStreamDriver):
    """A seek makes the group that it is to move."""

    async def seek(self, stream: str, group: str, position: str) -> bool:
        await self.open_group(stream, group, position)
        return await super().seek(stream, group, position)


class PausesTheMissing(MemoryStreamDriver):
    """A group that is missing can be paused, and nothing happens."""

    async def pause(self, stream: str, group: str, *, paused: bool) -> bool:
        await super().pause(stream, group, paused=paused)
        return True


class BuriesWhilePaused(GroupState):
    """A paused group still gives up on messages."""

    def fetch(self, consumer: str, count: int, **options: Any) -> Fetched:
        if self.paused:
            for name, out in list(self.pending.items()):
                if out.due_ms <= options["now_ms"] and out.spent(options["max_deliveries"]):
                    self.bury(name, "max_deliveries", "", options["now_ms"])
        return super().fetch(consumer, count, **options)


class DeletesNoLetters(MemoryStreamDriver):
    """The dead letters of a group outlive it."""

    async def delete_group(self, stream: str, group: str) -> None:
        state = self._state(stream)
        before = state.groups.pop(group, None)
        if before is not None:
            state.open(group).dead = before.dead


# --- what goes ---------------------------------------------------------------------------------------------------


class SparesOnlyUnread(GroupState):
    """What a group has read counts as settled."""

    def settled(self, key: Any, name: str) -> bool:
        return bool(key <= self.position)


class _SparesOnlyOut(GroupState):
    """What a group has not read counts as settled."""

    def settled(self, key: Any, name: str) -> bool:
        return name not in self.pending


class SparesOnlyRead(MemoryStreamDriver):
    """What a group has not read counts as settled, wherever it is asked for."""

    group_class = _SparesOnlyOut

    def _state(self, stream: str) -> Any:
        state = super()._state(stream)
        state._read = lambda _: len(state.keys)  # type: ignore[method-assign]
        return state


class KeepsTheGone(GroupState):
    """What was taken from the stream still comes to those who had read it."""

    def vanish(self, name: str, now_ms: int) -> None:
        return


# --- info --------------------------------------------------------------------------------------------------------


class MistakenInfo(MemoryStreamDriver):
    """Info makes the group that it is asked for."""

    async def info(self, stream: str, group: str) -> ailf.GroupInfo:
        await self.open_group(stream, group, ailf.EARLIEST)
        return await super().info(stream, group)


class SaysItExists(MemoryStreamDriver):
    """Every group exists."""

    async def info(self, stream: str, group: str) -> ailf.GroupInfo:
        return replace(await super().info(stream, group), exists=True)


class CountsWrong(GroupState):
    """Something that info says is wrong: what is in the names of the others."""

    def wrong(self, info: ailf.GroupInfo) -> dict[str, Any]:
        """Return what is wrong."""
        raise NotImplementedError

    def info(self, now_ms: int) -> ailf.GroupInfo:
        info = super().info(now_ms)
        return replace(info, **self.wrong(info))


class WrongLag(CountsWrong):
    """The lag is what Redis would say: how many entries were added since, whatever was removed."""

    def wrong(self, info: ailf.GroupInfo) -> dict[str, Any]:
        self.longest = max(getattr(self, "longest", 0), info.length)
        return {"lag": (info.lag or 0) + self.longest - info.length}


class WrongPending(CountsWrong):
    """What waits is counted as if somebody had it."""

    def wrong(self, info: ailf.GroupInfo) -> dict[str, Any]:
        return {"pending": info.pending + info.delayed}


class WrongConsumers(CountsWrong):
    """Only those who have something are listed."""

    def wrong(self, info: ailf.GroupInfo) -> dict[str, Any]:
        return {"consumers": {name: count for name, count in info.consumers.items() if count}}


class WrongOldest(CountsWrong):
    """Only what is out counts for the oldest."""

    def wrong(self, info: ailf.GroupInfo) -> dict[str, Any]:
        return {"oldest": info.oldest if self.pending else None}
