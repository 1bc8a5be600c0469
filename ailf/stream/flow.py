"""The implementation of `Stream` and `AsyncStream`: `StreamFlow` adds, reads, joins groups; `StreamBase` makes it."""

import functools
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import attrs
from msgspec.structs import replace

from ailf.checks import (
    check_count,
    check_kind,
    check_list,
    check_name,
    check_seconds,
    check_text,
    check_time,
    valid_count,
    valid_key,
    valid_wait,
)
from ailf.codecs import Payloads
from ailf.driver import Capability, Draft, Record, StreamDriver
from ailf.driver.listing import join_cursor, split_cursor
from ailf.engine import Engine
from ailf.engine.standalone import StandaloneObject
from ailf.errors import DecodeError, InvalidArgumentError, StreamFullError
from ailf.instruments import Destination
from ailf.listing import ReadPage
from ailf.logs import Fields
from ailf.stream.declaration import Declaration
from ailf.stream.group_flow import GroupFlow, GroupOptions
from ailf.stream.naming import naming
from ailf.stream.partitioned_group import PartitionedGroupFlow
from ailf.stream.partitions import MOST_PARTITIONS, PartitionedDriver, PartitionFullError, Partitions
from ailf.stream.worker import ProcessOptions, Worker
from ailf.values import Added, Entry, Page, Position, Retention, StreamInfo, Trimmed

__all__ = ["AddOptions", "StreamBase", "StreamFlow", "check_partitions"]

R = TypeVar("R")

PAGE = 500
"""The most entries that one request reads."""


@attrs.frozen
class AddOptions:
    """How a message is added; see `Stream.add`."""

    headers: Mapping[str, str] | None = None
    key: str | None = attrs.field(default=None, validator=attrs.validators.optional(valid_key))
    delay: float = attrs.field(default=0.0, validator=valid_wait)
    at: datetime | None = None
    max_deliveries: int | None = attrs.field(default=None, validator=attrs.validators.optional(valid_count))

    @classmethod
    def of(
        cls,
        headers: Mapping[str, str] | None,
        key: str | None,
        delay: float,
        at: datetime | None,
        max_deliveries: int | None,
    ) -> "AddOptions":
        """Return these options; if all are the defaults, `PLAIN`, which needs no check."""
        if headers is None and key is None and delay == 0 and at is None and max_deliveries is None:
            return PLAIN
        return cls(headers, key, delay, at, max_deliveries)

    def timestamp(self) -> float:
        """Return `at` in seconds since 1970; 0 if there is none."""
        return 0.0 if self.at is None else check_time("at", self.at)


PLAIN = AddOptions()
"""The options of a message that is added with the defaults."""


