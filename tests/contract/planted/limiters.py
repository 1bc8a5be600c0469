"""Memory rate limiters, each broken in one way, that the contract suite must catch."""

from collections.abc import Sequence
from typing import Any

import attrs
from msgspec.structs import replace

from ailf.driver import Account, Charge, Demand, Limits, Observation, Ruling
from ailf.limits import Concurrency, FixedWindow, Limit, TokenBucket
from ailf.limits.token_bucket import TokenBucketAlgorithm
from ailf_memory.driver import MemoryDriver
from ailf_memory.ratelimit import MemoryRateLimiterDriver
from ailf_memory.state.ratelimit import kept_under
from tests.contract.planted.base import BrokenHarness, with_driver


def with_limiter(limiter: type[MemoryRateLimiterDriver]) -> type[BrokenHarness]:
    """Return a harness with this driver of rate limiters."""

    class Driver(MemoryDriver):
        def rate_limiter(self) -> MemoryRateLimiterDriver:
            return limiter(self.handle)

    return with_driver(type(limiter.__name__, (Driver,), {}))


def _each(ruling: Ruling, change: Any) -> Ruling:
    """Return a ruling with changed levels."""
    return replace(ruling, levels=tuple(map(change, ruling.levels)))


# --- what passes -------------------------------------------------------------------------------------------------


class LetsAllPass(MemoryRateLimiterDriver):
    """Nothing is denied."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return replace(super()._decide(limits, demand, now_ms), allowed=True)


class ChargesParts(MemoryRateLimiterDriver):
    """Each limit is asked by itself, and charged if it agrees."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        pairs = zip(limits, demand.costs, strict=True)
        rulings = [
            super(ChargesParts, self)._decide((each,), replace(demand, costs=(cost,)), now_ms) for each, cost in pairs
        ]
        worst = min(rulings, key=lambda each: each.allowed)
        return replace(
            worst, levels=tuple(each.levels[0] for each in rulings), marks=tuple(each.marks[0] for each in rulings)
        )


class ChargesTheDenied(MemoryRateLimiterDriver):
    """Denied calls count."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return super()._decide(limits, replace(demand, count_denied=True), now_ms)


class IgnoresTheDenied(MemoryRateLimiterDriver):
    """Denied calls never count, also where that is asked for."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return super()._decide(limits, replace(demand, count_denied=False), now_ms)


class AllowsOneMore(MemoryRateLimiterDriver):
    """It compares with the wrong sign."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return super()._decide(tuple((name, _larger(limit)) for name, limit in limits), demand, now_ms)


def _larger(limit: Limit) -> Limit:
    if isinstance(limit, TokenBucket):
        return attrs.evolve(limit, burst=limit.burst + 1)
    return attrs.evolve(limit, limit=limit.limit + 1)


class AlignsWindows(MemoryRateLimiterDriver):
    """Every window is a fixed one, so that twice its limit passes around its end."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        fixed = tuple(
            (name, limit if isinstance(limit, Concurrency) else FixedWindow(limit.capacity, limit.per))
            for name, limit in limits
        )
        return super()._decide(fixed, demand, now_ms)


class ChargesOne(MemoryRateLimiterDriver):
    """Every call costs 1."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return super()._decide(limits, replace(demand, costs=tuple(min(1, each) for each in demand.costs)), now_ms)


class SharesKeys(MemoryRateLimiterDriver):
    """All keys are one."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return super()._decide(limits, replace(demand, account=replace(demand.account, key="")), now_ms)


class CountsPeeks(MemoryRateLimiterDriver):
    """To look costs 1."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return super()._decide(limits, replace(demand, costs=tuple(max(1, each) for each in demand.costs)), now_ms)


class TrustsTheClock(MemoryRateLimiterDriver):
    """Time that steps back mints what has been charged since."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        known = self._store.accounts.get(demand.account)
        if known is not None:
            now = self._now()
            known.states = {name: state for name, state in known.states.items() if state[0] <= now + 1000 * 60}
        return super()._decide(limits, demand, now_ms)


class OwesWhatALargerLimitCharged(MemoryRateLimiterDriver):
    """A limit that is made smaller counts all that a larger one charged."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        known = self._store.accounts.get(demand.account)
        states = known.states if known is not None else {}
        for name, limit in limits:
            state = states.get(kept_under(name, limit), ())
            if (
                isinstance(limit, TokenBucket)
                and state
                and len(state) % 2 == 0
                and state[1] > TokenBucketAlgorithm(limit).full
            ):
                states[kept_under(name, limit)] = (*state, TokenBucketAlgorithm(limit).mark)
        return super()._decide(limits, demand, now_ms)


class SumsInDoubles(MemoryRateLimiterDriver):
    """What it counts loses its last digits where it is large."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return super()._decide(limits, replace(demand, costs=tuple(map(_cut, demand.costs))), now_ms)


def _cut(cost: int) -> int:
    return int(float(f"{cost:.6g}"))


# --- what is told ------------------------------------------------------------------------------------------------


class TellsNoTime(MemoryRateLimiterDriver):
    """It isn't told when another try passes."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        ruling = super()._decide(limits, demand, now_ms)
        return replace(ruling, retry_after=None if ruling.retry_after is None else 0.0)


class RoundsTime(MemoryRateLimiterDriver):
    """It is told in whole hundredths of a second."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        ruling = super()._decide(limits, demand, now_ms)
        return replace(ruling, retry_after=ruling.retry_after and round(ruling.retry_after, 2))


