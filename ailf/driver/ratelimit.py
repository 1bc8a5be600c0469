"""What a backend implements for rate limiters: one atomic decision, and what trues it up."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import attrs

from ailf.algorithms import Mark
from ailf.driver.lock import Place
from ailf.limits import Concurrency, Limit

__all__ = ["Account", "Charge", "Demand", "Level", "Observation", "RateLimiterDriver", "Ruling", "SlotLease"]


@attrs.frozen
class Account:
    """What is charged: one key of a limiter.

    Attributes:
        limiter: The limiter's name.
        key: The key; it may be empty.
        final: Whether nothing is ever given back; such an account is another one than that which isn't (R11).
    """

    limiter: str
    key: str
    final: bool = False


@attrs.frozen
class Charge:
    """What a call costs of one limit.

    Attributes:
        name: The limit's name within the limiter.
        limit: The limit.
        cost: How much; 0 only looks.
        mark: In a settlement: what the decision said of it.
        actual: In a settlement: what it should have been.
    """

    name: str
    limit: Limit
    cost: int
    mark: Mark = ()
    actual: int = 0


@attrs.frozen
class Demand:
    """A call that wants to pass.

    Attributes:
        account: What is charged.
        charges: What it costs, for every limit of the limiter.
        token: Whose call it is; random.
        patience: Seconds that it may have to wait after it is charged: a reservation.
        count_denied: Whether it is charged as far as there is room when it is denied.
        place: Where it waits in line when it is denied; None for not waiting.
    """

    account: Account
    charges: tuple[Charge, ...]
    token: str
    patience: float = 0.0
    count_denied: bool = False
    place: Place | None = None

    @property
    def looks(self) -> bool:
        """Whether it charges nothing, and so waits for nobody."""
        return not any(each.cost for each in self.charges)


@attrs.frozen
class Level:
    """How one limit stands after a decision.

    Attributes:
        remaining: The largest cost that would pass (R4).
        retry_after: Seconds after which this limit allows the call; 0 if it did, None if it never will (R3).
        reset_after: Seconds until everything would pass.
        mark: What `RateLimiterDriver.settle` wants to be told.
    """

    remaining: int
    retry_after: float | None
    reset_after: float
    mark: Mark = ()


@attrs.frozen
class Ruling:
    """A decision.

    Attributes:
        allowed: Whether the call passes; for a reservation, after ``retry_after`` seconds.
        retry_after: Seconds after which another try may do better; None for never.
        at: The backend's time of the decision, in seconds since 1970.
        levels: How each limit stands.
        queued: Whether somebody else is first in line: then ``retry_after`` is a guess, and a wake-up comes.
    """

    allowed: bool
    retry_after: float | None
    at: float
    levels: tuple[Level, ...]
    queued: bool = False


@attrs.frozen
class SlotLease:
    """The places that one call has of limits of concurrency."""

    account: Account
    token: str
    limits: tuple[tuple[str, Concurrency], ...]


@attrs.frozen
class Observation:
    """What a provider said of one limit; see `RateLimiter.observe`. Times are in seconds."""

    name: str
    limit: Limit
    remaining: int | None = None
    reset_after: float = 0.0
    pause: float = 0.0


class RateLimiterDriver(ABC):
    """Rate limiters. Every method is one atomic step on *now*, by the arithmetic of `ailf.algorithms`, to the bit.

    What is stored *must* go by itself when it is as good as fresh, and *must not* go before (R8).
    """

    @abstractmethod
    async def decide(self, demand: Demand) -> Ruling:
        """Charge a call if every limit allows it, or nothing (R1), as `ailf.algorithms.decide` does.

        A call that isn't first in line *must* be denied while somebody alive is (R10). With a place, a denied call
        *must* be put at the end of the line of its account, or keep its place there. Who passes leaves the line, and
        the next one *must* be woken. Places of limits of concurrency that the token has already are given back first,
        so a call whose answer was lost may be made again.
        """

    @abstractmethod
    async def settle(self, account: Account, token: str, charges: Sequence[Charge]) -> None:
        """Let charges be as though they had been ``actual`` (R7), and let the token leave the line (R10).

        Whoever is first in line *must* be woken if that may help him.
        """

    @abstractmethod
    async def extend(self, slots: Sequence[SlotLease]) -> list[bool]:
        """Let places of calls last for their whole time again; for each call, False where one has ended."""

    @abstractmethod
    async def observe(self, account: Account, observation: Observation) -> None:
        """Let no more pass than a provider said."""

    @abstractmethod
    async def reset(self, account: Account, limits: Sequence[tuple[str, Limit]]) -> None:
        """Forget everything that was charged (R5), and wake the first in line."""
