"""Wait queues of memory locks with planted bugs."""

import contextlib
from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from ailf.driver import Denied, Granted, LockRequest, WaiterInfo
from ailf_memory.lock import MemoryLockDriver
from ailf_memory.state.wait_queue import RESERVED_MS, WAKES, Publish, WaitQueue
from tests.contract.planted.base import caught_by
from tests.contract.planted.locks import LockWithGrants


class _WakesNone(WaitQueue):
    """A wait queue that wakes no waiter."""

    def wake(self, *_: Any, **__: Any) -> None:
        return


@caught_by("lock.test_lock_waiting.test_a_freed_lock_wakes_a_waiter", fair=True, way="release")
class WakesNoWaiter(MemoryLockDriver):
    """No waiter is woken; each retries by itself."""

    queue_class = _WakesNone


@caught_by("lock.test_lock_waiting.test_fair_order")
class WakesAllWaiters(LockWithGrants):
    """A release wakes all waiters, of which one gets the lock."""

    async def release(self, request: LockRequest) -> bool:
        released = await super().release(request)
        for name in request.names:
            for token, waiter in self._state(name).queue.waiters.items():
                self._store.publish(waiter.channel, token.encode())
        return released


@caught_by("lock.test_lock_waiting.test_a_pair_does_not_starve_single_locks")
class WakesOneWaiter(MemoryLockDriver):
    """Only one waiter is woken when two permits are free."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        queues = [self._state(name).queue for name in request.names]
        for queue in queues:
            queue.__class__ = _WakesNone
        try:
            return await super().acquire(request)
        finally:
            for queue in queues:
                queue.__class__ = WaitQueue


class _PassesNothingOn(WaitQueue):
    """A wait queue that wakes its first waiter only."""

    def wake(self, publish: Publish, now_ms: int, after: str | None = None) -> None:
        if after is None:
            super().wake(publish, now_ms)


@caught_by("lock.test_lock_waiting.test_a_pair_does_not_starve_single_locks")
class PassesNoWakeUpOn(MemoryLockDriver):
    """A waiter that is woken and still denied, because it wants another lock too, doesn't wake the next one."""

    queue_class = _PassesNothingOn


class _NeverCounts(WaitQueue):
    """A wait queue that counts no wake-ups."""

    def enqueue(self, *args: Any, counts: bool = False) -> None:
        super().enqueue(*args)


@caught_by("lock.test_lock.test_overtaking_is_bounded")
class LetsWaitersStarve(MemoryLockDriver):
    """A waiter may be overtaken for ever."""

    queue_class = _NeverCounts


class _RenewsReservations(WaitQueue):
    """A wait queue that reserves the lock each time that it wakes a waiter that has a turn."""

    def wake(self, publish: Publish, now_ms: int, after: str | None = None) -> None:
        super().wake(publish, now_ms, after)
        for waiter in self.waiters.values():
            if waiter.wakes == WAKES:
                waiter.reserved_ms = now_ms + RESERVED_MS


@caught_by("lock.test_lock.test_a_reservation_ends")
class ReservesForSilentWaiters(MemoryLockDriver):
    """A waiter that never comes keeps the lock free, for a second after each release."""

    queue_class = _RenewsReservations


class _AlwaysCounts(WaitQueue):
    """A wait queue that counts all wake-ups."""

    def enqueue(self, *args: Any, counts: bool = False, since: int | None = None) -> None:
        super().enqueue(*args, counts=True, since=since)


@caught_by("lock.test_lock.test_a_wait_for_several_names_reserves_nothing")
class ReservesOneOfSeveralLocks(MemoryLockDriver):
    """A lock is reserved for a waiter that waits for another one too."""

    queue_class = _AlwaysCounts


@caught_by("lock.test_lock.test_no_barging")
class AllowsBarging(MemoryLockDriver):
    """A fair lock is granted to any request that comes at the right time."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        return await super().acquire(replace(request, fair=False))


@caught_by("lock.test_lock_waiting.test_fair_order")
class ServesTheLastWaiterFirst(LockWithGrants):
    """The wait queue is a stack."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        reply = await super().acquire(request)
        for name in request.names if isinstance(reply, Denied) and request.waiter else ():
            queue = self._state(name).queue.waiters
            for token in [each for each in queue if each != request.token]:
                queue[token] = queue.pop(token)
        return reply


@caught_by("lock.test_lock.test_waiter_leases")
class RequeuesRepeatedRequests(LockWithGrants):
    """A waiter that repeats its request goes to the end of the wait queue."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        reply = await super().acquire(request)
        for name in request.names if isinstance(reply, Denied) and request.waiter else ():
            queue = self._state(name).queue.waiters
            queue[request.token] = queue.pop(request.token)
        return reply


@caught_by("lock.test_lock.test_several_names")
class QueuesTries(MemoryLockDriver):
    """A request without a waiter also joins the wait queue."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        return await super().acquire(replace(request, waiter=request.waiter or WaiterInfo("", 60.0)))


class _KeepsPlaces(LockWithGrants):
    """A lock driver that can keep the places of a waiter in the wait queues."""

    @contextlib.contextmanager
    def _kept_places(self, request: LockRequest) -> Iterator[None]:
        queues = [self._state(name).queue.waiters for name in request.names]
        before = [queue.get(request.token) for queue in queues]
        yield
        for queue, waiter in zip(queues, before, strict=True):
            if waiter is not None:
                queue[request.token] = waiter


@caught_by("lock.test_lock.test_no_barging")
class KeepsPlacesOfLeavers(_KeepsPlaces):
    """A waiter that leaves keeps its place in the wait queue."""

    async def release(self, request: LockRequest) -> bool:
        with self._kept_places(request):
            return await super().release(request)


@caught_by("lock.test_lock.test_waiter_leases")
class KeepsPlacesOfHolders(_KeepsPlaces):
    """A waiter that gets the lock keeps its place in the wait queue."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        with self._kept_places(request):
            return await super().acquire(request)


@caught_by("lock.test_lock_waiting.test_a_dead_waiter")
class KeepsDeadWaiters(MemoryLockDriver):
    """A waiter lease never ends by itself."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        waiter = request.waiter and replace(request.waiter, lease=1e9)
        return await super().acquire(replace(request, waiter=waiter))


@caught_by("lock.test_lock.test_waiter_leases")
class HidesTheNextTry(MemoryLockDriver):
    """A denial has no useful `retry_after`."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        reply = await super().acquire(request)
        return Denied(1e9) if isinstance(reply, Denied) else reply


@caught_by("lock.test_lock_waiting.test_a_waiter_whose_lease_ended")
class KeepsPlacesInOtherQueues(LockWithGrants):
    """A waiter that lost its place in one wait queue keeps its place in another."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        queues = [self._state(name).queue.waiters for name in request.names]
        orders = [list(queue) for queue in queues]
        reply = await super().acquire(request)
        for queue, order in zip(queues, orders, strict=True):
            for token in order:
                if token in queue:
                    queue[token] = queue.pop(token)
            for token in [each for each in queue if each not in order]:
                queue[token] = queue.pop(token)
        return reply
