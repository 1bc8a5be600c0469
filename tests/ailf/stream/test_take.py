"""`Consumer.take` returns a delivery or raises `EmptyError`."""

from typing import Any

import pytest

import ailf
from tests.support.flavours import Flavour, flavours


@pytest.fixture(params=["memory-blocking", "memory-asyncio", "redis-blocking", "redis-asyncio"])
def flavour(request: pytest.FixtureRequest, namespace: str) -> Flavour:
    """Each flavour on each backend."""
    return flavours(request, namespace)


def test_take_returns_a_delivery_or_raises(flavour: Flavour) -> None:
    """It returns the next message; on an empty queue it raises after its timeout, and the consumer goes on."""

    async def scenario(backend: Any) -> None:
        stream = backend.stream("s")
        async with flavour.entered(stream.group("g").consumer()) as consumer:
            for timeout in (0, 0.05):
                with pytest.raises(ailf.EmptyError, match=f"no message came within {timeout:g} s"):
                    await flavour.wait(consumer.take(timeout))
            await flavour.wait(stream.add("a"))
            async with flavour.entered(await flavour.wait(consumer.take(timeout=5))) as delivery:
                assert delivery.data == "a"
            assert (await flavour.wait(stream.group("g").info())).pending == 0

    flavour.run(scenario)


def test_take_of_a_stopped_consumer_raises(flavour: Flavour) -> None:
    """A consumer that was stopped has no message, however many there are."""

    async def scenario(backend: Any) -> None:
        stream = backend.stream("s")
        await flavour.wait(stream.add("a"))
        async with flavour.entered(stream.group("g").consumer()) as consumer:
            consumer.stop()
            with pytest.raises(ailf.EmptyError, match="the consumer was stopped"):
                await flavour.wait(consumer.take())

    flavour.run(scenario)


def test_take_checks_its_timeout(flavour: Flavour) -> None:
    """A timeout that is no number of seconds is refused, and a closed backend is an error of its own."""

    async def scenario(backend: Any) -> None:
        consumer = backend.stream("s").group("g").consumer()
        with pytest.raises(ailf.InvalidArgumentError, match="timeout"):
            await flavour.wait(consumer.take(-1))
        await flavour.wait(backend.aclose() if flavour.is_async else backend.close())
        with pytest.raises(ailf.ClosedError):
            await flavour.wait(consumer.take(0))

    flavour.run(scenario)
