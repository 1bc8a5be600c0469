"""The public classes over Redis: the two backends, and the interfaces that can stand alone."""

from typing import Self

import redis
import redis.asyncio

from ailf.backend import AsyncBackend, Backend
from ailf.errors import InvalidArgumentError
from ailf.lock import AsyncLock, Lock
from ailf.payload_types import T
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


def _settings(where: str | Settings | None) -> Settings:
    settings = _read(where)
    settings.check_files()
    return settings


def _read(where: str | Settings | None) -> Settings:
    if isinstance(where, Settings):
        return where
    if where is not None:
        return Settings.from_url(where)
    url = environment_url()
    if url is not None and scheme_of(url) not in SCHEMES:
        raise InvalidArgumentError(
            f"can't open the Redis backend: AILF_URL is a {scheme_of(url)}:// URL. Pass a redis:// URL, or use "
            "ailf.connect, which opens any backend that AILF_URL names"
        )
    return Settings.from_url(DEFAULT_URL if url is None else url)


class RedisBackend(Backend):
    """The blocking Redis backend. It connects at the first call; `ailf.connect` connects at once.

    >>> from ailf_redis import RedisBackend
    >>> with RedisBackend("redis://localhost:6379/0") as backend:
    ...     entry_id = backend.stream("orders").add({"teas": 2})

    Arguments:
        where: A URL or `Settings`. None: ``$AILF_URL``, or ``redis://localhost:6379/0`` if that is not set.

    Raises:
        InvalidArgumentError: The URL is invalid, a file of TLS can't be used, or ``AILF_URL`` is empty or names another
            backend.
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
        """Return a backend on the server, the Sentinels or the cluster of an existing redis-py client.

        The backend makes connections of its own, with the client's address, credentials and TLS. It uses neither the
        client's connections nor its retries, and closing it doesn't close the client. `unwrap` returns the client. The
        backend connects at the first call.

        Arguments:
            client: ``redis.Redis(…)``, ``Sentinel(…).master_for(…)``, ``redis.RedisCluster(…)`` or
                ``fakeredis.FakeRedis()``.
            namespace: The prefix of all keys and channels; "" for plain names that are shared with other programs.
            timeout: Seconds for one call, and the most for making a connection. None: the client's ``socket_timeout``,
                or 5 if that is None, and its ``socket_connect_timeout``.
            max_connections: The most connections that calls use at once, in a cluster per node; further calls wait.
            max_payload: The largest body in bytes.
            retry_for: For how many seconds a request is repeated where repeating it is safe.

        Raises:
            InvalidArgumentError: ``client`` is not a blocking client of redis-py, or is a client of replicas.
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
    """The asyncio Redis backend. It connects when it is entered, or else at the first call.

    >>> import asyncio
    >>> from ailf_redis import AsyncRedisBackend
    >>> async def main() -> None:
    ...     async with AsyncRedisBackend("redis://localhost:6379/0") as backend:
    ...         entry_id = await backend.stream("orders").add({"teas": 2})
    >>> asyncio.run(main())

    Arguments:
        where: A URL or `Settings`. None: ``$AILF_URL``, or ``redis://localhost:6379/0`` if that is not set.

    Raises:
        InvalidArgumentError: The URL is invalid, a file of TLS can't be used, or ``AILF_URL`` is empty or names another
            backend.
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
        """Return a backend on the server, the Sentinels or the cluster of an existing ``redis.asyncio`` client.

        The backend makes connections of its own, with the client's address, credentials and TLS. It uses neither the
        client's connections nor its retries, and closing it doesn't close the client. `unwrap` returns the client. The
        backend connects when it is entered, or else at the first call.

        Arguments:
            client: A ``redis.asyncio`` client: ``Redis(…)``, ``Sentinel(…).master_for(…)``, ``RedisCluster(…)``, or
                ``fakeredis.FakeAsyncRedis()``.
            blocking: A blocking client on the same server, for the thread that renews leases. None: that thread makes
                connections like the client's; this fails if their class is not redis-py's.
            namespace: The prefix of all keys and channels; "" for plain names that are shared with other programs.
            timeout: Seconds for one call, and the most for making a connection. None: the client's ``socket_timeout``,
                or 5 if that is None, and its ``socket_connect_timeout``.
            max_connections: The most connections that calls use at once, in a cluster per node; further calls wait.
            max_payload: The largest body in bytes.
            retry_for: For how many seconds a request is repeated where repeating it is safe.

        Raises:
            InvalidArgumentError: ``client`` is not a client of ``redis.asyncio``, or is a client of replicas.
            UnsupportedError: The client's connections are of a class of your own, and ``blocking`` is None.
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
    """`Stream` over Redis. A standalone object opens ``$AILF_URL``, or the default of `RedisBackend`.

    >>> from ailf_redis import RedisStream
    >>> with RedisStream("orders") as orders:
    ...     entry_id = orders.add({"teas": 2})
    ...     assert len(orders.read()) == 1
    """


