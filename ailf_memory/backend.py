"""The memory backend: `MemoryBackend` and `AsyncMemoryBackend`, and the driver under both."""

from typing import TypeVar

from ailf.backend import AsyncBackend, Backend
from ailf.checks import check_kind
from ailf.errors import InvalidArgumentError
from ailf.lock import AsyncLock, Lock
from ailf.pubsub import AsyncPubSub, PubSub
from ailf.ratelimit import AsyncRateLimiter, RateLimiter
from ailf.runtime import AsyncioRuntime, ThreadRuntime
from ailf.runtime.clock import Clock
from ailf.stream import AsyncStream, Stream
from ailf_memory.driver import MAX_PAYLOAD, MemoryDriver
from ailf_memory.store import MemoryStore

__all__ = [
    "AsyncMemoryBackend",
    "AsyncMemoryLock",
    "AsyncMemoryPubSub",
    "AsyncMemoryRateLimiter",
    "AsyncMemoryStream",
    "MemoryBackend",
    "MemoryLock",
    "MemoryPubSub",
    "MemoryRateLimiter",
    "MemoryStream",
]

T = TypeVar("T")


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
