"""One node of a cluster is frozen (SIGSTOP): it accepts connections and never answers. The other nodes work on."""

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest
from redis.crc import key_slot

import ailf
from ailf.stream.partitions.ids import partition_names
from ailf_redis import RedisBackend
from ailf_redis.keys import Keys
from tests.support import binaries
from tests.support.clusters import Cluster
from tests.support.servers import Server

PARTITIONS = 6
"""The number of partitions: enough that every node has one."""

MANY = 12
"""The number of names: enough that every node has some."""

TAKEOVER = 3.0
"""Seconds of `takeover`: a request to the frozen node takes longer than a consumer lives without heartbeats."""

TIMEOUT = 2.5
"""Seconds of `timeout`."""


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    """A cluster whose nodes serve their slots while another node is away."""
    version, binary = next(reversed(binaries.found().items()))
    with contextlib.closing(Cluster(binary, version, "--cluster-require-full-coverage", "no")) as cluster:
        yield cluster


def opened(cluster: Cluster, namespace: str, retry_for: float = 1.0) -> RedisBackend:
    """Return a backend with a short timeout."""
    with cluster.client() as client:
        return RedisBackend.from_client(client, namespace=namespace, timeout=TIMEOUT, retry_for=retry_for)


def node_of(cluster: Cluster, key: str) -> Server:
    """Return the node of a key."""
    return cluster.owner(key_slot(key.encode()))


@contextlib.contextmanager
def frozen(node: Server) -> Iterator[None]:
    """Freeze a node for the block."""
    node.pause()
    try:
        yield
    finally:
        node.resume()


def renewing() -> list[threading.Thread]:
    """Return the renewal threads."""
    return [each for each in threading.enumerate() if each.name == "ailf-renewal"]


def test_leases_on_other_nodes_are_kept(own_cluster: Cluster, namespace: str) -> None:
    """S4, S12: messages of the partitions on the other nodes stay leased, and none of them comes twice."""
    nodes = [node_of(own_cluster, Keys(namespace).stream(each)) for each in partition_names("s", PARTITIONS)]
    stuck = nodes[0]
    with opened(own_cluster, namespace) as backend, opened(own_cluster, namespace) as another:
        stream = backend.stream("s", partitions=PARTITIONS)
        for number in range(4 * PARTITIONS):
            stream.add(number)
        group = stream.group("g", takeover=TAKEOVER, lease=6)
        with group.consumer(prefetch=100) as consumer:
            held = [consumer.get(5) for _ in range(4 * PARTITIONS)]
            assert len(renewing()) == len(set(nodes))
            thieves = another.stream("s", partitions=PARTITIONS).group("g", takeover=TAKEOVER, lease=6)
            with thieves.consumer() as thief, frozen(stuck):
                until = time.monotonic() + 3 * TAKEOVER
                while time.monotonic() < until:
                    with contextlib.suppress(ailf.BackendError):
                        stolen = thief.get(0.5)
                        assert stolen is None
                for each in held:
                    assert each is not None
                    node = nodes[int(each.id.partition(":")[0])]
                    assert each.lost == (node is stuck)
                    if node is not stuck:
                        each.ack()
        assert {nodes[int(each.id.partition(":")[0])] for each in held if each} == set(own_cluster.nodes)
    assert renewing() == []


def test_locks_and_slots_on_other_nodes_are_kept(own_cluster: Cluster, namespace: str) -> None:
    """L5, R6: locks and concurrency slots on the other nodes are renewed; each had been in one request with all."""
    keys = Keys(namespace)
    stuck = node_of(own_cluster, keys.lock("l0")[0])
    with opened(own_cluster, namespace) as backend:
        locks = [backend.lock(f"l{number}", ttl=TAKEOVER).acquire(5) for number in range(MANY)]
        limiter = backend.rate_limiter("r", ailf.Concurrency(1, ttl=TAKEOVER))
        permits = [limiter.try_acquire(f"k{number}").permit for number in range(MANY)]
        assert all(permits)
        with frozen(stuck):
            time.sleep(3 * TAKEOVER)
            for lock in locks:
                assert lock.lost == (node_of(own_cluster, keys.lock(lock.name)[0]) is stuck)
                if not lock.lost:
                    lock.extend()
            for permit in permits:
                assert permit is not None
                key = ailf.driver.LimiterKey("r", permit.key)
                if node_of(own_cluster, keys.limiter(key, ())[0]) is not stuck:
                    assert not limiter.try_acquire(permit.key)
