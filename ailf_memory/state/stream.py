"""The state of one stream: its entries, its groups, its dedup ids. Pure: *now* is an argument."""

import heapq
from collections.abc import Iterator, Sequence
from typing import Final

import attrs
import msgspec
from msgspec.structs import replace

from ailf.checks import to_ms
from ailf.driver import Draft, Swept
from ailf.values import Added, GroupInfo, Retention, StreamInfo
from ailf_memory.state.entries import FIRST, Entries, Key, key_of, text_of
from ailf_memory.state.group import GroupState

__all__ = ["StreamState"]


@attrs.frozen
class Dedup:
    """A dedup id in its window.

    Attributes:
        entry_id: The id of the entry that was added under it.
        token: The token of the call that added the entry.
        until_ms: The end of the window.
        cancelled: Whether the entry was cancelled. The dedup id is free then, but not for a repetition of that call.
    """

    entry_id: str
    token: str
    until_ms: int
    cancelled: bool = False


_NOTHING: Final = Swept(0, 0), True

FORGOTTEN: Final = 4
"""An add under a dedup id forgets at most this many of those whose windows have ended: more than one, so that it gets
to the last of them."""

PAGE: Final = 100
"""One step of a trim scans at most this many entries that stay, and removes at most this many more than it adds."""


def _near(indices: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield the indices in parts, within which at most `PAGE` other indices lie between two."""
    first = 0
    for at in range(1, len(indices)):
        if indices[at] - indices[at - 1] > PAGE:
            yield indices[first:at]
            first = at
    yield indices[first:]


class TrimScan(msgspec.Struct, frozen=True):
    """The result of a scan for entries to remove.

    Attributes:
        removable: The indices of these entries.
        after: The key after which the next scan continues behind unsettled entries; None for the first of these.
        enough: Whether these are all that the retention wants to remove.
        complete: Whether all entries that may be removed were scanned.
    """

    removable: list[int]
    after: Key | None
    enough: bool = False
    complete: bool = False


class StreamState(Entries):
    """One stream.

    Arguments:
        group_class: The class of its groups.

    Attributes:
        groups: The groups by name.
        evicted: The number of entries that were removed before all groups had settled them.
        partitions: The number of partitions that was declared; None before that.
        version: The version of the store at its last change.
    """

    def __init__(self, group_class: type[GroupState] = GroupState) -> None:
        super().__init__()
        self.groups: dict[str, GroupState] = {}
        self.evicted = 0
        self.partitions: int | None = None
        self.version = 0
        self._group_class = group_class
        self._cursor: Key | None = None  # where the next add continues to scan, behind unsettled entries
        self._once: dict[str, Dedup] = {}
        self._ends: list[tuple[int, str]] = []  # a heap: the ends of windows, with their dedup ids

    def declare(self, partitions: int | None) -> int | None:
        """Return the declared number of partitions; declare ``partitions``, unless that is None, if none is.

        A stream that was used before counts as 1.
        """
        if self.partitions is not None:
            return self.partitions
        if partitions is None:
            return 1 if self.used else None
        self.partitions = 1 if self.used else partitions
        return self.partitions

    @property
    def used(self) -> bool:
        """Whether it has had an entry or has a group."""
        return self.last != FIRST or bool(self.groups)

    @property
    def listed(self) -> bool:
        """Whether it is listed: it is used and no partition of another one, or has partitions."""
        return self.partitions > 1 or (self.partitions == 1 and self.used) if self.partitions is not None else self.used

    def summary(self, name: str) -> StreamInfo:
        """Return its state; `name` is its name."""
        if not self.keys:
            return StreamInfo(name, groups=len(self.groups), entries_added=self.added)
        return StreamInfo(
            name,
            length=len(self.keys),
            first_id=self.records[0].id,
            last_id=self.records[-1].id,
            added=self.keys[-1][0] / 1000,
            groups=len(self.groups),
            entries_added=self.added,
        )

    # --- groups

    def open(self, group: str, position: Key = FIRST) -> GroupState:
        """Create a group."""
        state = self.groups[group] = self._group_class(self, position)
        return state

    def info(self, group: str, now_ms: int) -> GroupInfo:
        """Return the state of a group, which may be missing."""
        state = self.groups.get(group)
        if state is None:
            return GroupInfo(length=len(self.keys), lag=len(self.keys), exists=False)
        return replace(state.info(now_ms), evicted=self.evicted)

    # --- removing entries

    def cancel(self, entry_id: str, now_ms: int) -> bool:
        """Remove an entry whose time has not come, and free its dedup id; return False for any other entry."""
        key = key_of(entry_id)
        if not self.parked(key, now_ms):
            return False
        dedup_id = self.terms[text_of(key)].dedup_id
        once = self._once.get(dedup_id)
        if once is not None and once.entry_id == text_of(key):
            self._once[dedup_id] = attrs.evolve(once, cancelled=True)
        end = self.after(key)
        self._drop([end - 1], now_ms)
        return True

    def _drop(self, indices: Sequence[int], now_ms: int) -> None:
        """Remove entries by their indices, which are in ascending order."""
        for part in reversed(list(_near(indices))):
            for entry_id in self.remove_each(part):
                for group in self.groups.values():
                    group.on_entry_removed(entry_id, now_ms)

    def trim(self, retention: Retention, now_ms: int, *, room: int = 0, start: Key | None = None) -> tuple[Swept, bool]:
        """Remove entries that the retention doesn't keep, oldest first, in one bounded step.

        Arguments:
            retention: The rule that says which entries are kept.
            now_ms: The time.
            room: The number of entries that will be added; the trim makes room for them.
            start: The key after which to scan behind unsettled entries; None to continue where the last add stopped.

        Returns:
            The result of the step, and whether all entries that may be removed were scanned.
        """
        excess = 0 if retention.max_len is None else len(self.keys) + room - retention.max_len
        from_ms = 0 if retention.max_age is None else now_ms - to_ms(retention.max_age)
        if retention.keep_settled and excess <= 0 and (not from_ms or not self.keys or self.keys[0][0] >= from_ms):
            return _NOTHING
        scan = self._scan(retention, excess, from_ms, PAGE + room, start)
        unsettled = sum(not self._settled(index) for index in scan.removable) if retention.hard else 0
        if scan.removable:
            self._drop(scan.removable, now_ms)
        self.evicted += unsettled
        if start is None:
            self._cursor = scan.after
        after = "" if scan.enough or scan.after is None else text_of(scan.after)
        return Swept(len(scan.removable), unsettled, after), scan.complete

    def _scan(self, retention: Retention, excess: int, from_ms: int, most: int, start: Key | None) -> TrimScan:
        """Find up to ``most`` entries to remove, oldest first; scan up to `PAGE` entries that stay."""
        removable: list[int] = []
        stays, index, begun = 0, 0, FIRST
        end = len(self.keys) if retention.hard else self._read(retention)
        while index < end:
            key = self.keys[index]
            if (retention.keep_settled or stays) and len(removable) >= excess and key[0] >= from_ms:
                return TrimScan(removable, begun if excess > 0 and begun != FIRST else None, enough=True)
            if len(removable) == most:
                return TrimScan(removable, begun)
            if stays == PAGE and not self._settled(index):
                return TrimScan(removable, self.keys[index - 1])
            index += 1
            if retention.hard or self._settled(index - 1):
                removable.append(index - 1)
                continue
            if not stays:
                begun = self._resume(key, start)
                index = max(index, self.after(begun))
            stays += 1
        return TrimScan(removable, None, complete=begun == FIRST)

    def _read(self, retention: Retention) -> int:
        """Return the number of entries that all groups have read; they are the first ones."""
        if not self.groups:
            return len(self.keys) if retention.keep_settled else 0
        return self.after(min([group.position for group in self.groups.values()]))

    def _resume(self, first: Key, start: Key | None) -> Key:
        """Return the key after which to continue behind the first unsettled entry; FIRST for right behind it."""
        if start is None and sum(len(group.pending) for group in self.groups.values()) > PAGE:
            start = self._cursor
        return start if start is not None and start > first else FIRST

    def _settled(self, index: int) -> bool:
        """Tell whether all groups have settled an entry."""
        key, name = self.keys[index], self.records[index].id
        return all(group.settled(key, name) for group in self.groups.values())

    def make_room(self, count: int, retention: Retention, now_ms: int) -> bool:
        """Trim before ``count`` entries are added; return whether there is room for them.

        If the trim ended early, the next add continues it. Then there is room if the trim removed ``count`` entries, or
        if the stream exceeds ``max_len`` by at most 100 entries or 1 %.
        """
        most = retention.max_len
        if most is not None and count > most:
            return False
        swept, whole = self.trim(retention, now_ms, room=count)
        length = len(self.keys) + count
        if most is None or length <= most:
            return True
        return not whole and (swept.removed >= count or length <= most + max(PAGE, most // PAGE))

    # --- adding once

    def added_before(self, dedup_id: str, token: str, now_ms: int) -> Added | None:
        """Return the entry that was added under a dedup id in its window, or None.

        It is no duplicate for a repetition of the call that added it, which gets the same result as the first time.
        """
        self._forget_ended(now_ms)
        once = self._once.get(dedup_id)
        if once is None or once.until_ms <= now_ms or (once.cancelled and once.token != token):
            return None
        return Added(once.entry_id, duplicate=once.token != token)

    def _forget_ended(self, now_ms: int) -> None:
        """Forget dedup ids whose windows have ended, at most `FORGOTTEN` of them."""
        for _ in range(FORGOTTEN):
            if not self._ends or self._ends[0][0] > now_ms:
                return
            _, ended = heapq.heappop(self._ends)
            if ended in self._once and self._once[ended].until_ms <= now_ms:  # it may have a new, longer window
                del self._once[ended]

    def append_once(self, draft: Draft, *, dedup_id: str, token: str, window: float, now_ms: int) -> Added:
        """Add an entry under a free dedup id."""
        until_ms = now_ms + to_ms(window)
        once = self._once[dedup_id] = Dedup(self.append(draft, now_ms, dedup_id), token, until_ms)
        heapq.heappush(self._ends, (until_ms, dedup_id))
        return Added(once.entry_id, duplicate=False)
