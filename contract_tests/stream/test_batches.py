"""S18: batches, on every backend: `get_many`, and `process` with `batch` and `linger`."""

import asyncio
from collections import Counter
from typing import Any

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.fixtures import asyncio_only, needs
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM,)

AT_ONCE = ailf.Backoff(initial=0.0, jitter=0.0)


def seen(deliveries: Any) -> list[tuple[Any, int]]:
    """Return the data and attempts of deliveries."""
    return [(each.data, each.attempt) for each in deliveries]


# --- get_many ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [1, 3, 100])
async def test_get_many(world: World, prefetch: int) -> None:
    """S18: get_many returns up to n messages in order, whatever the prefetch, and [] when there is none."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(10))
    group = stream.group("g")
    async with group.consumer(prefetch=prefetch) as consumer:
        assert seen(await consumer.get_many(4, world.patience)) == [(number, 1) for number in range(4)]
        assert (await world.take(consumer)).data == 4
        assert seen(await consumer.get_many(100, 0)) == [(number, 1) for number in range(5, 10)]
        assert await consumer.get_many(100, 0) == []
        assert await world.within_patience(consumer.get_many(100, 0.05)) == []


async def test_a_batch_is_settled_one_by_one(world: World) -> None:
    """S18, S4: each delivery of a batch is settled by itself; closing gives the others back."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(5))
    group = stream.group("g", backoff=AT_ONCE, takeover=1000)
    async with group.consumer() as consumer:
        first, second, third, fourth, _ = await consumer.get_many(5, world.patience)
        await first.ack()
        await second.nack()
        await third.reject("no use")
        await fourth.release()
        assert [each.settled for each in (first, second, third, fourth)] == [True] * 4
    assert [each.body for each in await group.dead_letters.list()] == [b"2"]
    async with group.consumer() as consumer:
        assert sorted(seen(await consumer.get_many(5, world.patience))) == [(1, 2), (3, 1), (4, 1)]


async def test_get_many_takes_no_more_than_n(world: World) -> None:
    """S18, S6: what get_many doesn't return is receivable by another consumer."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(10))
    group = stream.group("g", lease=60)
    async with group.consumer() as one, group.consumer() as other:
        assert [each.data for each in await one.get_many(4, world.patience)] == [0, 1, 2, 3]
        assert [each.data for each in await other.get_many(10, world.patience)] == [4, 5, 6, 7, 8, 9]


async def test_get_many_waits_for_the_first_message_alone(world: World) -> None:
    """S18: get_many returns as soon as there is one message, and doesn't wait until it has n."""
    backend = await world.connect()
    stream = backend.stream("s")
    async with stream.group("g").consumer() as consumer:
        waiting = asyncio.ensure_future(consumer.get_many(100))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await stream.add_many(["a", "b"])
        assert [each.data for each in await world.within_patience(waiting)] == ["a", "b"]


async def test_get_many_stops(world: World) -> None:
    """S18, S14: stop ends a get_many that waits; it and all later ones return []."""
    backend = await world.connect()
    consumer = backend.stream("s").group("g").consumer()
    waiting = asyncio.ensure_future(consumer.get_many(2))
    await asyncio.sleep(0.05)
    consumer.stop()
    assert await world.within_patience(waiting) == []
    assert await consumer.get_many(2) == []
    await consumer.aclose()


async def test_get_many_refuses_bad_arguments(world: World) -> None:
    """S18: n is a whole number of at least 1; linger needs a batch."""
    backend = await world.connect()
    group = backend.stream("s").group("g")
    async with group.consumer() as consumer:
        for wrong in (0, -1, True, "3", 2.5, None):
            with pytest.raises(ailf.InvalidArgumentError, match="n must be"):
                await consumer.get_many(wrong, 0)
        with pytest.raises(ailf.InvalidArgumentError, match="timeout"):
            await consumer.get_many(1, -1)
    for options in ({"batch": 0}, {"batch": "2"}, {"linger": 1.0}, {"batch": 2, "linger": -1.0}):
        with pytest.raises(ailf.InvalidArgumentError, match=r"batch|linger"):
            await group.process(print, **options)


