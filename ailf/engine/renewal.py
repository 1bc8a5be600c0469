"""Lease renewal: one daemon thread keeps leases alive, whatever the event loop or a handler does.

The thread starts with the first lease and ends when there is none. It has a driver of its own, bound to the thread
runtime, so it works while an event loop is blocked. It extends a lease after a third of its length, and repeats failed
requests. A lease that isn't confirmed in time is marked lost by this process's own clock, which counts from before the
request was sent.

The thread also gives the heartbeats of the consumers that hold leases: a consumer without one for its `takeover`
seconds counts as dead, and others get its messages although their leases would last longer (S12).

One request renews a page of leases: of those that are due, the ones that end first. Between two pages the thread gives
the heartbeats that are due, and looks for leases that have become due. A calendar queue says which ones are: a step of
the thread looks at these alone, however many leases there are.

On a clock that a test moves, a move is one step. Within it consumers with leases give the heartbeats that they would
have given meanwhile; then the thread renews the leases that have not ended, before the move returns.
"""

import contextlib
import heapq
import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import attrs

from ailf.driver import BackendDriver
from ailf.engine.calendar_queue import WIDTH, CalendarQueue
from ailf.engine.outages import OutageLog
from ailf.engine.renewed_lease import Liveness, RenewedLease
from ailf.instruments import Instruments
from ailf.logs import About, Log
from ailf.runtime import ThreadRuntime, run

__all__ = ["Renewer"]

log = Log("ailf.renewal")

MIN_INTERVAL = 0.05
"""The least number of seconds between two tries of a request that fails."""

POLL_INTERVAL = 0.001
"""Seconds between two checks whether the thread has ended."""

HEARTBEATS = 500
"""The most heartbeats that one request gives."""

NAMED: Final = 3
"""The most lost leases that a line of the log names; it counts the others."""

TELL_AFTER = 1.0
"""Seconds after which lost leases are logged, even if more may be found in the pages that are left."""

MOVE_TIMEOUT = 5.0
"""Seconds that a move of the clock waits for the thread to renew leases; after that the thread counts as hanging."""


@attrs.define
class _Batch:
    """The leases of one batch that are due.

    Attributes:
        queue: A heap of them by the time at which they end; the number only orders those that end together.
        retry_at: The earliest time of the next request, after one that failed.
    """

    queue: list[tuple[float, int, RenewedLease]] = attrs.field(factory=list)
    retry_at: float = 0.0


@attrs.define
class _Lost:
    """Leases that were found lost and are not logged yet: their number, and the first ones."""

    count: int = 0
    first: list[RenewedLease] = attrs.field(factory=list)


