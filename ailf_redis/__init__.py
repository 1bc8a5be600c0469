"""The backend over Redis and Valkey: `RedisBackend`, `AsyncRedisBackend`, and the standalone classes over them."""

from ailf_redis.backend import (
    AsyncRedisBackend,
    AsyncRedisLock,
    AsyncRedisPubSub,
    AsyncRedisRateLimiter,
    AsyncRedisStream,
    RedisBackend,
    RedisLock,
    RedisPubSub,
    RedisRateLimiter,
    RedisStream,
)
from ailf_redis.settings import Settings

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
    "Settings",
]


def __dir__() -> list[str]:
    """List the public names, not the modules that define them."""
    return __all__
