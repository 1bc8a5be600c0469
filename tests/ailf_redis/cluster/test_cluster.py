"""A real cluster: keys on every node, slots that move during calls, sharded channels, and missing capabilities."""

import asyncio
import contextlib
import threading
import time
from typing import Any

import pytest
from redis.asyncio import RedisCluster
from redis.crc import key_slot

import ailf
from ailf.driver import Capability
from ailf_redis import AsyncRedisBackend, RedisBackend
from ailf_redis.cluster.slots import SlotMap, key_of, slot_of
from ailf_redis.keys import Keys
from tests.support import binaries
from tests.support.blackhole import black_hole
from tests.support.clusters import Cluster
from tests.support.effort import SLOW

MANY = 24
"""The number of names: enough that every node has some."""


def user_client(cluster: Cluster, namespace: str, **options: object) -> RedisBackend:
    """Return a backend over a blocking client of the cluster."""
    with cluster.client() as client:
        return RedisBackend.from_client(client, namespace=namespace, **options)  # type: ignore[arg-type]  # shorthand


def test_slots_agree_with_the_servers(cluster: Cluster) -> None:
    """The slot of a key is the same here and on the servers."""
    with cluster.nodes[0].client() as raw:
        for key in ("a", "{a}b", "{}a", "a{b}{c}", "{ailf:stream:s}:due:g", "ü"):
            assert slot_of(key) == raw.execute_command("CLUSTER", "KEYSLOT", key)


def test_where_commands_go() -> None:
    """A script goes to the node of its first key, a plain channel to that of the pub/sub key, HELLO to any."""
    assert key_of(["EVALSHA", "sha", 2, "k", "l", "argument"], "pubsub-key") == "k"
    assert key_of(["XADD", "k", "*", "a", 1], "pubsub-key") == "k"
    assert key_of(["PUBLISH", "channel", b"body"], "pubsub-key") == "pubsub-key"
    assert key_of(["SPUBLISH", "channel", b"body"], "pubsub-key") == "channel"
    assert key_of(["HELLO"], "pubsub-key") is None


def test_slot_maps() -> None:
    """A node without a host is at the sender's host; a moved slot has its new node; an unserved slot has none."""
    reply = [[0, 99, [b"", 7001, b"id"], [b"b", 7002, b"id"]], [100, 199, [b"c", 7003, b"id"]]]
    slots = SlotMap.parse(reply, ("a", 7001), lambda address: address)
    assert [slots.node_for_slot(each) for each in (0, 99, 100, 200)] == [("a", 7001), ("a", 7001), ("c", 7003), None]
    assert slots.with_moved(99, ("c", 7003)).node_for_slot(99) == ("c", 7003)
    assert list(slots.addresses()) == [("a", 7001), ("c", 7003), ("b", 7002)]


def test_everything_on_every_node(cluster: Cluster, namespace: str) -> None:
    """Streams, locks and limiters work in every slot, and leases on all nodes are renewed together."""
    with user_client(cluster, namespace) as backend, contextlib.ExitStack() as held:
        leases = [held.enter_context(backend.lock(f"l{n}", ttl=0.6).hold(timeout=5)) for n in range(MANY)]
        limiter = backend.rate_limiter("r", "1 parallel ttl 0.6")
        for number in range(MANY):
            held.enter_context(limiter.hold(f"k{number}", timeout=5))
            stream = backend.stream(f"s{number}")
            stream.add_many([number, number])
            with stream.group("g").consumer() as consumer:
                deliveries = [consumer.get(5), consumer.get(5)]
                for each in deliveries:
                    assert each is not None
                    assert each.data == number
                    each.ack()
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            assert not any(each.lost for each in leases)
            time.sleep(0.05)
        assert not any(limiter.try_acquire(f"k{number}").allowed for number in range(MANY))
    slots = {key_slot(Keys(namespace).stream(f"s{number}").encode()) for number in range(MANY)}
    assert len({cluster.owner(slot).port for slot in slots}) == len(cluster.nodes)


def test_a_slot_that_moves(cluster: Cluster, namespace: str) -> None:
    """After a stream's slot has moved, an add and a consumer that waits on the former node follow it."""
    with user_client(cluster, namespace, retry_for=10.0) as backend:
        stream = backend.stream("s")
        stream.add(1)
        with stream.group("g").consumer() as consumer:
            first = consumer.get(5)
            assert first is not None
            mover = threading.Timer(0.2, cluster.move, [Keys(namespace).stream("s")])
            mover.start()
            assert consumer.get(0.6) is None  # it waits while the slot moves
            mover.join(10)
            first.ack()
            stream.add(2)
            second = consumer.get(5)
            assert second is not None
            assert (second.data, second.attempt) == (2, 1)
            second.ack()


def test_a_slot_that_is_moving(cluster: Cluster, namespace: str) -> None:
    """While a slot moves, a command on a key that the node doesn't have is sent to the other node, without a retry."""
    key = Keys(namespace).stream("s")
    source, target = cluster.begin_to_move(key)
    with user_client(cluster, namespace, retry_for=0.0) as backend:
        backend.stream("s").add("asked")
        with target.client() as raw:
            raw.execute_command("ASKING")
            assert raw.execute_command("CLUSTER", "COUNTKEYSINSLOT", key_slot(key.encode())) == 2
        cluster.finish(key, source, target)
        assert [each.data for each in backend.stream("s").read()] == ["asked"]


