"""L1 to L7, L12, L14 to L16, L19, L20: the holders of a lock, their fences, and the ends of their leases."""

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any

import pytest
from msgspec.structs import replace

import ailf
from ailf.driver import Capability, LockRequest, WaiterInfo
from contract_tests.fixtures import needs
from contract_tests.helpers.names import NAMES
from contract_tests.lock.raw_lock import AWAY, TICK, RawLockClient, fences, same
from contract_tests.lock.test_lock_hold import RequestLog
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.LOCK,)


async def begins_anew(world: World, lock: Any, ttl: float, call: Awaitable[Any]) -> Any:
    """Await a call after which the only grant of a lock must last exactly `ttl` seconds; return its result."""
    begin = world.harness.now()
    result = await call
    holders = (await lock.inspect()).holders
    took = world.harness.now() - begin
    assert len(holders) == 1
    assert ttl - took - TICK <= holders[0].remaining <= ttl + TICK
    return result


@needs(Capability.SEVERAL_LOCKS)
async def test_fences_rise(world: World) -> None:
    """L2: trap 24: each fence is higher than all before it, however grants end and on any backend; one per lease."""
    backend = await world.connect()
    lock, both = backend.lock("l", ttl=world.lease, renew=False), backend.lock("l", "m", ttl=AWAY)
    seen: dict[str, list[int]] = {"l": [], "m": []}

    async def take(chosen: Any) -> Any:
        lease = await chosen.acquire(timeout=0)
        for name in chosen.names:
            assert lease.fence > max(seen[name], default=0), seen
            seen[name].append(lease.fence)
        return lease

    for _ in range(20):  # several in the same millisecond
        await (await take(lock)).release()
    held = await take(lock)
    await held.extend()
    assert await fences(lock) == [held.fence]
    assert await lock.break_(held.fence)
    await take(lock)
    await world.advance(world.lease * 1.2)
    await (await take(both)).release()
    for _ in range(3):
        await (await take(backend.lock("m"))).release()
    await (await take(both)).release()
    for _ in range(2):
        await (await take(backend.semaphore("l", 2))).release()
    await backend.aclose()
    newcomer = await world.connect()
    await (await take(newcomer.lock("l"))).release()
    await (await take(newcomer.lock("m"))).release()


@needs(Capability.SEVERAL_LOCKS)
async def test_a_repeated_request(world: World) -> None:
    """L4, L2: trap 21: a request that is sent again is the same grant with the same fence, and its ttl starts again."""
    backend = await world.connect()
    client, lock = RawLockClient(world, backend), backend.lock("b")
    ttl = 4 * world.lease
    request, other = LockRequest(("a", "b"), "token", ttl), LockRequest(("b",), "other", ttl)
    fence = await begins_anew(world, lock, ttl, client.expect_granted(request))
    await world.advance(world.lease)
    assert await begins_anew(world, lock, ttl, client.expect_granted(request)) == fence
    await client.expect_denied(other)
    assert await fences(lock) == await fences(backend.lock("a")) == [fence]
    assert await client.call("release", request)
    assert await client.expect_granted(other) > fence
    assert not await client.call("release", request)
    assert await fences(backend.lock("a")) == []
    permits = [LockRequest(("s",), token, ttl, permits=2) for token in ("one", "one", "two", "three")]
    first, again, second = [await client.expect_granted(permit) for permit in permits[:3]]
    assert first == again < second
    await client.expect_denied(permits[3])


