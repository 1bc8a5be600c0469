"""The contract on a cluster: the tests that depend on nodes and hash slots. The campaigns run all tests."""

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.backend.test_close import *  # noqa: F403
from contract_tests.fixtures import NewHarness
from contract_tests.listing.test_listing import *  # noqa: F403
from contract_tests.listing.test_members import *  # noqa: F403
from contract_tests.lock.test_lock_hold import *  # noqa: F403
from contract_tests.pubsub.test_pubsub import *  # noqa: F403
from contract_tests.pubsub.test_request import *  # noqa: F403
from contract_tests.stream.test_partitions import *  # noqa: F403
from contract_tests.stream.test_stream import *  # noqa: F403
from contract_tests.world import World
from tests.contract.harnesses import ClusterHarness
from tests.support.clusters import Cluster

LACKS = {
    Capability.SEVERAL_LOCKS: "several names are in different hash slots",
    Capability.PROCESSES: "another process would need a URL",
    "step_back": "a server's clock can't be set back",
    "freezable": "a cluster's nodes announce their own addresses, so a proxy can't stand in between",
    "url": "a cluster is opened from a user-supplied client, without a URL",
    "unreachable_url": "a cluster is opened from a user-supplied client, without a URL",
}


@pytest.fixture
def new_harness(cluster: Cluster) -> NewHarness:
    """An empty namespace on the cluster."""
    return lambda: ClusterHarness(cluster)


async def test_no_responder(world: World) -> None:
    """P9: a node doesn't know the listeners of the others, so a request without a listener ends at its timeout."""
    backend = await world.connect()
    with pytest.raises(ailf.RequestTimeoutError):
        await world.within_patience(backend.pubsub().request("nowhere", 1, timeout=0.2))
    assert await world.within_patience(backend.pubsub().request_many("nowhere", 1, timeout=0.2)) == []
