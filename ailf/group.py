"""A consumer group: its options, what it asks of the driver, and `Group` and `AsyncGroup`, where agents take work from.

Within a group each message is leased to one consumer at a time; what is acked is done, what fails comes back after a
backoff, and what fails too often becomes one of the group's dead letters.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs

from ailf.checks import check_count, check_name, check_seconds
from ailf.codecs import Payloads
from ailf.driver import Fetched, Receipt, Settlement, StreamDriver
from ailf.engine import Engine
from ailf.errors import OutcomeUnknownError
from ailf.runtime import run
from ailf.values import EARLIEST, Backoff, DeadLetter, GroupReset

if TYPE_CHECKING:
    from ailf.consumer import AsyncConsumer, Consumer
    from ailf.delivery import AsyncDelivery, Delivery
    from ailf.worker import Worker

__all__ = ["AsyncDeadLetters", "AsyncGroup", "DeadLetters", "Group", "GroupFlow", "GroupOptions"]

T = TypeVar("T")

log = logging.getLogger("ailf.stream")

DRAIN = 30.0
"""Seconds that a stopped `process` waits for running handlers unless told otherwise."""


def _seconds(instance: Any, attribute: "attrs.Attribute[float]", value: float) -> None:  # noqa: ARG001 - attrs' form
    check_seconds(attribute.name, value, least=0.001)


def _count(instance: Any, attribute: "attrs.Attribute[int]", value: int) -> None:  # noqa: ARG001 - attrs' form
    check_count(attribute.name, value)


@attrs.frozen
class GroupOptions:
    """How a group treats its messages; see `Stream.group`."""

    start: str = EARLIEST
    lease: float = attrs.field(default=30.0, validator=_seconds)
    max_deliveries: int = attrs.field(default=5, validator=_count)
    backoff: Backoff = attrs.field(factory=Backoff)
    max_processing: float = attrs.field(default=86_400.0, validator=_seconds)
    on_event: Callable[[GroupReset], Any] | None = None


class GroupFlow:
    """The one text of both flavours."""

    def __init__(
        self, engine: Engine, driver: StreamDriver, payloads: Payloads, stream: str, name: str, options: GroupOptions
    ) -> None:
        self.engine = engine
        self.driver = driver
        self.payloads = payloads
        self.stream = stream
        self.name = check_name("group", name)
        self.options = options
        self.workers: set[Worker] = set()

    def stop(self) -> None:
        """End every `process` under way gently."""
        for worker in tuple(self.workers):
            worker.stop()

    def __str__(self) -> str:
        return f"group {self.name!r} of stream {self.stream!r}"

    async def open(self) -> bool:
        """Make the group; return False where it exists."""
        start = self.options.start
        return await self.engine.call(f"open {self}", self.driver.open_group, self.stream, self.name, start, again=True)

    async def fetch(self, consumer: str, count: int) -> Fetched:
        """Fetch; a repeat is harmless: what a lost answer had claimed comes back when its lease ends."""
        return await self.engine.call(
            f"fetch from {self}", self.driver.fetch, self.stream, self.name, consumer, again=True,
            count=count, lease=self.options.lease, max_deliveries=self.options.max_deliveries,
        )  # fmt: skip

    async def settle(self, *settlements: Settlement) -> bool:
        """Settle; return whether every lease still held.

        After a lost answer the request is repeated once: a lease that still holds settles it for certain. One that
        doesn't may have been settled by the first request or have ended, which nobody can tell any more.
        """
        what = f"{settlements[0].action.value} {len(settlements)} message(s) of {self}"
        arguments = (self.stream, self.name, settlements)
        most = self.options.max_deliveries
        try:
            return all(await self.engine.call(what, self.driver.settle, *arguments, again=False, max_deliveries=most))
        except OutcomeUnknownError as unknown:
            if all(await self.engine.call(what, self.driver.settle, *arguments, again=True, max_deliveries=most)):
                return True
            raise unknown from unknown.__cause__

    async def extend(self, receipt: Receipt, lease: float) -> bool:
        """Let a lease end so many seconds from now; return whether it still held."""
        what = f"extend a lease of {self}"
        kept = await self.engine.call(
            what, self.driver.extend, self.stream, self.name, [receipt], again=True, lease=lease
        )
        return kept[0]

    async def tell(self, event: GroupReset) -> None:
        """Tell the user's hook."""
        if self.options.on_event is None:
            return
        try:
            await self.engine.runtime.call(self.options.on_event, event)
        except Exception:
            log.exception("%s: the hook for events failed", self)

    async def dead_letters(self, after: str, limit: int) -> list[DeadLetter]:
        """Return a page of dead letters."""
        what = f"list the dead letters of {self}"
        return await self.engine.call(
            what, self.driver.dead_letters, self.stream, self.name, after, check_count("limit", limit), again=True
        )


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

    def consumer(self, name: str | None = None, *, prefetch: int = 1) -> "Consumer[T]":
        """Return a consumer: a context manager and iterator of deliveries, for loops of your own.

        Arguments:
            name: For operators; host and process id unless told.
            prefetch: How many messages one fetch takes at most. They wait in the consumer's buffer, leased and renewed.
        """
        from ailf.consumer import Consumer  # noqa: PLC0415 - a consumer knows its group, and not the other way round

        return Consumer(self._flow, name, prefetch)

    def process(
        self,
        handler: "Callable[[Delivery[T]], Any]",
        *,
        concurrency: int = 1,
        prefetch: int | None = None,
        drain: float = DRAIN,
        consumer: str | None = None,
        signals: bool = False,
    ) -> None:
        """Call the handler with each delivery until stopped (S15).

        A handler that returns False or raises is retried after the group's backoff, ``raise Reject("why")`` makes a
        dead letter, anything else acks; one that settles the delivery itself has decided.

        Arguments:
            handler: A function of one `Delivery`.
            concurrency: How many handlers run at once, each in a thread of its own (the first in yours).
            prefetch: How many messages one fetch takes at most; ``concurrency`` unless told.
            drain: Seconds to wait, once stopped, for running handlers; messages not begun go back at once (S14).
            consumer: The consumer's name, for operators.
            signals: Whether SIGTERM and Ctrl-C stop it (only in the main thread).

        Raises:
            ClosedError: The backend was closed.
            PermissionDeniedError: The backend refuses; other errors of the backend are logged and waited out.
        """
        from ailf.worker import Worker  # noqa: PLC0415 - see consumer()

        run(Worker(self._flow, handler, concurrency, prefetch, drain, consumer, signals=signals).run())


