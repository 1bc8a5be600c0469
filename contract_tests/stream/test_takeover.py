"""S12: whose messages others get, and when: those of a process that died, and of no other."""

import asyncio
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

import ailf
from ailf.driver import Action, Capability, Outcome
from contract_tests.fixtures import asyncio_only, needs
from contract_tests.helpers.threads import in_thread
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM,)

TURNS = 3
"""How often something may be late: a busy machine is now and then, a backend that doesn't look always."""

TAKEOVER = 0.4
"""Seconds, where time really passes."""


async def test_a_dead_consumer(world: World) -> None:
    """S12, S5: what a consumer that died had in hand goes to another in time, counted, however long its lease was."""
    backend = await world.connect()
    stream = backend.stream("s")
    takeover = world.lease * 2
    group = stream.group("g", lease=1000, takeover=takeover)
    took: list[float] = []
    async with group.consumer() as consumer:
        for turn in range(TURNS):
            ids = await stream.add_many(range(3))
            dead = world.rival(backend, "s", name=f"rival {turn}", alive=takeover * 0.7)
            begin = time.monotonic()
            fetched = await dead.claim(3)
            await world.nothing(consumer)
            waiting = asyncio.ensure_future(consumer.get(world.patience))
            waiting.add_done_callback(lambda _, begin=begin: took.append(time.monotonic() - begin))
            await world.advance(takeover)
            came = [await world.came(waiting)]
            came += [await world.take(consumer) for _ in range(2)]
            assert [(each.id, each.attempt) for each in came] == [(each, 2) for each in ids]
            assert await dead.settle(fetched.claims, Action.ACK) == [Outcome.LOST] * 3
            for each in came:
                await each.ack()
            await world.nothing(consumer)
            if took[-1] <= takeover + 0.1:
                return
    pytest.fail(f"it took longer than {takeover} s: {took}")


async def test_signs_of_life(world: World) -> None:
    """S12, S11: a consumer that gives signs of life keeps its messages; one that gives none is forgotten."""
    backend = await world.connect()
    stream = backend.stream("s")
    ids = await stream.add_many(range(2))
    group = stream.group("g", lease=1000, takeover=world.lease)
    alive, dead = (world.rival(backend, "s", name=name, alive=world.lease) for name in ("alive", "dead"))
    first, second = await alive.claim(), await dead.claim()
    async with group.consumer() as consumer:
        await world.nothing(consumer)
        assert (await group.info()).consumers == {"alive": 1, "dead": 1, consumer.name: 0}
        await world.advance(world.lease * 0.6)
        await alive.heartbeat()
        await world.advance(world.lease * 0.6)
        delivery = await world.take(consumer)
        assert (delivery.id, delivery.attempt) == (ids[1], 2)
        await world.nothing(consumer)
        assert (await group.info()).consumers == {"alive": 1, consumer.name: 1}
        assert await alive.settle(first.claims, Action.ACK) == [Outcome.DONE]
        assert await dead.settle(second.claims, Action.ACK) == [Outcome.LOST]
        await world.advance(world.lease * 0.6)
        await world.nothing(consumer)
        assert (await group.info()).consumers == {consumer.name: 1}
        assert await alive.fetch() == []
        assert (await group.info()).consumers == {"alive": 0, consumer.name: 1}


async def test_a_slow_one_keeps_its_message(world: World) -> None:
    """S12, S4: handlers at work for several take-overs and leases keep their messages, also one that blocks."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(["waits", "blocks"])
    group = stream.group("g", lease=TAKEOVER, takeover=TAKEOVER)
    rival = world.rival(backend, "s")
    begun: list[Any] = []
    seen: list[tuple[Any, ...]] = []
    stolen: list[Any] = []

    def handler(delivery: Any) -> Any:
        begun.append(delivery.data)
        if delivery.data == "waits" and world.flavour == "asyncio":
            return asyncio.sleep(3 * TAKEOVER)
        time.sleep(3 * TAKEOVER)
        seen.append((delivery.attempt, delivery.lost))
        if delivery.data == "blocks":
            group.stop()
        return None

    async def look() -> int:
        looks = 0
        while not seen:
            await world.elapse(TAKEOVER / 8)
            if len(begun) == 2:
                stolen.extend(rival.claim_here().claims)
                looks += 1
        return looks

    looking = asyncio.ensure_future(in_thread(asyncio.run, look()))
    await asyncio.sleep(0)  # it is under way now, also when the loop is blocked
    await world.soon(group.process(handler, concurrency=2))
    assert await world.soon(looking) > 2
    assert stolen == []
    assert set(seen) == {(1, False)}
    info = await group.info()
    assert (info.pending, info.delayed, info.dead) == (0, 0, 0)


async def test_signs_of_life_end_with_the_work(world: World) -> None:
    """S12: a consumer is kept alive while it has messages, in its buffer too, and no longer; it may come again."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(2))
    group = stream.group("g", lease=60, takeover=TAKEOVER)
    rival = world.rival(backend, "s")
    async with group.consumer(prefetch=2) as consumer:
        await (await world.take(consumer)).ack()
        await world.elapse(TAKEOVER * 1.2)
        assert await rival.fetch() == []
        assert (await group.info()).consumers == {consumer.name: 1, "rival": 0}
        await (await world.take(consumer)).ack()
        await world.elapse(TAKEOVER * 1.2)
        assert await rival.fetch() == []
        assert (await group.info()).consumers == {"rival": 0}
        await stream.add(2)
        assert (await world.take(consumer)).attempt == 1
        assert (await group.info()).consumers == {consumer.name: 1, "rival": 0}


