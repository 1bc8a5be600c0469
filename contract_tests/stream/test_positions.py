"""S9: the position of a group: start, seek, pause and delete."""

import asyncio
import time
from datetime import datetime
from typing import Any

import pytest
from msgspec.structs import replace

import ailf
from ailf.driver import Capability
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM,)

PROMPT = 0.5
"""Seconds: half of the longest single wait on a backend, so that waiting it out is not prompt."""

TRIES = 3
"""The number of tries: a busy machine is late at times, a backend that isn't prompt always."""

STALE = {"ack": (), "nack": (0,), "reject": ("why",), "release": (), "extend": (60.0,)}
"""The methods of a delivery with their arguments; none changes anything once its lease is lost."""


async def spread(world: World, stream: Any, count: int) -> list[datetime]:
    """Add numbers at different times; return for each a time between it and the one before."""
    times = []
    for number in range(count):
        await world.advance(0.003)
        times.append(world.when())
        await world.advance(0.003)
        await stream.add(number)
    return times


def without_age(info: ailf.GroupInfo) -> ailf.GroupInfo:
    """Return the info without `oldest`, which changes by itself."""
    return replace(info, oldest=None)


# --- positions ---------------------------------------------------------------------------------------------------


async def test_times(world: World) -> None:
    """S9, S17: a time is a position for groups, read and tail: it lies before the entries added from then on."""
    backend = await world.connect()
    stream = backend.stream("s")
    times = await spread(world, stream, 8)
    for number, time_before in enumerate(times):
        assert [entry.data for entry in await stream.read(time_before)] == list(range(number, 8))
        assert [entry.data for entry in await stream.read(end=time_before)] == list(range(number))
        assert [entry.data for entry in await stream.read(times[2], time_before)] == list(range(2, number))
    group = stream.group("g", start=times[5])
    tail = stream.tail(times[5])
    async with group.consumer() as consumer:
        assert [(await world.take(consumer)).data for _ in range(3)] == [5, 6, 7]
        assert [(await world.within_patience(tail.__anext__())).data for _ in range(3)] == [5, 6, 7]
        await stream.add(8)
        assert (await world.within_patience(tail.__anext__())).data == 8
        assert (await world.take(consumer)).data == 8
    await tail.aclose()
    assert [entry.data for entry in await stream.read(world.when(1000))] == []


async def test_invalid_positions(world: World) -> None:
    """S9, S17: a time without zone, or a text that is not an id, is refused, and no group is made or moved."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add(1)
    for wrong in ("not an id", "", "1-x", "9" * 5000, datetime(2030, 1, 1), 7, None):  # noqa: DTZ001 - the test needs a time without zone
        for call in (
            stream.read,
            lambda position: stream.read(end=position),
            lambda position: stream.group("g", start=position).open(),
            stream.group("g").seek,
            lambda position: stream.tail(position).__anext__(),
        ):
            with pytest.raises(ailf.InvalidArgumentError) as raised:
                await world.within_patience(call(wrong))
            if wrong in {"not an id", "1-x"}:
                assert "stream 's': " in str(raised.value)
                assert repr(wrong) in str(raised.value)
    assert await stream.group("g").open()


@pytest.mark.parametrize("where", ["earliest", "back to an id", "to a time", "on to an id", "latest"])
async def test_seek(world: World, where: str) -> None:
    """S9: after a seek the group reads on from the position, and each entry is new, whatever it was before."""
    backend = await world.connect()
    stream = backend.stream("s")
    times = await spread(world, stream, 5)
    ids = [entry.id for entry in await stream.read()]
    await stream.add("later", delay=1000)
    group, other = stream.group("g", lease=60), stream.group("other", lease=60)
    position, expected = {
        "earliest": (ailf.EARLIEST, [0, 1, 2, 3, 4]),
        "back to an id": (ids[0], [1, 2, 3, 4]),
        "to a time": (times[2], [2, 3, 4]),
        "on to an id": (ids[3], [4]),
        "latest": (ailf.LATEST, []),
    }[where]
    async with group.consumer() as consumer, other.consumer() as apart:
        acked, _, nacked = [await world.take(consumer) for _ in range(3)]
        await acked.ack()
        await nacked.nack(1000)
        assert (await world.take(apart)).data == 0
        await group.seek(position)
        await stream.add("new")
        for data in (*expected, "new"):
            delivery = await world.take(consumer)
            assert (delivery.data, delivery.attempt) == (data, 1)
            await delivery.ack()
        await world.expect_none(consumer)
        assert (await world.take(apart)).data == 1
        info = await group.info()
    assert (info.pending, info.delayed) == (0, 0 if where == "latest" else 1)
    assert info.lag in {0, None}


async def test_old_deliveries_after_a_seek(world: World) -> None:
    """S9, S4: a delivery from before a seek changes nothing, also when the same consumer has its entry again."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", lease=60)
    before = ailf.EARLIEST
    async with group.consumer() as consumer, group.consumer() as other:
        for action, arguments in STALE.items():
            before_it, before = before, await stream.add(action)
            old = await world.take(consumer)
            await group.seek(before_it)
            again = await world.take(consumer)
            assert (again.id, again.attempt) == (old.id, 1)
            before_call = await group.info()
            with pytest.raises(ailf.LeaseLostError):
                await getattr(old, action)(*arguments)
            assert old.lost
            assert without_age(await group.info()) == without_age(before_call)
            await world.expect_none(other)
            await again.extend(60)
            await again.ack()
            await world.expect_none(other)
    assert await group.dead_letters.list() == []


