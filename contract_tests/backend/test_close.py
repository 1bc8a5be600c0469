"""B3, P10, S6: close and stop take effect promptly, end each call in the right way, and leave nothing behind."""

import asyncio
import contextlib
import gc
import os
import stat
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.helpers.threads import running_threads
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.PUBSUB, Capability.PATTERNS, Capability.STREAM)

PROMPT = 0.5
"""Seconds: half of the longest single wait on a backend, so that waiting it out is not prompt."""

TRIES = 3
"""The number of tries: a busy machine is late at times, a backend that isn't prompt always."""


def held() -> set[object]:
    """Return the threads (without the suite's own), tasks and open sockets of this process."""
    resources: set[object] = {*running_threads(), *asyncio.all_tasks()}
    for each in Path("/dev/fd").iterdir():
        with contextlib.suppress(OSError):  # the descriptor that listed this folder is closed by now
            status = os.fstat(int(each.name))
            if stat.S_ISSOCK(status.st_mode):
                resources.add(f"socket {status.st_ino}")
    return resources


async def test_close_wakes_every_call(world: World) -> None:
    """B3: closing ends every blocked call with ClosedError; closing again changes nothing."""
    backend = await world.connect()
    stream, pubsub = backend.stream("s"), backend.pubsub()
    consumer, subscription, tail = stream.group("g").consumer(), pubsub.listen("c"), stream.tail()
    await consumer.__aenter__()
    await subscription.__aenter__()
    await pubsub.subscribe("d", print)
    blocked = [
        asyncio.ensure_future(each)
        for each in (
            consumer.__anext__(), consumer.get(), subscription.__anext__(), subscription.get(), tail.__anext__(),
            pubsub.run(), stream.group("h").process(print, concurrency=2),
        )
    ]  # fmt: skip
    await asyncio.sleep(0.1)
    assert not any(each.done() for each in blocked)
    await world.within_patience(asyncio.gather(backend.aclose(), backend.aclose()))
    await world.within_patience(backend.aclose())
    outcomes = await world.within_patience(asyncio.gather(*blocked, return_exceptions=True))
    assert [type(each) for each in outcomes] == [ailf.ClosedError] * len(blocked)


async def test_dropped(world: World) -> None:
    """B9: a backend that was dropped without close leaves nothing behind, and a ResourceWarning names its URL."""

    async def use_and_drop() -> str:
        backend = await world.connect()
        world.untrack(backend)
        await backend.pubsub().listen("c").__aenter__()
        await backend.stream("s").add(1)
        return str(backend.url)

    before = held()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        url = await use_and_drop()
        await world.until(lambda: gc.collect() is not None and any(url in str(each.message) for each in caught))
        await world.until(lambda: held() <= before)


async def test_calls_after_close(world: World) -> None:
    """B3: after close every call raises ClosedError, on the backend and on objects made before."""
    backend = await world.connect()
    stream, pubsub = backend.stream("s"), backend.pubsub()
    await stream.add(1)
    group, subscription = stream.group("g"), pubsub.listen("c")
    consumer = group.consumer()
    await consumer.__aenter__()
    await subscription.__aenter__()
    delivery = await world.take(consumer)
    await backend.aclose()
    for call in (
        backend.ping,
        lambda: stream.add(1),
        lambda: stream.add_many([1]),
        stream.read,
        stream.delete,
        lambda: stream.tail().__anext__(),
        group.open,
        group.dead_letters.list,
        lambda: group.process(print),
        consumer.get,
        lambda: pubsub.publish("c", 1),
        lambda: pubsub.subscribe("c", print),
        lambda: pubsub.listen("d").__aenter__(),
        subscription.get,
    ):
        with pytest.raises(ailf.ClosedError):
            await world.within_patience(call())
    for make in (backend.pubsub, lambda: backend.stream("t")):
        with pytest.raises(ailf.ClosedError):
            make()
    with pytest.raises((ailf.ClosedError, ailf.LeaseLostError)):
        await delivery.ack()


async def test_close_leaves_nothing(world: World) -> None:
    """B3: after close no thread, task or socket is left, whatever the backend was used for or waits for."""
    before = held()
    backend = await world.connect()
    stream, pubsub = backend.stream("s"), backend.pubsub()
    await stream.add_many(range(3))
    consumer, subscription = stream.group("g").consumer(), pubsub.listen("c", pattern="c*")
    await consumer.__aenter__()
    await subscription.__aenter__()
    assert (await world.take(consumer)).data == 0  # it stays unsettled, so its lease is renewed
    tail = stream.tail(ailf.EARLIEST)
    assert (await tail.__anext__()).data == 0
    waiting = asyncio.ensure_future(subscription.get())
    working = asyncio.ensure_future(stream.group("h").process(print, concurrency=2))
    await asyncio.sleep(0.05)
    await backend.aclose()
    await world.within_patience(asyncio.gather(waiting, working, return_exceptions=True))
    del waiting, working
    await world.until(lambda: held() <= before)
    after = held() - before
    assert not after


