"""Memory locks, each broken in one way, that the contract suite must catch."""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

import ailf
from ailf.driver import Denied, Granted, LockRequest, WaiterInfo
from ailf_memory.driver import MemoryDriver
from ailf_memory.lock import MemoryLockDriver
from tests.contract.planted.base import BrokenHarness, with_driver


def with_lock(lock: type[MemoryLockDriver]) -> type[BrokenHarness]:
    """Return a harness with this lock driver."""

    class Driver(MemoryDriver):
        def lock(self) -> MemoryLockDriver:
            return lock(self.handle)

    return with_driver(type(lock.__name__, (Driver,), {}))


class Broken(MemoryLockDriver):
    """What helps to break something."""

    def _grants(self, request: LockRequest) -> list[Any]:
        """Return all grants of the names."""
        return [grant for name in request.names for grant in self._state(name).grants.values()]

    def _mine(self, request: LockRequest) -> list[Any]:
        """Return the grants of the token, ended or not."""
        states = [self._state(name) for name in request.names]
        return [state.grants[request.token] for state in states if request.token in state.grants]

    def _number(self, request: LockRequest, fence: int) -> Granted:
        """Give the token's grant another fence."""
        for name in request.names:
            self._state(name).fence = fence
        for grant in self._mine(request):
            grant.fence = fence
        return Granted(fence)


# --- how it is entered -------------------------------------------------------------------------------------------


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


class EntersUnlocked(ailf.Backend):
    """The body of a `with` block runs without the lock."""

    lock_class = _UnlockedLock


class AsyncEntersUnlocked(ailf.AsyncBackend):
    """The body of a `with` block runs without the lock."""

    lock_class = _AsyncUnlockedLock


class _OneEntry:
    """Keeps the entries of all threads in one place."""

    def __init__(self) -> None:
        self.holdings: list[Any] = []


class _OneTask(dict[Any, Any]):
    """Keeps the entries of all tasks in one place."""

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


class SharesEntries(ailf.Backend):
    """Leaving a lock in any thread or task ends the latest entry of all."""

    lock_class = _SharedLock


class AsyncSharesEntries(ailf.AsyncBackend):
    """Leaving a lock in any thread or task ends the latest entry of all."""

    lock_class = _AsyncSharedLock


# --- who has it --------------------------------------------------------------------------------------------------


class GrantsTwice(MemoryLockDriver):
    """One more may have it."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        return await super().acquire(replace(request, permits=request.permits + 1))


class IgnoresPermits(MemoryLockDriver):
    """A semaphore is a lock."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        return await super().acquire(replace(request, permits=1))


class SharesLocks(MemoryLockDriver):
    """All names are one."""

    def _state(self, name: str) -> Any:
        return super()._state("all")

    async def inspect(self, name: str) -> ailf.LockInfo:
        return await super().inspect("all")


class GrantsParts(MemoryLockDriver):
    """Of several names those are taken that are free."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        reply = await super().acquire(request)
        if isinstance(reply, Denied):
            for name in request.names:
                await super().acquire(replace(request, names=(name,), waiter=None))
        return reply


class LooksAtOne(MemoryLockDriver):
    """Of several names only the first counts."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        return await super().acquire(replace(request, names=request.names[:1]))


# --- fences ------------------------------------------------------------------------------------------------------


class RepeatsFences(Broken):
    """A fence is the time in milliseconds."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        reply = await super().acquire(request)
        return self._number(request, self._now()) if isinstance(reply, Granted) else reply


class ForgetsFences(Broken):
    """Fences are counted, anew after a grant has run out."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        known = max(self._state(name).fence for name in request.names)
        known *= all(grant.ends_ms > self._now() for grant in self._grants(request))
        known = max((grant.fence - 1 for grant in self._mine(request)), default=known)
        reply = await super().acquire(request)
        return self._number(request, known + 1) if isinstance(reply, Granted) else reply


class NumbersTries(Broken):
    """The same bid again has another fence."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        again = bool(self._mine(request))
        reply = await super().acquire(request)
        return self._number(request, reply.fence + 1) if again and isinstance(reply, Granted) else reply


class NumbersNames(Broken):
    """The fence of several names is that of the first."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        known = [self._state(name).fence for name in request.names]
        reply = await super().acquire(request)
        if isinstance(reply, Granted) and len(known) > 1:
            return self._number(request, known[0] + 1)
        return reply


# --- how long ----------------------------------------------------------------------------------------------------


