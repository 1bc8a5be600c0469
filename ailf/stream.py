"""Work that must not be lost: `Stream` and `AsyncStream`, two thin faces of one flow.

Producers add; consumer groups take, each message at least once per group until it is settled; anybody may read and
follow without a group.
"""

import functools
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from ailf.attached import Attached
from ailf.checks import check_count, check_name
from ailf.codecs import Payloads
from ailf.driver import Capability, Record
from ailf.engine import Engine
from ailf.errors import ClosedError, DecodeError, InvalidArgumentError
from ailf.group import DRAIN, AsyncGroup, Group, GroupFlow, GroupOptions
from ailf.runtime import run
from ailf.values import EARLIEST, LATEST, Backoff, Entry, GroupReset
from ailf.worker import Worker

__all__ = ["AsyncStream", "Stream"]

T = TypeVar("T")

log = logging.getLogger("ailf.stream")

PAGE = 500
"""How many entries one request reads at most."""


class _Flow:
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
            records = await self._page(found[-1].id if found else start, end, page, after=bool(found))
            found += records
            if len(records) < page:
                break
        return [self._entry(record) for record in found]

    async def _page(self, start: str, end: str, limit: int, *, after: bool) -> list[Record]:
        what = f"read stream {self.name!r}"
        return await self.engine.call(what, self.driver.read, self.name, start, end, limit, again=True, after=after)

    def _entry(self, record: Record) -> Entry[Any]:
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


class _Tail:
    """Follows a stream: reads page after page, and waits at the end."""

    def __init__(self, flow: _Flow, start: str) -> None:
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
                return self._flow._entry(record)
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
            page = await self._flow._page(self._at, LATEST, PAGE, after=self._after)
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


class _StreamBase(Attached):
    """What both faces share: the name, and how the flow is made."""

    def __init__(self, name: str, *, type: Any = Any, engine: Engine | None = None) -> None:  # noqa: A002 - `type=` is the API
        super().__init__(engine)
        self._name = check_name("stream", name)
        self._type = type

    @functools.cached_property
    def _flow(self) -> _Flow:
        return _Flow(self._engine, self._name, self._type)

    @property
    def name(self) -> str:
        """The stream's name."""
        return self._name

    def stop(self) -> None:
        """End `process_messages` gently, from any thread, a handler or a signal (S14)."""
        if "_flow" in vars(self):
            self._flow.stop()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r}>"


class Stream(_StreamBase, Generic[T]):
    """Work shared between agents. Get one from `Backend.stream`; annotate with this class. Safe to share between threads."""

    def add(self, data: T, *, headers: Mapping[str, str] | None = None) -> str:
        """Append a message and return its id; every group can read it on return (S1).

        Arguments:
            data: The payload; JSON unless the stream has another ``type``, or ``bytes`` as they are.
            headers: Text beside the payload.

        Raises:
            EncodeError: The payload has no JSON form.
            InvalidArgumentError: A header or the size is out of bounds; nothing was sent.
            OutcomeUnknownError: The connection broke after the send; it isn't repeated by itself.
            BackendError: The backend couldn't do it.
        """
        return run(self._flow.add(data, headers))

    def add_many(self, items: Iterable[T], *, headers: Mapping[str, str] | None = None) -> list[str]:
        """Append messages in this order, in one round trip, and return their ids; see `add`."""
        return run(self._flow.add_many(items, headers))

    def read(self, start: str = EARLIEST, end: str = LATEST, limit: int = 100) -> list[Entry[T]]:
        """Return the entries from one id to another, both included, in order; groups notice nothing (S17).

        Raises:
            DecodeError: An entry is not of the stream's type.
            InvalidArgumentError: Not an id.
        """
        return run(self._flow.read(start, end, limit))

    def tail(self, start: str = LATEST) -> Iterator[Entry[T]]:
        """Follow the stream without a group: every entry from ``start`` on, and then what is added.

        LATEST means from now on: what is added after the first ``next``. An entry that can't be decoded is logged and
        left out. It ends when its generator is closed.
        """
        tail = _Tail(self._flow, start)
        try:
            while (entry := run(tail.next())) is not None:
                yield entry
        finally:
            run(tail.close())

    def group(
        self,
        name: str,
        *,
        start: str = EARLIEST,
        lease: float = 30.0,
        max_deliveries: int = 5,
        backoff: Backoff | None = None,
        max_processing: float = 86_400.0,
        on_event: Callable[[GroupReset], Any] | None = None,
    ) -> Group[T]:
        """Return a consumer group; it is made when a consumer opens it, or by its `open`.

        Arguments:
            name: Any non-empty text.
            start: Where a new group begins: EARLIEST, LATEST or after an id. An existing group never moves (S9).
            lease: Seconds that a message stays with a consumer that says nothing; a living one renews it.
            max_deliveries: After so many failed deliveries a message becomes a dead letter (S5).
            backoff: How long a failed message waits.
            max_processing: Seconds after which a message is no longer renewed, however long its handler takes.
            on_event: Called with a `GroupReset` when the group had vanished from the backend.
        """
        options = GroupOptions(start, lease, max_deliveries, backoff or Backoff(), max_processing, on_event)
        return Group(self._flow.group(name, options))

    def create_consumer_group(self, group: str, consumer: str | None = None, *, start: str = EARLIEST) -> None:
        """Make the group where it doesn't exist, and let `process_messages` work in it under this consumer's name."""
        run(self._flow.join(group, consumer, GroupOptions(start=start)))

    def process_messages(
        self,
        handler: Callable[[T], Any],
        *,
        concurrency: int = 1,
        prefetch: int | None = None,
        drain: float = DRAIN,
    ) -> None:
        """Call the handler with each payload until `stop`, SIGTERM or Ctrl-C.

        A handler that returns False or raises is retried, ``raise Reject("why")`` makes a dead letter, anything else
        acks. For headers, attempts and settling by hand use `group` and `Group.process`, which has the same arguments.

        Raises:
            InvalidArgumentError: No group was created.
            ClosedError: The backend was closed.
        """
        run(self._flow.process(handler, concurrency, prefetch, drain))

    def delete(self) -> None:
        """Remove the stream with its groups, their dead letters included."""
        run(self._flow.delete())

    def close(self) -> None:
        """End `process_messages`, and close what this object opened itself."""
        self.stop()
        run(self._close())

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()


