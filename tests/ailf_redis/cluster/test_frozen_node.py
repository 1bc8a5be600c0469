"""One node of a cluster is frozen (SIGSTOP): it accepts connections and never answers. The other nodes work on."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest
from redis.crc import key_slot

import ailf
from ailf.driver import LimiterKey
from ailf.stream.partitions.ids import partition_names, partition_of_key
from ailf_redis import AsyncRedisBackend, RedisBackend
from ailf_redis.keys import Keys
from tests.support import binaries
from tests.support.clusters import Cluster
from tests.support.effort import some_of
from tests.support.servers import Server

PARTITIONS = 6
"""The number of partitions: enough that every node has one."""

MANY = 12
"""The number of names: enough that every node has some."""

TAKEOVER = 3.0
"""Seconds of `takeover`: a request to the frozen node takes longer than a consumer lives without heartbeats."""

TIMEOUT = 1.5
"""Seconds of `timeout`."""

RETRY_FOR = 1.0
"""Seconds of `retry_for`."""


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    """A cluster whose nodes serve their slots while another node is away."""
    version, binary = next(reversed(binaries.found().items()))
    with contextlib.closing(Cluster(binary, version, "--cluster-require-full-coverage", "no")) as cluster:
        yield cluster


def opened(cluster: Cluster, namespace: str) -> RedisBackend:
    """Return a backend with a short timeout."""
    with cluster.client(socket_connect_timeout=TIMEOUT) as client:
        return RedisBackend.from_client(client, namespace=namespace, timeout=TIMEOUT, retry_for=RETRY_FOR)


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
        lost = [node_of(own_cluster, keys.lock(lock.name)[0]) is stuck for lock in locks]
        limiter_keys = [keys.limiter(LimiterKey("r", f"k{number}"), ())[0] for number in range(MANY)]
        silent = [node_of(own_cluster, key) is stuck for key in limiter_keys]
        assert len({*lost}) == len({*silent}) == 2
        with frozen(stuck):
            time.sleep(3 * TAKEOVER)
            assert [lock.lost for lock in locks] == lost
            for number in range(MANY):
                assert silent[number] or not limiter.try_acquire(f"k{number}")
            for lock in locks:
                if not lock.lost:
                    lock.extend()


def keys_elsewhere(cluster: Cluster, namespace: str, stuck: Server) -> list[str]:
    """Return an ordering key for each partition that is not on this node."""
    names = partition_names("s", PARTITIONS)
    found = {partition_of_key(f"key-{number}", PARTITIONS): f"key-{number}" for number in range(100)}
    return [
        found[each] for each, name in enumerate(names) if node_of(cluster, Keys(namespace).stream(name)) is not stuck
    ]


async def lateness(
    consumer: "ailf.Consumer[float] | ailf.AsyncConsumer[float]",
    producer: "ailf.Stream[float]",
    keys: list[str],
    seconds: float,
) -> float:
    """Add messages with these keys, each with its time, and take them; return how late the latest one came."""
    latest, over = 0.0, threading.Event()

    def add() -> None:
        while not over.wait(0.3):
            for key in keys:
                producer.add(time.monotonic(), key=key)

    adding = threading.Thread(target=add)
    adding.start()
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            with contextlib.suppress(ailf.BackendError):
                delivery = await waited(consumer.get(1))
                if delivery is not None:
                    latest = max(latest, time.monotonic() - delivery.data)
                    await waited(delivery.ack())
    finally:
        over.set()
        adding.join()
    return latest


async def waited(result: Any) -> Any:
    """Return a result, awaited if it is awaitable."""
    return await result if isinstance(result, Awaitable) else result


def consuming(cluster: Cluster, namespace: str, flavour: str) -> Any:
    """Return a backend of a flavour."""
    if flavour == "blocking":
        return opened(cluster, namespace)
    return AsyncRedisBackend.from_client(
        cluster.async_client(socket_connect_timeout=TIMEOUT), namespace=namespace, timeout=TIMEOUT, retry_for=RETRY_FOR
    )


@pytest.mark.parametrize("flavour", some_of(1, ["blocking", "asyncio"]))
def test_messages_of_other_nodes_come_in_time(own_cluster: Cluster, namespace: str, flavour: str) -> None:
    """S25: a node that doesn't reply keeps messages of the others waiting once, and not at each fetch.

    Nevertheless its error is raised where there is no message, and its messages come when it replies again.
    """
    stuck = node_of(own_cluster, Keys(namespace).stream("s/0"))
    keys = keys_elsewhere(own_cluster, namespace, stuck)
    own = next(key for key in map(str, range(100)) if partition_of_key(key, PARTITIONS) == 0)

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            producer = stack.enter_context(opened(own_cluster, namespace)).stream("s", partitions=PARTITIONS)
            backend = consuming(own_cluster, namespace, flavour)
            group = backend.stream("s", partitions=PARTITIONS).group("g", takeover=TAKEOVER)
            consumer = group.consumer()
            await lateness(consumer, producer, keys, 0.5)
            with frozen(stuck):
                first = await lateness(consumer, producer, keys, 3 * TIMEOUT)
                second = await lateness(consumer, producer, keys, 6 * TIMEOUT)
                assert first < 2 * TIMEOUT
                assert second < 0.8
                with contextlib.suppress(ailf.BackendError):
                    while True:
                        for each in await waited(consumer.get_many(100, 0)):
                            await waited(each.ack())
                for timeout in (0, 0.3, 3 * TIMEOUT):
                    with pytest.raises(ailf.BackendError):
                        await waited(consumer.get(timeout))
            producer.add(1.0, key=own)
            back = time.monotonic()
            delivery = None
            while delivery is None and time.monotonic() < back + 10:
                with contextlib.suppress(ailf.BackendError):
                    delivery = await waited(consumer.get(5))
            assert delivery is not None
            assert delivery.data == 1.0
            assert time.monotonic() < back + 5
            await waited(backend.aclose() if flavour == "asyncio" else backend.close())

    asyncio.run(main())


def test_a_consumer_gives_back_what_other_nodes_have(own_cluster: Cluster, namespace: str) -> None:
    """S6: while a node doesn't reply, a consumer that closes gives back the messages of all other nodes, at once."""
    names = partition_names("s", PARTITIONS)
    nodes = [node_of(own_cluster, Keys(namespace).stream(each)) for each in names]
    stuck = nodes[0]  # the first partition would be asked first
    with opened(own_cluster, namespace) as backend, opened(own_cluster, namespace) as another:
        stream = backend.stream("s", partitions=PARTITIONS)
        for number in range(2 * PARTITIONS):
            stream.add(number)
        with another.stream("s", partitions=PARTITIONS).group("g").consumer() as heir:
            consumer = stream.group("g").consumer(prefetch=100)
            held = [consumer.get(5) for _ in range(2 * PARTITIONS)]
            theirs = {each.id for each in held if each and nodes[int(each.id.partition(":")[0])] is not stuck}
            with frozen(stuck):
                begin = time.monotonic()
                consumer.close()
                assert time.monotonic() - begin < 4 * TIMEOUT
                got: set[str] = set()
                while got != theirs and time.monotonic() < begin + 10:
                    with contextlib.suppress(ailf.BackendError):
                        delivery = heir.get(1)
                        if delivery is not None:
                            assert delivery.attempt == 1
                            got.add(delivery.id)
                assert got == theirs
