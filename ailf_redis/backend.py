"""The Redis backend: `RedisBackend` and `AsyncRedisBackend`, and the driver under both."""

import os
from typing import Any, ClassVar

import redis
import redis.asyncio

from ailf.backend import AsyncBackend, Backend
from ailf.driver import BackendDriver, Capability
from ailf.errors import ClosedError, PermissionDeniedError, UnsupportedError
from ailf.lock import AsyncLock, Lock
from ailf.pubsub import AsyncPubSub, PubSub
from ailf.ratelimit import AsyncRateLimiter, RateLimiter
from ailf.runtime import AsyncioRuntime, Runtime, ThreadRuntime
from ailf.stream import AsyncStream, Stream
from ailf_redis.errors import mapped
from ailf_redis.keys import Keys
from ailf_redis.lock import AsyncRedisLock, RedisLock, RedisLockDriver
from ailf_redis.pool import BlockingExecutor
from ailf_redis.pubsub import AsyncRedisPubSub, RedisPubSub, RedisPubSubDriver
from ailf_redis.ratelimit import AsyncRedisRateLimiter, RedisRateLimiter, RedisRateLimiterDriver
from ailf_redis.replies import text
from ailf_redis.settings import DEFAULT_URL, Settings
from ailf_redis.stream import AsyncRedisStream, RedisStream, RedisStreamDriver
from ailf_redis.wire import AsyncioExecutor

__all__ = ["AsyncRedisBackend", "RedisBackend", "RedisDriver"]

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
            Capability.RATE_LIMITER,
            Capability.PROCESSES,
        }
    )

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        self.settings = settings
        self.runtime = runtime
        self.url = settings.url
        self.max_payload = settings.max_payload
        self.keys = Keys(settings.namespace)
        self.executor = AsyncioExecutor(settings) if runtime.flavour == "asyncio" else BlockingExecutor(settings)
        self._raw: Any = None

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
        told = dict(zip(hello[::2], hello[1::2], strict=True))
        version = text(told.get(b"version", b"0"))
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
        raw, self._raw = self._raw, None
        if isinstance(raw, redis.Redis):
            raw.close()
        elif raw is not None:
            await raw.aclose()

    def interrupt(self) -> None:
        self.executor.interrupt()

    def twin(self, runtime: Runtime) -> "RedisDriver":
        return RedisDriver(self.settings, runtime)

    def pubsub(self) -> RedisPubSubDriver:
        return RedisPubSubDriver(self)

    def lock(self) -> RedisLockDriver:
        return RedisLockDriver(self)

    def rate_limiter(self) -> RedisRateLimiterDriver:
        return RedisRateLimiterDriver(self)

    def stream(self) -> RedisStreamDriver:
        return RedisStreamDriver(self)

    def unwrap(self, kind: type[Any]) -> Any:
        raw = redis.asyncio.Redis if self.runtime.flavour == "asyncio" else redis.Redis
        if kind is not raw:
            return None
        if self.executor.closed:
            raise ClosedError(f"the backend {self.url} is closed")
        if self._raw is None:
            self._raw = raw(**self.settings.client_options())
        return self._raw


def _settings(where: str | Settings | None) -> Settings:
    if isinstance(where, Settings):
        return where
    named = os.environ.get("AILF_URL", "")
    fallback = named if named.startswith(("redis://", "rediss://", "unix://")) else DEFAULT_URL
    return Settings.from_url(where or fallback)


class RedisBackend(Backend):
    """The Redis backend, blocking. It connects at the first call; `ailf.connect` checks at once.

    Arguments:
        where: A URL or `Settings`. None: ``$AILF_URL`` where that is Redis, else ``redis://localhost:6379/0``.
    """

    stream_class: ClassVar[type[Stream[Any]]] = RedisStream
    lock_class: ClassVar[type[Lock]] = RedisLock
    rate_limiter_class: ClassVar[type[RateLimiter]] = RedisRateLimiter
    pubsub_class: ClassVar[type[PubSub[Any]]] = RedisPubSub

    def __init__(self, where: str | Settings | None = None) -> None:
        settings = _settings(where)
        super().__init__(RedisDriver(settings, ThreadRuntime()), retry_for=settings.retry_for)


class AsyncRedisBackend(AsyncBackend):
    """The Redis backend, for asyncio. It connects at the first call; entering it checks at once.

    Arguments:
        where: A URL or `Settings`. None: ``$AILF_URL`` where that is Redis, else ``redis://localhost:6379/0``.
    """

    stream_class: ClassVar[type[AsyncStream[Any]]] = AsyncRedisStream
    lock_class: ClassVar[type[AsyncLock]] = AsyncRedisLock
    rate_limiter_class: ClassVar[type[AsyncRateLimiter]] = AsyncRedisRateLimiter
    pubsub_class: ClassVar[type[AsyncPubSub[Any]]] = AsyncRedisPubSub

    def __init__(self, where: str | Settings | None = None) -> None:
        settings = _settings(where)
        super().__init__(RedisDriver(settings, AsyncioRuntime()), retry_for=settings.retry_for)
