"""Consumer groups: `Group` and `AsyncGroup`, where agents take work from, two thin faces of one flow.

Within a group each message is leased to one consumer at a time; what is acked is done, what fails comes back after a
backoff, and what fails too often becomes one of the group's dead letters.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ailf.runtime import run
from ailf.stream.consumer import AsyncConsumer, Consumer
from ailf.stream.delivery import AsyncDelivery, Delivery
from ailf.stream.group_flow import GroupFlow
from ailf.stream.worker import DRAIN, ProcessOptions, Worker
from ailf.values import DeadLetter, GroupInfo, OnLost, Position

__all__ = ["AsyncDeadLetters", "AsyncGroup", "DeadLetters", "Group"]

T = TypeVar("T")


class DeadLetters:
    """What a group gave up on; see `Group.dead_letters`."""

    def __init__(self, flow: GroupFlow) -> None:
        self._flow = flow

    def list(self, *, after: str = "", limit: int = 100) -> list[DeadLetter]:
        """Return dead letters, oldest first.

        Arguments:
            after: The id of the last letter of the page before.
            limit: How many at most.
        """
        return run(self._flow.dead_letters(after, limit))

    def redrive(self, *letters: str) -> int:
        """Deliver dead letters to this group again, as new messages: attempt 1 (S16). Each is redriven once.

        Arguments:
            letters: Their ids (`DeadLetter.id`).

        Returns:
            How many of them were still there.
        """
        return run(self._flow.take_dead_letters(letters, redrive=True))

    def redrive_all(self) -> int:
        """Redrive every dead letter that there is now; return how many."""
        return run(self._flow.take_all_dead_letters(redrive=True))

    def purge(self, *letters: str) -> int:
        """Remove dead letters for good.

        Arguments:
            letters: Their ids (`DeadLetter.id`).

        Returns:
            How many of them were still there.
        """
        return run(self._flow.take_dead_letters(letters, redrive=False))

    def purge_all(self) -> int:
        """Remove every dead letter that there is now; return how many."""
        return run(self._flow.take_all_dead_letters(redrive=False))


class AsyncDeadLetters:
    """What a group gave up on; see `AsyncGroup.dead_letters`."""

    def __init__(self, flow: GroupFlow) -> None:
        self._flow = flow

    async def list(self, *, after: str = "", limit: int = 100) -> list[DeadLetter]:
        """Return dead letters, oldest first.

        Arguments:
            after: The id of the last letter of the page before.
            limit: How many at most.
        """
        return await self._flow.dead_letters(after, limit)

    async def redrive(self, *letters: str) -> int:
        """Deliver dead letters to this group again, as new messages: attempt 1 (S16). Each is redriven once.

        Arguments:
            letters: Their ids (`DeadLetter.id`).

        Returns:
            How many of them were still there.
        """
        return await self._flow.take_dead_letters(letters, redrive=True)

    async def redrive_all(self) -> int:
        """Redrive every dead letter that there is now; return how many."""
        return await self._flow.take_all_dead_letters(redrive=True)

    async def purge(self, *letters: str) -> int:
        """Remove dead letters for good.

        Arguments:
            letters: Their ids (`DeadLetter.id`).

        Returns:
            How many of them were still there.
        """
        return await self._flow.take_dead_letters(letters, redrive=False)

    async def purge_all(self) -> int:
        """Remove every dead letter that there is now; return how many."""
        return await self._flow.take_all_dead_letters(redrive=False)


class _GroupBase:
    """What both faces share."""

    def __init__(self, flow: GroupFlow) -> None:
        self._flow = flow

    @property
    def name(self) -> str:
        """The group's name."""
        return self._flow.name

    def stop(self) -> None:
        """End every `process` of this object gently, from any thread, a handler or a signal (S14)."""
        self._flow.stop()

    def __repr__(self) -> str:
        return f"<{self._flow}>"


