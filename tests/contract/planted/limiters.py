"""Memory rate limiters with planted bugs."""

from collections.abc import Sequence
from typing import Any

import attrs
from msgspec.structs import replace

from ailf.driver import Charge, LimiterKey, LimitRequest, LimitResult, Limits, Observation
from ailf.limits import Concurrency, FixedWindow, Limit, TokenBucket
from ailf.limits.token_bucket import TokenBucketAlgorithm
from ailf_memory.ratelimit import MemoryRateLimiterDriver
from ailf_memory.state.ratelimit import kept_under
from contract_tests.ratelimit.test_ratelimit import MADE_SMALLER, QUICK, SLOW
from tests.contract.planted.base import caught_by

SMALLER = dict(zip(("large", "small", "longest"), MADE_SMALLER[0], strict=True))


def _each(result: LimitResult, change: Any) -> LimitResult:
    """Return a result with changed levels."""
    return replace(result, levels=tuple(map(change, result.levels)))


# --- charges -----------------------------------------------------------------------------------------------------


@caught_by("ratelimit.test_ratelimit.test_all_or_nothing")
@caught_by("ratelimit.test_ratelimit.test_together", limit=SLOW[0])
class DeniesNothing(MemoryRateLimiterDriver):
    """Nothing is denied."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return replace(super()._decide(limits, request, now_ms), allowed=True)


@caught_by("ratelimit.test_ratelimit.test_all_or_nothing")
class ChargesEachLimit(MemoryRateLimiterDriver):
    """Each limit is asked by itself, and charged if it allows the call."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        pairs = zip(limits, request.costs, strict=True)
        results = [
            super(ChargesEachLimit, self)._decide((each,), replace(request, costs=(cost,)), now_ms)
            for each, cost in pairs
        ]
        worst = min(results, key=lambda each: each.allowed)
        return replace(
            worst,
            levels=tuple(each.levels[0] for each in results),
            receipts=tuple(each.receipts[0] for each in results),
        )


@caught_by("ratelimit.test_ratelimit.test_denied_calls", limit=SLOW[0])
class ChargesDeniedCalls(MemoryRateLimiterDriver):
    """Denied calls are charged."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(limits, replace(request, count_denied=True), now_ms)


@caught_by("ratelimit.test_ratelimit.test_denied_calls", limit=SLOW[1])
class IgnoresCountDenied(MemoryRateLimiterDriver):
    """Denied calls are never charged, also with `count_denied`."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(limits, replace(request, count_denied=False), now_ms)


@caught_by("ratelimit.test_ratelimit.test_what_remains", limit=SLOW[2])
class AllowsOneMore(MemoryRateLimiterDriver):
    """A comparison has the wrong sign: one call more passes."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(tuple((name, _larger(limit)) for name, limit in limits), request, now_ms)


def _larger(limit: Limit) -> Limit:
    if isinstance(limit, TokenBucket):
        return attrs.evolve(limit, burst=limit.burst + 1)
    return attrs.evolve(limit, limit=limit.limit + 1)


@caught_by("ratelimit.test_ratelimit.test_a_window_slides", limit=QUICK[2])
class AlignsWindows(MemoryRateLimiterDriver):
    """Every window is a fixed one, so that twice its limit passes around its end."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        fixed = tuple(
            (name, limit if isinstance(limit, Concurrency) else FixedWindow(limit.capacity, limit.per))
            for name, limit in limits
        )
        return super()._decide(fixed, request, now_ms)


@caught_by("ratelimit.test_ratelimit.test_what_remains", limit=SLOW[0])
class ChargesOne(MemoryRateLimiterDriver):
    """Every call costs 1."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(limits, replace(request, costs=tuple(min(1, each) for each in request.costs)), now_ms)


@caught_by("ratelimit.test_ratelimit.test_looking_changes_nothing", limit=SLOW[0])
class SharesKeys(MemoryRateLimiterDriver):
    """All keys are one."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(limits, replace(request, limiter_key=replace(request.limiter_key, key="")), now_ms)


@caught_by("ratelimit.test_ratelimit.test_looking_changes_nothing", limit=SLOW[0])
class ChargesPeeks(MemoryRateLimiterDriver):
    """A peek costs 1."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(limits, replace(request, costs=tuple(max(1, each) for each in request.costs)), now_ms)


@caught_by("ratelimit.test_ratelimit.test_time_steps_back", limit=SLOW[0])
class TrustsTheClock(MemoryRateLimiterDriver):
    """A clock that is set back makes charges void."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        known = self._store.limiters.get(request.limiter_key)
        if known is not None:
            now = self._now()
            known.states = {name: state for name, state in known.states.items() if state[0] <= now + 1000 * 60}
        return super()._decide(limits, request, now_ms)