@pytest.mark.parametrize("successor", [False, True])
@pytest.mark.parametrize("way", ["expired", "broken", "released"])
async def test_stale_leases(world: World, way: str, successor: bool) -> None:
    """L3, L4, L6: traps 20, 23: extend, release and break with an ended lease change nothing, also for a successor."""
    backend, other = await world.connect(), await world.connect()
    lock, later = backend.lock("l", ttl=world.lease, renew=False), other.lock("l", ttl=AWAY, renew=False)
    client, stale = RawLockClient(world, other), await lock.acquire(timeout=0)
    if way == "expired":
        await world.advance(world.lease * 1.2)
    elif way == "broken":
        assert await later.break_(stale.fence)
    else:
        await stale.release()
    current = await later.acquire(timeout=0) if successor else None
    before, old = await lock.inspect(), LockRequest(("l",), stale.token, world.lease)
    for _ in range(2):
        assert await client.call("extend", [old]) == [False]
        assert not await client.call("release", old)
        assert not await lock.break_(stale.fence)
        with pytest.raises(ailf.LeaseLostError):
            await stale.extend()
        with contextlib.nullcontext() if way == "released" else pytest.raises(ailf.LeaseLostError):
            await stale.release()
    assert same(before, await lock.inspect())
    assert (stale.lost, stale.remaining()) == (way != "released", 0)
    if current is not None:
        new = LockRequest(("l",), current.token, AWAY)
        assert await client.call("extend", [old, new, old]) == [False, True, False]
        await current.release()
        assert not current.lost
    assert await lock.inspect() == ailf.LockInfo()


async def test_releasing_twice(world: World) -> None:
    """L4, L8: a second release, also one at the same time, changes nothing and is never reported as a loss."""
    backend, other = await world.connect(), await world.connect()
    lock = backend.lock("l")
    for _ in range(10):
        lease = await lock.acquire(timeout=0)
        await world.within_patience(asyncio.gather(lease.release(), lease.release()))
        assert (lease.lost, lease.remaining()) == (False, 0)
        theirs = await other.lock("l").acquire(timeout=0)
        await lease.release()
        assert await fences(lock) == [theirs.fence]
        await theirs.release()


async def test_the_end_of_a_lease(world: World) -> None:
    """L5: trap 23: a lease that is not extended lasts exactly its ttl, however short."""
    backend, other = await world.connect(), await world.connect()
    now, step = world.harness.now, 0.001
    for ttl in (world.lease, 0.25, 0.0015, 0.001):
        lock, theirs = backend.lock(f"l{ttl}", ttl=ttl, renew=False), other.lock(f"l{ttl}")
        begin = now()
        assert await lock.try_acquire() is not None
        granted = now()
        for wait in (ttl * 0.8, max(0.0, ttl * 0.2 - step), *[step] * 4):
            await world.advance(wait)
            before = now()
            taken = await theirs.try_acquire()
            if taken is not None:
                break
            assert before < granted + ttl + TICK
        assert now() > begin + ttl - TICK
        assert taken is not None
        await taken.release()


async def test_extending(world: World) -> None:
    """L6: extend sets the remaining time to exactly ttl, longer or shorter; on an ended lease it raises."""
    backend = await world.connect()
    lock = backend.lock("l", ttl=world.lease, renew=False)
    lease = await begins_anew(world, lock, world.lease, lock.try_acquire())
    await world.advance(world.lease / 2)
    await begins_anew(world, lock, world.lease, lease.extend())
    client = RawLockClient(world, backend)
    requests = [LockRequest((name,), name, AWAY) for name in ("a", "b")]
    for request in requests:
        await client.expect_granted(request)
    changed = [replace(request, ttl=ttl) for request, ttl in zip(requests, (5.0, 70.0), strict=True)]
    for request in changed:  # one call extends both
        extending = client.call("extend", changed)
        assert await begins_anew(world, backend.lock(request.token), request.ttl, extending) == [True, True]
    await world.advance(world.lease * 1.2)
    with pytest.raises(ailf.LeaseLostError):
        await lease.extend()
    assert await lock.inspect() == ailf.LockInfo()


async def test_remaining(world: World) -> None:
    """L7: `remaining` of a lease never exceeds the backend's own number."""
    backend = await world.connect()
    lock = backend.lock("l", ttl=0.3, renew=False)
    lease = await lock.acquire(timeout=0)
    for repeat in range(5):
        holders = (await lock.inspect()).holders
        lost, promised = lease.lost, lease.remaining()
        assert promised <= (holders[0].remaining if holders else 0.0)
        assert not (lost and promised)
        if repeat == 1:
            await lease.extend()
            assert lease.remaining() > 0.15
        await world.elapse(0.08)
    assert lease.lost
    assert lease.remaining() == 0


