"""The backend in this process's memory: for unit tests, demos and single-process programs. Same contract as Redis."""

from ailf_memory.backend import AsyncMemoryBackend, MemoryBackend
from ailf_memory.lock import AsyncMemoryLock, MemoryLock
from ailf_memory.pubsub import AsyncMemoryPubSub, MemoryPubSub
from ailf_memory.ratelimit import AsyncMemoryRateLimiter, MemoryRateLimiter
from ailf_memory.store import MemoryStore
from ailf_memory.stream import AsyncMemoryStream, MemoryStream

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
