"""S21 to S25: partitioned streams."""

import asyncio
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any
from zlib import crc32

import pytest

import ailf
from ailf.driver import Capability
from ailf.runtime import ThreadRuntime, run
from contract_tests.fixtures import needs
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM,)

LONG: dict[str, Any] = {"lease": 1000, "takeover": 1000}
"""So long that no consumer fetches by itself: a message that wakes none is never delivered."""

KEYS = {"customer-7": 8, "customer-8": 9, "order-1": 15, "größe": 9, "日本": 12}
"""Ordering keys, and the partitions of 16 in which they are."""

NUMBER = 4


def partition_of(entry_id: str) -> int:
    """Return the partition that an id tells."""
    return int(entry_id.partition(":")[0])


def key_in(partition: int, number: int = NUMBER) -> str:
    """Return an ordering key whose messages are in this partition."""
    keys = (f"k{each}" for each in itertools.count())
    return next(key for key in keys if crc32(key.encode()) % number == partition)


# --- the number --------------------------------------------------------------------------------------------------

USES: dict[str, Any] = {
    "add": lambda stream: stream.add(1),
    "add_many": lambda stream: stream.add_many([1]),
    "add_once": lambda stream: stream.add_once("id", 1),
    "open": lambda stream: stream.group("g").open(),
    "consume": lambda stream: consumed(stream),  # noqa: PLW0108 - it is defined below
    "read": lambda stream: stream.read(),
    "tail": lambda stream: stream.tail(ailf.EARLIEST).__anext__(),
    "info": lambda stream: stream.group("g").info(),
    "trim": lambda stream: stream.trim(ailf.Retention(max_len=1)),
    "dead letters": lambda stream: stream.group("g").dead_letters.list(),
    "delete": lambda stream: stream.delete(),
}


async def consumed(stream: Any) -> Any:
    """Return the next message of a group, or None."""
    async with stream.group("g").consumer() as consumer:
        return await consumer.get(0)


@pytest.mark.parametrize(("first", "second"), [(None, 3), (3, None), (3, 4), (1, 2)])
@pytest.mark.parametrize("way", ["add", "open"])
async def test_numbers_must_agree(world: World, way: str, first: int | None, second: int | None) -> None:
    """S21: a call of an object with another number of partitions is an error that names both; it changes nothing."""
    backend, other = await world.connect(), await world.connect()
    for use, call in USES.items():
        one = backend.stream(use, partitions=first)
        await USES[way](one)
        refused = other.stream(use, partitions=second)
        for _ in range(2):
            with pytest.raises(ailf.InvalidArgumentError) as raised:
                await world.within_patience(call(refused))
            for number in (first, second):
                assert ("no partitions" if number in {None, 1} else f"{number}") in str(raised.value).replace(
                    "without partitions", "no partitions"
                )
        assert len(await one.read()) == (way == "add"), use
        assert not (await one.group("another").info()).exists, use
        again = other.stream(use, partitions=first)
        await again.add(2)
        assert len(await one.read()) == (way == "add") + 1, use


async def test_asking_makes_nothing(world: World) -> None:
    """S21, S10: a call that only reads stores no number, and works on a stream that doesn't exist."""
    backend, other = await world.connect(), await world.connect()
    for each in (backend.stream("s"), backend.stream("s", partitions=3), other.stream("s", partitions=5)):
        assert await each.read() == []
        assert not (await each.group("g").info()).exists
        assert await each.group("g").dead_letters.list() == []
        with pytest.raises(ailf.NotFoundError):
            await each.group("g").seek(ailf.EARLIEST)
        await each.delete()
    await backend.stream("s", partitions=7).add(1)
    assert len(await other.stream("s", partitions=7).read()) == 1


async def test_partitions_are_no_streams_of_their_own(world: World) -> None:
    """S21: a partition can't be used by its name, and a stream can't become a partition."""
    backend, other = await world.connect(), await world.connect()
    stream = backend.stream("s", partitions=3)
    await stream.add(1)
    for number in (None, 3):
        with pytest.raises(ailf.InvalidArgumentError, match=r"'s/1' is partition 1 of stream 's'"):
            await other.stream("s/1", partitions=number).add(2)
    await other.stream("t/1").add(1)
    with pytest.raises(ailf.InvalidArgumentError, match="'t/1' as a partition"):
        await backend.stream("t", partitions=3).add(1)
    await other.stream("t/0").add("it is nobody's")
    await other.stream("s/3").add("it is behind the last one")


