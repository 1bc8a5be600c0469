"""Rate limiters over Redis: one short text holds the states of all limits of a key, and one script decides."""

import hashlib
from collections.abc import Hashable, Sequence
from functools import lru_cache, partial
from typing import Any

from ailf.checks import to_ms
from ailf.driver import (
    Charge,
    LimiterKey,
    LimitRequest,
    LimitResult,
    Limits,
    Observation,
    RateLimiterDriver,
    SlotLease,
    WaiterInfo,
)
from ailf.errors import BackendError
from ailf.limits import Limit
from ailf.values import LimiterName, LimitState, Page
from ailf_redis.connection.executor import Executor
from ailf_redis.errors import MISREAD, misread
from ailf_redis.keys import Keys
from ailf_redis.listing import Pass, scan
from ailf_redis.replies import as_nothing
from ailf_redis.scripts import DECIDE, EXTEND_SLOTS, OBSERVE, RESET, SETTLE_CHARGES

__all__ = ["RedisRateLimiterDriver"]

NEVER = -1
NUMBERS = {int}
ALL, LEVEL = 2, 5
"""The numbers that a reply has for each call, and besides for each limit of the call."""


@lru_cache(maxsize=1024)
def _arguments(name: str, limit: Limit) -> tuple[str, ...]:
    """Return a limit as ``lua/shared/limit.lua`` takes it, in the branch of the limit before it.

    The digest is the id of the limit's state: a limit of another name or `Limit.identity` has a state of its own.
    """
    digest = hashlib.sha1(f"{limit.identity} {name}".encode(), usedforsecurity=False).hexdigest()
    return (limit.code, digest[:8], *map(str, limit.numbers))


@lru_cache(maxsize=1024)
def _branch_arguments(name: str, limit: Limit) -> tuple[str, ...]:
    """Return a limit as ``lua/shared/limit.lua`` takes it, at the beginning of a branch of its own."""
    kind, *others = _arguments(name, limit)
    return (kind.upper(), *others)


@lru_cache(maxsize=1024)
def _all_arguments(limits: Limits) -> list[str]:
    """Return the number of limits, and each limit as ``lua/shared/limit.lua`` takes it, all in one branch."""
    return [str(len(limits)), *(each for name, limit in limits for each in _arguments(name, limit))]


@lru_cache(maxsize=1024)
def _all_tree_arguments(limits: Limits) -> list[str]:
    """Return the same as `_all_arguments`, with a branch for each limit."""
    first, *others = limits
    return [str(len(limits)), *_arguments(*first), *(part for each in others for part in _branch_arguments(*each))]


@lru_cache(maxsize=1024)
def _slots(limits: Limits) -> tuple[str, ...]:
    """Return the names of the concurrency limits."""
    return tuple(name for name, limit in limits if limit.leased)


