"""celery: one process with eight threads, without results, and without messages between workers."""

from collections.abc import Sequence

import harness
from celery import Celery

app = Celery("bench", broker=harness.URL)
app.conf.task_ignore_result = True


@app.task(name="handle")
def handle(text: str) -> None:
    """Handle one message."""
    harness.handled(text)


class CeleryQueue(harness.Queue):
    """`celery worker -P threads`."""

    async def add(self, texts: Sequence[str]) -> None:
        """Add the messages one by one; the calls block."""
        for text in texts:
            handle.delay(text)

    def work(self) -> None:
        """Run the worker."""
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR"]
        app.worker_main(["worker", "--pool", "threads", "--concurrency", "8", *quiet])


if __name__ == "__main__":
    harness.main(CeleryQueue())
