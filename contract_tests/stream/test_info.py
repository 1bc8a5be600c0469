"""S10: `info` of a group is right in every state, and changes nothing."""

import random
from typing import Any

from msgspec.structs import replace

import ailf
from ailf.driver import Capability
from contract_tests.fixtures import needs
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM,)

TICK = 0.01
"""Seconds by which two clocks may differ."""


async def test_info_of_a_missing_group(world: World) -> None:
    """S10: info of a missing stream or group says that it doesn't exist, and doesn't make it."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g")
    assert await group.info() == ailf.GroupInfo(exists=False)
    assert await group.open()
    assert await group.info() == ailf.GroupInfo()
    await stream.add_many(range(3))
    other = stream.group("other")
    assert await other.info() == ailf.GroupInfo(length=3, lag=3, exists=False)
    assert await other.open()


async def test_info_in_every_state(world: World) -> None:
    """S10: length, lag, pending, delayed, dead, consumers and paused are right after each step."""
    backend = await world.connect()
    stream = backend.stream("s")
    group, other = stream.group("g", lease=60), stream.group("other")
    unmanaged = world.unmanaged_consumer(backend, "s")

    async def check(lag: int, **expected: Any) -> None:
        info = await group.info()
        assert {name: getattr(info, name) for name in expected} == expected
        assert info.lag == lag
        assert info.length == len(await stream.read())

    await group.open()
    await stream.add_many(range(4))
    await stream.add("later", delay=1000)
    async with group.consumer("me") as consumer, other.consumer():
        me = consumer.name
        await check(5, pending=0, delayed=0, dead=0, consumers={}, paused=False, evicted=0)
        first, second = await world.take(consumer), await world.take(consumer)
        await check(3, pending=2, delayed=0, consumers={me: 2})
        await second.nack(1000)
        await check(3, pending=1, delayed=1, consumers={me: 1})
        await unmanaged.fetch()
        await check(2, pending=2, delayed=1, consumers={me: 1, "unmanaged": 1})
        await first.reject("no")
        third = await world.take(consumer)
        await check(1, pending=2, delayed=1, dead=1, consumers={me: 1, "unmanaged": 1})
        await world.expect_none(consumer)  # this fetch reads the last entry, which is scheduled
        await check(0, pending=2, delayed=2, dead=1)
        await third.release()
        await check(0, pending=1, delayed=3, dead=1, consumers={me: 0, "unmanaged": 1})
        await group.dead_letters.redrive_all()
        await check(0, pending=1, delayed=4, dead=0)
        await group.pause()
        await check(0, pending=1, delayed=4, paused=True)
        await group.resume()
        await (await world.take(consumer)).ack()
        await (await world.take(consumer)).ack()
        await check(0, pending=1, delayed=2, dead=0, consumers={me: 0, "unmanaged": 1}, paused=False)
        await group.seek(ailf.EARLIEST)
        await check(5, pending=0, delayed=0, dead=0)
    await group.seek(ailf.LATEST)
    await check(0, pending=0, delayed=0, consumers={"unmanaged": 0})
    assert replace(await other.info(), oldest=None) == ailf.GroupInfo(length=5, lag=5)


@needs(Capability.ORDERING)
async def test_info_of_queued_messages(world: World) -> None:
    """S10, S3: a message that waits behind another of its ordering key counts as delayed."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(3), key="k")
    group = stream.group("g", lease=60)
    async with group.consumer(prefetch=5) as consumer:
        for left in (2, 1, 0):
            delivery = await world.take(consumer)
            await world.expect_none(consumer)
            info = await group.info()
            assert (info.pending, info.delayed, info.length) == (1, left, 3)
            assert info.lag == 0
            await delivery.ack()


