"""The backend in the memory of one process: for tests, demos and single-process programs. Same contract as Redis."""

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


def __dir__() -> list[str]:
    """Show the public names, not the modules that they come from."""
    return __all__
