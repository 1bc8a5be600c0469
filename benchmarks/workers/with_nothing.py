"""redis-py alone, the upper bound: it reads a hundred messages, handles each, and acks all in one pipeline."""

import asyncio
import contextlib
from collections.abc import Sequence

import harness
from redis import asyncio as aredis
from redis.exceptions import ResponseError


class Bare(harness.Queue):
    """XREADGROUP and XACK."""

    async def open(self) -> None:
        """Connect."""
        self._client = aredis.Redis.from_url(harness.URL)

    async def add(self, texts: Sequence[str]) -> None:
        """Add all messages in one pipeline."""
        pipeline = self._client.pipeline(transaction=False)
        for text in texts:
            pipeline.xadd("bench", {"body": text})
        await pipeline.execute()

    def work(self) -> None:
        """Read, handle and ack messages."""
        asyncio.run(self._work())

    async def _work(self) -> None:
        await self.open()
        with contextlib.suppress(ResponseError):
            await self._client.xgroup_create("bench", "workers", "0", mkstream=True)
        while True:
            await self._handle_batch("one", harness.AT_ONCE, 1000)

    async def consume(self, consumer: str) -> None:
        """Read, handle and ack one message at a time, on a connection of its own; a read blocks for up to 4 seconds."""
        own = Bare()
        await own.open()
        with contextlib.suppress(ResponseError):
            await own._client.xgroup_create("bench", "workers", "0", mkstream=True)
        while True:
            await own._handle_batch(consumer, 1, 4000)

    async def _handle_batch(self, consumer: str, count: int, block: int) -> None:
        read = await self._client.xreadgroup("workers", consumer, {"bench": ">"}, count=count, block=block)
        entries = read[b"bench"][0] if isinstance(read, dict) and read else [each for _, all_ in read for each in all_]
        pipeline = self._client.pipeline(transaction=False)
        for entry_id, fields in entries:
            await self._handle(fields[b"body"].decode())
            pipeline.xack("bench", "workers", entry_id)
        if entries:
            await pipeline.execute()

    async def _handle(self, text: str) -> None:
        harness.handled(text)


if __name__ == "__main__":
    harness.main(Bare())