class StreamFlow:
    """The shared implementation of `Stream` and `AsyncStream`."""

    def __init__(self, engine: Engine, name: str, type_: Any, retention: Retention | None, partitions: int = 1) -> None:
        engine.require(Capability.STREAM, "streams")
        self.engine = engine
        self.name = name
        self.payloads = Payloads(f"stream {name!r}", type_, engine.driver.max_payload)
        driver = engine.driver.stream()
        self.driver: StreamDriver = driver
        self.partitioned: PartitionedDriver | None = None
        names: tuple[str, ...] = ()
        if partitions > 1:
            self.driver = self.partitioned = self._partitioned(partitions)
            names = self.partitioned.partitions.names
        self.declaration = Declaration(engine, driver, name, partitions, names)
        self._instruments = engine.instruments
        self.retention = retention
        self._joined: GroupFlow | None = None
        self._consumer: str | None = None
        self._adding = f"add a message to stream {name!r}"

    def _partitioned(self, partitions: int) -> PartitionedDriver:
        """Return the driver of the stream with this number of partitions."""
        engine, name = self.engine, self.name
        shared = engine.shared(
            ("partitions", name, partitions), lambda: Partitions(name, partitions, engine.runtime.lease_now)
        )
        return PartitionedDriver(engine.driver.stream(), shared, engine.runtime, engine.driver.timeout)

    def __str__(self) -> str:
        return f"stream {self.name!r}"

    def log_fields(self) -> Fields:
        """Return the fields of a record of the log that is about it."""
        return {"backend": self.engine.driver.url, "stream": self.name}

    # --- adding --------------------------------------------------------------------------------------------------

    def draft(self, data: Any, options: AddOptions) -> Draft:
        body, headers = self.payloads.pack(data, options.headers)
        if options is PLAIN:
            return Draft(body, headers)
        if options.key is not None:
            self.engine.require(Capability.ORDERING, "ordering keys")
        return Draft(body, headers, options.key or "", options.delay, options.timestamp(), options.max_deliveries)

    def add(self, data: Any, options: AddOptions, *, observed: bool = False) -> Coroutine[Any, Any, list[str]]:
        if not observed and (self._instruments.message_sent or self._instruments.sending):
            return self._observe([data], options, functools.partial(self.add, data, observed=True), list)
        drafts = [self.draft(data, options)]
        if self.retention is not None or not self.declaration.made:
            return self._make_room(1, self.driver.add, drafts, again=False)
        return self.engine.call(self._adding, self.driver.add, self.name, drafts, again=False, retention=None)

    async def add_many(self, items: Iterable[Any], options: AddOptions, *, observed: bool = False) -> list[str]:
        items = check_list("items", items)
        if not observed and (self._instruments.message_sent or self._instruments.sending) and items:
            add = functools.partial(self.add_many, items, observed=True)
            return await self._observe(items, options, add, list)
        drafts = [self.draft(data, options) for data in items]
        if not drafts:
            return []
        return await self._make_room(len(drafts), self.driver.add, drafts, again=False)

    async def add_once(
        self, dedup_id: str, data: Any, window: float, options: AddOptions, *, observed: bool = False
    ) -> Added:
        if not observed and (self._instruments.message_sent or self._instruments.sending):
            add = functools.partial(self.add_once, dedup_id, data, window, observed=True)
            return await self._observe([data], options, add, _new_ids)
        check_name("dedup id", dedup_id)
        check_seconds("window", window, least=0.001)
        draft, token = self.draft(data, options), self.engine.token()
        return await self._make_room(
            1, self.driver.add_once, draft, again=True, dedup_id=dedup_id, token=token, window=window
        )

    def _observe(
        self,
        payloads: Sequence[Any],
        options: AddOptions,
        add: Callable[[AddOptions], Coroutine[Any, Any, R]],
        ids_of: Callable[[R], list[str]],
    ) -> Coroutine[Any, Any, R]:
        """Add within the hooks of the instruments."""

        def send(headers: Mapping[str, str] | None) -> Coroutine[Any, Any, R]:
            return add(options if headers is None else attrs.evolve(options, headers=headers))

        destination = Destination(self._instruments.backend, "stream", self.name)
        now = self.engine.runtime.now
        return self._instruments.observe_sending(destination, options.headers, payloads, send, ids_of, now)

    async def _make_room(
        self, count: int, request: Callable[..., Awaitable[R]], *args: Any, again: bool, **options: Any
    ) -> R:
        """Add; while the stream is full, try again for the `wait` seconds of its retention."""
        last = None
        if not self.declaration.made:
            last = self.engine.runtime.now() + self.engine.retry_for
            await self.declaration.make()
        retention = self.retention
        what = self._adding if count == 1 else f"add {count} messages to stream {self.name!r}"
        if retention is None:
            return await self.engine.call(
                what, request, self.name, *args, again=again, until=last, retention=None, **options
            )
        if retention.max_len is not None and count > retention.max_len:
            raise InvalidArgumentError(
                f"{what}: its retention allows only {retention.max_len} entries; add fewer at a time, or allow more"
            )
        until = self.engine.runtime.now() + retention.wait
        pause = 0.02
        while True:
            try:
                return await self.engine.call(
                    what, request, self.name, *args, again=again, until=last, retention=retention, **options
                )
            except StreamFullError as error:
                left = until - self.engine.runtime.now()
                if left <= 0:
                    partition = error.partition if isinstance(error, PartitionFullError) else ""
                    raise StreamFullError(f"{what}: {_full(retention, partition)}") from error
            await self.engine.pause(min(pause, left))
            pause, last = min(2 * pause, 0.25), until

    async def cancel(self, entry_id: str) -> bool:
        check_text("the id of the message", entry_id)
        await self.check_declared()
        what = f"cancel entry {entry_id} of stream {self.name!r}"
        with naming(what):
            return await self.engine.call(what, self.driver.cancel, self.name, entry_id, again=False)

    async def trim(self, retention: Retention | None) -> Trimmed:
        chosen = self.retention if retention is None else check_kind("retention", retention, Retention)
        if chosen is None or (chosen.max_len is None and chosen.max_age is None and chosen.keep_settled):
            raise InvalidArgumentError(
                f"trim stream {self.name!r}: there is no retention that removes anything; "
                "pass Retention(max_len=…, max_age=…) or Retention.settled()"
            )
        await self.check_declared()
        what = f"trim stream {self.name!r}"
        removed = unsettled = 0
        after = ""
        while True:
            swept = await self.engine.call(what, self.driver.trim, self.name, chosen, again=True, after=after)
            removed, unsettled, after = removed + swept.removed, unsettled + swept.unsettled, swept.after
            if not after:
                return Trimmed(removed, unsettled)

    async def delete(self) -> None:
        await self.check_declared()
        self.declaration.forget()
        await self.engine.call(f"delete stream {self.name!r}", self.driver.delete, self.name, again=True)

    async def check_declared(self) -> None:
        """Check once that the stream has the number of partitions that this object was given."""
        if not self.declaration.made:
            await self.declaration.check()

    # --- reading without a group ---------------------------------------------------------------------------------

    async def read(self, first: Position, last: Position, limit: int) -> list[Entry[Any]]:
        check_count("limit", limit)
        start, end = self.driver.locate(first), self.driver.locate(last)
        records: list[Record] = []
        while len(records) < limit:
            count = min(PAGE, limit - len(records))
            page = await self.page(records[-1].id if records else start, end, count, after=bool(records))
            records += page
            if len(page) < count:
                break
        return [self.entry(record) for record in records]

    async def page(self, start: str, end: str, limit: int, *, after: bool) -> list[Record]:
        await self.check_declared()
        what = f"read stream {self.name!r}"
        with naming(what):
            return await self.engine.call(what, self.driver.read, self.name, start, end, limit, again=True, after=after)

    def entry(self, record: Record) -> Entry[Any]:
        try:
            data, headers = self.payloads.unpack(
                record.body, record.headers, foreign=record.foreign, problem=record.problem
            )
            return Entry(record.id, data, headers, self.name, record.key, self.driver.time_of(record.id))
        except DecodeError as error:
            raise DecodeError(f"entry {record.id}: {error}") from error

    # --- what exists ---------------------------------------------------------------------------------------------

    async def _stored_driver(self) -> tuple[StreamDriver, int]:
        """Return the driver for the stored number of partitions, and the number: a lister need not know it."""
        number = await self.declaration.stored()
        if number == 1:
            return self.engine.driver.stream(), 1
        return self._partitioned(number), number

    async def info(self) -> StreamInfo:
        self.engine.require(Capability.LISTING, "listing")
        driver, number = await self._stored_driver()
        info = await self.engine.call(f"inspect stream {self.name!r}", driver.stream_info, self.name, again=True)
        return replace(info, partitions=number)

    def listing_of_groups(self) -> tuple[str, ReadPage[str]]:
        self.engine.require(Capability.LISTING, "listing")
        return f"the groups of stream {self.name!r}", self._groups

    async def _groups(self, cursor: str, limit: int) -> Page[str]:
        (after,) = split_cursor("groups", cursor, 1) if cursor else ("",)
        driver, _ = await self._stored_driver()
        what = f"list the groups of stream {self.name!r}"
        names = await self.engine.call(what, driver.list_groups, self.name, after, limit, again=True)
        return Page(tuple(names), join_cursor("groups", names[-1]) if len(names) == limit else "")

    # --- groups --------------------------------------------------------------------------------------------------

    def group(self, name: str, options: GroupOptions) -> GroupFlow:
        if options.key_concurrency != 1:
            self.engine.require(Capability.ORDERING, "ordering keys")
        make = GroupFlow if self.partitioned is None else PartitionedGroupFlow
        return make(self.engine, self.driver, self.payloads, self.name, name, options, self.retention, self.declaration)

    async def join(self, group: str, consumer: str | None, options: GroupOptions) -> None:
        flow = self.group(group, options)
        if consumer is not None:
            check_name("consumer", consumer)
        await flow.open()
        self._joined, self._consumer = flow, consumer

    async def process(self, handler: Callable[[Any], Any], options: ProcessOptions) -> None:
        if self._joined is None:
            raise InvalidArgumentError(
                f"process messages of stream {self.name!r}: there is no group; call create_consumer_group(group) first"
            )
        await Worker(self._joined, handler, options, self._consumer, plain=True).run()

    def stop(self) -> None:
        if self._joined is not None:
            self._joined.stop()


