"""The Redis backend: `RedisBackend` and `AsyncRedisBackend`, and the driver under both."""

from typing import Self, TypeVar

import redis
import redis.asyncio

from ailf.backend import AsyncBackend, Backend
from ailf.errors import InvalidArgumentError
from ailf.lock import AsyncLock, Lock
from ailf.pubsub import AsyncPubSub, PubSub
from ailf.ratelimit import AsyncRateLimiter, RateLimiter
from ailf.runtime import AsyncioRuntime, ThreadRuntime
from ailf.stream import AsyncStream, Stream
from ailf.urls import environment_url, scheme_of
from ailf_redis.driver import RedisDriver
from ailf_redis.settings import DEFAULT_URL, SCHEMES, Settings
from ailf_redis.user_client import UserClient

__all__ = [
    "AsyncRedisBackend",
    "AsyncRedisLock",
    "AsyncRedisPubSub",
    "AsyncRedisRateLimiter",
    "AsyncRedisStream",
    "RedisBackend",
    "RedisLock",
    "RedisPubSub",
    "RedisRateLimiter",
    "RedisStream",
]

T = TypeVar("T")


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
        user_client = UserClient.of(client, "blocking", timeout)
        settings = Settings(
            namespace=namespace,
            timeout=user_client.timeout,
            max_connections=max_connections,
            max_payload=max_payload,
            retry_for=retry_for,
        )
        backend = cls.__new__(cls)
        Backend.__init__(backend, RedisDriver(settings, ThreadRuntime(), user_client), retry_for=retry_for)
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
        user_client = UserClient.of(client, "asyncio", timeout, blocking)
        settings = Settings(
            namespace=namespace,
            timeout=user_client.timeout,
            max_connections=max_connections,
            max_payload=max_payload,
            retry_for=retry_for,
        )
        backend = cls.__new__(cls)
        AsyncBackend.__init__(backend, RedisDriver(settings, AsyncioRuntime(), user_client), retry_for=retry_for)
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
