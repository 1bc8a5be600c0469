"""Keeps leases alive from one daemon thread per backend, whatever the event loop or a handler does.

The thread starts with the first lease that needs it and ends when it finds none. It has a driver of its own, bound to
the thread runtime, so it works while an event loop is blocked. A lease is extended after a third of its time, errors
are tried again for as long as the lease allows, and a lease that can't be confirmed in time is marked lost by this
process's own clock, counted from before the request was sent.

On a clock that a test moves by hand a move is one step. Consumers with messages in hand give their signs of life in
it, as they would have all along; then the thread renews what has not ended, before the move returns.

Beside the leases it keeps their consumers alive: one that says nothing for its `takeover` seconds is taken for dead,
and its leases are given to others although they would last longer (S12).
"""

import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from ailf.driver import BackendDriver
from ailf.engine.outages import OutageLog
from ailf.runtime import ThreadRuntime, run
from ailf.runtime.clock import SystemClock

__all__ = ["RenewedLease", "Renewer"]

log = logging.getLogger("ailf.renewal")

MARGIN = 0.05
"""The share of a lease by which this process calls it lost before the backend does."""

SOON = 0.05
"""Seconds between two looks at least."""

LOOKS_WITHIN = 5.0
"""Seconds for which a move of the clock waits at most until the thread has renewed what is due: it hangs then."""


class Liveness(ABC):
    """What the backend must hear now and then, so that it counts the holder of leases as alive.

    Attributes:
        ends: When, on this process's clock, the holder must take itself for dead unless confirmed again.
    """

    __slots__ = ()

    ends: float

    @abstractmethod
    def due(self) -> float:
        """Return when to give the next heartbeat."""

    @abstractmethod
    def outlast(self, since: float) -> None:
        """Take note that the backend counted it as alive in answer to a heartbeat sent at `since`."""

    @property
    @abstractmethod
    def batch(self) -> Hashable:
        """What all have in common whose heartbeats one request can give."""

    @classmethod
    @abstractmethod
    async def heartbeat(cls, members: Sequence[Any], driver: BackendDriver) -> None:
        """Give the heartbeats of one batch."""

    @classmethod
    @abstractmethod
    def describe(cls, members: Sequence[Any]) -> str:
        """Return what a log calls one batch."""


class RenewedLease(ABC):
    """One lease of this process.

    Attributes:
        liveness: That of the lease's holder, where the lease ends with it; None for a lease that stands alone.
        lease: Its length in seconds.
        ends: When, on this process's clock, it must be taken for lost unless confirmed again.
        last: When renewing stops.
        limit: When it is given up, although it could be renewed: its handler's time is over.
        taken: Whether it is lost for good: somebody else may have it.
        on_lost: Called, from any thread, when it is found to be lost.
        now: Returns the time on this process's clock.
    """

    __slots__ = ("ends", "last", "lease", "limit", "now", "on_lost", "revoked")

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
        self.limit = float("inf")
        self.revoked = False
        self.on_lost: Callable[[], None] | None = None
        self.now = now

    @property
    def lost(self) -> bool:
        """Whether it is lost: taken, or not confirmed in time; it needs no answer from anybody to know."""
        return self.revoked or self.now() >= self.ends

    def confirm(self, since: float, lease: float) -> None:
        """The backend granted so many seconds in answer to a request sent then."""
        self.ends = since + lease * (1 - MARGIN)

    def take(self) -> None:
        """Somebody else may have it: it is lost for good."""
        self.revoked = True
        on_lost = self.on_lost  # another thread may take it back just now
        if on_lost is not None:
            on_lost()

    def due(self) -> float:
        """Return when to renew: after a third of the lease."""
        return self.ends - self.lease * (2 / 3 - MARGIN)

    def next_look(self) -> float:
        """Return when it needs attention: to be renewed, or, once that has stopped, to be called lost."""
        due = self.due()
        return min(due if due < self.last else self.ends, self.limit)

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


