"""Work that must not be lost: `Stream` and `AsyncStream`, two thin faces of one flow.

Producers add; consumer groups take, each message at least once per group until it is settled; anybody may read and
follow without a group.
"""

import functools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from ailf.attached import Attached
from ailf.checks import check_name
from ailf.engine import Engine
from ailf.group import AsyncGroup, Group
from ailf.leasing import GroupOptions
from ailf.reading import StreamFlow, Tail
from ailf.runtime import run
from ailf.values import EARLIEST, LATEST, Backoff, Entry, GroupReset
from ailf.worker import DRAIN

__all__ = ["AsyncStream", "Stream"]

T = TypeVar("T")


class _StreamBase(Attached):
    """What both faces share: the name, and how the flow is made."""

    def __init__(self, name: str, *, type: Any = Any, engine: Engine | None = None) -> None:  # noqa: A002 - `type=` is the API
        super().__init__(engine)
        self._name = check_name("stream", name)
        self._type = type

    @functools.cached_property
    def _flow(self) -> StreamFlow:
        return StreamFlow(self._engine, self._name, self._type)

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
    """Work shared between agents. Get one from `Backend.stream`; annotate with this class.

    Safe to share between threads.
    """

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
    """Work shared between agents. Get one from `AsyncBackend.stream`; annotate with this class.

    Safe to share between tasks.
    """

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
