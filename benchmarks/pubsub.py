"""Pub/sub: what one subscriber takes, what ten take in one process, and how long one message is under way.

    python benchmarks/pubsub.py [--quick] [--runs 5] [CONTENDER …]

The publisher is the same for all: a socket to which ready-made PUBLISH commands of 100 bytes are written, with the
server told not to answer. So what is told are the subscribers alone. *one/s* and *ten/s* count deliveries, from before
the first write to the last delivery; ten subscriptions of one channel get ten deliveries of each message. *one way* is
from before the write until the subscriber has the message, one at a time, in the median.
"""

import asyncio
import contextlib
import socket
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import bench
import hiredis
from bench import BODY, AsyncCall, Column, Effort, Numbers
from redis import asyncio as aredis

import ailf

CHANNEL: Final = "ailf:channel:bench"
"""As it is on the server; ailf puts its namespace before what its users call "bench"."""

TEN: Final = 10
ROOM: Final = 1_000_000
"""How many messages may wait in a subscription of ours: the peers have no bound."""

PATIENCE: Final = 30.0
COLUMNS: Final = [Column("one/s"), Column("ten/s"), Column("one way, µs", less=True)]

Open = Callable[[str, int, Callable[[], None]], AbstractAsyncContextManager[None]]
"""Subscribe so often, and call this with each delivery, until left."""


# --- subscribers -------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _loops(loops: list[AsyncCall]) -> AsyncIterator[None]:
    """Run loops until left."""
    tasks = [asyncio.ensure_future(loop()) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def ours(url: str, count: int, delivered: Callable[[], None]) -> AsyncIterator[None]:
    """Listen with ailf, on one connection, with room for everything."""
    async with AsyncExitStack() as stack:
        pubsub = (await stack.enter_async_context(ailf.connect_async(url))).pubsub(type=bytes)
        listening = [await stack.enter_async_context(pubsub.listen("bench", buffer=ROOM)) for _ in range(count)]

        async def listen(subscription: Any) -> None:
            async for message in subscription:
                assert message.data is not None
                delivered()

        await stack.enter_async_context(_loops([partial(listen, each) for each in listening]))
        yield


@contextlib.asynccontextmanager
async def redis_py(url: str, count: int, delivered: Callable[[], None]) -> AsyncIterator[None]:
    """Listen with redis-py: each subscription has a connection."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(aredis.Redis.from_url(url))
        listening = [await stack.enter_async_context(client.pubsub()) for _ in range(count)]
        for each in listening:
            await each.subscribe(CHANNEL)

        async def listen(subscription: Any) -> None:
            async for message in subscription.listen():
                if message["type"] == "message":
                    delivered()

        await stack.enter_async_context(_loops([partial(listen, each) for each in listening]))
        yield


@contextlib.asynccontextmanager
async def broadcaster(url: str, count: int, delivered: Callable[[], None]) -> AsyncIterator[None]:
    """Listen with broadcaster, on one connection."""
    async with AsyncExitStack() as stack:
        broadcast = await stack.enter_async_context(bench.peer("broadcaster").Broadcast(url))
        listening = [await stack.enter_async_context(broadcast.subscribe(CHANNEL)) for _ in range(count)]
        broadcast._backend._ready.set()  # noqa: SLF001 - over redis-py 8 its reader looks too early, and waits for this

        async def listen(subscription: Any) -> None:
            async for _ in subscription:
                delivered()

        await stack.enter_async_context(_loops([partial(listen, each) for each in listening]))
        yield


@contextlib.asynccontextmanager
async def faststream(url: str, count: int, delivered: Callable[[], None]) -> AsyncIterator[None]:
    """Listen with FastStream: each handler has a connection."""
    broker = bench.peer("faststream.redis").RedisBroker(url, logger=None)

    async def handle(_: bytes) -> None:
        delivered()

    for _ in range(count):
        broker.subscriber(CHANNEL)(handle)
    async with broker:
        await broker.start()
        yield


CONTENDERS: Mapping[str, Open] = {
    "ailf": ours,
    "redis-py": redis_py,
    "broadcaster": broadcaster,
    "faststream": faststream,
}


# --- measuring ---------------------------------------------------------------------------------------------------


class Publisher:
    """A socket that publishes, and never hears of it."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._socket = socket.create_connection((where.hostname, where.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(hiredis.pack_command(("CLIENT", "REPLY", "OFF")))
        self._message = hiredis.pack_command(("PUBLISH", CHANNEL, BODY))

    def publish(self, count: int = 1) -> None:
        """Publish so many."""
        self._socket.sendall(self._message * count)

    def close(self) -> None:
        """End it."""
        self._socket.close()


class Deliveries:
    """What has come so far."""

    def __init__(self) -> None:
        self._wanted = self._count = 0
        self._all = asyncio.Event()
        self.last = 0.0

    def expect(self, wanted: int) -> None:
        """Count anew."""
        self._wanted, self._count = wanted, 0
        self._all.clear()

    def delivered(self) -> None:
        """Take one."""
        self._count += 1
        if self._count == self._wanted:
            self.last = time.perf_counter()
            self._all.set()

    async def all(self) -> None:
        """Return when all have come."""
        async with asyncio.timeout(PATIENCE):
            await self._all.wait()


def measure(subscribe: Open, url: str, effort: Effort) -> Numbers:
    """Measure all three."""
    return asyncio.run(_measure(subscribe, url, effort))


async def _measure(subscribe: Open, url: str, effort: Effort) -> Numbers:
    messages = effort.pick(5_000, 50_000)
    with contextlib.closing(Publisher(url)) as publisher:
        one, one_way = await _deliver(subscribe, url, publisher, 1, messages, effort.pick(100, 500))
        ten, _ = await _deliver(subscribe, url, publisher, TEN, messages // TEN, 1)
    return {"one/s": one, "ten/s": ten, "one way, µs": one_way * 1e6}


async def _deliver(
    subscribe: Open, url: str, publisher: Publisher, count: int, messages: int, ones: int
) -> tuple[float, float]:
    """Return the rate of many, and the median time of one; first the single ones, which wake everything."""
    deliveries = Deliveries()
    async with subscribe(url, count, deliveries.delivered):
        await asyncio.sleep(0.1)  # not everybody says when a subscription is there
        times = [await _one(publisher, deliveries, count) for _ in range(ones)]
        deliveries.expect(count * messages)
        began = time.perf_counter()
        await asyncio.to_thread(publisher.publish, messages)
        await deliveries.all()
        return count * messages / (deliveries.last - began), statistics.median(times)


async def _one(publisher: Publisher, deliveries: Deliveries, count: int) -> float:
    deliveries.expect(count)
    began = time.perf_counter()
    publisher.publish()
    await deliveries.all()
    await asyncio.sleep(0.001)
    return deliveries.last - began


def main() -> None:
    """Measure all that is asked for."""
    effort = bench.effort(__doc__)
    with bench.server() as url:
        contenders = {name: partial(measure, each, url, effort) for name, each in CONTENDERS.items()}
        rows = bench.play(effort.chosen(contenders), effort.runs)
    bench.table("deliveries, asyncio (in brackets: how many times better ailf is)", COLUMNS, rows)


if __name__ == "__main__":
    main()
