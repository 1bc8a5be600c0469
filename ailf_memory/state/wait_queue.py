"""The wait queue of a lock or of a limiter's key, in memory."""

import itertools
from collections.abc import Callable
from typing import Final, TypeAlias

import attrs
import msgspec

from ailf.checks import to_ms
from ailf.driver import WaiterInfo

__all__ = ["RESERVED_MS", "WAKES", "Publish", "QueuedWaiter", "WaitQueue"]

Publish: TypeAlias = Callable[[str, bytes], int]
"""Publishes a body on a channel of the store and returns the number of listeners that received it."""


WAKES: Final = 3
"""The number of wake-ups without a grant after which a waiter is overtaken no more (L19)."""

RESERVED_MS: Final = 1000
"""How long a lock is reserved for such a waiter."""

_arrivals = itertools.count(1)
"""The numbers of arrivals, of all stores of the process."""


@attrs.define
class QueuedWaiter:
    """A waiter in the queue.

    Attributes:
        channel: The channel that wakes it.
        alive_ms: Until when it counts as alive.
        rechecks_ms: When it tries by itself.
        counts: Whether its wake-ups count.
        since: The number of its arrival in the store: lower than that of a waiter, of any queue, that came later.
        wakes: The number of wake-ups that have counted.
        reserved_ms: Until when what it waits for is reserved for it; 0 before the last wake-up that counts.
    """

    channel: str
    alive_ms: int
    rechecks_ms: int
    counts: bool
    since: int
    wakes: int = 0
    reserved_ms: int = 0

    def count_wake(self, now_ms: int) -> None:
        """Note that it was woken."""
        if self.counts and self.wakes < WAKES:
            self.wakes += 1
            if self.wakes == WAKES:
                self.reserved_ms = now_ms + RESERVED_MS

    def reserved_until(self, now_ms: int) -> int | None:
        """Return until when what it waits for is reserved for it; None if it isn't."""
        return self.reserved_ms if now_ms < self.reserved_ms <= now_ms + RESERVED_MS else None


class WaitQueue(msgspec.Struct, gc=False):
    """A wait queue of tokens, in order. The caller of every method holds the store's lock.

    The garbage collector doesn't visit it, as there is one for each name. So it refers to nothing that refers to it.

    Attributes:
        waiters: The waiters by token, in order.
    """

    waiters: dict[str, QueuedWaiter] = {}

    def alive(self, token: str, now_ms: int) -> bool:
        """Tell whether a token is in the queue and counts as alive."""
        waiter = self.waiters.get(token)
        return waiter is not None and waiter.alive_ms > now_ms

    def count(self, now_ms: int) -> int:
        """Return the number of live waiters."""
        return sum(each.alive_ms > now_ms for each in self.waiters.values())

    def first_alive(self, now_ms: int) -> str | None:
        """Return the token of the first live waiter; remove the dead ones before it."""
        while self.waiters:
            token = next(iter(self.waiters))
            if self.waiters[token].alive_ms > now_ms:
                return token
            del self.waiters[token]
        return None

    def enqueue(
        self,
        token: str,
        waiter: WaiterInfo,
        now_ms: int,
        rechecks_ms: int,
        *,
        counts: bool = False,
        since: int | None = None,
    ) -> None:
        """Put a waiter at the end; a live one that is in the queue already keeps its place.

        It also keeps the count of its wake-ups, unless its reservation is over. One that came from another queue, where
        its arrival had the number ``since``, is put before those that arrived later.
        """
        if not self.alive(token, now_ms):
            self.waiters.pop(token, None)
        kept = self.waiters.get(token)
        later = {} if since is None or kept is not None else self._pop_later_than(since)
        if since is None:
            since = next(_arrivals) if kept is None else kept.since
        queued = QueuedWaiter(waiter.channel, now_ms + to_ms(waiter.lease), rechecks_ms, counts, since)
        if kept is not None and counts and (kept.wakes < WAKES or kept.reserved_until(now_ms) is not None):
            queued.wakes, queued.reserved_ms = kept.wakes, kept.reserved_ms
        self.waiters[token] = queued
        self.waiters.update(later)

    def _pop_later_than(self, since: int) -> dict[str, QueuedWaiter]:
        """Remove the waiters that arrived later than this, and return them in order."""
        later = list(itertools.takewhile(lambda token: self.waiters[token].since > since, reversed(self.waiters)))
        return {token: self.waiters.pop(token) for token in reversed(later)}

    def leave(self, token: str) -> None:
        """Remove a waiter."""
        self.waiters.pop(token, None)

    def wake(self, publish: Publish, now_ms: int, after: str | None = None) -> None:
        """Wake the first live waiter that receives it; with ``after``, the first one behind that token."""
        waiters, dead = iter(self.waiters.items()), []
        if after in self.waiters:
            next(each for each, _ in waiters if each == after)
        for token, waiter in waiters:
            if waiter.alive_ms <= now_ms:
                dead.append(token)
            elif publish(waiter.channel, token.encode()):
                waiter.count_wake(now_ms)
                break
        for token in dead:
            del self.waiters[token]

    def wake_if_earlier(self, publish: Publish, ends_ms: int, now_ms: int) -> None:
        """Wake the first live waiter if a grant ends before it tries by itself, so that it learns the new time."""
        for token, waiter in self.waiters.items():
            if waiter.alive_ms > now_ms and (waiter.rechecks_ms <= ends_ms or publish(waiter.channel, token.encode())):
                return

    def wake_all(self, publish: Publish) -> None:
        """Wake all waiters: the clock was moved."""
        for token, waiter in self.waiters.items():
            publish(waiter.channel, token.encode())
