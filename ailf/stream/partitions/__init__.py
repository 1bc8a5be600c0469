"""Partitioned streams: the partitions of a stream, each a stream of its own, as one stream over any driver."""

from ailf.stream.partitions.driver import AT_ONCE, PartitionedDriver, PartitionFullError, Partitions
from ailf.stream.partitions.ids import MOST_PARTITIONS, PART, owner_of, partition_of_key
from ailf.stream.partitions.merge import MergedRead
from ailf.stream.partitions.pages import every, pages

__all__ = [
    "AT_ONCE",
    "MOST_PARTITIONS",
    "PART",
    "MergedRead",
    "PartitionFullError",
    "PartitionedDriver",
    "Partitions",
    "every",
    "owner_of",
    "pages",
    "partition_of_key",
]
