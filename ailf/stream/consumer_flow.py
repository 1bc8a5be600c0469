"""The implementation of a consumer: it fetches, buffers and renews messages, delivers them, and gives back the rest.

Callers wait on the local buffer, never on the backend. A cancelled caller leaves the fetch running: its messages go
to the next caller or, on close, back to the group (S6). The consumers of one group in this process share one wait on
the backend (`GroupWait`).
"""

import functools
import os
import weakref
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from ailf.checks import MAX_SECONDS, check_count, check_seconds
from ailf.driver import Action, Claim, Fetched, Outcome, Receipt, Settlement, Waiting
from ailf.engine import AWAY
from ailf.engine.engine import LEAVING
from ailf.engine.spread_renewer import AnyRenewer
from ailf.errors import AilfError, BackendTimeoutError, ClosedError, DecodeError, EmptyError
from ailf.logs import Fields, Log
from ailf.runtime.base import Flow, finish
from ailf.runtime.leader import LeaderFollowers
from ailf.stream.consumer_name import unique_name
from ailf.stream.delivery import DeliveryState
from ailf.stream.group_flow import SETTLED_AT_ONCE, GroupFlow
from ailf.stream.group_wait import GroupWait, QueuedConsumer, joined
from ailf.stream.lease import FRESH, ConsumerLiveness, DeliveryLease
from ailf.stream.partitions import Partitions

__all__ = ["ConsumerFlow"]

log = Log("ailf.stream")

NUMBERS = (int, float)

MANY = 1_000_000
"""The number of callers of the other consumers, if any waits in the queue."""

INLINE = 50
"""After this many messages, or fetches without any, a fetch takes a turn of the event loop: others run, too."""

ANYWHERE = -1
"""Stands for no partition, among the numbers of partitions."""

SLICE = 1.0
"""The longest single wait on the backend, in seconds."""

SHORTEST = 0.001
"""The shortest one. A wait of no time never yields to the event loop; on a clock that is moved by hand the time until a
fetch may be the difference of two roundings, and stays that."""


