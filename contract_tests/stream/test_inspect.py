"""S28: `inspect` tells what a group has made of one entry, and changes nothing."""

import pytest

import ailf
from ailf.driver import Capability
from ailf.values import MessageInfo, MessageState
from contract_tests.fixtures import needs
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM,)

TICK = 0.01
"""Seconds by which two clocks may differ."""

PAUSE = 0.1
"""Seconds for which a nacked message waits."""

SETTLED = MessageInfo(MessageState.SETTLED)
UNREAD = MessageInfo(MessageState.UNREAD)


async def test_inspect_in_every_state(world: World) -> None:
    """S28: unread, leased, waiting for a retry, settled, dead, redriven; each group has its own."""
    backend = await world.connect()
    stream = backend.stream("s")
    group, other = stream.group("g", lease=60), stream.group("other", start=ailf.LATEST)
    await group.open()
    first = await stream.add(1)
    await other.open()
    assert await group.inspect(first) == UNREAD
    assert await other.inspect(first) == SETTLED, "the group began behind it"
    async with group.consumer("me") as consumer:
        for attempt in (1, 2):
            delivery = await world.take(consumer)
            leased = await group.inspect(first)
            assert leased == MessageInfo(MessageState.LEASED, consumer.name, leased.due, attempt)
            assert leased.due is not None
            assert 50 < leased.due <= 60 + TICK
            await delivery.nack(PAUSE)
            waiting = await group.inspect(first)
            assert waiting == MessageInfo(MessageState.WAITING, None, waiting.due, attempt)
            assert waiting.due is not None
            assert 0 <= waiting.due <= PAUSE + TICK
            await world.advance(PAUSE + 2 * TICK)
        await (await world.take(consumer)).reject("no")
        assert await group.inspect(first) == SETTLED
        await group.dead_letters.redrive_all()
        redriven = await group.inspect(first)
        assert (redriven.state, redriven.attempts) == (MessageState.WAITING, 0)
        delivery = await world.take(consumer)
        again = await group.inspect(first)
        assert (again.state, again.consumer, again.attempts) == (MessageState.LEASED, consumer.name, 1)
        await delivery.ack()
        assert await group.inspect(first) == SETTLED
        info = await group.info()
        assert (info.lag, info.pending, info.delayed, info.dead) == (0, 0, 0, 0)


async def test_inspect_a_scheduled_message(world: World) -> None:
    """S28: a message that was read before its time waits until then, and no delivery of it counts."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g")
    await group.open()
    later = await stream.add("later", delay=1000)
    await stream.add("now")
    async with group.consumer() as consumer:
        await (await world.take(consumer)).ack()
        waiting = await group.inspect(later)
        assert waiting == MessageInfo(MessageState.WAITING, None, waiting.due, 0)
        assert waiting.due is not None
        assert 900 < waiting.due <= 1000 + TICK


@needs(Capability.ORDERING)
async def test_inspect_behind_others_of_a_key(world: World) -> None:
    """S28: a message behind others of its key waits for these, so it isn't known until when."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g")
    await group.open()
    await stream.add(1, key="k")
    behind = await stream.add(2, key="k")
    await stream.add(3)
    async with group.consumer(prefetch=3) as consumer:
        first = await world.take(consumer)
        assert await group.inspect(behind) == MessageInfo(MessageState.WAITING)
        await first.ack()
        assert ((await group.inspect(behind)).due or 0.0) <= TICK


async def test_inspect_after_a_seek(world: World) -> None:
    """S28: a group that was moved has read nothing behind its position, and has forgotten what was leased."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g")
    await group.open()
    first, second = await stream.add(1), await stream.add(2)
    async with group.consumer() as consumer:
        await world.take(consumer)
        await group.seek(first)
        assert [await group.inspect(each) for each in (first, second)] == [SETTLED, UNREAD]
        await group.seek(ailf.EARLIEST)
        assert [await group.inspect(each) for each in (first, second)] == [UNREAD, UNREAD]


async def test_inspect_many_redriven(world: World) -> None:
    """S28: where many messages were redriven an entry may be one of them; what is certain is still told."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", max_deliveries=1)
    await group.open()
    settled, *dead = await stream.add_many(range(120))
    async with group.consumer(prefetch=120) as consumer:
        await (await world.take(consumer)).ack()
        for _ in dead:
            await (await world.take(consumer)).reject("no")
        await group.dead_letters.redrive_all()
        fresh = await stream.add("fresh")
        assert (await group.inspect(dead[0])).state is MessageState.WAITING
        assert (await group.inspect(settled)).state in {MessageState.UNKNOWN, MessageState.SETTLED}
        assert (await group.inspect(dead[-1])).state in {MessageState.UNKNOWN, MessageState.WAITING}
        assert await group.inspect(fresh) == UNREAD


async def test_inspect_what_doesnt_exist(world: World) -> None:
    """S28: a missing group is an error, and isn't made; an id that is none is refused; a removed entry is settled."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g")
    first = await stream.add(1)
    with pytest.raises(ailf.NotFoundError, match="group 'g' of stream 's'"):
        await group.inspect(first)
    assert not (await group.info()).exists
    await group.open()
    with pytest.raises(ailf.InvalidArgumentError, match="'nonsense' is not the id of an entry"):
        await group.inspect("nonsense")
    async with group.consumer() as consumer:
        await (await world.take(consumer)).ack()
    await stream.trim(ailf.Retention.settled())
    assert await group.inspect(first) == SETTLED


async def test_inspect_in_partitions(world: World) -> None:
    """S28: it holds in each partition, whose entries tell their partition."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=3)
    group = stream.group("g")
    await group.open()
    ids = [await stream.add(number) for number in range(6)]
    async with group.consumer() as consumer:
        delivery = await world.take(consumer)
        states = {each: (await group.inspect(each)).state for each in ids}
        assert states[delivery.id] is MessageState.LEASED
        assert sum(state is MessageState.UNREAD for state in states.values()) == 5
