"""Memory locks with planted bugs."""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

import ailf
from ailf.driver import Denied, Granted, LockRequest, WaiterInfo
from ailf_memory.lock import MemoryLockDriver
from tests.contract.planted.base import BrokenHarness, caught_by


class LockWithGrants(MemoryLockDriver):
    """A lock driver with access to the grants of a request."""

    def _grants(self, request: LockRequest) -> list[Any]:
        """Return all grants of the names."""
        return [grant for name in request.names for grant in self._state(name).grants.values()]

    def _own(self, request: LockRequest) -> list[Any]:
        """Return the grants of the request's token, ended or not."""
        states = [self._state(name) for name in request.names]
        return [state.grants[request.token] for state in states if request.token in state.grants]

    def _number(self, request: LockRequest, fence: int) -> Granted:
        """Give the grants of the request's token another fence."""
        for name in request.names:
            self._state(name).fence = fence
        for grant in self._own(request):
            grant.fence = fence
        return Granted(fence)


# --- entering ----------------------------------------------------------------------------------------------------


class _UnlockedLock(ailf.Lock):
    def __enter__(self) -> ailf.Lease:
        lease = self.acquire()
        lease.release()
        return lease

    def __exit__(self, *_: object) -> None:
        pass


class _AsyncUnlockedLock(ailf.AsyncLock):
    async def __aenter__(self) -> ailf.AsyncLease:
        lease = await self.acquire()
        await lease.release()
        return lease

    async def __aexit__(self, *_: object) -> None:
        pass


class _UnlockedBackend(ailf.Backend):
    lock_class = _UnlockedLock


class _AsyncUnlockedBackend(ailf.AsyncBackend):
    lock_class = _AsyncUnlockedLock


@caught_by("lock.test_lock_hold.test_entering")
class EntersUnlocked(BrokenHarness):
    """The body of a `with` block runs without the lock."""

    blocking = _UnlockedBackend
    on_asyncio = _AsyncUnlockedBackend


class _UnheldLock(ailf.Lock):
    def held(self, *_: object, **__: object) -> Any:
        return lambda function: function


class _AsyncUnheldLock(ailf.AsyncLock):
    def held(self, *_: object, **__: object) -> Any:
        return lambda function: function


class _UnheldBackend(ailf.Backend):
    lock_class = _UnheldLock


class _AsyncUnheldBackend(ailf.AsyncBackend):
    lock_class = _AsyncUnheldLock


@caught_by("lock.test_lock_hold.test_held_functions")
class DecoratesWithoutLock(BrokenHarness):
    """A decorated function runs without the lock."""

    blocking = _UnheldBackend
    on_asyncio = _AsyncUnheldBackend


class _OneEntry:
    """Keeps one stack of entries for all threads."""

    def __init__(self) -> None:
        self.contexts: list[Any] = []


class _OneTask(dict[Any, Any]):
    """Keeps one stack of entries for all tasks."""

    def get(self, _: Any, default: Any = None) -> Any:
        return super().get(0, default)

    def setdefault(self, _: Any, default: Any = None) -> Any:
        return super().setdefault(0, default)


class _SharedLock(ailf.Lock):
    @staticmethod
    def _nothing_entered() -> Any:
        return _OneEntry()


class _AsyncSharedLock(ailf.AsyncLock):
    @staticmethod
    def _nothing_entered() -> Any:
        return _OneTask()


class _SharedBackend(ailf.Backend):
    lock_class = _SharedLock


class _AsyncSharedBackend(ailf.AsyncBackend):
    lock_class = _AsyncSharedLock


@caught_by("lock.test_lock_hold.test_leaving_in_another_task")
class SharesEntries(BrokenHarness):
    """Leaving a lock in any thread or task ends the latest entry of all."""

    blocking = _SharedBackend
    on_asyncio = _AsyncSharedBackend


# --- holders -----------------------------------------------------------------------------------------------------


@caught_by("lock.test_lock.test_not_reentrant")
@caught_by("lock.test_lock_waiting.test_never_too_many_holders", permits=1)
class GrantsOnePermitMore(MemoryLockDriver):
    """There is one permit more than there should be."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        return await super().acquire(replace(request, permits=request.permits + 1))


@caught_by("lock.test_lock.test_permits")
class IgnoresPermits(MemoryLockDriver):
    """A semaphore is a lock."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        return await super().acquire(replace(request, permits=1))