async def test_ends_promptly(world: World) -> None:
    """P10: stop() and close() from another task end run(), an idle iteration and the backend promptly and normally."""
    for _ in range(TRIES):
        backend = await world.connect()
        pubsub = backend.pubsub()
        await pubsub.subscribe("c", print)
        running = asyncio.ensure_future(pubsub.run())
        subscription = pubsub.listen("c")
        await subscription.__aenter__()
        iterating, getting = (asyncio.ensure_future(each) for each in (subscription.__anext__(), subscription.get()))
        await asyncio.sleep(0.05)
        begin = time.monotonic()
        pubsub.stop()
        await world.within_patience(running)
        await world.within_patience(subscription.aclose())
        with pytest.raises(StopAsyncIteration):
            await world.within_patience(iterating)
        assert await world.within_patience(getting) is None
        await world.within_patience(backend.aclose())
        if time.monotonic() - begin < PROMPT:
            return
    pytest.fail(f"in each of {TRIES} tries it took over {PROMPT} s to end")


async def test_stop_in_a_handler(world: World) -> None:
    """P10: a handler can stop run(), and after another subscribe it can be run again."""
    pubsub = (await world.connect()).pubsub()
    heard: list[Any] = []

    async def handler(message: Any) -> None:
        heard.append(message.data)
        pubsub.stop()

    for repeat in range(2):
        await pubsub.subscribe("c", handler)
        await pubsub.publish("c", repeat)
        await world.within_patience(pubsub.run())
        await pubsub.unsubscribe("c")
    assert heard == [0, 1]


@pytest.mark.parametrize("way", ["backend", "consumer", "process"])
async def test_consuming_ends_promptly(world: World, way: str) -> None:
    """B3, S14: an idle consumer or worker ends promptly, and not only at the end of a wait on the backend."""
    for _ in range(TRIES):
        backend = await world.connect()
        group = backend.stream("s").group("g")
        consumer = group.consumer()
        await consumer.__aenter__()
        waiting = asyncio.ensure_future(group.process(print, concurrency=2) if way == "process" else consumer.get())
        await asyncio.sleep(0.1)
        begin = time.monotonic()
        if way == "backend":
            await world.within_patience(backend.aclose())
        elif way == "consumer":
            consumer.stop()
        else:
            group.stop()
        (outcome,) = await world.within_patience(asyncio.gather(waiting, return_exceptions=True))
        took = time.monotonic() - begin
        assert isinstance(outcome, ailf.ClosedError) if way == "backend" else outcome is None
        if took < PROMPT:
            return
    pytest.fail(f"in each of {TRIES} tries it took over {PROMPT} s to end")


async def test_a_stopped_consumer(world: World) -> None:
    """S6: stop() ends the iteration normally, deliveries can still be settled, and close gives back the rest."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(4))
    group = stream.group("g", lease=60)
    seen = []
    async with group.consumer(prefetch=4) as consumer:
        async for delivery in consumer:
            seen.append(delivery.data)
            if len(seen) == 2:
                consumer.stop()
            await delivery.ack()
        assert await consumer.get() is None
    assert seen == [0, 1]
    async with group.consumer() as other:
        assert [(each.data, each.attempt) for each in [await world.take(other) for _ in range(2)]] == [(2, 1), (3, 1)]


async def test_close_gives_back(world: World) -> None:
    """S6: messages that a closed consumer or backend held or buffered are available at once, with the same attempt."""
    backend, other = await world.connect(), await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(5))
    group = stream.group("g", lease=60)
    async with group.consumer(prefetch=5) as first:
        lost = await world.take(first)
    with pytest.raises(ailf.LeaseLostError):
        await lost.ack()
    second = group.consumer(prefetch=3)
    await second.__aenter__()
    await world.take(second)
    await backend.aclose()
    async with other.stream("s").group("g").consumer() as third:
        back = [await world.take(third) for _ in range(5)]
        assert sorted((each.data, each.attempt) for each in back) == [(number, 1) for number in range(5)]
