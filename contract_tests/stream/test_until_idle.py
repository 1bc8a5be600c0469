"""S14: `process(until_idle=True)` ends when nothing is left that could be delivered now, on every backend."""

import asyncio
from typing import Any

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.fixtures import needs
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM,)


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_until_idle(world: World, concurrency: int) -> None:
    """S14: what is there is handled, and so is what handlers add meanwhile; then `process` returns."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g")
    await stream.add_many(range(10))
    handled = []

    async def handle(delivery: Any) -> None:
        handled.append(delivery.data)
        if delivery.data < 5:
            await stream.add(delivery.data + 100)

    await world.within_patience(group.process(handle, concurrency=concurrency, until_idle=True, signals=False))
    assert sorted(handled) == [*range(10), *range(100, 105)]
    assert (await group.info()).pending == 0
    await world.within_patience(group.process(handle, concurrency=concurrency, until_idle=True, signals=False))
    assert len(handled) == 15


async def test_until_idle_in_batches(world: World) -> None:
    """S14, S18: batches end when nothing is left, too; the last one need not be full."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(10))
    sizes = []

    def handle(batch: Any) -> None:
        sizes.append(len(batch))

    group = stream.group("g")
    await world.within_patience(group.process(handle, batch=4, until_idle=True, signals=False))
    assert sum(sizes) == 10
    assert max(sizes) <= 4


async def test_until_idle_leaves_what_is_not_due(world: World) -> None:
    """S14, S7: a message with a later time, and one that failed, are left for later."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", backoff=ailf.Backoff(initial=1000.0, maximum=1000.0, jitter=0.0))
    await stream.add("later", delay=1000.0)
    await stream.add("fails")
    handled = []

    def handle(delivery: Any) -> bool:
        handled.append(delivery.data)
        return False

    await world.within_patience(group.process(handle, until_idle=True, signals=False))
    assert handled == ["fails"]
    assert (await group.info()).delayed >= 1


@needs(Capability.ORDERING)
async def test_until_idle_waits_for_ordering_keys(world: World) -> None:
    """S14, S3: a key whose message is being handled has more to deliver when that has ended."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(6), key="one")
    handled = []

    async def handle(delivery: Any) -> None:
        await asyncio.sleep(0.01)
        handled.append(delivery.data)

    await world.within_patience(stream.group("g").process(handle, concurrency=3, until_idle=True, signals=False))
    assert handled == list(range(6))
