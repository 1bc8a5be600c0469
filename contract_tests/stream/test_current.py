"""S27: the current delivery, which a handler and the body of `with` have."""

import asyncio
import contextvars
import threading
from typing import Any

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM,)


def current_id() -> str | None:
    """Return the id of the current delivery, or None."""
    delivery = ailf.current_delivery()
    return None if delivery is None else delivery.id


async def test_in_a_handler(world: World) -> None:
    """S27: handlers that run at the same time have each their own delivery, in which they can also settle it."""
    stream = (await world.connect()).stream("s")
    ids = await stream.add_many(range(4))
    group = stream.group("g", lease=60)
    together, seen = asyncio.Barrier(2), {}

    async def handle(delivery: Any) -> None:
        await together.wait()
        seen[delivery.id] = current_id()
        await together.wait()
        assert current_id() == delivery.id
        current = ailf.current_delivery()
        assert current == getattr(delivery, "_inner", delivery)
        assert hash(current) == hash(getattr(delivery, "_inner", delivery))
        if len(seen) == len(ids):
            group.stop()

    await world.within_patience(group.process(handle, concurrency=2))
    assert seen == {each: each for each in ids}
    assert current_id() is None


async def test_in_a_plain_handler(world: World) -> None:
    """S27: a handler that gets the payload alone has the delivery too, whatever it raises."""
    stream = (await world.connect()).stream("s")
    entry_id = await stream.add("work")
    await stream.create_consumer_group("g")
    seen = []

    async def handle(data: Any) -> None:
        assert data == "work"
        delivery = ailf.current_delivery()
        assert delivery is not None
        seen.append((delivery.id, delivery.attempt))
        if len(seen) < 3:
            raise ailf.Retry("again", delay=0.0)
        stream.stop()

    await world.within_patience(stream.process_messages(handle))
    assert seen == [(entry_id, 1), (entry_id, 2), (entry_id, 3)]
    assert current_id() is None


async def test_in_a_body(world: World) -> None:
    """S27: the body of `with delivery` has it; of nested blocks the inner one, and afterwards the outer one again."""
    stream = (await world.connect()).stream("s")
    first_id, second_id = await stream.add_many(range(2))
    async with stream.group("g", lease=60).consumer() as consumer:
        first, second = await world.take(consumer), await world.take(consumer)
        assert current_id() is None
        async with first:
            assert current_id() == first_id
            async with second:
                assert current_id() == second_id
            assert current_id() == first_id
        assert current_id() is None
        with pytest.raises(ZeroDivisionError):
            async with first:
                raise ZeroDivisionError
        assert current_id() is None


async def test_in_a_handler_of_batches(world: World) -> None:
    """S27: a handler of batches has none, also within another handler, but the body of `with` in it has one."""
    stream = (await world.connect()).stream("s")
    ids = await stream.add_many(range(3))
    batches, group = stream.group("batches", lease=60), stream.group("g", lease=60)
    seen: list[str | None] = []

    async def handle_all(deliveries: Any) -> None:
        seen.append(current_id())
        async with deliveries[1]:
            seen.append(current_id())
        seen.append(current_id())
        batches.stop()

    async def handle(_: Any) -> None:
        seen.append(current_id())
        await batches.process(handle_all, batch=3)
        seen.append(current_id())
        group.stop()

    await world.within_patience(group.process(handle))
    assert seen == [ids[0], None, ids[1], None, ids[0]]


async def test_beside_a_handler(world: World) -> None:
    """S27: tasks and `to_thread` have the delivery of the handler that made them, other threads and code have none."""
    stream = (await world.connect()).stream("s")
    entry_id = await stream.add(1)
    group = stream.group("g", lease=60)
    seen: list[str | None] = []
    ended = asyncio.Event()

    async def later() -> None:
        await ended.wait()
        seen.append(current_id())

    async def handle(_: Any) -> None:
        seen.append(await asyncio.to_thread(current_id))
        thread = threading.Thread(target=contextvars.Context().run, args=[lambda: seen.append(current_id())])
        thread.start()
        thread.join()
        tasks.append(asyncio.create_task(later()))
        group.stop()

    tasks: list[asyncio.Task[None]] = []
    await world.within_patience(group.process(handle))
    assert current_id() is None
    ended.set()
    await tasks[0]
    assert seen == [entry_id, None, entry_id]


async def test_events_have_none(world: World) -> None:
    """S27: code that a worker calls outside of a handler has no current delivery."""
    stream = (await world.connect()).stream("s")
    await stream.add(1)
    seen: list[str | None] = []

    async def on_event(_: Any) -> None:
        seen.append(current_id())
        group.stop()

    async def handle(_: Any) -> None:
        raise ailf.Reject("no")

    group = stream.group("g", lease=60, on_event=on_event)
    await world.within_patience(group.process(handle))
    assert seen == [None]
