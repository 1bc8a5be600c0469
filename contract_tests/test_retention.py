"""S8: what a retention removes, what it spares, and what becomes of a stream that is full."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

import ailf
from ailf import Retention, Trimmed
from ailf.driver import Capability
from contract_tests.fixtures import needs
from contract_tests.flavours import World

NEEDS = (Capability.STREAM,)

TWO = Retention(max_len=2)


async def kept(stream: Any) -> list[Any]:
    """Return what a stream has."""
    return [entry.data for entry in await stream.read(limit=1000)]


async def test_without_groups(world: World) -> None:
    """S8: where no group wants them the oldest go, whatever they are, and adding never fails."""
    backend = await world.connect()
    stream = backend.stream("s", retention=TWO)
    for number in range(5):
        await stream.add(number)
    assert await kept(stream) == [3, 4]
    await stream.add_many([5, 6])
    assert await kept(stream) == [5, 6]
    assert not (await stream.add_once("seven", 7)).duplicate
    assert await kept(stream) == [6, 7]
    assert await stream.trim() == Trimmed(0, 0)
    assert await stream.trim(Retention(max_len=1)) == Trimmed(1, 0)
    await backend.stream("s").add_many(range(8, 12))  # who is told of no retention removes nothing
    assert await kept(stream) == [7, 8, 9, 10, 11]
    assert await backend.stream("missing").trim(TWO) == Trimmed(0, 0)


async def test_full(world: World) -> None:
    """S8: what a group has not settled stays, and a full stream refuses: nothing is added or remembered."""
    backend = await world.connect()
    stream = backend.stream("s", retention=Retention(max_len=3))
    group = stream.group("g")
    async with group.consumer() as consumer:
        await stream.add_many([0, 1, 2])
        for number in (0, 1):  # unread, and then in hand
            for add, arguments in ((stream.add, ["x"]), (stream.add_many, [["x"]]), (stream.add_once, ["id", "x"])):
                with pytest.raises(ailf.StreamFullError):
                    await add(*arguments)
            assert await stream.trim(TWO) == Trimmed(0, 0)
            delivery = await world.take(consumer)
            assert delivery.data == number
        assert await kept(stream) == [0, 1, 2]
        await delivery.ack()
        with pytest.raises(ailf.BackendFullError):  # 1 is settled, but 0, before it, is not
            await stream.add("more")
    async with group.consumer() as consumer:
        await (await world.take(consumer)).ack()
        with pytest.raises(ailf.StreamFullError):
            await stream.add_many([3, 4, 5])  # there is room for two
        once = await stream.add_once("id", 3)
        assert not once.duplicate
        assert await kept(stream) in ([1, 2, 3], [2, 3])
        await stream.add(4)
        assert await stream.add_once("id", "again") == ailf.Added(once.id, duplicate=True)  # that needs no room
        assert await kept(stream) == [2, 3, 4]
        assert [(await world.take(consumer)).data for _ in range(3)] == [2, 3, 4]


async def test_two_groups(world: World) -> None:
    """S8: an entry goes when the last of the groups has settled it; one that is deleted waits no more."""
    backend = await world.connect()
    stream = backend.stream("s")
    quick, slow, idle = (stream.group(name) for name in ("quick", "slow", "idle"))
    await stream.add_many(range(6))
    assert await idle.open()
    async with quick.consumer() as one, slow.consumer() as two:
        for number in range(4):
            await (await world.take(one)).ack()
            if number < 2:
                await (await world.take(two)).ack()
        assert await stream.trim(TWO) == Trimmed(0, 0)
        await idle.delete()
        assert await stream.trim(Retention(max_len=5)) == Trimmed(1, 0)
        assert await stream.trim(TWO) == Trimmed(1, 0)
        assert await kept(stream) == [2, 3, 4, 5]
        for _ in range(2):
            await (await world.take(two)).reject("no")  # a dead letter is settled
        assert await stream.trim(Retention(max_len=1)) == Trimmed(2, 0)
        assert [(await world.take(each)).data for each in (one, one, two, two)] == [4, 5, 4, 5]
    assert [letter.body for letter in await slow.dead_letters.list()] == [b"2", b"3"]


@pytest.mark.parametrize("state", ["nacked", "released", "in hand", "scheduled", "unread"])
async def test_what_is_spared(world: World, state: str) -> None:
    """S8: an entry that a group has yet to settle is spared, and all behind it, whatever it waits for."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(["spared"], delay=1000 if state in {"scheduled", "unread"} else 0)
    await stream.add("behind")
    async with stream.group("g", lease=60, takeover=1000).consumer() as consumer:
        if state != "unread":
            taken = [await world.take(consumer) for _ in range(1 if state == "scheduled" else 2)]
            assert taken[-1].data == "behind"
            await taken[-1].ack()
            if state == "nacked":
                await taken[0].nack(1000)
            elif state == "released":
                await taken[0].release()
        await world.advance(0.01)
        for retention in (Retention(max_len=1), Retention(max_age=0.001)):
            assert await stream.trim(retention) == Trimmed(0, 0)
    assert await kept(stream) == ["spared", "behind"]


