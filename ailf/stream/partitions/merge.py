"""Reading the partitions of a stream as one, merged by time; no more than a page of each is in memory."""

import functools
import heapq
from collections import deque
from collections.abc import Collection, Sequence
from typing import Final

from msgspec.structs import replace

from ailf.driver import Record, StreamDriver
from ailf.stream.partitions.ids import join_id
from ailf.stream.partitions.pages import every, pages
from ailf.values import LATEST

__all__ = ["MergedRead"]

AT_ONCE: Final = 16
"""The most partitions that are read in one round trip: all of their entries have the time of one request."""

LEAST: Final = 16
"""One request asks a partition for at least this many entries, if the caller wants as many."""


class _Cursor:
    """Where the read of one partition is.

    Attributes:
        partition: The partition.
        position: Where the next page begins.
        after: Whether it begins after that id.
        end: Where the read ends.
        entries: The entries that were read and not returned, with their times.
        ended: Whether the partition had no more entries.
    """

    __slots__ = ("after", "end", "ended", "entries", "partition", "position")

    def __init__(self, partition: int, position: str, end: str, *, after: bool) -> None:
        self.partition = partition
        self.position = position
        self.after = after
        self.end = end
        self.entries: deque[tuple[float, Record]] = deque()
        self.ended = False


class MergedRead:
    """Reads partitions, merged by time, partition and id.

    Arguments:
        driver: The driver of the partitions.
        names: The names of the partitions.
        starts: Where the read of each partition begins.
        ends: Where it ends; LATEST everywhere if left out.
        after: Whether the entries ``starts`` themselves are excluded.
    """

    def __init__(
        self,
        driver: StreamDriver,
        names: Sequence[str],
        starts: Sequence[str],
        ends: Sequence[str] = (),
        *,
        after: bool,
    ) -> None:
        self._driver = driver
        self._names = names
        ends = ends or [LATEST] * len(names)
        self._cursors = [
            _Cursor(partition, start, end, after=after)
            for partition, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]

    async def take(self, limit: int) -> list[Record]:
        """Return the next entries, at most ``limit``; fewer if every partition has ended.

        If a request fails, the entries before it are returned; where there are none, the error is raised. Either way
        the next call goes on behind them.
        """
        size = min(limit, max(LEAST, limit // len(self._cursors) + 1))
        records: list[Record] = []
        try:
            await self._fill_all(size)
            heap = [(each.entries[0][0], each.partition) for each in self._cursors if each.entries]
            heapq.heapify(heap)
            while heap and len(records) < limit:
                _, partition = heap[0]
                cursor = self._cursors[partition]
                _, record = cursor.entries.popleft()
                records.append(record)
                await self._fill(self._driver, cursor, size)
                if cursor.entries:
                    heapq.heapreplace(heap, (cursor.entries[0][0], partition))
                else:
                    heapq.heappop(heap)
        except Exception:
            if not records:
                raise
        return records

    async def _fill_all(self, size: int) -> None:
        """Read the next page of each partition of which no entry is left."""
        empty = [each for each in self._cursors if not (each.entries or each.ended)]
        for page in pages(empty, AT_ONCE):
            every(await self._driver.together([functools.partial(self._fill, cursor=each, size=size) for each in page]))

    async def _fill(self, driver: StreamDriver, cursor: _Cursor, size: int) -> None:
        """Read the next page of a partition, if none of its entries is left."""
        if cursor.entries or cursor.ended:
            return
        partition = cursor.partition
        page = await driver.read(self._names[partition], cursor.position, cursor.end, size, after=cursor.after)
        if page:
            cursor.position, cursor.after = page[-1].id, True
        cursor.entries.extend((driver.time_of(each.id), replace(each, id=join_id(partition, each.id))) for each in page)
        cursor.ended = len(page) < size

    def positions(self) -> list[str]:
        """Return for each partition the id after which to wait for its next entries."""
        return [each.position for each in self._cursors]

    def resume(self, partitions: Collection[int]) -> None:
        """Read on in these partitions: they may have new entries."""
        for each in partitions:
            self._cursors[each].ended = False
