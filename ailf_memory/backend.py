"""The memory backend: `MemoryBackend` and `AsyncMemoryBackend`, and the driver under both."""

from typing import Any, TypeVar

from ailf.backend import AsyncBackend, Backend
from ailf.checks import check_kind, check_text
from ailf.clock import Clock
from ailf.driver import BackendDriver, Capability
from ailf.driver.backend import Takeable
from ailf.errors import InvalidArgumentError
from ailf.lock import AsyncLock, Lock
from ailf.pubsub import AsyncPubSub, PubSub
from ailf.ratelimit import AsyncRateLimiter, RateLimiter
from ailf.runtime import AsyncioRuntime, Runtime, ThreadRuntime
from ailf.stream import AsyncStream, Stream
from ailf.urls import shown
from ailf_memory.lock import MemoryLockDriver
from ailf_memory.pubsub import MemoryPubSubDriver
from ailf_memory.ratelimit import MemoryRateLimiterDriver
from ailf_memory.store import MemoryStore, StoreHandle
from ailf_memory.stream import MemoryStreamDriver

__all__ = [
    "AsyncMemoryBackend",
    "AsyncMemoryLock",
    "AsyncMemoryPubSub",
    "AsyncMemoryRateLimiter",
    "AsyncMemoryStream",
    "MemoryBackend",
    "MemoryDriver",
    "MemoryLock",
    "MemoryPubSub",
    "MemoryRateLimiter",
    "MemoryStream",
]

T = TypeVar("T")

MAX_PAYLOAD = 1024 * 1024


class MemoryDriver(BackendDriver):
    """The drivers over one store."""

    capabilities: frozenset[Capability] = frozenset(
        {
            Capability.PUBSUB,
            Capability.PATTERNS,
            Capability.SHARDED,
            Capability.STREAM,
            Capability.ORDERING,
            Capability.LOCK,
            Capability.SEVERAL_LOCKS,
            Capability.RATE_LIMITER,
        }
    )

    def __init__(
        self, store: MemoryStore, runtime: Runtime, *, url: str = "memory://", max_payload: int = MAX_PAYLOAD
    ) -> None:
        self.store = store
        self.runtime = runtime
        self.url = shown(check_text("url", url))
        self.max_payload = max_payload
        self.handle = StoreHandle(store, runtime, self.url)

    async def ping(self) -> None:
        self.handle.check_open()

    async def close(self) -> None:
        self.handle.closed = True

    def interrupt(self) -> None:
        self.handle.closed = True

    def abandon(self) -> bool:
        self.handle.closed = True
        with self.store.lock:
            mine = [each for each in self.store.listeners if each.is_of(self.handle)]
            # Another list: somebody may be in the middle of the old one.
            self.store.listeners = [each for each in self.store.listeners if each not in mine]
        return bool(mine)

    def twin(self, runtime: Runtime) -> "MemoryDriver":
        return MemoryDriver(self.store, runtime, url=self.url, max_payload=self.max_payload)

    def pubsub(self) -> MemoryPubSubDriver:
        return MemoryPubSubDriver(self.handle)

    def lock(self) -> MemoryLockDriver:
        return MemoryLockDriver(self.handle)

    def rate_limiter(self) -> MemoryRateLimiterDriver:
        return MemoryRateLimiterDriver(self.handle)

    def stream(self) -> MemoryStreamDriver:
        return MemoryStreamDriver(self.handle)

    def watch(self, token: str, lease: Takeable) -> None:
        self.store.leases[token] = lease

    def unwrap(self, kind: type[Any]) -> Any:
        return self.store if isinstance(self.store, kind) else None


def _store(clock: Clock | None, store: MemoryStore | None) -> MemoryStore:
    """Return the store to use, of the two arguments that say which."""
    if clock is not None:
        check_kind("clock", clock, Clock)
    if store is None:
        return MemoryStore(clock)
    if clock is not None:
        raise InvalidArgumentError("give a clock or a store, not both: a store has its own clock")
    check_kind("store", store, MemoryStore)
    return store


class MemoryBackend(Backend):
    """The memory backend, blocking.

    One that is dropped without `close` leaves nothing, unless it had subscriptions: then a `ResourceWarning` says so.

    Arguments:
        clock: Its *now*; with a `ManualClock` a test moves time by hand.
        store: A store to share with other memory backends; a new one unless told.
        max_payload: The largest body in bytes.
        url: What messages call it; credentials and options are left out.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        store: MemoryStore | None = None,
        max_payload: int = MAX_PAYLOAD,
        url: str = "memory://",
    ) -> None:
        self.store = _store(clock, store)
        super().__init__(MemoryDriver(self.store, ThreadRuntime(self.store.clock), url=url, max_payload=max_payload))


class AsyncMemoryBackend(AsyncBackend):
    """The memory backend, for asyncio.

    One that is dropped without `aclose` leaves nothing, unless it had subscriptions: then a `ResourceWarning` says so.

    Arguments:
        clock: Its *now*; with a `ManualClock` a test moves time by hand.
        store: A store to share with other memory backends; a new one unless told.
        max_payload: The largest body in bytes.
        url: What messages call it; credentials and options are left out.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        store: MemoryStore | None = None,
        max_payload: int = MAX_PAYLOAD,
        url: str = "memory://",
    ) -> None:
        self.store = _store(clock, store)
        super().__init__(MemoryDriver(self.store, AsyncioRuntime(self.store.clock), url=url, max_payload=max_payload))


class MemoryStream(Stream[T], opens=MemoryBackend):
    """`Stream` in memory; one made alone has a store of its own."""


class AsyncMemoryStream(AsyncStream[T], opens=AsyncMemoryBackend):
    """`AsyncStream` in memory; one made alone has a store of its own."""


class MemoryPubSub(PubSub[T], opens=MemoryBackend):
    """`PubSub` in memory; one made alone has a store of its own."""


class AsyncMemoryPubSub(AsyncPubSub[T], opens=AsyncMemoryBackend):
    """`AsyncPubSub` in memory; one made alone has a store of its own."""


class MemoryLock(Lock, opens=MemoryBackend):
    """`Lock` in memory; one made alone has a store of its own."""


class AsyncMemoryLock(AsyncLock, opens=AsyncMemoryBackend):
    """`AsyncLock` in memory; one made alone has a store of its own."""


class MemoryRateLimiter(RateLimiter, opens=MemoryBackend):
    """`RateLimiter` in memory; one made alone has a store of its own."""


class AsyncMemoryRateLimiter(AsyncRateLimiter, opens=AsyncMemoryBackend):
    """`AsyncRateLimiter` in memory; one made alone has a store of its own."""


# A backend's class and those of what it hands out name each other, so these stand below both.
MemoryBackend.stream_class = MemoryStream
MemoryBackend.pubsub_class = MemoryPubSub
MemoryBackend.lock_class = MemoryLock
MemoryBackend.rate_limiter_class = MemoryRateLimiter
AsyncMemoryBackend.stream_class = AsyncMemoryStream
AsyncMemoryBackend.pubsub_class = AsyncMemoryPubSub
AsyncMemoryBackend.lock_class = AsyncMemoryLock
AsyncMemoryBackend.rate_limiter_class = AsyncMemoryRateLimiter
