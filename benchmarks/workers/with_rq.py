"""rq: one worker runs jobs in its own process, not in a fork for each, and stores no results."""

from collections.abc import Sequence

import harness
import redis
import rq


def handle(text: str) -> None:
    """Handle one message."""
    harness.handled(text)


class Rq(harness.Queue):
    """`rq.SimpleWorker`."""

    def __init__(self) -> None:
        self._client = redis.Redis.from_url(harness.URL)
        self._queue = rq.Queue(connection=self._client)

    async def add(self, texts: Sequence[str]) -> None:
        """Add all messages in one call, which blocks."""
        jobs = [rq.Queue.prepare_data("with_rq.handle", (text,), result_ttl=0) for text in texts]
        self._queue.enqueue_many(jobs)

    def work(self) -> None:
        """Run the worker."""
        rq.SimpleWorker([self._queue], connection=self._client).work(logging_level="WARNING")


if __name__ == "__main__":
    harness.main(Rq())
