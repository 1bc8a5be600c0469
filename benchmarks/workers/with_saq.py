"""saq: one worker runs a hundred jobs at once, and stores no results."""

import asyncio
from collections.abc import Sequence
from typing import Any

import harness
import saq


async def handle(_: Any, *, text: str) -> None:
    """Handle one message."""
    harness.handled(text)


class Saq(harness.Queue):
    """`saq.Worker`."""

    async def open(self) -> None:
        """Connect."""
        self._queue = saq.Queue.from_url(harness.URL)
        await self._queue.connect()

    async def add(self, texts: Sequence[str]) -> None:
        """Add all messages concurrently."""
        await asyncio.gather(*(self._queue.enqueue("handle", text=text, ttl=-1) for text in texts))

    def work(self) -> None:
        """Run the worker."""
        asyncio.run(self._work())

    async def _work(self) -> None:
        await self.open()
        await saq.Worker(self._queue, functions=[handle], concurrency=harness.AT_ONCE).start()

    async def consume(self, consumer: str) -> None:
        """Run a worker of one job at a time, with a connection pool of its own."""
        queue = saq.Queue.from_url(harness.URL)
        await queue.connect()
        await saq.Worker(queue, functions=[handle], concurrency=1, id=consumer).start()


if __name__ == "__main__":
    harness.main(Saq())
