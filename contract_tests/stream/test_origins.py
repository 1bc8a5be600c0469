"""S26: an entry, a delivery and a dead letter tell where they belong, and when they came."""

import pickle
from typing import Any

import msgspec
import pytest

import ailf
from ailf.driver import Capability
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM,)

MILLISECOND = 0.001
"""Backends count time in milliseconds, rounded down."""


class Order(msgspec.Struct):
    """A payload of a typed stream."""

    item: str


async def add_timed(world: World, stream: Any, data: Any, **options: Any) -> tuple[float, float]:
    """Add a message; return times of the backend's clock between which it was added."""
    await world.advance(0.005)
    before = world.harness.now()
    await stream.add(data, **options)
    after = world.harness.now()
    await world.advance(0.005)
    return before - MILLISECOND, after + MILLISECOND


async def rejected(world: World, group: Any) -> Any:
    """Reject the next message of a group; return its delivery."""
    async with group.consumer() as consumer:
        delivery = await world.take(consumer)
        await delivery.reject("no")
        return delivery


async def test_where_entries_belong(world: World) -> None:
    """S26: an entry, read or followed, tells its stream and when it was added; it has no ordering key."""
    stream = (await world.connect()).stream("s")
    spans = [await add_timed(world, stream, number) for number in range(3)]
    entries = await stream.read()
    tail = stream.tail(ailf.EARLIEST)
    assert [await world.within_patience(tail.__anext__()) for _ in spans] == entries
    await tail.aclose()
    assert [(each.stream, each.key) for each in entries] == [("s", "")] * 3
    for entry, (before, after) in zip(entries, spans, strict=True):
        assert before <= entry.added <= after
    assert pickle.loads(pickle.dumps(entries)) == entries


async def test_where_deliveries_belong(world: World) -> None:
    """S26: a delivery tells its stream, group and consumer, and when its entry was added, however late it comes."""
    stream = (await world.connect()).stream("s")
    before, after = await add_timed(world, stream, 1)
    group = stream.group("g", lease=60)
    async with group.consumer("c") as consumer:
        for _ in range(2):
            delivery = await world.take(consumer)
            told = (delivery.stream, delivery.group, delivery.consumer, delivery.key)
            assert told == ("s", "g", consumer.name, "")
            assert before <= delivery.added <= after
            await delivery.nack(0)
            await world.advance(1.0)


async def test_where_dead_letters_belong(world: World) -> None:
    """S26, S16: a dead letter tells its stream, its group, when its entry was added and when it died, each time."""
    stream = (await world.connect()).stream("s")
    added = [await add_timed(world, stream, number) for number in range(2)]
    group = stream.group("g", lease=60)
    for number, (before, after) in enumerate(added):
        await world.advance(1.0)
        died = world.harness.now() - MILLISECOND
        delivery = await rejected(world, group)
        *_, letter = await group.dead_letters.list()
        assert (letter.stream, letter.group, letter.origin, letter.key, letter.data) == (
            "s",
            "g",
            delivery.id,
            "",
            number,
        )
        assert letter.added == delivery.added
        assert before <= letter.added <= after < died <= letter.died <= world.harness.now() + MILLISECOND
    first, second = await group.dead_letters.list()
    assert first.died < second.died
    await world.advance(1.0)
    await group.dead_letters.redrive(first.id)
    assert (await rejected(world, group)).added == first.added
    again = (await group.dead_letters.list())[-1]
    assert (again.origin, again.added) == (first.origin, first.added)
    assert again.died >= second.died + 1.0 - MILLISECOND


async def test_dead_letters_of_a_typed_stream(world: World) -> None:
    """S26: the data of a dead letter are decoded as those of a delivery, when asked for; a failure harms no listing."""
    backend = await world.connect()
    await backend.stream("s").add("no order", headers={"h": "v"})
    await backend.stream("s").add(b"\xff")
    typed = backend.stream("s", type=Order)
    await typed.add(Order("tea"))
    group = typed.group("g", lease=60)
    await rejected(world, group)
    letters = await group.dead_letters.list()
    wrong, binary, tea = sorted(letters, key=lambda each: each.origin)
    assert tea.data == Order("tea")
    for each in (wrong, binary):
        with pytest.raises(ailf.DecodeError, match=rf"dead letter {each.id}: stream 's'"):
            _ = each.data
    assert (wrong.reason, wrong.body, wrong.headers) == ("undecodable", b'"no order"', {"h": "v"})
    untyped = {each.id: each for each in await backend.stream("s").group("g").dead_letters.list()}
    assert [untyped[each.id].data for each in (wrong, binary, tea)] == ["no order", b"\xff", {"item": "tea"}]
    assert untyped == {each.id: each for each in letters}
    (copy,) = pickle.loads(pickle.dumps([tea]))
    assert (copy, copy.data) == (tea, Order("tea"))
    with pytest.raises(AttributeError):
        tea.reason = "another"
