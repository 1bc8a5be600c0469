"""S7: messages for later: delays and times, taking them back, and adding once."""

import asyncio
import sys
import time
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest

import ailf
from ailf.checks import MAX_SECONDS
from ailf.driver import Capability
from contract_tests.helpers.names import NAMES
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM,)

RESOLUTION = 0.25
"""Seconds by which a message that comes due may be late while a consumer waits."""

TURNS = 3
"""How often a message may be late: a busy machine is now and then, a backend that doesn't look always."""

TOO_LONG = (MAX_SECONDS + 1, sys.maxsize, 1e300)
"""What is no duration for any backend."""

TICK = 0.002
"""Seconds by which a clock of milliseconds may differ from one that knows more."""


class NoOffset(tzinfo):
    """A zone that knows no offset."""

    def utcoffset(self, _: datetime | None) -> timedelta | None:
        """Return none."""
        return None

    def dst(self, _: datetime | None) -> timedelta | None:
        """Return none."""
        return None

    def tzname(self, _: datetime | None) -> str:
        """Return something."""
        return "?"


# --- later -------------------------------------------------------------------------------------------------------


async def test_delays(world: World) -> None:
    """S7: a delayed message comes at its time and not before, with attempt 1, and holds up nobody; read sees it."""
    backend = await world.connect()
    stream = backend.stream("s")
    begin = world.harness.now()
    ids = [
        await stream.add("delayed", delay=world.lease, headers={"h": "v"}),
        await stream.add("at", at=world.when(world.lease)),
        await stream.add("behind"),
        await stream.add("past", at=world.when(-1000)),
        await stream.add("later of both", delay=world.lease, at=world.when(2 * world.lease).astimezone(TOKYO)),
        await stream.add("or the other way", delay=2 * world.lease, at=world.when(world.lease)),
    ]
    assert [entry.id for entry in await stream.read()] == ids
    group = stream.group("g", lease=1000, takeover=1000)
    async with group.consumer(prefetch=3) as consumer:
        assert [(await world.take(consumer)).data for _ in range(2)] == ["behind", "past"]
        await world.nothing(consumer)
        for turn in (1, 2):
            waiting = asyncio.ensure_future(consumer.get(world.patience))
            await asyncio.sleep(0.02)
            assert not waiting.done()
            await world.advance(world.lease)
            came = [await world.came(waiting), await world.take(consumer)]
            assert world.harness.now() - begin >= turn * world.lease - TICK
            assert {each.data for each in came} == EXPECTED[turn]
            assert [each.attempt for each in came] == [1, 1]
            assert [each.headers for each in came] == [{"h": "v"} if each.data == "delayed" else {} for each in came]
            await asyncio.gather(*(each.ack() for each in came))
    assert [entry.id for entry in await stream.read()] == ids


TOKYO = timezone(timedelta(hours=9))
EXPECTED = {1: {"delayed", "at"}, 2: {"later of both", "or the other way"}}


