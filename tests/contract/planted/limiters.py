"""Memory rate limiters, each broken in one way, that the contract suite must catch."""

from collections.abc import Sequence
from typing import Any

import attrs
from msgspec.structs import replace

from ailf.driver import Charge, LimiterKey, LimitRequest, LimitResult, Limits, Observation
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


def _each(result: LimitResult, change: Any) -> LimitResult:
    """Return a ruling with changed levels."""
    return replace(result, levels=tuple(map(change, result.levels)))


# --- what passes -------------------------------------------------------------------------------------------------


class LetsAllPass(MemoryRateLimiterDriver):
    """Nothing is denied."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return replace(super()._decide(limits, request, now_ms), allowed=True)


class ChargesParts(MemoryRateLimiterDriver):
    """Each limit is asked by itself, and charged if it agrees."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        pairs = zip(limits, request.costs, strict=True)
        results = [
            super(ChargesParts, self)._decide((each,), replace(request, costs=(cost,)), now_ms) for each, cost in pairs
        ]
        worst = min(results, key=lambda each: each.allowed)
        return replace(
            worst,
            levels=tuple(each.levels[0] for each in results),
            receipts=tuple(each.receipts[0] for each in results),
        )


class ChargesTheDenied(MemoryRateLimiterDriver):
    """Denied calls count."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(limits, replace(request, count_denied=True), now_ms)


class IgnoresTheDenied(MemoryRateLimiterDriver):
    """Denied calls never count, also where that is asked for."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(limits, replace(request, count_denied=False), now_ms)


class AllowsOneMore(MemoryRateLimiterDriver):
    """It compares with the wrong sign."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(tuple((name, _larger(limit)) for name, limit in limits), request, now_ms)


def _larger(limit: Limit) -> Limit:
    if isinstance(limit, TokenBucket):
        return attrs.evolve(limit, burst=limit.burst + 1)
    return attrs.evolve(limit, limit=limit.limit + 1)


class AlignsWindows(MemoryRateLimiterDriver):
    """Every window is a fixed one, so that twice its limit passes around its end."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        fixed = tuple(
            (name, limit if isinstance(limit, Concurrency) else FixedWindow(limit.capacity, limit.per))
            for name, limit in limits
        )
        return super()._decide(fixed, request, now_ms)


class ChargesOne(MemoryRateLimiterDriver):
    """Every call costs 1."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(limits, replace(request, costs=tuple(min(1, each) for each in request.costs)), now_ms)


class SharesKeys(MemoryRateLimiterDriver):
    """All keys are one."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(limits, replace(request, limiter_key=replace(request.limiter_key, key="")), now_ms)


class CountsPeeks(MemoryRateLimiterDriver):
    """To look costs 1."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(limits, replace(request, costs=tuple(max(1, each) for each in request.costs)), now_ms)


class TrustsTheClock(MemoryRateLimiterDriver):
    """Time that steps back mints what has been charged since."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        known = self._store.limiters.get(request.limiter_key)
        if known is not None:
            now = self._now()
            known.states = {name: state for name, state in known.states.items() if state[0] <= now + 1000 * 60}
        return super()._decide(limits, request, now_ms)


class OwesWhatALargerLimitCharged(MemoryRateLimiterDriver):
    """A limit that is made smaller counts all that a larger one charged."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        known = self._store.limiters.get(request.limiter_key)
        states = known.states if known is not None else {}
        for name, limit in limits:
            state = states.get(kept_under(name, limit), ())
            if (
                isinstance(limit, TokenBucket)
                and state
                and len(state) % 2 == 0
                and state[1] > TokenBucketAlgorithm(limit).full
            ):
                states[kept_under(name, limit)] = (*state, TokenBucketAlgorithm(limit).receipt)
        return super()._decide(limits, request, now_ms)


class SumsInDoubles(MemoryRateLimiterDriver):
    """What it counts loses its last digits where it is large."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(limits, replace(request, costs=tuple(map(_cut, request.costs))), now_ms)


def _cut(cost: int) -> int:
    return int(float(f"{cost:.6g}"))


# --- what is told ------------------------------------------------------------------------------------------------


class TellsNoTime(MemoryRateLimiterDriver):
    """It isn't told when another try passes."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        result = super()._decide(limits, request, now_ms)
        return replace(result, retry_after=None if result.retry_after is None else 0.0)


class RoundsTime(MemoryRateLimiterDriver):
    """It is told in whole hundredths of a second."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        result = super()._decide(limits, request, now_ms)
        return replace(result, retry_after=result.retry_after and round(result.retry_after, 2))


class NeverSaysNever(MemoryRateLimiterDriver):
    """What is too large is told to come again."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        result = super()._decide(limits, request, now_ms)
        return replace(result, retry_after=1.0 if result.retry_after is None else result.retry_after)


class TellsOneLess(MemoryRateLimiterDriver):
    """One more remains than it says."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return _each(
            super()._decide(limits, request, now_ms),
            lambda each: replace(each, remaining=max(0, each.remaining - 1)),
        )


