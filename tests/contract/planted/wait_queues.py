"""Memory locks whose lines of waiters are broken, each in one way, that the contract suite must catch."""

import contextlib
from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from ailf.driver import Denied, Granted, LockRequest, WaiterInfo
from ailf_memory.lock import MemoryLockDriver
from ailf_memory.state.lock import LockState
from ailf_memory.state.wait_queue import WaitQueue
from tests.contract.planted.locks import Broken


class _OnLine(MemoryLockDriver):
    """What helps to break the lines themselves.

    Attributes:
        line: What the lines are.
    """

    line: type[WaitQueue] = WaitQueue

    def _state(self, name: str) -> LockState:
        state = super()._state(name)
        state.line.__class__ = self.line
        return state


class Silent(WaitQueue):
    """It wakes nobody."""

    def wake(self, *_: Any, **__: Any) -> None:
        return


class WakesNobody(_OnLine):
    """Whoever waits looks again by himself."""

    line = Silent


class WakesEverybody(Broken):
    """All who wait are woken, and one of them gets it."""

    async def release(self, request: LockRequest) -> bool:
        mine = await super().release(request)
        for name in request.names:
            for token, waiter in self._state(name).line.waiters.items():
                self._store.publish(waiter.channel, token.encode())
        return mine


class WakesOnlyOne(MemoryLockDriver):
    """Where two permits are free one waiter is woken."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        lines = [self._state(name).line for name in request.names]
        for line in lines:
            line.__class__ = Silent
        try:
            return await super().acquire(request)
        finally:
            for line in lines:
                line.__class__ = WaitQueue


class Selfish(WaitQueue):
    """It wakes nobody behind another."""

    def wake(self, now_ms: int, after: str | None = None) -> None:
        if after is None:
            super().wake(now_ms)


class KeepsWakeUps(_OnLine):
    """Who is woken in vain, wanting more than that, doesn't pass it on."""

    line = Selfish


class LeavesSilently(Broken):
    """Who leaves the line when it was his turn doesn't pass it on."""

    async def release(self, request: LockRequest) -> bool:
        if self._mine(request):
            return await super().release(request)
        for name in request.names:
            self._state(name).line.leave(request.token)
        return False


class LetsBarge(MemoryLockDriver):
    """Fair or not, whoever comes at the right time has it."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        return await super().acquire(replace(request, fair=False))


class LastComeFirst(Broken):
    """The line is a stack."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        reply = await super().acquire(request)
        for name in request.names if isinstance(reply, Denied) and request.waiter else ():
            line = self._state(name).line.waiters
            for token in [each for each in line if each != request.token]:
                line[token] = line.pop(token)
        return reply


class QueuesAnew(Broken):
    """Who comes again stands at the end."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        reply = await super().acquire(request)
        for name in request.names if isinstance(reply, Denied) and request.waiter else ():
            line = self._state(name).line.waiters
            line[request.token] = line.pop(request.token)
        return reply


class QueuesTries(MemoryLockDriver):
    """Who doesn't want to wait is put in line too."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        return await super().acquire(replace(request, waiter=request.waiter or WaiterInfo("", 60.0)))


class _StaysInLine(Broken):
    """What helps to leave somebody in line."""

    @contextlib.contextmanager
    def _staying(self, request: LockRequest) -> Iterator[None]:
        lines = [self._state(name).line.waiters for name in request.names]
        before = [line.get(request.token) for line in lines]
        yield
        for line, waiter in zip(lines, before, strict=True):
            if waiter is not None:
                line[request.token] = waiter


class NeverLeaves(_StaysInLine):
    """A place in line is kept when its owner has gone."""

    async def release(self, request: LockRequest) -> bool:
        with self._staying(request):
            return await super().release(request)


class KeepsPlaces(_StaysInLine):
    """Who has got it stays in line."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        with self._staying(request):
            return await super().acquire(request)


class KeepsTheDead(MemoryLockDriver):
    """A place in line never ends by itself."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        place = request.waiter and replace(request.waiter, lease=1e9)
        return await super().acquire(replace(request, waiter=place))


class GivesNoTime(MemoryLockDriver):
    """It isn't told when another try may do better."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        reply = await super().acquire(request)
        return Denied(1e9) if isinstance(reply, Denied) else reply


class KeepsHalfAPlace(Broken):
    """Who lost his place in one line keeps that in another."""

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        lines = [self._state(name).line.waiters for name in request.names]
        orders = [list(line) for line in lines]
        reply = await super().acquire(request)
        for line, order in zip(lines, orders, strict=True):
            for token in order:
                if token in line:
                    line[token] = line.pop(token)
            for token in [each for each in line if each not in order]:
                line[token] = line.pop(token)
        return reply
