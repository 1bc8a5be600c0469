"""FastStream over Redis streams: one subscriber of a group reads a hundred records at once."""

import asyncio
from collections.abc import Sequence

import harness
from faststream import FastStream
from faststream.redis import RedisBroker, StreamSub

broker = RedisBroker(harness.URL, logger=None)
stream = StreamSub("bench", group="workers", consumer="one", last_id="0", max_records=harness.AT_ONCE)


class Faststream(harness.Queue):
    """`faststream run`."""

    async def open(self) -> None:
        """Connect."""
        await broker.connect()

    async def add(self, texts: Sequence[str]) -> None:
        """Add all messages concurrently."""
        await asyncio.gather(*(broker.publish(text, stream="bench") for text in texts))

    def work(self) -> None:
        """Run the worker."""

        @broker.subscriber(stream=stream)
        async def handle(text: str) -> None:
            harness.handled(text)

        asyncio.run(FastStream(broker, logger=None).run())

    async def consume(self, consumer: str) -> None:
        """Run a broker whose one subscriber reads one record at a time."""

        async def handle(text: str) -> None:
            harness.handled(text)

        own = RedisBroker(harness.URL, logger=None)
        one = StreamSub("bench", group="workers", consumer=consumer, max_records=1)
        own.subscriber(stream=one)(handle)
        await own.start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    harness.main(Faststream())
