"""Memory locks whose lines of waiters are broken, each in one way, that the contract suite must catch."""

import contextlib
from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from ailf.driver import Bid, Denied, Grant, Place
from ailf_memory.lock import MemoryLockDriver
from ailf_memory.state.lock import LockState
from ailf_memory.state.wait_queue import Line
from tests.contract.planted.locks import Broken


class _OnLine(MemoryLockDriver):
    """What helps to break the lines themselves.

    Attributes:
        line: What the lines are.
    """

    line: type[Line] = Line

    def _state(self, name: str) -> LockState:
        state = super()._state(name)
        state.line.__class__ = self.line
        return state


class Silent(Line):
    """It wakes nobody."""

    def wake(self, *_: Any, **__: Any) -> None:
        return


class WakesNobody(_OnLine):
    """Whoever waits looks again by himself."""

    line = Silent


class WakesEverybody(Broken):
    """All who wait are woken, and one of them gets it."""

    async def release(self, bid: Bid) -> bool:
        mine = await super().release(bid)
        for name in bid.names:
            for token, waiter in self._state(name).line.waiters.items():
                self._store.publish(waiter.channel, token.encode())
        return mine


class WakesOnlyOne(MemoryLockDriver):
    """Where two permits are free one waiter is woken."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        lines = [self._state(name).line for name in bid.names]
        for line in lines:
            line.__class__ = Silent
        try:
            return await super().acquire(bid)
        finally:
            for line in lines:
                line.__class__ = Line


class Selfish(Line):
    """It wakes nobody behind another."""

    def wake(self, now_ms: int, after: str | None = None) -> None:
        if after is None:
            super().wake(now_ms)


class KeepsWakeUps(_OnLine):
    """Who is woken in vain, wanting more than that, doesn't pass it on."""

    line = Selfish


class LeavesSilently(Broken):
    """Who leaves the line when it was his turn doesn't pass it on."""

    async def release(self, bid: Bid) -> bool:
        if self._mine(bid):
            return await super().release(bid)
        for name in bid.names:
            self._state(name).line.leave(bid.token)
        return False


class LetsBarge(MemoryLockDriver):
    """Fair or not, whoever comes at the right time has it."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        return await super().acquire(replace(bid, fair=False))


class LastComeFirst(Broken):
    """The line is a stack."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        reply = await super().acquire(bid)
        for name in bid.names if isinstance(reply, Denied) and bid.place else ():
            line = self._state(name).line.waiters
            for token in [each for each in line if each != bid.token]:
                line[token] = line.pop(token)
        return reply


class QueuesAnew(Broken):
    """Who comes again stands at the end."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        reply = await super().acquire(bid)
        for name in bid.names if isinstance(reply, Denied) and bid.place else ():
            line = self._state(name).line.waiters
            line[bid.token] = line.pop(bid.token)
        return reply


class QueuesTries(MemoryLockDriver):
    """Who doesn't want to wait is put in line too."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        return await super().acquire(replace(bid, place=bid.place or Place("", 60.0)))


class _StaysInLine(Broken):
    """What helps to leave somebody in line."""

    @contextlib.contextmanager
    def _staying(self, bid: Bid) -> Iterator[None]:
        lines = [self._state(name).line.waiters for name in bid.names]
        before = [line.get(bid.token) for line in lines]
        yield
        for line, waiter in zip(lines, before, strict=True):
            if waiter is not None:
                line[bid.token] = waiter


class NeverLeaves(_StaysInLine):
    """A place in line is kept when its owner has gone."""

    async def release(self, bid: Bid) -> bool:
        with self._staying(bid):
            return await super().release(bid)


class KeepsPlaces(_StaysInLine):
    """Who has got it stays in line."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        with self._staying(bid):
            return await super().acquire(bid)


class KeepsTheDead(MemoryLockDriver):
    """A place in line never ends by itself."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        place = bid.place and replace(bid.place, lease=1e9)
        return await super().acquire(replace(bid, place=place))


class GivesNoTime(MemoryLockDriver):
    """It isn't told when another try may do better."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        reply = await super().acquire(bid)
        return Denied(1e9) if isinstance(reply, Denied) else reply


class KeepsHalfAPlace(Broken):
    """Who lost his place in one line keeps that in another."""

    async def acquire(self, bid: Bid) -> Grant | Denied:
        lines = [self._state(name).line.waiters for name in bid.names]
        orders = [list(line) for line in lines]
        reply = await super().acquire(bid)
        for line, order in zip(lines, orders, strict=True):
            for token in order:
                if token in line:
                    line[token] = line.pop(token)
            for token in [each for each in line if each not in order]:
                line[token] = line.pop(token)
        return reply