@asyncio_only("a thread can't be cancelled")
async def test_a_cancelled_get_many_loses_nothing(world: World) -> None:
    """S18, S6: messages that a cancelled get_many would have returned are the next caller's, in order."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", lease=60)
    async with group.consumer(prefetch=3) as consumer:
        for moment in range(14):
            await stream.add_many([(moment, number) for number in range(6)])
            got = [await world.take(consumer)]  # two are in the buffer now, and the others have to be fetched
            task = asyncio.ensure_future(consumer.get_many(5))
            for _ in range(moment):
                await asyncio.sleep(0)
            task.cancel()
            (outcome,) = await world.within_patience(asyncio.gather(task, return_exceptions=True))
            got += [] if isinstance(outcome, BaseException) else outcome
            while len(got) < 6:
                got += await world.within_patience(consumer.get_many(6 - len(got)))
            assert seen(got) == [([moment, number], 1) for number in range(6)]
            for each in got:
                await each.ack()


async def test_many_callers_of_get_many(world: World) -> None:
    """S18, S6: callers of one consumer that take batches and single messages get each message once."""
    backend = await world.connect()
    stream = backend.stream("s")
    got: list[int] = []
    async with stream.group("g", lease=60).consumer(prefetch=4) as consumer:

        async def take(n: int) -> None:
            while len(got) < 200:
                batch = await consumer.get_many(n, 0.2) if n else [await consumer.get(0.2)]
                assert len(batch) <= max(n, 1)
                got.extend(each.data for each in batch if each)

        takers = [asyncio.ensure_future(take(n)) for n in (0, 1, 7, 30)]
        for start in range(0, 200, 10):
            await stream.add_many(range(start, start + 10))
        await world.within_patience(asyncio.gather(*takers))
    assert sorted(got) == list(range(200))


# --- process -----------------------------------------------------------------------------------------------------


async def test_batches_are_handled(world: World) -> None:
    """S18: the handler gets 1 to n deliveries in order; if it returns, all are acked."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(25))
    group = stream.group("g")
    batches: list[list[int]] = []

    async def handler(deliveries: Any) -> None:
        assert isinstance(deliveries, list)
        batches.append([each.data for each in deliveries])
        if sum(map(len, batches)) == 25:
            group.stop()

    await world.within_patience(group.process(handler, batch=10))
    assert [number for batch in batches for number in batch] == list(range(25))
    assert [len(batch) for batch in batches] == [10, 10, 5]
    info = await group.info()
    assert (info.pending, info.lag, info.delayed) == (0, 0, 0)


def _raises(error: BaseException) -> Any:
    def handler(_: Any) -> None:
        raise error

    return handler


@pytest.mark.parametrize(
    ("ends", "reason", "error", "attempts"),
    [
        (lambda _: False, "max_deliveries", "the handler returned False", 2),
        (_raises(ZeroDivisionError("by zero")), "max_deliveries", "ZeroDivisionError: by zero", 2),
        (_raises(ailf.Retry("busy", delay=0)), "max_deliveries", "busy", 2),
        (_raises(ailf.Reject("no use")), "rejected", "no use", 1),
    ],
    ids=["returns False", "raises", "retries", "rejects"],
)
async def test_the_end_of_a_handler_settles_its_batch(
    world: World, ends: Any, reason: str, error: str, attempts: int
) -> None:
    """S18, S15: how the handler ends settles what it has not settled itself, and nothing else."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(["acked", "rejected", "released", "left", "left too"])
    group = stream.group("g", max_deliveries=2, backoff=AT_ONCE)
    handled: Counter[str] = Counter()

    async def handler(deliveries: Any) -> Any:
        for each in deliveries:
            handled[each.data] += 1
            if each.data == "acked" or (each.data == "released" and handled["released"] == 2):
                await each.ack()
            elif each.data == "rejected":
                await each.reject("own")
            elif each.data == "released":
                await each.release()
        if handled["released"] == 2 and handled["left"] == handled["left too"] == attempts:
            group.stop()
        return ends(deliveries)

    await world.within_patience(group.process(handler, batch=5))
    assert handled == {"acked": 1, "rejected": 1, "released": 2, "left": attempts, "left too": attempts}
    letters = {each.body: (each.reason, each.error, each.attempts) for each in await group.dead_letters.list()}
    assert letters == {
        b'"rejected"': ("rejected", "own", 1),
        b'"left"': (reason, error, attempts),
        b'"left too"': (reason, error, attempts),
    }


async def test_each_of_a_batch_has_its_own_backoff(world: World) -> None:
    """S18, S7: after a failure each message waits for the backoff of its own attempt."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add("older")
    backoff = ailf.Backoff(initial=world.lease, factor=10.0, jitter=0.0)
    group = stream.group("g", lease=1000, takeover=1000, backoff=backoff)
    async with group.consumer() as consumer:
        await (await world.take(consumer)).nack(0)
    await stream.add("newer")
    got: list[list[tuple[str, int]]] = []

    async def handler(deliveries: Any) -> bool:
        got.append(seen(deliveries))
        if len(got) == 2:
            group.stop()
        return len(got) == 2

    working = asyncio.ensure_future(group.process(handler, batch=2))
    await world.until(lambda: got)
    assert sorted(got[0]) == [("newer", 1), ("older", 2)]
    await asyncio.sleep(0.05)
    await world.advance(world.lease * 1.2)
    await world.within_patience(working)
    assert got[1:] == [[("newer", 2)]]


