"""What the renewal thread renews: leases, and the liveness of their holders. All times are on this process's clock."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar

from ailf.driver import BackendDriver
from ailf.engine.calendar_queue import Bucket
from ailf.instruments import Instruments, LeaseExpired
from ailf.logs import Fields
from ailf.runtime.clock import SystemClock

__all__ = ["MARGIN", "Liveness", "RenewedLease", "enumerated"]

NEVER = float("inf")

MARGIN = 0.05
"""The share of a lease by which this process marks it lost before the backend does."""


class Liveness(ABC):
    """The liveness of a holder of leases: the backend counts it as dead without heartbeats.

    Attributes:
        ends: The time, on this process's clock, from which the holder counts as dead unless confirmed again.
        generation: A number that rises when it is confirmed after `ends`. Leases of an earlier generation are lost.
        held: Its leases that are renewed.
    """

    __slots__ = ("ends", "generation", "held")

    def __init__(self) -> None:
        self.ends = 0.0
        self.generation = 0
        self.held: set[RenewedLease] = set()

    @abstractmethod
    def due(self) -> float:
        """Return the time of the next heartbeat."""

    @abstractmethod
    def extend(self, since: float) -> None:
        """Count the holder as alive from `since`, when a heartbeat was sent that the backend has confirmed."""

    @property
    @abstractmethod
    def batch(self) -> Hashable:
        """The key of a batch: one request gives the heartbeats of all members with the same key."""

    @classmethod
    @abstractmethod
    async def heartbeat(cls, members: Sequence[Any], driver: BackendDriver) -> None:
        """Give the heartbeats of one batch."""

    @classmethod
    @abstractmethod
    def describe(cls, members: Sequence[Any]) -> str:
        """Return a description of one batch for the log."""


class RenewedLease(ABC):
    """A lease that the `Renewer` renews. All times are on this process's clock.

    Attributes:
        liveness: The liveness of its holder, if the lease ends with it; None for a lease without one.
        lease: Its length in seconds.
        ends: The time from which it is lost unless confirmed again.
        last: The time at which renewal stops.
        limit: The time at which it is given up, although it could be renewed: its handler's timeout has passed.
        revoked: Whether it is lost for good, as another consumer or holder may have it.
        observed: Whether instruments were told that it is lost.
        on_lost: Called, from any thread, when it is found to be lost.
        now: Returns the time.
        bucket: Its bucket in the renewer's calendar queue.
        server: The server that had it when it was added, where there are several; see `SpreadRenewer`.
    """

    __slots__ = ("bucket", "ends", "last", "lease", "limit", "now", "observed", "on_lost", "revoked", "server")

    page: ClassVar[int] = 100
    """The most leases that one request renews."""

    liveness: Liveness | None = None

    def __init__(
        self,
        lease: float,
        since: float,
        longest: float = float("inf"),
        now: Callable[[], float] = SystemClock.lease_time,
    ) -> None:
        self.lease = lease
        self.ends = since + lease * (1 - MARGIN)
        self.last = since + longest
        self.limit = NEVER
        self.revoked = self.observed = False
        self.on_lost: Callable[[], None] | None = None
        self.now = now
        self.bucket: Bucket[RenewedLease] = {}
        self.server: Hashable = None

    @property
    def lost(self) -> bool:
        """Whether it is lost: revoked, or not confirmed in time. No request is needed to know."""
        return self.revoked or self.now() >= self.ends

    def confirm(self, since: float, lease: float) -> None:
        """Note that the backend granted `lease` seconds in reply to a request sent at `since`."""
        self.ends = since + lease * (1 - MARGIN)

    def take(self) -> None:
        """Mark it lost for good, as another consumer or holder may have it."""
        self.revoked = True
        on_lost = self.on_lost  # read once: another thread may reset it
        if on_lost is not None:
            on_lost()

    def observe_lost(self, instruments: Instruments, why: str) -> None:
        """Tell instruments, once, that it is lost; `why` is for an operator."""
        if instruments.lease_expired and not self.observed:
            self.observed = True
            instruments.emit_in_thread(LeaseExpired(instruments.backend, str(self), why))

    def due(self) -> float:
        """Return the time of the next renewal: a third of its length after the last one."""
        return self.ends - self.lease * (2 / 3 - MARGIN)

    def next_check(self) -> float:
        """Return the time of the next check: to renew it or, once renewal has stopped, to mark it lost."""
        due = self.due()
        return min(due if due < self.last else self.ends, self.limit)

    @property
    @abstractmethod
    def batch(self) -> Hashable:
        """The key of a batch: one request can renew leases of the same class and key."""

    @abstractmethod
    def find_server(self, driver: BackendDriver) -> Hashable:
        """Return what identifies the server that has it, as the driver of its interface tells; it doesn't wait."""

    @classmethod
    @abstractmethod
    async def renew(cls, driver: BackendDriver, leases: Sequence[Any]) -> list[bool]:
        """Renew leases of one batch, `page` at most; return for each whether it was still held."""

    @classmethod
    @abstractmethod
    def describe(cls, leases: Sequence[Any], count: int) -> str:
        """Return a description for the log of `count` leases of one batch, of which these are the first."""

    @abstractmethod
    def log_fields(self) -> Fields:
        """Return the fields of a record of the log that is about it, but for the backend."""

    def __str__(self) -> str:
        return self.describe([self], 1)


def enumerated(names: Sequence[str], count: int) -> str:
    """Return a text that names the first of `count` things and counts the others."""
    others = f" and {count - len(names)} more" if count > len(names) else ""
    return f"{', '.join(names)}{others}"
