"""The wait queue of a lock or of a limiter's key, in memory."""

from collections.abc import Callable
from typing import TypeAlias

import attrs
import msgspec

from ailf.checks import to_ms
from ailf.driver import WaiterInfo

__all__ = ["Publish", "QueuedWaiter", "WaitQueue"]

Publish: TypeAlias = Callable[[str, bytes], int]
"""Publishes a body on a channel of the store and returns the number of listeners that received it."""


@attrs.define
class QueuedWaiter:
    """A waiter in the queue: the channel that wakes it, until when it counts as alive, and when it tries by itself."""

    channel: str
    alive_ms: int
    rechecks_ms: int


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

    def enqueue(self, token: str, waiter: WaiterInfo, now_ms: int, rechecks_ms: int) -> None:
        """Put a waiter at the end; a live one that is in the queue already keeps its place."""
        if not self.alive(token, now_ms):
            self.waiters.pop(token, None)
        self.waiters[token] = QueuedWaiter(waiter.channel, now_ms + to_ms(waiter.lease), rechecks_ms)

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
