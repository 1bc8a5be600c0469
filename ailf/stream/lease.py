"""The lease of a delivered message, and the liveness of the consumer to which it is leased."""

from collections.abc import Callable, Hashable, Sequence

from ailf.driver import BackendDriver, Receipt
from ailf.engine.renewed_lease import MARGIN, Liveness, RenewedLease, enumerated
from ailf.logs import Fields
from ailf.runtime.clock import SystemClock

__all__ = ["ALIVE", "FRESH", "ConsumerLiveness", "DeliveryLease"]

ALIVE = 0.7
"""The share of `takeover` for which a heartbeat counts; in the rest other consumers find that none followed."""

FRESH = 5.0
"""Seconds for which the position of a fetch counts while nobody waits from it; then a wait begins with a fetch."""

COUNTED = ALIVE * (1 - MARGIN)
"""The share of `takeover` after a heartbeat from which a consumer counts itself as dead."""

HEARTBEAT = 0.25
"""The share of `takeover` after which a consumer with leased messages gives its next heartbeat."""


class ConsumerLiveness(Liveness):
    """Whether the backend counts a consumer as alive.

    Attributes:
        stream: The stream's name.
        group: The group's name.
        consumer: The consumer's name.
        takeover: Seconds without a heartbeat within which the backend counts it as dead.
        now: Returns the time on this process's clock.
    """

    __slots__ = ("consumer", "group", "now", "stream", "takeover")

    def __init__(
        self,
        stream: str,
        group: str,
        consumer: str,
        takeover: float,
        now: Callable[[], float] = SystemClock.lease_time,
    ) -> None:
        super().__init__()
        self.stream = stream
        self.group = group
        self.consumer = consumer
        self.takeover = takeover
        self.now = now

    def confirm(self, since: float) -> None:
        """Record that the backend counted it as alive in reply to a request sent at `since`."""
        if self.now() >= self.ends:
            self.generation += 1
        ends = since + self.takeover * COUNTED
        if ends > self.ends:  # noqa: PLR1730 - max would be a call for each fetch
            self.ends = ends

    def extend(self, since: float) -> None:
        """As `confirm`, for a consumer that was alive all the time: the generation stays."""
        self.ends = max(self.ends, since + self.takeover * COUNTED)

    def due(self) -> float:
        return self.ends - self.takeover * (COUNTED - HEARTBEAT)

    @property
    def batch(self) -> Hashable:
        return (self.stream, self.group, self.takeover)

    @classmethod
    async def heartbeat(cls, members: Sequence["ConsumerLiveness"], driver: BackendDriver) -> None:
        first = members[0]
        names = [member.consumer for member in members]
        await driver.stream().heartbeat(first.stream, first.group, names, alive=first.takeover * ALIVE)

    @classmethod
    def describe(cls, members: Sequence["ConsumerLiveness"]) -> str:
        first = members[0]
        return f"{len(members)} consumer(s) of group {first.group!r}, stream {first.stream!r}, gave no heartbeat"


class DeliveryLease(RenewedLease):
    """The lease of a delivered message. It ends at the latest when its consumer is counted as dead.

    Attributes:
        liveness: That of its consumer.
        generation: The consumer's generation when the lease began.
        receipt: The proof of the delivery.
    """

    __slots__ = ("generation", "liveness", "receipt")

    page = 500  # a script of 1.4 ms on Redis

    def __init__(
        self, liveness: ConsumerLiveness, receipt: Receipt, *, lease: float, since: float, longest: float
    ) -> None:
        self.liveness: ConsumerLiveness = liveness
        self.generation = liveness.generation
        self.receipt = receipt
        super().__init__(lease, since, longest, liveness.now)

    @property
    def lost(self) -> bool:
        liveness = self.liveness
        return self.revoked or self.generation != liveness.generation or liveness.now() >= min(self.ends, liveness.ends)

    @property
    def batch(self) -> Hashable:
        return (self.liveness.stream, self.liveness.group, self.lease)

    def find_server(self, driver: BackendDriver) -> Hashable:
        return driver.stream().server_of(self.liveness.stream)

    @classmethod
    async def renew(cls, driver: BackendDriver, leases: Sequence["DeliveryLease"]) -> list[bool]:
        liveness, lease = leases[0].liveness, leases[0].lease
        receipts = [each.receipt for each in leases]
        return await driver.stream().extend(liveness.stream, liveness.group, receipts, lease=lease)

    @classmethod
    def describe(cls, leases: Sequence["DeliveryLease"], count: int) -> str:
        liveness = leases[0].liveness
        ids = enumerated([each.receipt.id for each in leases], count)
        return f"the lease{'s' * (count > 1)} on {ids} of group {liveness.group!r}, stream {liveness.stream!r}"

    def log_fields(self) -> Fields:
        liveness = self.liveness
        return {
            "stream": liveness.stream,
            "group": liveness.group,
            "consumer": liveness.consumer,
            "entry_id": self.receipt.id,
        }
