"""The backend in this process's memory: for unit tests, demos and single-process programs. Same contract as Redis."""

from ailf_memory.backend import (
    AsyncMemoryBackend,
    AsyncMemoryLock,
    AsyncMemoryPubSub,
    AsyncMemoryRateLimiter,
    AsyncMemoryStream,
    MemoryBackend,
    MemoryLock,
    MemoryPubSub,
    MemoryRateLimiter,
    MemoryStream,
)
from ailf_memory.store import MemoryStore

__all__ = [
    "AsyncMemoryBackend",
    "AsyncMemoryLock",
    "AsyncMemoryPubSub",
    "AsyncMemoryRateLimiter",
    "AsyncMemoryStream",
    "MemoryBackend",
    "MemoryLock",
    "MemoryPubSub",
    "MemoryRateLimiter",
    "MemoryStore",
    "MemoryStream",
]
