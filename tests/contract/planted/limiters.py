"""Memory rate limiters with planted bugs."""

from collections.abc import Sequence
from typing import Any

import attrs
from msgspec.structs import replace

from ailf.driver import Account, Charge, Demand, Limits, Observation, Ruling
from ailf.limits import Concurrency, FixedWindow, Limit, TokenBucket
from ailf.limits.token_bucket import Bucket
from ailf_memory.ratelimit import MemoryRateLimiterDriver
from ailf_memory.state.ratelimit import kept_under
from contract_tests.ratelimit.test_ratelimit import MADE_SMALLER, QUICK, SLOW
from tests.contract.planted.base import caught_by

SMALLER = dict(zip(("large", "small", "longest"), MADE_SMALLER[0], strict=True))


def _each(ruling: Ruling, change: Any) -> Ruling:
    """Return a ruling with changed levels."""
    return replace(ruling, levels=tuple(map(change, ruling.levels)))


# --- charges -----------------------------------------------------------------------------------------------------


@caught_by("ratelimit.test_ratelimit.test_all_or_nothing")
@caught_by("ratelimit.test_ratelimit.test_together", limit=SLOW[0])
class DeniesNothing(MemoryRateLimiterDriver):
    """Nothing is denied."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return replace(super()._decide(limits, demand, now_ms), allowed=True)


@caught_by("ratelimit.test_ratelimit.test_all_or_nothing")
class ChargesEachLimit(MemoryRateLimiterDriver):
    """Each limit is asked by itself, and charged if it allows the call."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        pairs = zip(limits, demand.costs, strict=True)
        rulings = [
            super(ChargesEachLimit, self)._decide((each,), replace(demand, costs=(cost,)), now_ms)
            for each, cost in pairs
        ]
        worst = min(rulings, key=lambda each: each.allowed)
        return replace(
            worst, levels=tuple(each.levels[0] for each in rulings), marks=tuple(each.marks[0] for each in rulings)
        )


@caught_by("ratelimit.test_ratelimit.test_denied_calls", limit=SLOW[0])
class ChargesDeniedCalls(MemoryRateLimiterDriver):
    """Denied calls are charged."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return super()._decide(limits, replace(demand, count_denied=True), now_ms)


@caught_by("ratelimit.test_ratelimit.test_denied_calls", limit=SLOW[1])
class IgnoresCountDenied(MemoryRateLimiterDriver):
    """Denied calls are never charged, also with `count_denied`."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return super()._decide(limits, replace(demand, count_denied=False), now_ms)


@caught_by("ratelimit.test_ratelimit.test_what_remains", limit=SLOW[2])
class AllowsOneMore(MemoryRateLimiterDriver):
    """A comparison has the wrong sign: one call more passes."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return super()._decide(tuple((name, _larger(limit)) for name, limit in limits), demand, now_ms)


def _larger(limit: Limit) -> Limit:
    if isinstance(limit, TokenBucket):
        return attrs.evolve(limit, burst=limit.burst + 1)
    return attrs.evolve(limit, limit=limit.limit + 1)


@caught_by("ratelimit.test_ratelimit.test_a_window_slides", limit=QUICK[2])
class AlignsWindows(MemoryRateLimiterDriver):
    """Every window is a fixed one, so that twice its limit passes around its end."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        fixed = tuple(
            (name, limit if isinstance(limit, Concurrency) else FixedWindow(limit.capacity, limit.per))
            for name, limit in limits
        )
        return super()._decide(fixed, demand, now_ms)


@caught_by("ratelimit.test_ratelimit.test_what_remains", limit=SLOW[0])
class ChargesOne(MemoryRateLimiterDriver):
    """Every call costs 1."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return super()._decide(limits, replace(demand, costs=tuple(min(1, each) for each in demand.costs)), now_ms)


@caught_by("ratelimit.test_ratelimit.test_looking_changes_nothing", limit=SLOW[0])
class SharesKeys(MemoryRateLimiterDriver):
    """All keys are one."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return super()._decide(limits, replace(demand, account=replace(demand.account, key="")), now_ms)


@caught_by("ratelimit.test_ratelimit.test_looking_changes_nothing", limit=SLOW[0])
class ChargesPeeks(MemoryRateLimiterDriver):
    """A peek costs 1."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return super()._decide(limits, replace(demand, costs=tuple(max(1, each) for each in demand.costs)), now_ms)


@caught_by("ratelimit.test_ratelimit.test_time_steps_back", limit=SLOW[0])
class TrustsTheClock(MemoryRateLimiterDriver):
    """A clock that is set back makes charges void."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        known = self._store.accounts.get(demand.account)
        if known is not None:
            now = self._now()
            known.states = {name: state for name, state in known.states.items() if state[0] <= now + 1000 * 60}
        return super()._decide(limits, demand, now_ms)


