"""L1 to L7, L14 to L16: who has a lock, by which fence, and until when."""

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
from contract_tests.lock.raw_lock import AWAY, TICK, RawLocks, fences, same
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.LOCK,)


async def begins_anew(world: World, lock: Any, ttl: float, call: Awaitable[Any]) -> Any:
    """Await what must make the only grant of a lock last exactly so long from now; return the result."""
    begin = world.harness.now()
    result = await call
    holders = (await lock.inspect()).holders
    took = world.harness.now() - begin
    assert len(holders) == 1
    assert ttl - took - TICK <= holders[0].remaining <= ttl + TICK
    return result


@needs(Capability.SEVERAL_LOCKS)
async def test_fences_rise(world: World) -> None:
    """L2: trap 24: each fence is higher than all before, after any end of a grant and by any backend; one per lease."""
    backend = await world.connect()
    lock, both = backend.lock("l", ttl=world.lease, renew=False), backend.lock("l", "m", ttl=AWAY)
    seen: dict[str, list[int]] = {"l": [], "m": []}

    async def take(chosen: Any) -> Any:
        lease = await chosen.acquire(timeout=0)
        for name in chosen.names:
            assert lease.fence > max(seen[name], default=0), seen
            seen[name].append(lease.fence)
        return lease

    for _ in range(20):  # some of them in one millisecond
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
async def test_the_same_bid_again(world: World) -> None:
    """L4, L2: trap 21: a bid sent again is the same grant, with the same fence, and its time begins anew."""
    backend = await world.connect()
    bidder, lock = RawLocks(world, backend), backend.lock("b")
    ttl = 4 * world.lease
    mine, other = LockRequest(("a", "b"), "mine", ttl), LockRequest(("b",), "other", ttl)
    fence = await begins_anew(world, lock, ttl, bidder.win(mine))
    await world.advance(world.lease)
    assert await begins_anew(world, lock, ttl, bidder.win(mine)) == fence
    await bidder.lose(other)
    assert await fences(lock) == await fences(backend.lock("a")) == [fence]
    assert await bidder.ask("release", mine)
    assert await bidder.win(other) > fence
    assert not await bidder.ask("release", mine)
    assert await fences(backend.lock("a")) == []
    permits = [LockRequest(("s",), token, ttl, permits=2) for token in ("one", "one", "two", "three")]
    first, again, second = [await bidder.win(request) for request in permits[:3]]
    assert first == again < second
    await bidder.lose(permits[3])


@pytest.mark.parametrize("successor", [False, True])
@pytest.mark.parametrize("way", ["expired", "broken", "released"])
async def test_stale_leases(world: World, way: str, successor: bool) -> None:
    """L3, L4, L6: traps 20, 23: what a lease asks for after its end changes and revives nothing, and harms nobody."""
    backend, other = await world.connect(), await world.connect()
    lock, later = backend.lock("l", ttl=world.lease, renew=False), other.lock("l", ttl=AWAY, renew=False)
    bidder, stale = RawLocks(world, other), await lock.acquire(timeout=0)
    if way == "expired":
        await world.advance(world.lease * 1.2)
    elif way == "broken":
        assert await later.break_(stale.fence)
    else:
        await stale.release()
    current = await later.acquire(timeout=0) if successor else None
    before, old = await lock.inspect(), LockRequest(("l",), stale.token, world.lease)
    for _ in range(2):
        assert await bidder.ask("extend", [old]) == [False]
        assert not await bidder.ask("release", old)
        assert not await lock.break_(stale.fence)
        with pytest.raises(ailf.LeaseLostError):
            await stale.extend()
        with contextlib.nullcontext() if way == "released" else pytest.raises(ailf.LeaseLostError):
            await stale.release()
    assert same(before, await lock.inspect())
    assert (stale.lost, stale.remaining()) == (way != "released", 0)
    if current is not None:
        new = LockRequest(("l",), current.token, AWAY)
        assert await bidder.ask("extend", [old, new, old]) == [False, True, False]
        await current.release()
        assert not current.lost
    assert await lock.inspect() == ailf.LockInfo()


