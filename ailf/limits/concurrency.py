"""The concurrency limit: at most `limit` slots at once, each held by a lease."""

from typing import ClassVar

import attrs

from ailf.checks import valid_count
from ailf.limits.base import NAMED, Algorithm, ChargeReceipt, Limit, State, period_text, valid_period

__all__ = ["Concurrency", "ConcurrencyAlgorithm"]


@attrs.frozen(cache_hash=True)
class Concurrency(Limit):
    """A concurrency limit: at most `limit` calls at once, each in a leased slot that is renewed until it is released.

    A call of cost n takes n slots. The backend's work grows with n.

    Attributes:
        limit: The number of slots.
        ttl: Seconds after which the slots of a process that has died are free again, to the millisecond.

    Example:
        >>> from ailf import Concurrency
        >>> str(Concurrency(8, ttl=120))
        '8 parallel ttl 120s'
    """

    code: ClassVar[str] = "c"
    leased: ClassVar[bool] = True

    limit: int = attrs.field(validator=valid_count)
    ttl: float = attrs.field(default=60.0, validator=valid_period)

    @property
    def ttl_ms(self) -> int:
        """The length of a lease in milliseconds."""
        return round(self.ttl * 1000)

    @property
    def capacity(self) -> int:
        """The largest cost that can ever pass."""
        return self.limit

    @property
    def numbers(self) -> tuple[int, int, int]:
        """The length of a lease in milliseconds, and the limit."""
        return self.ttl_ms, self.limit, 0

    @property
    def identity(self) -> str:
        """The kind. A changed `ttl` counts from the next call on."""
        return "c 0"

    def algorithm(self) -> Algorithm:
        """Return its arithmetic."""
        return ConcurrencyAlgorithm(self)

    def __str__(self) -> str:
        return f"{self.limit} parallel ttl {period_text(self.ttl_ms) if self.ttl_ms not in NAMED else f'{self.ttl:g}s'}"


class ConcurrencyAlgorithm(Algorithm):
    """The arithmetic of `Concurrency`: a state holds (end of the lease, token) for each slot, sorted.

    Settling is all or nothing: a call keeps its slots, or releases them.
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
        alive = [slot for slot in state if slot[0] > now]
        return tuple(sorted([*alive, *[(now + self.ttl, token)] * cost])), (token,)

    def settle(self, state: State, now: int, receipt: ChargeReceipt, charged: int, actual: int) -> State:
        return state if actual else self.without(state, *receipt)

    def observe(self, state: State, now: int, remaining: int | None, reset_ms: int, pause_ms: int) -> State:
        return state

    def without(self, state: State, token: str) -> State:
        return tuple(slot for slot in state if slot[1] != token)

    def extend(self, state: State, now: int, token: str) -> State | None:
        """Return the state with a token's leases extended to their full length; None if they have ended."""
        if not any(slot[1] == token and slot[0] > now for slot in state):
            return None
        return tuple(sorted((now + self.ttl, token) if slot[1] == token else slot for slot in state))
