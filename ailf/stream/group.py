"""`Group` and `AsyncGroup`: consumer groups, from which agents take work. `GroupFlow` has what both do.

Within a group each message is leased to one consumer at a time. An acked message is done, a failed one is delivered
again after a backoff, and one that fails too often becomes one of the group's dead letters.
"""

from collections.abc import Callable
from typing import Any, Generic, Literal, overload

from ailf.instruments import Destination
from ailf.listing import PAGE, AsyncListing, Listing
from ailf.payload_types import T
from ailf.runtime import run
from ailf.stream.batch_worker import BatchWorker
from ailf.stream.consumer import AsyncConsumer, Consumer
from ailf.stream.delivery import AsyncDelivery, Delivery
from ailf.stream.group_flow import GroupFlow
from ailf.stream.worker import DRAIN, ProcessOptions, Worker
from ailf.values import ConsumerInfo, DeadLetter, GroupInfo, MessageInfo, OnLost, Position

__all__ = ["AsyncDeadLetters", "AsyncGroup", "DeadLetters", "Group"]


def _worker_class(options: ProcessOptions) -> type[Worker]:
    return Worker if options.batch is None else BatchWorker


class DeadLetters(Generic[T]):
    """The messages that a group gave up on; see `Group.dead_letters`."""

    def __init__(self, flow: GroupFlow) -> None:
        self._flow = flow

    def list(self, *, after: str = "", limit: int = 100) -> list[DeadLetter[T]]:
        """Return dead letters, oldest first; those of a partitioned stream by partition.

        Arguments:
            after: The id of the last letter of the page before; "" for the first page.
            limit: The largest number of letters to return. One request reads a hundred.
        """
        return run(self._flow.dead_letters(after, limit))

    def redrive(self, *letters: str) -> int:
        """Deliver dead letters to this group again, as new messages with attempt 1. Each is redriven once.

        Arguments:
            letters: Their ids (`DeadLetter.id`).

        Returns:
            The number of letters that were still there.

        Raises:
            InvalidArgumentError: No id was given, or one is not the id of a dead letter.
        """
        return run(self._flow.take_dead_letters(letters, redrive=True))

    def redrive_all(self) -> int:
        """Redrive every dead letter that there is now; return their number."""
        return run(self._flow.take_all_dead_letters(redrive=True))

    def purge(self, *letters: str) -> int:
        """Remove dead letters for good.

        Arguments:
            letters: Their ids (`DeadLetter.id`).

        Returns:
            The number of letters that were still there.

        Raises:
            InvalidArgumentError: No id was given, or one is not the id of a dead letter.
        """
        return run(self._flow.take_dead_letters(letters, redrive=False))

    def purge_all(self) -> int:
        """Remove every dead letter that there is now; return their number."""
        return run(self._flow.take_all_dead_letters(redrive=False))


class AsyncDeadLetters(Generic[T]):
    """The messages that a group gave up on; see `AsyncGroup.dead_letters`."""

    def __init__(self, flow: GroupFlow) -> None:
        self._flow = flow

    async def list(self, *, after: str = "", limit: int = 100) -> list[DeadLetter[T]]:
        """Return dead letters, oldest first; those of a partitioned stream by partition.

        Arguments:
            after: The id of the last letter of the page before; "" for the first page.
            limit: The largest number of letters to return. One request reads a hundred.
        """
        return await self._flow.dead_letters(after, limit)

    async def redrive(self, *letters: str) -> int:
        """Deliver dead letters to this group again, as new messages with attempt 1. Each is redriven once.

        Arguments:
            letters: Their ids (`DeadLetter.id`).

        Returns:
            The number of letters that were still there.

        Raises:
            InvalidArgumentError: No id was given, or one is not the id of a dead letter.
        """
        return await self._flow.take_dead_letters(letters, redrive=True)

    async def redrive_all(self) -> int:
        """Redrive every dead letter that there is now; return their number."""
        return await self._flow.take_all_dead_letters(redrive=True)

    async def purge(self, *letters: str) -> int:
        """Remove dead letters for good.

        Arguments:
            letters: Their ids (`DeadLetter.id`).

        Returns:
            The number of letters that were still there.

        Raises:
            InvalidArgumentError: No id was given, or one is not the id of a dead letter.
        """
        return await self._flow.take_dead_letters(letters, redrive=False)

    async def purge_all(self) -> int:
        """Remove every dead letter that there is now; return their number."""
        return await self._flow.take_all_dead_letters(redrive=False)


