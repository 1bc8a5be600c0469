"""The Redis backend: `RedisBackend` and `AsyncRedisBackend`, and the driver under both."""

from typing import Any, Self, TypeVar

import redis
import redis.asyncio

from ailf.backend import AsyncBackend, Backend
from ailf.driver import BackendDriver, Capability
from ailf.errors import ClosedError, InvalidArgumentError, PermissionDeniedError, UnsupportedError
from ailf.lock import AsyncLock, Lock
from ailf.pubsub import AsyncPubSub, PubSub
from ailf.ratelimit import AsyncRateLimiter, RateLimiter
from ailf.runtime import AsyncioRuntime, Runtime, ThreadRuntime
from ailf.stream import AsyncStream, Stream
from ailf.urls import environment_url, scheme_of
from ailf_redis.brought import Brought
from ailf_redis.cluster import ClusterExecutor
from ailf_redis.connection import Executor
from ailf_redis.errors import MISREAD, mapped, misread
from ailf_redis.keys import Keys
from ailf_redis.lock import RedisLockDriver
from ailf_redis.pool import BlockingExecutor
from ailf_redis.pubsub import RedisPubSubDriver
from ailf_redis.ratelimit import RedisRateLimiterDriver
from ailf_redis.raw import RawClient
from ailf_redis.replies import text
from ailf_redis.settings import DEFAULT_URL, SCHEMES, Settings
from ailf_redis.shards import ClusterPubSubDriver
from ailf_redis.stream import RedisStreamDriver
from ailf_redis.wire import AsyncioExecutor

__all__ = [
    "AsyncRedisBackend",
    "AsyncRedisLock",
    "AsyncRedisPubSub",
    "AsyncRedisRateLimiter",
    "AsyncRedisStream",
    "RedisBackend",
    "RedisDriver",
    "RedisLock",
    "RedisPubSub",
    "RedisRateLimiter",
    "RedisStream",
]

T = TypeVar("T")

OLDEST = (6, 2)
"""The oldest server that has what the scripts use (XAUTOCLAIM's release: XPENDING IDLE, exclusive ranges)."""


class RedisDriver(BackendDriver):
    """The drivers over one server."""

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
            Capability.PROCESSES,
        }
    )

    def __init__(self, settings: Settings, runtime: Runtime, brought: Brought | None = None) -> None:
        self.settings = settings
        self.runtime = runtime
        self.max_payload = settings.max_payload
        self.timeout = settings.timeout
        self.executor = _executor(settings, runtime, brought)
        self.keys = Keys(settings.namespace, cluster=isinstance(self.executor, ClusterExecutor))
        self.url = self.executor.where
        if isinstance(self.executor, ClusterExecutor):
            self.capabilities -= {Capability.SEVERAL_LOCKS}  # names are of different slots
        self._brought = brought
        self._raw = RawClient(settings.client_options(on_asyncio=True))
        self._raw_blocking: redis.Redis | None = None

    async def ping(self) -> None:
        (hello,) = await self.executor.call_many([("HELLO",)])
        if isinstance(hello, Exception):
            error = mapped(hello, self.url, sent=True)
            if isinstance(error, PermissionDeniedError) and "hello" in str(hello).lower():
                await self.executor.call("PING")  # a user who may not HELLO: the version stays unknown
                return
            if "unknown command" in str(hello).lower() or "wrong number" in str(hello).lower():
                raise self._too_old("before 6.2") from hello
            raise error from hello
        try:
            told = dict(zip(hello[::2], hello[1::2], strict=True))
            version = text(told.get(b"version", b"0"))
        except MISREAD as error:
            raise misread(error, self.url) from error
        if told.get(b"server") == b"fakeredis":  # its version is its own
            return
        if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST:
            raise self._too_old(version)
        if version.startswith("6."):
            self.capabilities -= {Capability.SHARDED}

    def _too_old(self, version: str) -> UnsupportedError:
        return UnsupportedError(
            f"the server at {self.url} is too old ({version}); ailf needs Redis 6.2, Valkey 7.2 or newer"
        )

    async def close(self) -> None:
        await self.executor.close()
        await self._raw.aclose()
        if self._raw_blocking is not None:
            self._raw_blocking.close()

    def interrupt(self) -> None:
        self.executor.interrupt()

    def abandon(self) -> bool:
        return self.executor.abandon()

    def twin(self, runtime: Runtime) -> "RedisDriver":
        return RedisDriver(self.settings, runtime, self._brought)

    def pubsub(self) -> RedisPubSubDriver:
        if isinstance(self.executor, ClusterExecutor):
            return ClusterPubSubDriver(self.executor, self.keys)
        return RedisPubSubDriver(self.executor, self.keys)

    def lock(self) -> RedisLockDriver:
        return RedisLockDriver(self.executor, self.keys)

    def rate_limiter(self) -> RedisRateLimiterDriver:
        return RedisRateLimiterDriver(self.executor, self.keys)

    def stream(self) -> RedisStreamDriver:
        return RedisStreamDriver(self.executor, self.keys)

    def unwrap(self, kind: type[Any]) -> Any:
        if self._brought is not None:
            return self._brought.client if isinstance(self._brought.client, kind) else None
        on_asyncio = self.runtime.flavour == "asyncio"
        if kind is not (redis.asyncio.Redis if on_asyncio else redis.Redis):
            return None
        if self.executor.closed:
            raise ClosedError(f"the backend {self.url} is closed")
        if on_asyncio:
            return self._raw.get()
        if self._raw_blocking is None:
            self._raw_blocking = redis.Redis(**self.settings.client_options(on_asyncio=False))
        return self._raw_blocking