def test_sharded_channels(cluster: Cluster, namespace: str) -> None:
    """One subscription receives the sharded channels of every node, beside plain channels and patterns."""

    async def main() -> None:
        backend = AsyncRedisBackend.from_client(cluster.async_client(), namespace=namespace)
        async with backend:
            shards, plain = backend.pubsub(sharded=True), backend.pubsub()
            names = [f"c{number}" for number in range(MANY)]
            async with shards.listen(*names) as some, plain.listen("p", pattern="q.*") as others:
                for name in names:
                    await shards.publish(name, name)
                await plain.publish_many([("p", 1), ("q.1", 2)])
                got = {(await some.get(5)).data for _ in names}  # type: ignore[union-attr]
                assert got == set(names)
                assert [(await others.get(5)).data for _ in range(2)] == [1, 2]  # type: ignore[union-attr]

    asyncio.run(main())


def test_a_sharded_channel_that_moves(cluster: Cluster, namespace: str) -> None:
    """After its slot has moved, a sharded channel is subscribed to on its new node, behind a gap."""
    with user_client(cluster, namespace) as backend:
        shards = backend.pubsub(sharded=True)
        with shards.listen("c") as events:
            shards.publish("c", 1)
            assert events.get(5) == ailf.Message("c", 1)
            cluster.move(Keys(namespace).channel("c"))
            assert isinstance(events.get(10), ailf.Gap)
            shards.publish("c", 2)
            assert events.get(5) == ailf.Message("c", 2)


@SLOW
def test_a_master_that_dies() -> None:
    """Calls wait for its replica, consumers and subscriptions come back, and no message that was added is lost."""
    version, binary = next(reversed(binaries.found().items()))
    with contextlib.closing(Cluster(binary, version)) as cluster, user_client(cluster, "ns", retry_for=120) as backend:
        stream, pubsub = backend.stream("s"), backend.pubsub()
        master = cluster.owner(slot_of(Keys("ns").stream("s")))
        replica = cluster.add_replica(master)
        with pubsub.listen("c") as events, stream.group("g").consumer() as consumer:
            stream.add(1)
            cluster.fail_over(master, replica)
            stream.add(2)
            deliveries = [consumer.get(120) for _ in range(2)]
            assert [each and each.data for each in deliveries] == [1, 2]
            pubsub.publish("c", "after")
            assert ailf.Message("c", "after") in (events.get(60), events.get(1))


def test_what_a_cluster_lacks(cluster: Cluster, namespace: str) -> None:
    """B2: a lock of several names would need several slots in one step; it is not declared, and refused when made."""
    with user_client(cluster, namespace) as backend:
        assert Capability.SEVERAL_LOCKS not in backend.capabilities
        with pytest.raises(ailf.UnsupportedError, match="locks of several names"):
            backend.lock("a", "b")
        assert backend.lock("a", "a").names == ("a",)


def test_a_reader_that_never_began(cluster: Cluster, namespace: str) -> None:
    """If the reader of a node is cancelled before its first step, the subscription is made again in time."""

    async def main() -> None:
        backend = AsyncRedisBackend.from_client(cluster.async_client(), namespace=namespace)
        async with asyncio.timeout(20), backend:
            pubsub = backend.pubsub()

            async def subscribe() -> None:
                async with pubsub.listen("c"):
                    pass

            subscribing = asyncio.create_task(subscribe())
            readers: list[asyncio.Task[object]] = []
            while not readers:
                await asyncio.sleep(0)
                readers = [each for each in asyncio.all_tasks() if each.get_name() == "ailf-shard"]
            readers[0].cancel()
            await subscribing

    asyncio.run(main())


def test_a_cluster_that_is_away() -> None:
    """If no node replies, a call ends with an error that names the nodes."""

    async def main() -> None:
        backend = AsyncRedisBackend.from_client(RedisCluster(host="127.0.0.1", port=1), retry_for=0)
        with pytest.raises(ailf.ConnectionLostError, match=r"any node of redis\+cluster://127\.0\.0\.1:1"):
            await backend.ping()
        await backend.aclose()

    asyncio.run(main())


TIMEOUT = 0.5


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_the_timeout_bounds_connecting_to_each_node(cluster: Cluster, namespace: str, flavour: str) -> None:
    """B10: a call to a node that can't be reached ends within `timeout`, though redis-py alone has 5 s to connect."""
    with black_hole() as hole, cluster.client() as client:

        def remap(address: tuple[str, int]) -> tuple[str, int]:
            return hole if address[1] == cluster.nodes[0].port else address

        options: dict[str, Any] = {"namespace": namespace, "timeout": TIMEOUT, "retry_for": 0.0}
        names = [f"s{each}" for each in range(12)]
        if flavour == "blocking":
            client.nodes_manager.address_remap = remap
            with RedisBackend.from_client(client, **options) as backend:
                outcomes = [timed_add(backend.stream(each)) for each in names]
        else:

            async def main() -> list[tuple[bool, float]]:
                async with cluster.async_client() as own:
                    own.nodes_manager.address_remap = remap
                    backend = AsyncRedisBackend.from_client(own, **options)
                    taken = [await timed_async_add(backend.stream(each)) for each in names]
                    await backend.aclose()
                    return taken

            outcomes = asyncio.run(main())
    assert {added for added, _ in outcomes} == {False, True}
    assert max(took for _, took in outcomes) < 3 * TIMEOUT + 0.5, "the number of the stream is asked before it is added"


def timed_add(stream: Any) -> tuple[bool, float]:
    """Return whether an add succeeded, and how long it took."""
    begin, added = time.monotonic(), False
    with contextlib.suppress(ailf.BackendError):
        stream.add(1)
        added = True
    return added, time.monotonic() - begin


async def timed_async_add(stream: Any) -> tuple[bool, float]:
    """Do the same on asyncio."""
    begin, added = time.monotonic(), False
    with contextlib.suppress(ailf.BackendError):
        await stream.add(1)
        added = True
    return added, time.monotonic() - begin
