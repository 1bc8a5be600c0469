"""The state of one lock: its grants, the last fence, and its wait queue. *Now* is an argument."""

import msgspec

from ailf.driver import LockRequest
from ailf_memory.state.wait_queue import WaitQueue

__all__ = ["GrantState", "LockState"]


IDLE_MS = 86_400_000
"""How long the last fence is kept. A fence begins with the time, so after that the next one is higher anyway (L2)."""


class GrantState(msgspec.Struct, gc=False):
    """One grant: its fence, and when it ends."""

    fence: int
    ends_ms: int


class LockState(msgspec.Struct, gc=False):
    """One lock. The garbage collector doesn't visit it; see `WaitQueue`.

    Attributes:
        queue: The wait queue.
        grants: The grants by token; some may have ended.
        fence: The last fence.
    """

    queue: WaitQueue
    grants: dict[str, GrantState] = {}
    fence: int = 0

    def grant_of(self, token: str, now_ms: int) -> GrantState | None:
        """Return the grant of a token, or None if it has ended."""
        grant = self.grants.get(token)
        return grant if grant is not None and grant.ends_ms > now_ms else None

    def expire(self, now_ms: int) -> None:
        """Remove the grants that have ended."""
        for token in [each for each, grant in self.grants.items() if grant.ends_ms <= now_ms]:
            del self.grants[token]

    def idle(self, now_ms: int) -> bool:
        """Tell whether the lock has no grant, no live waiter, and had no grant within a day."""
        self.expire(now_ms)
        return not self.grants and self.queue.first_alive(now_ms) is None and self.fence < (now_ms - IDLE_MS) * 1000

    def blocked_until(self, request: LockRequest, now_ms: int) -> int | None:
        """Return when the first grant or waiter that blocks a request ends; None if none blocks it."""
        if self.grants:
            self.expire(now_ms)
            others = [grant.ends_ms for token, grant in self.grants.items() if token != request.token]
            if len(others) >= request.permits:
                return min(others)
        return self.yields_until(request, now_ms) if self.queue.waiters else None

    def yields_until(self, request: LockRequest, now_ms: int) -> int | None:
        """Return until when the first waiter goes before a request; None if it doesn't."""
        first = self.queue.first_alive(now_ms)
        if first is None or first == request.token:
            return None
        waiter = self.queue.waiters[first]
        return waiter.alive_ms if request.fair else waiter.reserved_until(now_ms)
