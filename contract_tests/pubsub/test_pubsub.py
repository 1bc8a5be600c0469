"""P: the behaviour of pub/sub on every backend."""

import asyncio
from typing import Any

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.fixtures import asyncio_only, needs
from contract_tests.helpers.pattern_cases import CASES
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.PUBSUB,)

MIXED = [("blocking", "asyncio"), ("asyncio", "blocking")]


async def test_order_and_no_replay(world: World) -> None:
    """P1: messages published one after another arrive in that order at every subscription; earlier ones don't."""
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
async def test_mixed_publishing(world: World, pair: tuple[str, str]) -> None:
    """P1, B6: a publisher of one flavour reaches a subscriber of the other."""
    publisher, subscriber = await world.connect(pair[0]), await world.connect(pair[1])
    async with subscriber.pubsub().listen("c") as subscription:
        await publisher.pubsub().publish("c", {"n": 1}, headers={"h": "v"})
        assert await world.take(subscription) == ailf.Message("c", {"n": 1}, {"h": "v"})


async def test_order_of_each_publisher(world: World) -> None:
    """P1: with several publishers at once, the messages of each arrive in its order, and each arrives once."""
    one, two = await world.connect(), await world.connect()

    async def publisher(pubsub: Any, name: str) -> None:
        for number in range(25):
            await pubsub.publish("c", [name, number])

    async with one.pubsub().listen("c") as subscription:
        senders = {"a": one.pubsub(), "b": one.pubsub(), "c": two.pubsub()}
        sending = asyncio.gather(*(publisher(pubsub, name) for name, pubsub in senders.items()))
        arrived = [(await world.take(subscription)).data for _ in range(75)]
        await world.within_patience(sending)
        await world.expect_none(subscription)
    for name in senders:
        assert [number for sender, number in arrived if sender == name] == list(range(25))


@needs(Capability.PATTERNS)
async def test_confirmed_on_entry(world: World) -> None:
    """P2: every message published after listen() was entered, or subscribe() returned, is delivered."""
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
    assert await world.within_patience(heard.get()) == "first"
    pubsub.stop()
    await world.within_patience(running)


@needs(Capability.PATTERNS)
async def test_once_per_subscription(world: World) -> None:
    """P3: a message that matches several channels and patterns of one subscription arrives once."""
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
        await world.expect_none(all_ways)
        assert [(await world.take(other)).data for _ in range(2)] == [1, 2]


@needs(Capability.PATTERNS)
async def test_leaving_one_of_two(world: World) -> None:
    """P3: subscriptions to the same names are independent: each gets every message once, also after another ends."""
    backend = await world.connect()
    pubsub = backend.pubsub()
    async with pubsub.listen("c", pattern="c*") as stays:
        async with pubsub.listen("c", "own", pattern=["c*", "o*"]) as leaves:
            await pubsub.publish("c", 1)
            assert [(await world.take(each)).data for each in (stays, leaves)] == [1, 1]
        await pubsub.publish("c", 2)
        await pubsub.publish("cc", 3)
        assert [(await world.take(stays)).data for _ in range(2)] == [2, 3]
        await world.expect_none(stays)


@pytest.mark.parametrize("policy", list(ailf.Overflow), ids=lambda each: each.value)
async def test_overflow(world: World, policy: ailf.Overflow, caplog: pytest.LogCaptureFixture) -> None:
    """P4: publishers never wait; a full buffer follows its policy; drops are counted and logged once per episode."""
    backend = await world.connect()
    pubsub = backend.pubsub(type=bytes)
    async with pubsub.listen("c", buffer=5, overflow=policy) as slow, pubsub.listen("c") as quick:
        for episode in range(1, 3):
            await world.within_patience(pubsub.publish_many([("c", b"%d" % number) for number in range(10, 30)]))
            assert [(await world.take(quick)).data for _ in range(20)] == [b"%d" % number for number in range(10, 30)]
            if policy is not ailf.Overflow.CLOSE:
                await world.until(lambda: slow.dropped == 15 * episode)  # noqa: B023 - called in this iteration
                assert slow.dropped_bytes == 30 * episode
            first = 25 if policy is ailf.Overflow.DROP_OLDEST else 10
            got = [(await world.take(slow)).data for _ in range(5)]
            assert got == [b"%d" % number for number in range(first, first + 5)]
            if policy is ailf.Overflow.CLOSE:
                with pytest.raises(ailf.ClosedError):
                    await slow.get(world.patience)
                return
            assert len([each for each in caplog.records if "buffer" in each.getMessage()]) == episode


@needs("interrupt_subscriptions")
@needs(Capability.PATTERNS)
async def test_gaps(world: World) -> None:
    """P5: after an interruption a subscription comes back by itself and yields a Gap before the next message."""
    backend = await world.connect()
    pubsub = backend.pubsub()
    async with pubsub.listen("c") as one, pubsub.listen(pattern="c*") as two:
        await pubsub.publish("c", "before")
        for subscription in (one, two):
            assert (await world.take(subscription)).data == "before"
        for _ in range(2):
            await world.harness.interrupt_subscriptions()
            for subscription in (one, two):
                gap = await world.take(subscription)
                assert isinstance(gap, ailf.Gap), gap
                assert gap.seconds >= 0
            await pubsub.publish("c", "after")
            for subscription in (one, two):
                assert await world.take(subscription) == ailf.Message("c", "after")


