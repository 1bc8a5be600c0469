"""S: one message in a group: its leases, attempts and settlements, and its end as a dead letter."""

import asyncio
import contextlib
import time

import pytest

import ailf
from ailf.driver import Action, Capability, Outcome
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM,)


async def test_one_lease_at_a_time(world: World) -> None:
    """S2: within a group each message is leased to one consumer at a time, and each group gets every message."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(20))
    for name in ("g", "h"):
        group = stream.group(name, lease=60)
        async with group.consumer() as one, group.consumer() as two:
            got = [
                (await world.take(one if number % 2 else two)).data for number in range(20)
            ]  # none is settled, and none is delivered twice
            assert got == list(range(20))
            await world.expect_none(one)
            await world.expect_none(two)


async def test_expired_leases_come_back(world: World) -> None:
    """S2, S5: a message whose lease expires is available again, and its attempt rises by one."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add("x")
    group = stream.group("g", lease=world.lease, takeover=1000, max_processing=0.001)
    async with group.consumer() as one, group.consumer() as two:
        first = await world.take(one)
        await world.expect_none(two)
        await world.advance(world.lease * 1.2)
        again = await world.take(two)
        assert (first.attempt, again.attempt, again.data) == (1, 2, "x")


async def test_fenced_settles(world: World) -> None:
    """S4: settling after the lease was lost raises LeaseLostError, sets `lost`, and changes nothing."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", lease=world.lease, takeover=1000, max_processing=0.001)
    actions = {"ack": (), "nack": (0,), "reject": ("why",), "release": (), "extend": (60.0,)}
    await stream.add_many(list(actions))
    async with group.consumer() as one, group.consumer() as two:
        stale = [await world.take(one) for _ in actions]
        await world.advance(world.lease * 1.2)
        for delivery, (action, arguments) in zip(stale, actions.items(), strict=True):
            current = await world.take(two)
            assert (current.data, current.attempt) == (action, 2)
            with pytest.raises(ailf.LeaseLostError):
                await getattr(delivery, action)(*arguments)
            assert delivery.lost
            await current.ack()
    assert await group.dead_letters.list() == []
    async with group.consumer() as consumer:
        await world.expect_none(consumer)


async def test_settling_twice(world: World) -> None:
    """S4: settling twice in the same way is a no-op; in another way it raises SettledError."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add(1)
    async with stream.group("g").consumer() as consumer:
        delivery = await world.take(consumer)
        await delivery.ack()
        await delivery.ack()
        for other in (delivery.nack, delivery.release, lambda: delivery.reject("x"), lambda: delivery.extend(5)):
            with pytest.raises(ailf.SettledError):
                await other()
        assert delivery.settled
        assert not delivery.lost


async def test_settling_two_ways_at_once(world: World) -> None:
    """S4: of two different settlements at the same time one counts, and the other raises."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add(1)
    async with stream.group("g").consumer() as consumer:
        delivery = await world.take(consumer)
        ways = await asyncio.gather(delivery.ack(), delivery.nack(0), return_exceptions=True)
        acked, nacked = (error is None for error in ways)
        assert acked is not nacked
        assert all(isinstance(error, ailf.SettledError | ailf.LeaseLostError) for error in ways if error)
        if acked:
            await world.expect_none(consumer)
        else:
            assert (await world.take(consumer)).attempt == 2


@pytest.mark.parametrize("first", [Action.ACK, Action.NACK])
async def test_settling_two_ways_in_one_request(world: World, first: Action) -> None:
    """S4: of two settlements of a lease in one request the first one counts."""
    backend = await world.connect()
    await backend.stream("s").add(1)
    unmanaged = world.unmanaged_consumer(backend, "s")
    (claim,) = (await unmanaged.claim()).claims
    second = Action.NACK if first is Action.ACK else Action.ACK
    assert await unmanaged.settle_in_turn(claim, [first, second]) == [Outcome.DONE, Outcome.LOST]
    assert await unmanaged.length() == 1
    assert len(await unmanaged.fetch()) == (first is Action.NACK)


async def test_leases_are_renewed(world: World) -> None:
    """S4: a message stays leased while its consumer lives, both handed out and in the buffer."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(["held", "buffered"])
    group = stream.group("g", lease=0.6)
    async with group.consumer(prefetch=2) as holder, group.consumer() as other:
        delivery = await world.take(holder)
        for _ in range(4):
            await asyncio.sleep(0.3)  # in real time, as renewal runs in real time
            await world.expect_none(other)
        assert not delivery.lost
        await delivery.ack()
        await (await world.take(holder)).ack()


