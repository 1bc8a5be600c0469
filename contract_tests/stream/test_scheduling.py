"""S7: scheduled messages: delays and times, cancel, and add_once."""

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
"""Seconds by which a message that becomes due may be late while a consumer waits."""

TRIES = 3
"""The number of tries: a busy machine is late at times, a backend that wakes no consumer always."""

TOO_LONG = (MAX_SECONDS + 1, sys.maxsize, 1e300)
"""Durations that every backend refuses."""

TICK = 0.002
"""Seconds by which a clock of milliseconds may differ from a finer one."""


class NoOffset(tzinfo):
    """A time zone without an offset."""

    def utcoffset(self, _: datetime | None) -> timedelta | None:
        """Return None."""
        return None

    def dst(self, _: datetime | None) -> timedelta | None:
        """Return None."""
        return None

    def tzname(self, _: datetime | None) -> str:
        """Return a name."""
        return "?"


# --- delays and times --------------------------------------------------------------------------------------------


async def test_delays(world: World) -> None:
    """S7: a scheduled message comes at its time, not before, with attempt 1, and delays no other; read returns it."""
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
        await world.expect_none(consumer)
        for repeat in (1, 2):
            waiting = asyncio.ensure_future(consumer.get(world.patience))
            await asyncio.sleep(0.02)
            assert not waiting.done()
            await world.advance(world.lease)
            came = [await world.expect_item(waiting), await world.take(consumer)]
            assert world.harness.now() - begin >= repeat * world.lease - TICK
            assert {each.data for each in came} == EXPECTED[repeat]
            assert [each.attempt for each in came] == [1, 1]
            assert [each.headers for each in came] == [{"h": "v"} if each.data == "delayed" else {} for each in came]
            await asyncio.gather(*(each.ack() for each in came))
    assert [entry.id for entry in await stream.read()] == ids


TOKYO = timezone(timedelta(hours=9))
EXPECTED = {1: {"delayed", "at"}, 2: {"later of both", "or the other way"}}


async def test_a_group_made_later(world: World) -> None:
    """S7: the time of a message is the same for a group made before it and for one made after it."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add("delayed", delay=world.lease)
    async with stream.group("before", lease=1000, takeover=1000).consumer() as before:
        await world.expect_none(before)
        await world.advance(world.lease * 1.1)
        async with stream.group("after", takeover=1000).consumer() as after:
            for consumer in (before, after):
                delivery = await world.take(consumer)
                assert (delivery.data, delivery.attempt) == ("delayed", 1)


@pytest.mark.parametrize("way", ["delay", "at", "nack"])
async def test_in_time(world: World, way: str) -> None:
    """S7: a waiting consumer gets a due message within 250 ms, also one that was added or nacked during the wait."""
    one, two = await world.connect(), await world.connect()
    stream, delay = one.stream("s"), world.lease / 2
    async with stream.group("g").consumer() as busy, two.stream("s").group("g").consumer() as consumer:
        for _ in range(TRIES):
            if way == "nack":
                await stream.add("x")
                failed = await world.take(busy)
            waiting = asyncio.ensure_future(consumer.get(world.patience + 10 * world.lease))  # longer than the advance
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
            await (await world.expect_item(waiting)).ack()
            if time.monotonic() - due < RESOLUTION:
                return
    pytest.fail(f"in each of {TRIES} tries the due message was more than {RESOLUTION} s late")


async def test_the_order_of_coming_due(world: World) -> None:
    """S7: due messages are delivered in the order of their times, then of their ids, and before new ones."""
    backend = await world.connect()
    stream = backend.stream("s")
    late = world.when(world.lease)
    for data, earlier in (("third", 0.001), ("first", 0.1), ("second", 0.05), ("fourth", 0.001)):
        await stream.add(data, at=late - timedelta(seconds=earlier * world.lease))
    async with stream.group("g", lease=1000, takeover=1000).consumer() as consumer:
        await world.expect_none(consumer)
        await world.advance(world.lease)
        await stream.add("new")
        taken = [(await world.take(consumer)).data for _ in range(5)]
    assert taken == ["first", "second", "third", "fourth", "new"]


async def test_bad_times(world: World) -> None:
    """S7: a time without offset, an invalid delay or one over 100 years, and max_deliveries below 1 are refused."""
    backend = await world.connect()
    stream = backend.stream("s")
    naive = datetime(2030, 1, 1)  # noqa: DTZ001 - the test needs a time without zone
    bad: list[dict[str, Any]] = [{"at": at} for at in (naive, naive.replace(tzinfo=NoOffset()), 5.0, "tomorrow")]
    bad += [{"delay": delay} for delay in (-1, float("nan"), float("inf"), "1", True, None, *TOO_LONG)]
    bad += [{"max_deliveries": count} for count in (0, -1, 1.5, "1", True)]
    for options in bad:
        for call in (stream.add(1, **options), stream.add_many([1], **options), stream.add_once("x", 1, **options)):
            with pytest.raises(ailf.InvalidArgumentError):
                await call
    assert await stream.read() == []


async def test_far_away(world: World) -> None:
    """S7: the largest datetime and delay are accepted; the messages don't come, and can be cancelled."""
    backend = await world.connect()
    stream = backend.stream("s")
    ids = [await stream.add(1, at=datetime.max.replace(tzinfo=UTC)), await stream.add(2, delay=MAX_SECONDS)]
    async with stream.group("g").consumer(prefetch=3) as consumer:
        await world.expect_none(consumer)
        assert [await stream.cancel(each) for each in ids] == [True, True]
    assert await stream.read() == []