class ConsumerFlow:
    """The shared implementation of `Consumer` and `AsyncConsumer`.

    Attributes:
        group: The group to which it belongs.
        name: Its name, unique per opened consumer.
        liveness: Whether the backend counts it as alive.
        stopping: Set when it delivers nothing more.
        in_progress: The deliveries that a worker has begun and not ended, by the id of their entry.
        found_nothing: Whether the last fetch without a wait looked at all of the group, and leased nothing.
    """

    def __init__(self, group: GroupFlow, name: str | None, prefetch: int) -> None:
        self.group = group
        self.name = unique_name(name)
        self.stopping = group.engine.runtime.event()
        self.in_progress: dict[str, DeliveryState] = {}
        self.found_nothing = False
        self._prefetch = check_count("prefetch", prefetch)
        self._wanted: dict[object, int] = {}  # by call of `next_many`: how many more messages it takes
        self._fetches = 0
        self._buffer: deque[DeliveryState] = deque()
        self._callers = LeaderFollowers(group.engine.runtime, self._buffer)
        self._fetching = group.engine.runtime.single_flight()
        self._closing = group.engine.runtime.single_flight()
        self.liveness = ConsumerLiveness(
            group.stream, group.name, self.name, group.options.takeover, group.engine.runtime.lease_now
        )
        self._livenesses = {ANYWHERE: self.liveness}  # and that in each partition in which it has had messages
        self._wait: GroupWait | None = None
        self._queued = QueuedConsumer(group.engine.runtime, self.liveness)
        self._in_thread = group.engine.runtime.uses_caller
        self._until: float | None = None
        self._pid = os.getpid()
        self._opened = self._failing = self._closed = False
        # The steps of a backend in this process don't wait; on_event is the user's, and may.
        self._fetches_inline = group.engine.in_loop and group.options.on_event is None
        self._inline = 0
        group.engine.track(self)
        weakref.finalize(self, _stop_renewing, group.engine.renewer, self._livenesses).atexit = False

    def __str__(self) -> str:
        return f"consumer {self.name!r} of {self.group}"

    def log_fields(self) -> Fields:
        """Return the fields of a record of the log that is about it."""
        return {**self.group.log_fields(), "consumer": self.name}

    async def open(self, until: float | None = None) -> None:
        """Make the group unless it exists, before the first fetch: a group that is missing later has vanished."""
        if not self._opened:
            await self.group.open(until)
            self._opened = True

    # --- delivering ----------------------------------------------------------------------------------------------

    async def next(  # noqa: C901 - cut in two, each message would take one call more
        self, timeout: float | None = None
    ) -> DeliveryState | None:
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
                    await self._fetch_now(self._fetch)
                    return await self._buffered() or self._nothing()
                left = None if until is None else until - now()
                if left is not None and left <= 0:
                    return await self._finish_wait()
                begin = now()
                try:
                    await self._find_item(until, left)
                except AWAY as error:
                    self.record_failure(error)
                    await self._repeat(error, begin, until)
        finally:  # however this ends, another caller takes over the item or the lead
            wait = self._wait
            if wait is not None and wait.turn is self._queued and self._in_thread and not self._callers.leading:
                wait.leave(self._queued)  # Ctrl-C came as it was about to leave
            self._callers.wake()

    async def take(self, timeout: float | None) -> DeliveryState:
        """Return the next message.

        Raises:
            EmptyError: None came within `timeout` seconds, or the consumer was stopped.
        """
        if (state := await self.next(timeout)) is not None:
            return state
        if self.stopping.is_set():
            raise EmptyError(f"take from {self.group}: the consumer was stopped")
        raise EmptyError(f"take from {self.group}: no message came within {timeout:g} s")

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
        now = self.group.engine.runtime.now
        begin, left = now(), timeout
        try:
            while not states:
                state = await self.next(left)
                if state is None:
                    break
                states.append(state)
                until = now() + linger
                try:
                    if self._take_buffered(states, count) and self._fetches == fetches:
                        self._wanted[call] = count - len(states)
                        await self._fetching.run(self._fetch)
                        self._take_buffered(states, count)
                    await self._wait_for_more(call, states, count, until)
                except AWAY as error:  # an outage ends no call that has messages
                    self.record_failure(error)
                await self._lose_ended(states)
                if timeout is not None:  # all of them may be lost
                    left = max(0.0, begin + timeout - now())
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

    def _find_item(self, until: float | None, left: float | None) -> Coroutine[Any, Any, None]:
        """Fetch, or wait until `until`, for `left` seconds at most; there may be no item afterwards."""
        wait = self._wait
        if self._fetches_inline and wait is not None and wait.more and wait.home == self.group.engine.home:
            self._until = until
            return self._fetch_now(self._fetch_in_wait)
        return self._callers.wait_for_item(functools.partial(self._fill, until), left)

    async def _finish_wait(self) -> DeliveryState | None:
        """Return the message that is available at the end of a wait, or None."""
        runtime = self.group.engine.runtime
        if runtime.clock.by_hand and (self._wait is None or runtime.lease_now() >= self._wait.fetch_at):
            await self._fetching.run(self._fetch)  # a move of the clock delivers what it made due before the wait ends
        elif self._wait is not None and self._wait.idle() and not self._callers.waiting():
            await self._wait.rest()
        return await self._buffered() or self._nothing()

    def _nothing(self) -> DeliveryState | None:
        """Return None, as there is no message.

        Raises:
            BackendError: A part of the group was not asked, as its server doesn't reply.
        """
        failure = self.group.failure()
        if failure is not None:
            raise failure.with_traceback(None)
        return None

    async def _repeat(self, error: Exception, begin: float, until: float | None) -> None:
        """Wait again while the backend is unavailable and this caller has time left.

        Raises:
            BackendError: The backend is still unavailable.
        """
        engine, tries = self.group.engine, 0
        if self._wait is not None:  # the wait may have begun long before the request that failed
            begin = max(begin, self._wait.asked_at)
        while True:
            await engine.wait_out(error, begin, tries, until)
            tries += 1
            left = None if until is None else until - engine.runtime.now()
            if left is not None and left <= 0:
                raise error
            try:
                return await self._find_item(until, left)
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

    async def _fill(self, until: float | None) -> None:
        """Fetch, or wait in turn until a fetch gives this consumer messages, until `until` at most.

        It repeats no request: each caller does, until its own deadline.
        """
        engine = self.group.engine
        if not self._opened:  # alone: each caller checks its own deadline between two requests
            await self.open(0.0)
            return
        wait = self._wait
        if wait is None or wait.home != engine.home:
            wait = await self._join_wait(wait)
        self._until = until
        if wait.more or engine.runtime.lease_now() >= self.liveness.due():  # no need to wait, or to be counted as alive
            await self._fetching.run_inline(self._fetch_in_wait)
            return
        queued = self._queued
        try:
            has_turn = wait.enter(queued)
            if not (has_turn or self._buffer or self.stopping.is_set()):  # `enter` has reset the event that says so
                left = None if until is None else until - engine.runtime.now()
                has_turn = await wait.wait_for_turn(queued, left)
            if has_turn:
                await self._take_turn(wait, until)
        except AWAY as error:
            if queued.error is None:
                wait.fail(error)
            raise
        finally:
            wait.leave(queued)
        if wait.idle() and (self.stopping.is_set() or not self._callers.waiting()):
            await wait.rest()

    async def _join_wait(self, former: GroupWait | None) -> GroupWait:
        """Join the wait of this process or event loop, after one of a loop that has ended, or of the parent process."""
        if former is not None:
            if not self._in_thread:  # else the parent process may still wait there
                await former.rest()
            await former.waiter.close()
        self._wait = joined(self)
        return self._wait

    async def _take_turn(self, wait: GroupWait, until: float | None) -> None:
        """Wait on the backend, and fetch when something may have come, until there are messages for this consumer.

        It also ends at `until`, when the consumer is stopped, and when its callers have left: they were cancelled.
        """
        runtime = self.group.engine.runtime
        while not (self._buffer or self.stopping.is_set()) and self._callers.waiting():
            now = runtime.lease_now()
            left = SLICE if until is None else min(SLICE, until - runtime.now())
            if wait.until_heartbeat(now) <= 0:
                await self._send_heartbeats(wait, now)
            elif wait.position is None or now >= wait.fetch_at or runtime.now() > wait.asked_at + FRESH:
                await self._fetching.run_inline(self._fetch_in_wait)
            elif left <= 0:
                return
            else:
                longest = min(left, wait.fetch_at - now, wait.until_heartbeat(now))
                await self._wait_in_turn(wait, max(SHORTEST, longest))

    async def _wait_in_turn(self, wait: GroupWait, longest: float) -> None:
        """Wait on the backend, for `longest` seconds at most; then the position is None if something may have come."""
        engine, position = self.group.engine, wait.position
        wait.asked_at = engine.runtime.now()
        came = await engine.call(f"wait for {self.group}", wait.waiter.wait, position, longest, again=True, until=0.0)
        if came and wait.position is position:  # else a fetch beside this wait has given a later one
            wait.position = None

    async def _send_heartbeats(self, wait: GroupWait, now: float) -> None:
        """Give one heartbeat for all consumers that wait in this process: only one of them fetches."""
        for alike in wait.heartbeats(now):
            await self.group.heartbeat([each.consumer for each in alike], alike[0].takeover)
            for each in alike:
                each.confirm(now)

    async def _fetch_now(self, fetch: Flow) -> None:
        """Fetch; if the backend is in this process, then without a turn of the event loop, save now and then."""
        if self._fetches_inline and self._inline < INLINE:
            await self._fetching.run_inline(fetch)
            self._inline += len(self._buffer) or 1
        else:
            self._inline = 0
            await self._fetching.run(fetch)

    async def _fetch(self) -> None:
        """Fetch once, for a caller that doesn't wait."""
        if self._buffer or self.stopping.is_set():
            return
        if not self._opened:
            await self.open(0.0)
        since = self.group.engine.runtime.lease_now()
        fetched = await self.group.fetch(self.name, self._count())
        self.found_nothing = not fetched.claims and fetched.position is not None
        await self._keep(fetched, since)
        if not self._buffer:
            return
        self._queued.event.set()  # a caller that waits for its turn takes it
        wait = self._wait
        if len(self._buffer) > 1 and wait is not None and wait.turn is self._queued:  # so does one that has the turn
            wait.waiter.interrupt()

    def _count(self) -> int:
        """Return how many messages a fetch asks for."""
        self._fetches += 1
        return max(self._prefetch, *self._wanted.values()) if self._wanted else self._prefetch

    async def _fetch_in_wait(self) -> None:
        """Fetch, and note how this process goes on to wait: a wait doesn't see entries that come due."""
        wait = self._wait
        if self._buffer or self.stopping.is_set() or wait is None:
            return
        runtime = self.group.engine.runtime
        since, wait.asked_at = runtime.lease_now(), runtime.now()
        others = MANY if wait.queue else len(self._callers.asleep)
        known = not others and self._until is not None  # else others may wait for longer
        seconds = max(0.0, (self._until or 0.0) - wait.asked_at) if known else MAX_SECONDS
        fetched = await self.group.fetch(self.name, self._count(), Waiting(wait.waiter, others, seconds))
        wait.position = fetched.position
        wait.more = fetched.position is None
        due = fetched.next_due
        wait.fetch_at = since + (wait.interval if due is None else min(wait.interval, max(due, 0.001)))
        await self._keep(fetched, since)

    async def _keep(self, fetched: Fetched, since: float) -> None:
        """Keep what a fetch has leased, and report its events."""
        self.liveness.confirm(since)
        if self._failing and self.group.failure() is None:
            self._record_success()
        if fetched.claims:
            await self._unpack(fetched.claims, since)
        if fetched.dead or fetched.reset:
            await self.group.announce(fetched)

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
                log.error(self.group.about_entry(record.id), "becomes a dead letter: %s", error)  # noqa: TRY400 - it says all
                undecodable.append((record.id, _undecodable(claim, error)))
                continue
            liveness, receipt = self.liveness, claim.receipt
            if self.group.partitions is not None:
                liveness, receipt = self._in_partition(self.group.partitions, receipt, since)
            lease = DeliveryLease(liveness, receipt, lease=options.lease, since=since, longest=options.max_processing)
            states.append(DeliveryState(self, claim, lease, data, headers))
        if states:
            self.group.engine.renewer.add([state.lease for state in states])
            instruments = self.group.engine.instruments
            if instruments.message_received or instruments.message_settled:
                now = self.group.engine.runtime.now()
                for state in states:
                    state.observe_received(now)
            self._buffer.extend(states)
            self._callers.wake()
        for first in range(0, len(undecodable), SETTLED_AT_ONCE):
            page = undecodable[first : first + SETTLED_AT_ONCE]
            outcomes = await self.group.settle_many([settlement for _, settlement in page])
            for (entry_id, settlement), outcome in zip(page, outcomes, strict=True):
                if outcome is Outcome.DEAD:
                    await self.group.report(entry_id, settlement, outcome)

    def _in_partition(self, partitions: Partitions, receipt: Receipt, since: float) -> tuple[ConsumerLiveness, Receipt]:
        """Return the liveness in the partition of a delivery, and the receipt there: both are renewed by partition."""
        partition, inner = partitions.of_receipt(receipt)
        liveness = self._livenesses.get(partition)
        if liveness is None:
            own = self.liveness
            name = partitions.names[partition]
            liveness = ConsumerLiveness(name, own.group, own.consumer, own.takeover, own.now)
            self._livenesses[partition] = liveness
        liveness.confirm(since)
        return liveness, inner

    def stop_renewing(self, state: DeliveryState) -> None:
        """Stop renewing the lease of a settled or lost delivery."""
        self.group.engine.renewer.discard(state.lease)

    # --- ending --------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Deliver nothing more and wake every waiting caller, from any thread."""
        self.stopping.set()
        if self._wait is not None:
            self._wait.interrupt(self._queued)

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
            for state in unstarted[first : first + SETTLED_AT_ONCE] if group.engine.instruments.message_settled else ():
                state.observe_released()

    async def leave(self) -> None:
        """Stop, and give the unsettled messages back to the group (S6, S11), once.

        Messages whose handlers still run are not given back, because two handlers would work on them at once. They come
        back when their leases end. If the caller is cancelled meanwhile, a task of its own does the rest.
        """
        if self._closed or self._pid != os.getpid():  # a forked child must not close what its parent holds
            return
        self.group.engine.check_home()
        self._closed = True
        await finish(self._leave_group, self._closing)

    async def close(self) -> None:
        """Leave, as the backend closes; wait for a task of `leave` to end."""
        await self.leave()
        await self._closing.wait_idle(LEAVING)

    async def _leave_group(self) -> None:
        self.stop()
        until = self.group.engine.runtime.now() + LEAVING
        await self._wait_for_fetch(until)
        for liveness in self._livenesses.values():
            self.group.engine.renewer.retire(liveness)  # a lease that is given back is not lost
        left = False
        try:
            await self._give_back(until)
            left = True
        except AilfError as error:
            log.warning(self, "messages not given back; they come again when their leases end: %s", error)
        for liveness in self._livenesses.values():
            for lease in tuple(liveness.held):
                lease.revoked = True
        _stop_renewing(self.group.engine.renewer, self._livenesses)
        while left and self._buffer and self.group.engine.instruments.message_settled:
            self._buffer.popleft().observe_released()
        self._buffer.clear()
        if self._wait is not None:
            self._wait.leave(self._queued)
            await self._wait.part(self, reachable=left)
        self.group.engine.untrack(self)

    async def _give_back(self, until: float) -> None:
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


def _stop_renewing(renewer: AnyRenewer, livenesses: Mapping[int, ConsumerLiveness]) -> None:
    """Stop renewing the leases of a consumer that was closed, or dropped without `close`: they end by themselves."""
    for liveness in livenesses.values():
        for lease in tuple(liveness.held):
            renewer.discard(lease)