@needs(Capability.SEVERAL_LOCKS)
async def test_not_reentrant(world: World) -> None:
    """L14, L1: a second request is denied, also from the holder, its body, another object, or another backend."""
    backend, other = await world.connect(), await world.connect()
    lock = backend.lock("l")
    lease = await lock.acquire(timeout=0)
    for again in (lock, backend.lock("l"), backend.lock("l", fair=True), other.lock("l"), other.lock("l", "m")):
        assert await again.try_acquire() is None
        with pytest.raises(ailf.LockTimeoutError):
            await again.acquire(timeout=0)
    await lease.release()
    async with lock.hold(timeout=0) as held:
        assert await lock.try_acquire() is None
        assert await fences(lock) == [held.fence]


async def test_locked(world: World) -> None:
    """L20: a lock is locked while anybody has it, a semaphore while no permit is free; asking changes nothing."""
    backend, other = await world.connect(), await world.connect()
    lock, theirs, pair = backend.lock("l"), other.lock("l", ttl=world.lease, renew=False), other.semaphore("l", 2)
    assert not await lock.locked()
    lease = await theirs.acquire(timeout=0)
    before = await theirs.inspect()
    assert (await lock.locked(), await theirs.locked(), await pair.locked()) == (True, True, False)
    assert same(before, await theirs.inspect())
    permit = await pair.acquire(timeout=0)
    assert await pair.locked()
    await permit.release()
    assert (await lock.locked(), await pair.locked()) == (True, False)
    await lease.release()
    assert not await lock.locked()
    await theirs.acquire(timeout=0)
    await world.advance(world.lease * 1.2)
    assert not await lock.locked(), "the lease has ended"


@needs(Capability.SEVERAL_LOCKS)
async def test_several_locked(world: World) -> None:
    """L20: a lock of several names is locked while anybody has one of them; that takes one request, too."""
    backend, other = await world.connect(), await world.connect()
    log = RequestLog(backend)
    several = backend.lock("k", "l", "m")
    assert not await several.locked()
    for name in ("k", "l", "m"):
        lease = await other.lock(name).acquire(timeout=0)
        assert await several.locked()
        await lease.release()
    assert not await several.locked()
    assert log.requests == 5 * [("inspect_many", ("k", "l", "m"))]


async def test_locks_are_independent(world: World) -> None:
    """B5, B6, L1: locks of different names, and of the same name in different namespaces, share nothing."""
    backend = await world.connect()
    other = await world.connect(harness=world.harness.other_namespace())
    names = [*NAMES, "a:fence", "a:fences", "a:queue", "a:waiters"]
    held = {name: await backend.lock(name, ttl=AWAY).acquire(timeout=0) for name in names}
    for name in names:
        assert await fences(backend.lock(name)) == [held[name].fence]
        assert await backend.lock(name).try_acquire() is None
    assert len({lease.token for lease in held.values()}) == len(names)
    theirs = await other.lock("a").acquire(timeout=0)
    await held["a"].release()
    assert await fences(other.lock("a")) == [theirs.fence]
    assert await fences(backend.lock("a")) == []


@needs(Capability.SEVERAL_LOCKS)
async def test_several_names(world: World) -> None:
    """L15, L2: several names are granted all or none, in any order of arguments; a denied request changes nothing."""
    backend, other = await world.connect(), await world.connect()
    client = RawLockClient(world, backend)
    pair, a, b = backend.lock("b", "a", "b", ttl=AWAY), other.lock("a", ttl=AWAY), other.lock("b", ttl=AWAY)
    assert pair.names == ("a", "b")
    for one, free in ((a, b), (b, a)):
        held = await one.acquire(timeout=0)
        before = [await each.inspect() for each in (a, b)]
        assert await pair.try_acquire() is None
        with pytest.raises(ailf.LockTimeoutError):
            await pair.acquire(timeout=0)
        assert all(map(same, before, [await each.inspect() for each in (a, b)]))
        beside = await free.acquire(timeout=0)  # the denied request took neither
        await beside.release()
        await held.release()
    lease = await pair.acquire(timeout=0)
    assert lease.names == ("a", "b")
    assert lease.fence > max(held.fence, beside.fence)
    for each in (a, b):
        assert await each.try_acquire() is None
        assert await fences(each) == [lease.fence]
        await begins_anew(world, each, AWAY, lease.extend())
    await lease.release()
    assert [await each.inspect() for each in (a, b)] == [ailf.LockInfo()] * 2
    torn = await pair.acquire(timeout=0)
    await a.break_(torn.fence)
    (left,) = (await b.inspect()).holders
    await world.advance(0.1)
    with pytest.raises(ailf.LeaseLostError):
        await torn.extend()
    request = LockRequest(("a", "b"), torn.token, AWAY)
    assert await client.call("extend", [request]) == [False]  # nor does it extend the name that is left
    assert (await b.inspect()).holders[0].remaining <= left.remaining - 0.1 + TICK


