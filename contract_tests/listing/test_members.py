"""N6 to N8: the groups and consumers of a stream, its state, and channels with subscribers."""

import asyncio
import os
import socket
from typing import Any

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.fixtures import needs
from contract_tests.listing.test_listing import everything
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.LISTING,)

KINDS = pytest.mark.parametrize("partitions", [None, 4])


@needs(Capability.STREAM)
@KINDS
async def test_groups_of_a_stream(world: World, partitions: int | None) -> None:
    """N6: the groups come in order, each once, in pages; the object need not know the number of partitions."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=partitions)
    names = sorted(["g", "a group", "g:h", "{}%", "ü", "g*", *(f"n{number}" for number in range(10))])
    for name in reversed(names):
        await stream.group(name).open()
    for one in (stream, backend.stream("s"), backend.stream("s", partitions=2)):
        assert await everything(one.groups(), 3) == names
        assert [name async for name in one.groups(page_size=4)] == names
    await stream.group("g").delete()
    assert await everything(stream.groups(), 100) == [name for name in names if name != "g"]
    assert await everything(backend.stream("missing").groups()) == []


@needs(Capability.STREAM)
@KINDS
async def test_state_of_a_stream(world: World, partitions: int | None) -> None:
    """N6: info tells the length, the first and last entry, the number of groups and the stored partitions."""
    backend = await world.connect()
    assert await backend.stream("s").info() == ailf.StreamInfo("s")
    stream = backend.stream("s", partitions=partitions)
    ids = []
    for number in range(9):
        ids.append(await stream.add(number))
        await world.elapse(0.005)
    await stream.group("g").open()
    await stream.group("h").open()
    info = await backend.stream("s").info()
    assert (info.name, info.length, info.partitions, info.groups) == ("s", 9, partitions or 1, 2)
    assert (info.first_id, info.last_id) == (ids[0], ids[-1])
    assert info.added is not None
    assert abs(info.added - world.harness.now()) < world.patience
    assert await stream.info() == info
    await stream.trim(ailf.Retention(max_len=1, hard=True))
    trimmed = await stream.info()
    assert trimmed.last_id == ids[-1]
    assert trimmed.length == (partitions or 1)
    assert trimmed.entries_added in (None, 9)
    await stream.delete()
    assert await backend.stream("s").info() == ailf.StreamInfo("s")


@needs(Capability.STREAM)
async def test_info_of_a_partition(world: World) -> None:
    """N6: a partition has no info and no groups of its own; the error says that it is one."""
    backend = await world.connect()
    await backend.stream("s", partitions=2).add(1)
    with pytest.raises(ailf.InvalidArgumentError, match="partition"):
        await backend.stream("s/0").info()
    with pytest.raises(ailf.InvalidArgumentError, match="partition"):
        await backend.stream("s/1").groups().page()


@needs(Capability.STREAM)
@KINDS
async def test_consumers_of_a_group(world: World, partitions: int | None) -> None:
    """N7: each open consumer comes once with what it holds; a process names those that the program does not name."""
    backend = await world.connect()
    stream = backend.stream("s", partitions=partitions)
    group = stream.group("g", takeover=100.0, lease=100.0)
    assert await everything(group.consumers()) == []
    await stream.add_many(range(2), key="a")
    await stream.add_many(range(3), key="b")
    async with group.consumer() as one, group.consumer("worker-7") as other, group.consumer("idle:1") as idle:
        for _ in range(2):
            await world.take(one)
        await world.expect_none(other)
        await world.expect_none(idle)
        found = {each.name: each for each in await everything(group.consumers(), 2)}
        assert list(found) == sorted(each.name for each in (one, other, idle))
        assert {name: each.in_hand for name, each in found.items()} == {one.name: 2, other.name: 0, idle.name: 0}
        assert (found[one.name].pid, found[one.name].host) == (os.getpid(), socket.gethostname())
        assert (found[other.name].pid, found[other.name].host) == (None, None)
        for each in found.values():
            assert each.alive
            assert each.last_seen is not None
            assert 0 <= each.last_seen < 50
    assert await everything(group.consumers()) == []


@needs(Capability.STREAM)
async def test_consumers_of_dead_processes(world: World) -> None:
    """N7: a consumer without heartbeats is listed, and not alive, until another one has taken its messages."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add(1)
    group = stream.group("g", takeover=world.lease)
    unmanaged = world.unmanaged_consumer(backend, "s", name="gone", alive=world.lease, lease=10 * world.lease)
    await group.open()
    await unmanaged.fetch()
    (state,) = await everything(group.consumers())
    assert (state.name, state.pid, state.in_hand, state.alive) == ("gone", None, 1, True)
    await world.advance(1.5 * world.lease)
    (state,) = await everything(group.consumers())
    assert (state.name, state.in_hand, state.alive) == ("gone", 1, False)
    async with group.consumer() as consumer:
        await world.take(consumer)
        (state,) = await everything(group.consumers())
        assert (state.name, state.in_hand, state.alive) == (consumer.name, 1, True)