class AsyncGroup(_GroupBase, Generic[T]):
    """Workers that share a stream's messages; get one from `AsyncStream.group`."""

    @property
    def dead_letters(self) -> AsyncDeadLetters:
        """What this group gave up on."""
        return AsyncDeadLetters(self._flow)

    async def open(self) -> bool:
        """Make the group now, so that it sees what is added from here; return False where it exists already (S9)."""
        return await self._flow.open()

    def consumer(self, name: str | None = None, *, prefetch: int = 1) -> "AsyncConsumer[T]":
        """Return a consumer: a context manager and iterator of deliveries, for loops of your own.

        Arguments:
            name: For operators; host and process id unless told.
            prefetch: How many messages one fetch takes at most. They wait in the consumer's buffer, leased and renewed.
        """
        from ailf.consumer import AsyncConsumer  # noqa: PLC0415 - a consumer knows its group, and not the other way round

        return AsyncConsumer(self._flow, name, prefetch)

    async def process(
        self,
        handler: "Callable[[AsyncDelivery[T]], Any]",
        *,
        concurrency: int = 1,
        prefetch: int | None = None,
        drain: float = DRAIN,
        consumer: str | None = None,
        signals: bool = False,
    ) -> None:
        """Call the handler with each delivery until stopped (S15).

        A handler that returns False or raises is retried after the group's backoff, ``raise Reject("why")`` makes a
        dead letter, anything else acks; one that settles the delivery itself has decided.

        Arguments:
            handler: A function or coroutine function of one `AsyncDelivery`.
            concurrency: How many handlers run at once, each in a task of its own.
            prefetch: How many messages one fetch takes at most; ``concurrency`` unless told.
            drain: Seconds to wait, once stopped, for running handlers; messages not begun go back at once (S14).
            consumer: The consumer's name, for operators.
            signals: Whether SIGTERM and Ctrl-C stop it (only in the main thread).

        Raises:
            ClosedError: The backend was closed.
            PermissionDeniedError: The backend refuses; other errors of the backend are logged and waited out.
        """
        from ailf.worker import Worker  # noqa: PLC0415 - see consumer()

        await Worker(self._flow, handler, concurrency, prefetch, drain, consumer, signals=signals).run()
