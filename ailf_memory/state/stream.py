"""One stream: its entries, its groups, and which messages were added once. Pure: *now* is an argument."""

import heapq
import itertools
from collections.abc import Iterator, Sequence
from typing import Final

import attrs
from msgspec.structs import replace

from ailf.checks import to_ms
from ailf.driver import Draft, Swept
from ailf.values import Added, GroupInfo, Retention
from ailf_memory.state.entries import FIRST, Entries, Key, key_of, text_of
from ailf_memory.state.group import GroupState

__all__ = ["StreamState"]


@attrs.frozen
class Once:
    """A message that was added under a dedup id.

    Attributes:
        entry_id: The entry.
        token: Which call added it.
        until_ms: When the dedup id is free again.
        cancelled: Whether the entry was cancelled, so that only the same call is still answered with it.
    """

    entry_id: str
    token: str
    until_ms: int
    cancelled: bool = False


_NOTHING: Final = Swept(0, 0), True

PAGE: Final = 100
"""How many entries that stay a trim looks at in one step, and how many it removes besides those that are added."""


def _runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Return the first and the end of each run of indices."""
    for _, run in itertools.groupby(enumerate(indices), lambda each: each[1] - each[0]):
        (_, first), *rest = run
        yield first, first + len(rest) + 1


@attrs.frozen
class Look:
    """What a look for entries that go found.

    Attributes:
        going: Their indices.
        after: After which entry the next look behind unsettled ones begins; None for the first of these.
        enough: Whether these are as many as have to go.
        whole: Whether all entries that may go were looked at.
    """

    going: list[int]
    after: Key | None
    enough: bool = False
    whole: bool = False


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
        self._cursor: Key | None = None  # where the next add looks on, behind unsettled entries
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
        """Remove an entry whose time has not come, and free the dedup id that it was added under."""
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
        """Remove entries, whose indices rise."""
        in_a_row = len(indices) == indices[-1] - indices[0] + 1
        runs = [(indices[0], indices[-1] + 1)] if in_a_row else list(_runs(indices))
        for first, end in reversed(runs):
            for entry_id in self.remove(first, end):
                for group in self.groups.values():
                    group.vanish(entry_id, now_ms)

    def trim(self, retention: Retention, now_ms: int, *, room: int = 0, start: Key | None = None) -> tuple[Swept, bool]:
        """Remove what goes, oldest first, to make room for ``room`` more.

        Arguments:
            retention: What is kept.
            now_ms: The time.
            room: How many are to be added.
            start: After which entry to look behind unsettled ones; None to go on where the last add stopped.

        Returns:
            What was done, and whether all entries that may go were looked at.
        """
        excess = 0 if retention.max_len is None else len(self.keys) + room - retention.max_len
        from_ms = 0 if retention.max_age is None else now_ms - to_ms(retention.max_age)
        if retention.keep_settled and excess <= 0 and (not from_ms or not self.keys or self.keys[0][0] >= from_ms):
            return _NOTHING
        look = self._look(retention, excess, from_ms, PAGE + room, start)
        unsettled = sum(not self._settled(index) for index in look.going) if retention.hard else 0
        if look.going:
            self._drop(look.going, now_ms)
        self.evicted += unsettled
        if start is None:
            self._cursor = look.after
        after = "" if look.enough or look.after is None else text_of(look.after)
        return Swept(len(look.going), unsettled, after), look.whole

    def _look(self, retention: Retention, excess: int, from_ms: int, most: int, start: Key | None) -> Look:
        """Find up to ``most`` entries that go, oldest first, looking at up to `PAGE` that stay."""
        going: list[int] = []
        stays, index, begun = 0, 0, FIRST
        end = len(self.keys) if retention.hard else self._read(retention)
        while index < end:
            key = self.keys[index]
            if (retention.keep_settled or stays) and len(going) >= excess and key[0] >= from_ms:
                return Look(going, begun if excess > 0 and begun != FIRST else None, enough=True)
            if len(going) == most:
                return Look(going, begun)
            if stays == PAGE and not self._settled(index):
                return Look(going, self.keys[index - 1])
            index += 1
            if retention.hard or self._settled(index - 1):
                going.append(index - 1)
                continue
            if not stays:
                begun = self._resume(key, start)
                index = max(index, self.after(begun))
            stays += 1
        return Look(going, None, whole=begun == FIRST)

    def _read(self, retention: Retention) -> int:
        """Return how many of the entries all groups have read."""
        if not self.groups:
            return len(self.keys) if retention.keep_settled else 0
        return self.after(min(group.position for group in self.groups.values()))

    def _resume(self, first: Key, start: Key | None) -> Key:
        """Return after which entry to look on behind the first that is unsettled; FIRST for right behind it."""
        if start is None and sum(len(group.pending) for group in self.groups.values()) > PAGE:
            start = self._cursor
        return start if start is not None and start > first else FIRST

    def _settled(self, index: int) -> bool:
        """Tell whether all groups are done with an entry."""
        key, name = self.keys[index], self.records[index].id
        return all(group.settled(key, name) for group in self.groups.values())

    def make_room(self, count: int, retention: Retention, now_ms: int) -> bool:
        """Trim before so many are added; return whether there is room for them.

        Where trimming is behind, it goes on with the next add: this one passes if the stream doesn't grow by it, or has
        not outgrown its length by more than what trimming may take to come round.
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

    def known(self, dedup_id: str, token: str, now_ms: int) -> Added | None:
        """Return what was added under this id within its window; to the call that did it, as it was told then."""
        while self._ends and self._ends[0][0] <= now_ms:
            _, ended = heapq.heappop(self._ends)
            if ended in self._once and self._once[ended].until_ms <= now_ms:  # it may have been taken again, for longer
                del self._once[ended]
        once = self._once.get(dedup_id)
        if once is None or (once.cancelled and once.token != token):
            return None
        return Added(once.entry_id, duplicate=once.token != token)

    def append_once(self, draft: Draft, *, dedup_id: str, token: str, window: float, now_ms: int) -> Added:
        """Add an entry under an id that is not known."""
        until_ms = now_ms + to_ms(window)
        once = self._once[dedup_id] = Once(self.append(draft, now_ms, dedup_id), token, until_ms)
        heapq.heappush(self._ends, (until_ms, dedup_id))
        return Added(once.entry_id, duplicate=False)