@needs(Capability.ORDERING)
async def test_what_queues_is_spared(world: World) -> None:
    """S8, S3: an entry that waits for its turn is spared."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many([0, 1], key="k")
    await stream.add(2)
    async with stream.group("g", lease=60).consumer(prefetch=5) as consumer:
        held, plain = [await world.take(consumer) for _ in range(2)]
        await plain.ack()
        await held.ack()
        assert await stream.trim(Retention(max_len=1)) == Trimmed(1, 0)
        assert await kept(stream) == [1, 2]
        delivery = await world.take(consumer)
        assert delivery.data == 1
        await delivery.ack()
        assert await stream.trim(Retention(max_len=1)) == Trimmed(1, 0)


async def test_waiting_for_room(world: World) -> None:
    """S8: adding waits for room as long as it is told to: till a worker has settled something, or in vain."""
    backend, other = await world.connect(), await world.connect()
    stream = backend.stream("s", retention=Retention(max_len=2, wait=world.patience))
    hasty = backend.stream("s", retention=Retention(max_len=2, wait=0.1))
    group = other.stream("s").group("g")
    await group.open()
    await stream.add_many([0, 1])
    begin = time.monotonic()
    with pytest.raises(ailf.StreamFullError):
        await hasty.add("in vain")
    assert 0.1 <= time.monotonic() - begin < world.patience / 2
    calls: list[Callable[[], Any]] = [
        lambda: stream.add(2),
        lambda: stream.add_many([3]),
        lambda: stream.add_once("four", 4),
    ]
    async with group.consumer() as consumer:
        for number, call in enumerate(calls):
            adding = asyncio.ensure_future(call())
            delivery = await world.take(consumer)
            assert delivery.data == number
            await asyncio.sleep(0.03)
            assert not adding.done()
            await delivery.ack()
            await world.soon(adding, world.patience / 2)
    assert await kept(stream) == [3, 4]


async def test_hard(world: World) -> None:
    """S8: a hard retention takes unsettled entries too, counts them once each, and the stream is never full."""
    backend = await world.connect()
    hard = Retention(max_len=2, hard=True)
    stream = backend.stream("s", retention=hard)
    one, two = stream.group("one"), stream.group("two")
    await stream.add_many([0, 1])
    async with one.consumer() as first, two.consumer() as second:
        for consumer in (first, second):
            await (await world.take(consumer)).ack()
        await (await world.take(first)).ack()
        assert [(await each.info()).evicted for each in (one, two)] == [0, 0]
        await stream.add(2)  # takes 0, which both have settled
        assert [(await each.info()).evicted for each in (one, two)] == [0, 0]
        await stream.add(3)  # takes 1, which one of them has not
        assert [(await each.info()).evicted for each in (one, two)] == [1, 1]
        await stream.add_many([4, 5])  # takes 2 and 3, which nobody has
        assert (await one.info()).evicted == 3
        assert await kept(stream) == [4, 5]
        assert await stream.trim(Retention(max_len=1, hard=True)) == Trimmed(1, 1)
        assert (await two.info()).evicted == 4
        assert (await one.info()).length == 1
        for consumer in (first, second):  # the groups go on with what there is
            assert (await world.take(consumer)).data == 5
    assert await stream.trim(Retention(max_age=1000, hard=True)) == Trimmed(0, 0)
    with pytest.raises(ailf.InvalidArgumentError):
        await stream.add_many([6, 7, 8])  # too much for its length, hard or not


async def test_hard_takes_what_is_out(world: World) -> None:
    """S8, S2: a group whose messages were taken in hand, waiting or unread goes on, and none of them comes again."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", lease=world.lease, takeover=1000, max_processing=0.001)
    await stream.add("scheduled", delay=world.lease)
    await stream.add_many(["nacked", "held", "expired", "unread"])
    async with group.consumer() as consumer:
        nacked, held, _ = [await world.take(consumer) for _ in range(3)]
        await nacked.nack(0)
        assert await stream.trim(Retention(max_len=1, hard=True)) == Trimmed(4, 4)
        await stream.add("new")
        assert await stream.trim(Retention(max_len=1, hard=True)) == Trimmed(1, 1)
        outcome = (await asyncio.gather(held.ack(), return_exceptions=True))[0]
        assert outcome is None or isinstance(outcome, ailf.LeaseLostError)
        await world.advance(world.lease * 1.2)
        assert (await world.take(consumer)).data == "new"
        await world.nothing(consumer)
        info = await group.info()
        assert (info.length, info.pending, info.delayed, info.dead, info.evicted) == (1, 1, 0, 0, 5)
        assert info.lag in {0, None}


