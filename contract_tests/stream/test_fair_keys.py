"""S20: ordering keys take turns, and a group handles up to `key_concurrency` messages of each at once."""

import asyncio
from collections import Counter, defaultdict
from typing import Any

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM, Capability.ORDERING)

BACKLOG = 1000
"""Messages of one key before that of another: more than a step reads."""

STEPS = 30
"""The most deliveries until a key behind a backlog takes its turn."""


async def backlog(stream: Any, count: int, key: str = "busy") -> None:
    """Add messages of one key: their number and the key."""
    for begin in range(0, count, 500):
        await stream.add_many([[key, number] for number in range(begin, min(count, begin + 500))], key=key)


async def take_and_ack(world: World, consumer: Any) -> Any:
    """Handle the next message, and return its data."""
    delivery = await world.take(consumer)
    await delivery.ack()
    return delivery.data


async def test_a_backlog_of_one_key_hides_no_other(world: World) -> None:
    """S20: a message behind a long backlog of another key, with a key or without, takes its turn within a few steps."""
    backend = await world.connect()
    stream = backend.stream("s")
    await backlog(stream, BACKLOG)
    await stream.add(["quiet", 0], key="quiet")
    await stream.add(["no key", 0])
    async with stream.group("g", lease=60).consumer(prefetch=1) as consumer:
        seen = [await take_and_ack(world, consumer) for _ in range(STEPS)]
    assert seen.count(["quiet", 0]) == seen.count(["no key", 0]) == 1
    assert [each for each in seen if each[0] == "busy"] == [["busy", number] for number in range(STEPS - 2)]


async def test_keys_take_turns(world: World) -> None:
    """S20: with k keys waiting the next k deliveries are of k keys, however the messages before them are settled."""
    backend = await world.connect()
    stream = backend.stream("s")
    keys, each = "abcd", 10
    for key in keys:  # one backlog behind the other
        await backlog(stream, each, key)
    group = stream.group("g", lease=60, backoff=ailf.Backoff(initial=0.0))
    done: defaultdict[str, list[int]] = defaultdict(list)
    async with group.consumer(prefetch=1) as consumer:
        held = await world.take(consumer)  # the fetch has read on: the others wait for their turns
        await held.release()
        for turn in range(each):
            seen = set()
            for step in range(len(keys)):
                delivery = await world.take(consumer)
                key, number = delivery.data
                seen.add(key)
                if (turn + step) % 5 == 0 and delivery.attempt == 1:
                    await delivery.nack(0)
                elif (turn + step) % 7 == 0 and delivery.attempt == 1:
                    await delivery.reject("no")
                else:
                    done[key].append(number)
                    await delivery.ack()
            assert seen == set(keys)
    assert all(numbers == sorted(numbers) for numbers in done.values())


async def test_keys_of_two_consumers_take_turns(world: World) -> None:
    """S20: keys take turns in the group as a whole, whichever consumer settles their messages."""
    backend = await world.connect()
    stream = backend.stream("s")
    for key in "abc":
        await backlog(stream, 8, key)
    group = stream.group("g", lease=60)
    async with group.consumer(prefetch=1) as one, group.consumer(prefetch=1) as two:
        first, second = await world.take(one), await world.take(two)
        assert {first.data[0], second.data[0]} == {"a", "b"}
        await second.ack()
        await first.ack()
        for _ in range(7):
            seen = []
            for consumer in (one, two, one):
                delivery = await world.take(consumer)
                seen.append(delivery.data[0])
                await delivery.ack()
            assert sorted(seen) == ["a", "b", "c"]


async def test_a_message_that_comes_back_waits_for_its_turn(world: World) -> None:
    """S20, S3: a message of a key that is released or nacked comes before the later ones of its key, in its turn."""
    backend = await world.connect()
    stream = backend.stream("s")
    await backlog(stream, 5, "a")
    await backlog(stream, 2, "b")
    group = stream.group("g", lease=60)
    async with group.consumer(prefetch=1) as consumer:
        seen = []
        for settle in ("release", "ack", "nack", "ack", "ack"):
            delivery = await world.take(consumer)
            seen.append(tuple(delivery.data))
            await (delivery.nack(0) if settle == "nack" else getattr(delivery, settle)())
    assert seen == [("a", 0), ("b", 0), ("a", 0), ("b", 1), ("a", 0)]


@pytest.mark.parametrize("width", [1, 2, 5])
async def test_at_most_n_of_a_key(world: World, width: int) -> None:
    """S20: up to n messages of a key are out at once, never more, and they begin in order."""
    backend = await world.connect()
    stream = backend.stream("s")
    await backlog(stream, 20)
    group = stream.group("g", lease=60, key_concurrency=width)
    async with group.consumer(prefetch=1) as one, group.consumer(prefetch=1) as two:
        held = [await world.take(one if number % 2 else two) for number in range(width)]
        assert sorted(each.data[1] for each in held) == list(range(width))
        for number in range(width, 20):
            await world.expect_none(one)
            await world.expect_none(two)
            await held.pop(number % width).ack()
            held.append(await world.take(two if number % 2 else one))
            assert held[-1].data[1] == number


