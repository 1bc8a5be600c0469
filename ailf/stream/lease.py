"""The lease of a delivered message, and the heartbeat of the consumer that holds it."""

from collections.abc import Callable, Hashable, Sequence

from ailf.driver import BackendDriver, Receipt
from ailf.engine.renewal import MARGIN, Liveness, RenewedLease
from ailf.runtime.clock import SystemClock

__all__ = ["ALIVE", "ConsumerLiveness", "DeliveryLease"]

ALIVE = 0.7
"""The share of `takeover` for which a sign of life counts; the rest is for others to notice that it was the last."""

HEARTBEAT = 0.25
"""The share of `takeover` after which a consumer with messages in hand gives a sign of life."""


class ConsumerLiveness(Liveness):
    """The life of one consumer, as the backend sees it.

    Attributes:
        stream: The stream's name.
        group: The group's name.
        consumer: The consumer's name.
        takeover: Seconds of silence after which it is taken for dead.
        ends: When, on this process's clock, it must take itself for dead unless confirmed again.
        life: Which of its lives this is: what it held when it was dead once is lost, also when it lives again.
        now: Returns the time on this process's clock.
    """

    __slots__ = ("consumer", "ends", "generation", "group", "now", "stream", "takeover")

    def __init__(
        self,
        stream: str,
        group: str,
        consumer: str,
        takeover: float,
        now: Callable[[], float] = SystemClock.lease_time,
    ) -> None:
        self.stream = stream
        self.group = group
        self.consumer = consumer
        self.takeover = takeover
        self.ends = 0.0
        self.generation = 0
        self.now = now

    def confirm(self, since: float) -> None:
        """The backend counts it as alive in answer to a request sent then."""
        if self.now() >= self.ends:
            self.generation += 1
        ends = since + self.takeover * ALIVE * (1 - MARGIN)
        if ends > self.ends:  # noqa: PLR1730 - max would be a call for each fetch
            self.ends = ends

    def extend(self, since: float) -> None:
        """As `confirm`, where it certainly was alive until then."""
        self.ends = max(self.ends, since + self.takeover * ALIVE * (1 - MARGIN))

    def due(self) -> float:
        return self.ends - self.takeover * (ALIVE * (1 - MARGIN) - HEARTBEAT)

    @property
    def batch(self) -> Hashable:
        return (self.stream, self.group, self.takeover)

    @classmethod
    async def heartbeat(cls, members: Sequence["ConsumerLiveness"], driver: BackendDriver) -> None:
        first = members[0]
        names = [each.consumer for each in members]
        await driver.stream().heartbeat(first.stream, first.group, names, alive=first.takeover * ALIVE)

    @classmethod
    def describe(cls, members: Sequence["ConsumerLiveness"]) -> str:
        first = members[0]
        return f"{len(members)} consumer(s) of group {first.group!r}, stream {first.stream!r}, gave no sign of life"


class DeliveryLease(RenewedLease):
    """The lease of a delivered message, which lasts no longer than the life of its consumer.

    Attributes:
        liveness: Its consumer's.
        receipt: What proves it.
    """

    __slots__ = ("generation", "liveness", "receipt")

    def __init__(
        self, liveness: ConsumerLiveness, receipt: Receipt, *, lease: float, since: float, longest: float
    ) -> None:
        self.liveness: ConsumerLiveness = liveness
        self.generation = liveness.generation
        self.receipt = receipt
        super().__init__(lease, since, longest, liveness.now)

    @property
    def lost(self) -> bool:
        pulse = self.liveness
        return self.revoked or self.generation != pulse.generation or pulse.now() >= min(self.ends, pulse.ends)

    def next_check(self) -> float:
        return min(super().next_check(), self.liveness.due())

    @property
    def batch(self) -> Hashable:
        return (self.liveness.stream, self.liveness.group, self.lease)

    @classmethod
    async def renew(cls, driver: BackendDriver, holds: Sequence["DeliveryLease"]) -> list[bool]:
        pulse, lease = holds[0].liveness, holds[0].lease
        receipts = [hold.receipt for hold in holds]
        return await driver.stream().extend(pulse.stream, pulse.group, receipts, lease=lease)

    def __str__(self) -> str:
        return f"the lease on {self.receipt.id} of group {self.liveness.group!r}, stream {self.liveness.stream!r}"