@needs(Capability.SEVERAL_LOCKS)
@pytest.mark.parametrize("fair", [False, True])
async def test_opposite_orders(world: World, fair: bool) -> None:
    """L15, L1: the order of names can't deadlock: all workers get their overlapping names, in whatever order."""
    backends = [await world.connect(), await world.connect()]
    inside: set[str] = set()
    done = 0

    async def worker(number: int, names: tuple[str, ...]) -> None:
        nonlocal done
        for _ in range(6):
            async with backends[number % 2].lock(*names, fair=fair).hold(world.patience):
                assert inside.isdisjoint(names)
                inside.update(names)
                await asyncio.sleep(0)
                inside.difference_update(names)
                done += 1

    orders = [("a", "b"), ("b", "a"), ("b", "c"), ("c", "b", "a"), ("c", "a"), ("a", "b", "c"), ("a",), ("c",)]
    await world.within_patience(asyncio.gather(*(worker(number, names) for number, names in enumerate(orders))))
    assert done == 6 * len(orders)


async def test_permits(world: World) -> None:
    """L16: a semaphore has n permits, each with its own lease; the end of one lease frees exactly one permit."""
    backend, other = await world.connect(), await world.connect()
    few, long = backend.semaphore("s", 3, ttl=world.lease, renew=False), other.semaphore("s", 3, ttl=AWAY, renew=False)

    async def full() -> None:
        assert await few.try_acquire() is None
        assert await long.try_acquire() is None
        held = await fences(few)
        assert len(held) == 3
        assert held == sorted(held)

    brief, first, second = [await each.acquire(timeout=0) for each in (few, long, long)]
    assert brief.fence < first.fence < second.fence
    assert len({brief.token, first.token, second.token}) == 3
    await full()
    await first.release()
    third = await long.acquire(timeout=0)
    await first.release()  # a second release frees nothing
    await full()
    assert await long.break_(third.fence)
    fourth = await long.acquire(timeout=0)
    with pytest.raises(ailf.LeaseLostError):
        await third.release()
    await full()
    await world.advance(world.lease * 1.2)
    assert await fences(few) == [second.fence, fourth.fence]
    assert await long.try_acquire() is not None
    for call in (brief.release, brief.extend):
        with pytest.raises(ailf.LeaseLostError):
            await call()
    await full()


async def test_no_barging(world: World) -> None:
    """L12, L3: no request overtakes the first waiter of a free fair lock, and a denied one changes nothing."""
    backend = await world.connect()
    client, lock = RawLockClient(world, backend), backend.lock("l", fair=True)
    holder = await lock.acquire(timeout=0)
    first = LockRequest(("l",), "first", AWAY, fair=True, waiter=WaiterInfo("no listener", AWAY))
    await client.expect_denied(first)
    await holder.release()
    for _ in range(3):
        before = await lock.inspect()
        assert await lock.try_acquire() is None
        assert await lock.inspect() == before == ailf.LockInfo((), 1)
    with pytest.raises(ailf.LockTimeoutError):
        await lock.acquire(timeout=0.05)
    assert await client.expect_granted(first) > holder.fence
    assert (await lock.inspect()).waiting == 0


