"""An opened backend, which hands out the interfaces: `Backend` and `AsyncBackend`; and how to open one by URL."""

import logging
from collections.abc import Generator
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar, overload

from ailf.driver import BackendDriver, Capability
from ailf.engine import Engine
from ailf.errors import BackendTimeoutError, ConnectionLostError, InvalidArgumentError
from ailf.limits import Limit
from ailf.lock import AsyncLock, Lock
from ailf.lock.flow import require_locks
from ailf.pubsub import AsyncPubSub, ErrorHook, PubSub
from ailf.ratelimit import AsyncRateLimiter, OnBackendError, RateLimiter
from ailf.runtime import run
from ailf.stream import AsyncStream, Stream
from ailf.values import Retention

__all__ = ["AsyncBackend", "Backend"]

T = TypeVar("T")

log = logging.getLogger("ailf")

_OPENING_DELAYS = (0.1, 0.2, 0.5, 1.0)
"""Seconds between tries to open a backend that is not there yet."""


class _BackendBase:
    """What both faces share: the engine over a driver."""

    def __init__(self, driver: BackendDriver, *, retry_for: float = 5.0) -> None:
        self.engine = Engine(driver, retry_for=retry_for)

    @property
    def url(self) -> str:
        """What it was opened with, credentials hidden."""
        return self.engine.driver.url

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can do."""
        return self.engine.driver.capabilities

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self.engine.closed

    def unwrap(self, kind: type[T]) -> T:
        """Return the client library's own object underneath, for what ailf has no interface for.

        Raises:
            InvalidArgumentError: There is none of this kind.
        """
        if not isinstance(kind, type):
            raise InvalidArgumentError(f"unwrap takes a class, not {kind!r}")
        found = self.engine.driver.unwrap(kind)
        if found is None:
            raise InvalidArgumentError(
                f"the backend {self.url} has no {kind.__module__}.{kind.__qualname__} underneath"
            )
        return found

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}{' closed' if self.closed else ''}>"


class Backend(_BackendBase):
    """An opened backend, blocking. Inject it into agents: they ask it for what they need and never import a package.

    It may be shared by threads. Closing it ends every call under way with `ClosedError` (B3).

    A backend package derives from it: it passes its driver to ``__init__`` and may name classes of its own.
    """

    stream_class: ClassVar[type[Stream[Any]]] = Stream
    lock_class: ClassVar[type[Lock]] = Lock
    rate_limiter_class: ClassVar[type[RateLimiter]] = RateLimiter
    pubsub_class: ClassVar[type[PubSub[Any]]] = PubSub

    @overload
    def pubsub(self, *, on_error: ErrorHook | None = None, sharded: bool = False) -> PubSub[Any]: ...

    @overload
    def pubsub(self, *, type: type[T], on_error: ErrorHook | None = None, sharded: bool = False) -> PubSub[T]: ...

    def pubsub(
        self,
        *,
        type: Any = Any,  # noqa: A002 - the API
        on_error: ErrorHook | None = None,
        sharded: bool = False,
    ) -> PubSub[Any]:
        """Return the broadcast interface.

        Arguments:
            type: What payloads are decoded into: ``bytes``, a dataclass, an attrs or msgspec type, ….
            on_error: Called with an exception and the raw message where one can't be decoded or a handler raises.
            sharded: Whether its channels are sharded ones, which one shard of a cluster carries; without patterns.

        Raises:
            UnsupportedError: The backend has no pub/sub (B2).
        """
        self.engine.require(Capability.PUBSUB, "pub/sub")
        if sharded:
            self.engine.require(Capability.SHARDED, "sharded channels")
        return self.pubsub_class(type=type, on_error=on_error, sharded=sharded, engine=self.engine)

    @overload
    def stream(self, name: str, *, retention: Retention | None = None) -> Stream[Any]: ...

    @overload
    def stream(self, name: str, *, type: type[T], retention: Retention | None = None) -> Stream[T]: ...

    def stream(self, name: str, *, type: Any = Any, retention: Retention | None = None) -> Stream[Any]:  # noqa: A002 - the API
        """Return the stream of this name; it begins to exist with its first message or group.

        Arguments:
            name: Any non-empty text.
            type: What payloads are decoded into: ``bytes``, a dataclass, an attrs or msgspec type, ….
            retention: How much is kept of what this object adds to; everything unless told (S8), so that it grows for
                ever. For a work queue use ``Retention.settled()``.

        Raises:
            UnsupportedError: The backend has no streams (B2).
        """
        self.engine.require(Capability.STREAM, "streams")
        return self.stream_class(name, type=type, retention=retention, engine=self.engine)

    def lock(self, *names: str, ttl: float = 30.0, fair: bool = False, renew: bool = True) -> Lock:
        """Return the lock of this name; of several names, what has them all at once.

        Arguments:
            names: Any non-empty texts.
            ttl: Seconds that a grant lasts when its process has died; a living one renews it.
            fair: Whether those who wait get it in the order in which they came.
            renew: Whether leases are renewed until they are released.

        Raises:
            UnsupportedError: The backend has no locks, or none of several names (B2).
        """
        require_locks(self.engine, names)
        return self.lock_class(*names, ttl=ttl, fair=fair, renew=renew, engine=self.engine)

    def semaphore(self, name: str, permits: int, *, ttl: float = 30.0, fair: bool = False, renew: bool = True) -> Lock:
        """Return a lock that so many may have at once, each with a lease of its own (L16).

        Arguments:
            name: Any non-empty text.
            permits: How many.
            ttl: As for `lock`.
            fair: As for `lock`.
            renew: As for `lock`.

        Raises:
            UnsupportedError: The backend has no locks (B2).
        """
        self.engine.require(Capability.LOCK, "locks")
        return self.lock_class(name, permits=permits, ttl=ttl, fair=fair, renew=renew, engine=self.engine)

    def rate_limiter(
        self,
        name: str,
        limit: Limit | str | None = None,
        /,
        *,
        on_backend_error: OnBackendError = "raise",
        count_denied: bool = False,
        cache_denials: bool = False,
        **limits: Limit | str,
    ) -> RateLimiter:
        """Return a rate limiter with one limit, or with several by name, all of which a call must pass.

        Arguments:
            name: Any non-empty text.
            limit: The limit: ``TokenBucket(10, per=1.0)``, or a text like ``"10/second"``.
            on_backend_error: What becomes of a call while the backend can't be asked.
            count_denied: Whether denied calls are charged too.
            cache_denials: Whether a denial is remembered here; then nothing is ever given back.
            limits: Several limits: ``requests="60/minute", tokens="100000/minute", parallel=Concurrency(8)``.

        Raises:
            InvalidArgumentError: There is no limit, or a text that stands for none.
            UnsupportedError: The backend has no rate limiters (B2).
        """
        self.engine.require(Capability.RATE_LIMITER, "rate limiters")
        return self.rate_limiter_class(
            name,
            limit,
            on_backend_error=on_backend_error,
            count_denied=count_denied,
            cache_denials=cache_denials,
            engine=self.engine,
            **limits,
        )

    def ping(self) -> None:
        """Return when the backend answers; see `connect` for the errors."""
        run(_ping(self.engine))

    def close(self) -> None:
        """Close it: every blocked call ends with `ClosedError`, every connection and thread goes. Twice is harmless."""
        run(self.engine.close())

    def __enter__(self) -> Self:
        """Return the backend itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()