class NeverSaysNever(MemoryRateLimiterDriver):
    """What is too large is told to come again."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        ruling = super()._decide(limits, demand, now_ms)
        return replace(ruling, retry_after=1.0 if ruling.retry_after is None else ruling.retry_after)


class TellsOneLess(MemoryRateLimiterDriver):
    """One more remains than it says."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return _each(
            super()._decide(limits, demand, now_ms),
            lambda each: replace(each, remaining=max(0, each.remaining - 1)),
        )


class TellsWhatWas(MemoryRateLimiterDriver):
    """What remains is what remained before the call."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        before = super()._decide(limits, replace(demand, costs=(0,) * len(limits)), now_ms)
        ruling = super()._decide(limits, demand, now_ms)
        levels = zip(ruling.levels, before.levels, strict=True)
        return replace(ruling, levels=tuple(replace(now, remaining=was.remaining) for now, was in levels))


class NeverFresh(MemoryRateLimiterDriver):
    """It takes longer to be fresh than it says."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return _each(
            super()._decide(limits, demand, now_ms), lambda each: replace(each, reset_after=each.reset_after / 2)
        )


class ForgetsSoon(MemoryRateLimiterDriver):
    """What is stored goes too early."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        known = self._store.accounts.get(demand.account)
        if known is not None and self._now() > known.ends_ms - 100:
            del self._store.accounts[demand.account]
        return super()._decide(limits, demand, now_ms)


# --- what is settled ---------------------------------------------------------------------------------------------


class SettlesNothing(MemoryRateLimiterDriver):
    """An estimate stays."""

    async def settle(self, account: Account, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(account, token, ())


class OnlyGivesBack(MemoryRateLimiterDriver):
    """What a call cost beyond its estimate is given to it."""

    async def settle(self, account: Account, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(account, token, [each for each in charges if each.actual < each.cost])


class GivesBackLate(MemoryRateLimiterDriver):
    """A refund counts although what it was charged for counts no longer."""

    async def settle(self, account: Account, token: str, charges: Sequence[Charge]) -> None:
        known = self._store.accounts.get(account)
        for each in charges:
            for name, state in (known.states if known else {}).items():
                if known and each.actual < each.cost and not isinstance(each.limit, Concurrency):
                    known.states[name] = (state[0], *(0 for _ in state[1:]))


class GivesBackTwice(MemoryRateLimiterDriver):
    """Every refund counts twice."""

    async def settle(self, account: Account, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(account, token, charges)
        await super().settle(account, token, charges)


class KeepsPlaces(MemoryRateLimiterDriver):
    """A place in a limit of concurrency is kept until its ttl is over."""

    async def settle(self, account: Account, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(account, token, [each for each in charges if not isinstance(each.limit, Concurrency)])


class ExtendsNothing(MemoryRateLimiterDriver):
    """A place ends after its ttl, whatever its owner does."""

    async def extend(self, slots: Sequence[Any]) -> list[bool]:
        return [True for _ in slots]


class ResetsNothing(MemoryRateLimiterDriver):
    """What was charged stays."""

    async def reset(self, account: Account, limits: Sequence[Any]) -> None:
        return


class ResetsAll(MemoryRateLimiterDriver):
    """All keys are made fresh."""

    async def reset(self, account: Account, limits: Sequence[Any]) -> None:
        self._store.accounts.clear()


class BelievesTheProvider(MemoryRateLimiterDriver):
    """What a provider says counts also where it is more."""

    async def observe(self, account: Account, observation: Observation) -> None:
        await self.reset(account, ((observation.name, observation.limit),))
        await super().observe(account, observation)


class HearsNothing(MemoryRateLimiterDriver):
    """What a provider says is ignored."""

    async def observe(self, account: Account, observation: Observation) -> None:
        return


# --- the line ----------------------------------------------------------------------------------------------------


class HasNoLine(MemoryRateLimiterDriver):
    """Whoever comes at the right time passes."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return super()._decide(limits, replace(demand, place=None), now_ms)


class WakesNobody(MemoryRateLimiterDriver):
    """Who waits looks again by himself."""

    async def settle(self, account: Account, token: str, charges: Sequence[Charge]) -> None:
        known = self._store.accounts.get(account)
        waiters = dict(known.line.waiters) if known else {}
        if known:
            known.line.waiters.clear()
        await super().settle(account, token, charges)
        if known:
            waiters.pop(token, None)
            known.line.waiters.update(waiters)


class LastComeFirst(MemoryRateLimiterDriver):
    """The line is a stack."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        ruling = super()._decide(limits, demand, now_ms)
        known = self._store.accounts.get(demand.account)
        if known and demand.place and not ruling.allowed:
            for token in [each for each in known.line.waiters if each != demand.token]:
                known.line.waiters[token] = known.line.waiters.pop(token)
        return ruling


class NeverLeaves(MemoryRateLimiterDriver):
    """Who gives up stays in line."""

    async def settle(self, account: Account, token: str, charges: Sequence[Charge]) -> None:
        known = self._store.accounts.get(account)
        waiter = known.line.waiters.get(token) if known else None
        await super().settle(account, token, charges)
        if known and waiter:
            known.line.waiters[token] = waiter


class RemembersForLonger(MemoryRateLimiterDriver):
    """Where nothing is given back, denials last longer than they have to."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        ruling = super()._decide(limits, demand, now_ms)
        if demand.account.final and not ruling.allowed and ruling.retry_after:
            states = self._store.accounts[demand.account].states
            for name, limit in limits:
                if isinstance(limit, TokenBucket) and (kept := kept_under(name, limit)) in states:
                    its = TokenBucketAlgorithm(limit)
                    latest, debt, *lows = its._mine(states[kept])
                    states[kept] = its._marked((latest, debt + debt // 2, *lows))
        return ruling
