"""celery: one process with eight threads, results not kept, without what its workers tell each other."""

from collections.abc import Sequence

import harness
from celery import Celery

app = Celery("bench", broker=harness.URL)
app.conf.task_ignore_result = True


@app.task(name="handle")
def handle(text: str) -> None:
    """Take one."""
    harness.handled(text)


class Celeried(harness.Queue):
    """`celery worker -P threads`."""

    async def add(self, texts: Sequence[str]) -> None:
        """Add them one by one: it blocks."""
        for text in texts:
            handle.delay(text)

    def work(self) -> None:
        """Work."""
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR"]
        app.worker_main(["worker", "--pool", "threads", "--concurrency", "8", *quiet])


if __name__ == "__main__":
    harness.main(Celeried())