async def test_releasing_twice(world: World) -> None:
    """L4, L8: releasing again, or twice at once, is harmless and is never called a loss."""
    backend, other = await world.connect(), await world.connect()
    lock = backend.lock("l")
    for _ in range(10):
        lease = await lock.acquire(timeout=0)
        await world.soon(asyncio.gather(lease.release(), lease.release()))
        assert (lease.lost, lease.remaining()) == (False, 0)
        theirs = await other.lock("l").acquire(timeout=0)
        await lease.release()
        assert await fences(lock) == [theirs.fence]
        await theirs.release()


async def test_the_end_of_a_lease(world: World) -> None:
    """L5: trap 23: a lease that nobody extends lasts its ttl, however short, and not longer."""
    backend, other = await world.connect(), await world.connect()
    now, step = world.harness.now, 0.001
    for ttl in (world.lease, 0.25, 0.0015, 0.001):
        lock, rival = backend.lock(f"l{ttl}", ttl=ttl, renew=False), other.lock(f"l{ttl}")
        begin = now()
        assert await lock.try_acquire() is not None
        granted = now()
        for wait in (ttl * 0.8, max(0.0, ttl * 0.2 - step), *[step] * 4):
            await world.advance(wait)
            asked = now()
            taken = await rival.try_acquire()
            if taken is not None:
                break
            assert asked < granted + ttl + TICK
        assert now() > begin + ttl - TICK
        assert taken is not None
        await taken.release()


async def test_extending(world: World) -> None:
    """L6: extending lets a lease last exactly its ttl from then, be that more or less; not after its end."""
    backend = await world.connect()
    lock = backend.lock("l", ttl=world.lease, renew=False)
    lease = await begins_anew(world, lock, world.lease, lock.try_acquire())
    await world.advance(world.lease / 2)
    await begins_anew(world, lock, world.lease, lease.extend())
    bidder = RawLocks(world, backend)
    requests = [LockRequest((name,), name, AWAY) for name in ("a", "b")]
    for request in requests:
        await bidder.win(request)
    changed = [replace(request, ttl=ttl) for request, ttl in zip(requests, (5.0, 70.0), strict=True)]
    for request in changed:  # one request for both
        asking = bidder.ask("extend", changed)
        assert await begins_anew(world, backend.lock(request.token), request.ttl, asking) == [True, True]
    await world.advance(world.lease * 1.2)
    with pytest.raises(ailf.LeaseLostError):
        await lease.extend()
    assert await lock.inspect() == ailf.LockInfo()


async def test_remaining(world: World) -> None:
    """L7: a lease never promises more time than the backend would give it."""
    backend = await world.connect()
    lock = backend.lock("l", ttl=0.3, renew=False)
    lease = await lock.acquire(timeout=0)
    for turn in range(5):
        holders = (await lock.inspect()).holders
        lost, promised = lease.lost, lease.remaining()
        assert promised <= (holders[0].remaining if holders else 0.0)
        assert not (lost and promised)
        if turn == 1:
            await lease.extend()
            assert lease.remaining() > 0.15
        await world.elapse(0.08)
    assert lease.lost
    assert lease.remaining() == 0


@needs(Capability.SEVERAL_LOCKS)
async def test_nobody_has_it_twice(world: World) -> None:
    """L14, L1: a second try is denied, whoever makes it: the holder, another object, another backend, the body."""
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