async def mark(backend: Any, stream: str, partitions: int) -> None:
    """Mark the names of partitions, as a process does that dies before it stores their number."""
    driver = backend.engine.driver.with_runtime(ThreadRuntime())
    try:
        for each in range(partitions):
            assert run(driver.stream().declare(f"{stream}/{each}", 0)) == 0
    finally:
        run(driver.close())


@pytest.mark.parametrize("number", [None, 2])
async def test_a_smaller_number_after_one_that_was_not_stored(world: World, number: int | None) -> None:
    """S21: if the first use was not finished, a later one with another number leaves the names free that it lacks."""
    backend, other = await world.connect(), await world.connect()
    await mark(backend, "s", 4)
    for each in (0, 3):
        with pytest.raises(ailf.InvalidArgumentError, match=rf"partition {each} of stream 's'.*frees the name"):
            await other.stream(f"s/{each}").add(1)
    await backend.stream("s", partitions=number).add(1)
    free = range(0 if number is None else 2, 4)
    for each in free:
        stream = other.stream(f"s/{each}", partitions=None if each == 3 else 3)
        assert await stream.read() == []
        await stream.add(each)
        with pytest.raises(ailf.InvalidArgumentError):
            await backend.stream(f"s/{each}", partitions=7).read()
    for each in set(range(4)) - set(free):
        with pytest.raises(ailf.InvalidArgumentError, match=f"'s/{each}' is partition {each} of stream 's'"):
            await other.stream(f"s/{each}").add(1)
    assert len(await backend.stream("s", partitions=number).read()) == 1


async def test_a_number_that_was_not_stored(world: World) -> None:
    """S21: a later use goes on where one ended that was not finished; `delete` frees the names, and nothing else."""
    backend, other = await world.connect(), await world.connect()
    await mark(backend, "s", 3)
    await backend.stream("s", partitions=5).add(1)
    with pytest.raises(ailf.InvalidArgumentError, match="'s/4' is partition 4 of stream 's'; use"):
        await other.stream("s/4").add(1)
    await mark(backend, "t", 3)
    await other.stream("t/3").add("it is nobody's")
    await backend.stream("t", partitions=256).delete()
    for each in range(3):
        await other.stream(f"t/{each}").add(each)
    assert [entry.data for entry in await other.stream("t/3").read()] == ["it is nobody's"]


@needs("add_foreign")
async def test_a_used_stream_has_no_partitions(world: World) -> None:
    """S21: a stream that another program has used is an ordinary one, for good."""
    backend, other = await world.connect(), await world.connect()
    await world.harness.add_foreign("s")
    for each in (backend, other):
        with pytest.raises(ailf.InvalidArgumentError, match=r"no partitions.*partitions=3"):
            await each.stream("s", partitions=3).add(1)
        assert [entry.data for entry in await each.stream("s").read()] == [{"job": "sweep"}]


async def test_a_deleted_stream_has_no_number(world: World) -> None:
    """S21: after `delete` the stream may have another number, also for objects that know the former one."""
    backend, other = await world.connect(), await world.connect()
    for number in (3, None, 2):
        stream = backend.stream("s", partitions=number)
        await stream.add(1)
        assert len(await other.stream("s", partitions=number).read()) == 1
        await stream.delete()
        await stream.add(2)  # the same object stores its number again
        with pytest.raises(ailf.InvalidArgumentError):
            await other.stream("s", partitions=5).read()
        await stream.delete()
    for each in range(3):
        await backend.stream(f"s/{each}").add(1)


# --- which partition ---------------------------------------------------------------------------------------------