class TellsWhatWas(MemoryRateLimiterDriver):
    """What remains is what remained before the call."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        before = super()._decide(limits, replace(request, costs=(0,) * len(limits)), now_ms)
        result = super()._decide(limits, request, now_ms)
        levels = zip(result.levels, before.levels, strict=True)
        return replace(result, levels=tuple(replace(now, remaining=was.remaining) for now, was in levels))


class NeverFresh(MemoryRateLimiterDriver):
    """It takes longer to be fresh than it says."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return _each(
            super()._decide(limits, request, now_ms), lambda each: replace(each, reset_after=each.reset_after / 2)
        )


class ForgetsSoon(MemoryRateLimiterDriver):
    """What is stored goes too early."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        known = self._store.limiters.get(request.limiter_key)
        if known is not None and self._now() > known.ends_ms - 100:
            del self._store.limiters[request.limiter_key]
        return super()._decide(limits, request, now_ms)


# --- what is settled ---------------------------------------------------------------------------------------------


class SettlesNothing(MemoryRateLimiterDriver):
    """An estimate stays."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(limiter_key, token, ())


class OnlyGivesBack(MemoryRateLimiterDriver):
    """What a call cost beyond its estimate is given to it."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(limiter_key, token, [each for each in charges if each.actual < each.cost])


class GivesBackLate(MemoryRateLimiterDriver):
    """A refund counts although what it was charged for counts no longer."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        known = self._store.limiters.get(limiter_key)
        for each in charges:
            for name, state in (known.states if known else {}).items():
                if known and each.actual < each.cost and not isinstance(each.limit, Concurrency):
                    known.states[name] = (state[0], *(0 for _ in state[1:]))


class GivesBackTwice(MemoryRateLimiterDriver):
    """Every refund counts twice."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(limiter_key, token, charges)
        await super().settle(limiter_key, token, charges)


class KeepsPlaces(MemoryRateLimiterDriver):
    """A place in a limit of concurrency is kept until its ttl is over."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(limiter_key, token, [each for each in charges if not isinstance(each.limit, Concurrency)])


class ExtendsNothing(MemoryRateLimiterDriver):
    """A place ends after its ttl, whatever its owner does."""

    async def extend(self, slots: Sequence[Any]) -> list[bool]:
        return [True for _ in slots]


class ResetsNothing(MemoryRateLimiterDriver):
    """What was charged stays."""

    async def reset(self, limiter_key: LimiterKey, limits: Sequence[Any]) -> None:
        return


class ResetsAll(MemoryRateLimiterDriver):
    """All keys are made fresh."""

    async def reset(self, limiter_key: LimiterKey, limits: Sequence[Any]) -> None:
        self._store.limiters.clear()


class BelievesTheProvider(MemoryRateLimiterDriver):
    """What a provider says counts also where it is more."""

    async def observe(self, limiter_key: LimiterKey, observation: Observation) -> None:
        await self.reset(limiter_key, ((observation.name, observation.limit),))
        await super().observe(limiter_key, observation)


class HearsNothing(MemoryRateLimiterDriver):
    """What a provider says is ignored."""

    async def observe(self, limiter_key: LimiterKey, observation: Observation) -> None:
        return


# --- the line ----------------------------------------------------------------------------------------------------


class HasNoLine(MemoryRateLimiterDriver):
    """Whoever comes at the right time passes."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(limits, replace(request, waiter=None), now_ms)


class WakesNobody(MemoryRateLimiterDriver):
    """Who waits looks again by himself."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        known = self._store.limiters.get(limiter_key)
        waiters = dict(known.line.waiters) if known else {}
        if known:
            known.line.waiters.clear()
        await super().settle(limiter_key, token, charges)
        if known:
            waiters.pop(token, None)
            known.line.waiters.update(waiters)


class LastComeFirst(MemoryRateLimiterDriver):
    """The line is a stack."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        result = super()._decide(limits, request, now_ms)
        known = self._store.limiters.get(request.limiter_key)
        if known and request.waiter and not result.allowed:
            for token in [each for each in known.line.waiters if each != request.token]:
                known.line.waiters[token] = known.line.waiters.pop(token)
        return result


class NeverLeaves(MemoryRateLimiterDriver):
    """Who gives up stays in line."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        known = self._store.limiters.get(limiter_key)
        waiter = known.line.waiters.get(token) if known else None
        await super().settle(limiter_key, token, charges)
        if known and waiter:
            known.line.waiters[token] = waiter


class RemembersForLonger(MemoryRateLimiterDriver):
    """Where nothing is given back, denials last longer than they have to."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        result = super()._decide(limits, request, now_ms)
        if request.limiter_key.no_refunds and not result.allowed and result.retry_after:
            states = self._store.limiters[request.limiter_key].states
            for name, limit in limits:
                if isinstance(limit, TokenBucket) and (kept := kept_under(name, limit)) in states:
                    its = TokenBucketAlgorithm(limit)
                    latest, debt, *lows = its._mine(states[kept])
                    states[kept] = its._marked((latest, debt + debt // 2, *lows))
        return result