async def test_locks_are_apart(world: World) -> None:
    """B5, B6, L1: locks of different names, and of the same name in different namespaces, share nothing."""
    backend = await world.connect()
    elsewhere = await world.connect(harness=world.harness.elsewhere())
    names = [*NAMES, "a:fence", "a:fences", "a:queue", "a:waiters"]
    held = {name: await backend.lock(name, ttl=AWAY).acquire(timeout=0) for name in names}
    for name in names:
        assert await fences(backend.lock(name)) == [held[name].fence]
        assert await backend.lock(name).try_acquire() is None
    assert len({lease.token for lease in held.values()}) == len(names)
    theirs = await elsewhere.lock("a").acquire(timeout=0)
    await held["a"].release()
    assert await fences(elsewhere.lock("a")) == [theirs.fence]
    assert await fences(backend.lock("a")) == []


@needs(Capability.SEVERAL_LOCKS)
async def test_several_names(world: World) -> None:
    """L15, L2: several names are had all or none, whatever their order; a denied try changes nothing."""
    backend, other = await world.connect(), await world.connect()
    bidder = RawLocks(world, backend)
    pair, a, b = backend.lock("b", "a", "b", ttl=AWAY), other.lock("a", ttl=AWAY), other.lock("b", ttl=AWAY)
    assert pair.names == ("a", "b")
    for one, free in ((a, b), (b, a)):
        held = await one.acquire(timeout=0)
        before = [await each.inspect() for each in (a, b)]
        assert await pair.try_acquire() is None
        with pytest.raises(ailf.LockTimeoutError):
            await pair.acquire(timeout=0)
        assert all(map(same, before, [await each.inspect() for each in (a, b)]))
        beside = await free.acquire(timeout=0)  # nothing of it was taken
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
    assert await bidder.ask("extend", [LockRequest(("a", "b"), torn.token, AWAY)]) == [
        False
    ]  # nor does what is left last
    assert (await b.inspect()).holders[0].remaining <= left.remaining - 0.1 + TICK


@needs(Capability.SEVERAL_LOCKS)
@pytest.mark.parametrize("fair", [False, True])
async def test_opposite_orders(world: World, fair: bool) -> None:
    """L15, L1: the order of the names can't deadlock: many who want overlapping ones in any order all get them."""
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
    await world.soon(asyncio.gather(*(worker(number, names) for number, names in enumerate(orders))))
    assert done == 6 * len(orders)


async def test_permits(world: World) -> None:
    """L16: as many as may have a semaphore, each by a lease of its own; what ends one frees exactly one."""
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
    await first.release()  # a permit that is gone frees nothing
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


async def test_nobody_barges(world: World) -> None:
    """L12, L3: nobody overtakes who is first in line of a fair lock that is free, and trying to changes nothing."""
    backend = await world.connect()
    bidder, lock = RawLocks(world, backend), backend.lock("l", fair=True)
    holder = await lock.acquire(timeout=0)
    first = LockRequest(("l",), "first", AWAY, fair=True, waiter=WaiterInfo("nobody listens", AWAY))
    await bidder.lose(first)
    await holder.release()
    for _ in range(3):
        before = await lock.inspect()
        assert await lock.try_acquire() is None
        assert await lock.inspect() == before == ailf.LockInfo((), 1)
    with pytest.raises(ailf.LockTimeoutError):
        await lock.acquire(timeout=0.05)
    assert await bidder.win(first) > holder.fence
    assert (await lock.inspect()).waiting == 0


async def test_places(world: World) -> None:
    """L12: each place has an end of its own, which coming again puts off."""
    bidder = RawLocks(world, await world.connect())
    holder, late = [LockRequest(("l",), token, 1000.0, fair=True) for token in ("holder", "late")]
    await bidder.win(holder)
    short, long = [LockRequest(("l",), f"{end}", AWAY, 1, True, WaiterInfo("c", end)) for end in (world.lease, 900.0)]
    for request in (short, long):
        await bidder.lose(request)
    for _ in range(2):
        await bidder.lose(short)
        await world.advance(world.lease * 0.6)
    await bidder.ask("release", holder)
    assert await bidder.lose(late) <= world.lease
    await world.advance(world.lease)
    assert await bidder.ask("inspect", "l") == ailf.LockInfo((), 1)
    await bidder.lose(short)
    await bidder.win(long)
