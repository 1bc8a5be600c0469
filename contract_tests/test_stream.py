"""S: what every backend's streams and groups do."""

import asyncio
from typing import Any

import pytest

import ailf
from contract_tests.fixtures import asyncio_only
from contract_tests.flavours import World

MIXED = [("blocking", "asyncio"), ("asyncio", "blocking")]


async def take(consumer: Any, timeout: float = 5) -> Any:
    """Return the next delivery, which must come."""
    delivery = await consumer.get(timeout)
    assert delivery is not None, "no message came"
    return delivery


async def test_readable_on_return(world: World, flavour: str) -> None:
    """S1: on return an entry is readable by groups made before and after; ids are text and strictly increase."""
    one, two = await world.connect(), await world.connect()
    stream = one.stream("s")
    early = two.stream("s").group("early").consumer()
    async with early:
        ids = [await stream.add(0), *await stream.add_many([1, 2, 3]), await stream.add(4)]
        assert all(isinstance(each, str) for each in ids)
        assert [entry.id for entry in await two.stream("s").read()] == ids
        assert len(set(ids)) == 5
        async with two.stream("s").group("late").consumer() as late:
            for consumer in (early, late):
                assert [(await take(consumer)).data for _ in range(5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("pair", MIXED, ids="-to-".join)
@asyncio_only("the pair names both flavours")
async def test_mixed_flavours(world: World, flavour: str, pair: tuple[str, str]) -> None:
    """S1, B6: a producer of one flavour feeds a consumer of the other, also one that waits already."""
    producer, worker = await world.connect(pair[0]), await world.connect(pair[1])
    async with worker.stream("s").group("g").consumer() as consumer:
        waiting = asyncio.ensure_future(consumer.get(5))
        await asyncio.sleep(0.05)
        await producer.stream("s").add({"n": 1}, headers={"h": "v"})
        delivery = await waiting
        assert (delivery.data, delivery.headers, delivery.attempt) == ({"n": 1}, {"h": "v"}, 1)
        await delivery.ack()


async def test_one_lease_at_a_time(world: World, flavour: str) -> None:
    """S2: within a group a message is leased to one consumer; each group gets every message."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(20))
    for name in ("g", "h"):
        group = stream.group(name, lease=60)
        async with group.consumer() as one, group.consumer() as two:
            got = [
                (await take(one if number % 2 else two)).data for number in range(20)
            ]  # none is settled, and none comes twice
            assert got == list(range(20))
            assert await one.get(0) is None
            assert await two.get(0) is None


async def test_expired_leases_come_back(world: World, flavour: str) -> None:
    """S2, S5: a lease that ends unsettled makes the message available again, and counts an attempt."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add("x")
    group = stream.group("g", lease=world.lease, max_processing=0.001)
    async with group.consumer() as one, group.consumer() as two:
        first = await take(one)
        assert await two.get(0) is None
        await world.advance(world.lease * 1.2)
        again = await take(two)
        assert (first.attempt, again.attempt, again.data) == (1, 2, "x")


async def test_id_order(world: World, flavour: str) -> None:
    """S3: first deliveries leave in id order, whoever takes them."""
    backend = await world.connect()
    stream = backend.stream("s")
    ids = await stream.add_many(range(30))
    group = stream.group("g")
    async with group.consumer(prefetch=4) as one, group.consumer() as two:
        taken = [await take(one) for _ in range(4)] + [await take(two) for _ in range(26)]
        assert [delivery.id for delivery in taken] == ids


async def test_fenced_settles(world: World, flavour: str) -> None:
    """S4: after its lease was lost, settling raises LeaseLostError, sets lost, and changes nothing."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", lease=world.lease, max_processing=0.001)
    for action in ("ack", "nack", "reject", "release", "extend"):
        await stream.add(action)
        async with group.consumer() as one, group.consumer() as two:
            stale = await take(one)
            await world.advance(world.lease * 1.2)
            current = await take(two)
            arguments = {"reject": ("why",), "extend": (60.0,)}.get(action, ())
            with pytest.raises(ailf.LeaseLostError):
                await getattr(stale, action)(*arguments)
            assert stale.lost
            await current.ack()
    assert await group.dead_letters.list() == []
    async with group.consumer() as consumer:
        assert await consumer.get(0) is None


async def test_settling_twice(world: World, flavour: str) -> None:
    """S4: settling twice the same way is a no-op; another way raises SettledError."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add(1)
    async with stream.group("g").consumer() as consumer:
        delivery = await take(consumer)
        await delivery.ack()
        await delivery.ack()
        for other in (delivery.nack, delivery.release, lambda: delivery.reject("x"), lambda: delivery.extend(5)):
            with pytest.raises(ailf.SettledError):
                await other()
        assert delivery.settled
        assert not delivery.lost


async def test_leases_are_renewed(world: World, flavour: str) -> None:
    """S4: a message stays leased while its consumer lives, in its hands and in its buffer."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(["in hand", "buffered"])
    group = stream.group("g", lease=0.3)
    async with group.consumer(prefetch=2) as holder, group.consumer() as other:
        delivery = await take(holder)
        for _ in range(5):
            await asyncio.sleep(0.2)  # real time: it is the renewal that must go on
            assert await other.get(0) is None
        assert not delivery.lost
        await delivery.ack()
        await (await take(holder)).ack()


async def test_extend(world: World, flavour: str) -> None:
    """S4: extend moves the end of a lease."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add(1)
    group = stream.group("g", lease=world.lease, max_processing=0.001)
    async with group.consumer() as one, group.consumer() as two:
        delivery = await take(one)
        await delivery.extend(world.lease * 10)
        await world.advance(world.lease * 1.5)
        assert await two.get(0) is None
        await delivery.ack()


async def test_attempts(world: World, flavour: str) -> None:
    """S5: attempts start at 1; nack and expiry add one, release and close add none."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add(1)
    group = stream.group("g", lease=world.lease, max_processing=0.001, max_deliveries=10)
    seen = []
    async with group.consumer() as consumer:
        for settle in ("nack", "release", "expire", "release", "nack"):
            delivery = await take(consumer)
            seen.append(delivery.attempt)
            if settle == "expire":
                await world.advance(world.lease * 1.2)
            else:
                await getattr(delivery, settle)(*((0,) if settle == "nack" else ()))
        seen.append((await take(consumer)).attempt)
    async with group.consumer() as consumer:
        seen.append((await take(consumer)).attempt)
    assert seen == [1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("way", ["nack", "expire", "reject"])
async def test_dead_letters(world: World, flavour: str, way: str) -> None:
    """S5: beyond max_deliveries, or rejected, an entry is never delivered again and is a dead letter, whole."""
    backend = await world.connect()
    stream = backend.stream("s")
    entry_id = await stream.add({"n": 1}, headers={"h": "v"})
    group = stream.group("g", lease=world.lease, max_processing=0.001, max_deliveries=2)
    async with group.consumer() as consumer:
        for _ in range(1 if way == "reject" else 2):
            delivery = await take(consumer)
            if way == "expire":
                await world.advance(world.lease * 1.2)
            elif way == "nack":
                await delivery.nack(0, "it broke")
            else:
                await delivery.reject("no such customer")
        assert await consumer.get(0) is None
    (letter,) = await group.dead_letters.list()
    assert (letter.origin, letter.body, letter.headers) == (entry_id, b'{"n":1}', {"h": "v"})
    expected = {
        "nack": ("max_deliveries", "it broke", 2),
        "expire": ("max_deliveries", letter.error, 2),
        "reject": ("rejected", "no such customer", 1),
    }
    assert (letter.reason, letter.error, letter.attempts) == expected[way]
    assert letter.error
    assert await stream.group("other").dead_letters.list() == []


async def test_nack_delays(world: World, flavour: str) -> None:
    """S5: a nacked message comes back after its delay on *now*, not before, and a waiting consumer gets it."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add(1)
    async with stream.group("g").consumer() as consumer:
        await (await take(consumer)).nack(world.lease)
        assert await consumer.get(0) is None
        waiting = asyncio.ensure_future(consumer.get(5))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await world.advance(world.lease)
        assert (await waiting).attempt == 2


async def test_nack_wakes_another(world: World, flavour: str) -> None:
    """S5: a consumer that waits gets at once what another gives back."""
    one, two = await world.connect(), await world.connect()
    await one.stream("s").add(1)
    async with one.stream("s").group("g").consumer() as holder, two.stream("s").group("g").consumer() as other:
        delivery = await take(holder)
        waiting = asyncio.ensure_future(other.get(5))
        await asyncio.sleep(0.1)
        await delivery.release()
        assert (await asyncio.wait_for(waiting, 0.6)).attempt == 1


@asyncio_only("a thread can't be cancelled")
async def test_cancelled_waits_lose_nothing(world: World, flavour: str) -> None:
    """S6: a wait that is cancelled at any await loses no message: it stays receivable at once."""
    backend = await world.connect()
    stream = backend.stream("s")
    got = []
    async with stream.group("g", lease=60).consumer() as consumer:
        for steps in range(25):
            waiting = asyncio.ensure_future(consumer.get(5))
            if steps % 2:
                await asyncio.sleep(0.01)
            adding = asyncio.ensure_future(stream.add(steps))
            for _ in range(steps):
                await asyncio.sleep(0)
            waiting.cancel()
            outcome = (await asyncio.gather(waiting, return_exceptions=True))[0]
            await adding
            delivery = await take(consumer) if isinstance(outcome, BaseException) else outcome
            got.append(delivery.data)
            await delivery.ack()
    assert got == list(range(25))


async def test_close_gives_back(world: World, flavour: str) -> None:
    """S6: what a consumer buffered or held when it was closed is there for others at once, the attempt as it was."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(5))
    group = stream.group("g", lease=60)
    async with group.consumer(prefetch=5) as first:
        held = await take(first)
    with pytest.raises(ailf.LeaseLostError):
        await held.ack()
    async with group.consumer() as second:
        assert sorted([((await take(second)).data) for _ in range(5)]) == list(range(5))
    async with group.consumer() as third:
        assert (await take(third)).attempt == 1


async def test_group_starts(world: World, flavour: str) -> None:
    """S9: a group starts at EARLIEST unless told; opening it again never moves it."""
    backend = await world.connect()
    stream = backend.stream("s")
    ids = await stream.add_many(range(4))
    async with stream.group("early").consumer() as consumer:
        assert (await take(consumer)).data == 0
    assert await stream.group("late", start=ailf.LATEST).open()
    assert await stream.group("middle", start=ids[1]).open()
    await stream.add(4)
    for start in (ailf.EARLIEST, ailf.LATEST, ids[0]):
        assert not await stream.group("late", start=start).open()
    async with stream.group("late").consumer() as late, stream.group("middle").consumer() as middle:
        assert (await take(late)).data == 4
        assert [(await take(middle)).data for _ in range(3)] == [2, 3, 4]
    with pytest.raises(ailf.InvalidArgumentError):
        await stream.group("bad", start="not an id").open()


async def test_a_vanished_group_is_made_again(world: World, flavour: str) -> None:
    """S9: a group that vanished under a consumer is made again at EARLIEST, and an event says so."""
    backend = await world.connect()
    stream = backend.stream("s")
    events: list[Any] = []
    await stream.add("gone")
    async with stream.group("g", on_event=events.append).consumer() as consumer:
        await (await take(consumer)).ack()
        await stream.delete()
        await stream.add("new")
        assert (await take(consumer)).data == "new"
    assert events == [ailf.GroupReset("s", "g")]


async def test_groups_are_apart(world: World, flavour: str) -> None:
    """S11: a nack, an expiry or a dead letter in one group is invisible to the others."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add(1)
    noisy = stream.group("noisy", lease=world.lease, max_processing=0.001, max_deliveries=2)
    quiet = stream.group("quiet")
    async with noisy.consumer() as consumer:
        await (await take(consumer)).nack(0)
        await take(consumer)
        await world.advance(world.lease * 1.2)
        assert await consumer.get(0) is None
    assert len(await noisy.dead_letters.list()) == 1
    async with quiet.consumer() as consumer:
        delivery = await take(consumer)
        assert delivery.attempt == 1
        await delivery.ack()
        assert await consumer.get(0) is None
    assert await quiet.dead_letters.list() == []


async def test_leaving_drops_nothing(world: World, flavour: str) -> None:
    """S11: a consumer that goes leaves to the group what it held, also what others gave back before."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(10))
    group = stream.group("g", lease=60, max_deliveries=50)
    for _ in range(3):
        async with group.consumer(prefetch=10) as consumer:
            await (await take(consumer)).nack(0)
    async with group.consumer() as consumer:
        assert sorted([(await take(consumer)).data for _ in range(10)]) == list(range(10))


async def test_undecodable(world: World, flavour: str) -> None:
    """S13: an entry that can't be decoded becomes a dead letter with its raw bytes; those behind it flow."""
    backend = await world.connect()
    raw, typed = backend.stream("s", type=bytes), backend.stream("s", type=int)
    await raw.add(b"{not json")
    await typed.add(7)
    await raw.add(b'"text"')
    await typed.add(8)
    group = typed.group("g")
    async with group.consumer() as consumer:
        assert [(await take(consumer)).data for _ in range(2)] == [7, 8]
    letters = await group.dead_letters.list()
    assert [(each.reason, each.body) for each in letters] == [("undecodable", b"{not json"), ("undecodable", b'"text"')]
    assert (await group.dead_letters.list(after=letters[0].id)) == letters[1:]


async def test_read(world: World, flavour: str) -> None:
    """S17: read returns every entry of the range, in order, whatever the groups do."""
    backend = await world.connect()
    stream = backend.stream("s")
    assert await stream.read() == []
    ids = await stream.add_many(range(1200))
    async with stream.group("g").consumer() as consumer:
        await (await take(consumer)).ack()
        assert [entry.data for entry in await stream.read(limit=5000)] == list(range(1200))
        assert [entry.id for entry in await stream.read(ids[3], ids[5])] == ids[3:6]
        assert [entry.data for entry in await stream.read(ids[1100])] == list(range(1100, 1200))
        assert len(await stream.read()) == 100
        assert (await take(consumer)).data == 1
    with pytest.raises(ailf.InvalidArgumentError):
        await stream.read("not an id")


@pytest.mark.parametrize("begin", ["earliest", "id", "latest"])
async def test_tail(world: World, flavour: str, begin: str) -> None:
    """S17: tail follows the stream from where it is told, and disturbs no group."""
    backend, other = await world.connect(), await world.connect()
    stream = backend.stream("s")
    ids = await stream.add_many(range(3))
    start = {"earliest": ailf.EARLIEST, "id": ids[1], "latest": ailf.LATEST}[begin]
    tail = stream.tail(start)
    for number in {"earliest": [0, 1, 2], "id": [1, 2], "latest": []}[begin]:
        assert (await asyncio.wait_for(tail.__anext__(), 5)).data == number
    waiting = asyncio.ensure_future(tail.__anext__())
    await asyncio.sleep(0.1)
    await other.stream("s").add(3)
    assert (await asyncio.wait_for(waiting, 5)).data == 3
    await tail.aclose()
    async with stream.group("g").consumer() as consumer:
        assert (await take(consumer)).data == 0
