"""The contract on a cluster: what depends on nodes and slots; all of it in the campaigns."""

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.backend.test_close import *  # noqa: F403
from contract_tests.fixtures import NewHarness
from contract_tests.lock.test_lock_hold import *  # noqa: F403
from contract_tests.pubsub.test_pubsub import *  # noqa: F403
from contract_tests.pubsub.test_request import *  # noqa: F403
from contract_tests.stream.test_stream import *  # noqa: F403
from contract_tests.world import World
from tests.contract.harnesses import ClusterHarness
from tests.support.clusters import Cluster

LACKS = {
    Capability.SEVERAL_LOCKS: "names are of different slots",
    Capability.PROCESSES: "a process of its own would need a URL",
    "step_back": "a server's clock can't be set back",
    "hasty": "a cluster's nodes tell their own addresses, past any network that could be silent",
    "url": "a cluster is brought, it has no URL",
    "unreachable_url": "a cluster is brought, it has no URL",
}


@pytest.fixture
def new_harness(cluster: Cluster) -> NewHarness:
    """An empty namespace on the cluster."""
    return lambda: ClusterHarness(cluster)


async def test_nobody_listens(world: World) -> None:
    """P9: no node knows who listens at the others, so a request that nobody hears ends in time."""
    backend = await world.connect()
    with pytest.raises(ailf.RequestTimeoutError):
        await world.soon(backend.pubsub().request("nowhere", 1, timeout=0.2))
    assert await world.soon(backend.pubsub().request_many("nowhere", 1, timeout=0.2)) == []
