"""The implementation of a consumer: it fetches, buffers and renews messages, delivers them, and gives back the rest.

Callers wait on the local buffer, never on the backend. A cancelled caller leaves the fetch running: its messages go
to the next caller or, on close, back to the group (S6).
"""

import functools
import logging
import os
import secrets
import socket
import weakref
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any

from ailf.checks import MAX_SECONDS, check_count, check_name, check_seconds
from ailf.driver import Action, Claim, Outcome, Settlement
from ailf.engine import AWAY
from ailf.engine.engine import LEAVING
from ailf.engine.renewal import RenewedLease, Renewer
from ailf.errors import AilfError, BackendTimeoutError, ClosedError, DecodeError
from ailf.runtime.leader import LeaderFollowers
from ailf.stream.delivery import DeliveryState
from ailf.stream.group_flow import GroupFlow
from ailf.stream.lease import ConsumerLiveness, DeliveryLease

__all__ = ["ConsumerFlow"]

log = logging.getLogger("ailf.stream")

NUMBERS = (int, float)

INLINE = 50
"""The most fetches in a row without a turn of the event loop: a caller that always finds messages stops no other."""

SLICE = 1.0
"""The longest single wait on the backend, in seconds."""


class ConsumerFlow:
    """The shared implementation of `Consumer` and `AsyncConsumer`.

    Attributes:
        group: The group to which it belongs.
        name: Its name, unique per opened consumer.
        stopping: Set when it delivers nothing more.
        in_progress: The deliveries that a worker has begun and not ended, by the id of their entry.
    """

    def __init__(self, group: GroupFlow, name: str | None, prefetch: int) -> None:
        self.group = group
        prefix = f"{socket.gethostname()}-{os.getpid()}" if name is None else name
        self.name = f"{check_name('consumer', prefix)}:{secrets.token_hex(4)}"
        self.stopping = group.engine.runtime.event()
        self.in_progress: dict[str, DeliveryState] = {}
        self._prefetch = check_count("prefetch", prefetch)
        self._buffer: deque[DeliveryState] = deque()
        self._callers = LeaderFollowers(group.engine.runtime, self._buffer)
        self._leases: set[RenewedLease] = set()
        self._fetching = group.engine.runtime.single_flight()
        self._waiter = group.driver.waiter(group.stream, group.name)
        self._liveness = ConsumerLiveness(
            group.stream, group.name, self.name, group.options.takeover, group.engine.runtime.lease_now
        )
        self._interval = group.options.fetch_interval
        self._position: Any = None
        self._fetch_at = 0.0
        self._pid = os.getpid()
        self._opened = self._failing = self._closed = False
        # The steps of a backend in this process don't wait; on_event is the user's, and may.
        self._fetches_inline = group.engine.in_loop and group.options.on_event is None
        self._inline = 0
        group.engine.track(self)
        weakref.finalize(self, _stop_renewing, group.engine.renewer, self._leases).atexit = False

    async def open(self, until: float | None = None) -> None:
        """Make the group unless it exists, before the first fetch: a group that is missing later has vanished."""
        if not self._opened:
            await self.group.open(until)
            self._opened = True

    # --- delivering ----------------------------------------------------------------------------------------------

    async def next(self, timeout: float | None = None) -> DeliveryState | None:
        """Return the next message; None when stopped, or after `timeout` seconds."""
        now = self.group.engine.runtime.now
        if timeout is not None and (type(timeout) not in NUMBERS or not 0 <= timeout <= MAX_SECONDS):
            check_seconds("timeout", timeout)
        until = None if timeout is None else now() + timeout
        try:
            while True:
                if self.group.engine.closed:
                    raise ClosedError(f"fetch from {self.group}: its backend is closed; open another one")
                if self.stopping.is_set():
                    return None
                if self._buffer and (state := await self._buffered()) is not None:
                    return state
                engine = self.group.engine
                if engine.home != engine.here():
                    engine.check_open()
                if timeout == 0:  # even while a wait is under way: a wait sees less than a fetch
                    await self._fetch_now()
                    return await self._buffered()
                left = None if until is None else until - now()
                if left is not None and left <= 0:
                    return await self._finish_wait()
                begin = now()
                try:
                    await self._find_item(left)
                except AWAY as error:
                    self.record_failure(error)
                    await self._repeat(error, begin, until)
        finally:  # however this ends, another caller takes over the item or the lead
            self._callers.wake()

    def _find_item(self, left: float | None) -> Coroutine[Any, Any, None]:
        """Fetch, or wait for `left` seconds at most; there may be no item afterwards."""
        if self._fetches_inline and self._fetch_is_due():
            return self._fetch_now()
        longest = SLICE if left is None else min(SLICE, left)
        return self._callers.wait_for_item(functools.partial(self._fill, longest), left)

    async def _finish_wait(self) -> DeliveryState | None:
        """Return the message that is available at the end of a wait, or None."""
        runtime = self.group.engine.runtime
        if runtime.clock.by_hand and runtime.lease_now() >= self._fetch_at:
            await self._fetching.run(self._fetch)  # a move of the clock delivers what it made due before the wait ends
        return await self._buffered()

    async def _repeat(self, error: Exception, begin: float, until: float | None) -> None:
        """Wait again while the backend is unavailable and this caller has time left.

        Raises:
            BackendError: The backend is still unavailable.
        """
        engine, tries = self.group.engine, 0
        while True:
            await engine.wait_out(error, begin, tries, until)
            tries += 1
            left = None if until is None else until - engine.runtime.now()
            if left is not None and left <= 0:
                raise error
            try:
                return await self._find_item(left)
            except AWAY as latest:
                self.record_failure(latest)
                error = latest

    def record_failure(self, error: Exception) -> None:
        """Report to the outage log that a fetch has failed."""
        self._failing = True
        self.group.engine.outages.failed(f"fetch from {self.group}", error)

    def _record_success(self) -> None:
        self._failing = False
        self.group.engine.outages.worked()

    async def _buffered(self) -> DeliveryState | None:
        """Return the next message of the buffer whose lease still holds, or None."""
        while self._buffer:
            try:
                state = self._buffer.popleft()
            except IndexError:  # another thread took it
                continue
            if not state.lease.lost:
                return state
            await state.lose()
        return None

    async def _fill(self, max_wait: float) -> None:
        """Fetch once, or, after a fetch that found nothing, wait once for new entries, for `max_wait` seconds at most.

        It repeats no request: each caller does, until its own deadline.
        """
        now = self.group.engine.runtime.lease_now()
        if not self._opened:  # alone: each caller checks its own deadline between two requests
            await self.open(0.0)
        elif self._fetch_is_due():
            await self._fetching.run_inline(self._fetch)
        elif not (self._buffer or self.stopping.is_set()):
            await self._wait(min(max_wait, self._fetch_at - now))

    def _fetch_is_due(self) -> bool:
        """Tell whether to fetch, not wait: the last fetch found something, or it was long ago."""
        return self._position is None or self.group.engine.runtime.lease_now() >= self._fetch_at

    async def _fetch_now(self) -> None:
        """Fetch; if the backend is in this process, then without a turn of the event loop, save now and then."""
        if self._fetches_inline and self._inline < INLINE:
            self._inline += 1
            await self._fetching.run_inline(self._fetch)
        else:
            self._inline = 0
            await self._fetching.run(self._fetch)

    async def _fetch(self) -> None:
        """Fetch, and set when to fetch again: a wait doesn't see entries that come due, nor leases that end."""
        if self._buffer or self.stopping.is_set():
            return
        if not self._opened:
            await self.open(0.0)
        since = self.group.engine.runtime.lease_now()
        self._position = None
        fetched = await self.group.fetch(self.name, self._prefetch)
        self._liveness.confirm(since)
        if self._failing:
            self._record_success()
        self._position = fetched.position
        interval, due = self._interval, fetched.next_due
        self._fetch_at = since + (interval if due is None or due > interval else max(due, 0.001))
        if fetched.claims:
            await self._unpack(fetched.claims, since)
        if fetched.dead or fetched.reset:
            await self.group.announce(fetched)

    async def _wait(self, longest: float) -> None:
        """Wait on the backend for new entries; the next `_fill` fetches them."""
        position, self._position = self._position, None
        what = f"wait for {self.group}"
        if not await self.group.engine.call(what, self._waiter.wait, position, longest, again=True, until=0.0):
            self._position = position

    async def _unpack(self, claims: Sequence[Claim], since: float) -> None:
        """Decode and buffer claims. A claim that can't be decoded becomes a dead letter and delays no other (S13)."""
        states, undecodable = [], []
        options = self.group.options
        for claim in claims:
            record = claim.record
            try:
                data, headers = self.group.payloads.unpack(
                    record.body, record.headers, foreign=record.foreign, problem=record.problem
                )
            except DecodeError as error:
                log.error("%s: entry %s becomes a dead letter: %s", self.group, record.id, error)  # noqa: TRY400 - it says all
                undecodable.append((record.id, _undecodable(claim, error)))
                continue
            lease = DeliveryLease(
                self._liveness, claim.receipt, lease=options.lease, since=since, longest=options.max_processing
            )
            states.append(DeliveryState(self, claim, lease, data, headers))
        if states:
            leases = [state.lease for state in states]
            self._leases.update(leases)
            self.group.engine.renewer.add(leases)
            self._buffer.extend(states)
            self._callers.wake()
        if undecodable:
            outcomes = await self.group.settle_many([settlement for _, settlement in undecodable])
            for (entry_id, settlement), outcome in zip(undecodable, outcomes, strict=True):
                if outcome is Outcome.DEAD:
                    await self.group.report(entry_id, settlement, outcome)

    def stop_renewing(self, state: DeliveryState) -> None:
        """Stop renewing the lease of a settled or lost delivery."""
        self._leases.discard(state.lease)
        self.group.engine.renewer.discard(state.lease)

    # --- ending --------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Deliver nothing more and wake every waiting caller, from any thread."""
        self.stopping.set()
        self._waiter.interrupt()

    async def _wait_for_fetch(self, until: float) -> None:
        """Wait until `until` for a fetch under way to end: its messages must be given back."""
        now = self.group.engine.runtime.now
        await self._callers.wait_idle(max(0.0, until - now()))
        await self._fetching.wait_idle(max(0.0, until - now()))

    async def release_unstarted(self, until: float | None = None) -> None:
        """Release the messages of the buffer: available to others at once, the attempt not counted (S14).

        Arguments:
            until: Deadline for a fetch under way; None: `LEAVING` seconds from now.
        """
        await self._wait_for_fetch(self.group.engine.runtime.now() + LEAVING if until is None else until)
        unstarted = []
        while self._buffer:
            unstarted.append(self._buffer.popleft())
        for state in unstarted:
            state.settled = Action.RELEASE
            self.stop_renewing(state)
        if unstarted:
            releases = [Settlement(state.claim.receipt, Action.RELEASE) for state in unstarted]
            group = self.group
            await group.driver.settle(group.stream, group.name, releases, max_deliveries=group.options.max_deliveries)

    async def close(self) -> None:
        """Stop, and give the unsettled messages back to the group (S6, S11).

        Messages whose handlers still run are not given back, because two handlers would work on them at once. They come
        back when their leases end.
        """
        if self._closed or self._pid != os.getpid():  # a forked child must not close what its parent holds
            return
        self.group.engine.check_home()
        self._closed = True
        self.stop()
        until = self.group.engine.runtime.now() + LEAVING
        await self._wait_for_fetch(until)
        await self._waiter.close()
        try:
            await self._leave(until)
        except AilfError as error:
            log.warning("%s: messages not given back; they come again when their leases end: %s", self.group, error)
        for lease in tuple(self._leases):
            lease.revoked = True
        _stop_renewing(self.group.engine.renewer, self._leases)
        self._buffer.clear()
        self.group.engine.untrack(self)

    async def _leave(self, until: float) -> None:
        """Give the messages back: all of them, or, while handlers still run, those that were not started.

        Raises:
            BackendTimeoutError: The last fetch got no reply by `until`; the backend is not called again.
        """
        if self.group.engine.runtime.now() >= until:
            raise BackendTimeoutError(f"leave {self.group}: the last fetch got no reply within {LEAVING:g} s")
        if self.in_progress:
            await self.release_unstarted(until)
        else:
            await self.group.driver.leave(self.group.stream, self.group.name, self.name)


def _undecodable(claim: Claim, error: DecodeError) -> Settlement:
    return Settlement(claim.receipt, Action.REJECT, reason="undecodable", error=str(error))


def _stop_renewing(renewer: Renewer, leases: set[RenewedLease]) -> None:
    """Stop renewing the leases of a consumer that was closed, or dropped without `close`: they end by themselves."""
    while leases:
        renewer.discard(leases.pop())
