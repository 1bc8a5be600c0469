"""The contract of streams over streams with partitions, on the newest server: one connection waits for all of them."""

import pytest

from contract_tests.fixtures import NewHarness
from tests.contract.harnesses import RedisHarness
from tests.contract.partitioned import *  # noqa: F403 - the tests
from tests.contract.partitioned import PartitionedHarness
from tests.contract.test_redis import LACKS  # noqa: F401 - the suite looks for it here
from tests.support.one_partition import ONE
from tests.support.servers import Server


class PartitionedRedisHarness(PartitionedHarness, RedisHarness):
    """A Redis server with partitions."""

    async def add_foreign(self, stream: str) -> None:
        """Add an entry to the partition."""
        await super().add_foreign(f"{stream}/{ONE}")


@pytest.fixture
def new_harness(any_server: Server) -> NewHarness:
    """An empty namespace on the server."""
    return lambda: PartitionedRedisHarness(any_server.url)