def _new_ids(added: Added) -> list[str]:
    """Return the id of the new entry; none if there was an earlier one."""
    return [] if added.duplicate else [added.id]


def _full(retention: Retention, partition: str) -> str:
    return (
        f"{f'its partition {partition!r}' if partition else 'it'} is full: its retention allows {retention.max_len} "
        f"entries{' in each partition' if partition else ''}, and that many are not settled by every group. "
        "Let workers catch up, allow more with Retention(max_len=…), or wait for room with Retention(wait=…)"
    )


def check_partitions(partitions: object) -> int:
    """Check a number of partitions."""
    number = check_count("partitions", partitions)
    if number > MOST_PARTITIONS:
        raise InvalidArgumentError(f"partitions must be at most {MOST_PARTITIONS}, not {number}")
    return number


class StreamBase(StandaloneObject):
    """The name, the flow and `stop` of `Stream` and `AsyncStream`."""

    def __init__(
        self,
        name: str,
        *,
        type: Any = Any,  # noqa: A002 - `type=` is the API
        retention: Retention | None = None,
        partitions: int | None = None,
        engine: Engine | None = None,
    ) -> None:
        super().__init__(engine)
        self._name = check_name("stream", name)
        self._partitions = 1 if partitions is None else check_partitions(partitions)
        self._type = type
        self._retention = None if retention is None else check_kind("retention", retention, Retention)

    @functools.cached_property
    def _flow(self) -> StreamFlow:
        return StreamFlow(self._engine, self._name, self._type, self._retention, self._partitions)

    @property
    def name(self) -> str:
        """The stream's name."""
        return self._name

    def stop(self) -> None:
        """Drain and end `process_messages`, from any thread, a handler or a signal handler."""
        if "_flow" in vars(self):
            self._flow.stop()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r}>"
