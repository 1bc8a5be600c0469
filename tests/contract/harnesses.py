"""The harnesses of our own backends."""

from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis

import ailf
from ailf.testing import ManualClock
from ailf_memory import AsyncMemoryBackend, MemoryBackend, MemoryStore
from ailf_redis.keys import Keys
from contract_tests.harness import Harness, UrlHarness

__all__ = ["MemoryHarness", "RedisHarness"]


class MemoryHarness(Harness):
    """Memory with a clock that is moved: no test waits for time to pass."""

    lease = 30.0
    blink = 0.0
    url = "memory://contract"
    blocking: type[ailf.Backend] = MemoryBackend
    on_asyncio: type[ailf.AsyncBackend] = AsyncMemoryBackend

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store: Any = MemoryStore(self.clock)
        self.capabilities = MemoryBackend().capabilities

    def connect(self) -> ailf.Backend:
        """Open a blocking backend on the store."""
        return self.blocking(store=self.store)  # type: ignore[call-arg]  # a memory backend's

    def connect_async(self) -> ailf.AsyncBackend:
        """Open an asyncio backend on the store."""
        return self.on_asyncio(store=self.store)  # type: ignore[call-arg]  # a memory backend's

    def elsewhere(self) -> Harness:
        """Return a harness on a store of its own."""
        return type(self)()

    async def advance(self, seconds: float) -> None:
        """Move the clock."""
        self.clock.advance(seconds)

    async def step_back(self, seconds: float) -> None:
        """Set the clock back."""
        self.clock.step_back(seconds)

    def now(self) -> float:
        """Return what the clock shows."""
        return self.clock.now_ms() / 1000

    async def interrupt_subscriptions(self) -> None:
        """Break every subscription as a lost connection would."""
        self.store.break_subscriptions()


class RedisHarness(UrlHarness):
    """A Redis server, and what another program may do to it."""

    async def interrupt_subscriptions(self) -> None:
        """Have the server cut every subscriber."""
        with redis.Redis.from_url(self._base) as raw:
            raw.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    async def add_foreign(self, stream: str) -> None:
        """Add an entry with fields of another program's."""
        (namespace,) = parse_qs(urlsplit(self._url).query)["namespace"]
        with redis.Redis.from_url(self._base) as raw:
            raw.xadd(Keys(namespace).stream(stream), {"job": "sweep"})