async def test_keys_choose_the_partition(world: World) -> None:
    """S22: a key's partition is the CRC-32 of its UTF-8 bytes modulo the number, for every way to add."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=16)
    for key, partition in KEYS.items():
        ids = [await stream.add(1, key=key), *await stream.add_many([2, 3], key=key)]
        ids += [(await stream.add_once(f"{key} {each}", 4, key=key)).id for each in range(3)]
        assert {partition_of(each) for each in ids} == {partition}


async def test_other_messages_are_spread(world: World) -> None:
    """S22: messages without a key are spread evenly; those of one `add_many` are together, in order."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER)
    ids = [await stream.add(each) for each in range(5 * NUMBER)]
    assert Counter(map(partition_of, ids)) == dict.fromkeys(range(NUMBER), 5)
    many = [await stream.add_many(range(3)) for _ in range(NUMBER)]
    assert sorted(partition_of(ids[0]) for ids in many) == list(range(NUMBER))
    assert all(len(set(map(partition_of, ids))) == 1 and len(set(ids)) == 3 for ids in many)
    assert len(await stream.read(limit=1000)) == 8 * NUMBER


async def test_dedup_ids_in_partitions(world: World) -> None:
    """S22, S7: without a key a dedup id is unique in the whole stream, with a key in the partition of that key."""
    backend, other = await world.connect(), await world.connect()
    streams = [each.stream("s", partitions=NUMBER) for each in (backend, other)]
    for each in range(12):
        first = await streams[0].add_once(f"id {each}", each)
        assert not first.duplicate
        assert await streams[1].add_once(f"id {each}", each) == ailf.Added(first.id, duplicate=True)
    assert len(await streams[0].read()) == 12
    delayed = await streams[0].add_once("later", 1, delay=1000)
    assert await streams[1].cancel(delayed.id)
    assert not (await streams[1].add_once("later", 1)).duplicate


@pytest.mark.parametrize("bad", ["1700000000000-0", "4:1-0", "-1:1-0", "01:1-0", "x", "1:", ":1-0", "1:x", "1:1-0-0"])
async def test_ids_of_other_streams(world: World, bad: str) -> None:
    """S22: an id that is not one of this stream is an error that names it."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER)
    await stream.add(1)
    group = stream.group("g")
    await group.open()
    calls: tuple[Callable[[], Any], ...] = (
        lambda: stream.cancel(bad),
        lambda: stream.read(bad),
        lambda: stream.read(ailf.EARLIEST, bad),
        lambda: group.seek(bad),
        lambda: stream.group("h", start=bad).open(),
        lambda: stream.tail(bad).__anext__(),
    )
    for call in calls:
        with pytest.raises(ailf.InvalidArgumentError) as raised:
            await world.within_patience(call())
        assert repr(bad) in str(raised.value)
        assert "stream 's'" in str(raised.value)
    assert not (await stream.group("h").info()).exists


async def dead_letters(world: World, group: Any, stream: Any, count: int) -> list[str]:
    """Make dead letters of a group that takes from a stream; return their ids."""
    await group.open()
    for each in range(count):
        await stream.add(each)
    async with group.consumer() as consumer:
        for _ in range(count):
            await (await world.take(consumer)).reject("no")
    return [letter.id for letter in await group.dead_letters.list()]


@pytest.mark.parametrize("bad", ["junk", "4:1-0", "3:junk", "3:", ":1-0", "1:1-0-0", "01:1-0"])
async def test_a_bad_id_among_dead_letters(world: World, bad: str) -> None:
    """S22, S16: if one text is not the id of a dead letter nothing is redriven or purged; the error says which."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER)
    group = stream.group("g")
    ids = await dead_letters(world, group, stream, 2 * NUMBER)
    letters = group.dead_letters
    calls: tuple[Callable[[], Any], ...] = (
        lambda: letters.redrive(*ids, bad),
        lambda: letters.redrive(bad, *ids),
        lambda: letters.purge(*ids, bad),
        lambda: letters.list(after=bad),
    )
    for call in calls:
        with pytest.raises(ailf.InvalidArgumentError, match="dead letters of group 'g' of stream 's': ") as raised:
            await call()
        assert repr(bad) in str(raised.value)
        assert "the id of a dead letter" in str(raised.value)
    assert [letter.id for letter in await letters.list()] == ids
    assert (await group.info()).delayed == 0
    assert await letters.redrive(*ids) == len(ids)


