"""B12: an open backend in the other flavour."""

import asyncio
from typing import Any

import pytest

import ailf
from ailf.driver import Capability
from ailf.instruments import Instrument, MessageSent
from contract_tests.fixtures import needs
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.PUBSUB, Capability.STREAM)


@needs("both_flavours", Capability.LOCK, Capability.RATE_LIMITER)
async def test_the_other_flavour_has_the_same_state(world: World) -> None:
    """B12: streams, channels, locks and limits are the same in both flavours, there and back."""
    backend = await world.connect()
    other = world.in_other_flavour(backend)
    again = world.in_other_flavour(other)
    assert backend.url == other.url == again.url
    assert backend.capabilities == other.capabilities == again.capabilities
    await backend.stream("s").add("a")
    await other.stream("s").add("b")
    assert [each.data for each in await again.stream("s").read()] == ["a", "b"]
    async with backend.pubsub().listen("c") as subscription:
        await other.pubsub().publish("c", 1)
        assert (await world.take(subscription)).data == 1
    async with other.lock("l", ttl=60).hold():
        assert await backend.lock("l").try_acquire() is None
    limiters = [each.rate_limiter("r", "3/day") for each in (backend, other, again)]
    assert [(await each.try_acquire("k")).remaining for each in limiters] == [2, 1, 0]


@needs("both_flavours")
async def test_the_other_flavour_has_the_same_settings(world: World) -> None:
    """B12: the largest body is the same, and so are the instruments; those that are added later are not."""

    class Counting(Instrument):
        def __init__(self) -> None:
            self.sent: list[Any] = []

        def message_sent(self, event: MessageSent) -> None:
            self.sent.append(event.error is None)

    first, late = Counting(), Counting()
    backend = await world.connect()
    backend.instrument(first)
    other = world.in_other_flavour(backend)
    backend.instrument(late)
    await other.stream("s").add(1)
    await backend.stream("s").add(2)
    assert (len(first.sent), len(late.sent)) == (2, 1)
    stream = "t"
    most = backend.engine.driver.max_payload
    with pytest.raises(ailf.InvalidArgumentError):
        await other.stream(stream, type=bytes).add(b"x" * (most + 1))
    await other.stream(stream, type=bytes).add(b"x" * most)


@needs("both_flavours")
async def test_each_flavour_is_closed_by_itself(world: World) -> None:
    """B12: closing either flavour leaves the other and its waiting calls; a closed one can't be converted."""
    backend = await world.connect()
    for closed_first in (False, True):
        other = world.in_other_flavour(backend)
        first, second = (backend, other) if closed_first else (other, backend)
        stream = second.stream(f"s{closed_first}")
        async with stream.group("g").consumer() as consumer:
            waiting = asyncio.ensure_future(consumer.get(world.patience))
            await first.stream("s").read()
            await asyncio.sleep(0.05)
            await first.aclose()
            assert not waiting.done()
            await stream.add(1)
            delivery = await world.expect_item(waiting)
            await delivery.ack()
        with pytest.raises(ailf.ClosedError):
            world.in_other_flavour(first)
        with pytest.raises(ailf.ClosedError):
            await first.stream("s").read()
