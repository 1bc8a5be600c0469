"""ailf: one group of a stream; one process runs a hundred handlers at once."""

import asyncio
from collections.abc import Sequence

import harness

import ailf


class Ailf(harness.Queue):
    """`AsyncGroup.process`."""

    _backend: ailf.AsyncBackend | None = None

    async def open(self) -> None:
        """Connect."""
        self._stream = (await ailf.connect_async(harness.URL)).stream("bench", type=str)

    async def add(self, texts: Sequence[str]) -> None:
        """Add all messages in one call."""
        await self._stream.add_many(texts)

    def work(self) -> None:
        """Process messages."""
        asyncio.run(self._work())

    async def _work(self) -> None:
        async with ailf.connect_async(harness.URL) as backend:
            await backend.stream("bench", type=str).group("workers").process(self._handle, concurrency=harness.AT_ONCE)

    async def consume(self, consumer: str) -> None:
        """Process one message at a time; all consumers of a process share a backend."""
        if not self._backend:
            self._backend = ailf.connect_async(harness.URL)
        group = self._backend.stream("bench", type=str).group("workers")
        await group.process(self._handle, consumer=consumer, signals=False)

    async def _handle(self, delivery: ailf.AsyncDelivery[str]) -> None:
        harness.handled(delivery.data)


if __name__ == "__main__":
    harness.main(Ailf())
