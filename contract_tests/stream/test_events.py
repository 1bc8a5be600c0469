"""S4, S5, S9, S13, S15: the events of a group, and the trace context of its messages."""

from typing import Any

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.fixtures import needs
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM,)


def trace(number: int) -> dict[str, str]:
    """Return the headers of a new trace."""
    return {"traceparent": f"00-{number:032x}-{number:016x}-01", "tracestate": f"vendor={number}"}


async def test_dead_letter_events(world: World) -> None:
    """S5, S13: each dead letter makes one event with its reason, for the hook of the group object that caused it."""
    backend = await world.connect()
    stream, raw = backend.stream("s", type=int), backend.stream("s", type=bytes)
    ids = [await stream.add(0), await stream.add(1), await raw.add(b"?"), await stream.add(3)]
    events: list[Any] = []
    quiet: list[Any] = []
    group = stream.group(
        "g", lease=world.lease, takeover=1000, max_processing=0.001, max_deliveries=1, on_event=events.append
    )
    async with group.consumer() as consumer, stream.group("g", on_event=quiet.append).consumer():
        rejected = await world.take(consumer)
        await rejected.reject("no")
        await rejected.reject("no")
        await (await world.take(consumer)).nack(0)
        await world.take(consumer)
        await world.advance(world.lease * 1.2)
        await world.expect_none(consumer)
    reasons = ["rejected", "max_deliveries", "undecodable", "max_deliveries"]
    assert events == [ailf.DeadLettered("s", "g", *each) for each in zip(ids, reasons, strict=True)]
    assert quiet == []
    assert [(each.origin, each.reason) for each in await group.dead_letters.list()] == list(
        zip(ids, reasons, strict=True)
    )


async def test_lease_lost_events(world: World) -> None:
    """S4: a delivery that is used after its lease was lost makes one event, however often it is used."""
    backend = await world.connect()
    stream = backend.stream("s")
    actions = {"ack": (), "nack": (0,), "extend": (60,)}
    ids = await stream.add_many(list(actions))
    events: list[Any] = []
    group = stream.group("g", lease=world.lease, takeover=1000, max_processing=0.001, on_event=events.append)
    async with group.consumer() as consumer, group.consumer() as other:
        stale = [await world.take(consumer) for _ in ids]
        await world.advance(world.lease * 1.2)
        for delivery, (action, arguments) in zip(stale, actions.items(), strict=True):
            assert (await world.take(other)).data == action
            for _ in range(2):
                with pytest.raises(ailf.LeaseLostError):
                    await getattr(delivery, action)(*arguments)
            with pytest.raises(ailf.LeaseLostError):
                await delivery.release()
    assert events == [ailf.LeaseLost("s", "g", each) for each in ids]


async def test_one_event_for_each_reset(world: World) -> None:
    """S9: a group that vanished makes one event, however many consumers fetch, and a new group makes none."""
    one, two = await world.connect(), await world.connect()
    events: list[Any] = []
    groups = [each.stream("s").group("g", on_event=events.append) for each in (one, two)]
    async with groups[0].consumer() as first, groups[1].consumer() as second, groups[1].consumer() as third:
        for consumer in (first, second):
            await world.expect_none(consumer)
        await one.stream("s").delete()
        for consumer in (second, third, first):
            await world.expect_none(consumer)
    assert events == [ailf.GroupReset("s", "g")]


async def test_a_failing_hook(world: World) -> None:
    """S5, S9, S15: an error of a hook is logged and stops nothing; a value that is no hook is refused."""
    backend = await world.connect()
    stream = backend.stream("s")
    events: list[Any] = []

    async def hook(event: Any) -> None:
        events.append(event)
        raise ZeroDivisionError(event)

    group = stream.group("g", on_event=hook if world.flavour == "asyncio" else world.adapt_handler(hook))
    await stream.add("lost with the stream")
    done: list[Any] = []

    async def handler(delivery: Any) -> None:
        done.append(delivery.data)
        if delivery.data == "end":
            group.stop()
        else:
            raise ailf.Reject("no")

    async with group.consumer():
        await stream.delete()
        await stream.add_many([1, 2, "end"])
        await world.within_patience(group.process(handler))
    assert done == [1, 2, "end"]
    letters = await group.dead_letters.list()
    assert [letter.body for letter in letters] == [b"1", b"2"]
    assert events == [ailf.DeadLettered("s", "g", letter.origin, "rejected") for letter in letters]
    for wrong in ("hook", 7):
        with pytest.raises(ailf.InvalidArgumentError):
            stream.group("g", on_event=wrong)


@needs(Capability.PUBSUB)
async def test_traces(world: World) -> None:
    """S15: messages that a handler sends carry the trace of its message, unless they have their own; no others do."""
    backend = await world.connect()
    stream, out, pubsub = backend.stream("s"), backend.stream("out"), backend.pubsub()
    group = stream.group("g")
    for number in range(6):
        await stream.add(number, headers={**trace(number), "other": "not carried"} if number else {})

    async def handler(delivery: Any) -> None:
        number = delivery.data
        await out.add([number, "plain"])
        await out.add([number, "own"], headers=trace(100))
        await out.add_many([[number, "headers"]], headers={"h": "v"})
        await out.add_once(f"{number}", [number, "once"])
        await pubsub.publish("c", [number, "published"])
        if sum([entry.data[1] == "once" for entry in await out.read(limit=1000)]) == 6:
            group.stop()

    async with pubsub.listen("c") as subscription:
        await world.within_patience(group.process(handler, concurrency=3))
        sent = [await world.take(subscription) for _ in range(6)]
    await out.add([7, "outside"])
    sent += await out.read(limit=1000)
    assert len(sent) == 31
    for each in sent:
        number, what = each.data
        carried = trace(number) if 0 < number < 7 else {}
        expected = {"own": trace(100), "headers": {**carried, "h": "v"}}.get(what, carried)
        assert each.headers == expected, each


async def test_the_trace_of_a_context(world: World) -> None:
    """S15: messages sent in a delivery's context carry its trace; those sent before and after don't."""
    backend = await world.connect()
    stream, out = backend.stream("s"), backend.stream("out")
    await stream.add(1, headers=trace(1))
    await stream.add(2)
    async with stream.group("g").consumer() as consumer:
        first, second = await world.take(consumer), await world.take(consumer)
        await out.add("before")
        async with first:
            await out.add("within 1")
            async with second:
                await out.add("within 2")
            await out.add("within 1")
        await out.add("after")
    assert [(entry.data, entry.headers) for entry in await out.read()] == [
        ("before", {}), ("within 1", trace(1)), ("within 2", {}), ("within 1", trace(1)), ("after", {}),
    ]  # fmt: skip
