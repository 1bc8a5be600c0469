"""The backend over Redis and Valkey."""

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
    """Show the public names, not the modules that they come from."""
    return __all__
