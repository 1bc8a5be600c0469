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
    """Return a result whose levels are changed by a function."""
    return replace(result, levels=tuple(map(change, result.levels)))


# --- charges -----------------------------------------------------------------------------------------------------


@caught_by("ratelimit.test_ratelimit.test_all_or_nothing")
@caught_by("ratelimit.test_ratelimit.test_concurrent_calls", limit=SLOW[0])
class DeniesNothing(MemoryRateLimiterDriver):
    """Nothing is denied."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return replace(super()._decide(limits, request, now_ms), allowed=True)


@caught_by("ratelimit.test_ratelimit.test_all_or_nothing")
class ChargesEachLimit(MemoryRateLimiterDriver):
    """Each limit decides by itself, and is charged if it allows the call."""

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


@caught_by("ratelimit.test_ratelimit.test_remaining_of_a_limit", limit=SLOW[2])
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
    """Every window is a fixed window, so that twice its limit passes around its end."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        fixed = tuple(
            (name, limit if isinstance(limit, Concurrency) else FixedWindow(limit.capacity, limit.per))
            for name, limit in limits
        )
        return super()._decide(fixed, request, now_ms)


@caught_by("ratelimit.test_ratelimit.test_remaining_of_a_limit", limit=SLOW[0])
class ChargesOne(MemoryRateLimiterDriver):
    """Every call costs 1."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(limits, replace(request, costs=tuple(min(1, each) for each in request.costs)), now_ms)


@caught_by("ratelimit.test_ratelimit.test_peeking_changes_nothing", limit=SLOW[0])
class SharesKeys(MemoryRateLimiterDriver):
    """All keys share one state."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(limits, replace(request, limiter_key=replace(request.limiter_key, key="")), now_ms)


@caught_by("ratelimit.test_ratelimit.test_peeking_changes_nothing", limit=SLOW[0])
class ChargesPeeks(MemoryRateLimiterDriver):
    """A peek costs 1."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(limits, replace(request, costs=tuple(max(1, each) for each in request.costs)), now_ms)


@caught_by("ratelimit.test_ratelimit.test_time_steps_back", limit=SLOW[0])
class TrustsTheClock(MemoryRateLimiterDriver):
    """Setting the clock back voids charges."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        stored = self._store.limiters.get(request.limiter_key)
        if stored is not None:
            now = self._now()
            stored.stored = {name: kept for name, kept in stored.stored.items() if kept.state[0] <= now + 1000 * 60}
        return super()._decide(limits, request, now_ms)


@caught_by("ratelimit.test_ratelimit.test_a_limit_is_made_smaller", **SMALLER)
class KeepsDebtsOfLargerLimits(MemoryRateLimiterDriver):
    """A limit that is made smaller counts everything that the larger one charged."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        stored = self._store.limiters.get(request.limiter_key)
        for name, limit in limits if stored is not None else ():
            state = stored.state_of(kept_under(name, limit))
            if (
                isinstance(limit, TokenBucket)
                and state
                and len(state) % 2 == 0
                and state[1] > TokenBucketAlgorithm(limit).full
            ):
                stored.stored[kept_under(name, limit)].state = (*state, TokenBucketAlgorithm(limit).maker)
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
    """A call that can never pass gets a `retry_after`."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        result = super()._decide(limits, request, now_ms)
        return replace(result, retry_after=1.0 if result.retry_after is None else result.retry_after)


@caught_by("ratelimit.test_ratelimit.test_remaining_of_a_limit", limit=SLOW[0])
class ReportsOneLess(MemoryRateLimiterDriver):
    """`remaining` is too low by one."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return _each(
            super()._decide(limits, request, now_ms),
            lambda each: replace(each, remaining=max(0, each.remaining - 1)),
        )


@caught_by("ratelimit.test_ratelimit.test_remaining_of_a_limit", limit=SLOW[0])
class ReportsRemainingBefore(MemoryRateLimiterDriver):
    """`remaining` is the value before the call."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        before = super()._decide(limits, replace(request, costs=(0,) * len(limits)), now_ms)
        result = super()._decide(limits, request, now_ms)
        levels = zip(result.levels, before.levels, strict=True)
        return replace(result, levels=tuple(replace(now, remaining=was.remaining) for now, was in levels))


@caught_by("ratelimit.test_ratelimit.test_reset_after", limit=QUICK[0])
class HalvesResetAfter(MemoryRateLimiterDriver):
    """`reset_after` is half of the right time."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return _each(
            super()._decide(limits, request, now_ms), lambda each: replace(each, reset_after=each.reset_after / 2)
        )


@caught_by("ratelimit.test_ratelimit.test_reset_after", limit=QUICK[0])
class ExpiresKeysEarly(MemoryRateLimiterDriver):
    """The stored state of a key expires too early."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        stored = self._store.limiters.get(request.limiter_key)
        if stored is not None and self._now() > stored.ends_ms - 100:
            del self._store.limiters[request.limiter_key]
        return super()._decide(limits, request, now_ms)


# --- settlements, resets, observations ---------------------------------------------------------------------------