async def test_a_full_partition_is_named(world: World) -> None:
    """S24, S8: the error of a full partition names it and the stream."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER, retention=ailf.Retention(max_len=1))
    await stream.group("g").open()
    await stream.add(1, key=key_in(2))
    adds: tuple[Callable[[], Any], ...] = (
        lambda: stream.add(1, key=key_in(2)),
        lambda: stream.add_many([1], key=key_in(2)),
        lambda: stream.add_once("id", 1, key=key_in(2)),
    )
    for add in adds:
        with pytest.raises(
            ailf.StreamFullError, match=r"to stream 's': its partition 's/2' is full.* 1 entries in each"
        ):
            await add()
    await stream.add(1, key=key_in(1))


# --- order -------------------------------------------------------------------------------------------------------


async def filled(world: World, stream: Any, count: int) -> list[str]:
    """Add numbers, several in a millisecond now and then; return the ids, in the order of time and partition."""
    ids = []
    for number in range(count):
        ids.append(await stream.add(number))
        if number % 3 == 0:
            await world.advance(0.002)
    return [entry.id for entry in await stream.read(limit=count)]


async def test_read_merges_by_time(world: World) -> None:
    """S23, S17: `read` returns the partitions merged by time; pages from any id to any id lose and repeat nothing."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER)
    ids = await filled(world, stream, 30)
    times = [(int(each.partition(":")[2].partition("-")[0]), partition_of(each)) for each in ids]
    assert times == sorted(times)
    assert len(set(ids)) == 30
    assert sorted(entry.data for entry in await stream.read()) == list(range(30))
    for limit in (1, 2, 7, 29, 30, 31):
        assert [entry.id for entry in await stream.read(limit=limit)] == ids[:limit]
    for at in range(30):
        assert [entry.id for entry in await stream.read(ids[at])] == ids[at:]
        assert [entry.id for entry in await stream.read(end=ids[at])] == ids[: at + 1]
        assert [entry.id for entry in await stream.read(ids[at], limit=3)] == ids[at : at + 3]
    assert [entry.id for entry in await stream.read(ailf.LATEST)] == ids[-1:]


async def test_long_reads_of_partitions(world: World) -> None:
    """S23, S17: a read of more than a page, from partitions of different lengths, is complete and in order."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER)
    expected = []
    for partition, count in enumerate((700, 0, 3, 90)):
        expected += await stream.add_many(range(count), key=key_in(partition))
    ids = [entry.id for entry in await stream.read(limit=10_000)]
    assert sorted(ids) == sorted(expected)
    by_partition = defaultdict(list)
    for each in ids:
        by_partition[partition_of(each)].append(each)
    for partition, found in by_partition.items():
        assert found == [each for each in expected if partition_of(each) == partition]


async def test_positions_of_other_partitions(world: World) -> None:
    """S23, S9: of an id of another partition its time counts: for groups, `seek` and `tail`, too."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER)
    ids = await filled(world, stream, 20)
    sought = stream.group("sought")
    await sought.open()
    for at in (0, 5, 6, 7, 13, 19):
        await sought.seek(ids[at])
        opened = stream.group(f"g{at}", start=ids[at])
        for group in (sought, opened):
            async with group.consumer(prefetch=100) as consumer:
                got = [(await world.take(consumer)).id for _ in ids[at + 1 :]]
                await world.expect_none(consumer)
            assert sorted(got) == sorted(ids[at + 1 :])
        tail = stream.tail(ids[at])
        assert [(await world.within_patience(tail.__anext__())).id for _ in ids[at:]] == ids[at:]
        await tail.aclose()


