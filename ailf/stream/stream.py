"""`Stream` and `AsyncStream`: durable messages, added by producers and settled by consumer groups.

Each group gets every message at least once, until it is settled. Reading and following a stream need no group. The
two classes differ only in how they wait: `StreamFlow` has what both do.
"""

from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Generic, Self

from ailf.listing import PAGE, AsyncListing, Listing
from ailf.payload_types import T
from ailf.runtime import run
from ailf.stream.flow import AddOptions, StreamBase
from ailf.stream.group import AsyncGroup, Group
from ailf.stream.group_flow import GroupOptions
from ailf.stream.tail import tail_of
from ailf.stream.worker import DRAIN, ProcessOptions
from ailf.values import (
    EARLIEST,
    LATEST,
    Added,
    Backoff,
    Entry,
    GroupEvent,
    OnLost,
    Position,
    Retention,
    StreamInfo,
    Trimmed,
)

__all__ = ["AsyncStream", "Stream"]


class Stream(StreamBase, Generic[T]):
    """A stream of durable messages. `Backend.stream` returns one; annotate with this class.

    Threads may share it. Example:

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     orders: ailf.Stream[str] = backend.stream("orders", type=str)
    ...     first = orders.add("two teas")
    ...     assert [(entry.id, entry.data) for entry in orders.read()] == [(first, "two teas")]
    """

    def add(
        self,
        data: T,
        *,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
        delay: float = 0.0,
        at: datetime | None = None,
        max_deliveries: int | None = None,
    ) -> str:
        """Append a message and return its id; every group can read it when this returns.

        Arguments:
            data: The payload: JSON unless the stream has another ``type``; ``bytes`` are sent unchanged.
            headers: Text that travels beside the payload. The current trace is added (`ailf.tracing`).
            key: Ordering key: each group handles the messages of one key one after another, in the order of adding.
                In a partitioned stream it also chooses the partition.
            delay: Seconds until groups may deliver it. `read` and `tail` show it at once.
            at: Earliest time of delivery, with its zone, on the backend's clock. If ``delay`` ends later, that counts.
            max_deliveries: Deliveries after which the message becomes a dead letter; the group's number if None.

        Raises:
            EncodeError: The payload is not of the stream's ``type``, or has no JSON form. Nothing was sent.
            InvalidArgumentError: An argument is invalid, or the message is too large. Nothing was sent.
            OutcomeUnknownError: The connection broke after the request was sent, so the message may have been added. It
                isn't sent again, because that could add the message twice; use `add_once` where that matters.
            StreamFullError: The stream has as many unsettled messages as its retention allows. Nothing was added.
            UnsupportedError: The backend has no ordering keys.
            BackendError: The backend is unavailable, or refused the request.
        """
        return run(self._flow.add(data, AddOptions.of(headers, key, delay, at, max_deliveries)))[0]

    def add_many(
        self,
        items: Iterable[T],
        *,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
        delay: float = 0.0,
        at: datetime | None = None,
        max_deliveries: int | None = None,
    ) -> list[str]:
        """Append messages in this order, all of them or none, in one round trip; return their ids.

        The options apply to each message; see `add`. In a partitioned stream all of them go to one partition.

        Raises:
            InvalidArgumentError: As in `add`, or there are more items than the retention's ``max_len``.
        """
        return run(self._flow.add_many(items, AddOptions.of(headers, key, delay, at, max_deliveries)))

    def add_once(
        self,
        dedup_id: str,
        data: T,
        *,
        window: float = 86_400.0,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
        delay: float = 0.0,
        at: datetime | None = None,
        max_deliveries: int | None = None,
    ) -> Added:
        """Append a message unless one was added under this dedup id within its window.

        After a lost reply the request is repeated automatically. You may also repeat the call yourself after any error:
        the message is added once. For the errors see `add`.

        Arguments:
            dedup_id: Non-empty text that identifies the message. In a partitioned stream it is remembered in the
                message's partition, which ``key`` chooses, or the dedup id itself: use it always with the same key.
            data: The payload.
            window: Seconds for which the dedup id is remembered.
            headers: Text that travels beside the payload. The current trace is added (`ailf.tracing`).
            key: Ordering key: each group handles the messages of one key one after another, in the order of adding.
                In a partitioned stream it also chooses the partition.
            delay: Seconds until groups may deliver it. `read` and `tail` show it at once.
            at: Earliest time of delivery, with its zone, on the backend's clock. If ``delay`` ends later, that counts.
            max_deliveries: Deliveries after which the message becomes a dead letter; the group's number if None.

        Returns:
            The id of the entry, and whether it had been added before.
        """
        options = AddOptions.of(headers, key, delay, at, max_deliveries)
        return run(self._flow.add_once(dedup_id, data, window, options))

    def cancel(self, id: str) -> bool:  # noqa: A002 - as `Entry.id`
        """Remove a message whose ``delay`` or ``at`` has not passed; return False, and change nothing, for any other.

        If `add_once` added it, its dedup id is free again: another `add_once` under it adds a message.

        Raises:
            InvalidArgumentError: This is not the id of an entry.
            OutcomeUnknownError: The connection broke after the request was sent; the message may have been removed.
        """
        return run(self._flow.cancel(id))

    def trim(self, retention: Retention | None = None) -> Trimmed:
        """Apply a retention to the whole stream now, oldest entries first; return how many were removed.

        It takes one round trip for a thousand small entries that are removed, a few large ones, or a hundred pending.

        Arguments:
            retention: What to keep; the stream's own retention if None.

        Raises:
            InvalidArgumentError: There is no retention, or it keeps everything.
        """
        return run(self._flow.trim(retention))

    def read(self, start: Position = EARLIEST, end: Position = LATEST, limit: int = 100) -> list[Entry[T]]:
        """Return the entries between two positions, in order; no group is affected.

        Those of a partitioned stream are merged by time, then partition; of an id of another partition the time counts.

        Arguments:
            start: The id of the first entry, EARLIEST, or a time: entries added at or after it.
            end: The id of the last entry, LATEST, or a time: entries added before it.
            limit: The largest number of entries to return.

        Raises:
            DecodeError: An entry is not of the stream's type.
            InvalidArgumentError: ``start`` or ``end`` is not a position.
        """
        return run(self._flow.read(start, end, limit))

    def tail(self, start: Position = LATEST) -> Generator[Entry[T], None, None]:
        """Follow the stream without a group: yield every entry from ``start`` on, and then new ones as they are added.

        LATEST yields what is added after the first ``next``. An entry that can't be decoded is logged and skipped. The
        iteration ends when its generator is closed. Entries of a partitioned stream are merged by time where several
        are there, and each partition's are in order.

        Raises:
            ClosedError: The backend was closed.
            InvalidArgumentError: ``start`` is not a position.
        """
        tail = tail_of(self._flow, start)
        try:
            while (entry := run(tail.next())) is not None:
                yield entry
        finally:
            run(tail.close())

    def group(
        self,
        name: str,
        *,
        start: Position = EARLIEST,
        lease: float = 30.0,
        takeover: float = 10.0,
        max_deliveries: int = 5,
        backoff: Backoff | None = None,
        max_processing: float = 86_400.0,
        on_event: Callable[[GroupEvent], Any] | None = None,
        key_concurrency: int = 1,
    ) -> Group[T]:
        """Return a consumer group. Its `open`, or the first consumer that opens, makes it at the backend.

        Arguments:
            name: Any non-empty text.
            start: Where a new group begins: EARLIEST, LATEST, after an id, or at a time. An existing one doesn't move.
            lease: Seconds for which a message is leased to a consumer. A living process renews its leases.
            takeover: Seconds within which the messages of a process that died go to other consumers, however long their
                leases are. An outage, or a pause of the process, loses no lease if it is shorter than 0.4 times
                ``takeover`` and ``lease``.
            max_deliveries: Failed deliveries after which a message becomes a dead letter.
            backoff: How long a failed message waits for its next delivery; ``Backoff()`` if None.
            max_processing: Seconds after which a lease is no longer renewed, however long the handler takes.
            on_event: Called with each event of the group: `GroupReset`, `DeadLettered` or `LeaseLost`.
            key_concurrency: How many messages of one ordering key may be out at once, 1 to 100; with 1 they are handled
                one after another. The number of the last fetch counts for the whole group.

        Raises:
            InvalidArgumentError: An argument is invalid.
            UnsupportedError: ``key_concurrency`` is above 1, and the backend has no ordering keys.
        """
        options = GroupOptions(
            start, lease, takeover, max_deliveries, Backoff() if backoff is None else backoff, max_processing, on_event,
            key_concurrency,
        )  # fmt: skip
        return Group(self._flow.group(name, options))

    def create_consumer_group(self, group: str, consumer: str | None = None, *, start: Position = EARLIEST) -> None:
        """Make the group unless it exists, and let `process_messages` consume from it under this consumer's name."""
        run(self._flow.join(group, consumer, GroupOptions(start=start)))

    def process_messages(
        self,
        handler: Callable[[T], Any],
        *,
        concurrency: int = 1,
        prefetch: int | None = None,
        drain: float = DRAIN,
        timeout: float | None = None,
        on_lost: OnLost = OnLost.CANCEL,
        signals: bool | None = None,
    ) -> None:
        """Call the handler with each payload until stopped by `stop`, SIGTERM or Ctrl-C; see `Group.process`.

        If the handler returns False or raises, the message is delivered again. ``raise Reject("why")`` makes it a dead
        letter. Any other result acks it. For headers, attempts, or settling in the handler, use `group` and its method
        `process`, which takes the same arguments.

        Raises:
            InvalidArgumentError: `create_consumer_group` was not called, or an argument is invalid.
            ClosedError: The backend was closed.
        """
        options = ProcessOptions(
            concurrency=concurrency, prefetch=prefetch, drain=drain, timeout=timeout, on_lost=on_lost, signals=signals
        )
        run(self._flow.process(handler, options))

    def info(self) -> StreamInfo:
        """Return the state of the stream: length, partitions, first and last entry, number of groups.

        A stream that doesn't exist has no entries. The object may have been made with any number of partitions: the
        result has the stored one.

        Raises:
            InvalidArgumentError: The stream is a partition of another one.
            UnsupportedError: The backend can't list what exists.
        """
        return run(self._flow.info())

    def groups(self, *, page_size: int = PAGE) -> Listing[str]:
        """Return the names of the stream's groups, in ascending order. They are read when it is iterated.

        The object may have been made with any number of partitions, as for `info`.

        Arguments:
            page_size: How many names an iteration reads at a time, up to 10,000.

        Raises:
            UnsupportedError: The backend can't list what exists.
        """
        return Listing(*self._flow.listing_of_groups(), page_size)

    def delete(self) -> None:
        """Remove the stream, its groups and their dead letters."""
        run(self._flow.delete())

    def close(self) -> None:
        """End `process_messages`, and close the backend if this object opened it."""
        self.stop()
        run(self._close())

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()


