"""Rate limiters in memory: the reference arithmetic itself, each decision one step under the store's lock."""

from collections.abc import Sequence
from typing import Any

from ailf.checks import to_ms
from ailf.driver import Account, Charge, Demand, Limits, Observation, RateLimiterDriver, Ruling, SlotLease
from ailf.limits import decide
from ailf.limits.decide import Verdict
from ailf.values import LimitState
from ailf_memory.state.ratelimit import AccountState, algorithms_of
from ailf_memory.state.wait_queue import Line
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

    def _account(self, account: Account, now_ms: int) -> AccountState:
        """Return an account to be charged; those that nobody needs any more go (R8)."""
        accounts = self._store.accounts
        state = accounts.get(account)
        if state is None:
            sweep(accounts, now_ms)
            state = accounts[account] = AccountState(Line(self._store.publish))
        return state

    async def decide(self, limits: Limits, demands: Sequence[Demand]) -> list[Ruling]:
        with self._store.lock:
            if self._handle.closed:
                self._handle.check_open()
            now_ms = self._store.clock.now_ms()
            if len(demands) == 1:
                return [self._decide(limits, demands[0], now_ms)]
            return [self._decide(limits, each, now_ms) for each in demands]

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        account = self._store.accounts.get(demand.account)
        if limits is not self._limits:  # one who decides asks again and again for the same
            self._limits, self._known = limits, algorithms_of(limits)
        known = self._known
        if account is not None and not (demand.token or account.line.waiters or 0 in demand.costs):
            ruling = account.take(known, demand.costs, now_ms)
            if ruling is not None:
                return ruling
        states = account.states if account is not None else {}
        first = account.line.head(now_ms) if account is not None and any(demand.costs) else None
        asked = [(its, states.get(key, ()), cost) for (key, its), cost in zip(known, demand.costs, strict=True)]
        patience = to_ms(demand.patience) if first is None or first == demand.token else -1
        verdict = decide(asked, now_ms, demand.token, patience=patience, count_denied=demand.count_denied)
        levels = []
        for (key, its), (_, before, _), after, wait in zip(known, asked, verdict.states, verdict.waits, strict=True):
            if after is not before:
                account = account or self._account(demand.account, now_ms)
                account.put(key, its, after)
            left = max(0, its.ends(after) - now_ms)
            levels.append(LimitState(its.remaining(after, now_ms), _seconds(wait), left / 1000))
        wait = verdict.wait
        if first is not None or (demand.place is not None and not verdict.allowed and wait is not None):
            wait = self._line_up(demand, first, verdict, now_ms)
        return Ruling(verdict.allowed, _seconds(wait), now_ms / 1000, tuple(levels), verdict.marks)

    def _line_up(self, demand: Demand, first: str | None, verdict: Verdict, now_ms: int) -> int | None:
        """Let who passes leave the line, and who has to wait stand in it; return the time to wait."""
        line = self._account(demand.account, now_ms).line
        if verdict.allowed and first is not None:
            line.leave(demand.token)
            line.wake(now_ms)
        wait = verdict.wait
        if verdict.allowed or wait is None:
            return wait
        ahead = line.waiters[first] if first is not None and first != demand.token else None
        if ahead is not None:
            wait = max(1, wait, ahead.looks_ms - now_ms)
        if demand.place is not None:
            line.stand(demand.token, demand.place, now_ms, now_ms + wait)
            if ahead is not None:  # it is woken when its turn comes, unless the first one has died
                wait = ahead.alive_ms - now_ms
        return wait

    async def settle(self, account: Account, token: str, charges: Sequence[Charge]) -> None:
        with self._store.lock:
            now_ms = self._now()
            state = self._store.accounts.get(account)
            known = algorithms_of(tuple((each.name, each.limit) for each in charges))
            for (key, its), each in zip(known, charges, strict=True):
                before = state.states.get(key, ()) if state is not None else ()
                after = its.true_up(before, now_ms, token, each.mark, each.cost, each.actual)
                if after != before:
                    state = state or self._account(account, now_ms)
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
        account = self._store.accounts.get(lease.account)
        if account is None:
            return False
        known = algorithms_of(lease.limits)
        kept = [its.extend(account.states.get(key, ()), now_ms, lease.token) for key, its in known]
        for (key, its), state in zip(known, kept, strict=True):
            if state is not None and None not in kept:
                account.put(key, its, state)
        return None not in kept

    async def observe(self, account: Account, observation: Observation) -> None:
        with self._store.lock:
            now_ms = self._now()
            ((key, its),) = algorithms_of(((observation.name, observation.limit),))
            state = self._store.accounts.get(account)
            before = state.states.get(key, ()) if state is not None else ()
            reset_ms, pause_ms = to_ms(observation.reset_after), to_ms(observation.pause)
            after = its.observe(before, now_ms, observation.remaining, reset_ms, pause_ms)
            if after != before:
                (state or self._account(account, now_ms)).put(key, its, after)

    async def reset(self, account: Account, limits: Limits) -> None:
        with self._store.lock:
            now_ms = self._now()
            state = self._store.accounts.get(account)
            if state is not None:
                for key, _ in algorithms_of(limits):
                    state.states.pop(key, None)
                state.line.wake(now_ms)


def _seconds(wait_ms: int | None) -> float | None:
    return None if wait_ms is None else wait_ms / 1000