async def test_times_are_positions_in_partitions(world: World) -> None:
    """S23, S9: a time is a position in all partitions."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER)
    times = []
    for number in range(9):
        await world.advance(0.003)
        times.append(world.when())
        await world.advance(0.003)
        await stream.add(number)
    for number, before in enumerate(times):
        assert [entry.data for entry in await stream.read(before)] == list(range(number, 9))
        assert [entry.data for entry in await stream.read(end=before)] == list(range(number))
    async with stream.group("g", start=times[4]).consumer() as consumer:
        assert sorted([(await world.take(consumer)).data for _ in range(5)]) == [4, 5, 6, 7, 8]


async def test_tail_follows_all_partitions(world: World) -> None:
    """S23, S17: `tail` yields each entry once: those that are there by time, then new ones as they come."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER)
    ids = await filled(world, stream, 40)
    tails = [stream.tail(ailf.EARLIEST), stream.tail(ids[25])]
    for tail, expected in zip(tails, (ids, ids[25:]), strict=True):
        assert [(await world.within_patience(tail.__anext__())).id for _ in expected] == expected
    latest = stream.tail()
    begun = asyncio.ensure_future(latest.__anext__())
    await asyncio.sleep(0.2)
    new = [await stream.add(each) for each in range(10)]
    got = [(await world.within_patience(begun)).id]
    got += [(await world.within_patience(latest.__anext__())).id for _ in new[1:]]
    assert sorted(got) == sorted(new)
    for tail in tails:
        assert sorted([(await world.within_patience(tail.__anext__())).id for _ in new]) == sorted(new)
        await tail.aclose()
    await latest.aclose()


@needs(Capability.ORDERING)
async def test_order_holds_for_a_key(world: World) -> None:
    """S23, S3: the messages of a key are handled one after another, in their order, by consumers of two processes."""
    backends = [await world.connect(), await world.connect()]
    stream = backends[0].stream("s", partitions=NUMBER)
    keys = [f"key {each}" for each in range(6)]
    for number in range(5):
        for key in keys:
            await stream.add([key, number], key=key)
    seen: dict[str, list[int]] = defaultdict(list)
    under_way: set[str] = set()
    groups = [each.stream("s", partitions=NUMBER).group("g") for each in backends]

    async def handler(delivery: Any) -> None:
        key, number = delivery.data
        assert key not in under_way
        under_way.add(key)
        await asyncio.sleep(0.002)
        seen[key].append(number)
        under_way.discard(key)
        if sum(map(len, seen.values())) == 30:
            for group in groups:
                group.stop()

    workers = [group.process(handler, concurrency=3, prefetch=5, signals=False) for group in groups]
    await world.within_patience(asyncio.gather(*workers), 4 * world.patience)
    assert seen == {key: list(range(5)) for key in keys}


# --- groups ------------------------------------------------------------------------------------------------------


async def test_settling_in_partitions(world: World) -> None:
    """S24, S4, S5: deliveries of all partitions are settled in every way; `info` tells the sums."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER)
    group = stream.group("g", max_deliveries=2, lease=60)
    for number in range(5 * NUMBER):
        await stream.add(number)
    async with group.consumer(prefetch=100) as consumer:
        taken = [await world.take(consumer) for _ in range(5 * NUMBER)]
        info = await group.info()
        assert (info.length, info.lag, info.pending) == (20, 0, 20)
        assert sum(info.consumers.values()) == 20
        assert len(info.consumers) == 1
        by_partition = defaultdict(list)
        for each in taken:
            by_partition[partition_of(each.id)].append(each)
        for deliveries in by_partition.values():
            acked, nacked, rejected, released, delayed = deliveries
            await acked.ack()
            await nacked.nack(0)
            await rejected.reject("why")
            await released.release()
            await delayed.nack(1000)
            with pytest.raises(ailf.SettledError):
                await acked.nack()
        again = [await world.take(consumer) for _ in range(2 * NUMBER)]
        assert sorted(each.attempt for each in again) == [1] * NUMBER + [2] * NUMBER
        await world.expect_none(consumer)
        for each in again:
            await each.extend(120)
            await each.nack(0)
        last = [await world.take(consumer) for _ in range(NUMBER)]  # those that were released
        info = await group.info()
        assert (info.pending, info.delayed, info.dead) == (NUMBER, NUMBER, 2 * NUMBER)
        for each in last:
            await each.ack()
    assert (await group.info()).consumers == {}


async def test_dead_letters_of_partitions(world: World) -> None:
    """S24, S16: dead letters are listed by partition, in pages, and redriven or purged by id or all at once."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER)
    group = stream.group("g")
    ids = [await stream.add(number) for number in range(3 * NUMBER)]
    async with group.consumer(prefetch=5) as consumer:
        for _ in ids:
            await (await world.take(consumer)).reject("why")
        letters = await group.dead_letters.list()
        assert sorted(each.origin for each in letters) == sorted(ids)
        assert [partition_of(each.id) for each in letters] == sorted(partition_of(each) for each in ids)
        for limit in (1, 2, 5, 100):
            paged: list[Any] = []
            while page := await group.dead_letters.list(after=paged[-1].id if paged else "", limit=limit):
                assert len(page) <= limit
                paged += page
            assert paged == letters
        wanted = [letters[at].id for at in (7, 0, 4)]
        assert await group.dead_letters.redrive(*wanted) == 3
        assert await group.dead_letters.redrive(*wanted) == 0
        redriven = [await world.take(consumer) for _ in wanted]
        assert {each.attempt for each in redriven} == {1}
        assert await group.dead_letters.purge(letters[1].id) == 1
        assert await group.dead_letters.redrive_all() == len(letters) - 4
        for _ in range(len(letters) - 4):
            await (await world.take(consumer)).reject("again")
        assert await group.dead_letters.purge_all() == len(letters) - 4
        for each in redriven:
            await each.ack()
    assert (await group.info()).dead == 0


