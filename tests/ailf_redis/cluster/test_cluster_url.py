"""A cluster by URL: some of its nodes are enough, in both flavours."""

import asyncio

import pytest
import redis

import ailf
from ailf.driver import Capability
from tests.support.clusters import Cluster
from tests.support.servers import Server

MANY = 24
"""The number of names: enough that every node has some."""


def url_of(cluster: Cluster) -> str:
    """Return the URL of the cluster by two addresses, the first of which is no node."""
    return f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster.nodes[1].port}"


def test_everything_on_every_node(cluster: Cluster, namespace: str) -> None:
    """Streams, locks and messages work on all nodes, and what one flavour adds the other reads."""
    with ailf.connect(url_of(cluster), namespace=namespace) as backend:
        for number in range(MANY):
            backend.stream(f"s{number}").add(number)
            with backend.lock(f"l{number}") as lease:
                assert lease.fence
        with backend.pubsub().listen("c") as messages:
            backend.pubsub().publish("c", "x")
            assert messages.get(5) == ailf.Message("c", "x")
        assert Capability.SEVERAL_LOCKS not in backend.engine.driver.capabilities
        assert backend.url == url_of(cluster)
        with pytest.raises(ailf.InvalidArgumentError, match=r"redis.*Redis to unwrap"):
            backend.unwrap(redis.Redis)

    async def main() -> None:
        async with ailf.connect_async(url_of(cluster), namespace=namespace) as opened:
            for number in range(MANY):
                assert [each.data for each in await opened.stream(f"s{number}").read()] == [number]
            async with opened.lock("l", ttl=0.3):
                await asyncio.sleep(0.5)  # the thread that renews leases uses the cluster, too

    asyncio.run(main())


def test_one_node_is_no_cluster(any_server: Server) -> None:
    """A server without cluster mode refuses, and the error shows the server's text."""
    with pytest.raises(ailf.BackendError, match=r"(?i)cluster support disabled"):
        ailf.connect(f"redis+cluster://127.0.0.1:{any_server.port}")