@needs(Capability.STREAM)
async def test_redriven_messages_in_hand(world: World) -> None:
    """N7: a redriven message counts among those that a consumer holds, and after a seek nothing does."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", lease=100.0)
    await stream.add_many(range(2))
    async with group.consumer() as consumer:
        await (await world.take(consumer)).reject("no")
        await world.take(consumer)
        await group.dead_letters.redrive_all()
        await world.take(consumer)
        assert [each.in_hand for each in await everything(group.consumers())] == [2]
        await group.seek(ailf.LATEST)
        assert [each.in_hand for each in await everything(group.consumers())] == [0]


@needs(Capability.PUBSUB)
async def test_channels_with_subscribers(world: World) -> None:
    """N8: each channel that is subscribed to by name comes once, with the number of backends that do."""
    backend, second = await world.connect(), await world.connect()
    pubsub, other = backend.pubsub(), second.pubsub()
    assert await pubsub.channels() == []
    odd = ("a*", "a?", "[a]", "{}%", "ü", "a\\")
    async with pubsub.listen("news", *odd), pubsub.listen("news"), other.listen("news", "other"):
        found = await pubsub.channels()
        expected = {"news": 2, "other": 1, **dict.fromkeys(odd, 1)}
        assert {each.name: each.subscribers for each in found} == expected
        assert [each.name for each in found] == sorted(expected)
        for prefix in ("n", "a", "a*", "[", "a?", "x", "\\", "a\\"):
            names = [each.name for each in await pubsub.channels(prefix)]
            assert names == sorted(name for name in expected if name.startswith(prefix)), prefix
    elsewhere = await world.connect(harness=world.harness.other_namespace())
    async with elsewhere.pubsub().listen("elsewhere"):
        assert "elsewhere" not in [each.name for each in await pubsub.channels()]


@needs(Capability.PUBSUB, Capability.PATTERNS)
async def test_channels_without_patterns(world: World) -> None:
    """N8: a pattern is no channel, and counts as no subscriber of one."""
    backend = await world.connect()
    pubsub = backend.pubsub()
    async with pubsub.listen("a", pattern="*"):
        assert await pubsub.channels() == [ailf.ChannelInfo("a", 1)]


@needs(Capability.PUBSUB)
async def test_list_of_sharded_channels(world: World) -> None:
    """N8: the sharded channels, where there are any, are listed by themselves."""
    backend = await world.connect()
    if Capability.SHARDED not in backend.capabilities:
        return
    sharded, plain = backend.pubsub(sharded=True), backend.pubsub()
    async with sharded.listen("s"), plain.listen("p"):
        assert await sharded.channels() == [ailf.ChannelInfo("s", 1)]
        assert await plain.channels() == [ailf.ChannelInfo("p", 1)]


@needs(Capability.PUBSUB)
async def test_internal_channels(world: World) -> None:
    """N8: the channel on which a program receives replies is not among them."""
    backend = await world.connect()
    pubsub = backend.pubsub()

    async def answer(message: Any) -> int:
        return int(message.data) + 1

    await pubsub.subscribe("ask", answer)
    running = asyncio.ensure_future(pubsub.run())
    assert (await pubsub.request("ask", 1)).data == 2
    assert [each.name for each in await pubsub.channels()] == ["ask"]
    pubsub.stop()
    await world.within_patience(running)


@needs(Capability.PUBSUB)
async def test_too_many_channels(world: World) -> None:
    """N8: more than 10,000 channels are refused with an error that says so, and a prefix helps."""
    backend = await world.connect()
    pubsub = backend.pubsub()
    async with pubsub.listen("one", *(f"c{number}" for number in range(10_000))):
        with pytest.raises(ailf.ProtocolError, match="more than 10,000 channels"):
            await pubsub.channels()
        assert len(await pubsub.channels("c")) == 10_000
        assert [each.name for each in await pubsub.channels("o")] == ["one"]
