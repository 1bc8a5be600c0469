"""S8: the entries that a retention removes, those that it keeps, and full streams."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

import ailf
from ailf import Retention, Trimmed
from ailf.driver import Action, Capability
from contract_tests.fixtures import needs
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM,)

TWO = Retention(max_len=2)


async def kept(stream: Any) -> list[Any]:
    """Return the data of a stream's entries."""
    return [entry.data for entry in await stream.read(limit=1000)]


async def test_without_groups(world: World) -> None:
    """S8: without groups the oldest entries are removed, and adding never fails."""
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
    await backend.stream("s").add_many(range(8, 12))  # an object without a retention removes nothing
    assert await kept(stream) == [7, 8, 9, 10, 11]
    assert await backend.stream("missing").trim(TWO) == Trimmed(0, 0)


async def test_full(world: World) -> None:
    """S8: unsettled entries stay, and a full stream refuses an add: no entry and no dedup id is stored."""
    backend = await world.connect()
    stream = backend.stream("s", retention=Retention(max_len=3))
    group = stream.group("g")
    async with group.consumer() as consumer:
        await stream.add_many([0, 1, 2])
        for number in (0, 1):  # first the oldest entry is unread, then it is pending
            for add, arguments in ((stream.add, ["x"]), (stream.add_many, [["x"]]), (stream.add_once, ["id", "x"])):
                with pytest.raises(ailf.StreamFullError):
                    await add(*arguments)
            assert await stream.trim(TWO) == Trimmed(0, 0)
            delivery = await world.take(consumer)
            assert delivery.data == number
        assert await kept(stream) == [0, 1, 2]
        await delivery.ack()
        with pytest.raises(ailf.StreamFullError):
            await stream.add_many([3, 4])  # there is room for one entry
        once = await stream.add_once("id", 3)  # 1 is removed, although 0, before it, is unsettled
        assert not once.duplicate
        assert await kept(stream) == [0, 2, 3]
        with pytest.raises(ailf.BackendFullError):
            await stream.add("more")
    async with group.consumer() as consumer:
        await (await world.take(consumer)).ack()
        await stream.add(4)
        assert await stream.add_once("id", "again") == ailf.Added(once.id, duplicate=True)  # a duplicate needs no room
        assert await kept(stream) == [2, 3, 4]
        assert [(await world.take(consumer)).data for _ in range(3)] == [2, 3, 4]


async def test_two_groups(world: World) -> None:
    """S8: an entry can be removed once all groups have settled it; a deleted group no longer counts."""
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
            await (await world.take(two)).reject("no")  # a dead letter counts as settled
        assert await stream.trim(Retention(max_len=1)) == Trimmed(2, 0)
        assert [(await world.take(each)).data for each in (one, one, two, two)] == [4, 5, 4, 5]
    assert [letter.body for letter in await slow.dead_letters.list()] == [b"2", b"3"]


@pytest.mark.parametrize("state", ["nacked", "released", "held", "scheduled", "unread"])
async def test_unsettled_entries_stay(world: World, state: str) -> None:
    """S8: an unsettled entry stays, in whatever state it is; settled entries behind it are removed."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(["spared"], delay=1000 if state in {"scheduled", "unread"} else 0)
    await stream.add_many(["behind", "last"])
    async with stream.group("g", lease=60, takeover=1000).consumer() as consumer:
        if state != "unread":
            taken = [await world.take(consumer) for _ in range(2 if state == "scheduled" else 3)]
            assert [each.data for each in taken[-2:]] == ["behind", "last"]
            await taken[-1].ack()
            await taken[-2].ack()
            if state == "nacked":
                await taken[0].nack(1000)
            elif state == "released":
                await taken[0].release()
        await world.advance(0.01)
        settled = int(state != "unread")
        assert await stream.trim(Retention.settled()) == Trimmed(0, 0)  # it removes only what precedes all unsettled
        for retention in (Retention(max_len=2), Retention(max_age=0.001)):
            assert await stream.trim(retention) == Trimmed(settled, 0)
        for retention in (Retention(max_len=1), Retention(max_age=0.001), Retention.settled(max_len=1)):
            assert await stream.trim(retention) == Trimmed(0, 0)
    assert await kept(stream) == (["spared"] if settled else ["spared", "behind", "last"])


@needs(Capability.ORDERING)
async def test_queued_entries_stay(world: World) -> None:
    """S8, S3: an entry that waits in its lane counts as unsettled and stays."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many([0, 1], key="k")
    await stream.add(2)
    async with stream.group("g", lease=60).consumer(prefetch=5) as consumer:
        held, plain = [await world.take(consumer) for _ in range(2)]
        await plain.ack()
        await held.ack()
        assert await stream.trim(Retention(max_len=1)) == Trimmed(2, 0)
        assert await kept(stream) == [1]
        delivery = await world.take(consumer)
        assert delivery.data == 1
        await delivery.ack()
        await stream.add(3)
        assert await stream.trim(Retention(max_len=1)) == Trimmed(1, 0)