@needs("interrupt_subscriptions")
@pytest.mark.parametrize("overflow", [ailf.Overflow.DROP_OLDEST, ailf.Overflow.DROP_NEWEST])
async def test_a_gap_in_a_full_buffer(world: World, overflow: ailf.Overflow) -> None:
    """P4, P5: a full buffer drops messages and counts them, and never drops the gap before them."""
    pubsub = (await world.connect()).pubsub()
    async with pubsub.listen("c", buffer=2, overflow=overflow) as slow, pubsub.listen("c") as witness:
        await world.harness.interrupt_subscriptions()
        assert isinstance(await world.take(witness), ailf.Gap)
        for number in range(5):
            await pubsub.publish("c", number)
            assert (await world.take(witness)).data == number
        await world.until(lambda: slow.dropped == 3)
        assert isinstance(await world.take(slow), ailf.Gap)
        kept = [3, 4] if overflow is ailf.Overflow.DROP_OLDEST else [0, 1]
        assert [(await world.take(slow)).data for _ in range(2)] == kept
        await world.expect_none(slow)


async def test_no_receiver_count(world: World) -> None:
    """P6: publish promises nothing about receivers: it returns None with and without one."""
    pubsub = (await world.connect()).pubsub()
    assert await pubsub.publish("c", 1) is None
    async with pubsub.listen("c"):
        assert await pubsub.publish("c", 1) is None


@needs(Capability.PATTERNS)
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


@needs(Capability.PATTERNS)
async def test_failing_handlers(world: World) -> None:
    """P8: errors of handlers and bodies that can't be decoded go to the error hook, and all other handlers go on."""
    backend = await world.connect()
    reported: list[tuple[type, Any]] = []
    heard = asyncio.Queue[Any]()
    pubsub = backend.pubsub(type=int, on_error=lambda error, message: reported.append((type(error), message.data)))

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
    assert [await world.within_patience(heard.get()) for _ in range(4)] == [1, 1, 2, 2]
    pubsub.stop()
    await world.within_patience(running)
    assert reported == [(ZeroDivisionError, b"1"), (ailf.DecodeError, b"{not json"), (ZeroDivisionError, b"2")]
    assert pubsub.errors == 3


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_handlers_at_once(world: World, concurrency: int) -> None:
    """P11, P1: as many messages are handled at once as asked for; all of them are handled before `run` returns."""
    backend = await world.connect()
    pubsub, inside, most, handled, may_end = backend.pubsub(), 0, 0, list[int](), asyncio.Event()

    async def handler(message: Any) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await may_end.wait()
        inside -= 1
        handled.append(message.data)
        if message.data == 2:
            raise ZeroDivisionError

    await pubsub.subscribe("c", handler)
    running = asyncio.ensure_future(pubsub.run(concurrency=concurrency))
    await pubsub.publish_many([("c", number) for number in range(9)])
    await world.until(lambda: inside == concurrency)
    async with pubsub.listen("d") as subscription:  # what comes later arrives behind all messages before
        await pubsub.publish("d", 1)
        await world.take(subscription)
        pubsub.stop()
        assert not running.done()
        may_end.set()
        await world.within_patience(running)
    assert (most, inside, pubsub.errors) == (concurrency, 0, 1)
    assert sorted(handled) == list(range(9))
    assert concurrency > 1 or handled == list(range(9))


async def test_a_slow_handler_delays_no_other(world: World) -> None:
    """P11, P9: while one message is being handled, others are handled and requests get their replies."""
    backend = await world.connect()
    pubsub, may_end, begun = backend.pubsub(), asyncio.Event(), asyncio.Event()

    async def handler(message: Any) -> Any:
        if message.data == "slow":
            begun.set()
            await may_end.wait()
        return message.data

    await pubsub.subscribe("c", handler)
    running = asyncio.ensure_future(pubsub.run(concurrency=2))
    slow = asyncio.ensure_future(pubsub.request("c", "slow", timeout=2 * world.patience))
    await world.within_patience(begun.wait())
    for number in range(5):
        assert (await pubsub.request("c", number, timeout=world.patience)).data == number
    may_end.set()
    assert (await world.within_patience(slow)).data == "slow"
    pubsub.stop()
    await world.within_patience(running)


@needs("publish_broken", Capability.PATTERNS)
async def test_broken_messages(world: World) -> None:
    """P8, P5: a malformed message goes to the error hook of the subscription that it matches, and causes no gap."""
    backend = await world.connect()
    reported: list[tuple[str, bytes]] = []
    pubsub = backend.pubsub(on_error=lambda error, message: reported.append((message.channel, message.data)))
    async with pubsub.listen("other") as other, pubsub.listen(pattern=["c*", "*"]) as subscription:
        await world.harness.publish_broken("c")
        await pubsub.publish("other", 1)
        assert [await world.take(each) for each in (other, subscription)] == 2 * [ailf.Message("other", 1)]
    assert len(reported) == pubsub.errors == 1
    assert reported[0][0].startswith("c")
    assert reported[0][0].isascii()


async def test_undecodable_while_listening(world: World) -> None:
    """P8: a body that can't be decoded goes to the error hook, and the subscription goes on."""
    backend = await world.connect()
    reported: list[bytes] = []
    pubsub = backend.pubsub(type=int, on_error=lambda error, message: reported.append(message.data))
    async with pubsub.listen("c") as subscription:
        await backend.pubsub(type=bytes).publish("c", b"\xff")
        await pubsub.publish("c", 2)
        assert await world.take(subscription) == ailf.Message("c", 2)
    assert reported == [b"\xff"]
