"""One wait for each group and process: its consumers take turns at waiting on the backend.

The consumer that has the turn waits on the backend with the position that all share, and fetches when something may
have come. If that gives it messages, the next consumer has the turn, with the position that this fetch returned. The
others wait in a queue, first come, first served, and cost the backend one heartbeat together. So one arrival wakes one
consumer of the process (no thundering herd), and an idle consumer makes no request of its own.

Rule: a consumer that leaves, for whatever reason, gives up its turn or leaves the queue (`leave`).
"""

import weakref
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

from ailf.errors import AilfError
from ailf.logs import About, Log
from ailf.runtime import Event, Runtime
from ailf.stream.group_flow import GroupFlow
from ailf.stream.lease import ConsumerLiveness

__all__ = ["GroupWait", "QueuedConsumer", "joined"]

log = Log("ailf.stream")


class Member(Protocol):
    """A consumer of the group."""

    group: GroupFlow
    liveness: ConsumerLiveness


class QueuedConsumer:
    """A consumer, in the queue or with the turn.

    Attributes:
        liveness: The liveness of the consumer.
        event: Set when it has the turn, when the consumer is stopped, and when the backend is unavailable.
        error: The error of the consumer that had the turn, while the backend is unavailable.
    """

    __slots__ = ("error", "event", "liveness")

    def __init__(self, runtime: Runtime, liveness: ConsumerLiveness) -> None:
        self.liveness = liveness
        self.event: Event = runtime.event()
        self.error: Exception | None = None


class GroupWait:
    """What the consumers of one group in this process share. `joined` returns it.

    Attributes:
        home: The process id or event loop that it belongs to.
        waiter: Waits on the backend, for the consumer that has the turn.
        position: The position for `waiter`; None if a fetch may find something now.
        more: Whether the last fetch left something: then a consumer that comes fetches without a turn.
        fetch_at: When the consumer that has the turn fetches in any case.
        asked_at: When the last request of a turn began.
        turn: The consumer that has the turn.
        queue: The consumers that wait for their turn, in order.
        interval: Seconds from one such fetch to the next: the least `fetch_interval` of the consumers.
    """

    def __init__(self, group: GroupFlow) -> None:
        runtime = group.engine.runtime
        self._about = About(str(group), group.log_fields())
        self._now = runtime.lease_now
        self.home = group.engine.home
        self.waiter = group.driver.waiter(group.stream, group.name)
        self.position: Any = None
        self.more = False
        self.fetch_at = 0.0
        self.asked_at = 0.0
        self.interval = group.options.fetch_interval
        self._heartbeat_at = self._now() + self.interval
        self._members: weakref.WeakSet[Member] = weakref.WeakSet()
        self._guard = runtime.guard()
        self.queue: dict[QueuedConsumer, None] = {}
        self.turn: QueuedConsumer | None = None

    # --- members -------------------------------------------------------------------------------------------------

    def join(self, member: Member) -> None:
        """Add a consumer. If it wants shorter intervals, the consumer that has the turn begins its wait anew."""
        with self._guard:
            if not self._members:
                self.interval = member.group.options.fetch_interval
            self._members.add(member)
            interval = member.group.options.fetch_interval
            shorter, self.interval = interval < self.interval, min(interval, self.interval)
            soon = self._now() + self.interval
            self.fetch_at, self._heartbeat_at = min(soon, self.fetch_at), min(soon, self._heartbeat_at)
        if shorter and self.turn is not None:
            self.waiter.interrupt()

    async def part(self, member: Member, *, reachable: bool) -> None:
        """Remove a consumer; after the last one free the waiter.

        Arguments:
            member: The consumer.
            reachable: Whether the backend may still be asked for something.
        """
        with self._guard:
            self._members.discard(member)
            if self._members:
                self.interval = min(each.group.options.fetch_interval for each in self._members)
                return
        if reachable:
            await self.rest()
        if self._members:  # one has come meanwhile
            return
        self.position, self.more = None, False
        await self.waiter.close()

    # --- turns ---------------------------------------------------------------------------------------------------

    def enter(self, queued: QueuedConsumer) -> bool:
        """Take the turn if no consumer has it or waits for it, else enter the queue; return whether it has the turn."""
        queued.event.clear()
        queued.error = None
        with self._guard:
            if self.turn is None and not self.queue:
                self.turn = queued
            elif self.turn is not queued:
                self.queue[queued] = None
            return self.turn is queued

    async def wait_for_turn(self, queued: QueuedConsumer, timeout: float | None) -> bool:
        """Wait for the turn, for `timeout` seconds at most; return whether it has the turn.

        Raises:
            Exception: The error of the consumer that had the turn, while the backend is unavailable.
        """
        await queued.event.wait(timeout)
        if queued.error is not None:
            raise queued.error
        return self.turn is queued

    def leave(self, queued: QueuedConsumer) -> None:
        """Give up the turn, which the first consumer in the queue gets, or leave the queue. It is idempotent."""
        with self._guard:
            self.queue.pop(queued, None)
            if self.turn is queued:
                self.turn = None
            if self.turn is None and self.queue:
                self.turn = first = next(iter(self.queue))
                del self.queue[first]
                first.event.set()

    def fail(self, error: Exception) -> None:
        """End the waits in the queue: the backend is unavailable. A fetch will show whether anything came meanwhile."""
        self.position, self.more = None, False
        with self._guard:
            for queued in self.queue:
                queued.error = error
                queued.event.set()
            self.queue.clear()

    def interrupt(self, queued: QueuedConsumer) -> None:
        """End the wait of a consumer that was stopped, from any thread or a signal handler, so without a lock."""
        queued.event.set()
        if self.turn is queued:
            self.waiter.interrupt()

    def idle(self) -> bool:
        """Return whether no consumer waits."""
        return self.turn is None and not self.queue

    # --- what is asked of the backend ----------------------------------------------------------------------------

    async def rest(self) -> None:
        """Let another process be woken first, as no consumer of this one waits any more."""
        position = self.position
        try:
            rested = await self.waiter.hand_over(position)
            if self.position is position:  # else a consumer has come meanwhile and fetched
                self.position = rested
        except AilfError as error:
            log.debug(self._about, "the wait was not handed over, so another process looks by itself: %s", error)

    def until_heartbeat(self, now: float) -> float:
        """Return the seconds until `heartbeats`, on the clock for leases."""
        return self._heartbeat_at - now

    def heartbeats(self, now: float) -> Sequence[Sequence[ConsumerLiveness]]:
        """Return the consumers that wait and need a heartbeat, in a list for each `takeover`."""
        self._heartbeat_at = now + self.interval
        with self._guard:
            waiting = list(self.queue)
            if self.turn is not None and self.fetch_at > now:  # else it fetches next
                waiting.append(self.turn)
        late: dict[float, list[ConsumerLiveness]] = defaultdict(list)
        for queued in waiting:
            if queued.liveness.due() <= now:
                late[queued.liveness.takeover].append(queued.liveness)
        return tuple(late.values())


def joined(member: Member) -> GroupWait:
    """Return what the consumers of the member's group share in this process and event loop, and add the member.

    A partitioned stream that was made again with another number, or in another event loop, has other partitions.
    """
    group = member.group
    key = ("group wait", group.stream, group.name, group.partitions)
    wait: GroupWait = group.engine.shared(key, lambda: GroupWait(group))
    wait.join(member)
    return wait
