"""Partitioned streams: the partitions of a stream, each a stream of its own, as one stream over any driver."""

from ailf.stream.partitions.driver import PartitionedDriver, Partitions
from ailf.stream.partitions.ids import MOST_PARTITIONS, partition_of_key
from ailf.stream.partitions.merge import MergedRead

__all__ = ["MOST_PARTITIONS", "MergedRead", "PartitionedDriver", "Partitions", "partition_of_key"]