async def test_looking_at_once(world: World) -> None:
    """S6, S12: a get with no time to wait looks at the backend, also after and beside waits that see nothing yet."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", lease=1000, takeover=1000)  # so that who waits doesn't look by himself for long
    async with group.consumer() as consumer:
        for seconds in (0.05, 0.3):
            await stream.add(seconds)
            dead = world.rival(backend, "s", name=f"rival {seconds}", alive=0.03)
            await dead.claim()
            await world.nothing(consumer)
            waiting = asyncio.ensure_future(consumer.get(seconds))
            await world.advance(0.08)
            delivery = await consumer.get(0) or await world.came(waiting)  # one of them has it
            assert (delivery.data, delivery.attempt) == (seconds, 2)
            await delivery.ack()
            await world.soon(waiting)


async def test_max_processing(world: World) -> None:
    """S4, S12: a message is renewed no longer than max_processing: then it is lost, and others get it."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add(1)
    lease = 0.25
    group = stream.group("g", lease=lease, takeover=60, max_processing=lease)
    async with group.consumer() as slow, group.consumer() as other:
        delivery = await world.take(slow)
        await world.elapse(lease / 2)
        assert not delivery.lost
        await world.elapse(lease * 1.5)
        assert delivery.lost
        again = await world.take(other)
        assert (again.data, again.attempt) == (1, 2)
        with pytest.raises(ailf.LeaseLostError):
            await delivery.ack()
        assert not again.lost
        await again.ack()


PROGRAM = """if True:
    import sys, ailf

    with ailf.connect(sys.argv[1]) as backend:
        consumer = backend.stream("s").group("g", lease=60, takeover=float(sys.argv[2])).consumer()
        with consumer:
            delivery = consumer.get(5)
            backend.pubsub().publish("begun", delivery.id)
            sys.stdin.readline()
            assert delivery.lost
            try:
                delivery.ack()
            except ailf.LeaseLostError:
                pass
            else:
                sys.exit("it was not lost")
            assert consumer.get(5).data == "more"
"""
"""A worker that has a message in hand till it reads a line, and finds then that it is lost."""


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@needs(Capability.PROCESSES, Capability.PUBSUB, "url")
@asyncio_only("the program under test is a blocking one of its own")
async def test_a_dead_process(world: World, way: signal.Signals) -> None:
    """S12: a process that is killed, or stands still, loses its messages in time; one that goes on works on."""
    backend = await world.connect()
    stream = backend.stream("s")
    entry_id = await stream.add("in hand")
    takeover = 1.0
    async with backend.pubsub().listen("begun") as begun:
        child = subprocess.Popen(  # noqa: ASYNC220 - it is waited for in a thread
            [sys.executable, "-c", PROGRAM, str(world.harness.url), f"{takeover}"], stdin=subprocess.PIPE
        )
        assert await begun.get(4 * world.patience) == ailf.Message("begun", entry_id)
    async with stream.group("g", lease=60, takeover=takeover).consumer() as consumer:
        await world.nothing(consumer)
        child.send_signal(way)
        begin = time.monotonic()
        delivery = await world.take(consumer)
        assert time.monotonic() - begin < takeover + 0.25
        assert (delivery.id, delivery.attempt) == (entry_id, 2)
        await delivery.ack()
    await stream.add("more")
    child.send_signal(signal.SIGCONT)
    await world.soon(in_thread(child.communicate, b"\n"), 2 * world.patience)
    assert child.returncode == (-signal.SIGKILL if way == signal.SIGKILL else 0)
