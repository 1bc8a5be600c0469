"""The contract of streams over streams with partitions, on a cluster: each partition has a waiting connection."""

import pytest

from contract_tests.fixtures import NewHarness
from tests.contract.harnesses import ClusterHarness
from tests.contract.partitioned import *  # noqa: F403 - the tests
from tests.contract.partitioned import PartitionedHarness
from tests.contract.test_cluster import LACKS  # noqa: F401 - the suite looks for it here
from tests.support.clusters import Cluster
from tests.support.one_partition import ONE


class PartitionedClusterHarness(PartitionedHarness, ClusterHarness):
    """A cluster with partitions."""

    async def add_foreign(self, stream: str) -> None:
        """Add an entry to the partition."""
        await super().add_foreign(f"{stream}/{ONE}")


@pytest.fixture
def new_harness(cluster: Cluster) -> NewHarness:
    """An empty namespace on the cluster."""
    return lambda: PartitionedClusterHarness(cluster)