class RedisRateLimiterDriver(RateLimiterDriver):
    """The transitions of rate limiters; each is one script."""

    def __init__(self, executor: Executor, keys: Keys) -> None:
        self._executor = executor
        self._keys = keys

    def _limiter_key(self, limiter_key: LimiterKey, limits: Limits) -> tuple[str, ...]:
        """Return the keys of all branches. Of a tree, `limits` are all limits that `limiter_key` has keys for."""
        if limiter_key.root is None:
            return self._keys.limiter(limiter_key, _slots(limits))
        return self._keys.limiter_tree(limiter_key, _slots(limits))

    def _branch(self, limiter_key: LimiterKey, name: str, limit: Limit) -> tuple[str, ...]:
        """Return the keys of the branch of one limit, without slots of other limits."""
        return self._keys.limiter(limiter_key.branch_of(name), (name,) if limit.leased else ())

    async def decide(self, limits: Limits, requests: Sequence[LimitRequest]) -> Sequence[LimitResult | BackendError]:
        if len(requests) == 1:
            keys, arguments = self._request(limits, requests)
            return await DECIDE.run(self._executor, keys, arguments, partial(self._results, len(limits), 1))
        by_key: dict[LimiterKey, list[int]] = {}
        for number, each in enumerate(requests):
            by_key.setdefault(each.limiter_key, []).append(number)
        calls = [self._request(limits, [requests[each] for each in numbers]) for numbers in by_key.values()]
        decided: list[Any] = [None] * len(requests)
        for numbers, reply in zip(by_key.values(), await DECIDE.run_many(self._executor, calls), strict=True):
            if isinstance(reply, BackendError):
                results: Sequence[Any] = [reply] * len(numbers)
            else:
                try:
                    results = self._results(len(limits), len(numbers), reply)
                except MISREAD as error:
                    results = [misread(error, self._executor.where)] * len(numbers)
            for number, result in zip(numbers, results, strict=True):
                decided[number] = result
        return decided

    def _request(self, limits: Limits, requests: Sequence[LimitRequest]) -> tuple[tuple[str, ...], list[Any]]:
        """Return the keys and arguments of calls on one key of a limiter."""
        limiter_key = requests[0].limiter_key
        arguments = list(_all_arguments(limits) if limiter_key.root is None else _all_tree_arguments(limits))
        for each in requests:
            channel, lease = ("", "0") if each.waiter is None else self._waiter_arguments(each.waiter)
            max_wait = str(to_ms(each.max_wait)) if each.max_wait else "0"
            costs = map(str, each.costs)
            arguments += (each.token, max_wait, "1" if each.count_denied else "0", channel, lease, *costs)
        return self._limiter_key(limiter_key, limits), arguments

    def _waiter_arguments(self, waiter: WaiterInfo) -> tuple[str, str]:
        return self._keys.waiter_channel(waiter.channel), str(to_ms(waiter.lease))

    def _results(self, limits: int, count: int, reply: list[int]) -> list[LimitResult]:
        """Read the reply to `count` calls, each with `limits` limits."""
        if set(map(type, reply)) != NUMBERS:
            raise TypeError("a decision consists of numbers")
        at, size = reply[0] / 1000, (len(reply) - 1) // count
        if len(reply) != 1 + count * size or size != ALL + LEVEL * limits:
            raise ValueError
        results = []
        for begin in range(1, len(reply), size):
            levels, receipts = [], []
            for level in range(begin + ALL, begin + size, LEVEL):
                remaining, wait, reset, one, two = reply[level : level + LEVEL]
                levels.append(LimitState(remaining, _seconds(wait), reset / 1000))
                receipts.append((one, two))
            allowed, wait = reply[begin : begin + ALL]
            results.append(LimitResult(allowed == 1, _seconds(wait), at, tuple(levels), tuple(receipts)))
        return results

    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        tree = limiter_key.root is not None
        arguments: list[Any] = [token]
        for number, each in enumerate(charges):
            limit = _branch_arguments(each.name, each.limit) if tree and number else _arguments(each.name, each.limit)
            arguments += (*limit, each.cost, each.actual, *(*each.receipt, 0, 0)[:2])
        if tree:
            keys = self._settled_branches(limiter_key, charges)
        else:
            keys = self._limiter_key(limiter_key, tuple((each.name, each.limit) for each in charges))
        await SETTLE_CHARGES.run(self._executor, keys, arguments, as_nothing)

    def _settled_branches(self, limiter_key: LimiterKey, charges: Sequence[Charge]) -> tuple[str, ...]:
        """Return the keys of a tree's branches as ``settle.lua`` takes them: those with charges, and the other ones."""
        charged = [self._branch(limiter_key, each.name, each.limit) for each in charges]
        names = {each.name for each in charges}
        others = [self._keys.limiter(each, ())[:3] for each in limiter_key.branches() if each.keys[0][0] not in names]
        if not charged:
            charged.append(others.pop(0))
        return tuple(key for keys in (*charged, *(each[1:] for each in others)) for key in keys)

    async def extend(self, slots: Sequence[SlotLease]) -> list[bool]:
        calls = [
            (
                [self._branch(each.limiter_key, *slot)[3] for slot in each.limits],
                [each.token, len(each.limits), *(limit.ttl_ms for _, limit in each.limits)],
            )
            for each in slots
        ]
        return await EXTEND_SLOTS.run_together(self._executor, calls)

    async def observe(self, limiter_key: LimiterKey, observation: Observation) -> None:
        name, limit = observation.name, observation.limit
        remaining = NEVER if observation.remaining is None else observation.remaining
        reset_ms, pause_ms = to_ms(observation.reset_after), to_ms(observation.pause)
        arguments = [remaining, reset_ms, pause_ms, *_arguments(name, limit)]
        await OBSERVE.run(self._executor, self._branch(limiter_key, name, limit), arguments, as_nothing)

    async def reset(self, limiter_key: LimiterKey, limits: Limits) -> None:
        slots = _slots(limits)
        branches = [
            self._keys.limiter(each, slots if each.root is None else tuple({each.keys[0][0]} & {*slots}))
            for each in limiter_key.branches()
        ]
        keys = [key for each in branches for key in each]
        await RESET.run(self._executor, keys, [len(each) for each in branches], as_nothing)

    def server_of(self, limiter_key: LimiterKey) -> Hashable:
        return self._executor.server_of(self._keys.limiter(limiter_key.branches()[0], ())[0])

    async def list_keys(self, prefix: str, cursor: str, limit: int) -> Page[LimiterName]:
        pattern, read = self._keys.limiters_pattern(prefix), self._keys.limiter_name
        # The charges of rates, and the slots of concurrency limits; a key may have both, and then comes twice.
        passes = [Pass(pattern, "string", read), Pass(pattern, "zset", read)]
        found = await scan(self._executor, "limiters", passes, cursor, limit)
        return Page(tuple(found.names), found.cursor)


def _seconds(wait_ms: int) -> float | None:
    return wait_ms / 1000 if wait_ms != NEVER else None
