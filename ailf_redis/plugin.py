"""The plugins that open ``redis://``, ``rediss://`` and ``unix://`` URLs for `ailf.connect`."""

from ailf.hookspecs import hookimpl
from ailf_redis.backend import AsyncRedisBackend, RedisBackend

__all__ = ["redis", "rediss", "unix"]


class _RedisPlugin:
    """The plugin of one scheme. There is one object per scheme, as pluggy registers an object under one name only."""

    @hookimpl
    def ailf_connect(self, url: str) -> RedisBackend:
        """Return the blocking backend of this URL."""
        return RedisBackend(url)

    @hookimpl
    def ailf_connect_async(self, url: str) -> AsyncRedisBackend:
        """Return the asyncio backend of this URL."""
        return AsyncRedisBackend(url)


redis = _RedisPlugin()
rediss = _RedisPlugin()
unix = _RedisPlugin()
