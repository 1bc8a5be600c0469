"""Work that must not be lost: `Stream` and `AsyncStream`, two thin faces of one flow.

Producers add; consumer groups take, each message at least once per group until it is settled; anybody may read and
follow without a group.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from ailf.runtime import run
from ailf.stream.flow import AddOptions, StreamBase
from ailf.stream.group import AsyncGroup, Group
from ailf.stream.group_flow import GroupOptions
from ailf.stream.tail import Tail
from ailf.stream.worker import DRAIN, ProcessOptions
from ailf.values import EARLIEST, LATEST, Added, Backoff, Entry, GroupEvent, OnLost, Position, Retention, Trimmed

__all__ = ["AsyncStream", "Stream"]

T = TypeVar("T")


class Stream(StreamBase, Generic[T]):
    """Work shared between agents. Get one from `Backend.stream`; annotate with this class.

    Safe to share between threads.
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
        """Append a message and return its id; every group can read it on return (S1).

        Arguments:
            data: The payload; JSON unless the stream has another ``type``, or ``bytes`` as they are.
            headers: Text beside the payload. The trace in effect goes with them (`ailf.tracing`).
            key: Ordering key: of the messages with one key each group handles one after another, in order (S3).
            delay: Seconds until groups may deliver it (S7). `read` and `tail` show it at once.
            at: The same as a time with its zone, on the backend's clock; the later of both counts.
            max_deliveries: Instead of the group's.

        Raises:
            EncodeError: The payload has no JSON form.
            InvalidArgumentError: A header or the size is out of bounds; nothing was sent.
            OutcomeUnknownError: The connection broke after the send; it isn't repeated by itself. See `add_once`.
            StreamFullError: The stream's retention has no room for it (S8).
            UnsupportedError: The backend has no ordering keys.
            BackendError: The backend couldn't do it.
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
        """Append messages in this order, in one round trip, all of them or none, and return their ids; see `add`."""
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
        """Append a message, unless one was added under this id within the window (S7).

        It may be repeated after any error, and is by itself after a lost answer: it is there once.

        Arguments:
            dedup_id: Any non-empty text that names what is to be done once.
            data: The payload.
            window: Seconds for which the id is remembered.
            headers: See `add`, as for the rest.
            key: Ordering key.
            delay: Seconds until groups may deliver it.
            at: The same as a time.
            max_deliveries: Instead of the group's.
        """
        options = AddOptions.of(headers, key, delay, at, max_deliveries)
        return run(self._flow.add_once(dedup_id, data, window, options))

    def cancel(self, id: str) -> bool:  # noqa: A002 - as `Entry.id`
        """Remove a message whose time (``delay``, ``at``) has not come; return False for any other, and leave it.

        The dedup id of one that `add_once` added is free again: under it another message is added (S7).
        """
        return run(self._flow.cancel(id))

    def trim(self, retention: Retention | None = None) -> Trimmed:
        """Remove what a retention doesn't keep, oldest first: the stream's own retention if None (S8).

        It takes a round trip for about a hundred entries that are removed, or out.
        """
        return run(self._flow.trim(retention))

    def read(self, start: Position = EARLIEST, end: Position = LATEST, limit: int = 100) -> list[Entry[T]]:
        """Return the entries from one position to another, in order; groups notice nothing (S17).

        Arguments:
            start: The id of the first, EARLIEST, or a time: what was added from then on.
            end: The id of the last, LATEST, or a time: what was added before it.
            limit: How many at most.

        Raises:
            DecodeError: An entry is not of the stream's type.
            InvalidArgumentError: Not a position.
        """
        return run(self._flow.read(start, end, limit))

    def tail(self, start: Position = LATEST) -> Iterator[Entry[T]]:
        """Follow the stream without a group: every entry from ``start`` on, and then what is added.

        LATEST means from now on: what is added after the first ``next``. An entry that can't be decoded is logged and
        left out. It ends when its generator is closed.
        """
        tail = Tail(self._flow, start)
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
    ) -> Group[T]:
        """Return a consumer group; it is made when a consumer opens it, or by its `open`.

        Arguments:
            name: Any non-empty text.
            start: Where a new group begins: EARLIEST, LATEST, after an id, at a time. An existing one never moves (S9).
            lease: Seconds that a message stays with a consumer that says nothing; a living one renews it.
            takeover: Seconds after which the messages of a process that died go to others, although leases are longer.
                A shorter outage of the backend, or of the process, costs no message (S12).
            max_deliveries: After so many failed deliveries a message becomes a dead letter (S5).
            backoff: How long a failed message waits.
            max_processing: Seconds after which a message is no longer renewed, however long its handler takes.
            on_event: Called with what happens beside the work: `GroupReset`, `DeadLettered`, `LeaseLost`.
        """
        options = GroupOptions(
            start, lease, takeover, max_deliveries, Backoff() if backoff is None else backoff, max_processing, on_event
        )
        return Group(self._flow.group(name, options))

    def create_consumer_group(self, group: str, consumer: str | None = None, *, start: Position = EARLIEST) -> None:
        """Make the group where it doesn't exist, and let `process_messages` work in it under this consumer's name."""
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
        """Call the handler with each payload until `stop`; SIGTERM and Ctrl-C stop it too, see `Group.process`.

        A handler that returns False or raises is retried, ``raise Reject("why")`` makes a dead letter, anything else
        acks. For headers, attempts and settling by hand use `group` and `Group.process`, which has the same arguments.

        Raises:
            InvalidArgumentError: No group was created.
            ClosedError: The backend was closed.
        """
        options = ProcessOptions(
            concurrency=concurrency, prefetch=prefetch, drain=drain, timeout=timeout, on_lost=on_lost, signals=signals
        )
        run(self._flow.process(handler, options))

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


class AsyncStream(StreamBase, Generic[T]):
    """Work shared between agents. Get one from `AsyncBackend.stream`; annotate with this class.

    Safe to share between tasks.
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
        """Append a message and return its id; every group can read it on return (S1).

        Arguments:
            data: The payload; JSON unless the stream has another ``type``, or ``bytes`` as they are.
            headers: Text beside the payload. The trace in effect goes with them (`ailf.tracing`).
            key: Ordering key: of the messages with one key each group handles one after another, in order (S3).
            delay: Seconds until groups may deliver it (S7). `read` and `tail` show it at once.
            at: The same as a time with its zone, on the backend's clock; the later of both counts.
            max_deliveries: Instead of the group's.

        Raises:
            EncodeError: The payload has no JSON form.
            InvalidArgumentError: A header or the size is out of bounds; nothing was sent.
            OutcomeUnknownError: The connection broke after the send; it isn't repeated by itself. See `add_once`.
            StreamFullError: The stream's retention has no room for it (S8).
            UnsupportedError: The backend has no ordering keys.
            BackendError: The backend couldn't do it.
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
        """Append messages in this order, in one round trip, all of them or none, and return their ids; see `add`."""
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
        """Append a message, unless one was added under this id within the window (S7).

        It may be repeated after any error, and is by itself after a lost answer: it is there once. For its
        arguments see `Stream.add_once`.
        """
        options = AddOptions.of(headers, key, delay, at, max_deliveries)
        return await self._flow.add_once(dedup_id, data, window, options)

    async def cancel(self, id: str) -> bool:  # noqa: A002 - as `Entry.id`
        """Remove a message whose time (``delay``, ``at``) has not come; return False for any other, and leave it.

        The dedup id of one that `add_once` added is free again: under it another message is added (S7).
        """
        return await self._flow.cancel(id)

    async def trim(self, retention: Retention | None = None) -> Trimmed:
        """Remove what a retention doesn't keep, oldest first: the stream's own retention if None (S8).

        It takes a round trip for about a hundred entries that are removed, or out.
        """
        return await self._flow.trim(retention)

    async def read(self, start: Position = EARLIEST, end: Position = LATEST, limit: int = 100) -> list[Entry[T]]:
        """Return the entries from one position to another, in order; groups notice nothing (S17).

        Raises:
            DecodeError: An entry is not of the stream's type.
            InvalidArgumentError: Not a position.
        """
        return await self._flow.read(start, end, limit)

    async def tail(self, start: Position = LATEST) -> AsyncIterator[Entry[T]]:
        """Follow the stream without a group: every entry from ``start`` on, and then what is added.

        LATEST means from now on: what is added after the first ``next``. An entry that can't be decoded is logged and
        left out. It ends when its generator is closed.
        """
        tail = Tail(self._flow, start)
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
    ) -> AsyncGroup[T]:
        """Return a consumer group; it is made when a consumer opens it, or by its `open`.

        Arguments:
            name: Any non-empty text.
            start: Where a new group begins: EARLIEST, LATEST, after an id, at a time. An existing one never moves (S9).
            lease: Seconds that a message stays with a consumer that says nothing; a living one renews it.
            takeover: Seconds after which the messages of a process that died go to others, although leases are longer.
                A shorter outage of the backend, or of the process, costs no message (S12).
            max_deliveries: After so many failed deliveries a message becomes a dead letter (S5).
            backoff: How long a failed message waits.
            max_processing: Seconds after which a message is no longer renewed, however long its handler takes.
            on_event: Called with what happens beside the work: `GroupReset`, `DeadLettered`, `LeaseLost`.
        """
        options = GroupOptions(
            start, lease, takeover, max_deliveries, Backoff() if backoff is None else backoff, max_processing, on_event
        )
        return AsyncGroup(self._flow.group(name, options))

    async def create_consumer_group(
        self, group: str, consumer: str | None = None, *, start: Position = EARLIEST
    ) -> None:
        """Make the group where it doesn't exist, and let `process_messages` work in it under this consumer's name."""
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
        """Call the handler with each payload until `stop`; SIGTERM and Ctrl-C stop it too, see `AsyncGroup.process`.

        A handler that returns False or raises is retried, ``raise Reject("why")`` makes a dead letter, anything else
        acks. For headers, attempts and settling by hand use `group` and `AsyncGroup.process`, which has the same
        arguments.

        Raises:
            InvalidArgumentError: No group was created.
            ClosedError: The backend was closed.
        """
        options = ProcessOptions(
            concurrency=concurrency, prefetch=prefetch, drain=drain, timeout=timeout, on_lost=on_lost, signals=signals
        )
        await self._flow.process(handler, options)

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
