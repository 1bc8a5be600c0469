"""The driver of locks in memory. Each step is one transition of `LockState`, under the store's lock."""

from collections.abc import Sequence
from typing import ClassVar

from ailf.checks import to_ms
from ailf.driver import Denied, Granted, LockDriver, LockRequest
from ailf.driver.listing import join_cursor, split_cursor
from ailf.values import HeldLock, LockHolder, LockInfo, Page
from ailf_memory.state.lock import GrantState, LockState
from ailf_memory.state.wait_queue import WaitQueue
from ailf_memory.store import StoreHandle

__all__ = ["MemoryLockDriver"]


class MemoryLockDriver(LockDriver):
    """Locks and semaphores in memory.

    Attributes:
        queue_class: The class of the wait queues of new locks.
    """

    queue_class: ClassVar[type[WaitQueue]] = WaitQueue

    def __init__(self, handle: StoreHandle) -> None:
        self._handle = handle
        self._store = handle.store

    def _state(self, name: str) -> LockState:
        state = self._store.locks.get(name)
        return self._store.locks.add(name, LockState(self.queue_class())) if state is None else state

    def _states(self, names: Sequence[str], now_ms: int) -> list[LockState]:
        """Return the states of names. Idle states are removed before, as these may be among them."""
        locks = self._store.locks
        for name in names:
            if name not in locks:
                locks.sweep(now_ms)
        return [self._state(name) for name in names]

    def _now(self) -> int:
        if self._handle.closed:
            self._handle.check_open()
        return self._store.clock.now_ms()

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        with self._store.lock:
            now_ms = self._now()
            states = self._states(request.names, now_ms)
            held, blocked = [], []
            for state in states:
                if (grant := state.grant_of(request.token, now_ms)) is not None:
                    held.append(grant)
                if (until := state.blocked_until(request, now_ms)) is not None:
                    blocked.append(until)
            if len(held) == len(states):  # a repeated request: the same grant
                for grant in held:
                    grant.ends_ms = now_ms + to_ms(request.ttl)
                return Granted(held[0].fence)
            if blocked:
                self._enqueue(request, states, now_ms, min(blocked))
                return Denied(max(1, min(blocked) - now_ms) / 1000)
            return Granted(self._grant(request, states, now_ms))

    def _grant(self, request: LockRequest, states: Sequence[LockState], now_ms: int) -> int:
        fence, ends_ms = now_ms * 1000, now_ms + to_ms(request.ttl)
        for state in states:
            if state.fence >= fence:
                fence = state.fence + 1
        for state in states:
            state.fence = fence
            state.grants[request.token] = GrantState(fence, ends_ms)
            if not state.queue.waiters:
                continue
            state.queue.leave(request.token)
            if len(state.grants) < request.permits:  # there is a permit for the next waiter
                state.queue.wake(self._store.publish, now_ms)
            else:
                first_ends_ms = min([grant.ends_ms for grant in state.grants.values()])
                state.queue.wake_if_earlier(self._store.publish, first_ends_ms, now_ms)
        return fence

    def _enqueue(self, request: LockRequest, states: Sequence[LockState], now_ms: int, until_ms: int) -> None:
        if request.waiter is None:
            return
        kept = all(state.queue.alive(request.token, now_ms) for state in states)
        for state in states:
            if not kept:  # a waiter that lost its place in one queue loses all, or two could wait for each other
                state.queue.leave(request.token)
            state.queue.enqueue(request.token, request.waiter, now_ms, until_ms, counts=len(states) == 1)
            free = len(state.grants) < request.permits
            if free and not request.fair and state.yields_until(request, now_ms) is None:
                # This name is free, but not the others: another waiter may want only this one.
                state.queue.wake(self._store.publish, now_ms, after=request.token)

    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        with self._store.lock:
            now_ms = self._now()
            kept = []
            for request in requests:
                grants = [self._state(name).grant_of(request.token, now_ms) for name in request.names]
                unexpired = all(grant is not None for grant in grants)
                for grant in grants:
                    if unexpired and grant is not None:
                        grant.ends_ms = now_ms + to_ms(request.ttl)
                kept.append(unexpired)
            return kept

    async def release(self, request: LockRequest) -> bool:
        with self._store.lock:
            now_ms = self._now()
            kept = True
            for name in request.names:
                kept = self._release(self._state(name), request.token, now_ms) and kept
            return kept

    def _release(self, state: LockState, token: str, now_ms: int) -> bool:
        unexpired = state.grant_of(token, now_ms) is not None
        state.grants.pop(token, None)
        if state.grants:
            state.expire(now_ms)
        if state.queue.waiters:
            first = state.queue.first_alive(now_ms)
            state.queue.leave(token)
            if unexpired or first == token:
                state.queue.wake(self._store.publish, now_ms)
        return unexpired

    async def inspect(self, name: str) -> LockInfo:
        with self._store.lock:
            return self._inspect(name, self._now())

    async def inspect_many(self, names: Sequence[str]) -> list[LockInfo]:
        with self._store.lock:
            now_ms = self._now()
            return [self._inspect(name, now_ms) for name in names]

    def _inspect(self, name: str, now_ms: int) -> LockInfo:
        state = self._store.locks.get(name)
        if state is None:
            return LockInfo()
        held = sorted((each.fence, each.ends_ms - now_ms) for each in state.grants.values() if each.ends_ms > now_ms)
        return LockInfo(tuple(LockHolder(fence, left / 1000) for fence, left in held), state.queue.count(now_ms))

    async def list_locks(self, prefix: str, cursor: str, limit: int) -> Page[HeldLock]:
        self._handle.check_open()
        (after,) = split_cursor("locks", cursor, 1) if cursor else (None,)
        names, more = self._store.lock_names.page(prefix, after, limit)
        with self._store.lock:
            now_ms = self._now()
            infos = [(name, self._inspect(name, now_ms)) for name in names]
        held = tuple(HeldLock(name, info.holders, info.waiting) for name, info in infos if info.holders)
        return Page(held, join_cursor("locks", names[-1]) if more else "")

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
