"""Rate limiters in memory: the reference arithmetic itself, each decision one step under the store's lock."""

from collections.abc import Sequence
from typing import Any

from ailf.checks import to_ms
from ailf.driver import Charge, LimiterKey, LimitRequest, LimitResult, Limits, Observation, RateLimiterDriver, SlotLease
from ailf.limits import decide
from ailf.limits.decide import JointDecision
from ailf.values import LimitState
from ailf_memory.state.ratelimit import LimiterState, algorithms_of
from ailf_memory.state.wait_queue import WaitQueue
from ailf_memory.store import StoreHandle, sweep

__all__ = ["MemoryRateLimiterDriver"]


class MemoryRateLimiterDriver(RateLimiterDriver):
    """The transitions of rate limiters."""

    def __init__(self, handle: StoreHandle) -> None:
        self._handle = handle
        self._store = handle.store
        self._limits: Limits = ()
        self._known: list[tuple[str, Any]] = []

    def _now(self) -> int:
        if self._handle.closed:
            self._handle.check_open()
        return self._store.clock.now_ms()

    def _state(self, limiter_key: LimiterKey, now_ms: int) -> LimiterState:
        """Return the state of a key to be charged; those that nobody needs any more go (R8)."""
        limiters = self._store.limiters
        state = limiters.get(limiter_key)
        if state is None:
            sweep(limiters, now_ms)
            state = limiters[limiter_key] = LimiterState(WaitQueue(self._store.publish))
        return state

    async def decide(self, limits: Limits, requests: Sequence[LimitRequest]) -> list[LimitResult]:
        with self._store.lock:
            if self._handle.closed:
                self._handle.check_open()
            now_ms = self._store.clock.now_ms()
            if len(requests) == 1:
                return [self._decide(limits, requests[0], now_ms)]
            return [self._decide(limits, each, now_ms) for each in requests]

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        state = self._store.limiters.get(request.limiter_key)
        if limits is not self._limits:  # one who decides asks again and again for the same
            self._limits, self._known = limits, algorithms_of(limits)
        known = self._known
        if state is not None and not (request.token or state.line.waiters or 0 in request.costs):
            result = state.take(known, request.costs, now_ms)
            if result is not None:
                return result
        states = state.states if state is not None else {}
        first = state.line.head(now_ms) if state is not None and any(request.costs) else None
        asked = [(its, states.get(key, ()), cost) for (key, its), cost in zip(known, request.costs, strict=True)]
        max_wait = to_ms(request.max_wait) if first is None or first == request.token else -1
        verdict = decide(asked, now_ms, request.token, max_wait=max_wait, count_denied=request.count_denied)
        levels = []
        for (key, its), (_, before, _), after, wait in zip(known, asked, verdict.states, verdict.waits, strict=True):
            if after is not before:
                state = state or self._state(request.limiter_key, now_ms)
                state.put(key, its, after)
            left = max(0, its.ends(after) - now_ms)
            levels.append(LimitState(its.remaining(after, now_ms), _seconds(wait), left / 1000))
        wait = verdict.wait
        if first is not None or (request.waiter is not None and not verdict.allowed and wait is not None):
            wait = self._line_up(request, first, verdict, now_ms)
        return LimitResult(verdict.allowed, _seconds(wait), now_ms / 1000, tuple(levels), verdict.receipts)

    def _line_up(self, request: LimitRequest, first: str | None, verdict: JointDecision, now_ms: int) -> int | None:
        """Let who passes leave the line, and who has to wait stand in it; return the time to wait."""
        line = self._state(request.limiter_key, now_ms).line
        if verdict.allowed and first is not None:
            line.leave(request.token)
            line.wake(now_ms)
        wait = verdict.wait
        if verdict.allowed or wait is None:
            return wait
        ahead = line.waiters[first] if first is not None and first != request.token else None
        if ahead is not None:
            wait = max(1, wait, ahead.looks_ms - now_ms)
        if request.waiter is not None:
            line.stand(request.token, request.waiter, now_ms, now_ms + wait)
            if ahead is not None:  # it is woken when its turn comes, unless the first one has died
                wait = ahead.alive_ms - now_ms
        return wait

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        with self._store.lock:
            now_ms = self._now()
            state = self._store.limiters.get(limiter_key)
            known = algorithms_of(tuple((each.name, each.limit) for each in charges))
            for (key, its), each in zip(known, charges, strict=True):
                before = state.states.get(key, ()) if state is not None else ()
                after = its.true_up(before, now_ms, token, each.receipt, each.cost, each.actual)
                if after != before:
                    state = state or self._state(limiter_key, now_ms)
                    state.put(key, its, after)
            if state is not None:
                freed = state.line.head(now_ms) == token or any(each.actual < each.cost for each in charges)
                state.line.leave(token)
                if freed:
                    state.line.wake(now_ms)

    async def extend(self, slots: Sequence[SlotLease]) -> list[bool]:
        with self._store.lock:
            now_ms = self._now()
            return [self._extend(each, now_ms) for each in slots]

    def _extend(self, lease: SlotLease, now_ms: int) -> bool:
        state = self._store.limiters.get(lease.limiter_key)
        if state is None:
            return False
        known = algorithms_of(lease.limits)
        extended = [its.extend(state.states.get(key, ()), now_ms, lease.token) for key, its in known]
        if None in extended:
            return False
        for (key, its), after in zip(known, extended, strict=True):
            state.put(key, its, after)
        return True

    async def observe(self, limiter_key: LimiterKey, observation: Observation) -> None:
        with self._store.lock:
            now_ms = self._now()
            ((key, its),) = algorithms_of(((observation.name, observation.limit),))
            state = self._store.limiters.get(limiter_key)
            before = state.states.get(key, ()) if state is not None else ()
            reset_ms, pause_ms = to_ms(observation.reset_after), to_ms(observation.pause)
            after = its.observe(before, now_ms, observation.remaining, reset_ms, pause_ms)
            if after != before:
                (state or self._state(limiter_key, now_ms)).put(key, its, after)

    async def reset(self, limiter_key: LimiterKey, limits: Limits) -> None:
        with self._store.lock:
            now_ms = self._now()
            state = self._store.limiters.get(limiter_key)
            if state is not None:
                for key, _ in algorithms_of(limits):
                    state.states.pop(key, None)
                state.line.wake(now_ms)


def _seconds(wait_ms: int | None) -> float | None:
    return None if wait_ms is None else wait_ms / 1000
