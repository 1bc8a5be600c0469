"""S3: ordering keys: a group handles the messages of one key one after another."""

import asyncio
import contextlib
import time
from collections import defaultdict
from typing import Any

import pytest

import ailf
from ailf.checks import MAX_NAME
from ailf.driver import Capability
from contract_tests.helpers.names import NAMES
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM, Capability.ORDERING)

PROMPT = 0.25
"""Seconds within which a waiting consumer gets the next message of a key."""


async def test_one_after_another(world: World) -> None:
    """S3: the next message of a key is delivered once the one before is settled; other messages don't wait for it."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(["a0", "a1"], key="a")
    await stream.add("b0", key="b")
    await stream.add("plain")
    await stream.add_once("a2", "a2", key="a")
    await stream.add("b1", key="b")
    group = stream.group("g", lease=60)
    async with group.consumer(prefetch=10) as one, group.consumer() as two:
        first, b, plain = [await world.take(one) for _ in range(3)]
        assert [first.data, b.data, plain.data] == ["a0", "b0", "plain"]
        await world.expect_none(one)
        await world.expect_none(two)
        await plain.ack()
        await world.expect_none(two)
        await first.ack()
        second = await world.take(two)
        assert (second.data, second.attempt) == ("a1", 1)
        await world.expect_none(one)
        await b.ack()
        assert (await world.take(one)).data == "b1"
        await second.ack()
        assert (await world.take(one)).data == "a2"
        await stream.add("a3", key="a")
        await stream.add("c0", key="c")
        assert (await world.take(two)).data == "c0"
        await world.expect_none(two)


async def test_failed_messages_block_their_lane(world: World) -> None:
    """S3, S5: a message of a key that is nacked, released or expired is delivered again before the next one."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(["a0", "a1"], key="a")
    group = stream.group("g", lease=world.lease, takeover=1000, max_processing=0.001)
    seen = []
    async with group.consumer() as one, group.consumer(prefetch=5) as two:
        for settle in ("release", "nack", "expire", "ack"):
            delivery = await world.take(one)
            seen.append((delivery.data, delivery.attempt))
            await (delivery.nack(world.lease / 2) if settle == "nack" else asyncio.sleep(0))
            await world.expect_none(two)
            await stream.add("b", key="b")
            other = await world.take(two)  # another key doesn't wait
            assert other.data == "b"
            await other.ack()
            if settle == "nack":
                await world.advance(world.lease * 0.6)
            elif settle == "expire":
                await world.advance(world.lease * 1.2)
            else:
                await getattr(delivery, settle)()
        seen.append(((await world.take(two)).data, 1))
    assert seen == [("a0", 1), ("a0", 1), ("a0", 2), ("a0", 3), ("a1", 1)]


@pytest.mark.parametrize("way", ["ack", "reject", "nack", "expire", "cancel", "trim"])
async def test_the_end_of_one_frees_the_next(world: World, way: str) -> None:
    """S3, S5: the next message of a key comes when the one before is acked, dead-lettered, cancelled or trimmed."""
    backend = await world.connect()
    stream = backend.stream("s")
    first = await stream.add(0, key="k", delay=1000 if way == "cancel" else 0)
    await stream.add_many([1, 2], key="k")
    group = stream.group("g", lease=world.lease, takeover=1000, max_processing=0.001, max_deliveries=1)
    async with group.consumer() as one, group.consumer(prefetch=3) as two:
        if way != "cancel":
            delivery = await world.take(one)
            assert delivery.data == 0
        await world.expect_none(two)
        if way == "expire":
            await world.advance(world.lease * 1.2)
        elif way == "cancel":
            assert await stream.cancel(first)
        elif way == "trim":
            await stream.trim(ailf.Retention(max_len=2, hard=True))
            with contextlib.suppress(ailf.LeaseLostError):  # a backend may end the lease at once, or let it last
                await delivery.ack()
        elif way == "nack":
            await delivery.nack(0)
        else:
            await getattr(delivery, way)(*(["no"] if way == "reject" else []))
        following = await world.take(two)
        assert (following.data, following.attempt) == (1, 1)
        await world.expect_none(one)
        await following.ack()
        assert (await world.take(two)).data == 2
    assert len(await group.dead_letters.list()) == (way in {"reject", "nack", "expire"})