async def test_delays_in_partitions(world: World) -> None:
    """S24, S7: a delay ends on time in every partition, while a consumer waits; a cancelled message never comes."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER)
    group = stream.group("g")
    async with group.consumer() as consumer:
        await world.expect_none(consumer)
        ids = [await stream.add(number, delay=0.4) for number in range(2 * NUMBER)]
        cancelled = [await stream.add(-1, delay=0.4) for _ in range(NUMBER)]
        assert [await stream.cancel(each) for each in cancelled] == [True] * NUMBER
        assert not await stream.cancel(cancelled[0])
        await world.expect_none(consumer)
        waiting = asyncio.ensure_future(consumer.get(world.patience))
        await world.elapse(0.6)
        got = [(await world.expect_item(waiting)).id, *[(await world.take(consumer)).id for _ in ids[1:]]]
        assert sorted(got) == sorted(ids)
        await world.expect_none(consumer)


async def test_control_of_partitions(world: World) -> None:
    """S24, S9: `pause`, `resume`, `seek` and `delete` act in all partitions."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER)
    group = stream.group("g", start=ailf.LATEST)
    for number in range(NUMBER):
        await stream.add(number)
    assert await group.open()
    assert not await group.open()
    async with group.consumer(prefetch=10) as consumer:
        await world.expect_none(consumer)
        await group.pause()
        assert (await group.info()).paused
        await group.seek(ailf.EARLIEST)
        await world.expect_none(consumer)
        await group.resume()
        held = [await world.take(consumer) for _ in range(NUMBER)]
        assert sorted(each.data for each in held) == list(range(NUMBER))
        await group.seek(ailf.EARLIEST)
        for each in held:
            with pytest.raises(ailf.LeaseLostError):
                await each.ack()
        for _ in range(NUMBER):
            await (await world.take(consumer)).ack()
    await group.delete()
    assert not (await group.info()).exists


