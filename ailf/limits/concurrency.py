"""Concurrency: `limit` calls at once, each with a lease."""

from typing import ClassVar

import attrs

from ailf.checks import valid_count
from ailf.limits.base import NAMED, Algorithm, ChargeReceipt, Limit, State, period_text, valid_period

__all__ = ["Concurrency", "ConcurrencyAlgorithm"]


@attrs.frozen(cache_hash=True)
class Concurrency(Limit):
    """So many at the same time. Each has a lease of its own, renewed until it is given back.

    A call that costs several takes as many places, and the backend as much work.

    Attributes:
        limit: How many.
        ttl: Seconds after which the place of a process that has died is free again.
    """

    code: ClassVar[str] = "c"
    leased: ClassVar[bool] = True

    limit: int = attrs.field(validator=valid_count)
    ttl: float = attrs.field(default=60.0, validator=valid_period)

    @property
    def ttl_ms(self) -> int:
        """The lease in milliseconds."""
        return round(self.ttl * 1000)

    @property
    def capacity(self) -> int:
        """The largest cost that can ever pass."""
        return self.limit

    @property
    def numbers(self) -> tuple[int, int, int]:
        """Lease in milliseconds, limit."""
        return self.ttl_ms, self.limit, 0

    @property
    def identity(self) -> str:
        """The kind: a changed lease counts from the next call on."""
        return "c 0"

    def algorithm(self) -> Algorithm:
        """Return its arithmetic."""
        return ConcurrencyAlgorithm(self)

    def __str__(self) -> str:
        return f"{self.limit} parallel ttl {period_text(self.ttl_ms) if self.ttl_ms not in NAMED else f'{self.ttl:g}s'}"


class ConcurrencyAlgorithm(Algorithm):
    """`Concurrency`: a state is (end of a lease, whose it is) for each, the first to end first.

    What is settled is all or nothing: a call keeps its places, or gives them back.
    """

    def __init__(self, limit: Concurrency) -> None:
        self.capacity, self.ttl = limit.limit, limit.ttl_ms

    def remaining(self, state: State, now: int) -> int:
        return max(0, self.capacity - len([end for end, _ in state if end > now]))

    def ends(self, state: State) -> int:
        return int(state[-1][0]) if state else 0

    def wait(self, state: State, now: int, cost: int) -> int | None:
        if cost > self.capacity:
            return None
        ends: list[int] = [end for end, _ in state if end > now]
        over = len(ends) + cost - self.capacity
        return ends[over - 1] - now if cost and over > 0 else 0

    def charge(self, state: State, now: int, cost: int, token: str) -> tuple[State, ChargeReceipt]:
        alive = [each for each in state if each[0] > now]
        return tuple(sorted([*alive, *[(now + self.ttl, token)] * cost])), (token,)

    def settle(self, state: State, now: int, receipt: ChargeReceipt, charged: int, actual: int) -> State:
        return state if actual else self.without(state, *receipt)

    def observe(self, state: State, now: int, remaining: int | None, reset_ms: int, pause_ms: int) -> State:
        return state

    def without(self, state: State, token: str) -> State:
        return tuple(each for each in state if each[1] != token)

    def extend(self, state: State, now: int, token: str) -> State | None:
        """Return the state with a token's leases begun anew; None where one of them has ended."""
        if not any(each[1] == token and each[0] > now for each in state):
            return None
        return tuple(sorted((now + self.ttl, token) if each[1] == token else each for each in state))