async def test_extend(world: World) -> None:
    """S4: extend sets the end of a lease."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add(1)
    group = stream.group("g", lease=world.lease, takeover=1000, max_processing=0.001)
    async with group.consumer() as one, group.consumer() as two:
        delivery = await world.take(one)
        await delivery.extend(world.lease * 10)
        await world.advance(world.lease * 1.2)
        await world.expect_none(two)
        await delivery.ack()


async def test_attempts(world: World) -> None:
    """S5: `attempt` starts at 1; nack and expiry add 1, release and close add 0."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add(1)
    group = stream.group("g", lease=world.lease, max_processing=0.001, max_deliveries=10)
    seen = []
    async with group.consumer() as consumer:
        for settle in ("nack", "release", "expire", "release", "nack"):
            delivery = await world.take(consumer)
            seen.append(delivery.attempt)
            if settle == "expire":
                await world.advance(world.lease * 1.2)
            else:
                await getattr(delivery, settle)(*((0,) if settle == "nack" else ()))
        seen.append((await world.take(consumer)).attempt)
    async with group.consumer() as consumer:
        seen.append((await world.take(consumer)).attempt)
    assert seen == [1, 2, 2, 3, 3, 4, 4]


async def test_a_release_with_a_delay(world: World) -> None:
    """S5: a driver delivers a message that it releases with a delay after that delay, with the same attempt."""
    backend = await world.connect()
    entry_id = await backend.stream("s").add(1)
    unmanaged = world.unmanaged_consumer(backend, "s", max_deliveries=1)
    claims = (await unmanaged.claim()).claims
    assert await unmanaged.settle(claims, Action.RELEASE, delay=world.lease) == [Outcome.DONE]
    assert await unmanaged.settle(claims, Action.ACK) == [Outcome.LOST]
    fetched = await unmanaged.claim()
    assert (fetched.claims, fetched.dead) == ([], [])
    assert fetched.next_due is not None
    assert 0 < fetched.next_due <= world.lease
    info = await backend.stream("s").group("g").info()
    assert (info.pending, info.delayed) == (0, 1)
    await world.advance(world.lease * 1.1)
    assert await unmanaged.fetch() == [(entry_id, 1)]


@pytest.mark.parametrize("way", ["nack", "expire", "reject"])
async def test_dead_letters(world: World, way: str) -> None:
    """S5: a rejected entry, or one beyond max_deliveries, becomes a complete dead letter and is not delivered again."""
    backend = await world.connect()
    stream = backend.stream("s")
    entry_id = await stream.add({"n": 1}, headers={"h": "v"})
    group = stream.group("g", lease=world.lease, max_processing=0.001, max_deliveries=2)
    async with group.consumer() as consumer:
        for _ in range(1 if way == "reject" else 2):
            delivery = await world.take(consumer)
            if way == "expire":
                await world.advance(world.lease * 1.2)
            elif way == "nack":
                await delivery.nack(0, "it broke")
            else:
                await delivery.reject("no such customer")
        await world.expect_none(consumer)
    letters = await group.dead_letters.list()
    assert len(letters) == 1
    letter = letters[0]
    assert (letter.origin, letter.body, letter.headers) == (entry_id, b'{"n":1}', {"h": "v"})
    expected = {
        "nack": ("max_deliveries", "it broke", 2),
        "expire": ("max_deliveries", letter.error, 2),
        "reject": ("rejected", "no such customer", 1),
    }
    assert (letter.reason, letter.error, letter.attempts) == expected[way]
    assert letter.error
    assert await stream.group("other").dead_letters.list() == []