async def test_a_group_made_later(world: World) -> None:
    """S7: a message's time is the same for a group that is made before it, and for one that is made after it."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add("delayed", delay=world.lease)
    async with stream.group("before", lease=1000, takeover=1000).consumer() as before:
        await world.nothing(before)
        await world.advance(world.lease * 1.1)
        async with stream.group("after", takeover=1000).consumer() as after:
            for consumer in (before, after):
                delivery = await world.take(consumer)
                assert (delivery.data, delivery.attempt) == ("delayed", 1)


@pytest.mark.parametrize("way", ["delay", "at", "nack"])
async def test_in_time(world: World, way: str) -> None:
    """S7: a consumer that waits gets what comes due within 250 ms, also where it was added or given back meanwhile."""
    one, two = await world.connect(), await world.connect()
    stream, delay = one.stream("s"), world.lease / 2
    async with stream.group("g").consumer() as busy, two.stream("s").group("g").consumer() as consumer:
        for _ in range(TURNS):
            if way == "nack":
                await stream.add("x")
                failed = await world.take(busy)
            waiting = asyncio.ensure_future(consumer.get(world.patience + 10 * world.lease))  # beyond what is advanced
            await asyncio.sleep(0.05)
            if way == "nack":
                await failed.nack(delay)
            elif way == "at":
                await stream.add("x", at=world.when(delay))
            else:
                await stream.add("x", delay=delay)
            await asyncio.sleep(0.05)
            assert not waiting.done()
            await world.advance(delay)
            due = time.monotonic()
            await (await world.came(waiting)).ack()
            if time.monotonic() - due < RESOLUTION:
                return
    pytest.fail(f"{TURNS} times out of {TURNS} it was more than {RESOLUTION} s late")


async def test_the_order_of_coming_due(world: World) -> None:
    """S7: what comes due goes by its time, then by its place in the stream, and before what is new."""
    backend = await world.connect()
    stream = backend.stream("s")
    late = world.when(world.lease)
    for data, earlier in (("third", 0.001), ("first", 0.1), ("second", 0.05), ("fourth", 0.001)):
        await stream.add(data, at=late - timedelta(seconds=earlier * world.lease))
    async with stream.group("g", lease=1000, takeover=1000).consumer() as consumer:
        await world.nothing(consumer)
        await world.advance(world.lease)
        await stream.add("new")
        taken = [(await world.take(consumer)).data for _ in range(5)]
    assert taken == ["first", "second", "third", "fourth", "new"]


async def test_bad_times(world: World) -> None:
    """S7: a time without offset, a delay that is none or over 100 years, and too few deliveries are refused."""
    backend = await world.connect()
    stream = backend.stream("s")
    nowhere = datetime(2030, 1, 1)  # noqa: DTZ001 - that it has no zone is the case
    bad: list[dict[str, Any]] = [{"at": at} for at in (nowhere, nowhere.replace(tzinfo=NoOffset()), 5.0, "tomorrow")]
    bad += [{"delay": delay} for delay in (-1, float("nan"), float("inf"), "1", True, None, *TOO_LONG)]
    bad += [{"max_deliveries": count} for count in (0, -1, 1.5, "1", True)]
    for options in bad:
        for call in (stream.add(1, **options), stream.add_many([1], **options), stream.add_once("x", 1, **options)):
            with pytest.raises(ailf.InvalidArgumentError):
                await call
    assert await stream.read() == []


async def test_far_away(world: World) -> None:
    """S7: a time may be as far away as times go; the message doesn't come, and can be taken back."""
    backend = await world.connect()
    stream = backend.stream("s")
    ids = [await stream.add(1, at=datetime.max.replace(tzinfo=UTC)), await stream.add(2, delay=MAX_SECONDS)]
    async with stream.group("g").consumer(prefetch=3) as consumer:
        await world.nothing(consumer)
        assert [await stream.cancel(each) for each in ids] == [True, True]
    assert await stream.read() == []


# --- never mind --------------------------------------------------------------------------------------------------


async def test_cancel(world: World) -> None:
    """S7: a message whose time has not come can be taken back: it is gone and never comes, and groups forget it."""
    backend = await world.connect()
    stream = backend.stream("s")
    early, late = stream.group("early", lease=1000, takeover=1000), stream.group("late")
    ids = await stream.add_many(["a", "b"], delay=world.lease)
    kept = await stream.add("kept")
    async with early.consumer() as one:
        await (await world.take(one)).ack()  # the group has read past the others, which wait in it
        assert [await stream.cancel(each) for each in (*ids, *ids)] == [True, True, False, False]
        assert [entry.id for entry in await stream.read()] == [kept]
        async with late.consumer() as two:
            await (await world.take(two)).ack()
            await world.advance(world.lease * 1.1)
            for consumer, group in ((one, early), (two, late)):
                await world.nothing(consumer)
                info = await group.info()
                assert (info.length, info.pending, info.delayed, info.dead, info.oldest) == (1, 0, 0, 0, None)
                assert info.lag in {0, None}


async def test_cancel_changes_nothing_else(world: World) -> None:
    """S7: what has no time, whose time has come, what is out, failed or settled is not cancelled, and stays."""
    backend = await world.connect()
    stream = backend.stream("s")
    came = await stream.add("came", delay=world.lease)
    ids = await stream.add_many(["plain", "out", "nacked", "settled"])
    group = stream.group("g", lease=60, takeover=1000)
    async with group.consumer() as consumer:
        released, held, nacked, settled = [await world.take(consumer) for _ in range(4)]
        await settled.ack()
        await nacked.nack(1000)
        await released.release()
        await world.advance(world.lease * 1.1)
        assert [await stream.cancel(each) for each in (came, *ids)] == [False] * 5
        assert [entry.id for entry in await stream.read()] == [came, *ids]
        await held.ack()
        assert sorted([(await world.take(consumer)).data for _ in range(2)]) == ["came", "plain"]
    assert await backend.stream("nowhere").cancel(came) is False
    for wrong in ("not an id", "", "9" * 5000, ailf.EARLIEST, ailf.LATEST):
        with pytest.raises(ailf.InvalidArgumentError):
            await stream.cancel(wrong)