async def test_retention_of_partitions(world: World) -> None:
    """S24, S8: `max_len` counts in each partition; a trim goes through all of them."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER, retention=ailf.Retention(max_len=3))
    group = stream.group("g")
    await group.open()
    for number in range(3 * NUMBER):
        await stream.add(number)
    for partition in range(NUMBER):
        with pytest.raises(ailf.StreamFullError):
            await stream.add(-1, key=key_in(partition))
    async with group.consumer(prefetch=10) as consumer:
        for _ in range(3 * NUMBER):
            await (await world.take(consumer)).ack()
    for partition in range(NUMBER):
        await stream.add_many([1, 2], key=key_in(partition))
    assert len(await stream.read()) == 3 * NUMBER
    assert await stream.trim(ailf.Retention.settled()) == ailf.Trimmed(NUMBER, 0)
    assert len(await stream.read()) == 2 * NUMBER


async def test_leases_in_all_partitions_are_renewed(world: World) -> None:
    """S24, S4, S12: a consumer keeps its messages of all partitions, for longer than leases and takeovers last."""
    backend, other = await world.connect(), await world.connect()
    options = {"lease": 2 * world.lease, "takeover": 2 * world.lease}
    stream = backend.stream("s", partitions=NUMBER)
    for number in range(NUMBER):
        await stream.add(number)
    async with (
        stream.group("g", **options).consumer() as one,
        other.stream("s", partitions=NUMBER).group("g", **options).consumer() as two,
    ):
        held = [await world.take(one) for _ in range(NUMBER)]
        waiting = asyncio.ensure_future(two.get(30 * world.lease))
        for _ in range(12):
            await world.elapse(world.lease / 2) if world.lease < 1 else await world.advance(world.lease / 2)
        assert not any(each.lost for each in held)
        for each in held:
            await each.ack()
        await stream.add("last")
        assert (await world.expect_item(waiting)).data == "last"


async def test_messages_of_a_dead_consumer(world: World) -> None:
    """S24, S12, S2: what a consumer that died has leased, in several partitions, goes to others within `takeover`."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER)
    takeover = 2 * world.lease
    group = stream.group("g", lease=1000, takeover=takeover)
    await group.open()
    for number in range(NUMBER):
        await stream.add(number)
    for partition in range(NUMBER):
        dead = world.unmanaged_consumer(backend, f"s/{partition}", lease=1000.0, alive=takeover * 0.7)
        assert len(await dead.fetch()) == 1
    async with group.consumer() as consumer:
        await world.expect_none(consumer)
        waiting = asyncio.ensure_future(consumer.get(world.patience))
        await world.advance(takeover)
        taken = [await world.expect_item(waiting), *[await world.take(consumer) for _ in range(NUMBER - 1)]]
        assert sorted(each.data for each in taken) == list(range(NUMBER))
        assert {each.attempt for each in taken} == {2}


async def test_closing_gives_all_back(world: World) -> None:
    """S24, S6, S11: a consumer that is closed gives back its messages of all partitions, available at once."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER)
    group = stream.group("g", **LONG)
    for number in range(2 * NUMBER):
        await stream.add(number)
    async with group.consumer() as other:
        async with group.consumer(prefetch=3) as consumer:
            for _ in range(2 * NUMBER):
                await world.take(consumer)
            await world.expect_none(other)
        assert sorted([(await world.take(other)).data for _ in range(2 * NUMBER)]) == list(range(2 * NUMBER))


async def test_partitions_are_served_in_turn(world: World) -> None:
    """S24: with messages in all partitions a consumer takes from each of them in turn."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER)
    for partition, count in enumerate((30, 5, 5, 5)):
        await stream.add_many(range(count), key=None if partition else key_in(0))
        if partition:
            for _ in range(count):
                await stream.add(1, key=key_in(partition))
    async with stream.group("g").consumer() as consumer:
        for _ in range(3):
            taken = [await world.take(consumer) for _ in range(NUMBER)]
            assert sorted(partition_of(each.id) for each in taken) == list(range(NUMBER))
            for each in taken:
                await each.ack()


@pytest.mark.parametrize("batch", [None, 4])
async def test_workers_on_partitions(world: World, batch: int | None) -> None:
    """S24, S15, S18: workers of two processes handle all messages of all partitions, one by one or in batches."""
    backends = [await world.connect(), await world.connect()]
    streams = [each.stream("s", partitions=NUMBER) for each in backends]
    groups = [each.group("g") for each in streams]
    handled: list[int] = []

    async def handler(work: Any) -> None:
        handled.extend(each.data for each in (work if batch else [work]))
        if len(handled) >= 60:
            for group in groups:
                group.stop()

    options: dict[str, Any] = {"batch": batch} if batch else {}
    workers = [asyncio.ensure_future(each.process(handler, concurrency=2, signals=False, **options)) for each in groups]
    for number in range(60):
        await streams[number % 2].add(number)
    await world.within_patience(asyncio.gather(*workers), 4 * world.patience)
    assert sorted(handled) == list(range(60))
    info = await groups[0].info()
    assert (info.lag, info.pending, info.delayed, info.consumers) == (0, 0, 0, {})


