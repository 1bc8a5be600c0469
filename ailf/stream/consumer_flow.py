"""The implementation of a consumer: it fetches, buffers and renews messages, delivers them, and gives back the rest.

Callers wait on the local buffer, never on the backend. A cancelled caller leaves the fetch running: its messages go
to the next caller or, on close, back to the group (S6).
"""

import contextlib
import functools
import logging
import os
import secrets
import socket
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

from ailf.checks import MAX_SECONDS, check_count, check_name, check_seconds
from ailf.driver import Action, Claim, Outcome, Settlement
from ailf.engine import AWAY
from ailf.engine.engine import LEAVING
from ailf.engine.renewal import Renewer
from ailf.engine.renewed_lease import RenewedLease
from ailf.errors import AilfError, BackendTimeoutError, ClosedError, DecodeError
from ailf.runtime.leader import LeaderFollowers
from ailf.stream.delivery import DeliveryState
from ailf.stream.group_flow import SETTLED_AT_ONCE, GroupFlow
from ailf.stream.lease import ConsumerLiveness, DeliveryLease

__all__ = ["ConsumerFlow"]

log = logging.getLogger("ailf.stream")

NUMBERS = (int, float)

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
        self._wanted: dict[object, int] = {}  # by call of `next_many`: how many more messages it takes
        self._fetches = 0
        self._buffer: deque[DeliveryState] = deque()
        self._callers = LeaderFollowers(group.engine.runtime, self._buffer)
        self._fetching = group.engine.runtime.single_flight()
        self._waiter = group.driver.waiter(group.stream, group.name)
        self._liveness = ConsumerLiveness(
            group.stream, group.name, self.name, group.options.takeover, group.engine.runtime.lease_now
        )
        self._position: Any = None
        self._fetch_at = 0.0
        self._pid = os.getpid()
        self._opened = self._failing = self._closed = False
        group.engine.track(self)
        weakref.finalize(self, _stop_renewing, group.engine.renewer, self._liveness.held).atexit = False

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
                    await self._fetching.run(self._fetch)
                    return await self._buffered()
                left = None if until is None else until - now()
                if left is not None and left <= 0:
                    return await self._finish_wait()
                begin = now()
                try:
                    await self._callers.wait_for_item(
                        functools.partial(self._fill, SLICE if left is None else min(SLICE, left)), left
                    )
                except AWAY as error:
                    self.record_failure(error)
                    await self._repeat(error, begin, until)
        finally:  # however this ends, another caller takes over the item or the lead
            self._callers.wake()

    async def next_many(self, count: int, timeout: float | None = None, linger: float = 0.0) -> list[DeliveryState]:
        """Return the next message and those behind it: up to `count`; [] when stopped, or after `timeout` seconds.

        Messages that are available when the first one comes are taken at once, in one fetch at most; further ones
        within `linger` seconds. If this is cancelled, all of them are the next caller's (S6).
        """
        check_count("n", count)
        states: list[DeliveryState] = []
        call = object()
        self._wanted[call] = count
        fetches = self._fetches
        try:
            while not states:
                state = await self.next(timeout)
                if state is None:
                    break
                states.append(state)
                until = self.group.engine.runtime.now() + linger
                try:
                    if self._take_buffered(states, count) and self._fetches == fetches:
                        self._wanted[call] = count - len(states)
                        await self._fetching.run(self._fetch)
                        self._take_buffered(states, count)
                    await self._wait_for_more(call, states, count, until)
                except AWAY as error:  # an outage ends no call that has messages
                    self.record_failure(error)
                await self._lose_ended(states)
        except BaseException:
            self._buffer.extendleft(reversed(states))
            self._callers.wake()
            raise
        finally:
            del self._wanted[call]
        return states

    def _take_buffered(self, states: list[DeliveryState], count: int) -> bool:
        """Move messages from the buffer to these until there are `count`; return whether there are fewer."""
        while len(states) < count:
            try:
                states.append(self._buffer.popleft())
            except IndexError:
                return True
        return False

    async def _wait_for_more(self, call: object, states: list[DeliveryState], count: int, until: float) -> None:
        """Wait until `until` for more messages, while there are fewer than `count`."""
        now = self.group.engine.runtime.now
        while len(states) < count and (left := until - now()) > 0:
            self._wanted[call] = count - len(states)
            if (state := await self.next(left)) is None:
                return
            states.append(state)
            self._take_buffered(states, count)

    async def _lose_ended(self, states: list[DeliveryState]) -> None:
        """Drop messages whose leases have ended."""
        ended = [state for state in states if state.lease.lost]
        if ended:
            gone = set(ended)
            states[:] = [state for state in states if state not in gone]
        for state in ended:
            await state.lose()

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
                return await self._callers.wait_for_item(
                    functools.partial(self._fill, SLICE if left is None else min(SLICE, left)), left
                )
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
            with contextlib.suppress(IndexError):  # another thread took it
                state = self._buffer.popleft()
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
        elif self._position is None or now >= self._fetch_at:
            await self._fetching.run_inline(self._fetch)
        elif not (self._buffer or self.stopping.is_set()):
            await self._wait(min(max_wait, self._fetch_at - now))

    async def _fetch(self) -> None:
        """Fetch, and set when to fetch again: a wait doesn't see entries that come due, nor leases that end."""
        if self._buffer or self.stopping.is_set():
            return
        await self.open(0.0)
        since = self.group.engine.runtime.lease_now()
        self._position = None
        count = max(self._prefetch, *self._wanted.values()) if self._wanted else self._prefetch
        self._fetches += 1
        fetched = await self.group.fetch(self.name, count)
        self._liveness.confirm(since)
        if self._failing:
            self._record_success()
        self._position = fetched.position
        interval = self.group.options.fetch_interval
        self._fetch_at = since + (interval if fetched.next_due is None else min(interval, max(fetched.next_due, 0.001)))
        if fetched.claims:
            await self._unpack(fetched.claims, since)
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
            self.group.engine.renewer.add([state.lease for state in states])
            self._buffer.extend(states)
            self._callers.wake()
        for first in range(0, len(undecodable), SETTLED_AT_ONCE):
            page = undecodable[first : first + SETTLED_AT_ONCE]
            outcomes = await self.group.settle_many([settlement for _, settlement in page])
            for (entry_id, settlement), outcome in zip(page, outcomes, strict=True):
                if outcome is Outcome.DEAD:
                    await self.group.report(entry_id, settlement, outcome)

    def stop_renewing(self, state: DeliveryState) -> None:
        """Stop renewing the lease of a settled or lost delivery."""
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
            until: Deadline for a fetch under way and for the next page of releases; None: `LEAVING` seconds from now.

        Raises:
            BackendTimeoutError: Not all messages were released by `until`.
        """
        until = self.group.engine.runtime.now() + LEAVING if until is None else until
        await self._wait_for_fetch(until)
        unstarted: list[DeliveryState] = []
        while self._buffer:
            self._take_buffered(unstarted, len(self._buffer))
        await self.release(unstarted, until)

    async def release(self, unstarted: Sequence[DeliveryState], until: float) -> None:
        """Release messages that no handler has begun: in pages, the next one until `until`.

        Raises:
            BackendTimeoutError: Not all messages were released by `until`.
        """
        for state in unstarted:
            state.settled = Action.RELEASE
            self.stop_renewing(state)
        releases = [Settlement(state.claim.receipt, Action.RELEASE) for state in unstarted]
        group = self.group
        most = group.options.max_deliveries
        for first in range(0, len(releases), SETTLED_AT_ONCE):
            if first and group.engine.runtime.now() >= until:
                left = len(releases) - first
                raise BackendTimeoutError(f"release {left} of {len(releases)} messages of {group}: out of time")
            page = releases[first : first + SETTLED_AT_ONCE]
            await group.driver.settle(group.stream, group.name, page, max_deliveries=most)

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
        self.group.engine.renewer.retire(self._liveness)  # a lease that is given back is not lost
        try:
            await self._leave(until)
        except AilfError as error:
            log.warning("%s: messages not given back; they come again when their leases end: %s", self.group, error)
        for lease in tuple(self._liveness.held):
            lease.revoked = True
        _stop_renewing(self.group.engine.renewer, self._liveness.held)
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
    for lease in tuple(leases):
        renewer.discard(lease)
