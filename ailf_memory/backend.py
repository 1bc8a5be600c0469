"""The memory backend: `MemoryBackend` and `AsyncMemoryBackend`, and the driver under both."""

from typing import Any, ClassVar

from ailf.backend import AsyncBackend, Backend
from ailf.checks import check_kind, check_text
from ailf.clock import Clock
from ailf.driver import BackendDriver, Capability
from ailf.driver.backend import Takeable
from ailf.errors import ClosedError, InvalidArgumentError
from ailf.lock import AsyncLock, Lock
from ailf.pubsub import AsyncPubSub, PubSub
from ailf.ratelimit import AsyncRateLimiter, RateLimiter
from ailf.runtime import AsyncioRuntime, Runtime, ThreadRuntime
from ailf.stream import AsyncStream, Stream
from ailf.urls import shown
from ailf_memory.lock import AsyncMemoryLock, MemoryLock, MemoryLockDriver
from ailf_memory.pubsub import AsyncMemoryPubSub, MemoryPubSub, MemoryPubSubDriver
from ailf_memory.ratelimit import AsyncMemoryRateLimiter, MemoryRateLimiter, MemoryRateLimiterDriver
from ailf_memory.store import MemoryStore
from ailf_memory.stream import AsyncMemoryStream, MemoryStream, MemoryStreamDriver

__all__ = ["AsyncMemoryBackend", "MemoryBackend", "MemoryDriver"]

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
        self.closed = False

    def check_open(self) -> None:
        """Raise `ClosedError` after close."""
        if self.closed:
            raise ClosedError(f"the backend {self.url} is closed")

    async def ping(self) -> None:
        self.check_open()

    async def close(self) -> None:
        self.closed = True

    def interrupt(self) -> None:
        self.closed = True

    def abandon(self) -> bool:
        self.closed = True
        with self.store.lock:
            mine = [each for each in self.store.listeners if each.is_of(self)]
            # Another list: somebody may be in the middle of the old one.
            self.store.listeners = [each for each in self.store.listeners if each not in mine]
        return bool(mine)

    def twin(self, runtime: Runtime) -> "MemoryDriver":
        return MemoryDriver(self.store, runtime, url=self.url, max_payload=self.max_payload)

    def pubsub(self) -> MemoryPubSubDriver:
        return MemoryPubSubDriver(self)

    def lock(self) -> MemoryLockDriver:
        return MemoryLockDriver(self)

    def rate_limiter(self) -> MemoryRateLimiterDriver:
        return MemoryRateLimiterDriver(self)

    def stream(self) -> MemoryStreamDriver:
        return MemoryStreamDriver(self)

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

    stream_class: ClassVar[type[Stream[Any]]] = MemoryStream
    lock_class: ClassVar[type[Lock]] = MemoryLock
    rate_limiter_class: ClassVar[type[RateLimiter]] = MemoryRateLimiter
    pubsub_class: ClassVar[type[PubSub[Any]]] = MemoryPubSub

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

    stream_class: ClassVar[type[AsyncStream[Any]]] = AsyncMemoryStream
    lock_class: ClassVar[type[AsyncLock]] = AsyncMemoryLock
    rate_limiter_class: ClassVar[type[AsyncRateLimiter]] = AsyncMemoryRateLimiter
    pubsub_class: ClassVar[type[AsyncPubSub[Any]]] = AsyncMemoryPubSub

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
