"""S16: redriving and purging dead letters."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM,)

RESOLUTION = 0.25
"""Seconds by which a redriven message may be late while a consumer waits."""

TRIES = 3
"""The number of tries: a busy machine is late at times, a backend that wakes no consumer always."""


async def give_up(world: World, group: Any, count: int) -> list[Any]:
    """Reject the next `count` messages of a group, and return its dead letters."""
    async with group.consumer(prefetch=min(count, 50)) as consumer:
        for _ in range(count):
            await (await world.take(consumer)).reject("no")
    letters: list[Any] = await group.dead_letters.list(limit=1000)
    return letters


async def test_redrive(world: World) -> None:
    """S16: a redriven dead letter comes to its group as a new message, unchanged; other groups don't get it."""
    backend = await world.connect()
    stream = backend.stream("s")
    ids = [await stream.add({"n": number}, headers={"h": f"{number}"}) for number in range(4)]
    entries = await stream.read()
    group, other = stream.group("g", lease=60), stream.group("other", lease=60)
    letters = await give_up(world, group, 4)
    other_letters = await give_up(world, other, 2)
    assert await group.dead_letters.redrive(letters[2].id) == 1
    assert await group.dead_letters.list() == [letters[0], letters[1], letters[3]]
    async with group.consumer() as consumer, other.consumer() as apart:
        delivery = await world.take(consumer)
        assert (delivery.id, delivery.data, delivery.headers, delivery.attempt) == (ids[2], {"n": 2}, {"h": "2"}, 1)
        await delivery.ack()
        assert await group.dead_letters.redrive(letters[3].id, letters[0].id) == 2
        taken = [await world.take(consumer) for _ in range(2)]
        assert sorted((each.id, each.attempt) for each in taken) == sorted([(ids[0], 1), (ids[3], 1)])
        for each in taken:
            await each.ack()
        await world.expect_none(consumer)
        assert (await world.take(apart)).data == {"n": 2}
    assert await stream.read() == entries
    assert await other.dead_letters.list() == other_letters
    assert await group.dead_letters.list() == [letters[1]]


@pytest.mark.parametrize("bad", ["junk", "-1", "1:", "²"])
async def test_a_bad_id_among_many(world: World, bad: str) -> None:
    """S16: if one text is not the id of a dead letter nothing is redriven or purged; the error names what was given."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(130))
    group = stream.group("g", lease=60)
    ids = [letter.id for letter in await give_up(world, group, 130)]
    letters = group.dead_letters
    calls: tuple[Callable[[], Any], ...] = (
        lambda: letters.redrive(*ids, bad),
        lambda: letters.purge(*ids[:2], bad),
        lambda: letters.list(after=bad),
    )
    for call in calls:
        with pytest.raises(ailf.InvalidArgumentError, match="dead letters of group 'g' of stream 's': ") as raised:
            await call()
        assert repr(bad) in str(raised.value)
    assert [letter.id for letter in await letters.list(limit=1000)] == ids
    assert (await group.info()).delayed == 0
    assert await letters.redrive(*ids) == len(ids)


async def test_redriven_once(world: World) -> None:
    """S16: of many calls that redrive or purge the same dead letter at once one counts, and each message comes once."""
    backends = [await world.connect() for _ in range(2)]
    stream = backends[0].stream("s")
    await stream.add_many(range(12))
    group = stream.group("g", lease=60)
    letters = [letter.id for letter in await give_up(world, group, 12)]
    groups = [each.stream("s").group("g") for each in backends * 4]
    counts = await world.within_patience(asyncio.gather(*(each.dead_letters.redrive(*letters) for each in groups)))
    assert sum(counts) == 12
    assert await group.dead_letters.redrive_all() == 0
    async with group.consumer(prefetch=5) as consumer:
        taken = [await world.take(consumer) for _ in range(12)]
        assert sorted((each.data, each.attempt) for each in taken) == [(number, 1) for number in range(12)]
        await world.expect_none(consumer)
        for each in taken:
            await each.reject("again")
    again = [letter.id for letter in await group.dead_letters.list()]
    assert set(again).isdisjoint(letters)
    calls = [getattr(each.dead_letters, "purge" if number % 2 else "redrive") for number, each in enumerate(groups)]
    assert sum(await world.within_patience(asyncio.gather(*(call(*again) for call in calls)))) == 12
    assert await group.dead_letters.list() == []


async def test_all_dead_letters(world: World) -> None:
    """S16: redrive_all and purge_all take all dead letters of the group, however many, and none of another group."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(120))
    group, other = stream.group("g", lease=60), stream.group("other", lease=60)
    letters = await give_up(world, group, 120)
    kept = await give_up(world, other, 3)
    assert [letter.body for letter in letters] == [b"%d" % number for number in range(120)]
    assert [each.id for each in await group.dead_letters.list(after=letters[99].id)] == [
        each.id for each in letters[100:]
    ]
    assert await group.dead_letters.redrive_all() == 120
    async with group.consumer(prefetch=50) as consumer:
        assert sorted([(await world.take(consumer)).data for _ in range(120)]) == list(range(120))
        await world.expect_none(consumer)
    assert await give_up(world, group, 120) != []
    assert await group.dead_letters.purge_all() == 120
    assert await group.dead_letters.purge_all() == 0
    assert await group.dead_letters.list() == []
    async with group.consumer() as consumer:
        await world.expect_none(consumer)
    assert await other.dead_letters.list() == kept


