"""streaq: one worker runs a hundred tasks at once, and stores no results."""

from collections.abc import Sequence

import harness
from streaq import Worker

worker = Worker(redis_url=harness.URL, concurrency=harness.AT_ONCE)


@worker.task(ttl=0)
async def handle(text: str) -> None:
    """Handle one message."""
    harness.handled(text)


class Streaq(harness.Queue):
    """`streaq.Worker`."""

    async def open(self) -> None:
        """Connect."""
        await worker.__aenter__()  # until the process ends

    async def add(self, texts: Sequence[str]) -> None:
        """Add all messages in one call."""
        await worker.enqueue_many([handle.enqueue(text) for text in texts])

    def work(self) -> None:
        """Run the worker."""
        worker.run_sync()


if __name__ == "__main__":
    harness.main(Streaq())