@caught_by("ratelimit.test_ratelimit.test_a_limit_is_made_smaller", **SMALLER)
class KeepsDebtsOfLargerLimits(MemoryRateLimiterDriver):
    """A limit that is made smaller counts everything that the larger one charged."""

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
                states[kept_under(name, limit)] = (*state, TokenBucketAlgorithm(limit).maker)
        return super()._decide(limits, request, now_ms)


@caught_by("ratelimit.test_ratelimit.test_large_numbers")
class RoundsLargeCosts(MemoryRateLimiterDriver):
    """A large cost loses its last digits."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(limits, replace(request, costs=tuple(map(_cut, request.costs))), now_ms)


def _cut(cost: int) -> int:
    return int(float(f"{cost:.6g}"))


# --- decisions ---------------------------------------------------------------------------------------------------


@caught_by("ratelimit.test_ratelimit.test_retry_after_is_exact", limit=QUICK[0])
class HidesRetryAfter(MemoryRateLimiterDriver):
    """`retry_after` is 0."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        result = super()._decide(limits, request, now_ms)
        return replace(result, retry_after=None if result.retry_after is None else 0.0)


@caught_by("ratelimit.test_ratelimit.test_retry_after_is_exact", limit=QUICK[1])
class RoundsRetryAfter(MemoryRateLimiterDriver):
    """`retry_after` is rounded to a hundredth of a second."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        result = super()._decide(limits, request, now_ms)
        return replace(result, retry_after=result.retry_after and round(result.retry_after, 2))


@caught_by("ratelimit.test_ratelimit.test_too_large", limit=SLOW[0])
class PromisesImpossibleCosts(MemoryRateLimiterDriver):
    """A call that can never pass is told to come again."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        result = super()._decide(limits, request, now_ms)
        return replace(result, retry_after=1.0 if result.retry_after is None else result.retry_after)


@caught_by("ratelimit.test_ratelimit.test_what_remains", limit=SLOW[0])
class ReportsOneLess(MemoryRateLimiterDriver):
    """`remaining` is one too few."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return _each(
            super()._decide(limits, request, now_ms),
            lambda each: replace(each, remaining=max(0, each.remaining - 1)),
        )


@caught_by("ratelimit.test_ratelimit.test_what_remains", limit=SLOW[0])
class ReportsRemainingBefore(MemoryRateLimiterDriver):
    """`remaining` is that before the call."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        before = super()._decide(limits, replace(request, costs=(0,) * len(limits)), now_ms)
        result = super()._decide(limits, request, now_ms)
        levels = zip(result.levels, before.levels, strict=True)
        return replace(result, levels=tuple(replace(now, remaining=was.remaining) for now, was in levels))


@caught_by("ratelimit.test_ratelimit.test_reset_after", limit=QUICK[0])
class HalvesResetAfter(MemoryRateLimiterDriver):
    """`reset_after` is half of the time that it takes."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return _each(
            super()._decide(limits, request, now_ms), lambda each: replace(each, reset_after=each.reset_after / 2)
        )


@caught_by("ratelimit.test_ratelimit.test_reset_after", limit=QUICK[0])
class ExpiresKeysEarly(MemoryRateLimiterDriver):
    """The stored state of a key goes too early."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        known = self._store.limiters.get(request.limiter_key)
        if known is not None and self._now() > known.ends_ms - 100:
            del self._store.limiters[request.limiter_key]
        return super()._decide(limits, request, now_ms)


# --- settlements, resets, observations ---------------------------------------------------------------------------


@caught_by("ratelimit.test_ratelimit.test_settle", limit=SLOW[0])
class IgnoresSettlements(MemoryRateLimiterDriver):
    """An estimated cost stays."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(limiter_key, token, ())


@caught_by("ratelimit.test_ratelimit.test_settle", limit=SLOW[1])
class ChargesNothingMore(MemoryRateLimiterDriver):
    """A call that cost more than its estimate is not charged the difference."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(limiter_key, token, [each for each in charges if each.actual < each.cost])


@caught_by("ratelimit.test_ratelimit.test_settled_late", limit=QUICK[0])
class RefundsLate(MemoryRateLimiterDriver):
    """A refund counts although its charge counts no longer."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        known = self._store.limiters.get(limiter_key)
        for each in charges:
            for name, state in (known.states if known else {}).items():
                if known and each.actual < each.cost and not isinstance(each.limit, Concurrency):
                    known.states[name] = (state[0], *(0 for _ in state[1:]))


@caught_by("ratelimit.test_ratelimit.test_settled_once", limit=SLOW[0])
class RefundsTwice(MemoryRateLimiterDriver):
    """Every refund counts twice."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(limiter_key, token, charges)
        await super().settle(limiter_key, token, charges)


