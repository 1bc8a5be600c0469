"""The root driver of the memory backend: it makes a driver for each interface, over one store."""

from typing import Any

from ailf.checks import check_text
from ailf.driver import BackendDriver, Capability
from ailf.driver.backend import Revocable
from ailf.runtime import Runtime
from ailf.urls import shown
from ailf_memory.lock import MemoryLockDriver
from ailf_memory.pubsub import MemoryPubSubDriver
from ailf_memory.ratelimit import MemoryRateLimiterDriver
from ailf_memory.store import MemoryStore, StoreHandle
from ailf_memory.stream import MemoryStreamDriver

__all__ = ["MAX_PAYLOAD", "MemoryDriver"]

MAX_PAYLOAD = 1024 * 1024


class MemoryDriver(BackendDriver):
    """The root driver over one store."""

    capabilities: frozenset[Capability] = frozenset(
        {
            Capability.PUBSUB,
            Capability.PATTERNS,
            Capability.SHARDED,
            Capability.STREAM,
            Capability.ORDERING,
            Capability.LOCK,
            Capability.SEVERAL_LOCKS,
            Capability.RATE_LIMITER,
            Capability.BUDGET_TREES,
            Capability.LISTING,
        }
    )

    def __init__(
        self, store: MemoryStore, runtime: Runtime, *, url: str = "memory://", max_payload: int = MAX_PAYLOAD
    ) -> None:
        self.store = store
        self.runtime = runtime
        self.url = shown(check_text("url", url))
        self.max_payload = max_payload
        self.handle = StoreHandle(store, runtime, self.url)

    async def ping(self) -> None:
        self.handle.check_open()

    async def close(self) -> None:
        self.handle.closed = True

    def interrupt(self) -> None:
        self.handle.closed = True

    def abandon(self) -> bool:
        self.handle.closed = True
        with self.store.lock:
            own = [each for each in self.store.listeners if each.is_of(self.handle)]
            # A new list, since this may run within an iteration over the old one, by the garbage collector.
            self.store.listeners = [each for each in self.store.listeners if each not in own]
        return bool(own)

    def with_runtime(self, runtime: Runtime) -> "MemoryDriver":
        return MemoryDriver(self.store, runtime, url=self.url, max_payload=self.max_payload)

    def pubsub(self) -> MemoryPubSubDriver:
        return MemoryPubSubDriver(self.handle)

    def lock(self) -> MemoryLockDriver:
        return MemoryLockDriver(self.handle)

    def rate_limiter(self) -> MemoryRateLimiterDriver:
        return MemoryRateLimiterDriver(self.handle)

    def stream(self) -> MemoryStreamDriver:
        return MemoryStreamDriver(self.handle)

    def watch(self, token: str, lease: Revocable) -> None:
        self.store.leases[token] = lease

    def unwrap(self, kind: type[Any]) -> Any:
        return self.store if isinstance(self.store, kind) else None
