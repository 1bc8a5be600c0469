"""Memory locks, each broken in one way, that the contract suite must catch."""

from collections.abc import Sequence
from typing import Any

import attrs

import ailf
from ailf.driver import Bid, Denied, Grant, Place
from ailf_memory.backend import MemoryDriver
from ailf_memory.lock import MemoryLockDriver
from tests.contract.broken import BrokenHarness, with_driver


def with_lock(lock: type[MemoryLockDriver]) -> type[BrokenHarness]:
    """Return a harness with this lock driver."""

    class Driver(MemoryDriver):
        def lock(self) -> MemoryLockDriver:
            return lock(self)

    return with_driver(type(lock.__name__, (Driver,), {}))


class _Driver(MemoryLockDriver):
    """What helps to break something."""

    def _grants(self, bid: Bid) -> list[Any]:
        """Return all grants of the names."""
        return [grant for name in bid.names for grant in self._state(name).grants.values()]

    def _mine(self, bid: Bid) -> list[Any]:
        """Return the grants of the token, ended or not."""
        states = [self._state(name) for name in bid.names]
        return [state.grants[bid.token] for state in states if bid.token in state.grants]

    def _number(self, bid: Bid, fence: int) -> Grant:
        """Give the token's grant another fence."""
        for name in bid.names:
            self._state(name).fence = fence
        for grant in self._mine(bid):
            grant.fence = fence
        return Grant(fence)


# --- who has it --------------------------------------------------------------------------------------------------


class GrantsTwice(MemoryLockDriver):
    """One more may have it."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        return await super().acquire(attrs.evolve(bid, permits=bid.permits + 1))


class IgnoresPermits(MemoryLockDriver):
    """A semaphore is a lock."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        return await super().acquire(attrs.evolve(bid, permits=1))


class SharesLocks(MemoryLockDriver):
    """All names are one."""

    def _state(self, name: str) -> Any:
        return super()._state("all")

    async def inspect(self, name: str) -> ailf.LockInfo:
        return await super().inspect("all")


class GrantsParts(MemoryLockDriver):
    """Of several names those are taken that are free."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        reply = await super().acquire(bid)
        if isinstance(reply, Denied):
            for name in bid.names:
                await super().acquire(attrs.evolve(bid, names=(name,), place=None))
        return reply


class LooksAtOne(MemoryLockDriver):
    """Of several names only the first counts."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        return await super().acquire(attrs.evolve(bid, names=bid.names[:1]))


# --- fences ------------------------------------------------------------------------------------------------------


class RepeatsFences(_Driver):
    """A fence is the time in milliseconds."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        reply = await super().acquire(bid)
        return self._number(bid, self._now()) if isinstance(reply, Grant) else reply


class ForgetsFences(_Driver):
    """Fences are counted, anew after a grant has run out."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        known = max(self._state(name).fence for name in bid.names)
        known *= all(grant.ends_ms > self._now() for grant in self._grants(bid))
        known = max((grant.fence - 1 for grant in self._mine(bid)), default=known)
        reply = await super().acquire(bid)
        return self._number(bid, known + 1) if isinstance(reply, Grant) else reply


class NumbersTries(_Driver):
    """The same bid again has another fence."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        again = bool(self._mine(bid))
        reply = await super().acquire(bid)
        return self._number(bid, reply.fence + 1) if again and isinstance(reply, Grant) else reply


class NumbersNames(_Driver):
    """The fence of several names is that of the first."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        known = [self._state(name).fence for name in bid.names]
        reply = await super().acquire(bid)
        if isinstance(reply, Grant) and len(known) > 1:
            return self._number(bid, known[0] + 1)
        return reply


# --- how long ----------------------------------------------------------------------------------------------------


class EndsLate(MemoryLockDriver):
    """A grant lasts longer than was asked."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        return await super().acquire(attrs.evolve(bid, ttl=bid.ttl + 0.005))


class EndsEarly(MemoryLockDriver):
    """A grant lasts a tenth less than was asked."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        return await super().acquire(attrs.evolve(bid, ttl=bid.ttl * 0.9))