async def test_age(world: World) -> None:
    """S8: entries older than max_age go, when something is added or trim is called, and not if they are unsettled."""
    backend = await world.connect()
    aged = Retention(max_age=world.lease)
    stream = backend.stream("s", retention=aged)
    group = stream.group("g", takeover=1000)
    await stream.add_many([0, 1])
    async with group.consumer() as consumer:
        await (await world.take(consumer)).ack()
        assert await stream.trim() == Trimmed(0, 0)
        await world.advance(world.lease * 1.1)
        assert await kept(stream) == [0, 1]
        await stream.add(2)  # it is never full
        assert await kept(stream) == [1, 2]
        assert await stream.trim(Retention(max_age=world.lease, max_len=1, hard=True)) == Trimmed(1, 1)
        assert [(await world.take(consumer)).data for _ in range(1)] == [2]
        assert (await group.info()).evicted == 1
    assert await stream.trim() == Trimmed(0, 0)


async def test_many_at_once(world: World) -> None:
    """S8: a long backlog goes to the last entry, at once or in steps, and the length is exact."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(3000))
    assert (await stream.group("g", start=ailf.LATEST).open()) is True
    assert await stream.trim(Retention(max_len=7)) == Trimmed(2993, 0)
    assert await kept(stream) == list(range(2993, 3000))
    assert (await stream.group("g").info()).length == 7


async def test_bad_retentions(world: World) -> None:
    """S8: what is no retention is refused, and so is more at once than it would ever allow."""
    backend = await world.connect()
    for wrong in ({"max_len": 0}, {"max_len": 1.5}, {"max_age": 0}, {"max_age": float("nan")}, {"wait": -1}):
        with pytest.raises(ailf.InvalidArgumentError):
            Retention(**wrong)
    stream = backend.stream("s", retention=TWO)
    with pytest.raises(ailf.InvalidArgumentError):
        await stream.add_many(range(3))
    for trimmed, retention in ((backend.stream("s"), None), (stream, Retention()), (stream, Retention(hard=True))):
        with pytest.raises(ailf.InvalidArgumentError):
            await trimmed.trim(retention)
    assert await kept(stream) == []