class Renewer:
    """Renews leases, from `add` until `discard`, in a thread of its own."""

    def __init__(
        self, driver: BackendDriver, outages: OutageLog | None = None, instruments: Instruments | None = None
    ) -> None:
        self._driver = driver
        self._outages = outages or OutageLog(driver)
        self._instruments = instruments or Instruments(driver.url)
        self._thread_driver: BackendDriver | None = None
        self._leases: set[RenewedLease] = set()
        self._calendar: CalendarQueue[RenewedLease] = CalendarQueue()  # used with the guard
        self._batches: dict[Hashable, _Batch] = {}  # used by the thread alone, as what follows
        self._numbers = itertools.count()
        self._lost: dict[tuple[type, Hashable, str], _Lost] = {}
        self._tell_at = float("inf")
        self._holders: dict[Liveness, int] = {}  # with the generation up to which lost leases were looked for
        self._heartbeat_at = float("inf")
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
        """Renew these leases, which began together and have one holder, from now on."""
        first = leases[0]
        holder = first.liveness
        with self._guard:
            self._leases.update(leases)
            at = first.next_check()
            bucket = self._calendar.bucket(at)
            bucket.update(dict.fromkeys(leases))
            for lease in leases:
                lease.bucket = bucket
            if holder is not None:
                holder.held.update(leases)
                if holder not in self._holders:
                    self._holders[holder] = holder.generation
                    self._heartbeat_at = min(self._heartbeat_at, holder.due())
            due = min(at, self._heartbeat_at)  # the thread may have ended, and the holder be known from before
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
            self.reschedule(lease)

    def reschedule(self, lease: RenewedLease) -> None:
        """Check this lease at its `next_check`, which may have become earlier."""
        with self._guard:
            if lease not in self._leases:
                return
            at = lease.next_check()
            self._place(lease, at)
            if at < self._next:
                self._next = at
                self._wake.notify()

    def _place(self, lease: RenewedLease, at: float) -> None:
        """Move a lease to a bucket of the calendar queue."""
        lease.bucket.pop(lease, None)
        lease.bucket = self._calendar.bucket(at)
        lease.bucket[lease] = None

    def _start(self) -> None:
        """Start the thread. If Ctrl-C interrupts the start, this thread ends, and the next lease starts another one."""
        try:
            self._thread = threading.Thread(target=self._run, name="ailf-renewal", daemon=True)
            self._thread.start()
        except BaseException:
            self._thread = None
            raise

    def discard(self, lease: RenewedLease) -> None:
        """Stop renewing this lease. It takes no lock, as a finalizer may call it."""
        self._leases.discard(lease)
        lease.bucket.pop(lease, None)
        if lease.liveness is not None:
            lease.liveness.held.discard(lease)

    def retire(self, holder: Liveness) -> None:
        """Stop renewing the leases of a holder that gives them back; give its heartbeats until they are discarded.

        Without heartbeats it might count as dead before all are given back, and the rest would have had an attempt.
        """
        for lease in tuple(holder.held):
            self._leases.discard(lease)
            lease.bucket.pop(lease, None)

    def leases(self) -> list[RenewedLease]:
        """Return the leases that it renews now."""
        with self._guard:
            return list(self._leases)

    @property
    def idle(self) -> bool:
        """Whether it has no lease and no thread."""
        return self._thread is None and not self._needed()

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
        with self._guard:
            alive = [holder for holder in self._holders if holder.held and now < holder.ends]
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
                self._step()
            self._tell_lost()
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
                if not self._needed():
                    break
            if self._thread is threading.current_thread():
                self._thread = None
            self._wake.notify_all()
            return False

    def _needed(self) -> bool:
        """Return whether there is a lease to renew, or a heartbeat to give."""
        return bool(self._leases) or any(holder.held for holder in self._holders)

    def _step(self) -> None:
        """Give the heartbeats that are due; renew a page of the leases that are due; mark lost what has ended."""
        with self._clock.step_lock():  # in the middle of a move by hand live holders seem dead
            now = self._now()
            heartbeats = now >= self._heartbeat_at
            holders = self._check_holders(now) if heartbeats else []
            self._take_due(now)
            page = self._next_page(now)
        for each, since in self._send_heartbeats(holders, self._own_driver):
            if self._now() < each.ends:  # a late holder may already count as dead, and stays dead
                each.extend(since)
        if page:
            self._renew(page)
        pages = min((each.retry_at for each in self._batches.values()), default=float("inf"))
        now = self._now()
        if pages > now or now >= self._tell_at:  # no page is left, so all that one check found lost is known
            self._tell_lost()
        with self._wake:
            now = self._now()
            if heartbeats:
                due = min((each.due() for each in self._holders), default=float("inf"))
                self._heartbeat_at = max(due, now + MIN_INTERVAL)
            self._next = min(self._calendar.next(), self._heartbeat_at, pages)
            if not self._needed():  # the thread ends, unless a lease comes soon
                self._next = now + MIN_INTERVAL
            self._checking = self._hangs = False
            self._wake.notify_all()

    def _check_holders(self, now: float) -> list[Liveness]:
        """Return the holders whose heartbeats are due; mark lost the leases of those that count as dead."""
        with self._guard:
            for holder in [holder for holder in self._holders if not holder.held]:
                del self._holders[holder]
            holders = tuple(self._holders.items())
        due = []
        for holder, generation in holders:
            if now >= holder.ends or holder.generation != generation:
                self._holders[holder] = holder.generation
                for lease in tuple(holder.held):
                    if lease.lost and lease in self._leases:
                        self._lose(lease, _why_lost(lease, now))
            if holder.due() <= now < holder.ends:  # a dead one must stay dead, or others would wait for its messages
                due.append(holder)
        return due

    def _take_due(self, now: float) -> None:
        """Move the leases that are due from the calendar queue to their batches; mark lost what has ended."""
        with self._guard:
            leases = self._calendar.pop(now)
        for lease in leases:
            if lease not in self._leases:  # it was discarded while it was moved
                continue
            due = lease.due()
            if lease.lost or lease.limit <= now:
                self._lose(lease, _why_lost(lease, now))
            elif due <= now + WIDTH and now < lease.last:
                self._queue(lease)
            else:
                self._put_back(lease, now)

    def _queue(self, lease: RenewedLease) -> _Batch:
        """Put a lease in the queue of its batch, which is returned."""
        batch = self._batches.setdefault((type(lease), lease.batch), _Batch())
        heapq.heappush(batch.queue, (min(lease.ends, lease.limit), next(self._numbers), lease))
        return batch

    def _put_back(self, lease: RenewedLease, now: float) -> None:
        """Put a lease back in the calendar queue, at a later time than now."""
        at = lease.next_check() if now < lease.last else min(lease.ends, lease.limit)
        with self._guard:
            self._place(lease, max(at, now + WIDTH))

    def _next_page(self, now: float) -> list[RenewedLease]:
        """Return the leases to renew in the next request: those that end first, and others of their batch."""
        first: _Batch | None = None
        for key, batch in list(self._batches.items()):
            self._drop_ended(batch, now)
            if not batch.queue:
                del self._batches[key]
            elif batch.retry_at <= now and (first is None or batch.queue[0] < first.queue[0]):
                first = batch
        page: list[RenewedLease] = []
        while first is not None and first.queue and len(page) < first.queue[0][2].page:
            page.append(heapq.heappop(first.queue)[2])
            self._drop_ended(first, now)
        return page

    def _drop_ended(self, batch: _Batch, now: float) -> None:
        """Drop the first leases of a batch while they need no renewal: discarded, extended by the user, or lost."""
        while batch.queue:
            lease = batch.queue[0][2]
            if lease in self._leases:
                if lease.lost or lease.limit <= now:
                    self._lose(lease, _why_lost(lease, now))
                elif lease.due() > now + WIDTH or now >= lease.last:
                    self._put_back(lease, now)
                else:
                    return
            heapq.heappop(batch.queue)

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
        for batch in batches.values():
            for first in range(0, len(batch), HEARTBEATS):
                members = batch[first : first + HEARTBEATS]
                since = self._now()
                done, _ = self._request(driver, members[0].describe(members), partial(members[0].heartbeat, members))
                for each in members if done else ():
                    yield each, since

    def _renew(self, page: list[RenewedLease]) -> None:
        """Renew leases of one batch in one request; after a failure they stay due, and their batch pauses."""
        since = self._now()
        first = page[0]
        what = f"{first.describe(page[:NAMED], len(page))} not renewed"
        done, held = self._request(self._own_driver, what, lambda driver: first.renew(driver, page))
        now = self._now()
        if not done:
            for lease in page:
                self._queue(lease).retry_at = now + MIN_INTERVAL
            return
        for lease, still_held in zip(page, held, strict=True):
            if lease not in self._leases:  # one that was settled meanwhile is not lost
                continue
            if still_held and not lease.lost:
                lease.confirm(since, lease.lease)
                self._put_back(lease, now)
            else:
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
        """Mark a lease lost, and note it for the log."""
        self.discard(lease)
        lost = self._lost.setdefault((type(lease), lease.batch, why), _Lost())
        lost.count += 1
        if lost.count <= NAMED:
            lost.first.append(lease)
        if self._tell_at == float("inf"):
            self._tell_at = self._now() + TELL_AFTER
        lease.take()
        lease.observe_lost(self._instruments, why)

    def _tell_lost(self) -> None:
        """Log the leases that were lost, in one line for each batch and reason."""
        told, self._lost, self._tell_at = self._lost, {}, float("inf")
        for (_, _, why), lost in told.items():
            first = lost.first[0]
            about = About(first.describe(lost.first, lost.count), {"backend": self._driver.url, **first.log_fields()})
            log.warning(about, "lost: %s", why)


def _why_lost(lease: RenewedLease, now: float) -> str:
    """Return why a lease is given up."""
    if lease.revoked:
        return "another consumer or holder has it"
    return "its handler's timeout is over" if lease.limit <= now else "it could not be renewed in time"
