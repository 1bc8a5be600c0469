"""The names of `ailf.messaging.redis`, for programs for earlier AILF. It is imported on first use of a name."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ailf.messaging.redis import (
        AsyncRedisClient,
        RedisClient,
        RedisConfig,
        RedisLock,
        RedisPubSub,
        RedisRateLimiter,
        RedisStream,
    )

__all__ = [
    "AsyncRedisClient",
    "RedisClient",
    "RedisConfig",
    "RedisLock",
    "RedisPubSub",
    "RedisRateLimiter",
    "RedisStream",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("ailf.messaging.redis"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
