"""B8, S6: what is cancelled or interrupted, at whatever await, harms nobody and loses nothing."""

import asyncio
from typing import Any

import pytest

import ailf
from contract_tests.fixtures import asyncio_only
from contract_tests.flavours import World


@asyncio_only("a thread can't be cancelled")
async def test_cancelling_harms_nobody(world: World) -> None:
    """B8: calls cancelled at every await leave the backend usable, and no reply reaches another caller."""
    backend = await world.connect()
    stream = backend.stream("s")
    for steps in range(12):
        task = asyncio.ensure_future(stream.add(["cancelled", steps]))
        other = asyncio.ensure_future(stream.read(limit=1000))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        entry_id = await stream.add(["kept", steps])
        assert isinstance(entry_id, str)
        assert all(isinstance(entry, ailf.Entry) for entry in await other)
        await asyncio.gather(task, return_exceptions=True)
        assert (await stream.read(entry_id, entry_id))[0].data == ["kept", steps]


@asyncio_only("a thread can't be cancelled")
async def test_cancelled_waits_lose_nothing(world: World) -> None:
    """S6: a wait that is cancelled at any await loses no message: it stays receivable at once."""
    backend = await world.connect()
    stream = backend.stream("s")
    got = []
    async with stream.group("g", lease=60).consumer() as consumer:
        for steps in range(25):
            waiting = asyncio.ensure_future(world.take(consumer))
            if steps % 2:
                await asyncio.sleep(0.01)
            adding = asyncio.ensure_future(stream.add(steps))
            for _ in range(steps):
                await asyncio.sleep(0)
            waiting.cancel()
            outcome = (await asyncio.gather(waiting, return_exceptions=True))[0]
            await adding
            delivery = await world.take(consumer) if isinstance(outcome, BaseException) else outcome
            got.append(delivery.data)
            await delivery.ack()
    assert got == list(range(25))


@asyncio_only("a thread can't be cancelled")
async def test_cancelled_process(world: World) -> None:
    """S6, S14: cancelling process gives everything back, what was in a handler's hands too."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", lease=60)
    await stream.add_many(range(6))
    begun = []

    async def handler(delivery: Any) -> None:
        begun.append(delivery.data)
        await asyncio.Event().wait()

    working = asyncio.ensure_future(group.process(handler, concurrency=2, prefetch=4))
    await world.until(lambda: len(begun) == 2)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await world.soon(working)
    async with group.consumer() as other:
        back = [await other.get(1) for _ in range(6)]
        assert sorted((delivery.data, delivery.attempt) for delivery in back) == [(number, 1) for number in range(6)]