@caught_by("lock.test_lock.test_locks_are_independent")
class SharesLocks(MemoryLockDriver):
    """All names are one lock."""

    def _state(self, name: str) -> Any:
        return super()._state("all")

    async def inspect(self, name: str) -> ailf.LockInfo:
        return await super().inspect("all")


@caught_by("lock.test_lock.test_several_names")
class GrantsFreeNames(MemoryLockDriver):
    """Of several names the free ones are granted."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        reply = await super().acquire(request)
        if isinstance(reply, Denied):
            for name in request.names:
                await super().acquire(replace(request, names=(name,), waiter=None))
        return reply


@caught_by("lock.test_lock.test_several_names")
class GrantsFirstName(MemoryLockDriver):
    """Of several names only the first is locked."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        return await super().acquire(replace(request, names=request.names[:1]))


# --- fences ------------------------------------------------------------------------------------------------------


@caught_by("lock.test_lock.test_fences_rise")
class UsesTheTimeAsFence(LockWithGrants):
    """A fence is the current time in milliseconds."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        reply = await super().acquire(request)
        return self._number(request, self._now()) if isinstance(reply, Granted) else reply


@caught_by("lock.test_lock.test_fences_rise")
class RestartsFences(LockWithGrants):
    """Fences start again after a grant has expired."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        latest = max(self._state(name).fence for name in request.names)
        latest *= all(grant.ends_ms > self._now() for grant in self._grants(request))
        latest = max((grant.fence - 1 for grant in self._own(request)), default=latest)
        reply = await super().acquire(request)
        return self._number(request, latest + 1) if isinstance(reply, Granted) else reply


@caught_by("lock.test_lock.test_a_repeated_request")
class ChangesFencesOfRepeatedRequests(LockWithGrants):
    """A repeated request has another fence."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        again = bool(self._own(request))
        reply = await super().acquire(request)
        return self._number(request, reply.fence + 1) if again and isinstance(reply, Granted) else reply


@caught_by("lock.test_lock.test_fences_rise")
class FencesByTheFirstName(LockWithGrants):
    """The fence of several names is that of the first."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        fences = [self._state(name).fence for name in request.names]
        reply = await super().acquire(request)
        if isinstance(reply, Granted) and len(fences) > 1:
            return self._number(request, fences[0] + 1)
        return reply


# --- ttls --------------------------------------------------------------------------------------------------------


@caught_by("lock.test_lock.test_the_end_of_a_lease")
class ExpiresLate(MemoryLockDriver):
    """A grant lasts longer than its ttl."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        return await super().acquire(replace(request, ttl=request.ttl + 0.005))


@caught_by("lock.test_lock.test_the_end_of_a_lease")
class ExpiresEarly(MemoryLockDriver):
    """A grant lasts a tenth less than its ttl."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        return await super().acquire(replace(request, ttl=request.ttl * 0.9))