async def test_waiting_for_room(world: World) -> None:
    """S8: an add to a full stream waits up to `wait` seconds, until a worker settles an entry, or it raises."""
    backend, other = await world.connect(), await world.connect()
    stream = backend.stream("s", retention=Retention(max_len=2, wait=world.patience))
    brief = backend.stream("s", retention=Retention(max_len=2, wait=0.1))
    group = other.stream("s").group("g")
    await group.open()
    await stream.add_many([0, 1])
    begin = time.monotonic()
    with pytest.raises(ailf.StreamFullError):
        await brief.add("refused")
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
            await world.within_patience(adding, world.patience / 2)
    assert await kept(stream) == [3, 4]


async def test_hard(world: World) -> None:
    """S8: a hard retention removes unsettled entries too, each group counts them once, and the stream is never full."""
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
        await stream.add(2)  # removes 0, which both groups have settled
        assert [(await each.info()).evicted for each in (one, two)] == [0, 0]
        await stream.add(3)  # removes 1, which one group has not settled
        assert [(await each.info()).evicted for each in (one, two)] == [1, 1]
        await stream.add_many([4, 5])  # removes 2 and 3, which no group has settled
        assert (await one.info()).evicted == 3
        assert await kept(stream) == [4, 5]
        assert await stream.trim(Retention(max_len=1, hard=True)) == Trimmed(1, 1)
        assert (await two.info()).evicted == 4
        assert (await one.info()).length == 1
        for consumer in (first, second):  # the groups go on with the entries that are left
            assert (await world.take(consumer)).data == 5
    assert await stream.trim(Retention(max_age=1000, hard=True)) == Trimmed(0, 0)
    with pytest.raises(ailf.InvalidArgumentError):
        await stream.add_many([6, 7, 8])  # more than max_len at once


async def test_hard_removes_pending_entries(world: World) -> None:
    """S8, S2: messages that a hard retention removed, whether held, delayed or unread, are never delivered again."""
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
        await world.expect_none(consumer)
        info = await group.info()
        assert (info.length, info.pending, info.delayed, info.dead, info.evicted) == (1, 1, 0, 0, 5)
        assert info.lag in {0, None}


async def test_age(world: World) -> None:
    """S8: add and trim remove settled entries older than max_age, and keep unsettled ones."""
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
        await stream.add(2)  # without a max_len it is never full
        assert await kept(stream) == [1, 2]
        assert await stream.trim(Retention(max_age=world.lease, max_len=1, hard=True)) == Trimmed(1, 1)
        assert [(await world.take(consumer)).data for _ in range(1)] == [2]
        assert (await group.info()).evicted == 1
    assert await stream.trim() == Trimmed(0, 0)


async def test_many_at_once(world: World) -> None:
    """S8: one trim removes a long backlog, in however many steps, and the length is exact."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(3000))
    assert (await stream.group("g", start=ailf.LATEST).open()) is True
    assert await stream.trim(Retention(max_len=7)) == Trimmed(2993, 0)
    assert await kept(stream) == list(range(2993, 3000))
    assert (await stream.group("g").info()).length == 7


BOUNDED = {"length": Retention(max_len=5), "settled": Retention.settled(max_len=5)}


@pytest.mark.parametrize("state", ["scheduled", "nacked", "held"])
@pytest.mark.parametrize("retention", BOUNDED)
async def test_one_unsettled_entry_does_not_fill_a_stream(world: World, retention: str, state: str) -> None:
    """S8: one long unsettled message doesn't fill a stream whose other messages are settled, and it is delivered."""
    backend = await world.connect()
    stream = backend.stream("s", retention=BOUNDED[retention])
    group = stream.group("g", lease=1000, takeover=1000)
    waiting = await stream.add("reminder", delay=world.lease if state == "scheduled" else 0)
    async with group.consumer() as other, group.consumer() as consumer:
        if state != "scheduled":
            taken = await world.take(other)
            if state == "nacked":
                await taken.nack(world.lease)
        for number in range(12):
            await stream.add(number)
            delivery = await world.take(consumer)
            if delivery.data == "reminder":  # on a real clock it may be due by now
                state = "delivered"
                await delivery.ack()
                delivery = await world.take(consumer)
            assert delivery.data == number
            await delivery.ack()
            info = await group.info()
            assert info.length <= 5
            assert info.lag in {0, None}
        if state in {"scheduled", "nacked"}:
            assert (await stream.read(limit=1))[0].id == waiting
            await world.advance(world.lease * 1.1)
            assert (await world.take(consumer)).id == waiting
        elif state == "held":
            await taken.ack()


