"""The driver of rate limiters in memory. It calls the algorithms of `ailf.limits`, each step under the store's lock."""

from collections.abc import Sequence
from typing import Any

from ailf.checks import to_ms
from ailf.driver import Charge, LimiterKey, LimitRequest, LimitResult, Limits, Observation, RateLimiterDriver, SlotLease
from ailf.driver.listing import join_cursor, split_cursor
from ailf.limits import decide
from ailf.limits.decide import JointDecision
from ailf.values import LimiterName, LimitState, Page
from ailf_memory.state.ratelimit import LimiterState, algorithms_of
from ailf_memory.state.wait_queue import WaitQueue
from ailf_memory.store import StoreHandle

__all__ = ["MemoryRateLimiterDriver"]


class MemoryRateLimiterDriver(RateLimiterDriver):
    """Rate limiters in memory."""

    def __init__(self, handle: StoreHandle) -> None:
        self._handle = handle
        self._store = handle.store
        self._limits: Limits = ()
        self._algorithms: list[tuple[str, Any]] = []

    def _now(self) -> int:
        if self._handle.closed:
            self._handle.check_open()
        return self._store.clock.now_ms()

    def _state(self, limiter_key: LimiterKey, now_ms: int) -> LimiterState:
        """Return the state of a key, and make it if it is missing; now and then remove idle ones (R8)."""
        limiters = self._store.limiters
        state = limiters.get(limiter_key)
        if state is None:
            limiters.sweep(now_ms)
            state = limiters.add(limiter_key, LimiterState(WaitQueue()))
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
        if limits is not self._limits:  # a limiter passes the same object with every call
            self._limits, self._algorithms = limits, algorithms_of(limits)
        algorithms = self._algorithms
        if state is not None and not (request.token or state.queue.waiters or 0 in request.costs):
            result = state.take(algorithms, request.costs, now_ms)
            if result is not None:
                return result
        first = state.queue.first_alive(now_ms) if state is not None and any(request.costs) else None
        charges = [
            (algorithm, () if state is None else state.state_of(key), cost)
            for (key, algorithm), cost in zip(algorithms, request.costs, strict=True)
        ]
        max_wait = to_ms(request.max_wait) if first is None or first == request.token else -1
        joint = decide(charges, now_ms, request.token, max_wait=max_wait, count_denied=request.count_denied)
        levels = []
        for (key, algorithm), (_, before, _), after, wait in zip(
            algorithms, charges, joint.states, joint.waits, strict=True
        ):
            if after is not before:
                state = state or self._state(request.limiter_key, now_ms)
                state.put(algorithms, key, after, now_ms)
            left = max(0, algorithm.ends(after) - now_ms)
            levels.append(LimitState(algorithm.remaining(after, now_ms), _seconds(wait), left / 1000))
        wait = joint.wait
        if first is not None or (request.waiter is not None and not joint.allowed and wait is not None):
            wait = self._enqueue(request, first, joint, now_ms)
        return LimitResult(joint.allowed, _seconds(wait), now_ms / 1000, tuple(levels), joint.receipts)

    def _enqueue(self, request: LimitRequest, first: str | None, joint: JointDecision, now_ms: int) -> int | None:
        """Remove an allowed call from the wait queue, or put a denied one in it; return the time to wait."""
        queue = self._state(request.limiter_key, now_ms).queue
        if joint.allowed and first is not None:
            queue.leave(request.token)
            queue.wake(self._store.publish, now_ms)
        wait = joint.wait
        if joint.allowed or wait is None:
            return wait
        ahead = queue.waiters[first] if first is not None and first != request.token else None
        if ahead is not None:
            wait = max(1, wait, ahead.rechecks_ms - now_ms)
        if request.waiter is not None:
            queue.enqueue(request.token, request.waiter, now_ms, now_ms + wait)
            if ahead is not None:  # it is woken when its turn comes, unless the first waiter has died
                wait = ahead.alive_ms - now_ms
        return wait

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        with self._store.lock:
            now_ms = self._now()
            state = self._store.limiters.get(limiter_key)
            algorithms = algorithms_of(tuple((each.name, each.limit) for each in charges))
            for (key, algorithm), each in zip(algorithms, charges, strict=True):
                before = () if state is None else state.state_of(key)
                after = algorithm.true_up(before, now_ms, token, each.receipt, each.cost, each.actual)
                if after != before:
                    state = state or self._state(limiter_key, now_ms)
                    state.put(algorithms, key, after, now_ms)
            if state is not None:
                freed = state.queue.first_alive(now_ms) == token or any(each.actual < each.cost for each in charges)
                state.queue.leave(token)
                if freed:
                    state.queue.wake(self._store.publish, now_ms)

    async def extend(self, slots: Sequence[SlotLease]) -> list[bool]:
        with self._store.lock:
            now_ms = self._now()
            return [self._extend(each, now_ms) for each in slots]

    def _extend(self, lease: SlotLease, now_ms: int) -> bool:
        state = self._store.limiters.get(lease.limiter_key)
        if state is None:
            return False
        algorithms = algorithms_of(lease.limits)
        extended = [each.extend(state.state_of(key), now_ms, lease.token) for key, each in algorithms]
        if None in extended:
            return False
        for (key, _), after in zip(algorithms, extended, strict=True):
            state.put(algorithms, key, after, now_ms)
        return True

    async def observe(self, limiter_key: LimiterKey, observation: Observation) -> None:
        with self._store.lock:
            now_ms = self._now()
            algorithms = algorithms_of(((observation.name, observation.limit),))
            ((key, algorithm),) = algorithms
            state = self._store.limiters.get(limiter_key)
            before = () if state is None else state.state_of(key)
            reset_ms, pause_ms = to_ms(observation.reset_after), to_ms(observation.pause)
            after = algorithm.observe(before, now_ms, observation.remaining, reset_ms, pause_ms)
            if after != before:
                (state or self._state(limiter_key, now_ms)).put(algorithms, key, after, now_ms)

    async def reset(self, limiter_key: LimiterKey, limits: Limits) -> None:
        with self._store.lock:
            now_ms = self._now()
            state = self._store.limiters.get(limiter_key)
            if state is not None:
                for key, _ in algorithms_of(limits):
                    state.stored.pop(key, None)
                state.queue.wake(self._store.publish, now_ms)

    async def list_keys(self, prefix: str, cursor: str, limit: int) -> Page[LimiterName]:
        self._handle.check_open()
        after = None
        if cursor:
            limiter, key = split_cursor("limiters", cursor, 2)
            after = limiter, key
        names, more = self._store.limiter_names.page(prefix, after, limit)
        with self._store.lock:
            now_ms = self._now()
            charged = tuple(LimiterName(*each) for each in names if self._is_charged(*each, now_ms))
        return Page(charged, join_cursor("limiters", *names[-1]) if more else "")

    def _is_charged(self, limiter: str, key: str, now_ms: int) -> bool:
        """Tell whether a key, with or without refunds, is not back at full capacity."""
        states = [self._store.limiters.get(LimiterKey(limiter, key, no_refunds)) for no_refunds in (False, True)]
        return any(each is not None and each.ends_ms > now_ms for each in states)


def _seconds(wait_ms: int | None) -> float | None:
    return None if wait_ms is None else wait_ms / 1000