# --- once --------------------------------------------------------------------------------------------------------


async def test_add_once(world: World) -> None:
    """S7: within its window an id is added once, settled or not, counted from the first; after it, again."""
    backend = await world.connect()
    stream = backend.stream("s")
    window = world.lease
    first = await stream.add_once("order 7", 1, window=window)
    assert await stream.add_once("order 7", 2, window=1000) == ailf.Added(first.id, duplicate=True)
    async with stream.group("g", lease=1000, takeover=1000).consumer() as consumer:
        delivery = await world.take(consumer)
        assert (delivery.id, delivery.data) == (first.id, 1)
        await delivery.ack()
        await world.nothing(consumer)
        await world.advance(window * 0.25)
        assert await stream.add_once("order 7", 3, window=window) == ailf.Added(first.id, duplicate=True)
        await world.advance(window * 0.85)
        again = await stream.add_once("order 7", 4, window=window)
        assert (await world.take(consumer)).id == again.id
    assert (first.duplicate, again.duplicate) == (False, False)
    assert [(entry.id, entry.data) for entry in await stream.read()] == [(first.id, 1), (again.id, 4)]


async def test_add_once_after_cancel(world: World) -> None:
    """S7: cancelling a message frees the dedup id that it was added under, and no other message's."""
    backend = await world.connect()
    stream = backend.stream("s")
    first = await stream.add_once("reminder", "old", delay=10 * world.lease)
    plain = await stream.add("plain", delay=world.lease)
    assert await stream.add_once("reminder", "dup") == ailf.Added(first.id, duplicate=True)
    assert await stream.cancel(plain)
    assert await stream.add_once("reminder", "dup") == ailf.Added(first.id, duplicate=True)
    assert await stream.cancel(first.id)
    assert await stream.read() == []
    second = await stream.add_once("reminder", "new", delay=10 * world.lease, window=world.lease)
    assert not second.duplicate
    assert second.id != first.id
    assert not await stream.cancel(first.id)
    assert await stream.add_once("reminder", "dup") == ailf.Added(second.id, duplicate=True)
    await world.advance(world.lease * 1.1)  # its window is over, and its time has not come
    third = await stream.add_once("reminder", "newest", delay=world.lease)
    assert not third.duplicate
    assert await stream.cancel(second.id)  # which is no longer what the dedup id stands for
    assert await stream.add_once("reminder", "dup") == ailf.Added(third.id, duplicate=True)
    async with stream.group("g", takeover=1000).consumer() as consumer:
        await world.nothing(consumer)
        await world.advance(world.lease * 1.1)
        delivery = await world.take(consumer)
        assert (delivery.id, delivery.data, delivery.attempt) == (third.id, "newest", 1)
        await delivery.ack()
        assert not await stream.cancel(third.id)  # its time has come
        assert await stream.add_once("reminder", "dup") == ailf.Added(third.id, duplicate=True)
        await world.nothing(consumer)


async def test_add_once_again_after_cancel(world: World) -> None:
    """S7: a call to add once that is sent again after a cancel is answered as before, and adds nothing."""
    backend = await world.connect()
    stream = backend.stream("s")
    rival = world.rival(backend, "s")
    first = await rival.add_once(b"1", "id", "one", delay=1000.0)
    assert await stream.cancel(first.id)
    assert await rival.add_once(b"1", "id", "one", delay=1000.0) == first == ailf.Added(first.id, duplicate=False)
    assert await stream.read() == []
    second = await rival.add_once(b"2", "id", "another", delay=1000.0)
    assert not second.duplicate
    assert await rival.add_once(b"2", "id", "another") == second
    assert await rival.add_once(b"1", "id", "one") == ailf.Added(second.id, duplicate=True)
    assert [entry.id for entry in await stream.read()] == [second.id]


@pytest.mark.parametrize("retention", [ailf.Retention(max_len=1), ailf.Retention.settled()], ids=["length", "settled"])
async def test_add_once_after_trim(world: World, retention: ailf.Retention) -> None:
    """S7, S8: a message that was settled and removed is still a duplicate within its window."""
    backend = await world.connect()
    stream = backend.stream("s", retention=retention)
    async with stream.group("g", takeover=1000).consumer() as consumer:
        first = await stream.add_once("id", 1)
        await (await world.take(consumer)).ack()
        await stream.add(2)
        assert [entry.data for entry in await stream.read()] == [2]
        assert await stream.add_once("id", 3) == ailf.Added(first.id, duplicate=True)
        assert [entry.data for entry in await stream.read()] == [2]


