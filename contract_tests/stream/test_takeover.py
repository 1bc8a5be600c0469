"""S12: takeover: the messages of a dead consumer go to the others in time, and those of a living one don't."""

import asyncio
import signal
import subprocess
import time
from typing import Any

import pytest

import ailf
from ailf.driver import Action, Capability, Outcome
from contract_tests.fixtures import asyncio_only, needs
from contract_tests.helpers.processes import running
from contract_tests.helpers.threads import in_thread
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM,)

TRIES = 3
"""The number of tries: a busy machine is late at times, a backend that wakes no consumer always."""

TAKEOVER = 1.0
"""Seconds of a takeover in tests where time really passes: a process that pauses for 0.4 s loses no lease."""


async def test_a_dead_consumer(world: World) -> None:
    """S12, S5: a dead consumer's messages go to another within `takeover`, however long their leases, as attempt 2."""
    backend = await world.connect()
    stream = backend.stream("s")
    takeover = world.lease * 2
    group = stream.group("g", lease=1000, takeover=takeover)
    took: list[float] = []
    async with group.consumer() as consumer:
        for repeat in range(TRIES):
            ids = await stream.add_many(range(3))
            dead = world.unmanaged_consumer(backend, "s", name=f"unmanaged {repeat}", alive=takeover * 0.7)
            begin = time.monotonic()
            fetched = await dead.claim(3)
            await world.expect_none(consumer)
            waiting = asyncio.ensure_future(consumer.get(world.patience))
            waiting.add_done_callback(lambda _, begin=begin: took.append(time.monotonic() - begin))
            await world.advance(takeover)
            came = [await world.expect_item(waiting)]
            came += [await world.take(consumer) for _ in range(2)]
            assert [(each.id, each.attempt) for each in came] == [(each, 2) for each in ids]
            assert await dead.settle(fetched.claims, Action.ACK) == [Outcome.LOST] * 3
            for each in came:
                await each.ack()
            await world.expect_none(consumer)
            if took[-1] <= takeover + 0.1:
                return
    pytest.fail(f"in each of {TRIES} tries the takeover took more than {takeover} s: {took}")


async def test_heartbeats(world: World) -> None:
    """S12, S11: a consumer that sends heartbeats keeps its messages; one that sends none is removed from the group."""
    backend = await world.connect()
    stream = backend.stream("s")
    ids = await stream.add_many(range(2))
    group = stream.group("g", lease=1000, takeover=world.lease)
    alive, dead = (world.unmanaged_consumer(backend, "s", name=name, alive=world.lease) for name in ("alive", "dead"))
    first, second = await alive.claim(), await dead.claim()
    async with group.consumer() as consumer:
        await world.expect_none(consumer)
        assert (await group.info()).consumers == {"alive": 1, "dead": 1, consumer.name: 0}
        await world.advance(world.lease * 0.6)
        await alive.heartbeat()
        await world.advance(world.lease * 0.6)
        delivery = await world.take(consumer)
        assert (delivery.id, delivery.attempt) == (ids[1], 2)
        await world.expect_none(consumer)
        assert (await group.info()).consumers == {"alive": 1, consumer.name: 1}
        assert await alive.settle(first.claims, Action.ACK) == [Outcome.DONE]
        assert await dead.settle(second.claims, Action.ACK) == [Outcome.LOST]
        await world.advance(world.lease * 0.6)
        await world.expect_none(consumer)
        assert (await group.info()).consumers == {consumer.name: 1}
        assert await alive.fetch() == []
        assert (await group.info()).consumers == {"alive": 0, consumer.name: 1}