# --- cancel ------------------------------------------------------------------------------------------------------


async def test_cancel(world: World) -> None:
    """S7: a message that is not due yet can be cancelled: it leaves the stream and the groups, and never comes."""
    backend = await world.connect()
    stream = backend.stream("s")
    early, late = stream.group("early", lease=1000, takeover=1000), stream.group("late")
    ids = await stream.add_many(["a", "b"], delay=world.lease)
    kept = await stream.add("kept")
    async with early.consumer() as one:
        await (await world.take(one)).ack()  # the group has read the scheduled ones too, and keeps them as delayed
        assert [await stream.cancel(each) for each in (*ids, *ids)] == [True, True, False, False]
        assert [entry.id for entry in await stream.read()] == [kept]
        async with late.consumer() as two:
            await (await world.take(two)).ack()
            await world.advance(world.lease * 1.1)
            for consumer, group in ((one, early), (two, late)):
                await world.expect_none(consumer)
                info = await group.info()
                assert (info.length, info.pending, info.delayed, info.dead, info.oldest) == (1, 0, 0, 0, None)
                assert info.lag in {0, None}


async def test_cancel_changes_nothing_else(world: World) -> None:
    """S7: cancel of an unscheduled, due, pending, nacked or settled message does nothing and returns False."""
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
    assert await backend.stream("missing").cancel(came) is False
    for wrong in ("not an id", "", "9" * 5000, ailf.EARLIEST, ailf.LATEST):
        with pytest.raises(ailf.InvalidArgumentError, match=r"stream 's': |non-empty"):
            await stream.cancel(wrong)


# --- add_once ----------------------------------------------------------------------------------------------------


async def test_add_once(world: World) -> None:
    """S7: a dedup id adds one message within its window, which the first add opens, settled or not; then another."""
    backend = await world.connect()
    stream = backend.stream("s")
    window = world.lease
    first = await stream.add_once("order 7", 1, window=window)
    assert await stream.add_once("order 7", 2, window=1000) == ailf.Added(first.id, duplicate=True)
    async with stream.group("g", lease=1000, takeover=1000).consumer() as consumer:
        delivery = await world.take(consumer)
        assert (delivery.id, delivery.data) == (first.id, 1)
        await delivery.ack()
        await world.expect_none(consumer)
        await world.advance(window * 0.25)
        assert await stream.add_once("order 7", 3, window=window) == ailf.Added(first.id, duplicate=True)
        await world.advance(window * 0.85)
        again = await stream.add_once("order 7", 4, window=window)
        assert (await world.take(consumer)).id == again.id
    assert (first.duplicate, again.duplicate) == (False, False)
    assert [(entry.id, entry.data) for entry in await stream.read()] == [(first.id, 1), (again.id, 4)]


async def test_add_once_after_cancel(world: World) -> None:
    """S7: cancelling a message frees the dedup id under which it was added, and that of no other message."""
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
    await world.advance(world.lease * 1.1)  # the window of `second` is over, and it is not due yet
    third = await stream.add_once("reminder", "newest", delay=world.lease)
    assert not third.duplicate
    assert await stream.cancel(second.id)  # the dedup id is now that of `third`
    assert await stream.add_once("reminder", "dup") == ailf.Added(third.id, duplicate=True)
    async with stream.group("g", takeover=1000).consumer() as consumer:
        await world.expect_none(consumer)
        await world.advance(world.lease * 1.1)
        delivery = await world.take(consumer)
        assert (delivery.id, delivery.data, delivery.attempt) == (third.id, "newest", 1)
        await delivery.ack()
        assert not await stream.cancel(third.id)  # it was due
        assert await stream.add_once("reminder", "dup") == ailf.Added(third.id, duplicate=True)
        await world.expect_none(consumer)


