"""`BackendDriver`: the root driver of a backend, which makes the drivers of the interfaces."""

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, TypeVar

from ailf.driver.findings import Finding
from ailf.driver.lock import LockDriver
from ailf.driver.pubsub import PubSubDriver
from ailf.driver.ratelimit import RateLimiterDriver
from ailf.driver.stream import StreamDriver
from ailf.runtime import Runtime

__all__ = ["BackendDriver", "Capability"]

T = TypeVar("T")


class Capability(enum.Enum):
    """A feature that a driver declares. Use of any other raises `UnsupportedError` when the object is made (B2)."""

    PUBSUB = "pubsub"
    PATTERNS = "patterns"
    SHARDED = "sharded"
    """Channels that are carried by one shard of a cluster each."""
    STREAM = "stream"
    ORDERING = "ordering"
    """Ordering keys: the messages with one key are delivered one after another (S3)."""
    LOCK = "lock"
    """Locks and semaphores; waiters are woken over pub/sub, so `PUBSUB` *must* be declared too."""
    SEVERAL_LOCKS = "several_locks"
    """Locks of several names at once (L15)."""
    RATE_LIMITER = "rate_limiter"
    """Rate limiters; waiters are woken over pub/sub, so `PUBSUB` *must* be declared too."""
    BUDGET_TREES = "budget_trees"
    """Rate limiters with a root, each of whose limits has keys of its own (R13, R14)."""
    LISTING = "listing"
    """Lists of what exists: streams, groups, consumers, locks, limiter keys, channels (N1 to N8)."""
    PROCESSES = "processes"
    """Processes that open the same URL share its streams, locks and channels."""


class Revocable(Protocol):
    """A lease that can be revoked."""

    def take(self) -> None:
        """Mark the lease as lost for good."""


class BackendDriver(ABC):
    """The root driver of an opened backend: it makes the drivers of the interfaces.

    >>> from ailf.driver import Capability
    >>> from ailf.runtime import ThreadRuntime, run
    >>> from ailf_memory import MemoryStore
    >>> from ailf_memory.driver import MemoryDriver
    >>> driver = MemoryDriver(MemoryStore(), ThreadRuntime())
    >>> run(driver.ping())
    >>> Capability.STREAM in driver.capabilities, Capability.PROCESSES in driver.capabilities
    (True, False)
    >>> run(driver.close())

    Making a driver *must not* access the network; its first call does. A driver *must* be usable from many threads
    (thread runtime) or tasks (asyncio) at once. After a fork, the child's use *must* open connections of its own (B4).

    A driver for asyncio may be made outside of any event loop. The core uses it from one loop at a time. When that loop
    has ended, the first use in the next loop *must* open new connections and close those of the loop before. The core
    only interrupts or closes a `Listener` or `Waiter` of a loop that has ended, from the next loop; these calls
    *must not* wait for the loop that has ended.

    Attributes:
        capabilities: The declared features. The first `ping` *may* remove some of them.
        reasons: Why a feature that the backend could have is not declared, and what to do: text for the error.
        runtime: The runtime that the driver is bound to.
        max_payload: The largest body in bytes that the core sends or accepts (B5).
        url: The URL of the backend without credentials, for messages.
        several_servers: Whether several servers share its data, each of which may fail alone. Then the core renews
            leases of each server by themselves, as `server_of` of the drivers of the interfaces tells.
        timeout: Seconds within which each request of its drivers *must* end, whatever the backend does (B10). They are
            counted once, from the beginning of the request: a reply that arrives in pieces doesn't restart them. The
            calls of a `Waiter` and a `Listener` may take these seconds in addition to their ``timeout`` argument.
    """

    timeout: float = 5.0
    reasons: Mapping[Capability, str] = MappingProxyType({})

    several_servers: bool = False

    capabilities: frozenset[Capability]
    runtime: Runtime
    max_payload: int
    url: str

    @abstractmethod
    async def ping(self) -> None:
        """Return when the backend answers and can be used.

        Raises:
            ConnectionLostError: The backend can't be reached.
            PermissionDeniedError: The backend refuses the credentials.
            UnsupportedError: The server is too old (B1).
        """

    @abstractmethod
    async def close(self) -> None:
        """Close every connection. Calls under way *must* end with `ClosedError` (B3). It *must* be idempotent."""

    def interrupt(self) -> None:  # noqa: B027 - a driver whose calls never block has nothing to do
        """End calls that block in other threads with `ClosedError` (B3). It *may* be called from any thread."""

    def abandon(self) -> bool:
        """Free the resources of a backend that was dropped without `close`; return whether there were any.

        It *must not* wait. It *may* be called from any thread, by the garbage collector at any point of a program, and
        after the event loop was closed. Flows that still use the driver *must* end with `ClosedError`.
        """
        return False

    @abstractmethod
    def with_runtime(self, runtime: Runtime) -> "BackendDriver":
        """Return a driver for the same backend that is bound to another runtime (B12).

        It has the same settings, and connections of its own. Closing either *must not* close the other.

        A thread renews leases, so a driver that declares `Capability.STREAM`, `Capability.LOCK` or
        `Capability.RATE_LIMITER` *must* support the thread runtime.

        Raises:
            UnsupportedError: The client library has no such flavour.
        """

    def pubsub(self) -> PubSubDriver:
        """Return the driver for pub/sub; only called with `Capability.PUBSUB`."""
        raise NotImplementedError

    def stream(self) -> StreamDriver:
        """Return the driver for streams; only called with `Capability.STREAM`."""
        raise NotImplementedError

    def lock(self) -> LockDriver:
        """Return the driver for locks; only called with `Capability.LOCK`."""
        raise NotImplementedError

    def rate_limiter(self) -> RateLimiterDriver:
        """Return the driver for rate limiters; only called with `Capability.RATE_LIMITER`."""
        raise NotImplementedError

    def watch(self, token: str, lease: "Revocable") -> None:  # noqa: B027 - most backends find out by a request only
        """Call `Revocable.take` as soon as the grant with this token is broken (L8).

        A driver that finds out only by a request does nothing. It *must not* hold a strong reference to the lease.
        """

    async def diagnose(self) -> list[Finding]:
        """Return what the backend finds about itself, for ``ailf doctor``: what only it knows, such as its settings.

        It *must not* change anything that outlives the call. A right that the user lacks *should* be a finding, not an
        error.
        """
        return []

    async def remove_namespaces(self, prefix: str) -> int | None:  # noqa: ARG002 - as `unwrap`
        """Remove all that is stored in the namespaces whose names begin with a text; return how many things that were.

        Commands that make a namespace of their own call it afterwards (``ailf bench``, ``ailf contract``). None: the
        backend doesn't know how, and nothing was removed.

        Arguments:
            prefix: The text, which is never empty.
        """
        return None

    def unwrap(self, kind: type[T]) -> T | None:  # noqa: ARG002 - by default there is no client
        """Return the client library's own object of this class, or None."""
        return None