async def test_the_next_of_a_key_wakes_a_waiting_consumer(world: World) -> None:
    """S3, S6: a waiting consumer promptly gets the next message of a key when any consumer settles the one before."""
    one, two = await world.connect(), await world.connect()
    stream = one.stream("s")
    await stream.add_many(range(7), key="k")
    took = []
    async with stream.group("g").consumer() as busy, two.stream("s").group("g").consumer() as idle:
        delivery = await world.take(busy)
        for number in range(1, 7):
            waiting = asyncio.ensure_future((idle if number % 2 else busy).get(world.patience))
            await asyncio.sleep(0.03)
            assert not waiting.done()
            begin = time.monotonic()
            await (delivery.reject("no") if number % 3 == 0 else delivery.ack())
            delivery = await world.expect_item(waiting)
            took.append(time.monotonic() - begin)
            assert delivery.data == number
    assert sorted(took)[len(took) // 2] < PROMPT, took  # the median, as a busy machine may be late at times


async def test_each_at_its_own_time(world: World) -> None:
    """S3, S7: a scheduled message of a key is not delivered before its time, and delays those behind it in its lane."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add(0, key="k")
    await stream.add(1, key="k", delay=world.lease)
    await stream.add(2, key="k")
    await stream.add("other", key="l")
    group = stream.group("g", lease=60, takeover=1000)
    async with group.consumer() as consumer:
        await (await world.take(consumer)).ack()
        await (await world.take(consumer)).ack()
        await world.expect_none(consumer)
        await world.advance(world.lease * 1.1)
        for expected in (1, 2):
            delivery = await world.take(consumer)
            assert (delivery.data, delivery.attempt) == (expected, 1)
            await world.expect_none(consumer)
            await delivery.ack()


async def test_groups_have_lanes_of_their_own(world: World) -> None:
    """S3, S11: a lane that is blocked in one group is not blocked in another."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(4), key="k")
    slow, quick = stream.group("slow"), stream.group("quick")
    async with slow.consumer() as waiting, quick.consumer() as consumer:
        held = await world.take(waiting)
        for number in range(4):
            delivery = await world.take(consumer)
            assert delivery.data == number
            await delivery.ack()
        await world.expect_none(waiting)
        await held.ack()
        assert (await world.take(waiting)).data == 1


async def test_a_redriven_message_queues(world: World) -> None:
    """S3, S16: a redriven message joins the end of its lane, and is delivered at once if the lane is free."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(3), key="k")
    group = stream.group("g", lease=60)
    async with group.consumer(prefetch=5) as consumer:
        await (await world.take(consumer)).reject("later")
        held = await world.take(consumer)
        await world.expect_none(consumer)
        assert await group.dead_letters.redrive_all() == 1
        await world.expect_none(consumer)
        await held.ack()
        seen = []
        for _ in range(2):
            delivery = await world.take(consumer)
            await world.expect_none(consumer)
            seen.append((delivery.data, delivery.attempt))
            await (delivery.ack() if len(seen) == 1 else delivery.reject("again"))
        assert seen == [(2, 1), (0, 1)]
        assert await group.dead_letters.redrive_all() == 1
        await stream.add(3, key="k")
        delivery = await world.take(consumer)
        assert (delivery.data, delivery.attempt) == (0, 1)
        await world.expect_none(consumer)
        await delivery.ack()
        assert (await world.take(consumer)).data == 3


async def test_closing_keeps_the_order_of_a_key(world: World) -> None:
    """S3, S6: the message of a key that a closing consumer held is the first that the next consumer gets."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(3), key="k")
    group = stream.group("g", lease=60)
    for expected in range(3):
        async with group.consumer(prefetch=5) as consumer:
            assert (await world.take(consumer)).data == expected
        async with group.consumer(prefetch=5) as consumer:
            delivery = await world.take(consumer)
            assert (delivery.data, delivery.attempt) == (expected, 1)
            await delivery.ack()


async def test_keys(world: World) -> None:
    """S3, B5: a key may be any non-empty text, and no two keys share a lane; other values are refused."""
    backend = await world.connect()
    stream = backend.stream("s")
    for name in NAMES:
        await stream.add_many([[name, 0], [name, 1]], key=name)
    group = stream.group("g", lease=60)
    async with group.consumer(prefetch=7) as consumer:
        held = [await world.take(consumer) for _ in NAMES]
        assert [each.data for each in held] == [[name, 0] for name in NAMES]
        await world.expect_none(consumer)
        for each in held:
            await each.ack()
            assert (await world.take(consumer)).data == [each.data[0], 1]
    before = await stream.read(limit=1000)
    for key in ("", 7, b"k", "\ud800", "k" * (MAX_NAME + 1)):
        for call in (stream.add(1, key=key), stream.add_many([1], key=key), stream.add_once("once", 1, key=key)):
            with pytest.raises(ailf.InvalidArgumentError):
                await call
    assert await stream.read(limit=1000) == before


async def test_ordered_work(world: World) -> None:
    """S3: workers with several worker loops handle each key in order, and never two messages of a key at once."""
    one, two = await world.connect(), await world.connect()
    keys, most = "abcde", 8
    for number in range(most):
        for key in keys:
            await one.stream("s").add([key, number], key=key)
    groups = [each.stream("s").group("g", backoff=ailf.Backoff(initial=0.0)) for each in (one, two)]
    running: defaultdict[str, int] = defaultdict(int)
    done: defaultdict[str, list[int]] = defaultdict(list)
    widest, clashes = 0, []

    async def handler(delivery: Any) -> None:
        nonlocal widest
        key, number = delivery.data
        running[key] += 1
        widest = max(widest, sum(running.values()))
        if running[key] > 1:
            clashes.append(delivery.data)
        await asyncio.sleep(0.002)
        running[key] -= 1
        if number % 3 == 1 and delivery.attempt == 1:
            raise ailf.Retry("once more")
        done[key].append(number)
        if sum(map(len, done.values())) == most * len(keys):
            for group in groups:
                group.stop()

    await world.within_patience(
        asyncio.gather(*(group.process(handler, concurrency=4) for group in groups)), 2 * world.patience
    )
    assert clashes == []
    assert done == {key: list(range(most)) for key in keys}
    assert 1 < widest <= len(keys)


async def test_a_long_lane_delays_no_other_key(world: World) -> None:
    """S3: a long lane doesn't delay a later message of another key, and its own messages still come in order."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(300), key="long")
    await stream.add("short", key="short")
    group = stream.group("g", lease=60)
    async with group.consumer() as one, group.consumer(prefetch=2) as two:
        first = await world.take(one)
        assert (first.data, (await world.take(two)).data) == (0, "short")
        await first.ack()
        for expected in range(1, 20):
            delivery = await world.take(one if expected % 2 else two)
            assert delivery.data == expected
            await delivery.ack()


async def test_keys_are_told(world: World) -> None:
    """S26, S16: an entry, a delivery and a dead letter tell their ordering key, also after a redrive."""
    stream = (await world.connect()).stream("s")
    keys = [*NAMES[:8], "1|2|3", "a\nb"]
    for key in keys:
        await stream.add(key, key=key, headers={"h": "v"}, max_deliveries=7)
    await stream.add_once("once", "without a key")
    await stream.add("later", delay=0.001)
    await world.advance(0.005)
    wanted = {each: each for each in keys} | {"without a key": "", "later": ""}
    assert {each.data: each.key for each in await stream.read()} == wanted
    group = stream.group("g", lease=60)
    for _ in range(2):
        async with group.consumer(prefetch=len(wanted)) as consumer:
            taken = [await world.take(consumer) for _ in wanted]
            assert {each.data: each.key for each in taken} == wanted
            for each in taken:
                await each.reject("no")
        assert {each.data: each.key for each in await group.dead_letters.list()} == wanted
        assert await group.dead_letters.redrive_all() == len(wanted)
