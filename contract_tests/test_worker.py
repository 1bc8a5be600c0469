"""S: what `process` does with handlers, on every backend."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.flavours import World, in_thread


async def test_verdicts(world: World) -> None:
    """S15: what a handler returns or raises settles its message and no other."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", max_deliveries=2, backoff=ailf.Backoff(initial=0.0))
    await stream.add_many(["fine", "false", "raises", "rejects", "also fine"])
    seen: list[tuple[str, int]] = []

    async def handler(delivery: Any) -> Any:
        seen.append((delivery.data, delivery.attempt))
        if len(seen) == 7:
            group.stop()
        if delivery.data == "raises":
            raise ZeroDivisionError("by zero")
        if delivery.data == "rejects":
            raise ailf.Reject("no use")
        return delivery.data != "false"

    await world.soon(group.process(handler))
    assert sorted(seen) == sorted(
        [("fine", 1), ("false", 1), ("raises", 1), ("rejects", 1), ("also fine", 1), ("false", 2), ("raises", 2)]
    )
    letters = {each.body: (each.reason, each.error, each.attempts) for each in await group.dead_letters.list()}
    assert letters == {
        b'"rejects"': ("rejected", "no use", 1),
        b'"false"': ("max_deliveries", "the handler returned False", 2),
        b'"raises"': ("max_deliveries", "ZeroDivisionError: by zero", 2),
    }


async def test_concurrency(world: World) -> None:
    """S15: at most n handlers run at once, and n do where there is work; a handler that hangs holds up only itself."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g")
    await stream.add_many(range(30))
    running, most, done = 0, 0, 0
    release = asyncio.Event()

    async def handler(delivery: Any) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        if delivery.data == 0:
            await release.wait()
        else:
            await asyncio.sleep(0.005)
        running -= 1
        done += 1

    working = asyncio.ensure_future(group.process(handler, concurrency=4, prefetch=3))
    await world.until(lambda: done == 29)
    release.set()
    await world.until(lambda: done == 30)
    group.stop()
    await world.soon(working)
    assert most == 4


async def test_drain(world: World) -> None:
    """S14: stopping hands back what was not begun, at once and uncounted, and waits for the running handlers."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", lease=60)
    await stream.add_many(range(10))
    begun, ended = [], []
    go_on = asyncio.Event()

    async def handler(delivery: Any) -> None:
        begun.append(delivery.data)
        await go_on.wait()
        ended.append(delivery.data)

    working = asyncio.ensure_future(group.process(handler, concurrency=2, prefetch=8, drain=5))
    await world.until(lambda: len(begun) == 2)
    group.stop()
    await asyncio.sleep(0.1)
    assert not working.done()
    if world.flavour == "asyncio":  # on threads the caller's own hand is busy: its buffer goes back when it is free
        async with group.consumer(prefetch=20) as other:
            assert [(d.data, d.attempt) for d in [await other.get(1) for _ in range(8)]] == [
                (number, 1) for number in range(2, 10)
            ]
    go_on.set()
    await world.soon(working)
    assert sorted(ended) == sorted(begun) == [0, 1]
    async with group.consumer() as other:
        assert sorted([(await other.get(1)).data for _ in range(8)]) == list(range(2, 10))
        assert await other.get(0) is None


async def test_the_short_way(world: World) -> None:
    """S15: create_consumer_group and process_messages hand over plain payloads, added before the group too."""
    backend = await world.connect()
    stream = backend.stream("s")
    with pytest.raises(ailf.InvalidArgumentError, match="create_consumer_group"):
        await stream.process_messages(print)
    await stream.add({"n": 1})
    await stream.create_consumer_group("workers", "worker-1")
    await stream.add({"n": 2})
    got: list[Any] = []

    async def handler(task: Any) -> bool:
        got.append(task["n"])
        if len(got) == 2:
            stream.stop()
        return True

    await world.soon(stream.process_messages(handler))
    assert got == [1, 2]
    async with stream.group("workers").consumer() as consumer:
        assert await consumer.get(0) is None


async def test_sigterm(world: World) -> None:
    """S14: SIGTERM lets process_messages finish the message under way and end well; the rest is there at once."""
    backend = await world.connect()
    if Capability.PROCESSES not in backend.capabilities or world.harness.url is None:
        return  # declared by the backend: another process can't see its messages
    stream = backend.stream("s")
    await stream.add_many(range(10))
    program = (
        "import sys, time, ailf\n"
        "with ailf.connect(sys.argv[1]) as backend:\n"
        "    stream = backend.stream('s')\n"
        "    stream.create_consumer_group('g', 'w')\n"
        "    def handler(task):\n"
        "        backend.pubsub().publish('begun', task)\n"
        "        time.sleep(0.3)\n"
        "    stream.process_messages(handler, prefetch=5)\n"
    )
    async with backend.pubsub().listen("begun") as begun:
        child = subprocess.Popen([sys.executable, "-c", program, world.harness.url])  # noqa: ASYNC220 - waited for below
        assert await begun.get(15) == ailf.Message("begun", 0)
        child.terminate()
        assert await in_thread(child.wait, 10) == 0
    async with stream.group("g").consumer() as consumer:
        left = [await consumer.get(1) for _ in range(9)]
        assert sorted((delivery.data, delivery.attempt) for delivery in left) == [
            (number, 1) for number in range(1, 10)
        ]