class CutsSeconds(MemoryLockDriver):
    """A grant lasts whole seconds."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        return await super().acquire(attrs.evolve(bid, ttl=float(int(bid.ttl))))


class AddsTime(_Driver):
    """Extending adds to what is left."""

    async def extend(self, bids: Sequence[Bid]) -> list[bool]:
        before = [grant.ends_ms for bid in bids for grant in self._mine(bid)]
        kept = await super().extend(bids)
        for grant, ends_ms in zip([grant for bid in bids for grant in self._mine(bid)], before, strict=True):
            grant.ends_ms += max(0, ends_ms - self._now())
        return kept


class ExtendsByHalf(MemoryLockDriver):
    """Extending gives half of the time."""

    async def extend(self, bids: Sequence[Bid]) -> list[bool]:
        return await super().extend([attrs.evolve(bid, ttl=bid.ttl / 2) for bid in bids])


class NeverShortens(_Driver):
    """Extending to less is ignored."""

    async def extend(self, bids: Sequence[Bid]) -> list[bool]:
        before = [grant.ends_ms for bid in bids for grant in self._mine(bid)]
        kept = await super().extend(bids)
        for grant, ends_ms in zip([grant for bid in bids for grant in self._mine(bid)], before, strict=True):
            grant.ends_ms = max(grant.ends_ms, ends_ms)
        return kept


class NeverExtends(MemoryLockDriver):
    """Extending does nothing and says it did."""

    async def extend(self, bids: Sequence[Bid]) -> list[bool]:
        return [True] * len(bids)


class ExtendsOne(MemoryLockDriver):
    """Of several grants only the first is extended."""

    async def extend(self, bids: Sequence[Bid]) -> list[bool]:
        return (await super().extend(bids[:1])) + [True] * (len(bids) - 1)


class ExtendsParts(_Driver):
    """Of several names those are extended that are left."""

    async def extend(self, bids: Sequence[Bid]) -> list[bool]:
        kept = await super().extend(bids)
        for bid in bids:
            for name in bid.names:
                await super().extend([attrs.evolve(bid, names=(name,))])
        return kept


class RevivesLocks(MemoryLockDriver):
    """Extending brings back what has ended."""

    async def extend(self, bids: Sequence[Bid]) -> list[bool]:
        return [isinstance(await self.acquire(bid), Grant) for bid in bids]


class ExtendsOthers(_Driver):
    """Extending helps whoever has it."""

    async def extend(self, bids: Sequence[Bid]) -> list[bool]:
        kept = await super().extend(bids)
        for bid in bids:
            for grant in self._grants(bid):
                grant.ends_ms = max(grant.ends_ms, self._now() + 1_000_000)
        return kept


class KeepsTime(_Driver):
    """The same bid again doesn't begin its time anew."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        before = [grant.ends_ms for grant in self._mine(bid)]
        reply = await super().acquire(bid)
        for grant, ends_ms in zip(self._mine(bid), before, strict=False):
            grant.ends_ms = ends_ms
        return reply


# --- how it ends -------------------------------------------------------------------------------------------------


class ReleasesOthers(_Driver):
    """Releasing ends the grant of whoever has it."""

    async def release(self, bid: Bid) -> bool:
        mine = await super().release(bid)
        for name in bid.names:
            self._state(name).grants.clear()
        return mine


class ReleasesParts(MemoryLockDriver):
    """Of several names only the first is released."""

    async def release(self, bid: Bid) -> bool:
        return await super().release(attrs.evolve(bid, names=bid.names[:1]))


class ReleasesGladly(MemoryLockDriver):
    """Releasing what has ended is called a success."""

    async def release(self, bid: Bid) -> bool:
        await super().release(bid)
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
            await self.acquire(Bid((name,), f"inspector {info.waiting}", 1.0, place=Place("", 1.0)))
        return info


class ShowsTheEnded(_Driver):
    """Inspecting shows grants that have run out."""

    async def inspect(self, name: str) -> ailf.LockInfo:
        info = await super().inspect(name)
        held = self._grants(Bid((name,), "", 0.0))
        return attrs.evolve(info, holders=tuple(ailf.LockHolder(each.fence, 0.0) for each in held))


