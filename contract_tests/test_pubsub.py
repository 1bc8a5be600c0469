"""P: what every backend's pub/sub does."""

import asyncio
from typing import Any

import pytest

import ailf
from contract_tests.fixtures import asyncio_only
from contract_tests.flavours import World
from contract_tests.patterns import CASES

MIXED = [("blocking", "asyncio"), ("asyncio", "blocking")]


async def test_order_and_no_replay(world: World) -> None:
    """P1: what is published one after another arrives in that order at every subscription; nothing from before."""
    backend = await world.connect()
    pubsub = backend.pubsub()
    await pubsub.publish("c", "before")
    async with pubsub.listen("c") as first, pubsub.listen("c", "d") as second:
        for number in range(50):
            await pubsub.publish("c", number)
        await pubsub.publish_many([("c", number) for number in range(50, 100)])
        for subscription in (first, second):
            assert [(await world.take(subscription)).data for _ in range(100)] == list(range(100))


@pytest.mark.parametrize("pair", MIXED, ids="-to-".join)
@asyncio_only("the pair names both flavours")
async def test_mixed_flavours(world: World, pair: tuple[str, str]) -> None:
    """P1, B6: a publisher of one flavour reaches a subscriber of the other."""
    publisher, subscriber = await world.connect(pair[0]), await world.connect(pair[1])
    async with subscriber.pubsub().listen("c") as subscription:
        await publisher.pubsub().publish("c", {"n": 1}, headers={"h": "v"})
        assert await world.take(subscription) == ailf.Message("c", {"n": 1}, {"h": "v"})


async def test_confirmed_on_entry(world: World) -> None:
    """P2: what is published after listen() was entered, or subscribe() returned, is delivered, from the first on."""
    one, two = await world.connect(), await world.connect()
    for number in range(20):
        async with one.pubsub().listen(f"c{number}", pattern=f"p{number}*") as subscription:
            await two.pubsub().publish(f"c{number}", number)
            await two.pubsub().publish(f"p{number}x", number)
            assert [(await world.take(subscription)).data for _ in range(2)] == [number, number]
    pubsub, heard = one.pubsub(), asyncio.Queue[Any]()

    async def handler(message: Any) -> None:
        heard.put_nowait(message.data)

    await pubsub.subscribe("s", handler)
    await two.pubsub().publish("s", "first")
    running = asyncio.ensure_future(pubsub.run())
    assert await world.soon(heard.get()) == "first"
    pubsub.stop()
    await world.soon(running)


async def test_once_per_subscription(world: World) -> None:
    """P3: a message that several channels and patterns of a subscription match arrives once."""
    backend = await world.connect()
    pubsub = backend.pubsub()
    async with (
        pubsub.listen("abc", "abc", pattern=["a*", "*c", "a?c"]) as all_ways,
        pubsub.listen(pattern="a*") as other,
    ):
        await pubsub.publish("abc", 1)
        await pubsub.publish("axc", 2)
        await pubsub.publish("end-of-c", 3)
        assert [(await world.take(all_ways)).data for _ in range(3)] == [1, 2, 3]
        assert await all_ways.get(0.05) is None
        assert [(await world.take(other)).data for _ in range(2)] == [1, 2]


async def test_no_receiver_count(world: World) -> None:
    """P6: publish promises nothing about receivers: it returns None with and without one."""
    pubsub = (await world.connect()).pubsub()
    assert await pubsub.publish("c", 1) is None
    async with pubsub.listen("c"):
        assert await pubsub.publish("c", 1) is None


async def test_pattern_grammar(world: World) -> None:
    """P7: patterns mean the same on every backend, and outside patterns every name is literal."""
    pubsub = (await world.connect()).pubsub()
    for pattern, matched, unmatched in CASES:
        async with pubsub.listen("end", pattern=pattern) as subscription, pubsub.listen(pattern, "end") as literal:
            await pubsub.publish_many([(name, name) for name in (*matched, *unmatched, "end")])
            got: list[str] = []
            while not got or got[-1] != "end":
                got.append((await world.take(subscription)).channel)
            assert got[:-1] == matched, pattern
            names = [name for name in (*matched, *unmatched) if name == pattern]
            assert [(await world.take(literal)).channel for _ in range(len(names) + 1)] == [*names, "end"], pattern


async def test_failures_harm_nobody(world: World) -> None:
    """P8: a handler that raises and a body that can't be decoded go to the error hook, and everything goes on."""
    backend = await world.connect()
    told: list[tuple[type, Any]] = []
    heard = asyncio.Queue[Any]()
    pubsub = backend.pubsub(type=int, on_error=lambda error, message: told.append((type(error), message.data)))

    async def failing(message: Any) -> None:
        raise ZeroDivisionError

    async def hearing(message: Any) -> None:
        heard.put_nowait(message.data)

    await pubsub.subscribe("c", failing)
    await pubsub.subscribe("c", hearing)
    await pubsub.subscribe("c*", hearing, pattern=True)
    raw = backend.pubsub(type=bytes)
    running = asyncio.ensure_future(pubsub.run())
    await pubsub.publish("c", 1)
    await raw.publish("c", b"{not json")
    await pubsub.publish("c", 2)
    assert [await world.soon(heard.get()) for _ in range(4)] == [1, 1, 2, 2]
    pubsub.stop()
    await world.soon(running)
    assert told == [(ZeroDivisionError, b"1"), (ailf.DecodeError, b"{not json"), (ZeroDivisionError, b"2")]
    assert pubsub.errors == 3


async def test_undecodable_while_listening(world: World) -> None:
    """P8: a body that can't be decoded is handed to the hook, and the subscription goes on."""
    backend = await world.connect()
    told: list[bytes] = []
    pubsub = backend.pubsub(type=int, on_error=lambda error, message: told.append(message.data))
    async with pubsub.listen("c") as subscription:
        await backend.pubsub(type=bytes).publish("c", b"\xff")
        await pubsub.publish("c", 2)
        assert await world.take(subscription) == ailf.Message("c", 2)
    assert told == [b"\xff"]