class Renewer:
    """Renews the leases it is given until they are given up."""

    def __init__(self, driver: BackendDriver, outages: OutageLog | None = None) -> None:
        self._driver = driver
        self._outages = outages or OutageLog(driver)
        self._twin: BackendDriver | None = None
        self._holds: set[RenewedLease] = set()
        self._guard = threading.RLock()  # entered by itself it costs a third of what it does as the condition's
        self._wake = threading.Condition(self._guard)
        self._next = float("inf")
        self._thread: threading.Thread | None = None
        self._looking = self._hangs = self._failing = False
        self._closed = False
        self._now = driver.runtime.lease_now
        self._clock = driver.runtime.clock
        self._clock.follow(self)

    def add(self, holds: Sequence[RenewedLease]) -> None:
        """Renew these, which began together, from now on."""
        with self._guard:
            self._holds.update(holds)
            due = holds[0].next_look()
            if self._thread is None:
                self._next = due
                self._start()
            elif due < self._next:
                self._next = due
                self._wake.notify()

    def limit(self, hold: RenewedLease, until: float) -> None:
        """Give this one up then, on this process's clock, although it could be renewed."""
        with self._guard:
            hold.limit = until
            if until < self._next:
                self._next = until
                self._wake.notify()

    def _start(self) -> None:
        """Start the thread; where Ctrl-C comes in between, the next lease starts another one, and this one ends."""
        try:
            self._thread = threading.Thread(target=self._run, name="ailf-renewal", daemon=True)
            self._thread.start()
        except BaseException:
            self._thread = None
            raise

    def discard(self, hold: RenewedLease) -> None:
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

    # --- a clock that is moved by hand ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """Keep consumers alive through a move: what really takes that long is full of signs of life."""
        now = self._now()
        alive = {hold.liveness for hold in tuple(self._holds) if hold.liveness and now < hold.liveness.ends}
        yield
        if alive:
            twin = self._driver.with_runtime(ThreadRuntime())  # the thread may be busy with its own
            for each, since in self._beat_all(alive, lambda: twin):
                each.outlast(since)
            run(twin.close())

    def moved(self) -> None:
        """Wait until the thread has renewed what is due now, unless it hangs."""
        with self._wake:
            if self._hangs or self._thread is threading.current_thread():
                return
            self._wake.notify_all()
            self._hangs = not self._wake.wait_for(self._done, LOOKS_WITHIN)

    def _done(self) -> bool:
        """Tell whether the thread has nothing to do now."""
        return self._thread is None or not (self._looking or self._next <= self._now())

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._sleep():
                self._round(self._now())
        finally:
            twin, self._twin = self._twin, None
            if twin is not None:
                run(twin.close())

    def _sleep(self) -> bool:
        """Wait for the next lease to be renewed; return False when there is none, or the end has come."""
        with self._wake:
            while self._thread is threading.current_thread() and not self._closed:
                left = self._next - self._now()
                self._looking = left <= 0
                if self._looking:
                    return True
                if self._clock.by_hand:  # a move wakes it; until then the same time is left
                    left = max(left, SOON)
                self._wake.wait(min(left, 60.0))
                if not self._holds:
                    break
            if self._thread is threading.current_thread():
                self._thread = None
            self._wake.notify_all()
            return False

    def _round(self, now: float) -> None:
        """Renew what is due, in one request for all that can share it; mark what can't be saved."""
        beats: set[Liveness] = set()
        batches: dict[Hashable, list[RenewedLease]] = defaultdict(list)
        with self._clock.step_lock():  # in the middle of a move by hand living holders look dead
            for hold in tuple(self._holds):
                if hold.lost or hold.limit <= now:
                    self._lose(hold, _why_lost(hold, now))
                    continue
                if hold.liveness is not None and hold.liveness.due() <= now:
                    beats.add(hold.liveness)
                if hold.due() <= now < hold.last:
                    batches[type(hold), hold.batch].append(hold)
        for each, since in self._beat_all(beats, self._own):
            if self._now() < each.ends:  # one that was late may have been taken for dead, and stays it
                each.outlast(since)
        for holds in batches.values():
            self._renew(holds)
        with self._wake:
            soon = self._now() + SOON
            self._next = min((max(hold.next_look(), soon) for hold in tuple(self._holds)), default=soon)
            self._looking = self._hangs = False
            self._wake.notify_all()

    def _own(self) -> BackendDriver:
        """Return the thread's own driver."""
        if self._twin is None:
            self._twin = self._driver.with_runtime(ThreadRuntime())
        return self._twin

    def _beat_all(
        self, those: Iterable[Liveness], over: Callable[[], BackendDriver]
    ) -> Iterator[tuple[Liveness, float]]:
        """Give heartbeats, one request for each batch; yield those that were answered, and when they were given."""
        batches: dict[Hashable, list[Liveness]] = defaultdict(list)
        for each in those:
            batches[type(each), each.batch].append(each)
        for members in batches.values():
            since = self._now()
            done, _ = self._ask(over, members[0].describe(members), partial(members[0].heartbeat, members))
            for each in members if done else ():
                yield each, since

    def _renew(self, holds: list[RenewedLease]) -> None:
        since = self._now()
        what = f"{holds[0]} and {len(holds) - 1} more not renewed" if len(holds) > 1 else f"{holds[0]} not renewed"
        done, kept = self._ask(self._own, what, lambda driver: holds[0].renew(driver, holds))
        for hold, mine in zip(holds, kept if done else (), strict=done):
            if mine and not hold.lost:
                hold.confirm(since, hold.lease)
            elif hold in self._holds:  # settled meanwhile is not lost
                self._lose(hold, "another consumer or holder has it")

    def _ask(
        self, over: Callable[[], BackendDriver], what: str, request: Callable[[BackendDriver], Any]
    ) -> tuple[bool, Any]:
        """Make a request over a driver of the thread runtime; return whether it was answered, and the answer."""
        try:
            answer = run(request(over()))
        except Exception as error:  # noqa: BLE001 - the thread outlives every error: others' leases hang on it
            self._failing = True
            self._outages.failed(what, error)
            return False, None
        if self._failing:
            self._failing = False
            self._outages.worked()
        return True, answer

    def _lose(self, hold: RenewedLease, why: str) -> None:
        self._holds.discard(hold)
        log.warning("%s is lost: %s", hold, why)
        hold.take()


def _why_lost(hold: RenewedLease, now: float) -> str:
    """Return why a lease has to be given up."""
    if hold.revoked:
        return "another consumer or holder has it"
    return "its handler's timeout is over" if hold.limit <= now else "it could not be renewed in time"