async def test_n_of_a_key_at_work(world: World) -> None:
    """S20: workers run n handlers of a key at once and no more, while messages fail, and each is handled."""
    one, two = await world.connect(), await world.connect()
    width, most, keys = 3, 12, "ab"
    for key in keys:
        await backlog(one.stream("s"), most, key)
    options: dict[str, Any] = {"backoff": ailf.Backoff(initial=0.0), "key_concurrency": width}
    groups = [each.stream("s").group("g", **options) for each in (one, two)]
    running: Counter[str] = Counter()
    widest: Counter[str] = Counter()
    done = []

    async def handler(delivery: Any) -> None:
        key, number = delivery.data
        running[key] += 1
        widest[key] = max(widest[key], running[key])
        await asyncio.sleep(0.01)
        running[key] -= 1
        if number % 3 == 1 and delivery.attempt == 1:
            raise ailf.Retry("once more")
        done.append((key, number))
        if len(done) == most * len(keys):
            for group in groups:
                group.stop()

    await world.within_patience(
        asyncio.gather(*(group.process(handler, concurrency=4) for group in groups)), 2 * world.patience
    )
    assert widest == dict.fromkeys(keys, width)
    assert sorted(done) == [(key, number) for key in keys for number in range(most)]


async def test_a_failed_message_keeps_its_place(world: World) -> None:
    """S20, S5: a message that waits for its retry counts among the n of its key; a dead letter frees its place."""
    backend = await world.connect()
    stream = backend.stream("s")
    await backlog(stream, 5)
    group = stream.group("g", lease=60, max_deliveries=2, key_concurrency=2)
    async with group.consumer(prefetch=5) as consumer:
        first, second = await world.take(consumer), await world.take(consumer)
        await first.nack(world.lease)
        await world.expect_none(consumer)
        await second.reject("no")
        third = await world.take(consumer)
        assert third.data[1] == 2
        await world.expect_none(consumer)
        await world.advance(world.lease * 1.1)
        again = await world.take(consumer)
        assert (again.data[1], again.attempt) == (0, 2)
        await world.expect_none(consumer)
        await again.nack(0)  # its last delivery
        assert (await world.take(consumer)).data[1] == 3
        await third.release()
        assert (await world.take(consumer)).data[1] == 2
        assert await group.dead_letters.redrive_all() == 2
        await world.expect_none(consumer)
        assert (await group.info()).pending == 2


async def test_keys_of_a_dead_consumer(world: World) -> None:
    """S20, S12: those that a consumer held when it died come again in turn with other keys, and no more than n."""
    backend = await world.connect()
    stream = backend.stream("s")
    await backlog(stream, 6)
    await backlog(stream, 1, "other")
    group = stream.group("g", lease=1000, takeover=world.lease, key_concurrency=3)
    await group.open()
    dead = world.unmanaged_consumer(backend, "s", alive=world.lease * 0.7, key_concurrency=3)
    assert len(await dead.fetch(3)) == 3
    await world.advance(world.lease)
    async with group.consumer(prefetch=10) as consumer:
        seen = [(delivery.data[0], delivery.attempt) for delivery in [await world.take(consumer) for _ in range(4)]]
        await world.expect_none(consumer)
    assert sorted(seen) == [("busy", 2)] * 3 + [("other", 1)]
    assert ("other", 1) in seen[:2]


@pytest.mark.parametrize("way", ["cancel", "trim"])
async def test_a_removed_message_frees_its_place(world: World, way: str) -> None:
    """S20, S7, S8: when a waiting message among the n of its key is removed, the next one takes its place."""
    backend = await world.connect()
    stream = backend.stream("s")
    first = await stream.add(["busy", "later"], key="busy", delay=1000)
    await backlog(stream, 4)
    group = stream.group("g", lease=60, key_concurrency=2)
    async with group.consumer(prefetch=5) as consumer:
        assert (await world.take(consumer)).data[1] == 0
        await world.expect_none(consumer)
        if way == "cancel":
            assert await stream.cancel(first)
        else:
            await stream.trim(ailf.Retention(max_len=4, hard=True))
        assert (await world.take(consumer)).data[1] == 1
        await world.expect_none(consumer)


async def test_a_number_that_changes(world: World) -> None:
    """S20: the number of the last fetch counts: a higher one when the next of a key is settled, a lower one at once."""
    backend = await world.connect()
    stream = backend.stream("s")
    await backlog(stream, 10)
    narrow, wide = (stream.group("g", lease=60, key_concurrency=width) for width in (1, 3))
    async with narrow.consumer(prefetch=5) as one, wide.consumer(prefetch=5) as three:
        first = await world.take(one)
        await world.expect_none(three)
        await first.ack()
        held = [await world.take(three) for _ in range(3)]
        assert [each.data[1] for each in held] == [1, 2, 3]
        await world.expect_none(one)
        for each in held[:2]:
            await each.ack()
            await world.expect_none(one)
        await held[2].nack(0)
        seen = []
        for _ in range(3):
            delivery = await world.take(one)
            await world.expect_none(one)
            seen.append(delivery.data[1])
            await delivery.ack()
    assert seen == [3, 4, 5]


async def test_seek_and_pause_with_a_number(world: World) -> None:
    """S20, S9: after a seek at most n of a key are out again; a paused group lets none begin."""
    backend = await world.connect()
    stream = backend.stream("s")
    await backlog(stream, 6)
    group = stream.group("g", lease=60, key_concurrency=2)
    async with group.consumer(prefetch=1) as consumer:
        held = [await world.take(consumer) for _ in range(2)]
        await group.pause()
        await held[0].ack()
        await world.expect_none(consumer)
        await group.resume()
        assert (await world.take(consumer)).data[1] == 2
        await group.seek(ailf.EARLIEST)
        assert sorted([(await world.take(consumer)).data[1] for _ in range(2)]) == [0, 1]
        await world.expect_none(consumer)


async def test_invalid_numbers(world: World) -> None:
    """S20, B5: `key_concurrency` is a whole number from 1 to 100."""
    backend = await world.connect()
    stream = backend.stream("s")
    stream.group("g", key_concurrency=100)
    for number in (0, -1, 101, 1.5, True, "2", None):
        with pytest.raises(ailf.InvalidArgumentError, match="key_concurrency"):
            stream.group("g", key_concurrency=number)
