"""One backend in several event loops, one after another: connections of an ended loop are closed and not used."""

import asyncio
import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

import ailf
from ailf.messaging.redis import AsyncRedisClient, RedisConfig
from ailf_redis import AsyncRedisBackend
from tests.ailf_redis.test_leftovers import clients, sockets
from tests.support.clusters import Cluster
from tests.support.servers import NewServer, Server
from tests.support.tls import HOST, Certificates, Terminator

Open = Callable[[], ailf.AsyncBackend]
EXECUTORS = ("url", "unix", "tls", "user_client", "cluster")


@pytest.fixture(params=EXECUTORS)
def open_backend(
    request: pytest.FixtureRequest, new_server: NewServer, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Open]:
    """Return a function that makes a backend outside of any event loop, for each kind of connection."""
    if request.param == "cluster":
        yield lambda: AsyncRedisBackend.from_client(asyncio.run(user_client(cluster)))
        return
    server = new_server(unixsocket=True)
    if request.param == "tls":
        certificates = Certificates.make(tmp_path_factory.mktemp("tls"))
        with Terminator(certificates, server.port) as tls:
            yield lambda: AsyncRedisBackend(f"rediss://{HOST}:{tls.port}/0?tls_ca={certificates.ca}")
    elif request.param == "user_client":
        yield lambda: AsyncRedisBackend.from_client(redis.asyncio.Redis.from_url(server.url))
    else:
        yield lambda: AsyncRedisBackend(server.unix_url if request.param == "unix" else server.url)


async def user_client(cluster: Cluster) -> "redis.asyncio.RedisCluster":
    """Return a client of a cluster that has no open connection."""
    client = cluster.async_client()
    await client.initialize()
    await client.aclose()
    return client


async def leave_open(backend: ailf.AsyncBackend, number: int) -> None:
    """Use everything, and leave it open."""
    stream, pubsub = backend.stream(f"s{number}"), backend.pubsub()
    subscription = pubsub.listen("c")
    await subscription.__aenter__()
    await asyncio.gather(*(pubsub.publish("c", each) for each in range(5)))
    assert sorted([(await subscription.get(5)).data for _ in range(5)]) == list(range(5))  # type: ignore[union-attr]
    consumer = stream.group("g").consumer()
    await consumer.__aenter__()
    assert await consumer.get(0.05) is None
    await stream.add(1)
    delivery = await consumer.get(5)
    assert delivery is not None
    await delivery.ack()
    async with backend.lock("l").hold(timeout=5):
        pass
    await consumer.aclose()


@pytest.mark.parametrize("politely", [True, False])
def test_the_sockets_of_a_loop_that_has_ended_are_closed(open_backend: Open, politely: bool) -> None:
    """The first call in the next loop closes every socket of the loop before, without a warning."""
    backend = open_backend()
    gc.collect()
    before = sockets()
    for number in range(3):
        if politely:
            asyncio.run(leave_open(backend, number))
        else:
            loop = asyncio.new_event_loop()
            loop.run_until_complete(leave_open(backend, number))
            for task in asyncio.all_tasks(loop):
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # its loop is closed before it ends
            loop.close()

    async def last() -> None:
        own = sockets()
        await backend.ping()
        assert len(sockets()) <= len(own), "sockets of earlier loops are open"
        await backend.aclose()

    asyncio.run(last())
    gc.collect()
    assert sockets() == before


def test_a_stopped_loop_runs_again(any_server: Server, namespace: str) -> None:
    """A loop that is stopped and not closed loses its connections, and connects anew when it runs again."""
    backend = AsyncRedisBackend(f"{any_server.url}?namespace={namespace}")
    stopped = asyncio.new_event_loop()

    async def add(number: int) -> list[object]:
        await backend.stream("s").add(number)
        return [entry.data for entry in await backend.stream("s").read()]

    for turn in range(3):
        assert stopped.run_until_complete(add(2 * turn)) == list(range(2 * turn + 1))
        assert asyncio.run(add(2 * turn + 1)) == list(range(2 * turn + 2))
    stopped.run_until_complete(backend.aclose())
    stopped.close()


