"""The backend over Redis and Valkey."""

from ailf_redis.backend import AsyncRedisBackend, RedisBackend
from ailf_redis.pubsub import AsyncRedisPubSub, RedisPubSub
from ailf_redis.settings import Settings
from ailf_redis.stream import AsyncRedisStream, RedisStream

__all__ = [
    "AsyncRedisBackend",
    "AsyncRedisPubSub",
    "AsyncRedisStream",
    "RedisBackend",
    "RedisPubSub",
    "RedisStream",
    "Settings",
]
