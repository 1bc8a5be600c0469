"""`Tail` follows a stream without a group."""

import logging
from typing import Any

from ailf.driver import Record
from ailf.errors import ClosedError, DecodeError
from ailf.stream.flow import PAGE, StreamFlow
from ailf.values import EARLIEST, LATEST, Entry, Position

__all__ = ["Tail"]

log = logging.getLogger("ailf.stream")


class Tail:
    """Reads a stream page by page, and waits for new entries at its end."""

    def __init__(self, flow: StreamFlow, start: Position) -> None:
        self._flow = flow
        self._position = flow.driver.locate(start)
        self._after = False
        self._page: list[Record] = []
        self._waiter = flow.driver.waiter(flow.name, None)
        self._stopped = False
        flow.engine.track(self)

    async def next(self) -> Entry[Any] | None:
        """Return the next entry that can be decoded; None when stopped."""
        while (record := await self._next()) is not None:
            try:
                return self._flow.entry(record)
            except DecodeError as error:
                log.error("follow stream %r: skipped an entry: %s", self._flow.name, error)  # noqa: TRY400 - the text says it all
        return None

    async def _next(self) -> Record | None:
        engine = self._flow.engine
        while not self._page and not self._stopped:
            if self._position == LATEST:
                self._position = await engine.call(
                    f"follow stream {self._flow.name!r}", self._flow.driver.last_id, self._flow.name, again=True
                )
                self._after = True
            page = await self._flow.page(self._position, LATEST, PAGE, after=self._after)
            self._page = page[::-1]
            if page:
                self._position, self._after = page[-1].id, True
            elif not self._stopped:
                await self._wait()
        if engine.closed:
            raise ClosedError(f"follow stream {self._flow.name!r}: its backend is closed; open another one")
        return self._page.pop() if self._page and not self._stopped else None

    async def _wait(self) -> None:
        position = self._position if self._after else EARLIEST
        await self._flow.engine.call(f"follow stream {self._flow.name!r}", self._waiter.wait, position, 1.0, again=True)

    def stop(self) -> None:
        """End the iteration, from any thread."""
        self._stopped = True
        self._waiter.interrupt()

    async def close(self) -> None:
        """End the iteration, and give back the waiter's connection."""
        self._flow.engine.check_home()
        self.stop()
        self._flow.engine.untrack(self)
        await self._waiter.close()
