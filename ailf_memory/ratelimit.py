"""Rate limiters in memory: the reference arithmetic itself, each decision one step under the store's lock."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from ailf.algorithms import Algorithm, Slots, State, algorithm, decide
from ailf.driver import Account, Charge, Demand, Limits, Observation, RateLimiterDriver, Ruling, SlotLease
from ailf.engine import Engine
from ailf.limits import Concurrency, Limit
from ailf.ratelimit import AsyncRateLimiter, RateLimiter
from ailf.values import LimitState
from ailf_memory.line import Line, milliseconds
from ailf_memory.store import sweep

if TYPE_CHECKING:
    from ailf_memory.backend import MemoryDriver

__all__ = ["AccountState", "AsyncMemoryRateLimiter", "MemoryRateLimiter", "MemoryRateLimiterDriver"]


class MemoryRateLimiter(RateLimiter):
    """`RateLimiter` in memory; one made alone has a store of its own."""

    def _open_engine(self) -> Engine:
        from ailf_memory.backend import MemoryBackend  # noqa: PLC0415 - the backend names this class

        return MemoryBackend().engine


class AsyncMemoryRateLimiter(AsyncRateLimiter):
    """`AsyncRateLimiter` in memory; one made alone has a store of its own."""

    def _open_engine(self) -> Engine:
        from ailf_memory.backend import AsyncMemoryBackend  # noqa: PLC0415 - the backend names this class

        return AsyncMemoryBackend().engine


_algorithm = lru_cache(maxsize=1024)(algorithm)


def _kept(name: str, limit: Limit) -> tuple[str, str, int]:
    """Return under what a limit's state is kept: one of another kind or period has a state of its own."""
    return (name, type(limit).__name__, 0 if isinstance(limit, Concurrency) else limit.per_ms)


class AccountState:
    """What one key was charged, by limit, and who is in line. It is as good as fresh from ``ends_ms`` on."""

    def __init__(self, line: Line) -> None:
        self.states: dict[tuple[str, str, int], State] = {}
        self.line = line
        self.ends_ms = 0

    def idle(self, now_ms: int) -> bool:
        """Tell whether nothing of it matters any more."""
        return self.ends_ms <= now_ms and self.line.head(now_ms) is None


class MemoryRateLimiterDriver(RateLimiterDriver):
    """The transitions of rate limiters."""

    def __init__(self, backend: "MemoryDriver") -> None:
        self._backend = backend
        self._store = backend.store

    def _now(self) -> int:
        self._backend.check_open()
        return self._store.clock.now_ms()

    def _account(self, account: Account, now_ms: int) -> AccountState:
        """Return an account to be charged; those that nobody needs any more go (R8)."""
        accounts = self._store.accounts
        state = accounts.get(account)
        if state is None:
            sweep(accounts, now_ms)
            state = accounts[account] = AccountState(Line(self._store))
        return state

    def _put(self, account: AccountState, charge: tuple[str, Limit], state: State) -> None:
        account.states[_kept(*charge)] = state
        account.ends_ms = max(account.ends_ms, _algorithm(charge[1]).ends(state))

    async def decide(self, limits: Limits, demands: Sequence[Demand]) -> list[Ruling]:
        with self._store.lock:
            now_ms = self._now()
            return [self._decide(limits, each, now_ms) for each in demands]

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        account = self._store.accounts.get(demand.account)
        first = account.line.head(now_ms) if account is not None and any(demand.costs) else None
        queued = first is not None and first != demand.token
        asked: list[tuple[Algorithm, State, int]] = []
        for (name, limit), cost in zip(limits, demand.costs, strict=True):
            state = account.states.get(_kept(name, limit), ()) if account is not None else ()
            asked.append((_algorithm(limit), state, cost))
        patience = -1 if queued else milliseconds(demand.patience)
        verdict = decide(asked, now_ms, demand.token, patience=patience, count_denied=demand.count_denied)
        for each, state, (_, before, _) in zip(limits, verdict.states, asked, strict=True):
            if state != before:
                account = account or self._account(demand.account, now_ms)
                self._put(account, each, state)
        wait = verdict.wait
        if queued and account is not None and first is not None and wait is not None:
            wait = max(1, wait, account.line.waiters[first].looks_ms - now_ms)
        if account is not None and verdict.allowed and first is not None:
            account.line.leave(demand.token)
            account.line.wake(now_ms)
        elif demand.place is not None and wait is not None and not verdict.allowed:
            account = account or self._account(demand.account, now_ms)
            account.line.stand(demand.token, demand.place, now_ms, now_ms + wait)
            if queued and first is not None:  # it is woken when its turn comes, unless the first one has died
                wait = account.line.waiters[first].alive_ms - now_ms
        levels = tuple(
            LimitState(limit.remaining(state, now_ms), _seconds(each), limit.reset_after(state, now_ms) / 1000)
            for (limit, _, _), state, each in zip(asked, verdict.states, verdict.waits, strict=True)
        )
        return Ruling(verdict.allowed, _seconds(wait), now_ms / 1000, levels, verdict.marks)

    async def settle(self, account: Account, token: str, charges: Sequence[Charge]) -> None:
        with self._store.lock:
            now_ms = self._now()
            state = self._store.accounts.get(account)
            for each in charges:
                before = state.states.get(_kept(each.name, each.limit), ()) if state is not None else ()
                after = _algorithm(each.limit).true_up(before, now_ms, token, each.mark, each.cost, each.actual)
                if after != before:
                    state = state or self._account(account, now_ms)
                    self._put(state, (each.name, each.limit), after)
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
        kept = [
            Slots(limit).extend(account.states.get(_kept(name, limit), ()), now_ms, lease.token)
            for name, limit in lease.limits
        ]
        for each, state in zip(lease.limits, kept, strict=True):
            if state is not None and None not in kept:
                self._put(account, each, state)
        return None not in kept

    async def observe(self, account: Account, observation: Observation) -> None:
        with self._store.lock:
            now_ms = self._now()
            name, limit = observation.name, observation.limit
            known = self._store.accounts.get(account)
            before = known.states.get(_kept(name, limit), ()) if known is not None else ()
            reset_ms, pause_ms = milliseconds(observation.reset_after), milliseconds(observation.pause)
            after = _algorithm(limit).observe(before, now_ms, observation.remaining, reset_ms, pause_ms)
            if after != before:
                self._put(known or self._account(account, now_ms), (name, limit), after)

    async def reset(self, account: Account, limits: Limits) -> None:
        with self._store.lock:
            now_ms = self._now()
            state = self._store.accounts.get(account)
            if state is not None:
                for name, limit in limits:
                    state.states.pop(_kept(name, limit), None)
                state.line.wake(now_ms)


def _seconds(wait_ms: int | None) -> float | None:
    return None if wait_ms is None else wait_ms / 1000
