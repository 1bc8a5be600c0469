"""What a backend implements for locks: one atomic try, and what keeps, ends and shows its grants."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgspec

from ailf.values import LockInfo

__all__ = ["Denied", "Granted", "LockDriver", "LockRequest", "WaiterInfo"]


class WaiterInfo(msgspec.Struct, frozen=True):
    """A waiter's place in the line of the names it wants.

    Attributes:
        channel: Where it is woken: its token is published there, as `PubSubDriver.publish` would (L11).
        lease: Seconds after which it is taken for dead unless it tries again (L12).
    """

    channel: str
    lease: float


class LockRequest(msgspec.Struct, frozen=True):
    """A try to get one or several names, all or none (L15).

    Attributes:
        names: What is wanted; sorted, each once.
        token: Who wants it; random, new for each grant.
        ttl: Seconds that the grant lasts unless it is extended.
        permits: How many grants of a name may exist at once (L16).
        fair: Whether nobody in line before it may be overtaken (L12).
        place: Where to wait if it is denied; None for not waiting.
    """

    names: tuple[str, ...]
    token: str
    ttl: float
    permits: int = 1
    fair: bool = False
    waiter: WaiterInfo | None = None


class Granted(msgspec.Struct, frozen=True):
    """It is granted.

    Attributes:
        fence: Higher than that of every earlier grant of each of the names (L2).
    """

    fence: int


class Denied(msgspec.Struct, frozen=True):
    """It is not granted.

    Attributes:
        retry_after: Seconds after which another try may do better although nobody wakes us: when the first grant in
            the way ends, or the first waiter in line is taken for dead.
    """

    retry_after: float


class LockDriver(ABC):
    """Locks and semaphores. Every method is one atomic step on *now*, and the same again changes nothing more (L4).

    A grant ends ``ttl`` after the step that made or extended it, and not before (L5). What is stored *must* go by
    itself when it is idle (L2).
    """

    @abstractmethod
    async def acquire(self, request: LockRequest) -> Granted | Denied:
        """Grant the names where each has a permit left, and, if fair, nobody alive in line before; else deny.

        A token that has the grant already *must* get the same one, with the same fence, and its time begins anew (L4).
        With a place, a denied bid *must* be put at the end of the line of each name, or keep its place there.
        Without, a denied bid *must* change nothing.
        """

    @abstractmethod
    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        """Let grants end ``ttl`` from now, in one round trip; for each, False where it had ended (L6).

        Then nothing *must* change (L3).
        """

    @abstractmethod
    async def release(self, request: LockRequest) -> bool:
        """End the grant of this token, and give up its place in line; return whether it had an unexpired grant (L3).

        Whoever is first in line of a name with a free permit *must* be woken (L11).
        """

    @abstractmethod
    async def inspect(self, name: str) -> LockInfo:
        """Return who has a name and how many wait, changing nothing (L3)."""

    @abstractmethod
    async def break_(self, name: str, fence: int) -> bool:
        """End the grant with this fence, whoever has it, as `release` does; return whether there was one."""
