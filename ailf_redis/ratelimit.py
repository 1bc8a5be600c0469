"""Rate limiters over Redis: the states of all limits of a key in one small text, decided on by one script."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

from ailf.checks import to_ms
from ailf.driver import Account, Charge, Demand, Limits, Observation, Place, RateLimiterDriver, Ruling, SlotLease
from ailf.errors import BackendError
from ailf.limits import Limit
from ailf.values import LimitState
from ailf_redis.connection.executor import Executor
from ailf_redis.errors import MISREAD, misread
from ailf_redis.keys import Keys
from ailf_redis.replies import as_nothing
from ailf_redis.scripts import DECIDE, KEEP, OBSERVE, RESET, TRUE_UP

__all__ = ["RedisRateLimiterDriver"]

NEVER = -1
ALL, LEVEL = 2, 5
"""How many numbers a reply has for a call, and for each limit of it besides."""


@lru_cache(maxsize=1024)
def _arguments(name: str, limit: Limit) -> tuple[str, ...]:
    """Return a limit as ``lua/limit.lua`` takes it, but for the cost.

    Its id is what its state is kept under: a limit of another `Limit.identity` has a state of its own.
    """
    digest = hashlib.sha1(f"{limit.identity} {name}".encode(), usedforsecurity=False).hexdigest()
    return (limit.code, digest[:8], *map(str, limit.numbers))


@lru_cache(maxsize=1024)
def _all_arguments(limits: Limits) -> list[str]:
    """Return how many limits there are, and each as ``lua/limit.lua`` takes it."""
    return [str(len(limits)), *(each for name, limit in limits for each in _arguments(name, limit))]


@lru_cache(maxsize=1024)
def _slots(limits: Limits) -> tuple[str, ...]:
    """Return the names of the limits of concurrency."""
    return tuple(name for name, limit in limits if limit.leased)


class RedisRateLimiterDriver(RateLimiterDriver):
    """The transitions of rate limiters, each one script."""

    def __init__(self, executor: Executor, keys: Keys) -> None:
        self._executor = executor
        self._keys = keys

    def _account(self, account: Account, limits: Limits) -> tuple[str, ...]:
        return self._keys.account(account, _slots(limits))

    async def decide(self, limits: Limits, demands: Sequence[Demand]) -> Sequence[Ruling | BackendError]:
        if len(demands) == 1:
            keys, arguments = self._request(limits, demands)
            return await DECIDE.run(self._executor, keys, arguments, partial(self._rulings, len(limits), 1))
        accounts: dict[Account, list[int]] = {}
        for number, each in enumerate(demands):
            accounts.setdefault(each.account, []).append(number)
        calls = [self._request(limits, [demands[each] for each in numbers]) for numbers in accounts.values()]
        told: list[Any] = [None] * len(demands)
        for numbers, reply in zip(accounts.values(), await DECIDE.run_many(self._executor, calls), strict=True):
            if isinstance(reply, BackendError):
                rulings: Sequence[Any] = [reply] * len(numbers)
            else:
                try:
                    rulings = self._rulings(len(limits), len(numbers), reply)
                except MISREAD as error:
                    rulings = [misread(error, self._executor.where)] * len(numbers)
            for number, ruling in zip(numbers, rulings, strict=True):
                told[number] = ruling
        return told

    def _request(self, limits: Limits, demands: Sequence[Demand]) -> tuple[tuple[str, ...], list[Any]]:
        """Return the keys and arguments of calls on one account."""
        arguments = list(_all_arguments(limits))
        for each in demands:
            channel, lease = ("", "0") if each.place is None else self._waits_at(each.place)
            patience = str(to_ms(each.patience)) if each.patience else "0"
            costs = map(str, each.costs)
            arguments += (each.token, patience, "1" if each.count_denied else "0", channel, lease, *costs)
        return self._account(demands[0].account, limits), arguments

    def _waits_at(self, place: Place) -> tuple[str, str]:
        return self._keys.waiter_channel(place.channel), str(to_ms(place.lease))

    def _rulings(self, limits: int, count: int, reply: list[int]) -> list[Ruling]:
        """Return what a reply says of that many calls, each with that many limits."""
        at, size = reply[0] / 1000, (len(reply) - 1) // count
        if len(reply) != 1 + count * size or size != ALL + LEVEL * limits:
            raise ValueError
        rulings = []
        for begin in range(1, len(reply), size):
            levels, marks = [], []
            for level in range(begin + ALL, begin + size, LEVEL):
                remaining, wait, reset, one, two = reply[level : level + LEVEL]
                levels.append(LimitState(remaining, _seconds(wait), reset / 1000))
                marks.append((one, two))
            allowed, wait = reply[begin : begin + ALL]
            rulings.append(Ruling(allowed == 1, _seconds(wait), at, tuple(levels), tuple(marks)))
        return rulings

    async def settle(self, account: Account, token: str, charges: Sequence[Charge]) -> None:
        arguments: list[Any] = [token]
        for each in charges:
            arguments += (*_arguments(each.name, each.limit), each.cost, each.actual, *(*each.mark, 0, 0)[:2])
        keys = self._account(account, tuple((each.name, each.limit) for each in charges))
        await TRUE_UP.run(self._executor, keys, arguments, as_nothing)

    async def extend(self, slots: Sequence[SlotLease]) -> list[bool]:
        calls = [
            (
                self._account(each.account, each.limits)[3:],
                [each.token, len(each.limits), *(limit.ttl_ms for _, limit in each.limits)],
            )
            for each in slots
        ]
        return await KEEP.run_together(self._executor, calls)

    async def observe(self, account: Account, observation: Observation) -> None:
        name, limit = observation.name, observation.limit
        remaining = NEVER if observation.remaining is None else observation.remaining
        told = (remaining, to_ms(observation.reset_after), to_ms(observation.pause))
        arguments = [*told, *_arguments(name, limit)]
        await OBSERVE.run(self._executor, self._account(account, ((name, limit),)), arguments, as_nothing)

    async def reset(self, account: Account, limits: Limits) -> None:
        await RESET.run(self._executor, self._account(account, limits), [], as_nothing)


def _seconds(wait_ms: int) -> float | None:
    return wait_ms / 1000 if wait_ms != NEVER else None
