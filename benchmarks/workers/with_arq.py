"""arq: one worker runs a hundred jobs at once, and stores no results."""

import asyncio
from collections.abc import Sequence
from typing import Any

import arq
import harness
from arq.connections import RedisSettings

settings = RedisSettings.from_dsn(harness.URL)


async def handle(_: Any, text: str) -> None:
    """Handle one message."""
    harness.handled(text)


class Arq(harness.Queue):
    """`arq.Worker`."""

    async def open(self) -> None:
        """Connect."""
        self._pool = await arq.create_pool(settings)

    async def add(self, texts: Sequence[str]) -> None:
        """Add all messages concurrently."""
        await asyncio.gather(*(self._pool.enqueue_job("handle", text) for text in texts))

    def work(self) -> None:
        """Run the worker."""
        asyncio.set_event_loop(asyncio.new_event_loop())
        arq.Worker([handle], redis_settings=settings, max_jobs=harness.AT_ONCE, keep_result=0).run()

    async def consume(self, consumer: str) -> None:
        """Run a worker of one job at a time."""
        options = {"redis_settings": settings, "max_jobs": 1, "keep_result": 0, "handle_signals": False}
        await arq.Worker([handle], ctx={"name": consumer}, **options).async_run()


if __name__ == "__main__":
    harness.main(Arq())