async def test_add_once_by_many(world: World) -> None:
    """S7: of many that add under one id at once, one adds, and all learn the same id."""
    backends = [await world.connect() for _ in range(2)]
    for turn in range(5):
        added = await world.soon(
            asyncio.gather(*(backends[number % 2].stream("s").add_once(f"{turn}", number) for number in range(8)))
        )
        assert sorted(each.duplicate for each in added) == [False] + [True] * 7
        assert len({each.id for each in added}) == 1
    assert len(await backends[0].stream("s").read()) == 5


async def test_add_once_ids(world: World) -> None:
    """S7, B5: ids are any non-empty text and of one stream; delete forgets them; what is none is refused."""
    backend = await world.connect()
    stream, other = backend.stream("s"), backend.stream("other")
    added = [await stream.add_once(name, name) for name in NAMES]
    assert not any(each.duplicate for each in added)
    assert [entry.data for entry in await stream.read()] == NAMES
    for name, before in zip(NAMES, added, strict=True):
        assert await stream.add_once(name, "again") == ailf.Added(before.id, duplicate=True)
        assert not (await other.add_once(name, name)).duplicate
    await other.delete()
    assert not (await other.add_once(NAMES[0], 1)).duplicate
    calls: list[Awaitable[Any]] = [stream.add_once(wrong, 1) for wrong in ("", 7, b"x", None, "\ud800")]
    calls += [stream.add_once("x", 1, window=wrong) for wrong in (0, -1, float("inf"), None, *TOO_LONG)]
    for call in calls:
        with pytest.raises(ailf.InvalidArgumentError):
            await call
    assert len(await stream.read()) == len(NAMES)


async def test_every_way_to_add_has_the_options(world: World) -> None:
    """S7, S5: add_many and add_once take headers, a delay and a number of deliveries as add does."""
    backend = await world.connect()
    stream = backend.stream("s")
    options: dict[str, Any] = {"headers": {"h": "v"}, "delay": world.lease, "max_deliveries": 1}
    ids = await stream.add_many([0, 1], **options)
    ids += [(await stream.add_once("once", 2, **options)).id, await stream.add(3, **options)]
    assert [(entry.id, entry.headers) for entry in await stream.read()] == [(each, {"h": "v"}) for each in ids]
    group = stream.group("g", lease=1000, takeover=1000)
    async with group.consumer(prefetch=4) as consumer:
        await world.nothing(consumer)
        await world.advance(world.lease * 1.1)
        for expected in range(4):
            delivery = await world.take(consumer)
            assert (delivery.data, delivery.headers) == (expected, {"h": "v"})
            await delivery.nack(0, "once is enough")
        await world.nothing(consumer)
    assert [(each.origin, each.error) for each in await group.dead_letters.list()] == [
        (each, "once is enough") for each in ids
    ]


@pytest.mark.parametrize("way", ["nack", "expire"])
async def test_deliveries_of_one_message(world: World, way: str) -> None:
    """S5: a message's own number of deliveries counts instead of the group's, in every group."""
    backend = await world.connect()
    stream = backend.stream("s")
    for most in (1, 2, None):
        await stream.add(most, max_deliveries=most)
    options: dict[str, Any] = {"lease": world.lease, "takeover": 1000, "max_processing": 0.001}
    groups = [stream.group(f"{usual}", max_deliveries=usual, **options) for usual in (1, 2)]
    seen: list[list[tuple[int | None, int]]] = [[], []]
    async with groups[0].consumer(prefetch=3) as one, groups[1].consumer(prefetch=3) as two:
        for turn in range(3):
            for consumer, taken in zip((one, two), seen, strict=True):
                while (delivery := await consumer.get(0)) is not None:
                    taken.append((delivery.data, delivery.attempt))
                    await (delivery.nack(0, "no") if way == "nack" else asyncio.sleep(0))
            if way == "expire" and turn < 2:
                await world.advance(world.lease * 1.2)
    for usual, group, taken in zip((1, 2), groups, seen, strict=True):
        expected = [(most, attempt) for most in (1, 2, None) for attempt in range(1, (most or usual) + 1)]
        assert sorted(taken, key=str) == sorted(expected, key=str)
        letters = await group.dead_letters.list()
        assert {each.body: each.attempts for each in letters} == {b"1": 1, b"2": 2, b"null": usual}
