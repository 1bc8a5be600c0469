"""`Backend` and `AsyncBackend`: an opened backend, which hands out the interfaces."""

from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar, overload

from ailf.checks import check_count, check_prefix
from ailf.codecs import Codec
from ailf.driver import BackendDriver, Capability
from ailf.engine import AWAY, Engine
from ailf.errors import ClosedError, InvalidArgumentError
from ailf.instruments import Instrument
from ailf.limits import Limit
from ailf.listing import PAGE, AsyncListing, Listing, ReadPage
from ailf.lock import AsyncLock, Lock
from ailf.lock.flow import require_locks
from ailf.logs import About, Log
from ailf.payload_types import TypeForm
from ailf.pubsub import AsyncPubSub, ErrorHook, PubSub
from ailf.ratelimit import AsyncRateLimiter, OnBackendError, RateLimiter
from ailf.ratelimit.options import check_limit_names
from ailf.runtime import AsyncioRuntime, ThreadRuntime, run
from ailf.stream import AsyncStream, Stream
from ailf.values import HeldLock, LimiterName, Page, Retention

__all__ = ["AsyncBackend", "Backend"]

T = TypeVar("T")
B = TypeVar("B", bound="_BackendBase")

log = Log("ailf")

_OPENING_DELAYS = (0.1, 0.2, 0.5, 1.0)
"""Seconds between tries to open a backend that doesn't answer yet."""


