"""Memory streams with planted bugs: what partitioned streams need of a driver."""

from collections.abc import Collection, Sequence
from typing import Any

from ailf_memory.stream import MemoryStreamDriver, MemoryStreamsWaiter
from tests.contract.planted.base import caught_by


@caught_by("stream.test_partitions.test_numbers_must_agree", way="add", first=3, second=4)
@caught_by("stream.test_partitions.test_numbers_must_agree", way="open", first=None, second=3)
class AgreesWithAnyNumber(MemoryStreamDriver):
    """No number of partitions is stored: each is the right one."""

    async def declare(self, stream: str, partitions: int | None, *, void: bool = False) -> int | None:
        return partitions


@caught_by("stream.test_partitions.test_asking_makes_nothing")
class DeclaresWhenAsked(MemoryStreamDriver):
    """To ask for the number of partitions stores 1."""

    async def declare(self, stream: str, partitions: int | None, *, void: bool = False) -> int | None:
        return await super().declare(stream, 1 if partitions is None else partitions, void=void)


@caught_by("stream.test_partitions.test_a_deleted_stream_has_no_number")
class KeepsNumbersOfDeleted(MemoryStreamDriver):
    """The number of partitions stays when the stream is deleted."""

    async def delete(self, stream: str) -> None:
        stored = await self.declare(stream, None)
        await super().delete(stream)
        if stored is not None:
            await self.declare(stream, stored)


@caught_by("stream.test_partitions.test_a_smaller_number_after_one_that_was_not_stored", number=2)
class KeepsVoidMarks(MemoryStreamDriver):
    """A stream that was marked as a partition stays one, though the whole stream has no such partition."""

    async def declare(self, stream: str, partitions: int | None, *, void: bool = False) -> int | None:
        return await super().declare(stream, partitions)


@caught_by("stream.test_partitions.test_the_names_of_a_vanished_stream", number=4)
class MarksNoUsedStream(MemoryStreamDriver):
    """A stream that is in use is not marked as a partition: it counts as an ordinary one."""

    async def declare(self, stream: str, partitions: int | None, *, void: bool = False) -> int | None:
        if partitions == 0 and await super().declare(stream, None) == 1:
            partitions = 1
        return await super().declare(stream, partitions, void=void)


@caught_by("stream.test_partitions.test_read_merges_by_time")
class RoundsTimesOfIds(MemoryStreamDriver):
    """The time of an id is rounded to seconds."""

    def time_of(self, entry_id: str) -> float:
        return float(round(super().time_of(entry_id)))


@caught_by("stream.test_partitions.test_an_arrival_in_any_partition_wakes")
class WaitsForAllButOne(MemoryStreamDriver):
    """The last of several streams wakes nobody."""

    def streams_waiter(self, streams: Sequence[str], group: str | None) -> MemoryStreamsWaiter:
        return _AllButOne(self._handle, streams)


class _AllButOne(MemoryStreamsWaiter):
    async def wait(self, positions: Sequence[Any], timeout: float) -> Collection[int]:
        return [each for each in await super().wait(positions, timeout) if each < len(positions) - 1]
