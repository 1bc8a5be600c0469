"""The backend in this process's memory: for unit tests, demos and single-process programs. Same contract as Redis."""

from ailf_memory.backend import AsyncMemoryBackend, MemoryBackend
from ailf_memory.pubsub import AsyncMemoryPubSub, MemoryPubSub
from ailf_memory.store import MemoryStore
from ailf_memory.stream import AsyncMemoryStream, MemoryStream

__all__ = [
    "AsyncMemoryBackend",
    "AsyncMemoryPubSub",
    "AsyncMemoryStream",
    "MemoryBackend",
    "MemoryPubSub",
    "MemoryStore",
    "MemoryStream",
]