async def test_redriven_and_failed_again(world: World) -> None:
    """S16, S5: a redriven message can fail like any other: its attempts start again at 1, and its origin stays."""
    backend = await world.connect()
    stream = backend.stream("s")
    usual = await stream.add("usual", headers={"h": "v"})
    once = await stream.add("once", max_deliveries=1)
    group = stream.group("g", lease=world.lease, takeover=1000, max_processing=0.001, max_deliveries=2)
    before = await give_up(world, group, 2)
    assert await group.dead_letters.redrive(before[0].id) == 1
    async with group.consumer() as consumer, group.consumer() as other:
        first = await world.take(consumer)
        assert await group.dead_letters.redrive(before[1].id) == 1
        await world.advance(world.lease * 1.2)
        with pytest.raises(ailf.LeaseLostError):
            await first.ack()
        seen = []
        for number in range(3):
            delivery = await world.take(other if number % 2 else consumer)
            seen.append((delivery.data, delivery.attempt))
            await (delivery.release() if seen.count(("once", 1)) == 1 and delivery.data == "once" else delivery.nack(0))
        await world.expect_none(consumer)
    assert sorted(seen) == [("once", 1), ("once", 1), ("usual", 2)]
    letters = {letter.origin: letter for letter in await group.dead_letters.list()}
    assert {origin: (letter.reason, letter.attempts) for origin, letter in letters.items()} == {
        usual: ("max_deliveries", 2),
        once: ("max_deliveries", 1),
    }
    assert (letters[usual].body, letters[usual].headers) == (b'"usual"', {"h": "v"})
    assert {letter.id for letter in letters.values()}.isdisjoint({letter.id for letter in before})


async def test_redriven_after_its_entry_is_gone(world: World) -> None:
    """S16: a dead letter whose entry has left the stream can be redriven, fail, and be redriven again."""
    backend = await world.connect()
    stream = backend.stream("s")
    ids = await stream.add_many(["a", "b"], headers={"h": "v"})
    group = stream.group("g", lease=60)
    await give_up(world, group, 2)
    await stream.add("new")
    assert (await stream.trim(ailf.Retention(max_len=1))).removed == 2
    for repeat in range(2):
        assert await group.dead_letters.redrive_all() == 2
        async with group.consumer() as consumer:
            taken = [await world.take(consumer) for _ in range(3 if repeat == 0 else 2)]
            seen = [(each.id, each.data, each.headers, each.attempt) for each in taken if each.data != "new"]
            assert sorted(seen, key=str) == [(ids[0], "a", {"h": "v"}, 1), (ids[1], "b", {"h": "v"}, 1)]
            for each in taken:
                await (each.ack() if each.data == "new" else each.reject("again"))
            await world.expect_none(consumer)
    letters = {each.origin: each.body for each in await group.dead_letters.list()}
    assert letters == {ids[0]: b'"a"', ids[1]: b'"b"'}
    assert [entry.data for entry in await stream.read()] == ["new"]


async def test_purge(world: World) -> None:
    """S16: a purged dead letter is removed for good, and its entry stays in the stream."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(3))
    group = stream.group("g", lease=60)
    letters = await give_up(world, group, 3)
    assert await group.dead_letters.purge(letters[0].id, letters[2].id) == 2
    assert await group.dead_letters.purge(letters[0].id, letters[1].id) == 1
    assert await group.dead_letters.redrive(*(letter.id for letter in letters)) == 0
    async with group.consumer() as consumer:
        await world.expect_none(consumer)
    assert await group.dead_letters.list() == []
    assert len(await stream.read()) == 3


async def test_invalid_dead_letters(world: World) -> None:
    """S16: dead letters that are gone count as 0; a text that is not an id, or a call without ids, is refused."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(2))
    group = stream.group("g", lease=60)
    letters = await give_up(world, group, 2)
    await group.dead_letters.purge(letters[0].id)
    missing = stream.group("missing")
    for call in (group.dead_letters.redrive, group.dead_letters.purge):
        assert await call(letters[0].id) == 0
        for wrong in ((), ("not an id",), (letters[1].id, "not an id"), ("",), ("-1",), ("9" * 5000,)):
            with pytest.raises(ailf.InvalidArgumentError):
                await call(*wrong)
    for after in ("not an id", "9" * 5000):
        with pytest.raises(ailf.InvalidArgumentError):
            await group.dead_letters.list(after=after)
    for call in (missing.dead_letters.redrive, missing.dead_letters.purge):
        assert await call(letters[1].id) == 0
    assert await missing.dead_letters.redrive_all() == await missing.dead_letters.purge_all() == 0
    assert await missing.open()
    assert await group.dead_letters.list() == letters[1:]
    assert await group.dead_letters.redrive(letters[1].id, letters[1].id) == 1


@pytest.mark.parametrize("way", ["one", "all"])
async def test_a_redrive_wakes_a_waiting_consumer(world: World, way: str) -> None:
    """S16, S7: a waiting consumer gets a redriven message within 250 ms."""
    one, two = await world.connect(), await world.connect()
    stream = one.stream("s")
    group = stream.group("g")
    await stream.add(1)
    await give_up(world, group, 1)
    async with two.stream("s").group("g").consumer() as consumer:
        for _ in range(TRIES):
            (letter,) = await group.dead_letters.list()
            waiting = asyncio.ensure_future(consumer.get(world.patience))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            begin = time.monotonic()
            assert await (group.dead_letters.redrive(letter.id) if way == "one" else group.dead_letters.redrive_all())
            await (await world.expect_item(waiting)).reject("again")
            if time.monotonic() - begin < RESOLUTION:
                return
    pytest.fail(f"in each of {TRIES} tries the redriven message was more than {RESOLUTION} s late")
