"""The harnesses of our own backends."""

from typing import Any

import ailf
from ailf.testing import ManualClock
from ailf_memory import AsyncMemoryBackend, MemoryBackend, MemoryStore
from contract_tests import Harness

__all__ = ["MemoryHarness"]


class MemoryHarness(Harness):
    """Memory with a clock that is moved: no test waits for time to pass."""

    lease = 30.0
    blocking: type[ailf.Backend] = MemoryBackend
    on_asyncio: type[ailf.AsyncBackend] = AsyncMemoryBackend

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store: Any = MemoryStore(self.clock)

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