async def test_waiter_leases(world: World) -> None:
    """L12: each place in the wait queue ends with its own waiter lease, which a repeated request renews."""
    client = RawLockClient(world, await world.connect())
    holder, late = [LockRequest(("l",), token, 1000.0, fair=True) for token in ("holder", "late")]
    await client.expect_granted(holder)
    short, long = [LockRequest(("l",), f"{end}", AWAY, 1, True, WaiterInfo("c", end)) for end in (world.lease, 900.0)]
    for request in (short, long):
        await client.expect_denied(request)
    for _ in range(2):
        await client.expect_denied(short)
        await world.advance(world.lease * 0.6)
    await client.call("release", holder)
    assert await client.expect_denied(late) <= world.lease
    await world.advance(world.lease)
    assert await client.call("inspect", "l") == ailf.LockInfo((), 1)
    await client.expect_denied(short)
    await client.expect_granted(long)


class Contention:
    """A lock that is held, and requests for it that come at the right time, while one waits that gets its wake-ups."""

    def __init__(self, client: RawLockClient) -> None:
        self.client = client
        self.waiting = LockRequest(("l",), "waiting", AWAY, waiter=WaiterInfo("wake-ups", AWAY))
        self._holder = self.barging(0)
        self._count = 0

    @staticmethod
    def barging(number: int) -> LockRequest:
        """Return a request that doesn't wait."""
        return LockRequest(("l",), f"barging {number}", AWAY)

    async def begin(self) -> None:
        """Take the lock, and request it for the one that waits."""
        await self.client.expect_granted(self._holder)
        await self.client.expect_denied(self.waiting)

    async def free(self) -> None:
        """Release the lock, which wakes the waiter."""
        await self.client.call("release", self._holder)

    async def overtake(self, times: int = 1) -> None:
        """Release the lock and take it again, before the waiter does."""
        for _ in range(times):
            await self.free()
            self._count += 1
            self._holder = self.barging(self._count)
            await self.client.expect_granted(self._holder)


@needs(Capability.PUBSUB)
async def test_overtaking_is_bounded(world: World) -> None:
    """L19: a waiter that was woken three times is overtaken no more; its place counts, and not who asks first."""
    backend, other = await world.connect(), await world.connect()
    contention = Contention(RawLockClient(world, backend))
    async with other.pubsub(type=bytes).listen("wake-ups"):
        await contention.begin()
        await contention.overtake()
        await contention.client.expect_denied(contention.waiting)
        await contention.overtake()
        await contention.free()
        for request in (contention.barging(100), replace(contention.barging(101), waiter=WaiterInfo("deaf", AWAY))):
            assert 0 < await contention.client.expect_denied(request) <= 1.0
        assert await contention.client.call("inspect", "l") == ailf.LockInfo((), 2)
        await contention.client.expect_granted(contention.waiting)


@needs(Capability.PUBSUB)
async def test_a_reservation_ends(world: World) -> None:
    """L19: a waiter that is silent is overtaken again after a second, until it asks and is woken three times more."""
    backend, other = await world.connect(), await world.connect()
    contention = Contention(RawLockClient(world, backend))
    async with other.pubsub(type=bytes).listen("wake-ups"):
        await contention.begin()
        for _ in range(2):
            await contention.overtake(2)
            await contention.free()
            await contention.client.expect_denied(contention.barging(100))
            await world.advance(1.1)
            await contention.overtake(3)
            await contention.client.expect_denied(contention.waiting)


@needs(Capability.PUBSUB, Capability.SEVERAL_LOCKS)
async def test_a_wait_for_several_names_reserves_nothing(world: World) -> None:
    """L19: a free lock isn't kept for a waiter that waits for another lock too."""
    backend, other = await world.connect(), await world.connect()
    contention = Contention(RawLockClient(world, backend))
    await contention.client.expect_granted(LockRequest(("m",), "other", AWAY))
    contention.waiting = replace(contention.waiting, names=("l", "m"))
    async with other.pubsub(type=bytes).listen("wake-ups"):
        await contention.begin()
        await contention.overtake(5)
