"""Memory rate limiters with planted bugs in budget trees."""

import sys
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from ailf import LimiterName, Page
from ailf.driver import Charge, LimiterKey, LimitRequest, LimitResult, Limits, Observation
from ailf_memory.ratelimit import MemoryRateLimiterDriver
from ailf_memory.state.ratelimit import Branch
from tests.contract.planted.base import caught_by


class ChangesKeys(MemoryRateLimiterDriver):
    """Decisions in a tree use other keys; subclasses define which."""

    def _charged(self, limiter_key: LimiterKey) -> LimiterKey:
        raise NotImplementedError

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        charged = request.limiter_key
        if charged.root is not None:
            request = replace(request, limiter_key=self._charged(charged))
        return super()._decide(limits, request, now_ms)


@caught_by("ratelimit.test_budget_tree.test_a_key_for_each_limit")
class ChargesOneKey(ChangesKeys):
    """Every limit is charged under the key of the last one."""

    def _charged(self, limiter_key: LimiterKey) -> LimiterKey:
        return replace(limiter_key, keys=tuple((name, limiter_key.keys[-1][1]) for name, _ in limiter_key.keys))


@caught_by("ratelimit.test_budget_tree.test_trees_share_nothing")
class SharesRoots(ChangesKeys):
    """Trees with different roots share their states."""

    def _charged(self, limiter_key: LimiterKey) -> LimiterKey:
        return replace(limiter_key, root="root")


@caught_by("ratelimit.test_budget_tree.test_one_key_and_many_keys")
class SeparatesCallsWithOneKey(ChangesKeys):
    """Calls with one key have states of their own."""

    def _charged(self, limiter_key: LimiterKey) -> LimiterKey:
        return replace(limiter_key, root=f"{limiter_key.root} {limiter_key.key}")


@caught_by("ratelimit.test_budget_tree.test_a_key_for_each_limit")
class ChargesEachLimit(MemoryRateLimiterDriver):
    """Each limit decides by itself, and is charged if it allows the call."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        if len(limits) == 1:
            return super()._decide(limits, request, now_ms)
        parts = zip(limits, request.limiter_key.branches(), request.costs, strict=True)
        results = [
            self._decide((each,), replace(request, limiter_key=branch, costs=(cost,)), now_ms)
            for each, branch, cost in parts
        ]
        return replace(
            min(results, key=lambda each: each.allowed),
            levels=tuple(each.levels[0] for each in results),
            receipts=tuple(each.receipts[0] for each in results),
        )


@caught_by("ratelimit.test_budget_tree.test_retry_after_of_a_tree")
@caught_by("ratelimit.test_budget_tree.test_a_limit_of_the_tree_that_never_allows_it")
class ReportsTheShortestWait(MemoryRateLimiterDriver):
    """`retry_after` is that of the limit with the shortest wait."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        result = super()._decide(limits, request, now_ms)
        waits = [each.retry_after for each in result.levels if each.retry_after is not None]
        return replace(result, retry_after=min(waits, default=0.0))


@caught_by("ratelimit.test_budget_tree.test_reservations_in_a_tree")
class ReservesForTheFirstLimit(MemoryRateLimiterDriver):
    """A reservation is ready when the first limit allows it."""

    def _decide(self, limits: Limits, request: LimitRequest, now_ms: int) -> LimitResult:
        result = super()._decide(limits, request, now_ms)
        return replace(result, retry_after=result.levels[0].retry_after) if request.max_wait else result


@caught_by("ratelimit.test_budget_tree.test_remembered_denials_of_a_tree")
class SharesKeysWithoutRefunds(ChangesKeys):
    """Limiters that remember denials charge the keys of those that don't."""

    def _charged(self, limiter_key: LimiterKey) -> LimiterKey:
        return replace(limiter_key, no_refunds=False)