async def test_many_unsettled_entries_do_not_fill_a_stream(world: World) -> None:
    """S8: more unsettled messages than one step checks don't fill it: while settled ones may be left, adds pass."""
    backend = await world.connect()
    stream = backend.stream("s", retention=Retention(max_len=300))
    group = stream.group("g", lease=1000, takeover=1000)
    ids = []
    async with group.consumer(prefetch=100) as consumer:
        for repeat in range(50):  # most of the first entries stay unsettled, and all later ones are settled
            if repeat < 20:
                ids += await stream.add_many(["reminder"] * 13, delay=1000)
            await stream.add_many(range(20))
            for number in range(20):
                delivery = await world.take(consumer)
                assert delivery.data == number
                await delivery.ack()
        assert len(await kept(stream)) <= 400
    for _ in range(20):  # in the end only unsettled entries are left, and an add raises
        await stream.trim()
        try:
            ids.append(await stream.add("reminder", delay=1000))
        except ailf.StreamFullError:
            break
    assert len(ids) >= 260
    assert (await stream.trim(Retention(max_len=1))).unsettled == 0
    assert [entry.id for entry in await stream.read(limit=1000)] == ids
    info = await group.info()
    assert info.pending + info.delayed + (len(ids) - 260 if info.lag is None else info.lag) == len(ids)


async def test_full_of_many(world: World) -> None:
    """S8: a stream full of unsettled messages soon refuses adds, also with more of them than one step checks."""
    backend = await world.connect()
    stream = backend.stream("s", retention=Retention(max_len=250))
    unmanaged = world.unmanaged_consumer(backend, "s")
    ids = await stream.add_many(range(250))
    fetched = await unmanaged.claim(250)
    assert len(fetched.claims) == 250
    with pytest.raises(ailf.StreamFullError):
        for _ in range(101):
            ids.append(await stream.add("more"))
    assert [entry.id for entry in await stream.read(limit=1000)] == ids
    await unmanaged.settle(fetched.claims[100:], Action.ACK)
    ids.append(await stream.add("last"))
    assert (await stream.trim(Retention(max_len=100))).unsettled == 0
    assert [entry.id for entry in await stream.read(limit=1000)] == ids[:100] + ids[250:]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("way", ["length", "age"])
async def test_a_trim_finds_all(world: World, way: str, share: float) -> None:
    """S8: a trim removes all settled entries that are too many or too old, also those between unsettled ones."""
    backend = await world.connect()
    stream = backend.stream("s")
    old = await stream.add_many(range(300))
    await world.advance(world.lease / 2)
    middle = world.harness.now()
    await world.advance(world.lease / 2)
    ids = old + await stream.add_many(range(150))
    chance = random.Random(share)
    removable = set(ids if way == "length" else old)
    for group, count in (("one", 430), ("two", 400)):
        unmanaged = world.unmanaged_consumer(backend, "s", group)
        claims = (await unmanaged.claim(count)).claims
        acked = [each for each in claims if chance.random() < share]
        await unmanaged.settle(acked, Action.ACK)
        removable &= {each.record.id for each in acked}
    retention = Retention(max_len=1) if way == "length" else Retention(max_age=world.harness.now() - middle)
    assert await stream.trim(retention) == Trimmed(len(removable), 0)
    assert [entry.id for entry in await stream.read(limit=1000)] == [each for each in ids if each not in removable]


async def test_later_adds_trim_the_rest(world: World) -> None:
    """S8: where more must be removed than one add does, the add passes, and later adds remove the rest."""
    backend = await world.connect()
    await backend.stream("s").add_many(range(1000))
    stream = backend.stream("s", retention=Retention(max_len=10))
    group = stream.group("g", start=ailf.LATEST)
    await group.open()
    lengths = []
    async with group.consumer() as consumer:
        for number in range(20):
            await stream.add(number)
            await (await world.take(consumer)).ack()
            lengths.append((await group.info()).length)
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] == 10
    assert await kept(stream) == list(range(10, 20))


# --- only unsettled entries --------------------------------------------------------------------------------------