@caught_by("ratelimit.test_ratelimit.test_a_limit_is_made_smaller", **SMALLER)
class KeepsDebtsOfLargerLimits(MemoryRateLimiterDriver):
    """A limit that is made smaller counts everything that the larger one charged."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        known = self._store.accounts.get(demand.account)
        states = known.states if known is not None else {}
        for name, limit in limits:
            state = states.get(kept_under(name, limit), ())
            if isinstance(limit, TokenBucket) and state and len(state) % 2 == 0 and state[1] > Bucket(limit).full:
                states[kept_under(name, limit)] = (*state, Bucket(limit).mark)
        return super()._decide(limits, demand, now_ms)


@caught_by("ratelimit.test_ratelimit.test_large_numbers")
class RoundsLargeCosts(MemoryRateLimiterDriver):
    """A large cost loses its last digits."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return super()._decide(limits, replace(demand, costs=tuple(map(_cut, demand.costs))), now_ms)


def _cut(cost: int) -> int:
    return int(float(f"{cost:.6g}"))


# --- decisions ---------------------------------------------------------------------------------------------------


@caught_by("ratelimit.test_ratelimit.test_retry_after_is_exact", limit=QUICK[0])
class HidesRetryAfter(MemoryRateLimiterDriver):
    """`retry_after` is 0."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        ruling = super()._decide(limits, demand, now_ms)
        return replace(ruling, retry_after=None if ruling.retry_after is None else 0.0)


@caught_by("ratelimit.test_ratelimit.test_retry_after_is_exact", limit=QUICK[1])
class RoundsRetryAfter(MemoryRateLimiterDriver):
    """`retry_after` is rounded to a hundredth of a second."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        ruling = super()._decide(limits, demand, now_ms)
        return replace(ruling, retry_after=ruling.retry_after and round(ruling.retry_after, 2))


@caught_by("ratelimit.test_ratelimit.test_too_large", limit=SLOW[0])
class PromisesImpossibleCosts(MemoryRateLimiterDriver):
    """A call that can never pass is told to come again."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        ruling = super()._decide(limits, demand, now_ms)
        return replace(ruling, retry_after=1.0 if ruling.retry_after is None else ruling.retry_after)


@caught_by("ratelimit.test_ratelimit.test_what_remains", limit=SLOW[0])
class ReportsOneLess(MemoryRateLimiterDriver):
    """`remaining` is one too few."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return _each(
            super()._decide(limits, demand, now_ms),
            lambda each: replace(each, remaining=max(0, each.remaining - 1)),
        )


@caught_by("ratelimit.test_ratelimit.test_what_remains", limit=SLOW[0])
class ReportsRemainingBefore(MemoryRateLimiterDriver):
    """`remaining` is that before the call."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        before = super()._decide(limits, replace(demand, costs=(0,) * len(limits)), now_ms)
        ruling = super()._decide(limits, demand, now_ms)
        levels = zip(ruling.levels, before.levels, strict=True)
        return replace(ruling, levels=tuple(replace(now, remaining=was.remaining) for now, was in levels))


@caught_by("ratelimit.test_ratelimit.test_reset_after", limit=QUICK[0])
class HalvesResetAfter(MemoryRateLimiterDriver):
    """`reset_after` is half of the time that it takes."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return _each(
            super()._decide(limits, demand, now_ms), lambda each: replace(each, reset_after=each.reset_after / 2)
        )