async def test_nack_delays(world: World) -> None:
    """S5: a nacked message comes back after its delay on *now*, not before, and wakes a waiting consumer."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add(1)
    async with stream.group("g").consumer() as consumer:
        await (await world.take(consumer)).nack(world.lease)
        await world.expect_none(consumer)
        waiting = asyncio.ensure_future(consumer.get(world.patience))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await world.advance(world.lease)
        assert (await world.within_patience(waiting)).attempt == 2


async def test_returned_messages_wake_other_consumers(world: World) -> None:
    """S5, S6: a waiting consumer gets a message at once that another gives back, or that is added."""
    one, two = await world.connect(), await world.connect()
    await one.stream("s").add(1)
    async with one.stream("s").group("g").consumer() as holder, two.stream("s").group("g").consumer() as other:
        took = []
        for repeat in range(6):
            delivery = await world.take(holder)
            waiting = asyncio.ensure_future(other.get(world.patience))
            await asyncio.sleep(0.05)
            begin = time.monotonic()
            await (delivery.release() if repeat % 2 else delivery.nack(0))
            back = await world.within_patience(waiting)
            took.append(time.monotonic() - begin)
            assert back is not None
            assert back.data == repeat // 2 + 1
            await back.ack() if repeat % 2 else await back.release()
            if repeat % 2:
                waiting = asyncio.ensure_future(other.get(world.patience))
                await asyncio.sleep(0.05)
                begin = time.monotonic()
                await one.stream("s").add(repeat // 2 + 2)
                await (await world.within_patience(waiting)).release()
                took.append(time.monotonic() - begin)
        assert sorted(took)[len(took) // 2] < 0.5, took  # the median, as a busy machine may be late at times


async def test_every_settlement_in_its_group(world: World) -> None:
    """S2, S5: a settled message is never delivered again to its group, however it was settled; other groups get it."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(["ack", "reject", "nack"])
    group = stream.group("g", max_deliveries=1)
    async with group.consumer(prefetch=3) as consumer:
        for _ in range(3):
            delivery = await world.take(consumer)
            await getattr(delivery, delivery.data)(*(["no"] if delivery.data == "reject" else []))
        await world.advance(world.lease * 1.2)
        await world.expect_none(consumer)
    async with stream.group("h").consumer() as consumer:
        assert [(await world.take(consumer)).data for _ in range(3)] == ["ack", "reject", "nack"]
    letters = await group.dead_letters.list()
    assert [letter.reason for letter in letters] == ["rejected", "max_deliveries"]
    assert await group.dead_letters.list(limit=1) == letters[:1]
    assert await group.dead_letters.list(after=letters[0].id) == letters[1:]


@pytest.mark.parametrize(
    "error",
    [None, ValueError("odd"), ailf.Reject("never"), ailf.Retry("later")],
    ids=["fine", "raises", "rejects", "retries"],
)
async def test_delivery_as_context(world: World, error: Exception | None) -> None:
    """S4: leaving a delivery's context acks; an exception or Retry nacks, and Reject rejects."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add(1)
    group = stream.group("g", max_deliveries=1)
    async with group.consumer() as consumer:
        with contextlib.suppress(ValueError):
            async with await world.take(consumer):
                if error is not None:
                    raise error
        await world.expect_none(consumer)
    expected = {
        "None": [],
        "ValueError('odd')": [("max_deliveries", "ValueError: odd")],
        "Reject('never')": [("rejected", "never")],
        "Retry('later')": [("max_deliveries", "later")],
    }
    assert [(each.reason, each.error) for each in await group.dead_letters.list()] == expected[repr(error)]