async def test_settled(world: World) -> None:
    """S8: Retention.settled() keeps all entries while there is no group, then those that some group has not settled."""
    backend = await world.connect()
    stream = backend.stream("s", retention=Retention.settled())
    first, second = stream.group("first"), stream.group("second")
    await stream.add_many([0, 1])
    await stream.add(2)
    assert await stream.trim() == Trimmed(0, 0)
    async with first.consumer() as one:
        for number in range(3):
            assert (await world.take(one)).data == number
    async with first.consumer() as one:
        for _ in range(2):
            await (await world.take(one)).ack()
        await stream.add(3)
        assert await kept(stream) == [2, 3]
        assert await second.open()
        for _ in range(2):
            await (await world.take(one)).ack()
        await stream.add_many([4, 5])
        assert await kept(stream) == [2, 3, 4, 5]
        async with second.consumer() as two:
            assert (await world.take(two)).data == 2
        await second.delete()
        assert await stream.trim() == Trimmed(2, 0)
        await (await world.take(one)).reject("no")  # a dead letter counts as settled
        assert not (await stream.add_once("six", 6)).duplicate
        assert await kept(stream) == [5, 6]
        info = await first.info()
        assert (info.length, info.evicted, info.dead) == (2, 0, 1)
        assert info.lag in {2, None}
    await first.delete()
    await stream.add(7)
    assert await stream.trim() == Trimmed(0, 0)
    assert await kept(stream) == [5, 6, 7]
    assert [letter.body for letter in await first.dead_letters.list()] == []


async def test_a_cancelled_entry_keeps_nothing(world: World) -> None:
    """S8, S7: Retention.settled() removes settled entries behind one that was cancelled, before any further fetch."""
    stream = (await world.connect()).stream("s")
    group = stream.group("g")
    async with group.consumer() as consumer:
        later = await stream.add("later", delay=3600)
        await stream.add("now")
        delivery = await world.take(consumer)
        assert await stream.cancel(later)
        await delivery.ack()
        assert (await group.info()).pending == 0
        assert await stream.trim(Retention.settled()) == Trimmed(1, 0)
        await world.expect_none(consumer)


async def test_settled_and_full(world: World) -> None:
    """S8: Retention.settled(max_len) is full of unsettled entries; without a group all entries count as unsettled."""
    backend = await world.connect()
    stream = backend.stream("s", retention=Retention.settled(max_len=2))
    await stream.add_many([0, 1])
    with pytest.raises(ailf.StreamFullError):
        await stream.add(2)
    async with stream.group("g").consumer() as consumer:
        with pytest.raises(ailf.StreamFullError):
            await stream.add(2)
        await (await world.take(consumer)).ack()
        await stream.add(2)
        assert await kept(stream) == [1, 2]
        held = await world.take(consumer)
        await (await world.take(consumer)).ack()
        await stream.add(3)  # 2 is removed, although 1, before it, is unsettled
        assert await kept(stream) == [1, 3]
        await held.ack()
        await stream.add(4)
        assert await kept(stream) == [3, 4]


async def test_length(world: World) -> None:
    """S10: a driver's `length` is the number of entries in the stream."""
    backend = await world.connect()
    stream, unmanaged = backend.stream("s"), world.unmanaged_consumer(backend, "s")
    assert await unmanaged.length() == 0
    assert not (await stream.group("g").info()).exists
    ids = await stream.add_many(range(5), delay=1000)
    assert await unmanaged.length() == 5
    await stream.cancel(ids[2])
    assert await unmanaged.length() == 4
    await stream.trim(Retention(max_len=1))
    assert await unmanaged.length() == 1


async def test_bad_retentions(world: World) -> None:
    """S8: invalid retentions are refused, and so is an add of more entries than the retention can ever hold."""
    backend = await world.connect()
    for wrong in ({"max_len": 0}, {"max_len": 1.5}, {"max_age": 0}, {"max_age": float("nan")}, {"wait": -1}):
        with pytest.raises(ailf.InvalidArgumentError):
            Retention(**wrong)
    for nonsense in ({"max_age": 60.0}, {"hard": True}):
        with pytest.raises(ailf.InvalidArgumentError, match="keep_settled"):
            Retention(keep_settled=False, **nonsense)
    stream = backend.stream("s", retention=TWO)
    with pytest.raises(ailf.InvalidArgumentError):
        await stream.add_many(range(3))
    for trimmed, retention in ((backend.stream("s"), None), (stream, Retention()), (stream, Retention(hard=True))):
        with pytest.raises(ailf.InvalidArgumentError):
            await trimmed.trim(retention)
    assert await kept(stream) == []