@caught_by("ratelimit.test_ratelimit.test_parallel_places")
class KeepsSlots(MemoryRateLimiterDriver):
    """A slot of a concurrency limit is kept until its ttl is over."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(limiter_key, token, [each for each in charges if not isinstance(each.limit, Concurrency)])


@caught_by("ratelimit.test_ratelimit.test_places_end")
class NeverExtendsSlots(MemoryRateLimiterDriver):
    """A slot ends after its ttl, although its owner renews it."""

    async def extend(self, slots: Sequence[Any]) -> list[bool]:
        return [True for _ in slots]


@caught_by("ratelimit.test_ratelimit.test_looking_changes_nothing", limit=SLOW[0])
class IgnoresResets(MemoryRateLimiterDriver):
    """A reset is answered and not done."""

    async def reset(self, limiter_key: LimiterKey, limits: Sequence[Any]) -> None:
        return


@caught_by("ratelimit.test_ratelimit.test_looking_changes_nothing", limit=SLOW[0])
class ResetsAllKeys(MemoryRateLimiterDriver):
    """A reset resets all keys."""

    async def reset(self, limiter_key: LimiterKey, limits: Sequence[Any]) -> None:
        self._store.limiters.clear()


@caught_by("ratelimit.test_ratelimit.test_observe", limit=SLOW[0])
class ObservesHigherLimits(MemoryRateLimiterDriver):
    """An observation counts also where it allows more."""

    async def observe(self, limiter_key: LimiterKey, observation: Observation) -> None:
        await self.reset(limiter_key, ((observation.name, observation.limit),))
        await super().observe(limiter_key, observation)


@caught_by("ratelimit.test_ratelimit.test_observe", limit=SLOW[0])
class IgnoresObservations(MemoryRateLimiterDriver):
    """An observation is ignored."""

    async def observe(self, limiter_key: LimiterKey, observation: Observation) -> None:
        return


# --- the wait queue ----------------------------------------------------------------------------------------------


@caught_by("ratelimit.test_ratelimit_waiting.test_small_calls_do_not_starve_a_large_one")
class HasNoQueue(MemoryRateLimiterDriver):
    """A call that comes at the right time passes all that wait."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(limits, replace(request, waiter=None), now_ms)


@caught_by("ratelimit.test_ratelimit_waiting.test_what_is_given_back_wakes_who_waits")
class WakesNoCaller(MemoryRateLimiterDriver):
    """A refund wakes no waiting call; each looks again by itself."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        known = self._store.limiters.get(limiter_key)
        waiters = dict(known.queue.waiters) if known else {}
        if known:
            known.queue.waiters.clear()
        await super().settle(limiter_key, token, charges)
        if known:
            waiters.pop(token, None)
            known.queue.waiters.update(waiters)


@caught_by("ratelimit.test_ratelimit_waiting.test_in_turn")
class ServesTheLastCallFirst(MemoryRateLimiterDriver):
    """The wait queue is a stack."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        result = super()._decide(limits, request, now_ms)
        known = self._store.limiters.get(request.limiter_key)
        if known and request.waiter and not result.allowed:
            for token in [each for each in known.queue.waiters if each != request.token]:
                known.queue.waiters[token] = known.queue.waiters.pop(token)
        return result


@caught_by("ratelimit.test_ratelimit_waiting.test_who_gives_up_gives_everything_back")
class KeepsPlacesOfTimedOutCalls(MemoryRateLimiterDriver):
    """A call that gives up stays in the wait queue."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        known = self._store.limiters.get(limiter_key)
        waiter = known.queue.waiters.get(token) if known else None
        await super().settle(limiter_key, token, charges)
        if known and waiter:
            known.queue.waiters[token] = waiter


@caught_by("ratelimit.test_ratelimit.test_remembered_denials")
class RemembersDenialsTooLong(MemoryRateLimiterDriver):
    """Where nothing is given back, denials last longer than they have to."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        result = super()._decide(limits, request, now_ms)
        if request.limiter_key.no_refunds and not result.allowed and result.retry_after:
            states = self._store.limiters[request.limiter_key].states
            for name, limit in limits:
                if isinstance(limit, TokenBucket) and (kept := kept_under(name, limit)) in states:
                    its = TokenBucketAlgorithm(limit)
                    latest, debt, *lows = its._own_debt(states[kept])
                    states[kept] = its._with_maker((latest, debt + debt // 2, *lows))
        return result