@caught_by("ratelimit.test_ratelimit.test_settle", limit=SLOW[0])
class IgnoresSettlements(MemoryRateLimiterDriver):
    """A settlement doesn't replace the estimated cost."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(limiter_key, token, ())


@caught_by("ratelimit.test_ratelimit.test_settle", limit=SLOW[1])
class ChargesNothingMore(MemoryRateLimiterDriver):
    """A call that cost more than its estimate is not charged the difference."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(limiter_key, token, [each for each in charges if each.actual < each.cost])


@caught_by("ratelimit.test_ratelimit.test_settled_late", limit=QUICK[0])
class RefundsLate(MemoryRateLimiterDriver):
    """A refund counts although its charge no longer counts."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        stored = self._store.limiters.get(limiter_key)
        for each in charges:
            for kept in (stored.stored if stored else {}).values():
                if stored and each.actual < each.cost and not isinstance(each.limit, Concurrency):
                    kept.state = (kept.state[0], *(0 for _ in kept.state[1:]))


@caught_by("ratelimit.test_ratelimit.test_settled_once", limit=SLOW[0])
class RefundsTwice(MemoryRateLimiterDriver):
    """Every refund counts twice."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(limiter_key, token, charges)
        await super().settle(limiter_key, token, charges)


@caught_by("ratelimit.test_ratelimit.test_concurrency_slots")
class KeepsSlots(MemoryRateLimiterDriver):
    """A slot of a concurrency limit is kept until its ttl is over."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(limiter_key, token, [each for each in charges if not isinstance(each.limit, Concurrency)])


@caught_by("ratelimit.test_ratelimit.test_slots_expire")
class NeverExtendsSlots(MemoryRateLimiterDriver):
    """A slot ends after its ttl, although its holder renews it."""

    async def extend(self, slots: Sequence[Any]) -> list[bool]:
        return [True for _ in slots]


@caught_by("ratelimit.test_ratelimit.test_peeking_changes_nothing", limit=SLOW[0])
class IgnoresResets(MemoryRateLimiterDriver):
    """A reset is confirmed and not carried out."""

    async def reset(self, limiter_key: LimiterKey, limits: Sequence[Any]) -> None:
        return


@caught_by("ratelimit.test_ratelimit.test_peeking_changes_nothing", limit=SLOW[0])
class ResetsAllKeys(MemoryRateLimiterDriver):
    """A reset resets all keys."""

    async def reset(self, limiter_key: LimiterKey, limits: Sequence[Any]) -> None:
        self._store.limiters.clear()


@caught_by("ratelimit.test_ratelimit.test_observe", limit=SLOW[0])
class ObservesHigherLimits(MemoryRateLimiterDriver):
    """An observation also raises `remaining`."""

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
    """A call that comes at the right time overtakes all waiting calls."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        return super()._decide(limits, replace(request, waiter=None), now_ms)


@caught_by("ratelimit.test_ratelimit_waiting.test_refunds_wake_waiting_calls")
class WakesNoCaller(MemoryRateLimiterDriver):
    """A refund wakes no waiting call; each retries by itself."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        stored = self._store.limiters.get(limiter_key)
        waiters = dict(stored.queue.waiters) if stored else {}
        if stored:
            stored.queue.waiters.clear()
        await super().settle(limiter_key, token, charges)
        if stored:
            waiters.pop(token, None)
            stored.queue.waiters.update(waiters)


@caught_by("ratelimit.test_ratelimit_waiting.test_calls_pass_in_order")
class ServesTheLastCallFirst(MemoryRateLimiterDriver):
    """The wait queue is a stack."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        result = super()._decide(limits, request, now_ms)
        stored = self._store.limiters.get(request.limiter_key)
        if stored and request.waiter and not result.allowed:
            for token in [each for each in stored.queue.waiters if each != request.token]:
                stored.queue.waiters[token] = stored.queue.waiters.pop(token)
        return result


@caught_by("ratelimit.test_ratelimit_waiting.test_a_timed_out_call_leaves_nothing")
class KeepsPlacesOfTimedOutCalls(MemoryRateLimiterDriver):
    """A call that gives up stays in the wait queue."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        stored = self._store.limiters.get(limiter_key)
        waiter = stored.queue.waiters.get(token) if stored else None
        await super().settle(limiter_key, token, charges)
        if stored and waiter:
            stored.queue.waiters[token] = waiter


@caught_by("ratelimit.test_ratelimit.test_remembered_denials")
class RemembersDenialsTooLong(MemoryRateLimiterDriver):
    """A denial that may be cached lasts longer than it should."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        result = super()._decide(limits, request, now_ms)
        if request.limiter_key.no_refunds and not result.allowed and result.retry_after:
            states = self._store.limiters[request.limiter_key].stored
            for name, limit in limits:
                if isinstance(limit, TokenBucket) and (kept := kept_under(name, limit)) in states:
                    its = TokenBucketAlgorithm(limit)
                    latest, debt, *lows = its._own_debt(states[kept].state)
                    states[kept].state = its._with_maker((latest, debt + debt // 2, *lows))
        return result
