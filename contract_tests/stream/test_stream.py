"""S: the behaviour of streams and groups on every backend."""

import asyncio
from typing import Any

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.fixtures import asyncio_only, needs
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM,)

MIXED = [("blocking", "asyncio"), ("asyncio", "blocking")]


async def test_readable_on_return(world: World) -> None:
    """S1: once add returns, groups made before and after can read the entry; ids are text and strictly increasing."""
    one, two = await world.connect(), await world.connect()
    stream = one.stream("s")
    early = two.stream("s").group("early").consumer()
    async with early:
        ids = [await stream.add(0), *await stream.add_many([1, 2, 3]), await stream.add(4)]
        assert all(isinstance(each, str) for each in ids)
        assert [entry.id for entry in await two.stream("s").read()] == ids
        assert len(set(ids)) == 5
        async with two.stream("s").group("late").consumer() as late:
            for consumer in (early, late):
                assert [(await world.take(consumer)).data for _ in range(5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("pair", MIXED, ids="-to-".join)
@asyncio_only("the pair names both flavours")
async def test_mixed_streaming(world: World, pair: tuple[str, str]) -> None:
    """S1, B6: a producer of one flavour reaches a consumer of the other, also one that already waits."""
    producer, worker = await world.connect(pair[0]), await world.connect(pair[1])
    async with worker.stream("s").group("g").consumer() as consumer:
        waiting = asyncio.ensure_future(consumer.get(world.patience))
        await asyncio.sleep(0.05)
        await producer.stream("s").add({"n": 1}, headers={"h": "v"})
        delivery = await world.within_patience(waiting)
        assert (delivery.data, delivery.headers, delivery.attempt) == ({"n": 1}, {"h": "v"}, 1)
        await delivery.ack()


async def test_many_producers(world: World) -> None:
    """S1, S2, S3: with many producers and consumers at once, entries have ids of their own and come once, in order."""
    one, two = await world.connect(), await world.connect()
    taken: list[tuple[str, str]] = []

    async def producer(backend: Any, name: str) -> list[str]:
        stream = backend.stream("s")
        return [await stream.add([name, number]) for number in range(25)]

    async def worker(backend: Any, name: str) -> None:
        async with backend.stream("s").group("g", lease=60).consumer(prefetch=3) as consumer:
            while len(taken) < 100:
                delivery = await consumer.get(0.05)
                if delivery is not None:
                    taken.append((name, delivery.id))
                    await delivery.ack()

    working = asyncio.gather(*(worker(each, name) for name, each in {"x": one, "y": two, "z": two}.items()))
    made = await world.within_patience(
        asyncio.gather(*(producer(each, name) for name, each in zip("abcd", [one, two] * 2, strict=True)))
    )
    await world.within_patience(working)
    stored = [entry.id for entry in await one.stream("s").read(limit=1000)]
    assert len(set(stored)) == 100
    assert sorted(entry_id for ids in made for entry_id in ids) == sorted(stored)
    assert all(ids == sorted(ids, key=stored.index) for ids in made)
    assert sorted(entry_id for _, entry_id in taken) == sorted(stored)
    for name in "xyz":
        own = [entry_id for by, entry_id in taken if by == name]
        assert own == sorted(own, key=stored.index)


async def test_id_order(world: World) -> None:
    """S3: first deliveries are made in the order of ids, to whichever consumer."""
    backend = await world.connect()
    stream = backend.stream("s")
    ids = await stream.add_many(range(30))
    group = stream.group("g")
    async with group.consumer(prefetch=4) as one, group.consumer() as two:
        taken = [await world.take(one) for _ in range(4)] + [await world.take(two) for _ in range(26)]
        assert [delivery.id for delivery in taken] == ids


async def test_group_starts(world: World) -> None:
    """S9: a group starts at EARLIEST unless `start` is given; opening it again never moves it."""
    backend = await world.connect()
    stream = backend.stream("s")
    ids = await stream.add_many(range(4))
    async with stream.group("early").consumer() as consumer:
        assert (await world.take(consumer)).data == 0
    assert await stream.group("late", start=ailf.LATEST).open()
    assert await stream.group("middle", start=ids[1]).open()
    await stream.add(4)
    for start in (ailf.EARLIEST, ailf.LATEST, ids[0]):
        assert not await stream.group("late", start=start).open()
    async with stream.group("late").consumer() as late, stream.group("middle").consumer() as middle:
        assert (await world.take(late)).data == 4
        assert [(await world.take(middle)).data for _ in range(3)] == [2, 3, 4]
    with pytest.raises(ailf.InvalidArgumentError):
        await stream.group("bad", start="not an id").open()


async def test_a_vanished_group_is_made_again(world: World) -> None:
    """S9: a group that vanished while it was consumed is made again at EARLIEST, and makes a GroupReset event."""
    backend = await world.connect()
    stream = backend.stream("s")
    events: list[Any] = []
    await stream.add("gone")
    async with stream.group("g", on_event=events.append).consumer() as consumer:
        await (await world.take(consumer)).ack()
        await stream.delete()
        await stream.add("new")
        assert (await world.take(consumer)).data == "new"
        assert [entry.data for entry in await stream.read()] == ["new"]
    assert events == [ailf.GroupReset("s", "g")]


async def test_groups_are_independent(world: World) -> None:
    """S11: a nack, an expired lease or a dead letter of one group is invisible to the others."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add(1)
    noisy = stream.group("noisy", lease=world.lease, max_processing=0.001, max_deliveries=2)
    quiet = stream.group("quiet")
    async with noisy.consumer() as consumer:
        await (await world.take(consumer)).nack(0)
        await world.take(consumer)
        await world.advance(world.lease * 1.2)
        await world.expect_none(consumer)
    assert len(await noisy.dead_letters.list()) == 1
    async with quiet.consumer() as consumer:
        delivery = await world.take(consumer)
        assert delivery.attempt == 1
        await delivery.ack()
        await world.expect_none(consumer)
    assert await quiet.dead_letters.list() == []


async def test_leaving_drops_nothing(world: World) -> None:
    """S11: a consumer that leaves drops no message that it held, also none that another had given back before."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(10))
    group = stream.group("g", lease=60, max_deliveries=50)
    for _ in range(3):
        async with group.consumer(prefetch=10) as consumer:
            await (await world.take(consumer)).nack(0)
    async with group.consumer() as consumer:
        assert sorted([(await world.take(consumer)).data for _ in range(10)]) == list(range(10))


async def test_undecodable(world: World) -> None:
    """S13: an entry that can't be decoded becomes a dead letter with its raw bytes, and delays none behind it."""
    backend = await world.connect()
    raw, typed = backend.stream("s", type=bytes), backend.stream("s", type=int)
    await raw.add(b"{not json")
    await typed.add(7)
    await raw.add(b'"text"')
    await typed.add(8)
    group = typed.group("g")
    async with group.consumer() as consumer:
        assert [(await world.take(consumer)).data for _ in range(2)] == [7, 8]
    letters = await group.dead_letters.list()
    assert [(each.reason, each.body) for each in letters] == [("undecodable", b"{not json"), ("undecodable", b'"text"')]
    assert (await group.dead_letters.list(after=letters[0].id)) == letters[1:]


@needs("add_foreign")
async def test_foreign_entries(world: World) -> None:
    """S13: an entry of another program is read as an object of its fields, or becomes a dead letter."""
    backend = await world.connect()
    anything, numbers = backend.stream("s"), backend.stream("s", type=int)
    await numbers.add(1)
    await world.harness.add_foreign("s")
    await numbers.add(2)
    async with anything.group("any").consumer() as consumer:
        assert [(await world.take(consumer)).data for _ in range(3)] == [1, {"job": "sweep"}, 2]
    group = numbers.group("numbers")
    async with group.consumer() as consumer:
        assert [(await world.take(consumer)).data for _ in range(2)] == [1, 2]
    assert [(each.reason, each.body) for each in await group.dead_letters.list()] == [
        ("undecodable", b'{"job":"sweep"}')
    ]


@needs("add_broken")
async def test_broken_entries(world: World) -> None:
    """S13, S16: an unreadable entry becomes a dead letter, which can be listed, redriven and purged; others go on."""
    backend = await world.connect()
    for kind in (Any, bytes):
        stream = backend.stream(f"s-{kind}", type=kind)
        ids = [await stream.add(b"1")]
        await world.harness.add_broken(stream.name)
        ids.append(await stream.add(b"2"))
        group = stream.group("g")
        async with group.consumer(prefetch=5) as consumer:
            for _ in range(2):
                delivery = await world.take(consumer)
                assert delivery.id in ids
                await delivery.ack()
            (letter,) = await group.dead_letters.list()
            assert letter.reason == "undecodable"
            assert await group.dead_letters.redrive(letter.id) == 1
            await world.expect_none(consumer)
        (again,) = await group.dead_letters.list()
        assert (again.origin, again.body, again.headers) == (letter.origin, letter.body, letter.headers)
        assert await group.dead_letters.purge_all() == 1
        assert (await group.info()).pending == 0
        with pytest.raises(ailf.DecodeError, match=letter.origin):
            await stream.read()
        tail = stream.tail(ailf.EARLIEST)
        assert [(await world.within_patience(tail.__anext__())).id for _ in ids] == ids
        await tail.aclose()


async def test_read(world: World) -> None:
    """S17: read returns every entry of the range, in order, whatever groups have done with them."""
    backend = await world.connect()
    stream = backend.stream("s")
    assert await stream.read() == []
    ids = await stream.add_many(range(1200))
    async with stream.group("g").consumer() as consumer:
        await (await world.take(consumer)).ack()
        assert [entry.data for entry in await stream.read(limit=5000)] == list(range(1200))
        assert [entry.id for entry in await stream.read(ids[3], ids[5])] == ids[3:6]
        assert [entry.data for entry in await stream.read(ids[1100])] == list(range(1100, 1200))
        assert len(await stream.read()) == 100
        assert (await world.take(consumer)).data == 1
    with pytest.raises(ailf.InvalidArgumentError):
        await stream.read("not an id")


@pytest.mark.parametrize("begin", ["earliest", "id", "latest"])
async def test_tail(world: World, begin: str) -> None:
    """S17: tail follows the stream from its `start`, and changes no group."""
    backend, other = await world.connect(), await world.connect()
    stream = backend.stream("s")
    ids = await stream.add_many(range(3))
    start = {"earliest": ailf.EARLIEST, "id": ids[1], "latest": ailf.LATEST}[begin]
    tail = stream.tail(start)
    for number in {"earliest": [0, 1, 2], "id": [1, 2], "latest": []}[begin]:
        assert (await world.within_patience(tail.__anext__())).data == number
    waiting = asyncio.ensure_future(tail.__anext__())
    await asyncio.sleep(0.1)
    await other.stream("s").add(3)
    assert (await world.within_patience(waiting)).data == 3
    await tail.aclose()
    async with stream.group("g").consumer() as consumer:
        assert (await world.take(consumer)).data == 0
