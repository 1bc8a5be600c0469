"""Lease renewal: one daemon thread per backend keeps leases alive, whatever the event loop or a handler does.

The thread starts with the first lease and ends when there is none. It has a driver of its own, bound to the thread
runtime, so it works while an event loop is blocked. It extends a lease after a third of its length, and repeats failed
requests. A lease that isn't confirmed in time is marked lost by this process's own clock, which counts from before the
request was sent.

The thread also gives the heartbeats of the consumers that hold leases: a consumer without one for its `takeover`
seconds counts as dead, and others get its messages although their leases would last longer (S12).

On a clock that a test moves, a move is one step. Within it consumers with leases give the heartbeats that they would
have given meanwhile; then the thread renews the leases that have not ended, before the move returns.
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
"""The share of a lease by which this process marks it lost before the backend does."""

NEVER = float("inf")

MIN_INTERVAL = 0.05
"""The least number of seconds between two checks of the leases."""

POLL_INTERVAL = 0.001
"""Seconds between two checks whether the thread has ended."""

MOVE_TIMEOUT = 5.0
"""Seconds that a move of the clock waits for the thread to renew leases; after that the thread counts as hanging."""


class Liveness(ABC):
    """The liveness of a holder of leases: the backend counts it as dead without heartbeats.

    Attributes:
        ends: The time, on this process's clock, from which the holder counts as dead unless confirmed again.
    """

    __slots__ = ()

    ends: float

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
        on_lost: Called, from any thread, when it is found to be lost.
        now: Returns the time.
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
        self.limit = NEVER
        self.revoked = False
        self.on_lost: Callable[[], None] | None = None
        self.now = now

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
        """The key of a batch: one request renews all leases of the same class and key."""

    @classmethod
    @abstractmethod
    async def renew(cls, driver: BackendDriver, leases: Sequence[Any]) -> list[bool]:
        """Renew the leases of one batch; return for each whether it was still held."""

    @abstractmethod
    def __str__(self) -> str:
        """Return a description for the log."""


class Renewer:
    """Renews leases, from `add` until `discard`, in a thread of its own."""

    def __init__(self, driver: BackendDriver, outages: OutageLog | None = None) -> None:
        self._driver = driver
        self._outages = outages or OutageLog(driver)
        self._thread_driver: BackendDriver | None = None
        self._leases: set[RenewedLease] = set()
        self._guard = threading.RLock()  # entered alone it costs a third of the condition
        self._wake = threading.Condition(self._guard)
        self._next = float("inf")
        self._thread: threading.Thread | None = None
        self._checking = self._hangs = self._failing = False
        self._closed = False
        self._now = driver.runtime.lease_now
        self._clock = driver.runtime.clock
        self._clock.follow(self)

    def add(self, leases: Sequence[RenewedLease]) -> None:
        """Renew these leases, which began together, from now on."""
        with self._guard:
            self._leases.update(leases)
            due = leases[0].next_check()
            if self._thread is None:
                self._next = due
                self._start()
            elif due < self._next:
                self._next = due
                self._wake.notify()

    def limit(self, lease: RenewedLease, until: float) -> None:
        """Give this lease up at `until`, on this process's clock, although it could be renewed."""
        with self._guard:
            lease.limit = until
            if until < self._next:
                self._next = until
                self._wake.notify()

    def _start(self) -> None:
        """Start the thread. If Ctrl-C interrupts the start, this thread ends, and the next lease starts another one."""
        try:
            self._thread = threading.Thread(target=self._run, name="ailf-renewal", daemon=True)
            self._thread.start()
        except BaseException:
            self._thread = None
            raise

    def discard(self, lease: RenewedLease) -> None:
        """Stop renewing this lease."""
        self._leases.discard(lease)

    async def close(self, until: float = float("inf")) -> None:
        """End the thread and its connection, and wait for that until `until`, on the runtime's clock.

        A request under way is interrupted. The deadline is for a driver that can't be interrupted.
        """
        thread = self.abandon()
        if thread is None or thread is threading.current_thread():
            return
        runtime = self._driver.runtime
        while thread.is_alive() and runtime.now() < until:
            await runtime.event().wait(POLL_INTERVAL)  # the event loop keeps running

    def abandon(self) -> threading.Thread | None:
        """End the thread without waiting for it, as no lease can be in use any more; return the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
            thread = self._thread
        if self._thread_driver is not None:
            self._thread_driver.interrupt()
        return thread

    # --- a clock that is moved by hand ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """Keep consumers alive through a move: in real time they would have given heartbeats all along."""
        now = self._now()
        alive = {lease.liveness for lease in tuple(self._leases) if lease.liveness and now < lease.liveness.ends}
        yield
        if alive:
            driver = self._driver.with_runtime(ThreadRuntime())  # the thread may be using its own
            for each, since in self._send_heartbeats(alive, lambda: driver):
                each.extend(since)
            run(driver.close())

    def moved(self) -> None:
        """Wait until the thread has renewed the leases that are due, unless it hangs."""
        with self._wake:
            if self._hangs or self._thread is threading.current_thread():
                return
            self._wake.notify_all()
            self._hangs = not self._wake.wait_for(self._idle, MOVE_TIMEOUT)

    def _idle(self) -> bool:
        """Return whether the thread has nothing to do now."""
        return self._thread is None or not (self._checking or self._next <= self._now())

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._sleep():
                self._check_leases(self._now())
        finally:
            driver, self._thread_driver = self._thread_driver, None
            if driver is not None:
                run(driver.close())

    def _sleep(self) -> bool:
        """Wait until a check is due; return False when there is no lease any more, or the renewer is closed."""
        with self._wake:
            while self._thread is threading.current_thread() and not self._closed:
                left = self._next - self._now()
                self._checking = left <= 0
                if self._checking:
                    return True
                if self._clock.by_hand:  # the time left doesn't change until a move, which wakes the thread
                    left = max(left, MIN_INTERVAL)
                self._wake.wait(min(left, 60.0))
                if not self._leases:
                    break
            if self._thread is threading.current_thread():
                self._thread = None
            self._wake.notify_all()
            return False

    def _check_leases(self, now: float) -> None:
        """Renew the leases that are due, in one request for each batch; mark lost what can't be renewed."""
        holders: set[Liveness] = set()
        batches: dict[Hashable, list[RenewedLease]] = defaultdict(list)
        with self._clock.step_lock():  # in the middle of a move by hand live holders seem dead
            for lease in tuple(self._leases):
                if lease.lost or lease.limit <= now:
                    self._lose(lease, _why_lost(lease, now))
                    continue
                if lease.liveness is not None and lease.liveness.due() <= now:
                    holders.add(lease.liveness)
                if lease.due() <= now < lease.last:
                    batches[type(lease), lease.batch].append(lease)
        for each, since in self._send_heartbeats(holders, self._own_driver):
            if self._now() < each.ends:  # a late holder may already count as dead, and stays dead
                each.extend(since)
        for leases in batches.values():
            self._renew(leases)
        with self._wake:
            soonest = self._now() + MIN_INTERVAL
            self._next = min((max(lease.next_check(), soonest) for lease in tuple(self._leases)), default=soonest)
            self._checking = self._hangs = False
            self._wake.notify_all()

    def _own_driver(self) -> BackendDriver:
        """Return the thread's own driver."""
        if self._thread_driver is None:
            self._thread_driver = self._driver.with_runtime(ThreadRuntime())
        return self._thread_driver

    def _send_heartbeats(
        self, holders: Iterable[Liveness], driver: Callable[[], BackendDriver]
    ) -> Iterator[tuple[Liveness, float]]:
        """Give heartbeats, one request for each batch; yield each holder that was confirmed, and when it was sent."""
        batches: dict[Hashable, list[Liveness]] = defaultdict(list)
        for each in holders:
            batches[type(each), each.batch].append(each)
        for members in batches.values():
            since = self._now()
            done, _ = self._request(driver, members[0].describe(members), partial(members[0].heartbeat, members))
            for each in members if done else ():
                yield each, since

    def _renew(self, leases: list[RenewedLease]) -> None:
        since = self._now()
        first = leases[0]
        what = f"{first} and {len(leases) - 1} more not renewed" if len(leases) > 1 else f"{first} not renewed"
        done, held = self._request(self._own_driver, what, lambda driver: first.renew(driver, leases))
        for lease, still_held in zip(leases, held if done else (), strict=done):
            if still_held and not lease.lost:
                lease.confirm(since, lease.lease)
            elif lease in self._leases:  # one that was settled meanwhile is not lost
                self._lose(lease, "another consumer or holder has it")

    def _request(
        self, driver: Callable[[], BackendDriver], what: str, request: Callable[[BackendDriver], Any]
    ) -> tuple[bool, Any]:
        """Make a request over a driver of the thread runtime; return whether it succeeded, and the reply."""
        try:
            reply = run(request(driver()))
        except Exception as error:  # noqa: BLE001 - the thread outlives every error: other leases depend on it
            self._failing = True
            self._outages.failed(what, error)
            return False, None
        if self._failing:
            self._failing = False
            self._outages.worked()
        return True, reply

    def _lose(self, lease: RenewedLease, why: str) -> None:
        self._leases.discard(lease)
        log.warning("%s is lost: %s", lease, why)
        lease.take()


def _why_lost(lease: RenewedLease, now: float) -> str:
    """Return why a lease is given up."""
    if lease.revoked:
        return "another consumer or holder has it"
    return "its handler's timeout is over" if lease.limit <= now else "it could not be renewed in time"
