"""What a backend implements for rate limiters: one atomic decision, and what trues it up."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from ailf.driver.lock import WaiterInfo
from ailf.errors import BackendError
from ailf.limits import ChargeReceipt, Concurrency, Limit
from ailf.values import LimitState

__all__ = [
    "Charge",
    "LimitRequest",
    "LimitResult",
    "LimiterKey",
    "Limits",
    "Observation",
    "RateLimiterDriver",
    "SlotLease",
]

Limits: TypeAlias = tuple[tuple[str, Limit], ...]
"""The limits of a limiter with their names."""


class LimiterKey(msgspec.Struct, frozen=True, cache_hash=True):
    """What is charged: one key of a limiter.

    Attributes:
        limiter: The limiter's name.
        key: The key; it may be empty.
        final: Whether nothing is ever given back; such an account is another one than that which isn't (R11).
    """

    limiter: str
    key: str
    no_refunds: bool = False


class LimitRequest(msgspec.Struct, frozen=True):
    """A call that wants to pass.

    Attributes:
        account: What is charged.
        costs: What it costs of each limit; 0 only looks.
        token: Whose call it is; random where it may take places or wait, else it may be empty.
        patience: Seconds that it may have to wait after it is charged: a reservation.
        count_denied: Whether it is charged as far as there is room when it is denied.
        place: Where it waits in line when it is denied; None for not waiting.
    """

    limiter_key: LimiterKey
    costs: tuple[int, ...]
    token: str = ""
    max_wait: float = 0.0
    count_denied: bool = False
    waiter: WaiterInfo | None = None


class LimitResult(msgspec.Struct, frozen=True):
    """A decision.

    Attributes:
        allowed: Whether the call passes; for a reservation, after ``retry_after`` seconds.
        retry_after: Seconds after which another try may do better; None for never.
        at: The backend's time of the decision, in seconds since 1970.
        levels: How each limit stands.
        marks: What `RateLimiterDriver.settle` wants to be told of each charge.
    """

    allowed: bool
    retry_after: float | None
    at: float
    levels: tuple[LimitState, ...]
    receipts: tuple[ChargeReceipt, ...]


class Charge(msgspec.Struct, frozen=True):
    """What a call was charged by one limit, and what it should have been.

    Attributes:
        name: The limit's name within the limiter.
        limit: The limit.
        cost: What it was charged.
        mark: What the decision said of it.
        actual: What it should have been; of `Concurrency` all or nothing.
    """

    name: str
    limit: Limit
    cost: int
    receipt: ChargeReceipt = ()
    actual: int = 0


class SlotLease(msgspec.Struct, frozen=True):
    """The places that one call has of limits of concurrency."""

    limiter_key: LimiterKey
    token: str
    limits: tuple[tuple[str, Concurrency], ...]


class Observation(msgspec.Struct, frozen=True):
    """What a provider said of one limit; see `RateLimiter.observe`. Times are in seconds."""

    name: str
    limit: Limit
    remaining: int | None = None
    reset_after: float = 0.0
    pause: float = 0.0


class RateLimiterDriver(ABC):
    """Rate limiters. Every method is one atomic step on *now*, by the arithmetic of `ailf.limits`, to the bit.

    What is stored *must* go by itself when it is as good as fresh, and *must not* go before (R8).
    """

    @abstractmethod
    async def decide(self, limits: Limits, requests: Sequence[LimitRequest]) -> Sequence[LimitResult | BackendError]:
        """Charge calls, each if every limit allows it or nothing (R1), one after another, in one round trip.

        Each is decided on as `ailf.limits.decide` does. What is refused for one alone *may* be its result.

        A call that isn't first in line *must* be denied while somebody alive is (R10). With a place, a denied call
        *must* be put at the end of the line of its account, or keep its place there. Who passes leaves the line, and
        the next one *must* be woken. Places of limits of concurrency that the token has already are given back first,
        so a call whose answer was lost may be made again.
        """

    @abstractmethod
    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        """Let charges be as though they had been ``actual`` (R7), and let the token leave the line (R10).

        Whoever is first in line *must* be woken if that may help him.
        """

    @abstractmethod
    async def extend(self, slots: Sequence[SlotLease]) -> list[bool]:
        """Let places of calls last for their whole time again; for each call, False where one has ended."""

    @abstractmethod
    async def observe(self, limiter_key: LimiterKey, observation: Observation) -> None:
        """Let no more pass than a provider said."""

    @abstractmethod
    async def reset(self, limiter_key: LimiterKey, limits: Limits) -> None:
        """Forget everything that was charged (R5), and wake the first in line."""
