"""A client that Sentinels lead to the master: it goes on with the new one when the master is gone."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
import redis
from redis import asyncio as aredis
from redis.asyncio import sentinel as asentinel
from redis.sentinel import Sentinel

import ailf
from ailf_redis import AsyncRedisBackend, RedisBackend
from tests import binaries
from tests.clusters import Watch, until

OPTIONS = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0}


@pytest.fixture
def watch() -> Iterator[Watch]:
    """A master, a replica and a Sentinel of the newest server."""
    version, binary = next(reversed(binaries.found().items()))
    with Watch(binary, version) as started:
        yield started


def blocking_client(watch: Watch) -> redis.Redis:
    """A client for the master, whoever that is."""
    return Sentinel(watch.addresses(), **OPTIONS).master_for(watch.SERVICE, decode_responses=True)


def asyncio_client(watch: Watch) -> aredis.Redis:
    """The same for asyncio."""
    return asentinel.Sentinel(watch.addresses(), **OPTIONS).master_for(watch.SERVICE, decode_responses=True)


def lose_master(watch: Watch) -> None:
    """Kill the master when its replica has everything; return when the replica is the master."""
    master = watch.master
    with master.client() as raw:
        raw.set("last", 1)  # WAIT is for what this connection wrote, and so for all that was written before
        assert raw.wait(1, 5000) == 1
    master.kill()
    until("no failover", lambda: watch.master is not master)


def test_a_failover_on_threads(watch: Watch) -> None:
    """Calls, leases and subscriptions outlive the master; a gap is announced, and nothing that was added is lost."""
    with RedisBackend.from_client(blocking_client(watch), retry_for=10) as backend:
        stream, pubsub = backend.stream("s"), backend.pubsub()
        with pubsub.listen("c") as events, backend.lock("l", ttl=6).hold() as lease:
            stream.add(1)
            failing = threading.Thread(target=lose_master, args=(watch,))
            failing.start()
            failing.join(20)
            stream.add(2)
            assert isinstance(events.get(10), ailf.Gap)
            pubsub.publish("c", "after")
            assert events.get(10) == ailf.Message("c", "after")
            assert not lease.lost
        assert [each.data for each in stream.read()] == [1, 2]
        with stream.group("g").consumer() as consumer:
            delivery = consumer.get(5)
            assert delivery is not None
            delivery.ack()


def test_a_failover_on_asyncio(watch: Watch) -> None:
    """The same on asyncio, where leases are renewed by a thread that the asyncio client's Sentinels lead too."""

    async def main() -> None:
        async with AsyncRedisBackend.from_client(asyncio_client(watch), retry_for=10) as backend:
            stream, pubsub = backend.stream("s"), backend.pubsub()
            async with pubsub.listen("c") as events, backend.lock("l", ttl=6).hold() as lease:
                await stream.add(1)
                await asyncio.to_thread(lose_master, watch)
                await stream.add(2)
                assert isinstance(await events.get(10), ailf.Gap)
                await pubsub.publish("c", "after")
                assert await events.get(10) == ailf.AsyncMessage("c", "after")
                await lease.extend()
                assert not lease.lost
            assert [each.data for each in await stream.read()] == [1, 2]

    asyncio.run(main())


def test_a_master_that_becomes_a_replica(watch: Watch) -> None:
    """Who still talks to a demoted master is led to the new one; it is not told that it can't write."""
    with RedisBackend.from_client(blocking_client(watch), retry_for=10) as backend:
        stream = backend.stream("s")
        stream.add(1)
        demoted = watch.master
        other = next(each for each in watch.servers if each is not demoted)
        with other.client() as new, demoted.client() as old, watch.sentinel.client() as sentinel:
            old.set("last", 1)
            assert old.wait(1, 5000) == 1
            sentinel.execute_command("SENTINEL", "REMOVE", watch.SERVICE)  # or it would cut the old connections itself
            new.execute_command("REPLICAOF", "NO", "ONE")
            old.execute_command("REPLICAOF", "127.0.0.1", other.port)
            sentinel.execute_command("SENTINEL", "MONITOR", watch.SERVICE, "127.0.0.1", other.port, 1)
        stream.add(2)
        stream.add_many([3, 4])
        assert [each.data for each in stream.read()] == [1, 2, 3, 4]


def test_replicas_are_refused() -> None:
    """A client of replicas can't write, and is refused when it is brought."""
    client = Sentinel([("127.0.0.1", 1)]).slave_for("watched")
    with pytest.raises(ailf.InvalidArgumentError, match="replicas can't write"):
        RedisBackend.from_client(client)


def test_no_sentinel_answers() -> None:
    """Where no Sentinel answers, opening fails at once and says so."""
    client = Sentinel([("127.0.0.1", 1)], **OPTIONS).master_for("watched")
    with RedisBackend.from_client(client, retry_for=0) as backend:
        with pytest.raises(ailf.ConnectionLostError, match="no Sentinel knows a healthy master 'watched'"):
            backend.stream("s").add(1)
        with pytest.raises(ailf.ConnectionLostError, match=r"sentinel://127\.0\.0\.1:1/watched"):
            backend.ping()
