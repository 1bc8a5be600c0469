"""Keeps leases alive from one daemon thread per backend, whatever the event loop or a handler does.

The thread starts with the first lease that needs it and ends when it finds none. It has a driver of its own, bound to
the thread runtime, so it works while an event loop is blocked. A lease is extended after a third of its time, errors
are tried again for as long as the lease allows, and a lease that can't be confirmed in time is marked lost by this
process's own clock, counted from before the request was sent.
"""

import logging
import threading
import time
from collections import defaultdict

from ailf.driver import BackendDriver, Receipt
from ailf.runtime import ThreadRuntime, run

__all__ = ["Hold", "Renewer"]

log = logging.getLogger("ailf.renewal")

MARGIN = 0.05
"""The share of a lease by which this process calls it lost before the backend does."""


class Hold:
    """One lease of this process.

    Attributes:
        stream: The stream's name.
        group: The group's name.
        receipt: What proves it.
        lease: Its length in seconds.
        ends: When, on this process's clock, it must be taken for lost unless confirmed again.
        last: When renewing stops (`max_processing`).
        taken: Whether the backend said that somebody else has it.
    """

    __slots__ = ("ends", "group", "last", "lease", "receipt", "stream", "taken")

    def __init__(
        self, stream: str, group: str, receipt: Receipt, *, lease: float, since: float, longest: float
    ) -> None:
        self.stream = stream
        self.group = group
        self.receipt = receipt
        self.lease = lease
        self.last = since + longest
        self.taken = False
        self.confirm(since, lease)

    @property
    def lost(self) -> bool:
        """Whether it is lost: taken, or not confirmed in time; it needs no answer from anybody to know."""
        return self.taken or time.monotonic() >= self.ends

    def confirm(self, since: float, lease: float) -> None:
        """The backend granted so many seconds in answer to a request sent then."""
        self.ends = since + lease * (1 - MARGIN)

    def due(self) -> float:
        """Return when to renew: after a third of the lease."""
        return self.ends - self.lease * (2 / 3 - MARGIN)


class Renewer:
    """Renews the leases it is given until they are given up."""

    def __init__(self, driver: BackendDriver) -> None:
        self._driver = driver
        self._twin: BackendDriver | None = None
        self._holds: set[Hold] = set()
        self._wake = threading.Condition()
        self._next = float("inf")
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, holds: list[Hold]) -> None:
        """Renew these from now on."""
        with self._wake:
            self._holds.update(holds)
            due = min(hold.due() for hold in holds)
            if self._thread is None:
                self._next = due
                self._thread = threading.Thread(target=self._run, name="ailf-renewal", daemon=True)
                self._thread.start()
            elif due < self._next:
                self._next = due
                self._wake.notify()

    def discard(self, hold: Hold) -> None:
        """Don't renew this any more."""
        self._holds.discard(hold)

    async def close(self) -> None:
        """End the thread and give back its connection."""
        with self._wake:
            self._closed = True
            self._wake.notify()
            thread = self._thread
        if self._twin is not None:
            self._twin.interrupt()
        if thread is not None and thread is not threading.current_thread():
            thread.join(10.0)  # its request was interrupted; the bound is for a driver that can't be

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._sleep():
                self._round(time.monotonic())
        finally:
            if self._twin is not None:
                run(self._twin.close())
                self._twin = None

    def _sleep(self) -> bool:
        """Wait for the next lease to be renewed; return False when there is none, or the end has come."""
        with self._wake:
            while not self._closed:
                now = time.monotonic()
                if self._next <= now:
                    return True
                self._wake.wait(min(self._next - now, 60.0))
                if not self._holds:
                    break
            self._thread = None
            return False

    def _round(self, now: float) -> None:
        """Renew what is due, in one request per group and lease; mark what can't be saved."""
        batches: dict[tuple[str, str, float], list[Hold]] = defaultdict(list)
        for hold in tuple(self._holds):
            if now >= hold.ends:
                self._lose(hold, "it could not be renewed in time")
            elif hold.due() <= now < hold.last:
                batches[hold.stream, hold.group, hold.lease].append(hold)
        for (stream, group, lease), holds in batches.items():
            self._renew(stream, group, lease, holds)
        with self._wake:
            soon = time.monotonic() + 0.05
            self._next = min((max(_next_look(hold), soon) for hold in tuple(self._holds)), default=soon)

    def _renew(self, stream: str, group: str, lease: float, holds: list[Hold]) -> None:
        since = time.monotonic()
        try:
            if self._twin is None:
                self._twin = self._driver.twin(ThreadRuntime())
            request = self._twin.stream().extend(stream, group, [hold.receipt for hold in holds], lease=lease)
            kept = run(request)
        except Exception as error:  # noqa: BLE001 - the thread outlives every error: others' leases hang on it
            log.warning(
                "%d lease(s) of group %r, stream %r, not renewed, trying again: %s", len(holds), group, stream, error
            )
            return
        for hold, mine in zip(holds, kept, strict=True):
            if mine:
                hold.confirm(since, lease)
            elif hold in self._holds:  # settled meanwhile is not lost
                hold.taken = True
                self._lose(hold, "somebody else has it")

    def _lose(self, hold: Hold, why: str) -> None:
        self._holds.discard(hold)
        log.warning("lease on %s of group %r, stream %r, is lost: %s", hold.receipt.id, hold.group, hold.stream, why)


def _next_look(hold: Hold) -> float:
    """Return when a lease needs attention: to be renewed, or, past `max_processing`, to be called lost."""
    due = hold.due()
    return due if due < hold.last else hold.ends
