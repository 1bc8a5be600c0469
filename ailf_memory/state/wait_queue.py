"""The wait queue of a lock or of a limiter's key, in memory."""

from collections.abc import Callable

import attrs

from ailf.checks import to_ms
from ailf.driver import WaiterInfo

__all__ = ["QueuedWaiter", "WaitQueue"]


@attrs.define
class QueuedWaiter:
    """A waiter in the queue: the channel that wakes it, until when it counts as alive, and when it tries by itself."""

    channel: str
    alive_ms: int
    rechecks_ms: int


class WaitQueue:
    """A wait queue of tokens, in order. The caller of every method holds the store's lock.

    Arguments:
        publish: Publishes a body on a channel of the store and returns the number of listeners that received it.
    """

    def __init__(self, publish: Callable[[str, bytes], int]) -> None:
        self.waiters: dict[str, QueuedWaiter] = {}
        self._publish = publish

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

    def wake(self, now_ms: int, after: str | None = None) -> None:
        """Wake the first live waiter that receives it; with ``after``, the first one behind that token."""
        tokens = list(self.waiters)
        for token in tokens[tokens.index(after) + 1 if after in self.waiters else 0 :]:
            waiter = self.waiters[token]
            if waiter.alive_ms <= now_ms:
                del self.waiters[token]
            elif self._notify(token):
                return

    def wake_if_earlier(self, ends_ms: int, now_ms: int) -> None:
        """Wake the first live waiter if a grant ends before it tries by itself, so that it learns the new time."""
        for token, waiter in list(self.waiters.items()):
            if waiter.alive_ms > now_ms and (waiter.rechecks_ms <= ends_ms or self._notify(token)):
                return

    def wake_all(self) -> None:
        """Wake all waiters: the clock was moved."""
        for token in list(self.waiters):
            self._notify(token)

    def _notify(self, token: str) -> bool:
        """Publish a waiter's token on its channel; return whether a listener received it."""
        return bool(self._publish(self.waiters[token].channel, token.encode()))
