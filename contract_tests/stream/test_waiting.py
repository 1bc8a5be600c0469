"""S19: an arrival wakes one of the consumers that wait, whichever of them leaves meanwhile.

Leases and takeovers are so long that no consumer fetches by itself: a message that wakes none is never delivered.
"""

import asyncio
from typing import Any

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.fixtures import asyncio_only
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM,)

LONG: dict[str, Any] = {"lease": 1000, "takeover": 1000}

MANY = 12
"""The number of consumers that wait."""


class FetchLog:
    """Counts the fetches of a backend's consumers, from now on.

    Attributes:
        fetches: The number of fetches.
    """

    def __init__(self, backend: Any) -> None:
        self.fetches = 0
        driver = backend.engine.driver
        make = driver.stream

        def stream() -> Any:
            inner = make()
            fetch = inner.fetch

            def counted(*args: Any, **options: Any) -> Any:
                self.fetches += 1
                return fetch(*args, **options)

            inner.fetch = counted
            return inner

        driver.stream = stream


class Waiting:
    """Consumers that wait for one message each.

    Attributes:
        consumers: The consumers.
        calls: What each of them waits for.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.consumers: list[Any] = []
        self.calls: list[asyncio.Future[Any]] = []

    async def start(self, backend: Any, count: int, timeout: float | None = None, **options: Any) -> None:
        """Open consumers, and let each wait in a call of its own; they wait in this order."""
        group = backend.stream("s").group("g", **{**LONG, **options})
        for _ in range(count):
            consumer = group.consumer()
            await consumer.__aenter__()
            self.consumers.append(consumer)
            self.calls.append(asyncio.ensure_future(consumer.get(timeout)))
            await asyncio.sleep(0.03)

    async def served(self, count: int) -> list[int]:
        """Wait until `count` consumers have got a message; return which."""
        await self._world.until(lambda: len(self._served()) >= count)
        return self._served()

    def _served(self) -> list[int]:
        return [at for at, each in enumerate(self.calls) if each.done() and not each.cancelled() and each.result()]

    async def end(self) -> None:
        """Close all consumers."""
        for each in self.consumers:
            await each.aclose()
        await self._world.within_patience(asyncio.gather(*self.calls, return_exceptions=True))


async def test_one_arrival_wakes_one_consumer(world: World) -> None:
    """S19: however many consumers wait in a process, a message costs three fetches at most."""
    backend = await world.connect()
    log, waiting = FetchLog(backend), Waiting(world)
    stream = backend.stream("s")
    await waiting.start(backend, MANY)
    for served in range(1, 4):
        before = log.fetches
        await stream.add(served)
        last = (await waiting.served(served))[-1]
        await waiting.calls[last].result().ack()
        await asyncio.sleep(0.1)
        assert log.fetches - before <= 3
    assert len(await waiting.served(3)) == 3
    await waiting.end()


async def test_turns_are_fair(world: World) -> None:
    """S19: of the consumers of a process the one that waits longest gets the next message."""
    backend = await world.connect()
    stream, waiting = backend.stream("s"), Waiting(world)
    await waiting.start(backend, 5)
    for served in range(1, 5):
        await stream.add(served)
        assert await waiting.served(served) == list(range(served))
    await waiting.end()


async def test_a_burst_wakes_all(world: World) -> None:
    """S19: as many messages as consumers wait, in two processes, reach all of them."""
    backends = [await world.connect(), await world.connect()]
    waiting = Waiting(world)
    for each in backends:
        await waiting.start(each, MANY // 2)
    await backends[0].stream("s").add_many(range(MANY))
    await waiting.served(MANY)
    assert sorted(each.result().data for each in waiting.calls) == list(range(MANY))
    await waiting.end()


@pytest.mark.parametrize("processes", [1, 2, 3])
async def test_each_message_wakes_another(world: World, processes: int) -> None:
    """S19: while the consumers that were woken work, each further message wakes one of those that wait."""
    backends = [await world.connect() for _ in range(processes)]
    waiting = Waiting(world)
    for each in backends * 2:
        await waiting.start(each, 1)
    for served in range(1, len(waiting.calls) + 1):
        await backends[0].stream("s").add(served)
        assert len(await waiting.served(served)) == served
    await waiting.end()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("way", ["stop", "close", "timeout"])
async def test_a_consumer_that_leaves(world: World, way: str, processes: int) -> None:
    """S19, P10: when the consumer that is to be woken first is stopped or leaves, the next message wakes another."""
    backends = [await world.connect() for _ in range(processes)]
    stream, waiting = backends[0].stream("s"), Waiting(world)
    await waiting.start(backends[0], 1, 0.3 if way == "timeout" else None)
    await waiting.start(backends[-1], 2)
    first = waiting.consumers[0]
    if way == "stop":
        first.stop()
    elif way == "close":
        await first.aclose()
    assert await world.within_patience(waiting.calls[0], 1.0) is None
    for served in (1, 2):
        await stream.add(served)
        assert await waiting.served(served) == [1, 2][:served]
    await waiting.end()


@asyncio_only("a thread can't be cancelled")
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("both", [False, True])
async def test_a_call_that_is_cancelled(world: World, processes: int, both: bool) -> None:
    """S19, S6: when the call that is to be woken first is cancelled, and a message comes, another one returns it."""
    backends = [await world.connect() for _ in range(processes)]
    stream, waiting = backends[0].stream("s"), Waiting(world)
    await waiting.start(backends[0], 2)
    await waiting.start(backends[-1], 2)
    waiting.calls[0].cancel()
    if both:
        waiting.calls[1].cancel()
    await asyncio.sleep(0.01)
    await stream.add(1)
    (served,) = await waiting.served(1)
    assert served in ((2, 3) if both else (1, 2, 3))
    await stream.add(2)
    await waiting.served(2)
    await waiting.end()


async def test_a_resume_wakes_one(world: World) -> None:
    """S19: a resume wakes a consumer as an arrival does, and adds to a paused group wake none."""
    backend = await world.connect()
    stream, group, log, waiting = backend.stream("s"), backend.stream("s").group("g"), FetchLog(backend), Waiting(world)
    await waiting.start(backend, MANY)
    await group.pause()
    await stream.add(1)
    await asyncio.sleep(0.2)
    assert not any(each.done() for each in waiting.calls)
    before = log.fetches
    await group.resume()
    await waiting.served(1)
    await asyncio.sleep(0.1)
    assert log.fetches - before <= 3
    await waiting.end()


@pytest.mark.parametrize("way", ["nack", "release", "close"])
async def test_a_message_that_comes_back_wakes_one(world: World, way: str) -> None:
    """S19: a message that is given back wakes one consumer."""
    backend = await world.connect()
    log, waiting = FetchLog(backend), Waiting(world)
    await backend.stream("s").add(1)
    await waiting.start(backend, MANY)
    (first,) = await waiting.served(1)
    delivery = waiting.calls[first].result()
    await asyncio.sleep(0.1)
    before = log.fetches
    if way == "close":
        await waiting.consumers[first].aclose()
    else:
        await (delivery.nack(0) if way == "nack" else delivery.release())
    await waiting.served(2)
    await asyncio.sleep(0.1)
    assert log.fetches - before <= 3
    await waiting.end()


@pytest.mark.parametrize("processes", [1, 2])
async def test_many_waits_are_in_time(world: World, processes: int) -> None:
    """S19, S7: a delayed message is in time, whichever of the consumers that wait was told of it."""
    backends = [await world.connect() for _ in range(processes)]
    waiting = Waiting(world)
    for each in backends:
        await waiting.start(each, 3)
    stream = backends[0].stream("s")
    for served in range(1, 4):
        await stream.add(served, delay=world.lease)
        await world.advance(world.lease * 0.5)
        assert len([each for each in waiting.calls if each.done()]) == served - 1
        await world.advance(world.lease * 0.5 + 0.25)
        assert len(await waiting.served(served)) == served
    await waiting.end()


@pytest.mark.parametrize("of_first", [1.0, 1000.0])
async def test_idle_consumers_count_as_alive(world: World, of_first: float) -> None:
    """S19, S10, S12: all consumers that wait count as alive, although one, with other options, fetches for all."""
    takeover = 1.0
    backends = [await world.connect(), await world.connect()]
    waiting = Waiting(world)
    for each in backends:
        await waiting.start(each, 1, takeover=of_first)
        await waiting.start(each, 2, takeover=takeover)
    for _ in range(2):
        await world.elapse(takeover * 1.2)
        group = backends[0].stream("s").group("g")
        assert (await group.info()).consumers == {each.name: 0 for each in waiting.consumers}
    await waiting.end()


async def test_worker_loops_are_woken_across_processes(world: World) -> None:
    """S19, S15: of two workers each takes a share of the messages that come while both have idle worker loops."""
    backends = [await world.connect(), await world.connect()]
    release = asyncio.Event()
    done: list[Any] = []

    async def handler(delivery: Any) -> None:
        done.append(delivery.data)
        await world.within_patience(release.wait())

    groups = [each.stream("s").group("g", **LONG) for each in backends]
    working = [asyncio.ensure_future(each.process(handler, concurrency=3, signals=False)) for each in groups]
    await asyncio.sleep(0.3)
    for number in range(6):  # as many as there are worker loops: none may be forgotten
        await backends[0].stream("s").add(number)
        await world.until(lambda: len(done) == number + 1)  # noqa: B023
    release.set()
    for each in groups:
        each.stop()
    await world.within_patience(asyncio.gather(*working))
    assert isinstance(await groups[0].info(), ailf.GroupInfo)


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_seek_forgets_no_consumer_that_waits(world: World, processes: int) -> None:
    """S19, S9: after a seek each message wakes one of the consumers that waited before it."""
    backends = [await world.connect() for _ in range(processes)]
    stream, waiting = backends[0].stream("s"), Waiting(world)
    for each in backends:
        await waiting.start(each, 1)
    await stream.group("g").seek(ailf.LATEST)
    for served in range(1, processes + 1):
        await asyncio.sleep(0.05)
        await stream.add(served)
        await waiting.served(served)
    await waiting.end()


async def test_a_get_that_fetches_for_one_that_waits(world: World) -> None:
    """S19: a call that doesn't wait fetches more than it returns; one of the same consumer that waits gets the rest."""
    backends = [await world.connect(), await world.connect()]
    waiting = Waiting(world)
    await waiting.start(backends[0], 1)
    consumer = backends[1].stream("s").group("g", **LONG).consumer(prefetch=10)
    await consumer.__aenter__()
    waits = asyncio.ensure_future(consumer.get())
    await asyncio.sleep(0.1)
    await backends[1].stream("s").add_many(range(6))
    assert await consumer.get(0)
    assert await world.within_patience(waits, 0.5)
    await consumer.aclose()
    await waiting.end()