async def test_a_batch_lingers(world: World) -> None:
    """S18: a batch that isn't full waits for more messages, until it is full or `linger` has passed."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g")
    batches: list[list[str]] = []

    async def handler(deliveries: Any) -> None:
        batches.append([each.data for each in deliveries])
        if len(batches) == 2:
            group.stop()

    working = asyncio.ensure_future(group.process(handler, batch=3, linger=0.4))
    for data in ("a", "b", "c", "d"):
        await stream.add(data)
        await asyncio.sleep(0.03)
    await world.until(lambda: batches)
    assert batches == [["a", "b", "c"]]
    await world.within_patience(working)
    assert batches == [["a", "b", "c"], ["d"]]


async def test_a_stop_releases_a_batch_that_lingers(world: World) -> None:
    """S18, S14: a batch whose handler has not begun is given back at once, the attempt unchanged."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", lease=60, takeover=60)
    await stream.add_many(["a", "b"])
    working = asyncio.ensure_future(group.process(print, batch=3, linger=60))
    await world.until_async(lambda: _held(group, 2))
    group.stop()
    await world.within_patience(working)
    async with group.consumer() as other:
        assert sorted(seen(await other.get_many(3, 0))) == [("a", 1), ("b", 1)]


async def _held(group: Any, count: int) -> bool:
    return bool((await group.info()).pending == count)


async def test_a_stop_lets_a_running_batch_finish(world: World) -> None:
    """S18, S14: stop waits for the handlers of batches that have begun, and gives the rest back."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(9))
    group = stream.group("g", lease=60)
    begun: list[int] = []
    go_on = asyncio.Event()

    async def handler(deliveries: Any) -> None:
        begun.extend(each.data for each in deliveries)
        await go_on.wait()

    working = asyncio.ensure_future(group.process(handler, batch=3, concurrency=2, prefetch=9))
    await world.until(lambda: len(begun) >= 4)
    group.stop()
    await asyncio.sleep(0.05)
    assert not working.done()
    go_on.set()
    await world.within_patience(working)
    async with group.consumer() as other:
        rest = seen(await other.get_many(9, world.patience))
        assert sorted(rest) == [(number, 1) for number in range(9) if number not in begun]
        await world.expect_none(other)


async def test_batches_run_at_once(world: World) -> None:
    """S18, S15: at most `concurrency` handlers run at once, each with a batch of its own."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g")
    running, most = 0, 0
    done: list[int] = []

    async def handler(deliveries: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        done.extend(each.data for each in deliveries)

    working = asyncio.ensure_future(group.process(handler, batch=5, concurrency=3))
    await stream.add_many(range(60))
    await world.until(lambda: len(done) == 60)
    group.stop()
    await world.within_patience(working)
    assert sorted(done) == list(range(60))
    assert 2 <= most <= 3


async def test_undecodable_messages_of_a_batch(world: World) -> None:
    """S18, S13: a message that can't be decoded becomes a dead letter, and the batch has the others."""
    backend = await world.connect()
    stream, typed = backend.stream("s"), backend.stream("s", type=int)
    await stream.add_many([0, "no number", 2])
    group = typed.group("g")
    async with group.consumer() as consumer:
        assert seen(await consumer.get_many(3, world.patience)) == [(0, 1), (2, 1)]
    assert [(each.reason, each.body) for each in await group.dead_letters.list()] == [("undecodable", b'"no number"')]


@needs(Capability.ORDERING)
async def test_a_batch_has_one_message_of_a_key(world: World) -> None:
    """S18, S3: the second message of an ordering key comes only after the first is settled, so in a later batch."""
    backend = await world.connect()
    stream = backend.stream("s")
    for number in range(12):
        await stream.add(number, key=f"k{number % 3}")
    group = stream.group("g")
    batches: list[list[int]] = []

    async def handler(deliveries: Any) -> None:
        batches.append([each.data for each in deliveries])
        if sum(map(len, batches)) == 12:
            group.stop()

    await world.within_patience(group.process(handler, batch=12))
    assert all(len({number % 3 for number in batch}) == len(batch) for batch in batches)
    for key in range(3):
        assert [n for batch in batches for n in batch if n % 3 == key] == list(range(key, 12, 3))


async def test_a_lost_message_of_a_batch(world: World) -> None:
    """S18, S4: if the lease on one message is lost, the others are settled, and that one is not."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(3))
    group = stream.group("g", lease=world.lease, takeover=1000, max_processing=0.001)
    got: list[list[tuple[int, int]]] = []

    async def handler(deliveries: Any) -> None:
        got.append(seen(deliveries))
        if len(got) == 1:
            for each in deliveries[1:]:
                await each.extend(world.lease * 100)
            await world.advance(world.lease * 1.2)
            assert [each.lost for each in deliveries] == [True, False, False]
        else:
            group.stop()

    await world.within_patience(group.process(handler, batch=3))
    assert got == [[(0, 1), (1, 1), (2, 1)], [(0, 2)]]
    assert (await group.info()).pending == 0
