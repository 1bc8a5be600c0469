"""Keeps leases alive from one daemon thread per backend, whatever the event loop or a handler does.

The thread starts with the first lease that needs it and ends when it finds none. It has a driver of its own, bound to
the thread runtime, so it works while an event loop is blocked. A lease is extended after a third of its time, errors
are tried again for as long as the lease allows, and a lease that can't be confirmed in time is marked lost by this
process's own clock, counted from before the request was sent.

Beside the leases it keeps their consumers alive: one that says nothing for its `takeover` seconds is taken for dead,
and its leases are given to others although they would last longer (S12).
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from ailf.driver import BackendDriver, Receipt
from ailf.runtime import ThreadRuntime, run

__all__ = ["ALIVE", "Hold", "MessageHold", "Pulse", "Renewer"]

log = logging.getLogger("ailf.renewal")

MARGIN = 0.05
"""The share of a lease by which this process calls it lost before the backend does."""

ALIVE = 0.7
"""The share of `takeover` for which a sign of life counts; the rest is for others to notice that it was the last."""

BEAT = 0.25
"""The share of `takeover` after which a consumer with messages in hand gives a sign of life."""


class Pulse:
    """The life of one consumer, as the backend sees it.

    Attributes:
        stream: The stream's name.
        group: The group's name.
        consumer: The consumer's name.
        takeover: Seconds of silence after which it is taken for dead.
        ends: When, on this process's clock, it must take itself for dead unless confirmed again.
        life: Which of its lives this is: what it held when it was dead once is lost, also when it lives again.
    """

    __slots__ = ("consumer", "ends", "group", "life", "stream", "takeover")

    def __init__(self, stream: str, group: str, consumer: str, takeover: float) -> None:
        self.stream = stream
        self.group = group
        self.consumer = consumer
        self.takeover = takeover
        self.ends = 0.0
        self.life = 0

    def confirm(self, since: float) -> None:
        """The backend counts it as alive in answer to a request sent then."""
        if time.monotonic() >= self.ends:
            self.life += 1
        self.ends = since + self.takeover * ALIVE * (1 - MARGIN)

    def due(self) -> float:
        """Return when to give the next sign of life."""
        return self.ends - self.takeover * (ALIVE * (1 - MARGIN) - BEAT)


class Hold(ABC):
    """One lease of this process.

    Attributes:
        lease: Its length in seconds.
        ends: When, on this process's clock, it must be taken for lost unless confirmed again.
        last: When renewing stops.
        taken: Whether it is lost for good: somebody else may have it.
        on_lost: Called from the thread when it finds out that it is lost.
    """

    __slots__ = ("ends", "last", "lease", "on_lost", "taken")

    def __init__(self, lease: float, since: float, longest: float = float("inf")) -> None:
        self.lease = lease
        self.ends = since + lease * (1 - MARGIN)
        self.last = since + longest
        self.taken = False
        self.on_lost: Callable[[], None] | None = None

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

    def next_look(self) -> float:
        """Return when it needs attention: to be renewed, or, once that has stopped, to be called lost."""
        due = self.due()
        return due if due < self.last else self.ends

    @property
    @abstractmethod
    def batch(self) -> Hashable:
        """What all leases have in common that one request can renew."""

    @classmethod
    @abstractmethod
    async def renew(cls, driver: BackendDriver, holds: Sequence[Any]) -> list[bool]:
        """Renew leases of one batch; for each, whether it still held."""

    @abstractmethod
    def __str__(self) -> str:
        """Return what a log calls it."""


class MessageHold(Hold):
    """The lease of a delivered message, which lasts no longer than the life of its consumer.

    Attributes:
        pulse: Its consumer's.
        receipt: What proves it.
    """

    __slots__ = ("life", "pulse", "receipt")

    def __init__(self, pulse: Pulse, receipt: Receipt, *, lease: float, since: float, longest: float) -> None:
        self.pulse = pulse
        self.life = pulse.life
        self.receipt = receipt
        super().__init__(lease, since, longest)

    @property
    def lost(self) -> bool:
        pulse = self.pulse
        return self.taken or self.life != pulse.life or time.monotonic() >= min(self.ends, pulse.ends)

    def next_look(self) -> float:
        return min(super().next_look(), self.pulse.due())

    @property
    def batch(self) -> Hashable:
        return (self.pulse.stream, self.pulse.group, self.lease)

    @classmethod
    async def renew(cls, driver: BackendDriver, holds: Sequence["MessageHold"]) -> list[bool]:
        pulse, lease = holds[0].pulse, holds[0].lease
        receipts = [hold.receipt for hold in holds]
        return await driver.stream().extend(pulse.stream, pulse.group, receipts, lease=lease)

    def __str__(self) -> str:
        return f"the lease on {self.receipt.id} of group {self.pulse.group!r}, stream {self.pulse.stream!r}"


class Renewer:
    """Renews the leases it is given until they are given up."""

    def __init__(self, driver: BackendDriver) -> None:
        self._driver = driver
        self._twin: BackendDriver | None = None
        self._holds: set[Hold] = set()
        self._guard = threading.RLock()  # entered by itself it costs a third of what it does as the condition's
        self._wake = threading.Condition(self._guard)
        self._next = float("inf")
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, holds: Sequence[Hold]) -> None:
        """Renew these, which began together, from now on."""
        with self._guard:
            self._holds.update(holds)
            due = holds[0].next_look()
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

    def abandon(self) -> None:
        """End the thread without waiting for it: nobody can have a lease any more."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._twin is not None:
            self._twin.interrupt()

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
        """Renew what is due, in one request for all that can share it; mark what can't be saved."""
        beats: dict[tuple[str, str, float], set[Pulse]] = defaultdict(set)
        batches: dict[Hashable, list[Hold]] = defaultdict(list)
        for hold in tuple(self._holds):
            if hold.lost:
                self._lose(hold, "it could not be renewed in time")
                continue
            if isinstance(hold, MessageHold) and hold.pulse.due() <= now:
                beats[hold.pulse.stream, hold.pulse.group, hold.pulse.takeover].add(hold.pulse)
            if hold.due() <= now < hold.last:
                batches[type(hold), hold.batch].append(hold)
        for where, pulses in beats.items():
            self._beat(*where, list(pulses))
        for holds in batches.values():
            self._renew(holds)
        with self._wake:
            soon = time.monotonic() + 0.05
            self._next = min((max(hold.next_look(), soon) for hold in tuple(self._holds)), default=soon)

    def _beat(self, stream: str, group: str, takeover: float, pulses: Sequence[Pulse]) -> None:
        since = time.monotonic()
        names = [pulse.consumer for pulse in pulses]
        what = f"{len(names)} consumer(s) of group {group!r}, stream {stream!r}, gave no sign of life"
        done, _ = self._ask(what, lambda driver: driver.stream().beat(stream, group, names, alive=takeover * ALIVE))
        now = time.monotonic()
        for pulse in pulses:
            if done and now < pulse.ends:  # one that was late may have been taken for dead, and stays it
                pulse.confirm(since)

    def _renew(self, holds: list[Hold]) -> None:
        since = time.monotonic()
        what = f"{holds[0]} and {len(holds) - 1} more not renewed" if len(holds) > 1 else f"{holds[0]} not renewed"
        done, kept = self._ask(what, lambda driver: holds[0].renew(driver, holds))
        for hold, mine in zip(holds, kept if done else (), strict=done):
            if mine and not hold.lost:
                hold.confirm(since, hold.lease)
            elif hold in self._holds:  # settled meanwhile is not lost
                self._lose(hold, "somebody else has it")

    def _ask(self, what: str, request: Callable[[BackendDriver], Any]) -> tuple[bool, Any]:
        """Make a request over the thread's own connection; return whether it was answered, and the answer."""
        try:
            if self._twin is None:
                self._twin = self._driver.twin(ThreadRuntime())
            return True, run(request(self._twin))
        except Exception as error:  # noqa: BLE001 - the thread outlives every error: others' leases hang on it
            log.warning("%s, trying again: %s", what, error)
            return False, None

    def _lose(self, hold: Hold, why: str) -> None:
        hold.taken = True
        self._holds.discard(hold)
        log.warning("%s is lost: %s", hold, why)
        if hold.on_lost is not None:
            hold.on_lost()
