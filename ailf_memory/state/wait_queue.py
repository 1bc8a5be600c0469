"""Those who stand in line for a lock or at a rate limiter, in memory."""

from collections.abc import Callable

import attrs

from ailf.checks import to_ms
from ailf.driver import WaiterInfo

__all__ = ["WaitQueue", "Waiter"]


@attrs.define
class Waiter:
    """Who is in line: where to wake him, until when he counts as alive, when he looks again by himself."""

    channel: str
    alive_ms: int
    looks_ms: int


class WaitQueue:
    """A line. Everything happens under the store's lock.

    Arguments:
        publish: Sends a body to a channel of the store and returns how many heard it.
    """

    def __init__(self, publish: Callable[[str, bytes], int]) -> None:
        self.waiters: dict[str, Waiter] = {}
        self._publish = publish

    def alive(self, token: str, now_ms: int) -> bool:
        """Tell whether somebody is in line and counts as alive."""
        waiter = self.waiters.get(token)
        return waiter is not None and waiter.alive_ms > now_ms

    def count(self, now_ms: int) -> int:
        """Return how many there are."""
        return sum(each.alive_ms > now_ms for each in self.waiters.values())

    def head(self, now_ms: int) -> str | None:
        """Return the first that lives."""
        while self.waiters:
            token = next(iter(self.waiters))
            if self.waiters[token].alive_ms > now_ms:
                return token
            del self.waiters[token]
        return None

    def stand(self, token: str, waiter: WaiterInfo, now_ms: int, looks_ms: int) -> None:
        """Put somebody at the end; who is in line already keeps his place."""
        if not self.alive(token, now_ms):
            self.waiters.pop(token, None)
        self.waiters[token] = Waiter(waiter.channel, now_ms + to_ms(waiter.lease), looks_ms)

    def leave(self, token: str) -> None:
        """Let somebody go."""
        self.waiters.pop(token, None)

    def wake(self, now_ms: int, after: str | None = None) -> None:
        """Wake the first, after a token if that is given; and the next one where nobody hears it."""
        line = list(self.waiters)
        for token in line[line.index(after) + 1 if after in self.waiters else 0 :]:
            waiter = self.waiters[token]
            if waiter.alive_ms <= now_ms:
                del self.waiters[token]
            elif self._call(token):
                return

    def hurry(self, ends_ms: int, now_ms: int) -> None:
        """Wake the first that lives if something ends before he would look again: he then knows when."""
        for token, waiter in list(self.waiters.items()):
            if waiter.alive_ms > now_ms and (waiter.looks_ms <= ends_ms or self._call(token)):
                return

    def wake_all(self) -> None:
        """Wake everybody: the clock was moved."""
        for token in list(self.waiters):
            self._call(token)

    def _call(self, token: str) -> bool:
        return bool(self._publish(self.waiters[token].channel, token.encode()))
