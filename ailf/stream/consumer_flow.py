"""A consumer of a group: fetches, keeps what it fetched alive, hands it out, and hands back what it didn't.

Callers wait on the local buffer, never on the backend: a cancelled caller leaves the fetch running, and what it brings
goes to the next caller or, on close, back to the group (S6).
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
from typing import Any, TypeVar

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

T = TypeVar("T")

log = logging.getLogger("ailf.stream")

NUMBERS = (int, float)

SLICE = 1.0
"""The longest single wait on the backend, in seconds."""


class ConsumerFlow:
    """The one text of both flavours.

    Attributes:
        group: The group it belongs to.
        name: Its name, unique per opened consumer.
        stopping: Set when it hands out nothing more.
        in_hand: Those of its messages that a worker has begun and not settled, by their names within the group.
    """

    def __init__(self, group: GroupFlow, name: str | None, prefetch: int) -> None:
        self.group = group
        told = f"{socket.gethostname()}-{os.getpid()}" if name is None else name
        self.name = f"{check_name('consumer', told)}:{secrets.token_hex(4)}"
        self.stopping = group.engine.runtime.event()
        self.in_hand: dict[str, DeliveryState] = {}
        self._prefetch = check_count("prefetch", prefetch)
        self._buffer: deque[DeliveryState] = deque()
        self._callers = LeaderFollowers(group.engine.runtime, self._buffer)
        self._held: set[RenewedLease] = set()
        self._looking = group.engine.runtime.single_flight()
        self._waiter = group.driver.waiter(group.stream, group.name)
        self._pulse = ConsumerLiveness(
            group.stream, group.name, self.name, group.options.takeover, group.engine.runtime.lease_now
        )
        self._position: Any = None
        self._look_at = 0.0
        self._pid = os.getpid()
        self._opened = self._failing = self._closed = False
        group.engine.track(self)
        weakref.finalize(self, _abandon, group.engine.renewer, self._held).atexit = False

    async def open(self, until: float | None = None) -> None:
        """Make the group where it doesn't exist, before the first fetch: one that is missing later has vanished."""
        if not self._opened:
            await self.group.open(until)
            self._opened = True

    # --- handing out ---------------------------------------------------------------------------------------------

    async def next(self, timeout: float | None = None) -> DeliveryState | None:
        """Return the next message; None when stopped, or after so many seconds."""
        now = self.group.engine.runtime.now
        if timeout is not None and (type(timeout) not in NUMBERS or not 0 <= timeout <= MAX_SECONDS):
            check_seconds("timeout", timeout)
        until = None if timeout is None else now() + timeout
        try:
            while True:
                if self.group.engine.closed:
                    raise ClosedError(f"the backend of {self.group} was closed")
                if self.stopping.is_set():
                    return None
                if self._buffer and (state := await self._buffered()) is not None:
                    return state
                engine = self.group.engine
                if engine.home != engine.here():
                    engine.check_open()
                if timeout == 0:  # beside a wait that is under way: it sees less than a look
                    await self._looking.run(self._look)
                    return await self._buffered()
                left = None if until is None else until - now()
                if left is not None and left <= 0:
                    return await self._last_look()
                begin = now()
                try:
                    await self._callers.wait_for_item(
                        functools.partial(self._fill, SLICE if left is None else min(SLICE, left)), left
                    )
                except AWAY as error:
                    self.failed(error)
                    await self._repeat(error, begin, until)
        finally:  # however it ends: what it was called for, or led, is the next one's now
            self._callers.wake()

    async def _last_look(self) -> DeliveryState | None:
        """Return what there is at the end of a wait."""
        runtime = self.group.engine.runtime
        if runtime.clock.by_hand and runtime.lease_now() >= self._look_at:
            await self._looking.run(self._look)  # what a move made due comes before the end of the wait
        return await self._buffered()

    async def _repeat(self, error: Exception, begin: float, until: float | None) -> None:
        """Try again, while the backend is away and this caller has time left.

        Raises:
            BackendError: The backend is still away.
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
                self.failed(latest)
                error = latest

    def failed(self, error: Exception) -> None:
        """Note that the group can't be asked for messages just now."""
        self._failing = True
        self.group.engine.outages.failed(f"fetch from {self.group}", error)

    def _worked(self) -> None:
        self._failing = False
        self.group.engine.outages.worked()

    @property
    def empty(self) -> bool:
        """Whether the next message has to be fetched."""
        return not self._buffer

    async def _wait_for_item(self, left: float | None) -> None:
        """Fetch or wait once, for all who wait here."""
        fill = functools.partial(self._fill, SLICE if left is None else min(SLICE, left))
        await self._callers.wait_for_item(fill, left)

    async def _buffered(self) -> DeliveryState | None:
        """Return the next message of the buffer; one that was lost meanwhile is somebody else's."""
        while self._buffer:
            with contextlib.suppress(IndexError):  # another thread was quicker
                state = self._buffer.popleft()
                if not state.hold.lost:
                    return state
                await state.lose()
        return None

    async def _fill(self, patience: float) -> None:
        """Fetch once, or, where a look has just found nothing, wait once for something to come.

        No request is repeated in here: each caller does that, for as long as its own time lasts.
        """
        now = self.group.engine.runtime.lease_now()
        if not self._opened:  # a request of its own: between two of them the callers look at the time
            await self.open(0.0)
        elif self._position is None or now >= self._look_at:
            await self._looking.run_inline(self._look)
        elif not (self._buffer or self.stopping.is_set()):
            await self._wait(min(patience, self._look_at - now))

    async def _look(self) -> None:
        """Fetch. What a wait can't see is looked for again when it comes due, or after a while."""
        if self._buffer or self.stopping.is_set():
            return
        await self.open(0.0)
        since = self.group.engine.runtime.lease_now()
        self._position = None
        fetched = await self.group.fetch(self.name, self._prefetch)
        self._pulse.confirm(since)
        if self._failing:
            self._worked()
        self._position = fetched.position
        soon = self.group.options.look
        self._look_at = since + (soon if fetched.next_due is None else min(soon, max(fetched.next_due, 0.001)))
        if fetched.claims:
            await self._unpack(fetched.claims, since)
        await self.group.announce(fetched)

    async def _wait(self, longest: float) -> None:
        """Wait on the backend; what may have come is fetched in the next turn."""
        position, self._position = self._position, None
        what = f"wait for {self.group}"
        if not await self.group.engine.call(what, self._waiter.wait, position, longest, again=True, until=0.0):
            self._position = position

    async def _unpack(self, claims: Sequence[Claim], since: float) -> None:
        """Decode and buffer what came; what can't be decoded becomes a dead letter and stops nobody (S13)."""
        parcels, undecodable = [], []
        options = self.group.options
        for claim in claims:
            record = claim.record
            try:
                data, headers = self.group.payloads.unpack(
                    record.body, record.headers, foreign=record.foreign, problem=record.problem
                )
            except DecodeError as error:
                log.error("%s: %s goes to the dead letters: %s", self.group, record.id, error)  # noqa: TRY400 - said whole
                undecodable.append((record.id, _undecodable(claim, error)))
                continue
            hold = DeliveryLease(
                self._pulse, claim.receipt, lease=options.lease, since=since, longest=options.max_processing
            )
            parcels.append(DeliveryState(self, claim, hold, data, headers))
        if parcels:
            holds = [state.hold for state in parcels]
            self._held.update(holds)
            self.group.engine.renewer.add(holds)
            self._buffer.extend(parcels)
            self._callers.wake()
        if undecodable:
            outcomes = await self.group.settle_many([settlement for _, settlement in undecodable])
            for (entry_id, settlement), outcome in zip(undecodable, outcomes, strict=True):
                if outcome is Outcome.DEAD:
                    await self.group.report(entry_id, settlement, outcome)

    def let_go(self, state: DeliveryState) -> None:
        """It is settled or lost: renew it no more."""
        self._held.discard(state.hold)
        self.group.engine.renewer.discard(state.hold)

    # --- ending --------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Hand out nothing more and wake whoever waits, from any thread."""
        self.stopping.set()
        self._waiter.interrupt()

    async def _landed(self, until: float) -> None:
        """Let a fetch under way come to its end until then: what it brings must be given back."""
        now = self.group.engine.runtime.now
        await self._callers.wait_idle(max(0.0, until - now()))
        await self._looking.wait_idle(max(0.0, until - now()))

    async def hand_back(self, until: float | None = None) -> None:
        """Release what is fetched and not handed out: available to others at once, the attempt not counted (S14).

        Arguments:
            until: When the time for a fetch under way is over; None: in `LEAVING` seconds.
        """
        await self._landed(self.group.engine.runtime.now() + LEAVING if until is None else until)
        unstarted = []
        while self._buffer:
            unstarted.append(self._buffer.popleft())
        for state in unstarted:
            state.settled = Action.RELEASE
            self.let_go(state)
        if unstarted:
            releases = [Settlement(state.claim.receipt, Action.RELEASE) for state in unstarted]
            group = self.group
            await group.driver.settle(group.stream, group.name, releases, max_deliveries=group.options.max_deliveries)

    async def close(self) -> None:
        """Stop, and give what it still holds back to the group (S6, S11).

        Messages that handlers are at work on are not given back, because they would be done twice at once: they come
        back when their leases end.
        """
        if self._closed or self._pid != os.getpid():  # what it holds is the parent's, also where a child leaves it
            return
        self.group.engine.check_home()
        self._closed = True
        self.stop()
        until = self.group.engine.runtime.now() + LEAVING
        await self._landed(until)
        await self._waiter.close()
        try:
            await self._leave(until)
        except AilfError as error:
            log.warning("%s: messages could not be handed back and wait for their leases to end: %s", self.group, error)
        for hold in tuple(self._held):
            hold.revoked = True
        _abandon(self.group.engine.renewer, self._held)
        self._buffer.clear()
        self.group.engine.untrack(self)

    async def _leave(self, until: float) -> None:
        """Give back what it holds; a backend that left the last fetch without an answer until then is not asked."""
        if self.group.engine.runtime.now() >= until:
            raise BackendTimeoutError("the backend does not answer")
        if self.in_hand:
            await self.hand_back(until)
        else:
            await self.group.driver.leave(self.group.stream, self.group.name, self.name)


def _undecodable(claim: Claim, error: DecodeError) -> Settlement:
    return Settlement(claim.receipt, Action.REJECT, reason="undecodable", error=str(error))


def _abandon(renewer: Renewer, held: set[RenewedLease]) -> None:
    """Renew these no more: their consumer was closed, or dropped without that; then the leases end by themselves."""
    while held:
        renewer.discard(held.pop())
