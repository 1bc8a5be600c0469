"""docket (pydocket): one worker runs a hundred tasks at once, with enough connections, and stores no results."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import harness
from docket import Docket, Worker


async def handle(text: str) -> None:
    """Handle one message."""
    harness.handled(text)


class DocketQueue(harness.Queue):
    """`docket.Worker`."""

    async def open(self) -> None:
        """Connect."""
        self._docket = Docket(name="bench", url=f"{harness.URL}?max_connections=500", execution_ttl=timedelta(0))
        await self._docket.__aenter__()  # until the process ends
        self._docket.register(handle)

    async def add(self, texts: Sequence[str]) -> None:
        """Add all messages concurrently."""
        await asyncio.gather(*(self._docket.add(handle)(text) for text in texts))

    def work(self) -> None:
        """Run the worker."""
        asyncio.run(self._work())

    async def _work(self) -> None:
        await self.open()
        async with Worker(self._docket, concurrency=harness.AT_ONCE) as worker:
            await worker.run_forever()


if __name__ == "__main__":
    harness.main(DocketQueue())