class AsyncStream(StreamBase, Generic[T]):
    """A stream of durable messages. `AsyncBackend.stream` returns one; annotate with this class.

    Tasks may share it. Example:

    >>> import asyncio, ailf
    >>> async def main() -> None:
    ...     async with ailf.connect_async("memory://") as backend:
    ...         orders: ailf.AsyncStream[str] = backend.stream("orders", type=str)
    ...         first = await orders.add("two teas")
    ...         assert [(entry.id, entry.data) for entry in await orders.read()] == [(first, "two teas")]
    >>> asyncio.run(main())
    """

    async def add(
        self,
        data: T,
        *,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
        delay: float = 0.0,
        at: datetime | None = None,
        max_deliveries: int | None = None,
    ) -> str:
        """Append a message and return its id; every group can read it when this returns.

        Arguments:
            data: The payload: JSON unless the stream has another ``type``; ``bytes`` are sent unchanged.
            headers: Text that travels beside the payload. The current trace is added (`ailf.tracing`).
            key: Ordering key: each group handles the messages of one key one after another, in the order of adding.
                In a partitioned stream it also chooses the partition.
            delay: Seconds until groups may deliver it. `read` and `tail` show it at once.
            at: Earliest time of delivery, with its zone, on the backend's clock. If ``delay`` ends later, that counts.
            max_deliveries: Deliveries after which the message becomes a dead letter; the group's number if None.

        Raises:
            EncodeError: The payload is not of the stream's ``type``, or has no JSON form. Nothing was sent.
            InvalidArgumentError: An argument is invalid, or the message is too large. Nothing was sent.
            OutcomeUnknownError: The connection broke after the request was sent, so the message may have been added. It
                isn't sent again, because that could add the message twice; use `add_once` where that matters.
            StreamFullError: The stream has as many unsettled messages as its retention allows. Nothing was added.
            UnsupportedError: The backend has no ordering keys.
            BackendError: The backend is unavailable, or refused the request.
        """
        return (await self._flow.add(data, AddOptions.of(headers, key, delay, at, max_deliveries)))[0]

    async def add_many(
        self,
        items: Iterable[T],
        *,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
        delay: float = 0.0,
        at: datetime | None = None,
        max_deliveries: int | None = None,
    ) -> list[str]:
        """Append messages in this order, all of them or none, in one round trip; return their ids.

        The options apply to each message; see `add`. In a partitioned stream all of them go to one partition.

        Raises:
            InvalidArgumentError: As in `add`, or there are more items than the retention's ``max_len``.
        """
        return await self._flow.add_many(items, AddOptions.of(headers, key, delay, at, max_deliveries))

    async def add_once(
        self,
        dedup_id: str,
        data: T,
        *,
        window: float = 86_400.0,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
        delay: float = 0.0,
        at: datetime | None = None,
        max_deliveries: int | None = None,
    ) -> Added:
        """Append a message unless one was added under this dedup id within its window.

        After a lost reply the request is repeated automatically. You may also repeat the call yourself after any error:
        the message is added once. For the errors see `add`.

        Arguments:
            dedup_id: Non-empty text that identifies the message. In a partitioned stream it is remembered in the
                message's partition, which ``key`` chooses, or the dedup id itself: use it always with the same key.
            data: The payload.
            window: Seconds for which the dedup id is remembered.
            headers: Text that travels beside the payload. The current trace is added (`ailf.tracing`).
            key: Ordering key: each group handles the messages of one key one after another, in the order of adding.
                In a partitioned stream it also chooses the partition.
            delay: Seconds until groups may deliver it. `read` and `tail` show it at once.
            at: Earliest time of delivery, with its zone, on the backend's clock. If ``delay`` ends later, that counts.
            max_deliveries: Deliveries after which the message becomes a dead letter; the group's number if None.

        Returns:
            The id of the entry, and whether it had been added before.
        """
        options = AddOptions.of(headers, key, delay, at, max_deliveries)
        return await self._flow.add_once(dedup_id, data, window, options)

    async def cancel(self, id: str) -> bool:  # noqa: A002 - as `Entry.id`
        """Remove a message whose ``delay`` or ``at`` has not passed; return False, and change nothing, for any other.

        If `add_once` added it, its dedup id is free again: another `add_once` under it adds a message.

        Raises:
            InvalidArgumentError: This is not the id of an entry.
            OutcomeUnknownError: The connection broke after the request was sent; the message may have been removed.
        """
        return await self._flow.cancel(id)

    async def trim(self, retention: Retention | None = None) -> Trimmed:
        """Apply a retention to the whole stream now, oldest entries first; return how many were removed.

        It takes one round trip for a thousand small entries that are removed, a few large ones, or a hundred pending.

        Arguments:
            retention: What to keep; the stream's own retention if None.

        Raises:
            InvalidArgumentError: There is no retention, or it keeps everything.
        """
        return await self._flow.trim(retention)

    async def read(self, start: Position = EARLIEST, end: Position = LATEST, limit: int = 100) -> list[Entry[T]]:
        """Return the entries between two positions, in order; no group is affected.

        Those of a partitioned stream are merged by time, then partition; of an id of another partition the time counts.

        Arguments:
            start: The id of the first entry, EARLIEST, or a time: entries added at or after it.
            end: The id of the last entry, LATEST, or a time: entries added before it.
            limit: The largest number of entries to return.

        Raises:
            DecodeError: An entry is not of the stream's type.
            InvalidArgumentError: ``start`` or ``end`` is not a position.
        """
        return await self._flow.read(start, end, limit)

    async def tail(self, start: Position = LATEST) -> AsyncGenerator[Entry[T], None]:
        """Follow the stream without a group: yield every entry from ``start`` on, and then new ones as they are added.

        LATEST yields what is added after the first ``next``. An entry that can't be decoded is logged and skipped. The
        iteration ends when its generator is closed. Entries of a partitioned stream are merged by time where several
        are there, and each partition's are in order.

        Raises:
            ClosedError: The backend was closed.
            InvalidArgumentError: ``start`` is not a position.
        """
        tail = tail_of(self._flow, start)
        try:
            while (entry := await tail.next()) is not None:
                yield entry
        finally:
            await tail.close()

    def group(
        self,
        name: str,
        *,
        start: Position = EARLIEST,
        lease: float = 30.0,
        takeover: float = 10.0,
        max_deliveries: int = 5,
        backoff: Backoff | None = None,
        max_processing: float = 86_400.0,
        on_event: Callable[[GroupEvent], Any] | None = None,
        key_concurrency: int = 1,
    ) -> AsyncGroup[T]:
        """Return a consumer group. Its `open`, or the first consumer that opens, makes it at the backend.

        Arguments:
            name: Any non-empty text.
            start: Where a new group begins: EARLIEST, LATEST, after an id, or at a time. An existing one doesn't move.
            lease: Seconds for which a message is leased to a consumer. A living process renews its leases.
            takeover: Seconds within which the messages of a process that died go to other consumers, however long their
                leases are. An outage, or a pause of the process, loses no lease if it is shorter than 0.4 times
                ``takeover`` and ``lease``.
            max_deliveries: Failed deliveries after which a message becomes a dead letter.
            backoff: How long a failed message waits for its next delivery; ``Backoff()`` if None.
            max_processing: Seconds after which a lease is no longer renewed, however long the handler takes.
            on_event: Called with each event of the group: `GroupReset`, `DeadLettered` or `LeaseLost`.
            key_concurrency: How many messages of one ordering key may be out at once, 1 to 100; with 1 they are handled
                one after another. The number of the last fetch counts for the whole group.

        Raises:
            InvalidArgumentError: An argument is invalid.
            UnsupportedError: ``key_concurrency`` is above 1, and the backend has no ordering keys.
        """
        options = GroupOptions(
            start, lease, takeover, max_deliveries, Backoff() if backoff is None else backoff, max_processing, on_event,
            key_concurrency,
        )  # fmt: skip
        return AsyncGroup(self._flow.group(name, options))

    async def create_consumer_group(
        self, group: str, consumer: str | None = None, *, start: Position = EARLIEST
    ) -> None:
        """Make the group unless it exists, and let `process_messages` consume from it under this consumer's name."""
        await self._flow.join(group, consumer, GroupOptions(start=start))

    async def process_messages(
        self,
        handler: Callable[[T], Any],
        *,
        concurrency: int = 1,
        prefetch: int | None = None,
        drain: float = DRAIN,
        timeout: float | None = None,
        on_lost: OnLost = OnLost.CANCEL,
        signals: bool | None = None,
    ) -> None:
        """Call the handler with each payload until stopped by `stop`, SIGTERM or Ctrl-C; see `AsyncGroup.process`.

        If the handler returns False or raises, the message is delivered again. ``raise Reject("why")`` makes it a dead
        letter. Any other result acks it. For headers, attempts, or settling in the handler, use `group` and its method
        `process`, which takes the same arguments.

        Raises:
            InvalidArgumentError: `create_consumer_group` was not called, or an argument is invalid.
            ClosedError: The backend was closed.
        """
        options = ProcessOptions(
            concurrency=concurrency, prefetch=prefetch, drain=drain, timeout=timeout, on_lost=on_lost, signals=signals
        )
        await self._flow.process(handler, options)

    async def info(self) -> StreamInfo:
        """Return the state of the stream: length, partitions, first and last entry, number of groups.

        A stream that doesn't exist has no entries. The object may have been made with any number of partitions: the
        result has the stored one.

        Raises:
            InvalidArgumentError: The stream is a partition of another one.
            UnsupportedError: The backend can't list what exists.
        """
        return await self._flow.info()

    def groups(self, *, page_size: int = PAGE) -> AsyncListing[str]:
        """Return the names of the stream's groups, in ascending order. They are read when it is iterated.

        The object may have been made with any number of partitions, as for `info`.

        Arguments:
            page_size: How many names an iteration reads at a time, up to 10,000.

        Raises:
            UnsupportedError: The backend can't list what exists.
        """
        return AsyncListing(*self._flow.listing_of_groups(), page_size)

    async def delete(self) -> None:
        """Remove the stream, its groups and their dead letters."""
        await self._flow.delete()

    async def aclose(self) -> None:
        """End `process_messages`, and close the backend if this object opened it."""
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
