"""What streams do under both faces: `StreamFlow` adds, reads and joins groups; `Tail` follows without a group."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ailf.checks import check_count, check_name
from ailf.codecs import Payloads
from ailf.driver import Capability, Record
from ailf.engine import Engine
from ailf.errors import ClosedError, DecodeError, InvalidArgumentError
from ailf.leasing import GroupFlow, GroupOptions
from ailf.values import EARLIEST, LATEST, Entry
from ailf.worker import Worker

__all__ = ["StreamFlow", "Tail"]

log = logging.getLogger("ailf.stream")

PAGE = 500
"""How many entries one request reads at most."""


class StreamFlow:
    """The one text of both flavours."""

    def __init__(self, engine: Engine, name: str, type_: Any) -> None:
        engine.require(Capability.STREAM, "streams")
        self.engine = engine
        self.name = name
        self.payloads = Payloads(f"stream {name!r}", type_, engine.driver.max_payload)
        self.driver = engine.driver.stream()
        self._joined: GroupFlow | None = None
        self._consumer: str | None = None

    async def add(self, data: Any, headers: Mapping[str, str] | None) -> str:
        return (await self._append([self.payloads.pack(data, headers)]))[0]

    async def add_many(self, items: Iterable[Any], headers: Mapping[str, str] | None) -> list[str]:
        packed = [self.payloads.pack(data, headers) for data in items]
        return await self._append(packed) if packed else []

    async def _append(self, packed: Sequence[tuple[bytes, Mapping[str, str]]]) -> list[str]:
        what = f"add {len(packed)} message(s) to stream {self.name!r}"
        return await self.engine.call(what, self.driver.add, self.name, packed, again=False)

    async def delete(self) -> None:
        await self.engine.call(f"delete stream {self.name!r}", self.driver.delete, self.name, again=True)

    # --- reading without a group ---------------------------------------------------------------------------------

    async def read(self, start: str, end: str, limit: int) -> list[Entry[Any]]:
        check_count("limit", limit)
        found: list[Record] = []
        while len(found) < limit:
            page = min(PAGE, limit - len(found))
            records = await self.page(found[-1].id if found else start, end, page, after=bool(found))
            found += records
            if len(records) < page:
                break
        return [self.entry(record) for record in found]

    async def page(self, start: str, end: str, limit: int, *, after: bool) -> list[Record]:
        what = f"read stream {self.name!r}"
        return await self.engine.call(what, self.driver.read, self.name, start, end, limit, again=True, after=after)

    def entry(self, record: Record) -> Entry[Any]:
        try:
            return Entry(record.id, *self.payloads.unpack(record.body, record.headers, foreign=record.foreign))
        except DecodeError as error:
            raise DecodeError(f"entry {record.id}: {error}") from error

    # --- the short way -------------------------------------------------------------------------------------------

    def group(self, name: str, options: GroupOptions) -> GroupFlow:
        return GroupFlow(self.engine, self.driver, self.payloads, self.name, name, options)

    async def join(self, group: str, consumer: str | None, options: GroupOptions) -> None:
        flow = self.group(group, options)
        if consumer is not None:
            check_name("consumer", consumer)
        await flow.open()
        self._joined, self._consumer = flow, consumer

    async def process(
        self, handler: Callable[[Any], Any], concurrency: int, prefetch: int | None, drain: float
    ) -> None:
        if self._joined is None:
            raise InvalidArgumentError(
                f"stream {self.name!r}: create_consumer_group(group, consumer) first, then process_messages(handler)"
            )
        await Worker(
            self._joined, handler, concurrency, prefetch, drain, self._consumer, signals=True, plain=True
        ).run()

    def stop(self) -> None:
        if self._joined is not None:
            self._joined.stop()


class Tail:
    """Follows a stream: reads page after page, and waits at the end."""

    def __init__(self, flow: StreamFlow, start: str) -> None:
        self._flow = flow
        self._at = start
        self._after = False
        self._page: list[Record] = []
        self._waiter = flow.driver.waiter(flow.name, None)
        self._stopped = False
        flow.engine.keep(self)

    async def next(self) -> Entry[Any] | None:
        """Return the next entry that can be decoded; None when it was closed."""
        while (record := await self._next()) is not None:
            try:
                return self._flow.entry(record)
            except DecodeError as error:
                log.error("follow stream %r: left out: %s", self._flow.name, error)  # noqa: TRY400 - the text says it all
        return None

    async def _next(self) -> Record | None:
        engine = self._flow.engine
        while not self._page and not self._stopped:
            if self._at == LATEST:
                self._at = await engine.call(
                    f"follow stream {self._flow.name!r}", self._flow.driver.last_id, self._flow.name, again=True
                )
                self._after = True
            page = await self._flow.page(self._at, LATEST, PAGE, after=self._after)
            self._page = page[::-1]
            if page:
                self._at, self._after = page[-1].id, True
            elif not self._stopped:
                await self._wait()
        if engine.closed:
            raise ClosedError(f"the backend of stream {self._flow.name!r} was closed")
        return self._page.pop() if self._page and not self._stopped else None

    async def _wait(self) -> None:
        at = self._at if self._after else EARLIEST
        await self._flow.engine.call(f"follow stream {self._flow.name!r}", self._waiter.wait, at, 1.0, again=True)

    def stop(self) -> None:
        self._stopped = True
        self._waiter.interrupt()

    async def close(self) -> None:
        self.stop()
        self._flow.engine.forget(self)
        await self._waiter.close()
