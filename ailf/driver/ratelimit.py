"""The driver of rate limiters: decide on calls and settle their charges, each in one atomic step."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import TypeAlias

import msgspec

from ailf.driver.lock import WaiterInfo
from ailf.errors import BackendError
from ailf.limits import ChargeReceipt, Concurrency, Limit
from ailf.values import LimiterName, LimitState, Page

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


class LimiterKey(msgspec.Struct, frozen=True, cache_hash=True, gc=False):
    """What a call of a limiter is charged under: one key for all limits, or in a budget tree a key for each limit.

    A *branch* is what has states and a wait queue of its own. A limiter without a root has one for each key, with the
    states of all limits. A budget tree has one for each limit and key (R13). So a limiter without a root is the case of
    one branch, and the same steps serve both.

    Attributes:
        limiter: The limiter's name.
        key: The key; it may be empty. Of a call with several keys it is empty, and of a branch of a tree its key.
        no_refunds: Whether charges are never refunded. The keys with and without refunds are separate (R11).
        root: The root of a budget tree, or None. What has one root is stored together, on one server; trees with
            different roots, and limiters without one, share nothing.
        keys: In a budget tree the name of each limit and its key, in the order of the limits.
    """

    limiter: str
    key: str
    no_refunds: bool = False
    root: str | None = None
    keys: tuple[tuple[str, str], ...] = ()

    def branches(self) -> "tuple[LimiterKey, ...]":
        """Return the branches: of a budget tree one for each limit, in their order; else the key itself."""
        if self.root is None:
            return (self,)
        return tuple(LimiterKey(self.limiter, each[1], self.no_refunds, self.root, (each,)) for each in self.keys)

    def branch_of(self, limit: str) -> "LimiterKey":
        """Return the branch in which the limit of this name is charged."""
        if self.root is None:
            return self
        key = next(key for name, key in self.keys if name == limit)
        return LimiterKey(self.limiter, key, self.no_refunds, self.root, ((limit, key),))


class LimitRequest(msgspec.Struct, frozen=True):
    """A call that asks a limiter's key to be allowed.

    Attributes:
        limiter_key: The key to charge.
        costs: The cost for each limit; 0 only inspects the limit.
        token: The identity of the call: random if it may take slots or wait, else it may be empty.
        max_wait: Seconds that the call may have to wait after it is charged; more than 0 for a reservation.
        count_denied: Whether a denied call is charged as much of its cost as fits.
        waiter: Puts the token in the wait queue if the call is denied; None for not waiting.
    """

    limiter_key: LimiterKey
    costs: tuple[int, ...]
    token: str = ""
    max_wait: float = 0.0
    count_denied: bool = False
    waiter: WaiterInfo | None = None


class LimitResult(msgspec.Struct, frozen=True):
    """The decision on a `LimitRequest`.

    Attributes:
        allowed: Whether the call is allowed; for a reservation, after ``retry_after`` seconds.
        retry_after: Seconds after which another try may be allowed; None for never.
        at: The backend's time of the decision, in seconds since 1970.
        levels: The state of each limit.
        receipts: The receipt of each charge, which `RateLimiterDriver.settle` needs.
    """

    allowed: bool
    retry_after: float | None
    at: float
    levels: tuple[LimitState, ...]
    receipts: tuple[ChargeReceipt, ...]


class Charge(msgspec.Struct, frozen=True):
    """The charge of a call by one limit, and its actual cost.

    Attributes:
        name: The limit's name within the limiter.
        limit: The limit.
        cost: The cost that was charged.
        receipt: The receipt of the charge, from `LimitResult.receipts`.
        actual: The actual cost; of `Concurrency` either ``cost`` or 0.
    """

    name: str
    limit: Limit
    cost: int
    receipt: ChargeReceipt = ()
    actual: int = 0


class SlotLease(msgspec.Struct, frozen=True):
    """The slots of concurrency limits that one call holds."""

    limiter_key: LimiterKey
    token: str
    limits: tuple[tuple[str, Concurrency], ...]


class Observation(msgspec.Struct, frozen=True):
    """A provider's report on one limit; see `RateLimiter.observe`. ``reset_after`` and ``pause`` are in seconds."""

    name: str
    limit: Limit
    remaining: int | None = None
    reset_after: float = 0.0
    pause: float = 0.0