class Group(_GroupBase, Generic[T]):
    """Workers that share a stream's messages; get one from `Stream.group`."""

    @property
    def dead_letters(self) -> DeadLetters:
        """What this group gave up on."""
        return DeadLetters(self._flow)

    def open(self) -> bool:
        """Make the group now, so that it sees what is added from here; return False where it exists already (S9)."""
        return run(self._flow.open())

    def delete(self) -> None:
        """Remove the group and all that is kept for it, its dead letters included; the stream stays."""
        run(self._flow.delete())

    def seek(self, position: Position) -> None:
        """Let the group go on after a position: EARLIEST, LATEST, an id, or a time (S9).

        What is out is forgotten: settling it raises `LeaseLostError`. What comes after the position is delivered as
        new. Dead letters stay.

        Raises:
            InvalidArgumentError: Not a position.
            NotFoundError: There is no such group; nothing was made or moved.
            OutcomeUnknownError: No answer came. It isn't repeated: what was delivered meanwhile would be forgotten.
        """
        run(self._flow.seek(position))

    def pause(self) -> None:
        """Hand out nothing more, to any consumer in any process, until `resume`; what is out can be settled.

        Raises:
            NotFoundError: There is no such group; nothing was made.
        """
        run(self._flow.pause(paused=True))

    def resume(self) -> None:
        """Hand out messages again.

        Raises:
            NotFoundError: There is no such group; nothing was made.
        """
        run(self._flow.pause(paused=False))

    def info(self) -> GroupInfo:
        """Return how the group stands: lag, messages in hand and waiting, dead letters, consumers (S10)."""
        return run(self._flow.info())

    def consumer(self, name: str | None = None, *, prefetch: int = 1) -> Consumer[T]:
        """Return a consumer: a context manager and iterator of deliveries, for loops of your own.

        Arguments:
            name: For operators; host and process id unless told.
            prefetch: How many messages one fetch takes at most. They wait in the consumer's buffer, leased and renewed.
        """
        return Consumer(self._flow, name, prefetch)

    def process(
        self,
        handler: Callable[[Delivery[T]], Any],
        *,
        concurrency: int = 1,
        prefetch: int | None = None,
        drain: float = DRAIN,
        timeout: float | None = None,
        on_lost: OnLost = OnLost.CANCEL,
        consumer: str | None = None,
        signals: bool | None = None,
    ) -> None:
        """Call the handler with each delivery until stopped (S15).

        A handler that returns False or raises is retried after the group's backoff, ``raise Retry("why", delay=5)``
        after its own, ``raise Reject("why")`` makes a dead letter, anything else acks; one that settles the delivery
        itself has decided. An `ExceptionGroup` of nothing but `Reject` or `Retry` means the same. What the handler
        sends is on the trace of its message (`ailf.tracing`).

        Arguments:
            handler: A function of one `Delivery`.
            concurrency: How many handlers run at once, each in a thread of its own (the first in yours).
            prefetch: How many messages one fetch takes at most; ``concurrency`` unless told.
            drain: Seconds to wait, once stopped, for running handlers; messages not begun go back at once (S14).
            timeout: Seconds that a handler may take; None: any time. A thread can't be interrupted: its lease is let
                go, with a warning, and the message comes again, here only when the handler has ended.
            on_lost: A thread can't be cancelled, whatever this says; let the handler look at ``delivery.lost``.
            consumer: The consumer's name, for operators.
            signals: Whether SIGTERM and Ctrl-C stop it as `stop` does: True, False, or None for those whose handlers
                are the default ones (only in the main thread). A second signal acts as it did before.

        Raises:
            InvalidArgumentError: An argument can't be used; the handler is a coroutine function, or one that yields.
            ClosedError: The backend was closed.
            PermissionDeniedError: The backend refuses; other errors of the backend are logged and waited out.
            BaseException: What a handler raised that is no `Exception`: Ctrl-C and `sys.exit` in the main thread give
                the message back, anything else counts as a failed delivery.
        """
        options = ProcessOptions(
            concurrency=concurrency, prefetch=prefetch, drain=drain, timeout=timeout, on_lost=on_lost, signals=signals
        )
        run(Worker(self._flow, handler, options, consumer).run())


