"""taskiq over taskiq-redis' streams: one receiver runs a hundred tasks at once, and stores no results."""

import asyncio
from collections.abc import Sequence

import harness
from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker

broker = RedisStreamBroker(harness.URL)


@broker.task(task_name="handle")
async def handle(text: str) -> None:
    """Handle one message."""
    harness.handled(text)


class Taskiq(harness.Queue):
    """`taskiq worker`, in one process."""

    async def open(self) -> None:
        """Connect."""
        await broker.startup()

    async def add(self, texts: Sequence[str]) -> None:
        """Add all messages concurrently."""
        await asyncio.gather(*(handle.kiq(text) for text in texts))

    def work(self) -> None:
        """Run the worker."""
        asyncio.run(run_receiver_task(broker, max_async_tasks=harness.AT_ONCE, run_startup=True))

    async def consume(self, consumer: str) -> None:
        """Run a receiver of one task at a time, with a broker of its own."""
        own = RedisStreamBroker(harness.URL, consumer_name=consumer)
        own.register_task(handle.original_func, task_name="handle")
        await run_receiver_task(own, max_async_tasks=1, run_startup=True)


if __name__ == "__main__":
    harness.main(Taskiq())
