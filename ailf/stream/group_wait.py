"""One wait for each group and process: its consumers take turns at waiting on the backend.

The consumer that has the turn waits on the backend with the position that all share, and fetches when something may
have come. If that gives it messages, the next consumer has the turn, with the position that this fetch returned. The
others wait in line, first come, first served, and cost the backend one heartbeat together. So one arrival wakes one
consumer of the process (no thundering herd), and an idle consumer makes no request of its own.

Rule: a consumer that leaves, for whatever reason, gives up its turn and its place (`leave`).
"""

import logging
import weakref
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

from ailf.errors import AilfError
from ailf.runtime import Event, Runtime
from ailf.stream.group_flow import GroupFlow
from ailf.stream.lease import ConsumerLiveness

__all__ = ["GroupWait", "Place", "joined"]

log = logging.getLogger("ailf.stream")


class Member(Protocol):
    """A consumer of the group."""

    group: GroupFlow
    liveness: ConsumerLiveness


class Place:
    """A consumer's place in the line.

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
        turn: The place of the consumer that has the turn.
        line: The places of the consumers that wait for their turn, in order.
        interval: Seconds from one such fetch to the next: the least `fetch_interval` of the consumers.
    """

    def __init__(self, group: GroupFlow) -> None:
        runtime = group.engine.runtime
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
        self.line: dict[Place, None] = {}
        self.turn: Place | None = None

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
        self.position, self.more = None, False
        await self.waiter.close()

    # --- turns ---------------------------------------------------------------------------------------------------

    def enter(self, place: Place) -> bool:
        """Take the turn if no consumer has it or waits for it, else enter the line; return whether it has the turn."""
        place.event.clear()
        place.error = None
        with self._guard:
            if self.turn is None and not self.line:
                self.turn = place
            elif self.turn is not place:
                self.line[place] = None
            return self.turn is place

    async def wait_in_line(self, place: Place, timeout: float | None) -> bool:
        """Wait for the turn, for `timeout` seconds at most; return whether it has the turn.

        Raises:
            Exception: The error of the consumer that had the turn, while the backend is unavailable.
        """
        await place.event.wait(timeout)
        if place.error is not None:
            raise place.error
        return self.turn is place

    def leave(self, place: Place) -> None:
        """Give up the turn, which the first consumer in the line gets, or the place in the line. It is idempotent."""
        with self._guard:
            self.line.pop(place, None)
            if self.turn is place:
                self.turn = None
            if self.turn is None and self.line:
                self.turn = first = next(iter(self.line))
                del self.line[first]
                first.event.set()

    def fail(self, error: Exception) -> None:
        """End the waits of the line: the backend is unavailable. Then a fetch shows whether anything came meanwhile."""
        self.position, self.more = None, False
        with self._guard:
            for place in self.line:
                place.error = error
                place.event.set()
            self.line.clear()

    def interrupt(self, place: Place) -> None:
        """End the wait of a consumer that was stopped, from any thread or a signal handler, so without a lock."""
        place.event.set()
        if self.turn is place:
            self.waiter.interrupt()

    def idle(self) -> bool:
        """Return whether no consumer waits."""
        return self.turn is None and not self.line

    # --- what is asked of the backend ----------------------------------------------------------------------------

    async def rest(self) -> None:
        """Let another process be woken first, as no consumer of this one waits any more."""
        try:
            self.position = await self.waiter.hand_over(self.position)
        except AilfError as error:
            log.debug("the wait was not handed over, so another process looks by itself: %s", error)

    def until_heartbeat(self, now: float) -> float:
        """Return the seconds until `heartbeats`, on the clock for leases."""
        return self._heartbeat_at - now

    def heartbeats(self, now: float) -> Sequence[Sequence[ConsumerLiveness]]:
        """Return the consumers that wait and need a heartbeat, in a list for each `takeover`."""
        self._heartbeat_at = now + self.interval
        with self._guard:
            places = list(self.line)
            if self.turn is not None and self.fetch_at > now:  # else it fetches next
                places.append(self.turn)
        late: dict[float, list[ConsumerLiveness]] = defaultdict(list)
        for place in places:
            if place.liveness.due() <= now:
                late[place.liveness.takeover].append(place.liveness)
        return tuple(late.values())


def joined(member: Member) -> GroupWait:
    """Return what the consumers of the member's group share in this process and event loop, and add the member."""
    group = member.group
    wait: GroupWait = group.engine.shared(("group wait", group.stream, group.name), lambda: GroupWait(group))
    wait.join(member)
    return wait
