"""What a backend implements to be opened: `BackendDriver`, which makes the drivers of the interfaces."""

import enum
from abc import ABC, abstractmethod
from typing import Protocol, TypeVar

from ailf.driver.lock import LockDriver
from ailf.driver.pubsub import PubSubDriver
from ailf.driver.ratelimit import RateLimiterDriver
from ailf.driver.stream import StreamDriver
from ailf.runtime import Runtime

__all__ = ["BackendDriver", "Capability"]

T = TypeVar("T")


class Capability(enum.Enum):
    """What a driver can do. What it doesn't declare raises `UnsupportedError` when the object is made (B2)."""

    PUBSUB = "pubsub"
    PATTERNS = "patterns"
    SHARDED = "sharded"
    """Channels that one shard of a cluster carries."""
    STREAM = "stream"
    ORDERING = "ordering"
    """Messages of a stream with one ordering key are delivered one after another (S3)."""
    LOCK = "lock"
    """Locks and semaphores; waiters are woken over pub/sub, so `PUBSUB` *must* be declared too."""
    SEVERAL_LOCKS = "several_locks"
    """Locks of several names at once (L15)."""
    RATE_LIMITER = "rate_limiter"
    """Rate limiters; waiters are woken over pub/sub, so `PUBSUB` *must* be declared too."""
    PROCESSES = "processes"
    """Several processes that open the same URL see the same things."""


class Revocable(Protocol):
    """A lease that can be taken away."""

    def take(self) -> None:
        """It is lost for good."""


class BackendDriver(ABC):
    """An opened backend: it makes the drivers of the interfaces.

    Making one *must not* touch the network; the first call does. One driver *must* be usable from many threads (thread
    runtime) or tasks (asyncio) at once, and after a fork the child's use *must* open connections of its own (B4).

    A driver for asyncio may be made outside of any event loop. It is used by one loop at a time, which core sees to.
    When that has ended, the first use in the next one *must* open connections anew and close those of the one before. A
    `Listener` or `Waiter` of a loop that has ended is only interrupted or closed, from the next loop, and *must not*
    wait for its own then.

    Attributes:
        capabilities: What this driver can do; it *may* turn out with the first `ping` that it can do less.
        runtime: The runtime it is bound to.
        max_payload: The largest body in bytes that core sends or accepts (B5).
        url: What it was opened with, credentials hidden, for messages.
        timeout: Seconds within which each request of its drivers *must* end, whatever the backend does (B10). They are
            counted once, from the request's beginning: an answer that comes bit by bit doesn't begin them anew. A
            `Waiter` and a `Listener` have them beside the time that they are given.
    """

    timeout: float = 5.0

    capabilities: frozenset[Capability]
    runtime: Runtime
    max_payload: int
    url: str

    @abstractmethod
    async def ping(self) -> None:
        """Return when the backend answers and is fit for use.

        Raises:
            ConnectionLostError: It can't be reached.
            PermissionDeniedError: It refuses the credentials.
            UnsupportedError: It is too old (B1).
        """

    @abstractmethod
    async def close(self) -> None:
        """Give back every connection; calls under way *must* end with `ClosedError` (B3). It *must* be idempotent."""

    def interrupt(self) -> None:  # noqa: B027 - a driver whose calls never block has nothing to do
        """Make calls that block in other threads end with `ClosedError` (B3). It *may* be called from any thread."""

    def abandon(self) -> bool:
        """Give back what a backend that was dropped without `close` still has; return whether that was anything.

        It *must not* wait. It *may* be called from any thread, by the garbage collector in the middle of anything, and
        after the event loop was closed. Flows that still use the driver *must* end with `ClosedError`.
        """
        return False

    @abstractmethod
    def with_runtime(self, runtime: Runtime) -> "BackendDriver":
        """Return another driver on the same place, bound to another runtime.

        Leases are renewed by a thread, so one that declares `Capability.STREAM`, `Capability.LOCK` or
        `Capability.RATE_LIMITER` *must* support the thread runtime.

        Raises:
            UnsupportedError: The client library has no such flavour.
        """

    def pubsub(self) -> PubSubDriver:
        """Return the driver for pub/sub; declared by `Capability.PUBSUB`."""
        raise NotImplementedError

    def stream(self) -> StreamDriver:
        """Return the driver for streams; declared by `Capability.STREAM`."""
        raise NotImplementedError

    def lock(self) -> LockDriver:
        """Return the driver for locks; declared by `Capability.LOCK`."""
        raise NotImplementedError

    def rate_limiter(self) -> RateLimiterDriver:
        """Return the driver for rate limiters; declared by `Capability.RATE_LIMITER`."""
        raise NotImplementedError

    def watch(self, token: str, lease: "Revocable") -> None:  # noqa: B027 - elsewhere only a request can tell
        """Tell a lease, by `take`, as soon as the grant with this token is broken (L8).

        A driver that learns it only by a request does nothing. It *must not* keep the lease alive.
        """

    def unwrap(self, kind: type[T]) -> T | None:  # noqa: ARG002 - the default has nothing underneath
        """Return the client underneath, if it is of this kind."""
        return None