@caught_by("ratelimit.test_budget_tree.test_settling_in_a_tree")
class SettlesTheFirstLimit(MemoryRateLimiterDriver):
    """A settlement reaches one limit only."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        await super().settle(limiter_key, token, charges[:1])


@caught_by("ratelimit.test_budget_tree.test_slots_in_a_tree")
class ExtendsTheLastSlot(MemoryRateLimiterDriver):
    """Of the slots of a call only those of the last limit are extended."""

    async def extend(self, slots: Sequence[Any]) -> list[bool]:
        return await super().extend([replace(each, limits=each.limits[-1:]) for each in slots])


@caught_by("ratelimit.test_budget_tree.test_some_keys_of_a_tree")
class ResetsTheFirstLimit(MemoryRateLimiterDriver):
    """A reset of several keys resets one."""

    async def reset(self, limiter_key: LimiterKey, limits: Limits) -> None:
        await super().reset(replace(limiter_key, keys=limiter_key.keys[:1]), limits[:1])


@caught_by("ratelimit.test_budget_tree.test_some_keys_of_a_tree")
class ObservesUnderTheRoot(MemoryRateLimiterDriver):
    """A report is noted under the root, not under the key."""

    async def observe(self, limiter_key: LimiterKey, observation: Observation) -> None:
        await super().observe(replace(limiter_key, keys=((observation.name, limiter_key.root or ""),)), observation)


@caught_by("ratelimit.test_budget_tree.test_listing_a_tree")
class ListsNoRoots(MemoryRateLimiterDriver):
    """The keys of a tree are listed without root and limit."""

    async def list_keys(self, prefix: str, cursor: str, limit: int) -> Page[LimiterName]:
        page = await super().list_keys(prefix, cursor, limit)
        return replace(page, items=tuple(LimiterName(each.name, each.key) for each in page.items))


# --- the wait queues ---------------------------------------------------------------------------------------------


@caught_by("ratelimit.test_budget_tree.test_a_teams_wait_blocks_no_other_team")
class WaitsForTheLastLimit(MemoryRateLimiterDriver):
    """A denied call waits in the queue of the last limit, which all share."""

    def _enqueue(self, request: LimitRequest, branches: Sequence[Branch], home: Branch | None, now_ms: int) -> int:
        return super()._enqueue(request, branches[-1:], home, now_ms)


@caught_by("ratelimit.test_budget_tree.test_a_wait_for_the_shared_limit_blocks_all")
class WaitsForTheFirstLimit(MemoryRateLimiterDriver):
    """A denied call waits in the queue of the first limit, whichever denies it."""

    def _enqueue(self, request: LimitRequest, branches: Sequence[Branch], home: Branch | None, now_ms: int) -> int:
        wait = max(each.wait_ms for each in branches)
        branches[0].wait_ms = wait
        return super()._enqueue(request, branches[:1], home, now_ms)


@caught_by("ratelimit.test_budget_tree.test_a_wait_moves_to_the_limit_that_binds")
class NeverMoves(MemoryRateLimiterDriver):
    """A call that waits stays in the queue that it joined first."""

    def _enqueue(self, request: LimitRequest, branches: Sequence[Branch], home: Branch | None, now_ms: int) -> int:
        return super()._enqueue(request, branches if home is None else [home], home, now_ms)


@caught_by("ratelimit.test_budget_tree.test_a_wait_that_moves_keeps_its_turn")
class LosesTurns(MemoryRateLimiterDriver):
    """A call that moves to another queue goes to its end."""

    def _enqueue(self, request: LimitRequest, branches: Sequence[Branch], home: Branch | None, now_ms: int) -> int:
        if home is not None and home.own is not None:
            home.own.since = sys.maxsize
        return super()._enqueue(request, branches, home, now_ms)


@caught_by("ratelimit.test_budget_tree.test_a_wait_moves_to_the_limit_that_binds")
class WakesNoCallBehind(MemoryRateLimiterDriver):
    """A call that leaves a queue doesn't wake the next one."""

    def _leave(self, branch: Branch, token: str, now_ms: int) -> None:
        branch.queue.leave(token)


@caught_by("ratelimit.test_budget_tree.test_a_later_wait_holds_up_no_earlier_one")
class WaitsForLaterCalls(MemoryRateLimiterDriver):
    """A waiting call must be first in the queues of all of its limits."""

    def _look_at_queues(self, *args: Any) -> list[Branch]:
        branches = super()._look_at_queues(*args)
        for each in branches:
            each.behind = each.first is not None and each.own is None
        return branches


@caught_by("ratelimit.test_budget_tree.test_refunds_wake_the_waiting_call_of_their_key")
class WakesTheLastQueue(MemoryRateLimiterDriver):
    """A refund wakes the first waiter of the last limit only."""

    def _settle(self, branch: LimiterKey, token: str, charges: Sequence[Charge], now_ms: int) -> None:
        state = self._store.limiters.get(branch)
        waiters = dict(state.queue.waiters) if state and branch.keys[0][0] == "team" else {}
        if state and waiters:
            state.queue.waiters.clear()
        super()._settle(branch, token, charges, now_ms)
        if state and waiters:
            waiters.pop(token, None)
            state.queue.waiters.update(waiters)


@caught_by("ratelimit.test_budget_tree.test_a_wait_that_times_out_leaves_nothing")
class LeavesTheFirstQueueOnly(MemoryRateLimiterDriver):
    """A call that gives up leaves the queue of the first limit only."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        first = limiter_key.branches()[0]
        await super().settle(first, token, [each for each in charges if each.name == first.keys[0][0]])


@caught_by("ratelimit.test_budget_tree.test_a_wait_that_times_out_leaves_nothing")
class LeavesTheLastQueueOnly(MemoryRateLimiterDriver):
    """A call that gives up leaves the queue of the last limit only."""

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        last = limiter_key.branches()[-1]
        await super().settle(last, token, [each for each in charges if each.name == last.keys[0][0]])