class RateLimiterDriver(ABC):
    """Rate limiters. Every method is one atomic step on *now*, by the arithmetic of `ailf.limits`, equal to the bit.

    >>> import ailf
    >>> from ailf.driver import Charge, LimiterKey, LimitRequest, LimitResult, Observation, SlotLease
    >>> from ailf.runtime import ThreadRuntime, run
    >>> from ailf_memory import MemoryStore
    >>> from ailf_memory.driver import MemoryDriver
    >>> limiters = MemoryDriver(MemoryStore(), ThreadRuntime()).rate_limiter()
    >>> key, limit = LimiterKey("llm", "gpt"), ailf.TokenBucket(1_000, per=60.0)
    >>> (result,) = run(limiters.decide((("", limit),), [LimitRequest(key, costs=(300,))]))
    >>> assert isinstance(result, LimitResult) and result.allowed
    >>> result.levels[0].remaining
    700
    >>> run(limiters.settle(key, "", [Charge("", limit, cost=300, receipt=result.receipts[0], actual=200)]))
    >>> run(limiters.observe(key, Observation("", limit, remaining=500)))
    >>> run(limiters.extend([SlotLease(key, "no such call", (("", ailf.Concurrency(8)),))]))
    [False]

    The stored state of a limit *must* expire by itself when the limit is back at full capacity, and *must not* expire
    before (R8).
    """

    @abstractmethod
    async def decide(self, limits: Limits, requests: Sequence[LimitRequest]) -> Sequence[LimitResult | BackendError]:
        """Decide on calls one after another, in one round trip. A call is charged by all of its limits or by none (R1).

        Each decision is that of `ailf.limits.decide`. An error that concerns one call *may* be the result of that call.

        A call that isn't first in the wait queue *must* be denied while a live waiter is (R10). With a ``waiter``, a
        denied call *must* be put at the end of the wait queue of its key, or keep its place there. A call that is
        allowed leaves the queue, and the next waiter *must* be woken. Slots that the token holds already are released
        first, so a call whose reply was lost may be repeated.

        In a budget tree a call *must* be denied if, in a branch where it costs something, a waiter is first that came
        before it; a call that doesn't wait came after all waiters. A denied call waits in one branch only, the one
        with the longest wait: that of its limit, or that until its first waiter tries again (R14). A waiting call that
        another branch holds up moves there, before the waiters that came after it, and the next waiter of the branch
        that it leaves *must* be woken.
        """

    @abstractmethod
    async def settle(self, limiter_key: LimiterKey, token: str, charges: Sequence[Charge]) -> None:
        """Replace each charged cost with the actual one (R7), and remove the token from the wait queue (R10).

        The first waiter *must* be woken if it may be allowed earlier now. In a budget tree the token may wait in any
        branch of ``limiter_key``, also one without a charge, and a refund wakes the first waiter of its own branch.
        """

    @abstractmethod
    async def extend(self, slots: Sequence[SlotLease]) -> list[bool]:
        """Renew the slots of calls for ``ttl`` seconds; return False for each call of which a slot has ended."""

    @abstractmethod
    async def observe(self, limiter_key: LimiterKey, observation: Observation) -> None:
        """Lower what remains of a limit to a provider's report; never raise it."""

    @abstractmethod
    async def reset(self, limiter_key: LimiterKey, limits: Limits) -> None:
        """Forget all charges of a key (R5), in each of its branches, and wake the first waiters."""

    def server_of(self, limiter_key: LimiterKey) -> Hashable:  # noqa: ARG002 - one server has every key
        """Return what identifies the server of a key, as `StreamDriver.server_of` does for a stream."""
        return None

    async def list_keys(self, prefix: str, cursor: str, limit: int) -> Page[LimiterName]:
        """Return at most ``limit`` keys that have a charge, of limiters whose names begin with ``prefix`` (N5).

        Of a budget tree these are its branches, with root and limit.

        Pages, cursors and prefixes are as in `StreamDriver.list_streams` (N1, N2). A key *may* be in several pages. A
        key that is back at full capacity *may* be in one as long as its stored state has not expired (R8). It is only
        called with `Capability.LISTING`.
        """
        raise NotImplementedError
