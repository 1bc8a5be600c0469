"""B3, P10, S6: whatever ends, ends promptly, says so in the right way, and leaves nothing."""

import asyncio

import pytest

import ailf
from contract_tests.flavours import World


async def test_close_wakes_everybody(world: World) -> None:
    """B3: closing ends every blocked call with ClosedError, twice is harmless, and later calls raise ClosedError."""
    backend = await world.connect()
    stream, pubsub = backend.stream("s"), backend.pubsub()
    consumer, subscription = stream.group("g").consumer(), pubsub.listen("c")
    tail = stream.tail()
    await consumer.__aenter__()
    await subscription.__aenter__()
    await pubsub.subscribe("d", print)
    blocked = [
        asyncio.ensure_future(each)
        for each in (consumer.__anext__(), subscription.__anext__(), tail.__anext__(), pubsub.run())
    ]
    await asyncio.sleep(0.1)
    await world.soon(backend.aclose())
    await world.soon(backend.aclose())
    outcomes = await world.soon(asyncio.gather(*blocked, return_exceptions=True))
    assert [type(each) for each in outcomes] == [ailf.ClosedError] * 4
    for call in (lambda: stream.add(1), lambda: pubsub.publish("c", 1), backend.ping):
        with pytest.raises(ailf.ClosedError):
            await call()


async def test_close_leaves_nothing(world: World) -> None:
    """B3: after close no thread, task or socket of ours is left."""

    def held() -> set[object]:
        found: set[object] = set()
        for each in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.add(str(each.readlink()))
        return {each for each in found if str(each).startswith("socket:")}

    ours = {each for each in threading.enumerate() if each.name.startswith("ailf")}
    sockets, tasks = held(), asyncio.all_tasks()
    backend = await world.connect()
    stream, pubsub = backend.stream("s"), backend.pubsub()
    async with pubsub.listen("c"), stream.group("g").consumer() as consumer:
        await stream.add(1)
        assert await world.take(consumer) is not None
    await backend.aclose()
    assert {each for each in threading.enumerate() if each.name.startswith("ailf")} <= ours
    assert asyncio.all_tasks() <= tasks
    assert held() <= sockets


async def test_ends_promptly(world: World) -> None:
    """P10: stop() and close() from elsewhere end run() and an idle iteration promptly and without an error."""
    backend = await world.connect()
    pubsub = backend.pubsub()
    await pubsub.subscribe("c", print)
    running = asyncio.ensure_future(pubsub.run())
    subscription = pubsub.listen("c")
    await subscription.__aenter__()
    iterating = asyncio.ensure_future(subscription.__anext__())
    await asyncio.sleep(0.05)
    pubsub.stop()
    await world.soon(running)
    await world.soon(subscription.aclose())
    with pytest.raises(StopAsyncIteration):
        await world.soon(iterating)


async def test_close_gives_back(world: World) -> None:
    """S6: what a consumer buffered or held when it was closed is there for others at once, the attempt as it was."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(5))
    group = stream.group("g", lease=60)
    async with group.consumer(prefetch=5) as first:
        held = await world.take(first)
    with pytest.raises(ailf.LeaseLostError):
        await held.ack()
    async with group.consumer() as second:
        assert sorted([((await world.take(second)).data) for _ in range(5)]) == list(range(5))
    async with group.consumer() as third:
        assert (await world.take(third)).attempt == 1
