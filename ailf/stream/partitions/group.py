"""What the consumers of one process know about the partitions of a group: where something may be to fetch, and when.

A partition is asked when something may have come to it, when a delayed or leased message of it is due, and as long as
messages of it are leased every quarter of `takeover`, as any consumer may die (S12). Besides, one partition in rotation
is asked at the same interval, whatever is known about it. So an idle group costs requests per process, and not per
partition.

A server that doesn't reply costs each fetch from it the whole time of a request, and meanwhile nothing of the other
partitions is fetched. So its partitions are set aside: they are not asked before a wait shows that the server replies,
or before a pause of several times what the failure took has passed.

Nothing in here waits. Several threads may record at once: what is lost in between is found by the next wait, since each
position is one from which a wait misses nothing.
"""

import contextlib
import math
import secrets
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from ailf.driver import Claim, Fetched
from ailf.errors import BackendError
from ailf.stream.lease import ALIVE, FRESH
from ailf.stream.partitions.ids import join_id

__all__ = ["GroupPartitions"]

PAUSE: Final = 4.0
"""For how many times what a failure took the partitions of a server are set aside, at most."""

RAISE_INTERVAL: Final = 1.0
"""The least number of seconds between two errors of partitions that are set aside."""


class GroupPartitions:
    """The partitions of a group.

    Arguments:
        number: The number of partitions.
        now: Returns the time on the clock for leases.

    Attributes:
        probed: Whether each partition has a waiter of its own, which shows when one that is set aside replies again.
        positions: The position of each partition for a wait; None if a fetch may find something now.
        dead: The ids of new dead letters that no fetch has reported yet.
        reset: Whether the group had vanished from a partition, and no fetch has reported that yet.
    """

    def __init__(self, number: int, now: Callable[[], float]) -> None:
        self.probed = False
        self.positions: list[Any] = [None] * number
        self.dead: deque[str] = deque()
        self.reset = False
        self._number = number
        self._now = now
        self._fetch_at = [math.inf] * number  # when a partition is asked in any case
        self._failing: set[int] = set()
        self._aside: dict[int, float] = {}  # until when a partition is set aside
        self._error: BackendError | None = None  # of the last one
        self._raise_at = 0.0
        self._turn = self._checked = secrets.randbelow(number)  # other processes begin with another one
        self._check_at = 0.0
        self._waited_at = now()

    def to_fetch(self, lease: float, alive: float) -> list[int]:
        """Return the partitions to ask until one of them gives something; never none, as a fetch is a heartbeat too.

        Arguments:
            lease: The lease of the fetch.
            alive: For how long the fetch counts its consumer as alive.
        """
        self.refresh()
        now = self._now()
        candidates = self._candidates(now, probed=self.probed)
        wanted = [
            each
            for each in candidates
            if self.positions[each] is None or self._fetch_at[each] <= now or each in self._aside
        ]
        first = wanted[0] if wanted else candidates[0]
        self._turn = (first + 1) % self._number  # a fetch of another consumer at the same time begins there
        if now >= self._check_at:  # that one comes first: where others always give something no other is reached
            self._check_at = now + _interval(lease, alive)
            checked = self._checked = (self._checked + 1) % self._number
            if checked in candidates:
                wanted = [checked, *(each for each in wanted if each != checked)]
        return self._failing_last(wanted or [first])

    def all(self) -> list[int]:
        """Return all partitions, those first in which something may be; none of those that are set aside."""
        now = self._now()
        every = sorted(
            self._candidates(now, probed=False),
            key=lambda each: self.positions[each] is not None and self._fetch_at[each] > now,
        )
        return self._failing_last(every)

    def _candidates(self, now: float, *, probed: bool) -> Sequence[int]:
        """Return the partitions in turn, without those that are set aside; all of them if all are.

        Arguments:
            now: The time.
            probed: Whether a wait shows when they reply again; else they are set aside for a time only.
        """
        turn, aside = self._in_turn(), self._aside
        if not aside:
            return turn
        return [each for each in turn if each not in aside or (not probed and aside[each] <= now)] or turn

    def reachable_first(self) -> list[int]:
        """Return all partitions, those last that have failed."""
        return self._failing_last(list(range(self._number)))

    def _failing_last(self, partitions: list[int]) -> list[int]:
        """Ask those last that have failed: they keep messages of the others waiting for no longer than they must."""
        return sorted(partitions, key=self._failing.__contains__) if self._failing else partitions

    def fail(self, partition: int) -> None:
        """Record that a fetch has failed: on a cluster one node may be away, and with it some partitions."""
        self._failing.add(partition)
        self.positions[partition] = None

    def set_aside(self, partitions: Collection[int], position: str, error: BackendError, took: float) -> None:
        """Record that the server of some partitions doesn't reply.

        Arguments:
            partitions: The partitions.
            position: A position behind all entries, where a wait shows that the server replies.
            error: The error.
            took: Seconds that the failure took.
        """
        until = self._now() + PAUSE * took
        self._error = error
        self._failing.update(partitions)
        for each in partitions:
            self._aside[each] = until
            self._fetch_at[each] = math.inf
            self.positions[each] = position

    def failure(self) -> BackendError | None:
        """Return the error of partitions that are set aside; None if there are none."""
        return self._error if self._aside else None

    def raises(self) -> bool:
        """Return whether a wait raises its error: once a second, as each partition of a server has a wait."""
        now = self._now()
        if now < self._raise_at:
            return False
        self._raise_at = now + RAISE_INTERVAL
        return True

    def _in_turn(self) -> Sequence[int]:
        return [*range(self._turn, self._number), *range(self._turn)]

    def record(self, partition: int, fetched: Fetched, since: float, lease: float, alive: float) -> None:
        """Record the result of a fetch. If it has leased something, the next partition has the turn.

        A message that is due after a whole lease is not leased but delayed, so its partition isn't asked before.
        """
        self._failing.discard(partition)
        self._aside.pop(partition, None)
        due = fetched.next_due
        if due is None:
            self._fetch_at[partition] = math.inf
        else:
            self._fetch_at[partition] = since + (min(due, _interval(lease, alive)) if due <= lease else due)
        self.positions[partition] = fetched.position
        self.dead.extend([join_id(partition, each) for each in fetched.dead])
        if fetched.reset:
            self.reset = True
            self.forget()
        if fetched.claims:
            self._turn = (partition + 1) % self._number

    def result(self, claims: Sequence[Claim]) -> Fetched:
        """Return the result of a fetch from several partitions, with all that no fetch before has reported."""
        dead = []
        with contextlib.suppress(IndexError):
            while self.dead:
                dead.append(self.dead.popleft())
        reset, self.reset = self.reset, False
        return Fetched(claims, dead, position=None if self.more() else object(), next_due=self.next_due(), reset=reset)

    def more(self) -> bool:
        """Return whether another fetch may find something now."""
        return None in self.positions or self._first() <= self._now()

    def next_due(self) -> float | None:
        """Return the seconds until a partition has to be asked; None if none has."""
        first = self._first()
        return None if first == math.inf else max(0.0, first - self._now())

    def _first(self) -> float:
        """Return when the first partition has to be asked."""
        first = min(self._fetch_at)
        return first if self.probed or not self._aside else min(first, *tuple(self._aside.values()))

    def came(self, waited: Sequence[Any], partitions: Collection[int]) -> None:
        """Record that something may have come to these partitions, after a wait with these positions."""
        for each in partitions:
            if self.positions[each] is waited[each]:  # else a fetch beside the wait has given a later one
                self.positions[each] = None
                self._aside.pop(each, None)

    def refresh(self) -> None:
        """Note that a caller waits; ask every partition anew if none has for longer than a position counts."""
        now = self._now()
        if now > self._waited_at + FRESH:
            self.forget()
        self._waited_at = now

    def forget(self) -> None:
        """Ask every partition anew: after an outage the positions may be those of a backend that has lost its data."""
        self.positions[:] = [self.positions[each] if each in self._aside else None for each in range(self._number)]


def _interval(lease: float, alive: float) -> float:
    """Return `GroupOptions.fetch_interval`, given the arguments of a fetch."""
    return min(lease, alive / ALIVE) / 4