@caught_by("lock.test_lock.test_the_end_of_a_lease")
class TruncatesTtls(MemoryLockDriver):
    """A ttl is cut to whole seconds."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        return await super().acquire(replace(request, ttl=float(int(request.ttl))))


@caught_by("lock.test_lock.test_extending")
class ExtendsFromTheEnd(LockWithGrants):
    """Extending adds to the time that is left."""

    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        before = [grant.ends_ms for request in requests for grant in self._own(request)]
        kept = await super().extend(requests)
        for grant, ends_ms in zip([grant for request in requests for grant in self._own(request)], before, strict=True):
            grant.ends_ms += max(0, ends_ms - self._now())
        return kept


@caught_by("lock.test_lock.test_extending")
class ExtendsByHalf(MemoryLockDriver):
    """Extending sets the remaining time to half of the ttl."""

    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        return await super().extend([replace(request, ttl=request.ttl / 2) for request in requests])


@caught_by("lock.test_lock.test_extending")
class NeverShortens(LockWithGrants):
    """Extending to a shorter time is ignored."""

    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        before = [grant.ends_ms for request in requests for grant in self._own(request)]
        kept = await super().extend(requests)
        for grant, ends_ms in zip([grant for request in requests for grant in self._own(request)], before, strict=True):
            grant.ends_ms = max(grant.ends_ms, ends_ms)
        return kept


@caught_by("lock.test_lock.test_extending")
class NeverExtendsGrants(MemoryLockDriver):
    """Extending is confirmed and not carried out."""

    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        return [True] * len(requests)


@caught_by("lock.test_lock.test_extending")
class ExtendsFirstRequest(MemoryLockDriver):
    """Of several requests only the first is extended."""

    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        return (await super().extend(requests[:1])) + [True] * (len(requests) - 1)


@caught_by("lock.test_lock.test_several_names")
class ExtendsHeldNames(LockWithGrants):
    """Of several names the ones still held are extended."""

    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        kept = await super().extend(requests)
        for request in requests:
            for name in request.names:
                await super().extend([replace(request, names=(name,))])
        return kept


@caught_by("lock.test_lock.test_stale_leases", way="expired", successor=False)
class ExtendsEndedGrants(MemoryLockDriver):
    """Extending grants the lock again after its lease has ended."""

    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        return [isinstance(await self.acquire(request), Granted) for request in requests]


@caught_by("lock.test_lock.test_stale_leases", way="expired", successor=True)
class ExtendsAnyGrant(LockWithGrants):
    """Extending extends the grants of other tokens too."""

    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        kept = await super().extend(requests)
        for request in requests:
            for grant in self._grants(request):
                grant.ends_ms = max(grant.ends_ms, self._now() + 1_000_000)
        return kept


@caught_by("lock.test_lock.test_a_repeated_request")
class KeepsTheTimeOfRepeatedRequests(LockWithGrants):
    """A repeated request doesn't restart its ttl."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        before = [grant.ends_ms for grant in self._own(request)]
        reply = await super().acquire(request)
        for grant, ends_ms in zip(self._own(request), before, strict=False):
            grant.ends_ms = ends_ms
        return reply


# --- ends of grants ----------------------------------------------------------------------------------------------


@caught_by("lock.test_lock.test_stale_leases", way="expired", successor=True)
class ReleasesAnyGrant(LockWithGrants):
    """Releasing ends the grants of other tokens too."""

    async def release(self, request: LockRequest) -> bool:
        released = await super().release(request)
        for name in request.names:
            self._state(name).grants.clear()
        return released


@caught_by("lock.test_lock.test_several_names")
class ReleasesFirstName(MemoryLockDriver):
    """Of several names only the first is released."""

    async def release(self, request: LockRequest) -> bool:
        return await super().release(replace(request, names=request.names[:1]))


@caught_by("lock.test_lock.test_stale_leases", way="expired", successor=False)
class ReleasesEndedGrants(MemoryLockDriver):
    """Releasing an ended lease succeeds."""

    async def release(self, request: LockRequest) -> bool:
        await super().release(request)
        return True


@caught_by("lock.test_lock.test_stale_leases", way="broken", successor=False)
class IgnoresBreaks(MemoryLockDriver):
    """Breaking is confirmed and not carried out."""

    async def break_(self, name: str, fence: int) -> bool:
        return any(holder.fence == fence for holder in (await self.inspect(name)).holders)


@caught_by("lock.test_lock.test_permits")
class BreaksAnyFence(MemoryLockDriver):
    """Breaking ignores the fence."""

    async def break_(self, name: str, fence: int) -> bool:
        held = (await self.inspect(name)).holders
        return bool(held) and await super().break_(name, held[0].fence)


@caught_by("lock.test_lock.test_several_names")
class InspectJoinsTheQueue(MemoryLockDriver):
    """Inspecting joins the wait queue."""

    async def inspect(self, name: str) -> ailf.LockInfo:
        if (info := await super().inspect(name)).holders:
            await self.acquire(LockRequest((name,), f"inspector {info.waiting}", 1.0, waiter=WaiterInfo("", 1.0)))
        return info


@caught_by("lock.test_lock.test_stale_leases", way="expired", successor=False)
@caught_by("lock.test_lock.test_locked")
class ShowsEndedGrants(LockWithGrants):
    """Inspecting shows grants that have expired."""

    async def inspect(self, name: str) -> ailf.LockInfo:
        info = await super().inspect(name)
        held = self._grants(LockRequest((name,), "", 0.0))
        return replace(info, holders=tuple(ailf.LockHolder(each.fence, 0.0) for each in held))


@caught_by("lock.test_lock.test_several_locked")
class InspectsFirstName(MemoryLockDriver):
    """Of several names only the first is inspected."""

    async def inspect_many(self, names: Sequence[str]) -> list[ailf.LockInfo]:
        return await super().inspect_many(names[:1])