@caught_by("ratelimit.test_ratelimit.test_reset_after", limit=QUICK[0])
class ExpiresKeysEarly(MemoryRateLimiterDriver):
    """The stored state of a key goes too early."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        known = self._store.accounts.get(demand.account)
        if known is not None and self._now() > known.ends_ms - 100:
            del self._store.accounts[demand.account]
        return super()._decide(limits, demand, now_ms)


# --- settlements, resets, observations ---------------------------------------------------------------------------


@caught_by("ratelimit.test_ratelimit.test_settle", limit=SLOW[0])
class IgnoresSettlements(MemoryRateLimiterDriver):
    """An estimated cost stays."""

    async def settle(self, account: Account, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(account, token, ())


@caught_by("ratelimit.test_ratelimit.test_settle", limit=SLOW[1])
class ChargesNothingMore(MemoryRateLimiterDriver):
    """A call that cost more than its estimate is not charged the difference."""

    async def settle(self, account: Account, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(account, token, [each for each in charges if each.actual < each.cost])


@caught_by("ratelimit.test_ratelimit.test_settled_late", limit=QUICK[0])
class RefundsLate(MemoryRateLimiterDriver):
    """A refund counts although its charge counts no longer."""

    async def settle(self, account: Account, token: str, charges: Sequence[Charge]) -> None:
        known = self._store.accounts.get(account)
        for each in charges:
            for name, state in (known.states if known else {}).items():
                if known and each.actual < each.cost and not isinstance(each.limit, Concurrency):
                    known.states[name] = (state[0], *(0 for _ in state[1:]))


@caught_by("ratelimit.test_ratelimit.test_settled_once", limit=SLOW[0])
class RefundsTwice(MemoryRateLimiterDriver):
    """Every refund counts twice."""

    async def settle(self, account: Account, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(account, token, charges)
        await super().settle(account, token, charges)


@caught_by("ratelimit.test_ratelimit.test_parallel_places")
class KeepsSlots(MemoryRateLimiterDriver):
    """A slot of a concurrency limit is kept until its ttl is over."""

    async def settle(self, account: Account, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(account, token, [each for each in charges if not isinstance(each.limit, Concurrency)])


@caught_by("ratelimit.test_ratelimit.test_places_end")
class NeverExtendsSlots(MemoryRateLimiterDriver):
    """A slot ends after its ttl, although its owner renews it."""

    async def extend(self, slots: Sequence[Any]) -> list[bool]:
        return [True for _ in slots]


@caught_by("ratelimit.test_ratelimit.test_looking_changes_nothing", limit=SLOW[0])
class IgnoresResets(MemoryRateLimiterDriver):
    """A reset is answered and not done."""

    async def reset(self, account: Account, limits: Sequence[Any]) -> None:
        return


@caught_by("ratelimit.test_ratelimit.test_looking_changes_nothing", limit=SLOW[0])
class ResetsAllKeys(MemoryRateLimiterDriver):
    """A reset resets all keys."""

    async def reset(self, account: Account, limits: Sequence[Any]) -> None:
        self._store.accounts.clear()


@caught_by("ratelimit.test_ratelimit.test_observe", limit=SLOW[0])
class ObservesHigherLimits(MemoryRateLimiterDriver):
    """An observation counts also where it allows more."""

    async def observe(self, account: Account, observation: Observation) -> None:
        await self.reset(account, ((observation.name, observation.limit),))
        await super().observe(account, observation)


@caught_by("ratelimit.test_ratelimit.test_observe", limit=SLOW[0])
class IgnoresObservations(MemoryRateLimiterDriver):
    """An observation is ignored."""

    async def observe(self, account: Account, observation: Observation) -> None:
        return


# --- the wait queue ----------------------------------------------------------------------------------------------


@caught_by("ratelimit.test_ratelimit_waiting.test_small_calls_do_not_starve_a_large_one")
class HasNoQueue(MemoryRateLimiterDriver):
    """A call that comes at the right time passes all that wait."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        return super()._decide(limits, replace(demand, place=None), now_ms)


@caught_by("ratelimit.test_ratelimit_waiting.test_what_is_given_back_wakes_who_waits")
class WakesNoCaller(MemoryRateLimiterDriver):
    """A refund wakes no waiting call; each looks again by itself."""

    async def settle(self, account: Account, token: str, charges: Sequence[Charge]) -> None:
        known = self._store.accounts.get(account)
        waiters = dict(known.line.waiters) if known else {}
        if known:
            known.line.waiters.clear()
        await super().settle(account, token, charges)
        if known:
            waiters.pop(token, None)
            known.line.waiters.update(waiters)


@caught_by("ratelimit.test_ratelimit_waiting.test_in_turn")
class ServesTheLastCallFirst(MemoryRateLimiterDriver):
    """The wait queue is a stack."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        ruling = super()._decide(limits, demand, now_ms)
        known = self._store.accounts.get(demand.account)
        if known and demand.place and not ruling.allowed:
            for token in [each for each in known.line.waiters if each != demand.token]:
                known.line.waiters[token] = known.line.waiters.pop(token)
        return ruling


@caught_by("ratelimit.test_ratelimit_waiting.test_who_gives_up_gives_everything_back")
class KeepsPlacesOfTimedOutCalls(MemoryRateLimiterDriver):
    """A call that gives up stays in the wait queue."""

    async def settle(self, account: Account, token: str, charges: Sequence[Charge]) -> None:
        known = self._store.accounts.get(account)
        waiter = known.line.waiters.get(token) if known else None
        await super().settle(account, token, charges)
        if known and waiter:
            known.line.waiters[token] = waiter


@caught_by("ratelimit.test_ratelimit.test_remembered_denials")
class RemembersDenialsTooLong(MemoryRateLimiterDriver):
    """Where nothing is given back, denials last longer than they have to."""

    def _decide(self, limits: Limits, demand: Demand, now_ms: int) -> Ruling:
        ruling = super()._decide(limits, demand, now_ms)
        if demand.account.final and not ruling.allowed and ruling.retry_after:
            states = self._store.accounts[demand.account].states
            for name, limit in limits:
                if isinstance(limit, TokenBucket) and (kept := kept_under(name, limit)) in states:
                    its = Bucket(limit)
                    latest, debt, *lows = its._mine(states[kept])
                    states[kept] = its._marked((latest, debt + debt // 2, *lows))
        return ruling