class EndsLate(MemoryLockDriver):
    """A grant lasts longer than was asked."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        return await super().acquire(replace(request, ttl=request.ttl + 0.005))


class EndsEarly(MemoryLockDriver):
    """A grant lasts a tenth less than was asked."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        return await super().acquire(replace(request, ttl=request.ttl * 0.9))


class CutsSeconds(MemoryLockDriver):
    """A grant lasts whole seconds."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        return await super().acquire(replace(request, ttl=float(int(request.ttl))))


class AddsTime(Broken):
    """Extending adds to what is left."""

    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        before = [grant.ends_ms for request in requests for grant in self._mine(request)]
        kept = await super().extend(requests)
        for grant, ends_ms in zip(
            [grant for request in requests for grant in self._mine(request)], before, strict=True
        ):
            grant.ends_ms += max(0, ends_ms - self._now())
        return kept


class ExtendsByHalf(MemoryLockDriver):
    """Extending gives half of the time."""

    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        return await super().extend([replace(request, ttl=request.ttl / 2) for request in requests])


class NeverShortens(Broken):
    """Extending to less is ignored."""

    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        before = [grant.ends_ms for request in requests for grant in self._mine(request)]
        kept = await super().extend(requests)
        for grant, ends_ms in zip(
            [grant for request in requests for grant in self._mine(request)], before, strict=True
        ):
            grant.ends_ms = max(grant.ends_ms, ends_ms)
        return kept


class NeverExtends(MemoryLockDriver):
    """Extending does nothing and says it did."""

    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        return [True] * len(requests)


class ExtendsOne(MemoryLockDriver):
    """Of several grants only the first is extended."""

    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        return (await super().extend(requests[:1])) + [True] * (len(requests) - 1)


class ExtendsParts(Broken):
    """Of several names those are extended that are left."""

    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        kept = await super().extend(requests)
        for request in requests:
            for name in request.names:
                await super().extend([replace(request, names=(name,))])
        return kept


class RevivesLocks(MemoryLockDriver):
    """Extending brings back what has ended."""

    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        return [isinstance(await self.acquire(request), Granted) for request in requests]


class ExtendsOthers(Broken):
    """Extending helps whoever has it."""

    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        kept = await super().extend(requests)
        for request in requests:
            for grant in self._grants(request):
                grant.ends_ms = max(grant.ends_ms, self._now() + 1_000_000)
        return kept


class KeepsTime(Broken):
    """The same bid again doesn't begin its time anew."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        before = [grant.ends_ms for grant in self._mine(request)]
        reply = await super().acquire(request)
        for grant, ends_ms in zip(self._mine(request), before, strict=False):
            grant.ends_ms = ends_ms
        return reply


# --- how it ends -------------------------------------------------------------------------------------------------


class ReleasesOthers(Broken):
    """Releasing ends the grant of whoever has it."""

    async def release(self, request: LockRequest) -> bool:
        mine = await super().release(request)
        for name in request.names:
            self._state(name).grants.clear()
        return mine


class ReleasesParts(MemoryLockDriver):
    """Of several names only the first is released."""

    async def release(self, request: LockRequest) -> bool:
        return await super().release(replace(request, names=request.names[:1]))


class ReleasesGladly(MemoryLockDriver):
    """Releasing what has ended is called a success."""

    async def release(self, request: LockRequest) -> bool:
        await super().release(request)
        return True


class IgnoresBreaks(MemoryLockDriver):
    """Breaking does nothing and says it did."""

    async def break_(self, name: str, fence: int) -> bool:
        return any(holder.fence == fence for holder in (await self.inspect(name)).holders)


class BreaksAnybody(MemoryLockDriver):
    """Breaking doesn't look at the fence."""

    async def break_(self, name: str, fence: int) -> bool:
        held = (await self.inspect(name)).holders
        return bool(held) and await super().break_(name, held[0].fence)


class InspectsByTrying(MemoryLockDriver):
    """Inspecting stands in line."""

    async def inspect(self, name: str) -> ailf.LockInfo:
        if (info := await super().inspect(name)).holders:
            await self.acquire(LockRequest((name,), f"inspector {info.waiting}", 1.0, waiter=WaiterInfo("", 1.0)))
        return info


class ShowsTheEnded(Broken):
    """Inspecting shows grants that have run out."""

    async def inspect(self, name: str) -> ailf.LockInfo:
        info = await super().inspect(name)
        held = self._grants(LockRequest((name,), "", 0.0))
        return replace(info, holders=tuple(ailf.LockHolder(each.fence, 0.0) for each in held))