class _GroupBase:
    """The name, the source and `stop` of `Group` and `AsyncGroup`."""

    def __init__(self, flow: GroupFlow) -> None:
        self._flow = flow

    @property
    def name(self) -> str:
        """The group's name."""
        return self._flow.name

    @property
    def source(self) -> Destination:
        """The stream, and the URL of its backend."""
        return self._flow.source

    def stop(self) -> None:
        """Drain and end every `process` of this object, from any thread, a handler or a signal handler."""
        self._flow.stop()

    def __repr__(self) -> str:
        return f"<{self._flow}>"


class Group(_GroupBase, Generic[T]):
    """Workers that share the messages of a stream. `Stream.group` returns one.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     orders = backend.stream("orders")
    ...     id = orders.add("two teas")
    ...     group = orders.group("kitchen")
    ...     group.process(lambda delivery: group.stop())
    ...     assert group.info().lag == 0
    """

    @property
    def dead_letters(self) -> DeadLetters[T]:
        """The messages that this group gave up on."""
        return DeadLetters(self._flow)

    def open(self) -> bool:
        """Make the group now, with its `start`; return False, and change nothing, if it exists."""
        return run(self._flow.open())

    def delete(self) -> None:
        """Remove the group, its leases and its dead letters; the stream stays."""
        run(self._flow.delete())

    def seek(self, position: Position) -> None:
        """Let the group continue after a position: EARLIEST, LATEST, an id, or a time.

        All leases of the group end: settling an earlier delivery raises `LeaseLostError`. Entries after the position
        are delivered as new messages. Dead letters stay.

        Raises:
            InvalidArgumentError: This is not a position.
            NotFoundError: The group doesn't exist; nothing was changed.
            OutcomeUnknownError: No reply came. The request isn't repeated, because that would forget what was delivered
                meanwhile.
        """
        run(self._flow.seek(position))

    def pause(self) -> None:
        """Deliver nothing to any consumer in any process until `resume`; leased messages can be settled.

        Raises:
            NotFoundError: The group doesn't exist; nothing was changed.
        """
        run(self._flow.pause(paused=True))

    def resume(self) -> None:
        """Deliver messages again.

        Raises:
            NotFoundError: The group doesn't exist; nothing was changed.
        """
        run(self._flow.pause(paused=False))

    def info(self) -> GroupInfo:
        """Return the state of the group: lag, pending, delayed and dead messages, consumers."""
        return run(self._flow.info())

    def inspect(self, id: str) -> MessageInfo:  # noqa: A002 - as `Entry.id`
        """Return what the group has made of one entry: whether it is unread, leased, waiting, or nothing is left to do.

        Arguments:
            id: The entry's id, as `Stream.add` returned it.

        Raises:
            InvalidArgumentError: This is not the id of an entry.
            NotFoundError: The group doesn't exist.
        """
        return run(self._flow.inspect(id))

    def consumer(self, name: str | None = None, *, prefetch: int = 1) -> Consumer[T]:
        """Return a consumer: a context manager and iterator of deliveries, for a loop of your own.

        Arguments:
            name: Its name for operators; host name and process id if None.
            prefetch: The most messages that one fetch takes. They wait in the consumer's buffer, leased and renewed.
        """
        return Consumer(self._flow, name, prefetch)

    def consumers(self, *, page_size: int = PAGE) -> Listing[ConsumerInfo]:
        """Return the group's consumers, in ascending order of their names. They are read when it is iterated.

        They are the open ones, and those that are gone and whose messages no other consumer has taken over yet.

        Arguments:
            page_size: How many consumers an iteration reads at a time, up to 10,000.

        Raises:
            UnsupportedError: The backend can't list what exists.
        """
        return Listing(*self._flow.listing_of_consumers(), page_size)

    @overload
    def process(
        self,
        handler: Callable[[Delivery[T]], Any],
        *,
        batch: None = None,
        concurrency: int = 1,
        prefetch: int | None = None,
        drain: float = DRAIN,
        timeout: float | None = None,
        on_lost: OnLost = OnLost.CANCEL,
        consumer: str | None = None,
        signals: bool | None = None,
        until_idle: bool = False,
        threads: bool = False,
    ) -> None: ...

    @overload
    def process(
        self,
        handler: Callable[[list[Delivery[T]]], Any],
        *,
        batch: int,
        linger: float = 0.0,
        concurrency: int = 1,
        prefetch: int | None = None,
        drain: float = DRAIN,
        timeout: float | None = None,
        on_lost: OnLost = OnLost.CANCEL,
        consumer: str | None = None,
        signals: bool | None = None,
        until_idle: bool = False,
        threads: bool = False,
    ) -> None: ...

    def process(
        self,
        handler: Callable[[Any], Any],
        *,
        batch: int | None = None,
        linger: float = 0.0,
        concurrency: int = 1,
        prefetch: int | None = None,
        drain: float = DRAIN,
        timeout: float | None = None,
        on_lost: OnLost = OnLost.CANCEL,
        consumer: str | None = None,
        signals: bool | None = None,
        until_idle: bool = False,
        threads: bool = False,
    ) -> None:
        """Call the handler with each delivery until stopped.

        A handler that returns False or raises has failed: the message is delivered again after the group's backoff.
        ``raise Retry("why", delay=5)`` sets another delay, and ``raise Reject("why")`` makes a dead letter; an
        `ExceptionGroup` that holds nothing else has the same effect. Any other result acks, unless the handler has
        settled the delivery itself. Messages that it sends continue the trace of its message (`ailf.tracing`).

        With ``batch`` the handler gets a list of deliveries. It may settle each by itself; how it ends settles the rest
        in the same way, each with the backoff of its own attempt. Messages that it sends begin a trace of their own,
        except within ``with delivery``. Two messages of one ordering key are never in one batch.

        Arguments:
            handler: A function of one `Delivery`; with ``batch``, of a list of them.
            batch: The most deliveries in a list; None: the handler gets each by itself.
            linger: Seconds that a batch waits, from its first message on, until it is full.
            concurrency: The most handlers that run at once, each in its own thread; the caller's is one of them.
            prefetch: The most messages that one fetch takes; ``concurrency`` if None, and always as many as ``batch``.
            drain: Seconds that running handlers have after a stop. Messages not started are released at once.
            timeout: Seconds that a handler may take; no limit if None. A thread can't be interrupted: its lease is
                given up, with a warning, and this worker handles the message again only after the handler has ended.
            on_lost: A thread can't be cancelled, whatever the value; let the handler check ``delivery.lost``.
            consumer: The consumer's name, for operators.
            signals: Whether SIGTERM and Ctrl-C stop it as `stop` does: True, False, or None for those whose handlers
                are the default ones (only in the main thread). A second signal has its former effect.
            until_idle: Whether it ends, too, when nothing is left that could be delivered now: what handlers add to the
                stream is still handled; messages with a later time, or leased to other consumers, are left.
            threads: For the asyncio class. Here handlers always run in threads.

        Raises:
            InvalidArgumentError: An argument is invalid, or the handler is a coroutine function or a generator
                function.
            ClosedError: The backend was closed.
            PermissionDeniedError: The backend refuses access. After other errors of the backend the worker logs, waits
                and retries.
            BaseException: The error of a handler if it isn't an `Exception`. Ctrl-C, and `sys.exit` in the main thread,
                give the message back; anything else counts as a failed delivery.
        """
        options = ProcessOptions(
            concurrency=concurrency, prefetch=prefetch, drain=drain, timeout=timeout, on_lost=on_lost, signals=signals,
            batch=batch, linger=linger, until_idle=until_idle, threads=threads,
        )  # fmt: skip
        run(_worker_class(options)(self._flow, handler, options, consumer).run())