def _executor(settings: Settings, runtime: Runtime, brought: Brought | None) -> Executor:
    if brought is not None:
        return brought.executor(settings, runtime)
    return AsyncioExecutor(settings) if runtime.flavour == "asyncio" else BlockingExecutor(settings)


def _settings(where: str | Settings | None) -> Settings:
    if isinstance(where, Settings):
        return where
    if where is not None:
        return Settings.from_url(where)
    url = environment_url()
    if url is not None and scheme_of(url) not in SCHEMES:
        raise InvalidArgumentError(
            f"AILF_URL is a {scheme_of(url)}:// URL, and this is the Redis backend: give it a URL of its own, or use "
            "ailf.connect, which opens whatever AILF_URL names"
        )
    return Settings.from_url(DEFAULT_URL if url is None else url)


class RedisBackend(Backend):
    """The Redis backend, blocking. It connects at the first call; `ailf.connect` checks at once.

    Arguments:
        where: A URL or `Settings`. None: ``$AILF_URL``, or where that is not set ``redis://localhost:6379/0``.

    Raises:
        InvalidArgumentError: The URL is not understood, or ``AILF_URL`` is empty or names another backend.
    """

    def __init__(self, where: str | Settings | None = None) -> None:
        settings = _settings(where)
        super().__init__(RedisDriver(settings, ThreadRuntime()), retry_for=settings.retry_for)

    @classmethod
    def from_client(
        cls,
        client: redis.Redis | redis.RedisCluster,
        *,
        namespace: str = "ailf",
        timeout: float | None = None,
        max_connections: int = 64,
        max_payload: int = 1024 * 1024,
        retry_for: float = 5.0,
    ) -> Self:
        """Return a backend on the server, the Sentinels or the cluster of a redis-py client that you have.

        It makes connections of its own, with the client's address, credentials and TLS. The client stays yours: its
        connections and its retries are not used, and closing the backend doesn't close it. `unwrap` returns it.
        As with a URL given to this class, it connects at the first call.

        Arguments:
            client: ``redis.Redis(…)``, ``Sentinel(…).master_for(…)``, ``redis.RedisCluster(…)`` or
                ``fakeredis.FakeRedis()``.
            namespace: What all keys and channels begin with; "" for plain names that other programs share.
            timeout: Seconds for one call; None: the client's ``socket_timeout``, or 5 where that is None.
            max_connections: How many connections calls may use at once, in a cluster for each node; further ones wait.
            max_payload: The largest body in bytes.
            retry_for: For how many seconds a request is repeated where that does no harm.

        Raises:
            InvalidArgumentError: It is not a blocking client of redis-py, or one of replicas.
        """
        brought = Brought.of(client, "blocking", timeout)
        settings = Settings(
            namespace=namespace,
            timeout=brought.timeout,
            max_connections=max_connections,
            max_payload=max_payload,
            retry_for=retry_for,
        )
        backend = cls.__new__(cls)
        Backend.__init__(backend, RedisDriver(settings, ThreadRuntime(), brought), retry_for=retry_for)
        return backend


