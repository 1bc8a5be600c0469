"""The entries of a stream, in the order of their ids. Pure: *now* is an argument."""

import bisect
from collections.abc import Sequence
from typing import Final

import attrs

from ailf.checks import floor_ms, to_ms
from ailf.driver import Draft, Record
from ailf.errors import InvalidArgumentError
from ailf.values import EARLIEST, LATEST

__all__ = ["FIRST", "LONGEST", "PLAIN", "Entries", "Key", "Terms", "id_before", "key_of", "text_of"]

Key = tuple[int, int]

FIRST: Final[Key] = (0, 0)
MAX_SEQUENCE: Final = 2**64 - 1
LONGEST: Final = 41
"""The longest id, in characters: Python refuses to parse an integer of over 4300 digits."""


def text_of(key: Key) -> str:
    """Return the id of a key."""
    return f"{key[0]}-{key[1]}"


def key_of(text: str) -> Key:
    """Return the key of an id, by which entries are ordered.

    Raises:
        InvalidArgumentError: The text isn't an id.
    """
    ms, dash, seq = text.partition("-")
    if len(text) > LONGEST or not (text.isascii() and ms.isdecimal() and (seq.isdecimal() if dash else not seq)):
        raise InvalidArgumentError(
            f"{text!r} is not the id of an entry, which looks like '1700000000000-0'; use that of an entry of "
            "this stream, or as a position 'earliest' or 'latest'"
        )
    return int(ms), int(seq or 0)


def id_before(timestamp: float) -> str:
    """Return an id after all entries that were added before a time in seconds, and before all others."""
    ms = floor_ms(timestamp)
    return text_of((ms - 1, MAX_SEQUENCE) if ms > 0 else FIRST)


@attrs.frozen
class Terms:
    """The producer's options for an entry.

    Attributes:
        key: The ordering key, or "".
        at_ms: The time from which the entry may be delivered.
        max_deliveries: The entry's own ``max_deliveries``, or None for the group's.
        dedup_id: The dedup id under which it was added, or "".
    """

    key: str = ""
    at_ms: int = 0
    max_deliveries: int | None = None
    dedup_id: str = ""


PLAIN: Final = Terms()
"""The terms of most entries: no options."""


class Entries:
    """The entries of a stream.

    Attributes:
        keys: The keys of the entries, in order.
        records: The entries, in the same order.
        terms: The terms of the entries that have options, by id.
        last: The key of the last entry ever added.
        added: The number of entries ever added.
    """

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.records: list[Record] = []
        self.terms: dict[str, Terms] = {}
        self.last = FIRST
        self.added = 0

    def append(self, draft: Draft, now_ms: int, dedup_id: str = "") -> str:
        """Add one entry. Its id is higher than the last one, even after the clock was set back."""
        ms, seq = self.last
        key = self.last = (now_ms, 0) if now_ms > ms else (ms, seq + 1)
        self.added += 1
        record = Record(text_of(key), draft.body, dict(draft.headers), key=draft.key)
        self.keys.append(key)
        self.records.append(record)
        if draft.key or draft.delay or draft.at or draft.max_deliveries is not None:
            self.terms[record.id] = _terms(draft, now_ms, dedup_id)
        return record.id

    def locate(self, position: str) -> Key:
        """Return the key of a position: EARLIEST, LATEST or an id."""
        if position == EARLIEST:
            return FIRST
        return self.last if position == LATEST else key_of(position)

    def after(self, key: Key) -> int:
        """Return the index of the first entry after this key."""
        return bisect.bisect_right(self.keys, key)

    def read(self, start: str, end: str, limit: int, *, after: bool) -> list[Record]:
        """Return at most ``limit`` entries from ``start`` to ``end`` inclusive; with ``after``, exclude ``start``."""
        low = self.locate(start)
        first = self.after(low) if after else bisect.bisect_left(self.keys, low)
        return self.records[first : min(self.after(self.locate(end)), first + limit)]

    def parked(self, key: Key, now_ms: int) -> bool:
        """Tell whether the entry exists and its time has not come."""
        return self.terms.get(text_of(key), PLAIN).at_ms > now_ms

    def remove(self, first: int, end: int) -> list[str]:
        """Remove the entries from index ``first`` up to, but not including, ``end``; return their ids."""
        ids = [record.id for record in self.records[first:end]]
        del self.keys[first:end], self.records[first:end]
        for each in ids:
            self.terms.pop(each, None)
        return ids

    def remove_each(self, indices: Sequence[int]) -> list[str]:
        """Remove the entries at these indices, which ascend; return their ids.

        What is behind them moves once, however many gaps there are between them.
        """
        first, end = indices[0], indices[-1] + 1
        if len(indices) == end - first:
            return self.remove(first, end)
        gone = set(indices)
        kept = [index for index in range(first, end) if index not in gone]
        ids = [self.records[index].id for index in indices]
        self.keys[first:end] = [self.keys[index] for index in kept]
        self.records[first:end] = [self.records[index] for index in kept]
        for each in ids:
            self.terms.pop(each, None)
        return ids


def _terms(draft: Draft, now_ms: int, dedup_id: str) -> Terms:
    delayed_ms = now_ms + to_ms(draft.delay) if draft.delay else 0
    return Terms(draft.key, max(delayed_ms, to_ms(draft.at)), draft.max_deliveries, dedup_id)