class AsyncGroup(_GroupBase, Generic[T]):
    """Workers that share the messages of a stream. `AsyncStream.group` returns one.

    >>> import asyncio, ailf
    >>> async def main() -> None:
    ...     async with ailf.connect_async("memory://") as backend:
    ...         orders = backend.stream("orders")
    ...         await orders.add("two teas")
    ...         group = orders.group("kitchen")
    ...         await group.process(lambda delivery: group.stop())
    ...         assert (await group.info()).lag == 0
    >>> asyncio.run(main())
    """

    @property
    def dead_letters(self) -> AsyncDeadLetters[T]:
        """The messages that this group gave up on."""
        return AsyncDeadLetters(self._flow)

    async def open(self) -> bool:
        """Make the group now, with its `start`; return False, and change nothing, if it exists."""
        return await self._flow.open()

    async def delete(self) -> None:
        """Remove the group, its leases and its dead letters; the stream stays."""
        await self._flow.delete()

    async def seek(self, position: Position) -> None:
        """Let the group continue after a position: EARLIEST, LATEST, an id, or a time.

        All leases of the group end: settling an earlier delivery raises `LeaseLostError`. Entries after the position
        are delivered as new messages. Dead letters stay.

        Raises:
            InvalidArgumentError: This is not a position.
            NotFoundError: The group doesn't exist; nothing was changed.
            OutcomeUnknownError: No reply came. The request isn't repeated, because that would forget what was delivered
                meanwhile.
        """
        await self._flow.seek(position)

    async def pause(self) -> None:
        """Deliver nothing to any consumer in any process until `resume`; leased messages can be settled.

        Raises:
            NotFoundError: The group doesn't exist; nothing was changed.
        """
        await self._flow.pause(paused=True)

    async def resume(self) -> None:
        """Deliver messages again.

        Raises:
            NotFoundError: The group doesn't exist; nothing was changed.
        """
        await self._flow.pause(paused=False)

    async def info(self) -> GroupInfo:
        """Return the state of the group: lag, pending, delayed and dead messages, consumers."""
        return await self._flow.info()

    async def inspect(self, id: str) -> MessageInfo:  # noqa: A002 - as `Entry.id`
        """Return what the group has made of one entry: whether it is unread, leased, waiting, or nothing is left to do.

        Arguments:
            id: The entry's id, as `Stream.add` returned it.

        Raises:
            InvalidArgumentError: This is not the id of an entry.
            NotFoundError: The group doesn't exist.
        """
        return await self._flow.inspect(id)

    def consumer(self, name: str | None = None, *, prefetch: int = 1) -> AsyncConsumer[T]:
        """Return a consumer: a context manager and iterator of deliveries, for a loop of your own.

        Arguments:
            name: Its name for operators; host name and process id if None.
            prefetch: The most messages that one fetch takes. They wait in the consumer's buffer, leased and renewed.
        """
        return AsyncConsumer(self._flow, name, prefetch)

    def consumers(self, *, page_size: int = PAGE) -> AsyncListing[ConsumerInfo]:
        """Return the group's consumers, in ascending order of their names. They are read when it is iterated.

        They are the open ones, and those that are gone and whose messages no other consumer has taken over yet.

        Arguments:
            page_size: How many consumers an iteration reads at a time, up to 10,000.

        Raises:
            UnsupportedError: The backend can't list what exists.
        """
        return AsyncListing(*self._flow.listing_of_consumers(), page_size)

    @overload
    async def process(
        self,
        handler: Callable[[AsyncDelivery[T]], Any],
        *,
        batch: None = None,
        concurrency: int = 1,
        prefetch: int | None = None,
        drain: float = DRAIN,
        timeout: float | None = None,
        on_lost: OnLost = OnLost.CANCEL,
        consumer: str | None = None,
        signals: bool | None = None,
        until_idle: bool = False,
        threads: Literal[False] = False,
    ) -> None: ...

    @overload
    async def process(
        self,
        handler: Callable[[list[AsyncDelivery[T]]], Any],
        *,
        batch: int,
        linger: float = 0.0,
        concurrency: int = 1,
        prefetch: int | None = None,
        drain: float = DRAIN,
        timeout: float | None = None,
        on_lost: OnLost = OnLost.CANCEL,
        consumer: str | None = None,
        signals: bool | None = None,
        until_idle: bool = False,
        threads: Literal[False] = False,
    ) -> None: ...

    @overload
    async def process(
        self,
        handler: Callable[[Delivery[T]], Any],
        *,
        batch: None = None,
        concurrency: int = 1,
        prefetch: int | None = None,
        drain: float = DRAIN,
        timeout: float | None = None,
        on_lost: OnLost = OnLost.CANCEL,
        consumer: str | None = None,
        signals: bool | None = None,
        until_idle: bool = False,
        threads: Literal[True],
    ) -> None: ...

    @overload
    async def process(
        self,
        handler: Callable[[list[Delivery[T]]], Any],
        *,
        batch: int,
        linger: float = 0.0,
        concurrency: int = 1,
        prefetch: int | None = None,
        drain: float = DRAIN,
        timeout: float | None = None,
        on_lost: OnLost = OnLost.CANCEL,
        consumer: str | None = None,
        signals: bool | None = None,
        until_idle: bool = False,
        threads: Literal[True],
    ) -> None: ...

    async def process(
        self,
        handler: Callable[[Any], Any],
        *,
        batch: int | None = None,
        linger: float = 0.0,
        concurrency: int = 1,
        prefetch: int | None = None,
        drain: float = DRAIN,
        timeout: float | None = None,
        on_lost: OnLost = OnLost.CANCEL,
        consumer: str | None = None,
        signals: bool | None = None,
        until_idle: bool = False,
        threads: bool = False,
    ) -> None:
        """Call the handler with each delivery until stopped.

        A handler that returns False or raises has failed: the message is delivered again after the group's backoff.
        ``raise Retry("why", delay=5)`` sets another delay, and ``raise Reject("why")`` makes a dead letter; an
        `ExceptionGroup` that holds nothing else has the same effect. Any other result acks, unless the handler has
        settled the delivery itself. Messages that it sends continue the trace of its message (`ailf.tracing`).

        With ``batch`` the handler gets a list of deliveries. It may settle each by itself; how it ends settles the rest
        in the same way, each with the backoff of its own attempt. Messages that it sends begin a trace of their own,
        except within ``async with delivery``. Two messages of one ordering key are never in one batch.

        Arguments:
            handler: A function or coroutine function of one `AsyncDelivery`; with ``batch``, of a list of them.
            batch: The most deliveries in a list; None: the handler gets each by itself.
            linger: Seconds that a batch waits, from its first message on, until it is full.
            concurrency: The most handlers that run at once, each in a task of its own.
            prefetch: The most messages that one fetch takes; ``concurrency`` if None, and always as many as ``batch``.
            drain: Seconds that running handlers have after a stop. Messages not started are released at once.
            timeout: Seconds that a handler may take; no limit if None. Then it is cancelled, and its delivery fails.
            on_lost: Whether a handler is cancelled when the lease on its message is lost, because another worker may
                have the message then; that of a batch, when the leases on all messages are lost that it has not
                settled. With `OnLost.SIGNAL` the handler checks ``delivery.lost``.
            consumer: The consumer's name, for operators.
            signals: Whether SIGTERM and Ctrl-C stop it as `stop` does: True, False, or None for those whose handlers
                are the default ones (only in the main thread). A second signal has its former effect.
            until_idle: Whether it ends, too, when nothing is left that could be delivered now: what handlers add to the
                stream is still handled; messages with a later time, or leased to other consumers, are left.
            threads: Whether the handler, a plain function, runs in ``concurrency`` threads of its own, with a blocking
                `Delivery`, the context of its message, and ``drain`` and ``timeout`` as in `Group.process`. Without it
                a plain function runs in the event loop and must not block it; one that does so for over 0.1 s is named
                in the log, once.

        Raises:
            InvalidArgumentError: An argument is invalid, or the handler is a generator function.
            ClosedError: The backend was closed.
            PermissionDeniedError: The backend refuses access. After other errors of the backend the worker logs, waits
                and retries.
            BaseException: The error of a handler if it isn't an `Exception`. Ctrl-C and `sys.exit` give the message
                back; anything else counts as a failed delivery. A `CancelledError` of the handler's own is a failed
                delivery too, but doesn't end `process`.
        """
        options = ProcessOptions(
            concurrency=concurrency, prefetch=prefetch, drain=drain, timeout=timeout, on_lost=on_lost, signals=signals,
            batch=batch, linger=linger, until_idle=until_idle, threads=threads,
        )  # fmt: skip
        await _worker_class(options)(self._flow, handler, options, consumer).run()
