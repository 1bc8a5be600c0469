"""`Tail` follows a stream without a group, `PartitionedTail` a partitioned one."""

from typing import Any

from ailf.driver import Record, StreamsWaiter, Waiter
from ailf.errors import ClosedError, DecodeError
from ailf.logs import Log
from ailf.stream.flow import PAGE, StreamFlow
from ailf.stream.naming import naming
from ailf.stream.partitions import MergedRead, PartitionedDriver
from ailf.values import LATEST, Entry, Position

__all__ = ["PartitionedTail", "Tail", "tail_of"]

log = Log("ailf.stream")


def tail_of(flow: StreamFlow, start: Position) -> "Tail":
    """Return what follows the stream of this flow."""
    return Tail(flow, start) if flow.partitioned is None else PartitionedTail(flow, flow.partitioned, start)


class Tail:
    """Reads a stream page by page, and waits for new entries at its end."""

    def __init__(self, flow: StreamFlow, start: Position) -> None:
        self._flow = flow
        self._what = f"follow stream {flow.name!r}"
        self._position = flow.driver.locate(start)
        self._after = False
        self._page: list[Record] = []
        self._waiter = self._make_waiter()
        self._stopped = False
        flow.engine.track(self)

    def _make_waiter(self) -> Waiter | StreamsWaiter:
        return self._flow.driver.waiter(self._flow.name, None)

    async def next(self) -> Entry[Any] | None:
        """Return the next entry that can be decoded; None when stopped."""
        while (record := await self._next()) is not None:
            try:
                return self._flow.entry(record)
            except DecodeError as error:
                log.error(self._flow, "skipped an entry: %s", error)  # noqa: TRY400 - the text says it all
        return None

    async def _next(self) -> Record | None:
        while not self._page and not self._stopped:
            page = await self._read()
            self._page = page[::-1]
            if not page and not self._stopped:
                await self._wait()
        if self._flow.engine.closed:
            raise ClosedError(f"{self._what}: its backend is closed; open another one")
        return self._page.pop() if self._page and not self._stopped else None

    async def _read(self) -> list[Record]:
        """Return the next entries that there are."""
        engine = self._flow.engine
        if self._position == LATEST:
            await self._flow.check_declared()
            self._position = await engine.call(self._what, self._flow.driver.last_id, self._flow.name, again=True)
            self._after = True
        page = await self._flow.page(self._position, LATEST, PAGE, after=self._after)
        if page:
            self._position, self._after = page[-1].id, True
        return page

    async def _wait(self) -> None:
        """Wait for new entries, for a second at most."""
        await self._flow.engine.call(self._what, self._waiter.wait, self._position, 1.0, again=True)

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


class PartitionedTail(Tail):
    """Reads the partitions of a stream merged by time, and waits for new entries at the ends of all.

    It has a position in each partition, so it misses no entry of one that comes later, and is older, than one of
    another.
    """

    def __init__(self, flow: StreamFlow, driver: PartitionedDriver, start: Position) -> None:
        self._driver = driver
        self._merged: MergedRead | None = None
        super().__init__(flow, start)

    def _make_waiter(self) -> StreamsWaiter:
        return self._driver.waiter_of_all(None)

    async def _read(self) -> list[Record]:
        await self._flow.check_declared()
        if self._merged is None:
            with naming(self._what):
                self._merged = await self._flow.engine.call(self._what, self._driver.follow, self._position, again=True)
        return await self._flow.engine.call(self._what, self._merged.take, PAGE, again=True)

    async def _wait(self) -> None:
        merged = self._merged
        if merged is not None:
            wait: Any = self._waiter.wait
            came = await self._flow.engine.call(self._what, wait, merged.positions(), 1.0, again=True)
            merged.resume(came)
