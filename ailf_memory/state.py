"""One stream: its entries, its groups, and which messages were added once. Pure: *now* is an argument."""

import heapq
from typing import Final

import attrs
from msgspec.structs import replace

from ailf.checks import to_ms
from ailf.driver import Draft
from ailf.values import Added, GroupInfo, Retention, Trimmed
from ailf_memory.entries import FIRST, Entries, Key, key_of
from ailf_memory.group import GroupState

__all__ = ["StreamState"]


@attrs.frozen
class Once:
    """A message that was added under a dedup id.

    Attributes:
        entry_id: The entry.
        token: Which call added it.
        until_ms: When the dedup id is free again.
    """

    entry_id: str
    token: str
    until_ms: int


_NOTHING: Final = Trimmed(0, 0)


class StreamState(Entries):
    """One stream.

    Arguments:
        group_class: What its groups are.

    Attributes:
        groups: Its groups by name.
        evicted: How many entries were removed that a group had not settled.
    """

    def __init__(self, group_class: type[GroupState] = GroupState) -> None:
        super().__init__()
        self.groups: dict[str, GroupState] = {}
        self.evicted = 0
        self._group_class = group_class
        self._once: dict[str, Once] = {}
        self._ends: list[tuple[int, str]] = []  # a heap: when which dedup id is free again

    # --- groups

    def open(self, group: str, position: Key = FIRST) -> GroupState:
        """Make a group."""
        made = self.groups[group] = self._group_class(self, position)
        return made

    def info(self, group: str, now_ms: int) -> GroupInfo:
        """Return how a group stands, which may be missing."""
        known = self.groups.get(group)
        if known is None:
            return GroupInfo(length=len(self.keys), lag=len(self.keys), exists=False)
        return replace(known.info(now_ms), evicted=self.evicted)

    # --- what goes

    def cancel(self, entry_id: str, now_ms: int) -> bool:
        """Remove an entry whose time has not come."""
        key = key_of(entry_id)
        if not self.parked(key, now_ms):
            return False
        end = self.after(key)
        self._drop(end - 1, end, now_ms)
        return True

    def _drop(self, first: int, end: int, now_ms: int) -> None:
        for entry_id in self.remove(first, end):
            for group in self.groups.values():
                group.vanish(entry_id, now_ms)

    def trim(self, retention: Retention, now_ms: int, *, room: int = 0) -> Trimmed:
        """Remove the oldest entries: the old ones, and as many as are too many, with room for so many more."""
        excess = 0 if retention.max_len is None else len(self.keys) + room - retention.max_len
        from_ms = 0 if retention.max_age is None else now_ms - to_ms(retention.max_age)
        if excess <= 0 and (not from_ms or not self.keys or self.keys[0][0] >= from_ms):
            return _NOTHING
        end = unsettled = 0
        for key, record in zip(self.keys, self.records, strict=True):
            if end >= excess and key[0] >= from_ms:
                break
            settled = all(group.settled(key, record.id) for group in self.groups.values())
            if not (settled or retention.hard):
                break
            end += 1
            unsettled += not settled
        self._drop(0, end, now_ms)
        self.evicted += unsettled
        return Trimmed(end, unsettled)

    def make_room(self, count: int, retention: Retention, now_ms: int) -> bool:
        """Trim before so many are added; return whether there is room for them."""
        most = retention.max_len
        if most is not None and count > most:
            return False
        self.trim(retention, now_ms, room=count)
        return most is None or len(self.keys) + count <= most

    # --- adding once

    def known(self, dedup_id: str, token: str, now_ms: int) -> Added | None:
        """Return what was added under this id within its window; to the call that did it, as it was told then."""
        while self._ends and self._ends[0][0] <= now_ms:
            del self._once[heapq.heappop(self._ends)[1]]
        once = self._once.get(dedup_id)
        return None if once is None else Added(once.entry_id, duplicate=once.token != token)

    def append_once(self, draft: Draft, *, dedup_id: str, token: str, window: float, now_ms: int) -> Added:
        """Add an entry under an id that is not known."""
        until_ms = now_ms + to_ms(window)
        once = self._once[dedup_id] = Once(self.append(draft, now_ms), token, until_ms)
        heapq.heappush(self._ends, (until_ms, dedup_id))
        return Added(once.entry_id, duplicate=False)
