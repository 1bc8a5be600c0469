"""The contract of streams over streams with partitions, in memory; the campaigns run it on a server and a cluster."""

from tests.contract.harnesses import MemoryHarness
from tests.contract.partitioned import *  # noqa: F403 - the tests
from tests.contract.partitioned import PartitionedHarness


class HARNESS(PartitionedHarness, MemoryHarness):
    """The memory backend with partitions."""