async def test_a_slow_consumer_keeps_its_messages(world: World) -> None:
    """S12, S4: a handler that runs for several takeovers and leases keeps its message, also if it blocks the loop."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(["waits", "blocks"])
    group = stream.group("g", lease=TAKEOVER, takeover=TAKEOVER)
    unmanaged = world.unmanaged_consumer(backend, "s")
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

    async def try_to_take() -> int:
        fetches = 0
        while not seen:
            await world.elapse(TAKEOVER / 8)
            if len(begun) == 2:
                stolen.extend(unmanaged.claim_here().claims)
                fetches += 1
        return fetches

    fetching = asyncio.ensure_future(in_thread(asyncio.run, try_to_take()))
    await asyncio.sleep(0)  # the thread has started, and goes on while a handler blocks the loop
    await world.within_patience(group.process(handler, concurrency=2))
    assert await world.within_patience(fetching) > 2
    assert stolen == []
    assert set(seen) == {(1, False)}
    info = await group.info()
    assert (info.pending, info.delayed, info.dead) == (0, 0, 0)


async def test_heartbeats_end_with_the_work(world: World) -> None:
    """S12: heartbeats are sent while a consumer has messages, also in its buffer, and no longer; it may come back."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(2))
    group = stream.group("g", lease=60, takeover=TAKEOVER)
    unmanaged = world.unmanaged_consumer(backend, "s")
    async with group.consumer(prefetch=2) as consumer:
        await (await world.take(consumer)).ack()
        await world.elapse(TAKEOVER * 1.2)
        assert await unmanaged.fetch() == []
        assert (await group.info()).consumers == {consumer.name: 1, "unmanaged": 0}
        await (await world.take(consumer)).ack()
        await world.elapse(TAKEOVER * 1.2)
        assert await unmanaged.fetch() == []
        assert (await group.info()).consumers == {"unmanaged": 0}
        await stream.add(2)
        assert (await world.take(consumer)).attempt == 1
        assert (await group.info()).consumers == {consumer.name: 1, "unmanaged": 0}


async def test_get_without_waiting(world: World) -> None:
    """S6, S12: a get with timeout 0 fetches from the backend, also after and beside waits that found nothing."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", lease=1000, takeover=1000)  # so that a waiting consumer doesn't fetch for a long time
    async with group.consumer() as consumer:
        for seconds in (0.05, 0.3):
            await stream.add(seconds)
            dead = world.unmanaged_consumer(backend, "s", name=f"unmanaged {seconds}", alive=0.03)
            await dead.claim()
            await world.expect_none(consumer)
            waiting = asyncio.ensure_future(consumer.get(seconds))
            await world.advance(0.08)
            delivery = await consumer.get(0) or await world.expect_item(waiting)  # one of the two gets it
            assert (delivery.data, delivery.attempt) == (seconds, 2)
            await delivery.ack()
            await world.within_patience(waiting)


async def test_max_processing(world: World) -> None:
    """S4, S12: a lease is renewed for no longer than max_processing; then it is lost, and another consumer gets it."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add(1)
    lease = 0.25
    group = stream.group("g", lease=lease, takeover=60, max_processing=lease)
    async with group.consumer() as slow, group.consumer() as other:
        delivery = await world.take(slow)
        await world.elapse(lease / 2)
        assert not delivery.lost
        await world.elapse(lease * 2)  # the last renewal may come just before `max_processing`, for a whole lease
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
                sys.exit("the lease was not lost")
            assert consumer.get(5).data == "more"
"""
"""A worker that holds a message until it reads a line, and must find then that its lease is lost."""


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@needs(Capability.PROCESSES, Capability.PUBSUB, "url")
@asyncio_only("the test runs a blocking program in another process")
async def test_a_dead_process(world: World, way: signal.Signals) -> None:
    """S12: a killed or stopped process loses its messages within `takeover`; one that is continued goes on working."""
    backend = await world.connect()
    stream = backend.stream("s")
    entry_id = await stream.add("held")
    takeover = 1.0
    with running("-c", PROGRAM, str(world.harness.url), f"{takeover}", stdin=subprocess.PIPE) as child:
        async with backend.pubsub().listen("begun") as begun:
            assert await begun.get(4 * world.patience) == ailf.Message("begun", entry_id)
        async with stream.group("g", lease=60, takeover=takeover).consumer() as consumer:
            await world.expect_none(consumer)
            child.send_signal(way)
            begin = time.monotonic()
            delivery = await world.take(consumer)
            assert time.monotonic() - begin < takeover + 0.25
            assert (delivery.id, delivery.attempt) == (entry_id, 2)
            await delivery.ack()
        await stream.add("more")
        child.send_signal(signal.SIGCONT)
        await world.within_patience(in_thread(child.communicate, "\n"), 2 * world.patience)
        assert child.returncode == (-signal.SIGKILL if way == signal.SIGKILL else 0)
