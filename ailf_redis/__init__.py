"""The backend over Redis and Valkey."""

from ailf_redis.backend import AsyncRedisBackend, RedisBackend
from ailf_redis.lock import AsyncRedisLock, RedisLock
from ailf_redis.pubsub import AsyncRedisPubSub, RedisPubSub
from ailf_redis.ratelimit import AsyncRedisRateLimiter, RedisRateLimiter
from ailf_redis.settings import Settings
from ailf_redis.stream import AsyncRedisStream, RedisStream

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