class AsyncRedisStream(AsyncStream[T], opens=AsyncRedisBackend):
    """`AsyncStream` over Redis. A standalone object opens ``$AILF_URL``, or the default of `AsyncRedisBackend`.

    >>> import asyncio
    >>> from ailf_redis import AsyncRedisStream
    >>> async def main() -> None:
    ...     async with AsyncRedisStream("orders") as orders:
    ...         entry_id = await orders.add({"teas": 2})
    ...         assert len(await orders.read()) == 1
    >>> asyncio.run(main())
    """


class RedisPubSub(PubSub[T], opens=RedisBackend):
    """`PubSub` over Redis. A standalone object opens ``$AILF_URL``, or the default of `RedisBackend`.

    >>> from ailf_redis import RedisPubSub
    >>> with RedisPubSub() as pubsub:
    ...     pubsub.publish("news", "hello")
    """


class AsyncRedisPubSub(AsyncPubSub[T], opens=AsyncRedisBackend):
    """`AsyncPubSub` over Redis. A standalone object opens ``$AILF_URL``, or the default of `AsyncRedisBackend`.

    >>> import asyncio
    >>> from ailf_redis import AsyncRedisPubSub
    >>> async def main() -> None:
    ...     async with AsyncRedisPubSub() as pubsub:
    ...         await pubsub.publish("news", "hello")
    >>> asyncio.run(main())
    """


class RedisLock(Lock, opens=RedisBackend):
    """`Lock` over Redis. A standalone object opens ``$AILF_URL``, or the default of `RedisBackend`.

    >>> from ailf_redis import RedisLock
    >>> lock = RedisLock("report")
    >>> with lock as lease:
    ...     assert not lease.lost
    >>> lock.close()
    """


class AsyncRedisLock(AsyncLock, opens=AsyncRedisBackend):
    """`AsyncLock` over Redis. A standalone object opens ``$AILF_URL``, or the default of `AsyncRedisBackend`.

    >>> import asyncio
    >>> from ailf_redis import AsyncRedisLock
    >>> async def main() -> None:
    ...     lock = AsyncRedisLock("report")
    ...     async with lock as lease:
    ...         assert not lease.lost
    ...     await lock.aclose()
    >>> asyncio.run(main())
    """


class RedisRateLimiter(RateLimiter, opens=RedisBackend):
    """`RateLimiter` over Redis. A standalone object opens ``$AILF_URL``, or the default of `RedisBackend`.

    >>> from ailf_redis import RedisRateLimiter
    >>> limiter = RedisRateLimiter("api", "60/minute")
    >>> limiter.try_acquire("ann").remaining
    59
    >>> limiter.close()
    """


class AsyncRedisRateLimiter(AsyncRateLimiter, opens=AsyncRedisBackend):
    """`AsyncRateLimiter` over Redis. A standalone object opens ``$AILF_URL``, or the default of `AsyncRedisBackend`.

    >>> import asyncio
    >>> from ailf_redis import AsyncRedisRateLimiter
    >>> async def main() -> None:
    ...     limiter = AsyncRedisRateLimiter("api", "60/minute")
    ...     assert (await limiter.try_acquire("ann")).remaining == 59
    ...     await limiter.aclose()
    >>> asyncio.run(main())
    """


# A backend names the classes that it hands out, and these name their backend: so it is assigned below both.
RedisBackend.async_class = AsyncRedisBackend
RedisBackend.stream_class = RedisStream
RedisBackend.pubsub_class = RedisPubSub
RedisBackend.lock_class = RedisLock
RedisBackend.rate_limiter_class = RedisRateLimiter
AsyncRedisBackend.blocking_class = RedisBackend
AsyncRedisBackend.stream_class = AsyncRedisStream
AsyncRedisBackend.pubsub_class = AsyncRedisPubSub
AsyncRedisBackend.lock_class = AsyncRedisLock
AsyncRedisBackend.rate_limiter_class = AsyncRedisRateLimiter