async def test_add_once_again_after_cancel(world: World) -> None:
    """S7: an add_once that is sent again after a cancel, with its token, gets the same reply and adds nothing."""
    backend = await world.connect()
    stream = backend.stream("s")
    unmanaged = world.unmanaged_consumer(backend, "s")
    first = await unmanaged.add_once(b"1", "id", "one", delay=1000.0)
    assert await stream.cancel(first.id)
    assert await unmanaged.add_once(b"1", "id", "one", delay=1000.0) == first == ailf.Added(first.id, duplicate=False)
    assert await stream.read() == []
    second = await unmanaged.add_once(b"2", "id", "another", delay=1000.0)
    assert not second.duplicate
    assert await unmanaged.add_once(b"2", "id", "another") == second
    assert await unmanaged.add_once(b"1", "id", "one") == ailf.Added(second.id, duplicate=True)
    assert [entry.id for entry in await stream.read()] == [second.id]


@pytest.mark.parametrize("retention", [ailf.Retention(max_len=1), ailf.Retention.settled()], ids=["length", "settled"])
async def test_add_once_after_trim(world: World, retention: ailf.Retention) -> None:
    """S7, S8: the dedup id of a message that was settled and trimmed still counts within its window."""
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
    """S7: of many concurrent add_once calls with one dedup id one adds, and all return the same entry id."""
    backends = [await world.connect() for _ in range(2)]
    for repeat in range(5):
        added = await world.within_patience(
            asyncio.gather(*(backends[number % 2].stream("s").add_once(f"{repeat}", number) for number in range(8)))
        )
        assert sorted(each.duplicate for each in added) == [False] + [True] * 7
        assert len({each.id for each in added}) == 1
    assert len(await backends[0].stream("s").read()) == 5


async def test_add_once_ids(world: World) -> None:
    """S7, B5: a dedup id may be any non-empty text and belongs to one stream; delete forgets it; others are refused."""
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
    """S7, S5: add_many and add_once take headers, delay and max_deliveries like add."""
    backend = await world.connect()
    stream = backend.stream("s")
    options: dict[str, Any] = {"headers": {"h": "v"}, "delay": world.lease, "max_deliveries": 1}
    ids = await stream.add_many([0, 1], **options)
    ids += [(await stream.add_once("once", 2, **options)).id, await stream.add(3, **options)]
    assert [(entry.id, entry.headers) for entry in await stream.read()] == [(each, {"h": "v"}) for each in ids]
    group = stream.group("g", lease=1000, takeover=1000)
    async with group.consumer(prefetch=4) as consumer:
        await world.expect_none(consumer)
        await world.advance(world.lease * 1.1)
        for expected in range(4):
            delivery = await world.take(consumer)
            assert (delivery.data, delivery.headers) == (expected, {"h": "v"})
            await delivery.nack(0, "once is enough")
        await world.expect_none(consumer)
    assert [(each.origin, each.error) for each in await group.dead_letters.list()] == [
        (each, "once is enough") for each in ids
    ]


@pytest.mark.parametrize("way", ["nack", "expire"])
async def test_deliveries_of_one_message(world: World, way: str) -> None:
    """S5: a message's own max_deliveries replaces that of the group, in every group."""
    backend = await world.connect()
    stream = backend.stream("s")
    for most in (1, 2, None):
        await stream.add(most, max_deliveries=most)
    options: dict[str, Any] = {"lease": world.lease, "takeover": 1000, "max_processing": 0.001}
    groups = [stream.group(f"{usual}", max_deliveries=usual, **options) for usual in (1, 2)]
    seen: list[list[tuple[int | None, int]]] = [[], []]
    async with groups[0].consumer(prefetch=3) as one, groups[1].consumer(prefetch=3) as two:
        for repeat in range(3):
            for consumer, taken in zip((one, two), seen, strict=True):
                while (delivery := await consumer.get(0)) is not None:
                    taken.append((delivery.data, delivery.attempt))
                    await (delivery.nack(0, "no") if way == "nack" else asyncio.sleep(0))
            if way == "expire" and repeat < 2:
                await world.advance(world.lease * 1.2)
    for usual, group, taken in zip((1, 2), groups, seen, strict=True):
        expected = [(most, attempt) for most in (1, 2, None) for attempt in range(1, (most or usual) + 1)]
        assert sorted(taken, key=str) == sorted(expected, key=str)
        letters = await group.dead_letters.list()
        assert {each.body: each.attempts for each in letters} == {b"1": 1, b"2": 2, b"null": usual}
