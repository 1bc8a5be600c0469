"""The driver of locks and semaphores: acquire, extend, release, inspect and break grants, each in one atomic step."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence

import msgspec

from ailf.values import HeldLock, LockInfo, Page

__all__ = ["Denied", "Granted", "LockDriver", "LockRequest", "WaiterInfo"]


class WaiterInfo(msgspec.Struct, frozen=True):
    """How a waiter in a wait queue is woken, and for how long it counts as alive.

    Attributes:
        channel: The channel on which its token is published to wake it, as by `PubSubDriver.publish` (L11).
        lease: Seconds after which it counts as dead unless it tries again (L12).
    """

    channel: str
    lease: float


class LockRequest(msgspec.Struct, frozen=True):
    """A try to acquire one or several names, all or none (L15).

    Attributes:
        names: The names of the lock, sorted, each once.
        token: The identity of the request: random, new for each grant.
        ttl: Seconds that the grant lasts unless it is extended.
        permits: The number of grants of a name that may exist at once (L16).
        fair: Whether the request is denied while a live waiter is before it in the wait queue (L12).
        waiter: Puts the token in the wait queues if the request is denied; None for not waiting.
    """

    names: tuple[str, ...]
    token: str
    ttl: float
    permits: int = 1
    fair: bool = False
    waiter: WaiterInfo | None = None


class Granted(msgspec.Struct, frozen=True):
    """The answer to a request that was granted.

    Attributes:
        fence: The fence, higher than that of every earlier grant of each of the names (L2).
    """

    fence: int


class Denied(msgspec.Struct, frozen=True):
    """The answer to a request that was not granted.

    Attributes:
        retry_after: Seconds after which another try may be granted without a wake-up: until the first blocking grant
            ends, or until the first waiter in the queue counts as dead.
    """

    retry_after: float


class LockDriver(ABC):
    """Locks and semaphores. Every method is one atomic step on *now*; a repetition *must not* change more (L4).

    >>> from ailf.driver import Denied, Granted, LockRequest, WaiterInfo
    >>> from ailf.runtime import ThreadRuntime, run
    >>> from ailf_memory import MemoryStore
    >>> from ailf_memory.driver import MemoryDriver
    >>> locks = MemoryDriver(MemoryStore(), ThreadRuntime()).lock()
    >>> first = LockRequest(("report",), token="one", ttl=30.0)
    >>> granted = run(locks.acquire(first))
    >>> assert isinstance(granted, Granted)
    >>> waiting = LockRequest(("report",), token="two", ttl=30.0, waiter=WaiterInfo("wake-ups", lease=10.0))
    >>> assert isinstance(run(locks.acquire(waiting)), Denied)
    >>> run(locks.release(first))
    True
    >>> match run(locks.acquire(waiting)):
    ...     case Granted(fence=fence):
    ...         assert fence > granted.fence

    A grant *must* end ``ttl`` seconds after the step that made or extended it, and not before (L5). The stored state of
    an idle lock *must* expire by itself (L2).
    """

    @abstractmethod
    async def acquire(self, request: LockRequest) -> Granted | Denied:
        """Grant the names if each has a permit left and, if ``fair``, no live waiter before the token; else deny.

        A token that has the grant already *must* get the same one, with the same fence; its ``ttl`` begins anew (L4).
        A name that is reserved for a waiter is granted to no other token (L19).

        With a ``waiter``, a denied request *must* be put at the end of the wait queue of each name, or keep its place
        there. Without, a denied request *must* change nothing.
        """

    @abstractmethod
    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        """Let grants end ``ttl`` seconds from now, in one round trip; return False for each that had ended (L6).

        For a grant that had ended, nothing *must* change (L3).
        """

    @abstractmethod
    async def release(self, request: LockRequest) -> bool:
        """End the grant of this token and remove it from the wait queues; return whether its grant was unexpired (L3).

        The first waiter of each name with a free permit *must* be woken (L11).
        """

    @abstractmethod
    async def inspect(self, name: str) -> LockInfo:
        """Return the holders of a name and the number of waiters, changing nothing (L3)."""

    async def inspect_many(self, names: Sequence[str]) -> list[LockInfo]:
        """Return what `inspect` does for each of several names, in one round trip (L20).

        It is only called with `Capability.SEVERAL_LOCKS`. A driver whose requests take round trips *must* override it.
        """
        return [await self.inspect(name) for name in names]

    @abstractmethod
    async def break_(self, name: str, fence: int) -> bool:
        """End the grant with this fence, without its token, as `release` does; return whether there was one."""

    def server_of(self, name: str) -> Hashable:  # noqa: ARG002 - one server has every name
        """Return what identifies the server of a name, as `StreamDriver.server_of` does for a stream."""
        return None

    async def list_locks(self, prefix: str, cursor: str, limit: int) -> Page[HeldLock]:
        """Return at most ``limit`` locks that are held, whose names begin with ``prefix``, as `inspect` does (N4).

        Pages, cursors and prefixes are as in `StreamDriver.list_streams` (N1, N2). It is only called with
        `Capability.LISTING`.
        """
        raise NotImplementedError