class AsyncStream(_StreamBase, Generic[T]):
    """Work shared between agents. Get one from `AsyncBackend.stream`; annotate with this class. Safe to share between tasks."""

    async def add(self, data: T, *, headers: Mapping[str, str] | None = None) -> str:
        """Append a message and return its id; every group can read it on return (S1).

        Arguments:
            data: The payload; JSON unless the stream has another ``type``, or ``bytes`` as they are.
            headers: Text beside the payload.

        Raises:
            EncodeError: The payload has no JSON form.
            InvalidArgumentError: A header or the size is out of bounds; nothing was sent.
            OutcomeUnknownError: The connection broke after the send; it isn't repeated by itself.
            BackendError: The backend couldn't do it.
        """
        return await self._flow.add(data, headers)

    async def add_many(self, items: Iterable[T], *, headers: Mapping[str, str] | None = None) -> list[str]:
        """Append messages in this order, in one round trip, and return their ids; see `add`."""
        return await self._flow.add_many(items, headers)

    async def read(self, start: str = EARLIEST, end: str = LATEST, limit: int = 100) -> list[Entry[T]]:
        """Return the entries from one id to another, both included, in order; groups notice nothing (S17).

        Raises:
            DecodeError: An entry is not of the stream's type.
            InvalidArgumentError: Not an id.
        """
        return await self._flow.read(start, end, limit)

    async def tail(self, start: str = LATEST) -> AsyncIterator[Entry[T]]:
        """Follow the stream without a group: every entry from ``start`` on, and then what is added.

        LATEST means from now on: what is added after the first ``next``. An entry that can't be decoded is logged and
        left out. It ends when its generator is closed.
        """
        tail = _Tail(self._flow, start)
        try:
            while (entry := await tail.next()) is not None:
                yield entry
        finally:
            await tail.close()

    def group(
        self,
        name: str,
        *,
        start: str = EARLIEST,
        lease: float = 30.0,
        max_deliveries: int = 5,
        backoff: Backoff | None = None,
        max_processing: float = 86_400.0,
        on_event: Callable[[GroupReset], Any] | None = None,
    ) -> AsyncGroup[T]:
        """Return a consumer group; it is made when a consumer opens it, or by its `open`.

        Arguments:
            name: Any non-empty text.
            start: Where a new group begins: EARLIEST, LATEST or after an id. An existing group never moves (S9).
            lease: Seconds that a message stays with a consumer that says nothing; a living one renews it.
            max_deliveries: After so many failed deliveries a message becomes a dead letter (S5).
            backoff: How long a failed message waits.
            max_processing: Seconds after which a message is no longer renewed, however long its handler takes.
            on_event: Called with a `GroupReset` when the group had vanished from the backend.
        """
        options = GroupOptions(start, lease, max_deliveries, backoff or Backoff(), max_processing, on_event)
        return AsyncGroup(self._flow.group(name, options))

    async def create_consumer_group(self, group: str, consumer: str | None = None, *, start: str = EARLIEST) -> None:
        """Make the group where it doesn't exist, and let `process_messages` work in it under this consumer's name."""
        await self._flow.join(group, consumer, GroupOptions(start=start))

    async def process_messages(
        self,
        handler: Callable[[T], Any],
        *,
        concurrency: int = 1,
        prefetch: int | None = None,
        drain: float = DRAIN,
    ) -> None:
        """Call the handler with each payload until `stop`, SIGTERM or Ctrl-C.

        A handler that returns False or raises is retried, ``raise Reject("why")`` makes a dead letter, anything else
        acks. For headers, attempts and settling by hand use `group` and `AsyncGroup.process`, which has the same
        arguments.

        Raises:
            InvalidArgumentError: No group was created.
            ClosedError: The backend was closed.
        """
        await self._flow.process(handler, concurrency, prefetch, drain)

    async def delete(self) -> None:
        """Remove the stream with its groups, their dead letters included."""
        await self._flow.delete()

    async def aclose(self) -> None:
        """End `process_messages`, and close what this object opened itself."""
        self.stop()
        await self._close()

    async def __aenter__(self) -> Self:
        """Return the object itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()