async def test_the_oldest(world: World) -> None:
    """S10: `oldest` is the age of the oldest unsettled entry, read or unread; a redriven one's from its redrive."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", lease=1000, takeover=1000)
    await group.open()
    assert (await group.info()).oldest is None
    begin = world.harness.now()

    async def age() -> float:
        oldest = (await group.info()).oldest
        assert oldest is not None
        assert oldest <= world.harness.now() - begin + TICK
        return float(oldest)

    await stream.add("first")
    await world.advance(world.lease)
    later = world.harness.now()
    await stream.add_many(["second", "third"])
    assert await age() >= world.lease - TICK
    async with group.consumer() as consumer:
        first = await world.take(consumer)
        assert await age() >= world.lease - TICK
        begin = later
        await first.reject("no")
        assert await age() <= world.lease / 2
        await (await world.take(consumer)).ack()
        await (await world.take(consumer)).ack()
        assert (await group.info()).oldest is None
        assert await group.dead_letters.redrive_all() == 1
        assert await age() <= world.lease / 2
        await (await world.take(consumer)).ack()
        assert (await group.info()).oldest is None


async def test_counts_after_anything(world: World) -> None:
    """S10: after any adds, fetches, settlements, cancels, trims and seeks the counts are exact."""
    backend = await world.connect()
    stream = backend.stream("s")
    for seed in range(6):
        await stream.delete()
        group = stream.group("g", lease=60)
        async with group.consumer() as one, group.consumer() as two:
            history = History(random.Random(seed), stream, group, [one, two])
            for _ in range(40):
                await history.step()


async def test_the_lag_of_many(world: World) -> None:
    """S10: while few entries are left on one side of a group's position its lag is exact; with many it isn't wrong."""
    stream = (await world.connect()).stream("s")
    ids = await stream.add_many(range(450))
    assert await stream.cancel(await stream.add("later", delay=1000))
    group, front = stream.group("g"), stream.group("front")
    await front.open()
    for position, exact in ((99, True), (249, False), (350, True)):
        assert await group.open() == (position == 99)
        await group.seek(ids[position])
        info = await group.info()
        assert info.lag == 449 - position or not (exact or info.lag), info
        await stream.trim(ailf.Retention(max_len=450 - position // 100))
        assert (await front.info()).lag == 450


class History:
    """Performs random steps on a group, and compares its info with the expected counts."""

    def __init__(self, chance: random.Random, stream: Any, group: Any, consumers: list[Any]) -> None:
        self.chance = chance
        self.stream = stream
        self.group = group
        self.consumers = consumers
        self.ids: list[str] = []
        self.open: set[str] = set()
        self.held: dict[str, Any] = {}
        self.parked: set[str] = set()
        self.dead = 0
        self.steps: list[str] = []

    async def step(self) -> None:
        """Perform one random step, and compare."""
        step = self.chance.choice(["add", "add", "delay", "take", "take", "take", "settle", "settle", "other"])
        if step == "settle" and self.held:
            step = self.chance.choice(["ack", "ack", "reject", "nack", "release"])
        elif step == "other":
            step = self.chance.choice(["cancel", "trim", "seek"])
        self.steps.append(step)
        await getattr(self, f"_{step}", self._take)()
        await self._compare()

    async def _compare(self) -> None:
        info = await self.group.info()
        state = f"{info} after {self.steps}; open {len(self.open)}, held {len(self.held)}"
        assert info.length == len(self.ids), state
        assert info.pending == len(self.held) == sum(info.consumers.values()), state
        assert info.dead == self.dead, state
        assert info.lag is not None, state
        assert info.lag + info.delayed == len(self.open) - len(self.held), state
        assert (info.oldest is None) == (not self.open), state

    async def _add(self) -> None:
        added = await self.stream.add_many(range(self.chance.randint(1, 3)))
        self.ids += added
        self.open |= set(added)

    async def _delay(self) -> None:
        entry_id = await self.stream.add("later", delay=1000)
        self.ids.append(entry_id)
        self.open.add(entry_id)
        self.parked.add(entry_id)

    async def _take(self) -> None:
        delivery = await self.chance.choice(self.consumers).get(0)
        if delivery is None:
            return
        assert delivery.id in self.open - set(self.held) - self.parked, f"{delivery} after {self.steps}"
        self.held[delivery.id] = delivery

    def _pop_held(self) -> Any:
        return self.held.pop(self.chance.choice(sorted(self.held)))

    async def _ack(self) -> None:
        delivery = self._pop_held()
        await delivery.ack()
        self.open.remove(delivery.id)

    async def _reject(self) -> None:
        delivery = self._pop_held()
        await delivery.reject("no")
        self.open.remove(delivery.id)
        self.dead += 1

    async def _nack(self) -> None:
        await self._pop_held().nack(0)

    async def _release(self) -> None:
        await self._pop_held().release()

    async def _cancel(self) -> None:
        if self.parked:
            entry_id = self.parked.pop()
            assert await self.stream.cancel(entry_id)
            self.ids.remove(entry_id)
            self.open.discard(entry_id)
            await self._take()  # a group may notice a cancel only at its next fetch

    async def _trim(self) -> None:
        before = len(self.ids)
        trimmed = await self.stream.trim(ailf.Retention(max_len=self.chance.randint(1, 8)))
        self.ids = [entry.id for entry in await self.stream.read(limit=1000)]
        assert trimmed == ailf.Trimmed(before - len(self.ids), 0)
        assert self.open <= set(self.ids)
        self.parked &= set(self.ids)

    async def _seek(self) -> None:
        index = self.chance.randint(0, len(self.ids))
        position = self.ids[index - 1] if index else ailf.EARLIEST
        await self.group.seek(position if index < len(self.ids) else ailf.LATEST)
        self.held.clear()
        self.open = set(self.ids[index:])
