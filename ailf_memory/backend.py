"""The memory backend, `MemoryBackend` and `AsyncMemoryBackend`, and the classes of its interfaces."""

from ailf.backend import AsyncBackend, Backend
from ailf.checks import check_kind
from ailf.errors import InvalidArgumentError
from ailf.lock import AsyncLock, Lock
from ailf.payload_types import T
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


def _store(clock: Clock | None, store: MemoryStore | None) -> MemoryStore:
    """Return the store, or a new one with the clock."""
    if clock is not None:
        check_kind("clock", clock, Clock)
    if store is None:
        return MemoryStore(clock)
    if clock is not None:
        raise InvalidArgumentError("a memory backend takes a clock or a store, not both: a store has its own clock")
    check_kind("store", store, MemoryStore)
    return store


class MemoryBackend(Backend):
    """The memory backend, blocking.

    >>> from ailf.testing import ManualClock
    >>> from ailf_memory import MemoryBackend
    >>> clock = ManualClock()
    >>> with MemoryBackend(clock) as backend:
    ...     lease = backend.lock("report", ttl=30.0).acquire()
    ...     clock.advance(31)
    ...     assert lease.lost

    A backend that is dropped without `close` leaves nothing behind, except subscriptions: then a `ResourceWarning`
    names it.

    Arguments:
        clock: The clock of a new store; with a `ManualClock` a test moves time by hand. None: the system's clock.
        store: A store to share with other memory backends; None for a new one.
        max_payload: The largest body in bytes.
        url: The URL for messages; credentials and options are removed.

    Raises:
        InvalidArgumentError: An argument can't be used, or both ``clock`` and ``store`` are given.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        store: MemoryStore | None = None,
        max_payload: int = MAX_PAYLOAD,
        url: str = "memory://",
    ) -> None:
        chosen = _store(clock, store)
        super().__init__(MemoryDriver(chosen, ThreadRuntime(chosen.clock), url=url, max_payload=max_payload))

    @property
    def store(self) -> MemoryStore:
        """The store, which other memory backends may share."""
        return self.unwrap(MemoryStore)


class AsyncMemoryBackend(AsyncBackend):
    """The memory backend, for asyncio.

    >>> import asyncio
    >>> from ailf.testing import ManualClock
    >>> from ailf_memory import AsyncMemoryBackend
    >>> async def main() -> None:
    ...     clock = ManualClock()
    ...     async with AsyncMemoryBackend(clock) as backend:
    ...         lease = await backend.lock("report", ttl=30.0).acquire()
    ...         clock.advance(31)
    ...         assert lease.lost
    >>> asyncio.run(main())

    A backend that is dropped without `aclose` leaves nothing behind, except subscriptions: then a `ResourceWarning`
    names it.

    Arguments:
        clock: The clock of a new store; with a `ManualClock` a test moves time by hand. None: the system's clock.
        store: A store to share with other memory backends; None for a new one.
        max_payload: The largest body in bytes.
        url: The URL for messages; credentials and options are removed.

    Raises:
        InvalidArgumentError: An argument can't be used, or both ``clock`` and ``store`` are given.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        store: MemoryStore | None = None,
        max_payload: int = MAX_PAYLOAD,
        url: str = "memory://",
    ) -> None:
        chosen = _store(clock, store)
        super().__init__(MemoryDriver(chosen, AsyncioRuntime(chosen.clock), url=url, max_payload=max_payload))

    @property
    def store(self) -> MemoryStore:
        """The store, which other memory backends may share."""
        return self.unwrap(MemoryStore)


class MemoryStream(Stream[T], opens=MemoryBackend):
    """`Stream` in memory; a standalone object has a store of its own.

    >>> from ailf_memory import MemoryStream
    >>> with MemoryStream("orders") as orders:
    ...     entry_id = orders.add({"teas": 2})
    ...     assert len(orders.read()) == 1
    """


class AsyncMemoryStream(AsyncStream[T], opens=AsyncMemoryBackend):
    """`AsyncStream` in memory; a standalone object has a store of its own.

    >>> import asyncio
    >>> from ailf_memory import AsyncMemoryStream
    >>> async def main() -> None:
    ...     async with AsyncMemoryStream("orders") as orders:
    ...         entry_id = await orders.add({"teas": 2})
    ...         assert len(await orders.read()) == 1
    >>> asyncio.run(main())
    """


class MemoryPubSub(PubSub[T], opens=MemoryBackend):
    """`PubSub` in memory; a standalone object has a store of its own.

    >>> from ailf_memory import MemoryPubSub
    >>> with MemoryPubSub() as pubsub:
    ...     pubsub.publish("news", "hello")
    """


class AsyncMemoryPubSub(AsyncPubSub[T], opens=AsyncMemoryBackend):
    """`AsyncPubSub` in memory; a standalone object has a store of its own.

    >>> import asyncio
    >>> from ailf_memory import AsyncMemoryPubSub
    >>> async def main() -> None:
    ...     async with AsyncMemoryPubSub() as pubsub:
    ...         await pubsub.publish("news", "hello")
    >>> asyncio.run(main())
    """


class MemoryLock(Lock, opens=MemoryBackend):
    """`Lock` in memory; a standalone object has a store of its own.

    >>> from ailf_memory import MemoryLock
    >>> lock = MemoryLock("report")
    >>> with lock as lease:
    ...     assert not lease.lost
    >>> lock.close()
    """


class AsyncMemoryLock(AsyncLock, opens=AsyncMemoryBackend):
    """`AsyncLock` in memory; a standalone object has a store of its own.

    >>> import asyncio
    >>> from ailf_memory import AsyncMemoryLock
    >>> async def main() -> None:
    ...     lock = AsyncMemoryLock("report")
    ...     async with lock as lease:
    ...         assert not lease.lost
    ...     await lock.aclose()
    >>> asyncio.run(main())
    """


class MemoryRateLimiter(RateLimiter, opens=MemoryBackend):
    """`RateLimiter` in memory; a standalone object has a store of its own.

    >>> from ailf_memory import MemoryRateLimiter
    >>> limiter = MemoryRateLimiter("api", "60/minute")
    >>> limiter.try_acquire("ann").remaining
    59
    >>> limiter.close()
    """


class AsyncMemoryRateLimiter(AsyncRateLimiter, opens=AsyncMemoryBackend):
    """`AsyncRateLimiter` in memory; a standalone object has a store of its own.

    >>> import asyncio
    >>> from ailf_memory import AsyncMemoryRateLimiter
    >>> async def main() -> None:
    ...     limiter = AsyncMemoryRateLimiter("api", "60/minute")
    ...     assert (await limiter.try_acquire("ann")).remaining == 59
    ...     await limiter.aclose()
    >>> asyncio.run(main())
    """


# The classes of a backend and of its interfaces refer to each other, so these assignments come after both.
MemoryBackend.async_class = AsyncMemoryBackend
MemoryBackend.stream_class = MemoryStream
MemoryBackend.pubsub_class = MemoryPubSub
MemoryBackend.lock_class = MemoryLock
MemoryBackend.rate_limiter_class = MemoryRateLimiter
AsyncMemoryBackend.blocking_class = MemoryBackend
AsyncMemoryBackend.stream_class = AsyncMemoryStream
AsyncMemoryBackend.pubsub_class = AsyncMemoryPubSub
AsyncMemoryBackend.lock_class = AsyncMemoryLock
AsyncMemoryBackend.rate_limiter_class = AsyncMemoryRateLimiter
