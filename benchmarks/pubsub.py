"""Pub/sub: the deliveries of one subscription, and of ten in one process; and the time that one message takes.

    python benchmarks/pubsub.py [--quick] [--runs 5] [CONTENDER …]

The publisher is the same for all: a socket to which ready-made PUBLISH commands of 100 bytes are written, with replies
switched off. So only the subscribers are measured. *one/s* and *ten/s* count deliveries, from before the first write
to the last delivery; ten subscriptions to one channel get ten deliveries of each message. *one way* is the median time
from before a write until the subscriber has the message, one message at a time.
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
"""The channel on the server: ailf puts its namespace before the user's channel "bench"."""

TEN: Final = 10
BUFFER: Final = 1_000_000
"""The buffer of ailf's subscriptions, in messages; the peers have no bound."""

PATIENCE: Final = 30.0
COLUMNS: Final = [Column("one/s"), Column("ten/s"), Column("one way, µs", less=True)]

Open = Callable[[str, int, Callable[[], None]], AbstractAsyncContextManager[None]]
"""A context manager that subscribes as often as the number says, and calls the function at each delivery."""


# --- subscribers -------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _loops(loops: list[AsyncCall]) -> AsyncIterator[None]:
    """Run loops in tasks until the block ends."""
    tasks = [asyncio.ensure_future(loop()) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def ours(url: str, count: int, delivered: Callable[[], None]) -> AsyncIterator[None]:
    """Listen with ailf, on one connection, with buffers for all messages."""
    async with AsyncExitStack() as stack:
        pubsub = (await stack.enter_async_context(ailf.connect_async(url))).pubsub(type=bytes)
        listening = [await stack.enter_async_context(pubsub.listen("bench", buffer=BUFFER)) for _ in range(count)]

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
        broadcast._backend._ready.set()  # noqa: SLF001 - over redis-py 8 its reader waits for this for ever

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
    """A socket that publishes, and gets no replies."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._socket = socket.create_connection((where.hostname, where.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(hiredis.pack_command(("CLIENT", "REPLY", "OFF")))
        self._message = hiredis.pack_command(("PUBLISH", CHANNEL, BODY))

    def publish(self, count: int = 1) -> None:
        """Publish `count` messages in one write."""
        self._socket.sendall(self._message * count)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class Deliveries:
    """Counts deliveries."""

    def __init__(self) -> None:
        self._wanted = self._count = 0
        self._all = asyncio.Event()
        self.last = 0.0

    def expect(self, wanted: int) -> None:
        """Begin to count again, up to `wanted` deliveries."""
        self._wanted, self._count = wanted, 0
        self._all.clear()

    def delivered(self) -> None:
        """Count one delivery."""
        self._count += 1
        if self._count == self._wanted:
            self.last = time.perf_counter()
            self._all.set()

    async def all(self) -> None:
        """Wait until all deliveries are counted."""
        async with asyncio.timeout(PATIENCE):
            await self._all.wait()


def measure(subscribe: Open, url: str, effort: Effort) -> Numbers:
    """Measure all three columns."""
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
    """Return the rate of many messages, and the median time of a single one; single ones go first, to warm up."""
    deliveries = Deliveries()
    async with subscribe(url, count, deliveries.delivered):
        await asyncio.sleep(0.1)  # not every library confirms a subscription
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
    """Measure the chosen contenders, and print the table."""
    effort = bench.effort(__doc__)
    with bench.server() as url:
        contenders = {name: partial(measure, each, url, effort) for name, each in CONTENDERS.items()}
        rows = bench.play(effort.chosen(contenders), effort.runs)
    bench.table("deliveries, asyncio (in brackets: how many times better ailf is)", COLUMNS, rows)


if __name__ == "__main__":
    main()
