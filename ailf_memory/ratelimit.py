"""The driver of rate limiters in memory. It calls the algorithms of `ailf.limits`, each step under the store's lock."""

from collections.abc import Sequence
from typing import Any

from ailf.checks import to_ms
from ailf.driver import Charge, LimiterKey, LimitRequest, LimitResult, Limits, Observation, RateLimiterDriver, SlotLease
from ailf.driver.listing import join_cursor, split_cursor
from ailf.limits import State, decide
from ailf.limits.decide import JointDecision
from ailf.values import LimiterName, LimitState, Page
from ailf_memory.state.ratelimit import Branch, LimiterState, algorithms_of, branches_of
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

    def _state(self, branch: LimiterKey, now_ms: int) -> LimiterState:
        """Return the state of a branch, and make it if it is missing; now and then remove idle ones (R8).

        So no idle state is in use that was returned before.
        """
        limiters = self._store.limiters
        state = limiters.get(branch)
        if state is None:
            limiters.sweep(now_ms)
            state = limiters.add(branch, LimiterState(WaitQueue()))
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
        charged = request.limiter_key
        places: Sequence[LimiterKey] = (charged,)
        states: list[LimiterState | None] = [state]
        if charged.root is not None:
            places = branches_of(charged)
            states = [self._store.limiters.get(each) for each in places]
        branches: list[Branch] = []
        for each in states:
            if request.waiter is not None or (each is not None and each.queue.waiters):
                branches = self._look_at_queues(places, states, request, now_ms)
                break
        if charged.root is None:
            states *= len(limits)  # one branch has the states of all limits
        charges = [
            (algorithm, () if kept is None else kept.state_of(key), cost)
            for (key, algorithm), kept, cost in zip(algorithms, states, request.costs, strict=True)
        ]
        max_wait = -1 if branches and any(each.behind for each in branches) else to_ms(request.max_wait)
        joint = decide(charges, now_ms, request.token, max_wait=max_wait, count_denied=request.count_denied)
        if joint.allowed or request.count_denied or request.token:
            self._keep(charged, limits, charges, joint.states, now_ms)
        levels = []
        for (_, algorithm), after, wait in zip(algorithms, joint.states, joint.waits, strict=True):
            left = max(0, algorithm.ends(after) - now_ms)
            levels.append(LimitState(algorithm.remaining(after, now_ms), _seconds(wait), left / 1000))
        wait = self._queue(request, branches, joint, now_ms) if branches else joint.wait
        return LimitResult(joint.allowed, _seconds(wait), now_ms / 1000, tuple(levels), joint.receipts)

    def _look_at_queues(
        self, places: Sequence[LimiterKey], states: Sequence[LimiterState | None], request: LimitRequest, now_ms: int
    ) -> list[Branch]:
        """Return the branches of a call: the first waiter of each, and whether it came before this call.

        A call that waits nowhere yet came after all waiters. One that costs nothing in a branch needn't queue there.
        """
        branches = [Branch(place, state) for place, state in zip(places, states)]  # noqa: B905 - one place has all states
        free = [not cost for cost in request.costs] if len(branches) > 1 else [not any(request.costs)]
        since = None
        for branch, costs_nothing in zip(branches, free, strict=True):
            if not costs_nothing and branch.state is not None and branch.queue.waiters:
                branch.first = branch.queue.first_alive(now_ms)
                branch.own = branch.queue.waiters.get(request.token) if request.waiter is not None else None
                since = branch.own.since if branch.own is not None else since
        for branch in branches:
            if branch.first is not None and branch.first != request.token:
                branch.behind = since is None or branch.first_waiter.since < since
        return branches

    def _keep(
        self,
        charged: LimiterKey,
        limits: Limits,
        charges: Sequence[tuple[Any, State, int]],
        states: Sequence[State],
        now_ms: int,
    ) -> None:
        """Store the states that have changed, of the limits of the latest decision."""
        algorithms = self._algorithms
        for number, ((_, before, _), after) in enumerate(zip(charges, states, strict=True)):
            if after is before:
                continue
            branch, own = charged, algorithms
            if charged.root is not None:
                branch, own = branches_of(charged)[number], algorithms_of(limits[number : number + 1])
            self._state(branch, now_ms).put(own, algorithms[number][0], after, now_ms)

    def _queue(self, request: LimitRequest, branches: list[Branch], joint: JointDecision, now_ms: int) -> int | None:
        """Remove an allowed call from its wait queue, or put a denied one in one; return the time to wait."""
        home = next((each for each in branches if each.own is not None), None)
        if joint.allowed or joint.wait is None:
            if joint.allowed and home is not None:
                self._leave(home, request.token, now_ms)
            return joint.wait
        for each, wait in zip(branches * (len(joint.waits) // len(branches)), joint.waits, strict=True):
            each.wait_ms = max(each.wait_ms, wait or 0)
        for each in branches:
            if each.behind:
                each.wait_ms = max(1, each.wait_ms, each.first_waiter.rechecks_ms - now_ms)
        return self._enqueue(request, branches, home, now_ms)

    def _enqueue(self, request: LimitRequest, branches: Sequence[Branch], home: Branch | None, now_ms: int) -> int:
        """Put a denied call that waits in the queue of the branch with the longest wait; return the time to wait."""
        binding = max(branches, key=lambda each: each.wait_ms)
        if request.waiter is None:
            return binding.wait_ms
        since = None if home is None or home.own is None else home.own.since
        if home is not None and home is not binding:
            self._leave(home, request.token, now_ms)
        queue = self._state(binding.key, now_ms).queue
        queue.enqueue(request.token, request.waiter, now_ms, now_ms + binding.wait_ms, since=since)
        # It is woken when its turn comes, unless the first waiter has died.
        return binding.first_waiter.alive_ms - now_ms if binding.behind else binding.wait_ms

    def _leave(self, branch: Branch, token: str, now_ms: int) -> None:
        """Remove a waiter from the queue of a branch; wake the next one if it was the first."""
        branch.queue.leave(token)
        if branch.first == token:
            branch.queue.wake(self._store.publish, now_ms)

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        with self._store.lock:
            now_ms = self._now()
            if limiter_key.root is None:
                self._settle(limiter_key, token, charges, now_ms)
                return
            for branch in branches_of(limiter_key):
                ((name, _),) = branch.keys
                self._settle(branch, token, [each for each in charges if each.name == name], now_ms)

    def _settle(self, branch: LimiterKey, token: str, charges: Sequence[Charge], now_ms: int) -> None:
        state = self._store.limiters.get(branch)
        algorithms = algorithms_of(tuple((each.name, each.limit) for each in charges))
        for (key, algorithm), each in zip(algorithms, charges, strict=True):
            before = () if state is None else state.state_of(key)
            after = algorithm.true_up(before, now_ms, token, each.receipt, each.cost, each.actual)
            if after != before:
                state = state or self._state(branch, now_ms)
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
        extended = []
        for each in lease.limits:
            state = self._store.limiters.get(lease.limiter_key.branch_of(each[0]))
            algorithms = algorithms_of((each,))
            ((key, algorithm),) = algorithms
            after = None if state is None else algorithm.extend(state.state_of(key), now_ms, lease.token)
            if state is None or after is None:
                return False
            extended.append((state, algorithms, key, after))
        for state, algorithms, key, after in extended:
            state.put(algorithms, key, after, now_ms)
        return True

    async def observe(self, limiter_key: LimiterKey, observation: Observation) -> None:
        with self._store.lock:
            now_ms = self._now()
            algorithms = algorithms_of(((observation.name, observation.limit),))
            ((key, algorithm),) = algorithms
            branch = limiter_key.branch_of(observation.name)
            state = self._store.limiters.get(branch)
            before = () if state is None else state.state_of(key)
            reset_ms, pause_ms = to_ms(observation.reset_after), to_ms(observation.pause)
            after = algorithm.observe(before, now_ms, observation.remaining, reset_ms, pause_ms)
            if after != before:
                (state or self._state(branch, now_ms)).put(algorithms, key, after, now_ms)

    async def reset(self, limiter_key: LimiterKey, limits: Limits) -> None:
        with self._store.lock:
            now_ms = self._now()
            for branch in branches_of(limiter_key):
                state = self._store.limiters.get(branch)
                if state is not None:
                    for key, _ in algorithms_of(limits):
                        state.stored.pop(key, None)
                    state.queue.wake(self._store.publish, now_ms)

    async def list_keys(self, prefix: str, cursor: str, limit: int) -> Page[LimiterName]:
        self._handle.check_open()
        after = None
        if cursor:
            limiter, key, root, name = split_cursor("limiters", cursor, 4)
            after = limiter, key, root, name
        names, more = self._store.limiter_names.page(prefix, after, limit)
        with self._store.lock:
            now_ms = self._now()
            charged = tuple(each for each in map(_listed, names) if self._is_charged(each, now_ms))
        return Page(charged, join_cursor("limiters", *names[-1]) if more else "")

    def _is_charged(self, name: LimiterName, now_ms: int) -> bool:
        """Tell whether a branch, with or without refunds, is not back at full capacity."""
        keys = () if name.limit is None else ((name.limit, name.key),)
        branches = [LimiterKey(name.name, name.key, final, name.root, keys) for final in (False, True)]
        states = map(self._store.limiters.get, branches)
        return any(each is not None and each.ends_ms > now_ms for each in states)


def _listed(name: tuple[str, str, str, str]) -> LimiterName:
    """Return one of `MemoryStore.limiter_names` as it is listed."""
    limiter, key, root, limit = name
    return LimiterName(limiter, key, root, limit) if root else LimiterName(limiter, key)


def _seconds(wait_ms: int | None) -> float | None:
    return None if wait_ms is None else wait_ms / 1000