class AsyncBackend(_BackendBase):
    """An opened backend, for asyncio. Inject it into agents: they ask it for what they need and never import a package.

    It may be shared by the tasks of one event loop. Closing it ends every call under way with `ClosedError` (B3).

    A backend package derives from it: it passes its driver to ``__init__`` and may name classes of its own.
    """

    stream_class: ClassVar[type[AsyncStream[Any]]] = AsyncStream
    lock_class: ClassVar[type[AsyncLock]] = AsyncLock
    rate_limiter_class: ClassVar[type[AsyncRateLimiter]] = AsyncRateLimiter
    pubsub_class: ClassVar[type[AsyncPubSub[Any]]] = AsyncPubSub

    @overload
    def pubsub(self, *, on_error: ErrorHook | None = None, sharded: bool = False) -> AsyncPubSub[Any]: ...

    @overload
    def pubsub(self, *, type: type[T], on_error: ErrorHook | None = None, sharded: bool = False) -> AsyncPubSub[T]: ...

    def pubsub(
        self,
        *,
        type: Any = Any,  # noqa: A002 - the API
        on_error: ErrorHook | None = None,
        sharded: bool = False,
    ) -> AsyncPubSub[Any]:
        """Return the broadcast interface.

        Arguments:
            type: What payloads are decoded into: ``bytes``, a dataclass, an attrs or msgspec type, ….
            on_error: Called with an exception and the raw message where one can't be decoded or a handler raises.
            sharded: Whether its channels are sharded ones, which one shard of a cluster carries; without patterns.

        Raises:
            UnsupportedError: The backend has no pub/sub (B2).
        """
        self.engine.require(Capability.PUBSUB, "pub/sub")
        if sharded:
            self.engine.require(Capability.SHARDED, "sharded channels")
        return self.pubsub_class(type=type, on_error=on_error, sharded=sharded, engine=self.engine)

    @overload
    def stream(self, name: str, *, retention: Retention | None = None) -> AsyncStream[Any]: ...

    @overload
    def stream(self, name: str, *, type: type[T], retention: Retention | None = None) -> AsyncStream[T]: ...

    def stream(self, name: str, *, type: Any = Any, retention: Retention | None = None) -> AsyncStream[Any]:  # noqa: A002 - the API
        """Return the stream of this name; it begins to exist with its first message or group.

        Arguments:
            name: Any non-empty text.
            type: What payloads are decoded into: ``bytes``, a dataclass, an attrs or msgspec type, ….
            retention: How much is kept of what this object adds to; everything unless told (S8), so that it grows for
                ever. For a work queue use ``Retention.settled()``.

        Raises:
            UnsupportedError: The backend has no streams (B2).
        """
        self.engine.require(Capability.STREAM, "streams")
        return self.stream_class(name, type=type, retention=retention, engine=self.engine)

    def lock(self, *names: str, ttl: float = 30.0, fair: bool = False, renew: bool = True) -> AsyncLock:
        """Return the lock of this name; of several names, what has them all at once.

        Arguments:
            names: Any non-empty texts.
            ttl: Seconds that a grant lasts when its process has died; a living one renews it.
            fair: Whether those who wait get it in the order in which they came.
            renew: Whether leases are renewed until they are released.

        Raises:
            UnsupportedError: The backend has no locks, or none of several names (B2).
        """
        require_locks(self.engine, names)
        return self.lock_class(*names, ttl=ttl, fair=fair, renew=renew, engine=self.engine)

    def semaphore(
        self, name: str, permits: int, *, ttl: float = 30.0, fair: bool = False, renew: bool = True
    ) -> AsyncLock:
        """Return a lock that so many may have at once, each with a lease of its own (L16).

        Arguments:
            name: Any non-empty text.
            permits: How many.
            ttl: As for `lock`.
            fair: As for `lock`.
            renew: As for `lock`.

        Raises:
            UnsupportedError: The backend has no locks (B2).
        """
        self.engine.require(Capability.LOCK, "locks")
        return self.lock_class(name, permits=permits, ttl=ttl, fair=fair, renew=renew, engine=self.engine)

    def rate_limiter(
        self,
        name: str,
        limit: Limit | str | None = None,
        /,
        *,
        on_backend_error: OnBackendError = "raise",
        count_denied: bool = False,
        cache_denials: bool = False,
        **limits: Limit | str,
    ) -> AsyncRateLimiter:
        """Return a rate limiter with one limit, or with several by name, all of which a call must pass.

        Arguments:
            name: Any non-empty text.
            limit: The limit: ``TokenBucket(10, per=1.0)``, or a text like ``"10/second"``.
            on_backend_error: What becomes of a call while the backend can't be asked.
            count_denied: Whether denied calls are charged too.
            cache_denials: Whether a denial is remembered here; then nothing is ever given back.
            limits: Several limits: ``requests="60/minute", tokens="100000/minute", parallel=Concurrency(8)``.

        Raises:
            InvalidArgumentError: There is no limit, or a text that stands for none.
            UnsupportedError: The backend has no rate limiters (B2).
        """
        self.engine.require(Capability.RATE_LIMITER, "rate limiters")
        return self.rate_limiter_class(
            name,
            limit,
            on_backend_error=on_backend_error,
            count_denied=count_denied,
            cache_denials=cache_denials,
            engine=self.engine,
            **limits,
        )

    async def ping(self) -> None:
        """Return when the backend answers; see `connect` for the errors."""
        await _ping(self.engine)

    async def aclose(self) -> None:
        """Close it: every blocked call ends with `ClosedError`, every connection and task goes. Twice is harmless."""
        await self.engine.close()

    def __await__(self) -> Generator[Any, None, Self]:
        """Check that it answers, and return the backend itself."""
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        """Check that it answers, and return the backend itself."""
        try:
            await _open(self.engine, self.engine.patience)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()


async def _ping(engine: Engine) -> None:
    engine.check_open()
    await engine.driver.ping()


async def _open(engine: Engine, patience: float) -> None:
    """Return when the backend answers; for `patience` seconds try again where waiting can mend it."""
    until = engine.runtime.now() + patience
    tries = 0
    while True:
        try:
            await _ping(engine)
        except (ConnectionLostError, BackendTimeoutError) as error:
            left = until - engine.runtime.now()
            if left <= 0:
                raise
            if not tries:
                log.warning("%s is not there yet; waiting up to %g s: %s", engine.driver.url, patience, error)
        else:
            return
        await engine.pause(min(left, _OPENING_DELAYS[min(tries, len(_OPENING_DELAYS) - 1)]))
        tries += 1