# --- the line ----------------------------------------------------------------------------------------------------


class WakesNobody(MemoryLockDriver):
    """Whoever waits looks again by himself."""

    def _wake(self, *args: Any, **options: Any) -> None:
        return


class WakesEverybody(_Driver):
    """All who wait are woken, and one of them gets it."""

    async def release(self, bid: Bid) -> bool:
        mine = await super().release(bid)
        for name in bid.names:
            for token, waiter in self._state(name).line.items():
                self._store.publish(waiter.channel, token.encode())
        return mine


class WakesOnlyOne(MemoryLockDriver):
    """Where two permits are free one waiter is woken."""

    woken: Any = None

    def _wake(self, state: Any, *args: Any, **options: Any) -> None:
        if type(self).woken is not state or len(state.grants) == 0:
            type(self).woken = state
            super()._wake(state, *args, **options)


class KeepsWakeUps(MemoryLockDriver):
    """Who is woken in vain, wanting more than that, doesn't pass it on."""

    def _wake(self, *args: Any, after: str | None = None, **options: Any) -> None:
        if after is None:
            super()._wake(*args, **options)


class LeavesSilently(_Driver):
    """Who leaves the line when it was his turn doesn't pass it on."""

    async def release(self, bid: Bid) -> bool:
        if self._mine(bid):
            return await super().release(bid)
        for name in bid.names:
            self._state(name).line.pop(bid.token, None)
        return False


class LetsBarge(MemoryLockDriver):
    """Fair or not, whoever comes at the right time has it."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        return await super().acquire(attrs.evolve(bid, fair=False))


class LastComeFirst(_Driver):
    """The line is a stack."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        reply = await super().acquire(bid)
        for name in bid.names if isinstance(reply, Denied) and bid.place else ():
            line = self._state(name).line
            for token in [each for each in line if each != bid.token]:
                line[token] = line.pop(token)
        return reply


class QueuesAnew(_Driver):
    """Who comes again stands at the end."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        reply = await super().acquire(bid)
        for name in bid.names if isinstance(reply, Denied) and bid.place else ():
            line = self._state(name).line
            line[bid.token] = line.pop(bid.token)
        return reply


class QueuesTries(MemoryLockDriver):
    """Who doesn't want to wait is put in line too."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        return await super().acquire(attrs.evolve(bid, place=bid.place or Place("", 60.0)))


class NeverLeaves(_Driver):
    """A place in line is kept when its owner has gone."""

    async def release(self, bid: Bid) -> bool:
        lines = [self._state(name).line for name in bid.names]
        before = [line.get(bid.token) for line in lines]
        mine = await super().release(bid)
        for line, waiter in zip(lines, before, strict=True):
            if waiter is not None:
                line[bid.token] = waiter
        return mine


class KeepsPlaces(_Driver):
    """Who has got it stays in line."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        lines = [self._state(name).line for name in bid.names]
        before = [line.get(bid.token) for line in lines]
        reply = await super().acquire(bid)
        for line, waiter in zip(lines, before, strict=True):
            if waiter is not None:
                line[bid.token] = waiter
        return reply


class KeepsTheDead(MemoryLockDriver):
    """A place in line never ends by itself."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        place = bid.place and attrs.evolve(bid.place, lease=1e9)
        return await super().acquire(attrs.evolve(bid, place=place))


class GivesNoTime(MemoryLockDriver):
    """It isn't told when another try may do better."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        reply = await super().acquire(bid)
        return Denied(1e9) if isinstance(reply, Denied) else reply


class KeepsHalfAPlace(_Driver):
    """Who lost his place in one line keeps that in another."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        lines = [self._state(name).line for name in bid.names]
        orders = [list(line) for line in lines]
        reply = await super().acquire(bid)
        for line, order in zip(lines, orders, strict=True):
            for token in order:
                if token in line:
                    line[token] = line.pop(token)
            for token in [each for each in line if each not in order]:
                line[token] = line.pop(token)
        return reply