def test_the_raw_client_is_one_of_each_loop(new_server: NewServer) -> None:
    """`unwrap` returns a client that works in the running loop, and the same one for the same loop."""
    server = new_server()
    backend = AsyncRedisBackend(server.url)
    seen = []

    async def main(*, last: bool) -> None:
        raw = backend.unwrap(redis.asyncio.Redis)
        assert backend.unwrap(redis.asyncio.Redis) is raw
        assert await raw.ping()
        assert raw not in seen
        seen.append(raw)
        if last:
            await backend.aclose()

    outside = backend.unwrap(redis.asyncio.Redis)
    for number in range(3):
        asyncio.run(main(last=number == 2))
    assert seen[0] is outside
    assert clients(server) == 0


def test_the_client_of_earlier_code_goes_on_in_the_next_loop(any_server: Server, namespace: str) -> None:
    """AsyncRedisClient reconnects in each event loop."""
    client = AsyncRedisClient(RedisConfig(host="127.0.0.1", port=any_server.port))

    async def main(*, last: bool) -> None:
        assert await client.set(namespace, "v", expire=60)
        assert await client.get(namespace) == "v"
        if last:
            await client.close()

    for number in range(3):
        asyncio.run(main(last=number == 2))


def test_a_consumer_goes_on_in_the_next_loop(open_backend: Open) -> None:
    """A consumer that stays open over several loops fetches and acks in each, over connections of that loop."""
    backend = open_backend()
    group = backend.stream("s").group("g")
    consumer = group.consumer()

    async def main(number: int) -> None:
        getting = asyncio.create_task(consumer.get(5))
        await asyncio.sleep(0.05)
        await backend.stream("s").add(number)
        delivery = await getting
        assert delivery is not None
        assert delivery.data == number
        await delivery.ack()
        if number == 2:
            await consumer.aclose()
            assert (await group.info()).pending == 0
            await backend.aclose()

    for number in range(3):
        asyncio.run(main(number))


@pytest.mark.parametrize("closes", [False, True])
def test_a_loop_that_ends_keeps_no_watch(open_backend: Open, closes: bool) -> None:
    """S19: consumers that waited when a loop ended, and those that follow them, are woken in the next one."""
    backend = open_backend()
    group = backend.stream("watched").group("g", lease=1000, takeover=1000)
    consumers = [group.consumer() for _ in range(2)]
    calls: list[asyncio.Task[Any]] = []

    async def leave_waiting() -> None:
        calls.extend(asyncio.create_task(each.get()) for each in consumers)
        await asyncio.sleep(0.2)

    async def be_woken() -> None:
        if closes:
            for each in consumers:
                await each.aclose()
            consumers[:] = [group.consumer() for _ in range(2)]
        calls[:] = [asyncio.create_task(each.get()) for each in consumers]
        await asyncio.sleep(0.2)
        for number in range(2):
            await backend.stream("watched").add(number)
            waiting = [each for each in calls if not each.done()]
            done, _ = await asyncio.wait(waiting, timeout=5, return_when=asyncio.FIRST_COMPLETED)
            assert len(done) == 1
            for call in done:
                await call.result().ack()
        await backend.aclose()

    asyncio.run(leave_waiting())
    asyncio.run(be_woken())


def test_a_worker_ends_with_its_loop_and_another_one_begins(open_backend: Open) -> None:
    """`process` in several loops, each ended by cancelling all tasks, loses no message."""
    backend = open_backend()
    stream = backend.stream("s")
    handled: set[int] = set()

    async def main(number: int) -> None:
        group = stream.group("g", lease=0.5, takeover=0.5)
        done = asyncio.Event()

        async def handler(delivery: ailf.AsyncDelivery[int]) -> None:
            handled.add(delivery.data)
            if len(handled) >= 10 * (number + 1):
                done.set()

        await stream.add_many(range(10 * number, 10 * number + 10))
        working = asyncio.create_task(group.process(handler, concurrency=4))
        await asyncio.wait_for(done.wait(), 10)
        assert not working.done()
        if number == 2:
            group.stop()
            await working
            await backend.aclose()

    for number in range(3):
        asyncio.run(main(number))
    assert handled == set(range(30))


def test_closing_in_the_next_loop(open_backend: Open) -> None:
    """A backend that one loop left open can be closed in the next one, and no socket stays."""
    gc.collect()
    before = sockets()
    backend = open_backend()
    asyncio.run(leave_open(backend, 0))
    asyncio.run(backend.aclose())
    gc.collect()
    assert len(sockets()) <= len(before)
    with contextlib.suppress(ailf.ClosedError):
        asyncio.run(backend.ping())
        pytest.fail("it is closed")
