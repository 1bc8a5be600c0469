"""Lease renewal where several servers share the data: a renewal thread for each, so that a silent one delays no other.

The thread of a server starts with its first lease and ends when there is none, so there are as many threads as servers
that have leases of this process. A lease stays with the thread that it began with, also after its data have moved.
"""

import threading
from collections.abc import Hashable, Sequence

from ailf.driver import BackendDriver
from ailf.engine.outages import OutageLog
from ailf.engine.renewal import Renewer
from ailf.engine.renewed_lease import Liveness, RenewedLease
from ailf.instruments import Instruments

__all__ = ["AnyRenewer", "SpreadRenewer"]


class SpreadRenewer:
    """A `Renewer` for each server; the methods are those of `Renewer`."""

    def __init__(self, driver: BackendDriver, outages: OutageLog, instruments: Instruments | None = None) -> None:
        self._driver = driver
        self._outages = outages
        self._instruments = instruments
        self._renewers: dict[Hashable, Renewer] = {}
        self._guard = threading.Lock()
        self._closed = False

    def add(self, leases: Sequence[RenewedLease]) -> None:
        """Renew these leases, which began together on one server and have one holder, from now on."""
        server = leases[0].find_server(self._driver)
        for each in leases:
            each.server = server
        with self._guard:
            renewer = self._renewers.get(server)
            if renewer is None:
                self._forget_idle()
                renewer = self._renewers[server] = Renewer(self._driver, self._outages, self._instruments)
                if self._closed:
                    renewer.abandon()
            renewer.add(leases)

    def _forget_idle(self) -> None:
        """Forget servers without leases: in the long run a cluster may have had many addresses."""
        self._renewers = {server: each for server, each in self._renewers.items() if not each.idle}

    def limit(self, lease: RenewedLease, until: float) -> None:
        """Give this lease up at `until`, on this process's clock, although it could be renewed."""
        renewer = self._renewers.get(lease.server)
        if renewer is not None:
            renewer.limit(lease, until)

    def reschedule(self, lease: RenewedLease) -> None:
        """Check this lease at its `next_check`, which may have become earlier."""
        renewer = self._renewers.get(lease.server)
        if renewer is not None:
            renewer.reschedule(lease)

    def discard(self, lease: RenewedLease) -> None:
        """Stop renewing this lease. It takes no lock, as a finalizer may call it."""
        renewer = self._renewers.get(lease.server)
        if renewer is not None:
            renewer.discard(lease)

    def retire(self, holder: Liveness) -> None:
        """Stop renewing the leases of a holder that gives them back; give its heartbeats until they are discarded."""
        for each in tuple(self._renewers.values()):
            each.retire(holder)

    def leases(self) -> list[RenewedLease]:
        """Return the leases that it renews now."""
        return [lease for each in tuple(self._renewers.values()) for lease in each.leases()]

    @property
    def idle(self) -> bool:
        """Whether it has no lease and no thread."""
        return all(each.idle for each in tuple(self._renewers.values()))

    async def close(self, until: float = float("inf")) -> None:
        """End the threads and their connections, and wait for that until `until`, on the runtime's clock."""
        self.abandon()
        for each in tuple(self._renewers.values()):
            await each.close(until)

    def abandon(self) -> None:
        """End the threads without waiting for them, as no lease can be in use any more. It takes no lock, as above."""
        self._closed = True
        for each in tuple(self._renewers.values()):
            each.abandon()


AnyRenewer = Renewer | SpreadRenewer
