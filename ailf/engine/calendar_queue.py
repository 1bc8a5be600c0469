"""A calendar queue: items by the time at which they are due, in buckets of equal width, without order within a bucket.

An item is added and removed in constant time, however many there are. It comes out at the beginning of its bucket, so
up to `WIDTH` seconds early. Nothing in here waits or locks.
"""

import heapq
from typing import Final, Generic, TypeVar

__all__ = ["WIDTH", "Bucket", "CalendarQueue"]

T = TypeVar("T")

WIDTH: Final = 1 / 128
"""The width of a bucket in seconds; a power of two, so that no time is rounded into the bucket before its own."""

MANY: Final = 1000
"""The least number of buckets at which the empty ones are dropped."""

Bucket = dict[T, None]
"""The items of a bucket, in the order in which they came."""


class CalendarQueue(Generic[T]):
    """Items by time. An item is removed by removing it from its bucket, which needs no lock."""

    def __init__(self) -> None:
        self._buckets: dict[int, Bucket[T]] = {}
        self._numbers: list[int] = []  # a heap of the buckets' numbers
        self._many = MANY

    def bucket(self, at: float) -> Bucket[T]:
        """Return the bucket of a time, for items that are due then."""
        number = int(at / WIDTH)
        bucket = self._buckets.get(number)
        if bucket is None:
            if len(self._buckets) >= self._many:
                self._drop_empty()
            bucket = self._buckets[number] = {}
            heapq.heappush(self._numbers, number)
        return bucket

    def _drop_empty(self) -> None:
        """Drop the empty buckets; the number at which that is done next keeps its cost constant for each new one."""
        self._buckets = {number: bucket for number, bucket in self._buckets.items() if bucket}
        self._numbers = sorted(self._buckets)
        self._many = max(MANY, 2 * len(self._buckets))

    def next(self) -> float:
        """Return the beginning of the first bucket with an item; infinity if there is none."""
        while self._numbers and not self._buckets[self._numbers[0]]:
            del self._buckets[heapq.heappop(self._numbers)]
        return self._numbers[0] * WIDTH if self._numbers else float("inf")

    def pop(self, now: float) -> list[T]:
        """Remove the buckets that have begun, and return their items."""
        items: list[T] = []
        while self.next() <= now:
            items += self._buckets.pop(heapq.heappop(self._numbers))
        return items