class AsyncGroup(_GroupBase, Generic[T]):
    """Workers that share a stream's messages; get one from `AsyncStream.group`."""

    @property
    def dead_letters(self) -> AsyncDeadLetters:
        """What this group gave up on."""
        return AsyncDeadLetters(self._flow)

    async def open(self) -> bool:
        """Make the group now, so that it sees what is added from here; return False where it exists already (S9)."""
        return await self._flow.open()

    async def delete(self) -> None:
        """Remove the group and all that is kept for it, its dead letters included; the stream stays."""
        await self._flow.delete()

    async def seek(self, position: Position) -> None:
        """Let the group go on after a position: EARLIEST, LATEST, an id, or a time (S9).

        What is out is forgotten: settling it raises `LeaseLostError`. What comes after the position is delivered as
        new. Dead letters stay.

        Raises:
            InvalidArgumentError: Not a position.
            NotFoundError: There is no such group; nothing was made or moved.
            OutcomeUnknownError: No answer came. It isn't repeated: what was delivered meanwhile would be forgotten.
        """
        await self._flow.seek(position)

    async def pause(self) -> None:
        """Hand out nothing more, to any consumer in any process, until `resume`; what is out can be settled.

        Raises:
            NotFoundError: There is no such group; nothing was made.
        """
        await self._flow.pause(paused=True)

    async def resume(self) -> None:
        """Hand out messages again.

        Raises:
            NotFoundError: There is no such group; nothing was made.
        """
        await self._flow.pause(paused=False)

    async def info(self) -> GroupInfo:
        """Return how the group stands: lag, messages in hand and waiting, dead letters, consumers (S10)."""
        return await self._flow.info()

    def consumer(self, name: str | None = None, *, prefetch: int = 1) -> AsyncConsumer[T]:
        """Return a consumer: a context manager and iterator of deliveries, for loops of your own.

        Arguments:
            name: For operators; host and process id unless told.
            prefetch: How many messages one fetch takes at most. They wait in the consumer's buffer, leased and renewed.
        """
        return AsyncConsumer(self._flow, name, prefetch)

    async def process(
        self,
        handler: Callable[[AsyncDelivery[T]], Any],
        *,
        concurrency: int = 1,
        prefetch: int | None = None,
        drain: float = DRAIN,
        timeout: float | None = None,
        on_lost: OnLost = OnLost.CANCEL,
        consumer: str | None = None,
        signals: bool | None = None,
    ) -> None:
        """Call the handler with each delivery until stopped (S15).

        A handler that returns False or raises is retried after the group's backoff, ``raise Retry("why", delay=5)``
        after its own, ``raise Reject("why")`` makes a dead letter, anything else acks; one that settles the delivery
        itself has decided. An `ExceptionGroup` of nothing but `Reject` or `Retry` means the same. What the handler
        sends is on the trace of its message (`ailf.tracing`).

        Arguments:
            handler: A function or coroutine function of one `AsyncDelivery`.
            concurrency: How many handlers run at once, each in a task of its own.
            prefetch: How many messages one fetch takes at most; ``concurrency`` unless told.
            drain: Seconds to wait, once stopped, for running handlers; messages not begun go back at once (S14).
            timeout: Seconds that a handler may take, then it is cancelled and its delivery has failed; None: any time.
            on_lost: Whether a handler is cancelled when the lease on its message is lost, as another worker may have
                it then; with `OnLost.SIGNAL` it looks at ``delivery.lost`` itself.
            consumer: The consumer's name, for operators.
            signals: Whether SIGTERM and Ctrl-C stop it as `stop` does: True, False, or None for those whose handlers
                are the default ones (only in the main thread). A second signal acts as it did before.

        Raises:
            InvalidArgumentError: An argument can't be used, or the handler yields.
            ClosedError: The backend was closed.
            PermissionDeniedError: The backend refuses; other errors of the backend are logged and waited out.
            BaseException: What a handler raised that is no `Exception`: Ctrl-C and `sys.exit` give the message back,
                anything else counts as a failed delivery. A `CancelledError` of the handler's own is a failed delivery
                like any error.
        """
        options = ProcessOptions(
            concurrency=concurrency, prefetch=prefetch, drain=drain, timeout=timeout, on_lost=on_lost, signals=signals
        )
        await Worker(self._flow, handler, options, consumer).run()
