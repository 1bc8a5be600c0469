"""The plugins that open the URLs of Redis and Valkey for `ailf.connect`."""

from collections.abc import Mapping
from typing import Any

from ailf.hookspecs import hookimpl
from ailf_redis.backend import AsyncRedisBackend, RedisBackend
from ailf_redis.settings import Settings

__all__ = [
    "redis",
    "redis_cluster",
    "redis_sentinel",
    "rediss",
    "rediss_cluster",
    "rediss_sentinel",
    "unix",
    "valkey",
    "valkeys",
]


class _RedisPlugin:
    """The plugin of one scheme. There is one object per scheme, as pluggy registers an object under one name only."""

    @hookimpl
    def ailf_connect(self, url: str, options: Mapping[str, Any]) -> RedisBackend:
        """Return the blocking backend of this URL."""
        return RedisBackend(Settings.from_url(url, **options))

    @hookimpl
    def ailf_connect_async(self, url: str, options: Mapping[str, Any]) -> AsyncRedisBackend:
        """Return the asyncio backend of this URL."""
        return AsyncRedisBackend(Settings.from_url(url, **options))


redis = _RedisPlugin()
rediss = _RedisPlugin()
valkey = _RedisPlugin()
valkeys = _RedisPlugin()
redis_sentinel = _RedisPlugin()
rediss_sentinel = _RedisPlugin()
redis_cluster = _RedisPlugin()
rediss_cluster = _RedisPlugin()
unix = _RedisPlugin()
