"""Locks in memory: the same transitions as elsewhere, each one step under the store's lock."""

from collections.abc import Sequence

import msgspec

from ailf.checks import to_ms
from ailf.driver import Bid, Denied, Grant, LockDriver
from ailf.values import LockHolder, LockInfo
from ailf_memory.line import Line
from ailf_memory.store import StoreHandle, sweep

__all__ = ["LockState", "MemoryLockDriver"]


IDLE_MS = 86_400_000
"""For how long the last fence is kept: after that the next one is higher anyway (L2)."""


class _Grant(msgspec.Struct):
    """Who has it: the fence, and when it ends."""

    fence: int
    ends_ms: int


class LockState:
    """One lock: who has it, the last fence, who is in line."""

    def __init__(self, line: Line) -> None:
        self.grants: dict[str, _Grant] = {}
        self.fence = 0
        self.line = line

    def grant_of(self, token: str, now_ms: int) -> _Grant | None:
        """Return a token's grant, while it lasts."""
        grant = self.grants.get(token)
        return grant if grant is not None and grant.ends_ms > now_ms else None

    def expire(self, now_ms: int) -> None:
        """Let what has ended be gone."""
        for token in [each for each, grant in self.grants.items() if grant.ends_ms <= now_ms]:
            del self.grants[token]

    def idle(self, now_ms: int) -> bool:
        """Tell whether nobody has it, wants it, or had it within a day."""
        self.expire(now_ms)
        return not self.grants and self.line.head(now_ms) is None and self.fence < (now_ms - IDLE_MS) * 1000

    def blocked_until(self, bid: Bid, now_ms: int) -> int | None:
        """Return when something in the way of a bid changes by itself; None where nothing is."""
        if self.grants:
            self.expire(now_ms)
            others = [grant.ends_ms for token, grant in self.grants.items() if token != bid.token]
            if len(others) >= bid.permits:
                return min(others)
        first = self.line.head(now_ms) if bid.fair else None
        return None if first is None or first == bid.token else self.line.waiters[first].alive_ms


class MemoryLockDriver(LockDriver):
    """The transitions of locks."""

    def __init__(self, handle: StoreHandle) -> None:
        self._handle = handle
        self._store = handle.store

    def _state(self, name: str) -> LockState:
        state = self._store.locks.get(name)
        if state is None:
            sweep(self._store.locks, self._now())
            state = self._store.locks[name] = LockState(Line(self._store))
        return state

    def _now(self) -> int:
        if self._handle.closed:
            self._handle.check_open()
        return self._store.clock.now_ms()

    async def acquire(self, bid: Bid) -> Grant | Denied:
        with self._store.lock:
            now_ms = self._now()
            states = [self._state(name) for name in bid.names]
            held, blocked = [], []
            for state in states:
                if (grant := state.grant_of(bid.token, now_ms)) is not None:
                    held.append(grant)
                if (until := state.blocked_until(bid, now_ms)) is not None:
                    blocked.append(until)
            if len(held) == len(states):  # the same bid again: the same grant
                for grant in held:
                    grant.ends_ms = now_ms + to_ms(bid.ttl)
                return Grant(held[0].fence)
            if blocked:
                self._stand_in_line(bid, states, now_ms, min(blocked))
                return Denied(max(1, min(blocked) - now_ms) / 1000)
            return Grant(self._grant(bid, states, now_ms))

    def _grant(self, bid: Bid, states: Sequence[LockState], now_ms: int) -> int:
        fence, ends_ms = now_ms * 1000, now_ms + to_ms(bid.ttl)
        for state in states:
            if state.fence >= fence:
                fence = state.fence + 1
        for state in states:
            state.fence = fence
            state.grants[bid.token] = _Grant(fence, ends_ms)
            if not state.line.waiters:
                continue
            state.line.leave(bid.token)
            if len(state.grants) < bid.permits:  # there is room for the next one
                state.line.wake(now_ms)
            else:
                state.line.hurry(min([grant.ends_ms for grant in state.grants.values()]), now_ms)
        return fence

    def _stand_in_line(self, bid: Bid, states: Sequence[LockState], now_ms: int, until_ms: int) -> None:
        if bid.place is None:
            return
        kept = all(state.line.alive(bid.token, now_ms) for state in states)
        for state in states:
            if not kept:  # who lost his place in one line has lost it in all, or two could wait for each other
                state.line.leave(bid.token)
            state.line.stand(bid.token, bid.place, now_ms, until_ms)
            if len(state.grants) < bid.permits and not bid.fair:  # free, but not for us: another may want only this
                state.line.wake(now_ms, after=bid.token)

    async def extend(self, bids: Sequence[Bid]) -> list[bool]:
        with self._store.lock:
            now_ms = self._now()
            kept = []
            for bid in bids:
                grants = [self._state(name).grant_of(bid.token, now_ms) for name in bid.names]
                mine = all(grant is not None for grant in grants)
                for grant in grants:
                    if mine and grant is not None:
                        grant.ends_ms = now_ms + to_ms(bid.ttl)
                kept.append(mine)
            return kept

    async def release(self, bid: Bid) -> bool:
        with self._store.lock:
            now_ms = self._now()
            kept = True
            for name in bid.names:
                kept = self._release(self._state(name), bid.token, now_ms) and kept
            return kept

    def _release(self, state: LockState, token: str, now_ms: int) -> bool:
        mine = state.grant_of(token, now_ms) is not None
        state.grants.pop(token, None)
        if state.grants:
            state.expire(now_ms)
        if state.line.waiters:
            first = state.line.head(now_ms)
            state.line.leave(token)
            if mine or first == token:
                state.line.wake(now_ms)
        return mine

    async def inspect(self, name: str) -> LockInfo:
        with self._store.lock:
            now_ms = self._now()
            state = self._store.locks.get(name) or LockState(Line(self._store))
            held = sorted(
                (each.fence, each.ends_ms - now_ms) for each in state.grants.values() if each.ends_ms > now_ms
            )
            return LockInfo(tuple(LockHolder(fence, left / 1000) for fence, left in held), state.line.count(now_ms))

    async def break_(self, name: str, fence: int) -> bool:
        with self._store.lock:
            now_ms = self._now()
            state = self._state(name)
            state.expire(now_ms)
            token = next((each for each, grant in state.grants.items() if grant.fence == fence), None)
            broken = token is not None and self._release(state, token, now_ms)
            lease = self._store.leases.get(token or "")
        if broken and lease is not None:
            lease.take()
        return broken