async def test_dead_letters_survive_a_seek(world: World) -> None:
    """S9, S16: a seek keeps the dead letters, and redriven messages are still delivered, once."""
    backend = await world.connect()
    stream = backend.stream("s")
    ids = await stream.add_many(["dead", "redriven", "held"])
    group = stream.group("g", lease=60)
    async with group.consumer() as consumer:
        for _ in range(2):
            await (await world.take(consumer)).reject("no")
        letters = await group.dead_letters.list()
        assert await group.dead_letters.redrive(letters[1].id) == 1
        await world.take(consumer)
        back = await world.take(consumer)
        assert {back.data} <= {"redriven", "held"}
        await group.seek(ailf.LATEST)
        with pytest.raises(ailf.LeaseLostError):
            await back.ack()
        delivery = await world.take(consumer)
        assert (delivery.id, delivery.data, delivery.attempt) == (ids[1], "redriven", 1)
        await delivery.ack()
        await world.expect_none(consumer)
    assert await group.dead_letters.list() == letters[:1]


async def test_an_entry_and_its_redriven_letter(world: World) -> None:
    """S9, S16: after a seek back an entry and its redriven dead letter are two messages, settled separately."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add("twice")
    group = stream.group("g", lease=60)
    async with group.consumer() as consumer:
        await (await world.take(consumer)).reject("no")
        assert await group.dead_letters.redrive_all() == 1
        await group.seek(ailf.EARLIEST)
        one, two = await world.take(consumer), await world.take(consumer)
        assert [(each.id, each.data, each.attempt) for each in (one, two)] == [(one.id, "twice", 1)] * 2
        await one.ack()
        await two.reject("once more")
        await world.expect_none(consumer)
    assert len(await group.dead_letters.list()) == 1


# --- pause and delete --------------------------------------------------------------------------------------------


async def test_pause(world: World) -> None:
    """S9: a paused group delivers nothing, whichever backend paused it; pending messages can be settled."""
    one, two = await world.connect(), await world.connect()
    stream, group, other = one.stream("s"), one.stream("s").group("g"), two.stream("s").group("g")
    await group.open()
    await group.pause()
    await stream.add_many(range(6))
    async with group.consumer() as first, other.consumer() as second, stream.group("apart").consumer() as apart:
        await world.expect_none(first)
        await other.resume()
        held = [await world.take(first) for _ in range(5)]
        await other.pause()
        assert (await group.info()).paused
        assert (await world.take(apart)).data == 0
        acked, nacked, rejected, released, extended = held
        await acked.ack()
        await nacked.nack(0)
        await rejected.reject("no")
        await released.release()
        await extended.extend(60)
        assert await group.dead_letters.redrive_all() == 1
        await stream.add(6)
        for consumer in (first, second):
            await world.expect_none(consumer)
        await group.seek(ailf.EARLIEST)
        await world.expect_none(second)
        async with group.consumer() as third:
            await world.expect_none(third)
        await group.resume()
        assert not (await other.info()).paused
        came = [(await world.take(second if number % 2 else first)).data for number in range(8)]
        assert sorted(came) == [0, 1, 2, 2, 3, 4, 5, 6]


async def test_a_pause_makes_no_dead_letters(world: World) -> None:
    """S9, S5: a message whose last lease ends in a paused group becomes a dead letter only after the resume."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add(1)
    group = stream.group("g", lease=world.lease, takeover=1000, max_processing=0.001, max_deliveries=1)
    async with group.consumer() as consumer:
        await world.take(consumer)
        await group.pause()
        await world.advance(world.lease * 1.2)
        await world.expect_none(consumer)
        assert await group.dead_letters.list() == []
        await group.resume()
        await world.expect_none(consumer)
        assert len(await group.dead_letters.list()) == 1


