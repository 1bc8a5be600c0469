"""The state of one lock: its grants, the last fence, and the queue of waiters."""

import msgspec

from ailf.driver import LockRequest
from ailf_memory.state.wait_queue import WaitQueue

__all__ = ["GrantState", "LockState"]


IDLE_MS = 86_400_000
"""For how long the last fence is kept: after that the next one is higher anyway (L2)."""


class GrantState(msgspec.Struct):
    """Who has it: the fence, and when it ends."""

    fence: int
    ends_ms: int


class LockState:
    """One lock: who has it, the last fence, who is in line."""

    def __init__(self, line: WaitQueue) -> None:
        self.grants: dict[str, GrantState] = {}
        self.fence = 0
        self.line = line

    def grant_of(self, token: str, now_ms: int) -> GrantState | None:
        """Return a token's grant, while it lasts."""
        grant = self.grants.get(token)
        return grant if grant is not None and grant.ends_ms > now_ms else None

    def expire(self, now_ms: int) -> None:
        """Let what has ended be gone."""
        for token in [each for each, grant in self.grants.items() if grant.ends_ms <= now_ms]:
            del self.grants[token]

    def idle(self, now_ms: int) -> bool:
        """Tell whether nobody has it, wants it, or had it within a day."""
        self.expire(now_ms)
        return not self.grants and self.line.head(now_ms) is None and self.fence < (now_ms - IDLE_MS) * 1000

    def blocked_until(self, request: LockRequest, now_ms: int) -> int | None:
        """Return when something in the way of a bid changes by itself; None where nothing is."""
        if self.grants:
            self.expire(now_ms)
            others = [grant.ends_ms for token, grant in self.grants.items() if token != request.token]
            if len(others) >= request.permits:
                return min(others)
        first = self.line.head(now_ms) if request.fair else None
        return None if first is None or first == request.token else self.line.waiters[first].alive_ms
