"""dramatiq: one process with eight threads, its default."""

import time
from collections.abc import Sequence

import dramatiq
import harness
from dramatiq.brokers.redis import RedisBroker

broker = RedisBroker(url=harness.URL)
dramatiq.set_broker(broker)


@dramatiq.actor(actor_name="handle")
def handle(text: str) -> None:
    """Handle one message."""
    harness.handled(text)


class Dramatiq(harness.Queue):
    """`dramatiq --processes 1`."""

    async def add(self, texts: Sequence[str]) -> None:
        """Add the messages one by one; the calls block."""
        for text in texts:
            handle.send(text)

    def work(self) -> None:
        """Run the worker."""
        dramatiq.Worker(broker, worker_threads=8).start()
        time.sleep(harness.DEADLINE * 10)


if __name__ == "__main__":
    harness.main(Dramatiq())