class _BackendBase:
    """The part that the blocking and the asyncio class share: the engine over a driver."""

    def __init__(self, driver: BackendDriver, *, retry_for: float = 5.0) -> None:
        self.engine = Engine(driver, retry_for=retry_for)

    @property
    def url(self) -> str:
        """The URL of the backend, without credentials."""
        return self.engine.driver.url

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The features that the backend has."""
        return self.engine.driver.capabilities

    @property
    def closed(self) -> bool:
        """Whether the backend was closed."""
        return self.engine.closed

    def unwrap(self, kind: type[T]) -> T:
        """Return the client library's own object, for features that ailf has no interface for.

        Arguments:
            kind: The class of the object, such as ``redis.Redis``.

        Raises:
            InvalidArgumentError: The backend has no object of this class.
        """
        if not isinstance(kind, type):
            raise InvalidArgumentError(f"unwrap takes a class, not {kind!r}")
        client = self.engine.driver.unwrap(kind)
        if client is None:
            raise InvalidArgumentError(f"the backend {self.url} has no {kind.__module__}.{kind.__qualname__} to unwrap")
        return client

    def instrument(self, *instruments: Instrument) -> None:
        """Let instruments observe this backend, in addition to those that it has.

        Each is called from now on; one that was added before is not added again.

        Arguments:
            instruments: Objects of classes derived from `ailf.instruments.Instrument`.

        Raises:
            InvalidArgumentError: An object isn't an `Instrument`; none was added.
        """
        self.engine.instruments.add(instruments)

    def _in_flavour(self, backend_class: type[B], runtime: type[AsyncioRuntime] | type[ThreadRuntime]) -> B:
        """Return a backend of the other flavour over a driver for the same backend."""
        engine = self.engine
        if engine.closed:
            raise ClosedError(f"the backend {self.url} is closed; open another one")
        made = backend_class.__new__(backend_class)  # its own __init__ takes other arguments than a driver
        driver = engine.driver.with_runtime(runtime(engine.runtime.clock))
        _BackendBase.__init__(made, driver, retry_for=engine.retry_for)
        if engine.wrapped:  # the driver of the other flavour is wrapped, too
            made.engine.wrap_driver(lambda wrapped: wrapped)
        made.instrument(*engine.instruments.added())
        return made

    def _listing(
        self,
        capability: Capability,
        what: str,
        prefix: str,
        method: Callable[[BackendDriver], Callable[[str, str, int], Awaitable[Page[T]]]],
    ) -> tuple[str, ReadPage[T]]:
        """Return what a listing needs: its name, and the function that reads a page.

        Arguments:
            capability: The capability that it needs besides `Capability.LISTING`.
            what: What is listed.
            prefix: The beginning of the names.
            method: Returns the driver's method.
        """
        engine = self.engine
        engine.require(capability, what)
        engine.require(Capability.LISTING, "listing")
        check_prefix(prefix)

        def read(cursor: str, limit: int) -> Coroutine[Any, Any, Page[T]]:
            return engine.call(f"list {what}", method(engine.driver), prefix, cursor, limit, again=True)

        return what, read

    def _listing_of_streams(self, prefix: str) -> tuple[str, ReadPage[str]]:
        return self._listing(Capability.STREAM, "streams", prefix, lambda driver: driver.stream().list_streams)

    def _listing_of_locks(self, prefix: str) -> tuple[str, ReadPage[HeldLock]]:
        return self._listing(Capability.LOCK, "locks", prefix, lambda driver: driver.lock().list_locks)

    def _listing_of_limiters(self, prefix: str) -> tuple[str, ReadPage[LimiterName]]:
        return self._listing(
            Capability.RATE_LIMITER, "rate limiters", prefix, lambda driver: driver.rate_limiter().list_keys
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}{' closed' if self.closed else ''}>"


class Backend(_BackendBase):
    """An opened backend, blocking. Inject it into agents, so that they don't depend on a backend's package.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     tasks, news = backend.stream("tasks"), backend.pubsub()
    ...     first = tasks.add({"page": 1})
    ...     news.publish("news", "one more task")

    Threads may share it. Closing it ends every call under way with `ClosedError`.

    A backend package derives its own class from this one, passes its driver to ``__init__``, and may set the attributes
    below to classes of its own.
    """

    async_class: ClassVar[type["AsyncBackend"]]
    stream_class: ClassVar[type[Stream[Any]]] = Stream
    lock_class: ClassVar[type[Lock]] = Lock
    rate_limiter_class: ClassVar[type[RateLimiter]] = RateLimiter
    pubsub_class: ClassVar[type[PubSub[Any]]] = PubSub

    @overload
    def pubsub(
        self, *, on_error: ErrorHook | None = None, sharded: bool = False, validate: bool = False
    ) -> PubSub[Any]: ...

    @overload
    def pubsub(
        self, *, type: TypeForm[T], on_error: ErrorHook | None = None, sharded: bool = False, validate: bool = False
    ) -> PubSub[T]: ...

    @overload
    def pubsub(
        self, *, type: Codec[T], on_error: ErrorHook | None = None, sharded: bool = False, validate: bool = False
    ) -> PubSub[T]: ...

    def pubsub(
        self,
        *,
        type: Any = Any,  # noqa: A002 - the API
        on_error: ErrorHook | None = None,
        sharded: bool = False,
        validate: bool = False,
    ) -> PubSub[Any]:
        """Return the pub/sub interface.

        Arguments:
            type: The type of payloads: ``bytes``, a dataclass, an attrs, msgspec or pydantic class, a union, …; or a
                `Codec` of your own. If it is a class or a union of classes, only instances of it are sent.
            on_error: Called with an exception and the raw message if a message can't be decoded or a handler raises.
            sharded: Whether its channels are sharded channels, each carried by one shard of a cluster, without
                patterns.
            validate: Whether each published payload is decoded before it is sent, so that only what receivers can
                decode is sent.

        Raises:
            UnsupportedError: The backend has no pub/sub, or no sharded channels.
        """
        self.engine.require(Capability.PUBSUB, "pub/sub")
        if sharded:
            self.engine.require(Capability.SHARDED, "sharded channels")
        return self.pubsub_class(type=type, on_error=on_error, sharded=sharded, validate=validate, engine=self.engine)

    @overload
    def stream(
        self,
        name: str,
        *,
        retention: Retention | None = None,
        partitions: int | None = None,
        validate: bool = False,
    ) -> Stream[Any]: ...

    @overload
    def stream(
        self,
        name: str,
        *,
        type: TypeForm[T],
        retention: Retention | None = None,
        partitions: int | None = None,
        validate: bool = False,
    ) -> Stream[T]: ...

    @overload
    def stream(
        self,
        name: str,
        *,
        type: Codec[T],
        retention: Retention | None = None,
        partitions: int | None = None,
        validate: bool = False,
    ) -> Stream[T]: ...

    def stream(
        self,
        name: str,
        *,
        type: Any = Any,  # noqa: A002 - the API
        retention: Retention | None = None,
        partitions: int | None = None,
        validate: bool = False,
    ) -> Stream[Any]:
        """Return the stream of this name. The backend creates it with its first message or group.

        Arguments:
            name: Any non-empty text.
            type: The type of payloads: ``bytes``, a dataclass, an attrs, msgspec or pydantic class, a union, …; or a
                `Codec` of your own. If it is a class or a union of classes, only instances of it are sent.
            retention: Which entries are kept when this object adds one. None keeps all, so the stream grows for ever.
                For a work queue use ``Retention.settled()``. ``max_len`` counts in each partition.
            partitions: The number of partitions, 1 to 256; None for an ordinary stream, which is as 1. Each is a stream
                of its own, on any node of a cluster: see "Partitions" in the guide on streams. All objects of a stream
                must be given the same number; the first one that adds or consumes stores it.
            validate: Whether each added payload is decoded before it is sent, so that only what consumers can decode
                is sent.

        Raises:
            InvalidArgumentError: ``partitions`` is out of bounds. Another number than the stored one is found at the
                first call.
            UnsupportedError: The backend has no streams.
        """
        self.engine.require(Capability.STREAM, "streams")
        return self.stream_class(
            name, type=type, retention=retention, partitions=partitions, validate=validate, engine=self.engine
        )

    def lock(self, *names: str, ttl: float = 30.0, fair: bool = False, renew: bool = True) -> Lock:
        """Return the lock of this name; with several names, a lock that acquires them all at once.

        Arguments:
            names: Any non-empty texts.
            ttl: Seconds after which a lease ends unless it is renewed, such as when its process has died.
            fair: Whether waiters get the lock in the order in which they came.
            renew: Whether leases are renewed until they are released.

        Raises:
            UnsupportedError: The backend has no locks, or no locks of several names.
        """
        require_locks(self.engine, names)
        return self.lock_class(*names, ttl=ttl, fair=fair, renew=renew, engine=self.engine)

    def semaphore(self, name: str, permits: int, *, ttl: float = 30.0, fair: bool = False, renew: bool = True) -> Lock:
        """Return a semaphore: a lock with up to ``permits`` holders at once, each with a lease of its own.

        Arguments:
            name: Any non-empty text.
            permits: How many leases may exist at once.
            ttl: As for `lock`.
            fair: As for `lock`.
            renew: As for `lock`.

        Raises:
            UnsupportedError: The backend has no locks.
        """
        self.engine.require(Capability.LOCK, "locks")
        permits = check_count("permits", permits)
        return self.lock_class(name, permits=permits, ttl=ttl, fair=fair, renew=renew, engine=self.engine)

    def rate_limiter(
        self,
        name: str,
        limit: Limit | str | None = None,
        /,
        *,
        root: str | None = None,
        on_backend_error: OnBackendError = "raise",
        count_denied: bool = False,
        cache_denials: bool = False,
        **limits: Limit | str,
    ) -> RateLimiter:
        """Return a rate limiter with one limit, or with several by name, all of which must allow a call.

        Arguments:
            name: Any non-empty text.
            limit: The limit: ``TokenBucket(10, per=1.0)``, or a text like ``"10/second"``.
            root: Makes it a budget tree: each limit is charged under a key of its own, which ``keys`` of a call names.
                The root is the name under which all of these are stored together, in a cluster on one node.
            on_backend_error: If the backend fails: ``"raise"`` its error, or ``"allow"`` or ``"deny"`` the call.
            count_denied: Whether denied calls are charged too; not with a `root`.
            cache_denials: Whether this process remembers denials instead of asking again. Charges are never refunded
                then, and `Concurrency` can't be among the limits.
            limits: Several limits: ``requests="60/minute", tokens="100000/minute", parallel=Concurrency(8)``.

        Raises:
            InvalidArgumentError: There is no limit, a text isn't a limit, ``cache_denials`` is used with
                `Concurrency`, or ``count_denied`` with a root.
            UnsupportedError: The backend has no rate limiters, or none with a root.
        """
        self.engine.require(Capability.RATE_LIMITER, "rate limiters")
        if root is not None:
            self.engine.require(Capability.BUDGET_TREES, "rate limiters with a root")
        check_limit_names(name, limits)  # before they stand beside other arguments
        return self.rate_limiter_class(
            name,
            limit,
            root=root,
            on_backend_error=on_backend_error,
            count_denied=count_denied,
            cache_denials=cache_denials,
            engine=self.engine,
            **limits,
        )

    def streams(self, prefix: str = "", *, page_size: int = PAGE) -> Listing[str]:
        """Return the names of the streams that have entries or groups. They are read when it is iterated.

        Arguments:
            prefix: The beginning of the names; every character stands for itself.
            page_size: How many an iteration reads at a time, up to 10,000.

        Raises:
            UnsupportedError: The backend has no streams, or can't list what exists.
        """
        return Listing(*self._listing_of_streams(prefix), page_size)

    def locks(self, prefix: str = "", *, page_size: int = PAGE) -> Listing[HeldLock]:
        """Return the locks and semaphores that are held. They are read when it is iterated.

        Arguments:
            prefix: The beginning of the names; every character stands for itself.
            page_size: How many an iteration reads at a time, up to 10,000.

        Raises:
            UnsupportedError: The backend has no locks, or can't list what exists.
        """
        return Listing(*self._listing_of_locks(prefix), page_size)

    def limiters(self, prefix: str = "", *, page_size: int = PAGE) -> Listing[LimiterName]:
        """Return the keys of rate limiters that are not at full capacity. They are read when it is iterated.

        Arguments:
            prefix: The beginning of the names of the limiters; every character stands for itself.
            page_size: How many an iteration reads at a time, up to 10,000.

        Raises:
            UnsupportedError: The backend has no rate limiters, or can't list what exists.
        """
        return Listing(*self._listing_of_limiters(prefix), page_size)

    def ping(self) -> None:
        """Return when the backend answers; raise the errors of `connect` otherwise."""
        run(_ping(self.engine))

    def to_async(self) -> "AsyncBackend":
        """Return this backend in the other flavour: the same state, settings and instruments.

        It is a backend of its own, with connections of its own. Each of the two is closed by itself: closing one
        doesn't close the other. Enter it, await it, or use it at once.

        Example:
            >>> import asyncio, ailf
            >>> async def main(backend: ailf.AsyncBackend) -> int:
            ...     async with backend:
            ...         return len(await backend.stream("tasks").read())
            >>> with ailf.connect("memory://") as backend:
            ...     first = backend.stream("tasks").add({"page": 1})
            ...     asyncio.run(main(backend.to_async()))
            1

        Raises:
            ClosedError: This backend is closed.
            UnsupportedError: The backend has no asyncio flavour.
        """
        return self._in_flavour(self.async_class, AsyncioRuntime)

    def close(self) -> None:
        """End every blocked call with `ClosedError`, and every connection and thread. It may be called twice."""
        run(self.engine.close())

    def __enter__(self) -> Self:
        """Return the backend itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the backend."""
        self.close()


class AsyncBackend(_BackendBase):
    """An opened backend, for asyncio. Inject it into agents, so that they don't depend on a backend's package.

    >>> import ailf, asyncio
    >>> async def main() -> str:
    ...     async with ailf.connect_async("memory://") as backend:
    ...         return await backend.stream("tasks").add({"page": 1})
    >>> first = asyncio.run(main())

    The tasks of one event loop may share it. Closing it ends every call under way with `ClosedError`.

    A backend package derives its own class from this one, passes its driver to ``__init__``, and may set the attributes
    below to classes of its own.
    """

    blocking_class: ClassVar[type[Backend]] = Backend
    stream_class: ClassVar[type[AsyncStream[Any]]] = AsyncStream
    lock_class: ClassVar[type[AsyncLock]] = AsyncLock
    rate_limiter_class: ClassVar[type[AsyncRateLimiter]] = AsyncRateLimiter
    pubsub_class: ClassVar[type[AsyncPubSub[Any]]] = AsyncPubSub

    @overload
    def pubsub(
        self, *, on_error: ErrorHook | None = None, sharded: bool = False, validate: bool = False
    ) -> AsyncPubSub[Any]: ...

    @overload
    def pubsub(
        self, *, type: TypeForm[T], on_error: ErrorHook | None = None, sharded: bool = False, validate: bool = False
    ) -> AsyncPubSub[T]: ...

    @overload
    def pubsub(
        self, *, type: Codec[T], on_error: ErrorHook | None = None, sharded: bool = False, validate: bool = False
    ) -> AsyncPubSub[T]: ...

    def pubsub(
        self,
        *,
        type: Any = Any,  # noqa: A002 - the API
        on_error: ErrorHook | None = None,
        sharded: bool = False,
        validate: bool = False,
    ) -> AsyncPubSub[Any]:
        """Return the pub/sub interface.

        Arguments:
            type: The type of payloads: ``bytes``, a dataclass, an attrs, msgspec or pydantic class, a union, …; or a
                `Codec` of your own. If it is a class or a union of classes, only instances of it are sent.
            on_error: Called with an exception and the raw message if a message can't be decoded or a handler raises.
            sharded: Whether its channels are sharded channels, each carried by one shard of a cluster, without
                patterns.
            validate: Whether each published payload is decoded before it is sent, so that only what receivers can
                decode is sent.

        Raises:
            UnsupportedError: The backend has no pub/sub, or no sharded channels.
        """
        self.engine.require(Capability.PUBSUB, "pub/sub")
        if sharded:
            self.engine.require(Capability.SHARDED, "sharded channels")
        return self.pubsub_class(type=type, on_error=on_error, sharded=sharded, validate=validate, engine=self.engine)

    @overload
    def stream(
        self,
        name: str,
        *,
        retention: Retention | None = None,
        partitions: int | None = None,
        validate: bool = False,
    ) -> AsyncStream[Any]: ...

    @overload
    def stream(
        self,
        name: str,
        *,
        type: TypeForm[T],
        retention: Retention | None = None,
        partitions: int | None = None,
        validate: bool = False,
    ) -> AsyncStream[T]: ...

    @overload
    def stream(
        self,
        name: str,
        *,
        type: Codec[T],
        retention: Retention | None = None,
        partitions: int | None = None,
        validate: bool = False,
    ) -> AsyncStream[T]: ...

    def stream(
        self,
        name: str,
        *,
        type: Any = Any,  # noqa: A002 - the API
        retention: Retention | None = None,
        partitions: int | None = None,
        validate: bool = False,
    ) -> AsyncStream[Any]:
        """Return the stream of this name. The backend creates it with its first message or group.

        Arguments:
            name: Any non-empty text.
            type: The type of payloads: ``bytes``, a dataclass, an attrs, msgspec or pydantic class, a union, …; or a
                `Codec` of your own. If it is a class or a union of classes, only instances of it are sent.
            retention: Which entries are kept when this object adds one. None keeps all, so the stream grows for ever.
                For a work queue use ``Retention.settled()``. ``max_len`` counts in each partition.
            partitions: The number of partitions, 1 to 256; None for an ordinary stream, which is as 1. Each is a stream
                of its own, on any node of a cluster: see "Partitions" in the guide on streams. All objects of a stream
                must be given the same number; the first one that adds or consumes stores it.
            validate: Whether each added payload is decoded before it is sent, so that only what consumers can decode
                is sent.

        Raises:
            InvalidArgumentError: ``partitions`` is out of bounds. Another number than the stored one is found at the
                first call.
            UnsupportedError: The backend has no streams.
        """
        self.engine.require(Capability.STREAM, "streams")
        return self.stream_class(
            name, type=type, retention=retention, partitions=partitions, validate=validate, engine=self.engine
        )

    def lock(self, *names: str, ttl: float = 30.0, fair: bool = False, renew: bool = True) -> AsyncLock:
        """Return the lock of this name; with several names, a lock that acquires them all at once.

        Arguments:
            names: Any non-empty texts.
            ttl: Seconds after which a lease ends unless it is renewed, such as when its process has died.
            fair: Whether waiters get the lock in the order in which they came.
            renew: Whether leases are renewed until they are released.

        Raises:
            UnsupportedError: The backend has no locks, or no locks of several names.
        """
        require_locks(self.engine, names)
        return self.lock_class(*names, ttl=ttl, fair=fair, renew=renew, engine=self.engine)

    def semaphore(
        self, name: str, permits: int, *, ttl: float = 30.0, fair: bool = False, renew: bool = True
    ) -> AsyncLock:
        """Return a semaphore: a lock with up to ``permits`` holders at once, each with a lease of its own.

        Arguments:
            name: Any non-empty text.
            permits: How many leases may exist at once.
            ttl: As for `lock`.
            fair: As for `lock`.
            renew: As for `lock`.

        Raises:
            UnsupportedError: The backend has no locks.
        """
        self.engine.require(Capability.LOCK, "locks")
        permits = check_count("permits", permits)
        return self.lock_class(name, permits=permits, ttl=ttl, fair=fair, renew=renew, engine=self.engine)

    def rate_limiter(
        self,
        name: str,
        limit: Limit | str | None = None,
        /,
        *,
        root: str | None = None,
        on_backend_error: OnBackendError = "raise",
        count_denied: bool = False,
        cache_denials: bool = False,
        **limits: Limit | str,
    ) -> AsyncRateLimiter:
        """Return a rate limiter with one limit, or with several by name, all of which must allow a call.

        Arguments:
            name: Any non-empty text.
            limit: The limit: ``TokenBucket(10, per=1.0)``, or a text like ``"10/second"``.
            root: Makes it a budget tree: each limit is charged under a key of its own, which ``keys`` of a call names.
                The root is the name under which all of these are stored together, in a cluster on one node.
            on_backend_error: If the backend fails: ``"raise"`` its error, or ``"allow"`` or ``"deny"`` the call.
            count_denied: Whether denied calls are charged too; not with a `root`.
            cache_denials: Whether this process remembers denials instead of asking again. Charges are never refunded
                then, and `Concurrency` can't be among the limits.
            limits: Several limits: ``requests="60/minute", tokens="100000/minute", parallel=Concurrency(8)``.

        Raises:
            InvalidArgumentError: There is no limit, a text isn't a limit, ``cache_denials`` is used with
                `Concurrency`, or ``count_denied`` with a root.
            UnsupportedError: The backend has no rate limiters, or none with a root.
        """
        self.engine.require(Capability.RATE_LIMITER, "rate limiters")
        if root is not None:
            self.engine.require(Capability.BUDGET_TREES, "rate limiters with a root")
        check_limit_names(name, limits)  # before they stand beside other arguments
        return self.rate_limiter_class(
            name,
            limit,
            root=root,
            on_backend_error=on_backend_error,
            count_denied=count_denied,
            cache_denials=cache_denials,
            engine=self.engine,
            **limits,
        )

    def streams(self, prefix: str = "", *, page_size: int = PAGE) -> AsyncListing[str]:
        """Return the names of the streams that have entries or groups. They are read when it is iterated.

        Arguments:
            prefix: The beginning of the names; every character stands for itself.
            page_size: How many an iteration reads at a time, up to 10,000.

        Raises:
            UnsupportedError: The backend has no streams, or can't list what exists.
        """
        return AsyncListing(*self._listing_of_streams(prefix), page_size)

    def locks(self, prefix: str = "", *, page_size: int = PAGE) -> AsyncListing[HeldLock]:
        """Return the locks and semaphores that are held. They are read when it is iterated.

        Arguments:
            prefix: The beginning of the names; every character stands for itself.
            page_size: How many an iteration reads at a time, up to 10,000.

        Raises:
            UnsupportedError: The backend has no locks, or can't list what exists.
        """
        return AsyncListing(*self._listing_of_locks(prefix), page_size)

    def limiters(self, prefix: str = "", *, page_size: int = PAGE) -> AsyncListing[LimiterName]:
        """Return the keys of rate limiters that are not at full capacity. They are read when it is iterated.

        Arguments:
            prefix: The beginning of the names of the limiters; every character stands for itself.
            page_size: How many an iteration reads at a time, up to 10,000.

        Raises:
            UnsupportedError: The backend has no rate limiters, or can't list what exists.
        """
        return AsyncListing(*self._listing_of_limiters(prefix), page_size)

    async def ping(self) -> None:
        """Return when the backend answers; raise the errors of `connect` otherwise."""
        await _ping(self.engine)

    def to_blocking(self) -> Backend:
        """Return this backend in the other flavour: the same state, settings and instruments.

        It is a backend of its own, with connections of its own. Each of the two is closed by itself: closing one
        doesn't close the other. It connects at its first call, and blocks the event loop if
        it is used there.

        Example:
            >>> import asyncio, ailf
            >>> def count(backend: ailf.Backend) -> int:
            ...     with backend:
            ...         return len(backend.stream("tasks").read())
            >>> async def main() -> int:
            ...     async with ailf.connect_async("memory://") as backend:
            ...         await backend.stream("tasks").add({"page": 1})
            ...         return await asyncio.to_thread(count, backend.to_blocking())
            >>> asyncio.run(main())
            1

        Raises:
            ClosedError: This backend is closed.
            UnsupportedError: The backend has no blocking flavour.
        """
        return self._in_flavour(self.blocking_class, ThreadRuntime)

    async def aclose(self) -> None:
        """End every blocked call with `ClosedError`, and every connection and task. It may be called twice."""
        await self.engine.close()

    def __await__(self) -> Generator[Any, None, Self]:
        """Check that the backend answers, and return the backend itself."""
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        """Check that the backend answers, and return the backend itself."""
        try:
            await _open(self.engine, self.engine.patience)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Close the backend."""
        await self.aclose()


Backend.async_class = AsyncBackend  # the two name each other, so this comes below both


async def _ping(engine: Engine) -> None:
    engine.check_open()
    await engine.driver.ping()


async def _open(engine: Engine, wait: float) -> None:
    """Return when the backend answers; retry for ``wait`` seconds after errors that may pass."""
    until = engine.runtime.now() + wait
    tries = 0
    while True:
        try:
            await _ping(engine)
        except AWAY as error:
            left = until - engine.runtime.now()
            if left <= 0:
                raise
            if not tries:
                about = About(engine.driver.url, {"backend": engine.driver.url})
                log.warning(about, "it doesn't answer yet; retrying for up to %g s: %s", wait, error)
        else:
            return
        await engine.pause(min(left, _OPENING_DELAYS[min(tries, len(_OPENING_DELAYS) - 1)]))
        tries += 1