async def test_a_vanished_group_of_partitions(world: World) -> None:
    """S24, S9: a group that vanished is made again in all partitions, and that is one event."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER)
    events: list[Any] = []
    async with stream.group("g", on_event=events.append).consumer() as consumer:
        await world.expect_none(consumer)
        await stream.delete()
        ids = [await stream.add(number) for number in range(NUMBER)]
        assert sorted([(await world.take(consumer)).id for _ in ids]) == sorted(ids)
        with pytest.raises(ailf.InvalidArgumentError):
            await backend.stream("s").add(1)
    assert events == [ailf.GroupReset("s", "g")]


@pytest.mark.parametrize("number", [NUMBER, 70])
async def test_the_names_of_a_vanished_stream(world: World, number: int) -> None:
    """S21, S9: when a stream that vanished is made again by its consumers, its partitions can't be used by name."""
    backend, other = await world.connect(), await world.connect()
    stream = backend.stream("s", partitions=number)
    async with stream.group("g").consumer() as consumer:
        await stream.add(0)
        await (await world.take(consumer)).ack()
        await other.stream("s", partitions=number).delete()
        ids = [await stream.add(each) for each in range(3)]
        for _ in ids:
            await (await world.take(consumer)).ack()
    another = await world.connect()
    for each in (0, 1, number - 1):
        with pytest.raises(ailf.InvalidArgumentError, match=f"'s/{each}' is partition {each} of stream 's'; use"):
            await another.stream(f"s/{each}").add(1)
    assert len(await another.stream("s", partitions=number).read()) == 3


# --- waiting -----------------------------------------------------------------------------------------------------


async def test_an_arrival_in_any_partition_wakes(world: World) -> None:
    """S25, S19: an idle consumer gets a message at once, whichever partition it comes to, and however it comes."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER)
    group = stream.group("g", **LONG)
    async with group.consumer() as consumer, group.consumer() as other:
        for partition in (*range(NUMBER), *range(NUMBER)):
            waiting = asyncio.ensure_future(consumer.get(world.patience))
            await asyncio.sleep(0.05)
            sent = await stream.add(partition, key=key_in(partition))
            delivery = await world.expect_item(waiting)
            assert delivery.id == sent
            waiting = asyncio.ensure_future(other.get(world.patience))
            await asyncio.sleep(0.05)
            await delivery.nack(0)
            again = await world.expect_item(waiting)
            assert (again.id, again.attempt) == (sent, 2)
            await again.ack()


async def test_an_arrival_wakes_one_consumer_of_a_process(world: World) -> None:
    """S25: of the consumers that wait in a process an arrival wakes one; each burst reaches them all."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=NUMBER)
    group = stream.group("g", **LONG)
    consumers = [group.consumer() for _ in range(6)]
    waiting = []
    for each in consumers:
        await each.__aenter__()
        waiting.append(asyncio.ensure_future(each.get(None)))
        await asyncio.sleep(0.03)
    for served in range(1, 4):
        await stream.add(served)
        await world.until(lambda: sum(each.done() for each in waiting) == served)  # noqa: B023 - it is called here
        await asyncio.sleep(0.1)
        assert [each.done() for each in waiting] == [True] * served + [False] * (6 - served)
    await asyncio.gather(*(stream.add(number) for number in range(3)))
    await world.until(lambda: all(each.done() for each in waiting))
    for each in consumers:
        await each.aclose()


async def test_waits_of_partitions_end(world: World) -> None:
    """S25, S6, B3: a wait ends at its timeout, at a stop and at the backend's close; an arrival after that is kept."""
    backend, other = await world.connect(), await world.connect()
    stream = backend.stream("s", partitions=NUMBER)
    consumer = stream.group("g", **LONG).consumer()
    await consumer.__aenter__()
    assert await world.within_patience(consumer.get(0.2)) is None
    waiting = asyncio.ensure_future(consumer.get(None))
    await asyncio.sleep(0.2)
    consumer.stop()
    assert await world.within_patience(waiting) is None
    await consumer.aclose()
    second = stream.group("g", **LONG).consumer()
    await second.__aenter__()
    waiting = asyncio.ensure_future(second.get(None))
    await asyncio.sleep(0.2)
    await world.within_patience(backend.aclose())
    with pytest.raises(ailf.ClosedError):
        await world.within_patience(waiting)
    sent = await other.stream("s", partitions=NUMBER).add(1)
    async with other.stream("s", partitions=NUMBER).group("g").consumer() as third:
        assert (await world.take(third)).id == sent