@pytest.mark.parametrize("there", [False, True])
async def test_steering_a_missing_group(world: World, *, there: bool) -> None:
    """S9: pause, resume and seek of a missing group, with or without its stream, raise and make nothing."""
    backend = await world.connect()
    stream = backend.stream("s")
    if there:
        await stream.add_many(range(2))
        await stream.group("other").open()
    for missing in ("never", "deleted"):
        group = stream.group(missing)
        if missing == "deleted":
            await group.open()
            await group.delete()
        for call in (group.pause, group.resume, lambda its=group: its.seek(ailf.EARLIEST)):
            with pytest.raises(ailf.NotFoundError, match=rf"group '{missing}' of stream 's'.*group\.open\(\)"):
                await call()
            assert not (await group.info()).exists
        assert await group.open()
        assert without_age(await group.info()) == ailf.GroupInfo(length=2 * there, lag=2 * there)
        await group.pause()
        await group.delete()
        assert await group.open()
        assert not (await group.info()).paused  # a new group isn't paused
    assert [entry.data for entry in await stream.read()] == [0, 1][: 2 * there]
    assert (await stream.group("other").info()).exists is there


@pytest.mark.parametrize("way", ["resume", "seek"])
async def test_steering_wakes_a_waiting_consumer(world: World, way: str) -> None:
    """S9, S6: a waiting consumer promptly gets a message that a resume or a seek makes available."""
    one, two = await world.connect(), await world.connect()
    stream, group = one.stream("s"), one.stream("s").group("g", start=ailf.LATEST)
    async with two.stream("s").group("g", start=ailf.LATEST).consumer() as consumer:
        for _ in range(TRIES):
            if way == "resume":
                await group.pause()
            await stream.add(1)
            if way == "seek":
                await (await world.take(consumer)).ack()
            waiting = asyncio.ensure_future(consumer.get(world.patience))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            begin = time.monotonic()
            await (group.resume() if way == "resume" else group.seek(ailf.EARLIEST))
            delivery = await world.expect_item(waiting)
            took = time.monotonic() - begin
            assert delivery is not None
            await delivery.ack()
            if took < PROMPT:
                return
            await group.seek(ailf.LATEST)
    pytest.fail(f"in each of {TRIES} tries the waiting consumer was woken after more than {PROMPT} s")


async def test_delete_a_group(world: World) -> None:
    """S9: delete removes a group and its dead letters; the stream and its other groups don't change."""
    backend = await world.connect()
    stream = backend.stream("s")
    events: list[Any] = []
    await stream.add_many(range(3))
    group = stream.group("g", lease=60, takeover=1, start=ailf.LATEST, on_event=events.append)
    await group.open()
    await group.seek(ailf.EARLIEST)
    async with stream.group("other").consumer() as apart, group.consumer() as consumer:
        await (await world.take(apart)).reject("no")
        await (await world.take(consumer)).reject("no")
        held = await world.take(consumer)
        events.clear()
        await group.delete()
        await group.delete()
        assert await group.dead_letters.list() == []
        assert await group.info() == ailf.GroupInfo(length=3, lag=3, exists=False)
        with pytest.raises(ailf.LeaseLostError):
            await held.ack()
        assert await group.open()  # it starts at `start`, like any new group
        await world.expect_none(consumer)
        await group.delete()
        again = await world.take(consumer)
        assert (again.data, again.attempt) == (0, 1)
        assert events == [ailf.LeaseLost("s", "g", held.id), ailf.GroupReset("s", "g")]
        assert (await world.take(apart)).data == 1
    assert len(await stream.group("other").dead_letters.list()) == 1
    assert len(await stream.read()) == 3
    await backend.stream("missing").group("g").delete()


@pytest.mark.parametrize("what", ["stream", "group"])
async def test_old_deliveries_after_a_reset(world: World, what: str) -> None:
    """S9, S4: a delivery of a stream or group that vanished changes nothing in the one that was made again."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", lease=60)
    async with group.consumer() as consumer, group.consumer() as other:
        await stream.add("message")
        old = await world.take(consumer)
        if what == "stream":
            await stream.delete()
            await stream.add("message")
        else:
            await group.delete()
        again = await world.take(consumer)
        assert (again.data, again.attempt) == ("message", 1)
        with pytest.raises(ailf.LeaseLostError):
            await old.ack()
        await world.expect_none(other)
        await again.extend(60)
        await again.ack()