class AsyncRedisBackend(AsyncBackend):
    """The Redis backend, for asyncio. It connects at the first call; entering it checks at once.

    Arguments:
        where: A URL or `Settings`. None: ``$AILF_URL``, or where that is not set ``redis://localhost:6379/0``.

    Raises:
        InvalidArgumentError: The URL is not understood, or ``AILF_URL`` is empty or names another backend.
    """

    def __init__(self, where: str | Settings | None = None) -> None:
        settings = _settings(where)
        super().__init__(RedisDriver(settings, AsyncioRuntime()), retry_for=settings.retry_for)

    @classmethod
    def from_client(
        cls,
        client: redis.asyncio.Redis | redis.asyncio.RedisCluster,
        *,
        blocking: redis.Redis | redis.RedisCluster | None = None,
        namespace: str = "ailf",
        timeout: float | None = None,
        max_connections: int = 64,
        max_payload: int = 1024 * 1024,
        retry_for: float = 5.0,
    ) -> Self:
        """Return a backend on the server, the Sentinels or the cluster of a ``redis.asyncio`` client that you have.

        It makes connections of its own, with the client's address, credentials and TLS. The client stays yours: its
        connections and its retries are not used, and closing the backend doesn't close it. `unwrap` returns it.
        As with a URL given to this class, it connects at the first call, or when it is entered.

        Arguments:
            client: A ``redis.asyncio`` client: ``Redis(…)``, ``Sentinel(…).master_for(…)``, ``RedisCluster(…)``, or
                ``fakeredis.FakeAsyncRedis()``.
            blocking: A blocking client on the same server, for the thread that renews leases; None: connections like
                the client's are made, which is possible unless their class is your own.
            namespace: What all keys and channels begin with; "" for plain names that other programs share.
            timeout: Seconds for one call; None: the client's ``socket_timeout``, or 5 where that is None.
            max_connections: How many connections calls may use at once, in a cluster for each node; further ones wait.
            max_payload: The largest body in bytes.
            retry_for: For how many seconds a request is repeated where that does no harm.

        Raises:
            InvalidArgumentError: It is not a client of ``redis.asyncio``, or one of replicas.
            UnsupportedError: Its connections are of a class of your own, and there is no ``blocking``.
        """
        brought = Brought.of(client, "asyncio", timeout, blocking)
        settings = Settings(
            namespace=namespace,
            timeout=brought.timeout,
            max_connections=max_connections,
            max_payload=max_payload,
            retry_for=retry_for,
        )
        backend = cls.__new__(cls)
        AsyncBackend.__init__(backend, RedisDriver(settings, AsyncioRuntime(), brought), retry_for=retry_for)
        return backend


class RedisStream(Stream[T], opens=RedisBackend):
    """`Stream` over Redis; one made alone opens ``$AILF_URL``, or if unset ``redis://localhost:6379/0``."""


class AsyncRedisStream(AsyncStream[T], opens=AsyncRedisBackend):
    """`AsyncStream` over Redis; one made alone opens ``$AILF_URL``, or if unset ``redis://localhost:6379/0``."""


class RedisPubSub(PubSub[T], opens=RedisBackend):
    """`PubSub` over Redis; one made alone opens ``$AILF_URL``, or if unset ``redis://localhost:6379/0``."""


class AsyncRedisPubSub(AsyncPubSub[T], opens=AsyncRedisBackend):
    """`AsyncPubSub` over Redis; one made alone opens ``$AILF_URL``, or if unset ``redis://localhost:6379/0``."""


class RedisLock(Lock, opens=RedisBackend):
    """`Lock` over Redis; one made alone opens ``$AILF_URL``, or if unset ``redis://localhost:6379/0``."""


class AsyncRedisLock(AsyncLock, opens=AsyncRedisBackend):
    """`AsyncLock` over Redis; one made alone opens ``$AILF_URL``, or if unset ``redis://localhost:6379/0``."""


class RedisRateLimiter(RateLimiter, opens=RedisBackend):
    """`RateLimiter` over Redis; one made alone opens ``$AILF_URL``, or if unset ``redis://localhost:6379/0``."""


class AsyncRedisRateLimiter(AsyncRateLimiter, opens=AsyncRedisBackend):
    """`AsyncRateLimiter` over Redis; made alone it opens ``$AILF_URL``, or if unset the default server."""


# A backend's class and those of what it hands out name each other, so these stand below both.
RedisBackend.stream_class = RedisStream
RedisBackend.pubsub_class = RedisPubSub
RedisBackend.lock_class = RedisLock
RedisBackend.rate_limiter_class = RedisRateLimiter
AsyncRedisBackend.stream_class = AsyncRedisStream
AsyncRedisBackend.pubsub_class = AsyncRedisPubSub
AsyncRedisBackend.lock_class = AsyncRedisLock
AsyncRedisBackend.rate_limiter_class = AsyncRedisRateLimiter
