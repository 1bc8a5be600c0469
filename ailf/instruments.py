"""Instruments: hooks that observe what a backend's interfaces do, and wrappers around sending and handling.

An instrument is an object of a class derived from `Instrument`, which overrides the hooks that it needs. It is given to
`ailf.connect` or ``backend.instrument``, or comes from an installed package (`ailf.hookspecs`). Only overridden hooks
are called: one that no instrument overrides costs a look at an empty tuple.

>>> import ailf
>>> from ailf.instruments import Instrument, MessageSent
>>> class Count(Instrument):
...     sent = 0
...     def message_sent(self, event: MessageSent) -> None:
...         self.sent += event.count
>>> counter = Count()
>>> with ailf.connect("memory://", instruments=[counter]) as backend:
...     ids = backend.stream("tasks").add_many([1, 2, 3])
>>> counter.sent
3

A hook is called in the thread or task that does the work, so it must be quick, and must not call the backend. Events of
leases come from the thread that renews them. An instrument that raises an `Exception` is logged, once, and removed; any
other exception passes to the caller.
"""

import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Final, TypeVar

import msgspec

from ailf.checks import check_headers, check_kind, check_mapping
from ailf.errors import InvalidArgumentError
from ailf.logs import About, Log

__all__ = [
    "ConnectionLost",
    "ConnectionRestored",
    "Destination",
    "Event",
    "Handling",
    "Instrument",
    "Instruments",
    "LeaseExpired",
    "MessageDied",
    "MessageReceived",
    "MessageSent",
    "MessageSettled",
    "MessagesDropped",
    "MessagesMissed",
    "Waited",
    "as_instruments",
]

log = Log("ailf.instruments")

T = TypeVar("T")


class Destination(msgspec.Struct, frozen=True):
    """The place to which messages are sent.

    >>> import ailf
    >>> from ailf.instruments import MessageSent
    >>> from ailf.testing import Recorder
    >>> recorder = Recorder()
    >>> with ailf.connect("memory://", instruments=[recorder]) as backend:
    ...     entry_id = backend.stream("tasks").add("a report")
    >>> recorder.of(MessageSent)[0].destination
    Destination(backend='memory://', kind='stream', name='tasks')

    Attributes:
        backend: The URL of the backend, without credentials.
        kind: ``"stream"`` or ``"channel"``.
        name: The name of the stream or channel; of a batch for several channels that of the first.
    """

    backend: str
    kind: str
    name: str


class MessageSent(msgspec.Struct, frozen=True):
    """The event that a call has added messages to a stream or published them, or has failed.

    >>> import ailf
    >>> from ailf.instruments import MessageSent
    >>> from ailf.testing import Recorder
    >>> recorder = Recorder()
    >>> with ailf.connect("memory://", instruments=[recorder]) as backend:
    ...     ids = backend.stream("tasks").add_many(["a", "b"], headers={"priority": "high"})
    >>> for event in recorder.of(MessageSent):
    ...     print(event.destination.name, event.count, event.headers, event.error)
    tasks 2 {'priority': 'high'} None

    Attributes:
        destination: The stream or channel.
        headers: The headers that the hook `Instrument.sending` returned for this call.
        count: The number of messages of the call.
        ids: The ids of the new entries; () for a channel, for a call that failed, and for one of ``add_once`` that
            found an earlier message.
        seconds: The duration of the call.
        error: The exception that the call raises; None if it succeeded.
        payloads: The payloads as the caller gave them, one for each message. They are the caller's objects: an
            instrument that keeps one must not change it.
        names: The stream or channel of each message.
    """

    hook: ClassVar[str] = "message_sent"

    destination: Destination
    headers: Mapping[str, str]
    count: int
    ids: tuple[str, ...]
    seconds: float
    error: BaseException | None = None
    payloads: tuple[Any, ...] = ()
    names: tuple[str, ...] = ()


class MessageReceived(msgspec.Struct, frozen=True):
    """The event that this process has received a message: it was leased to a consumer, or came to a subscription.

    >>> import ailf
    >>> from ailf.instruments import MessageReceived
    >>> from ailf.testing import Recorder
    >>> recorder = Recorder()
    >>> with ailf.connect("memory://", instruments=[recorder]) as backend:
    ...     entry_id = backend.stream("tasks").add("a report")
    ...     backend.stream("tasks").group("workers").process(lambda delivery: None, until_idle=True)
    >>> for event in recorder.of(MessageReceived):
    ...     print(event.source.name, event.group, event.attempt, event.payload)
    tasks workers 1 a report

    Attributes:
        source: The stream or channel.
        headers: The headers of the message.
        group: The group's name; "" for a channel.
        consumer: The consumer's name; "" for a channel.
        id: The entry's id; "" for a channel.
        attempt: The number of this delivery, from 1; 1 for a channel.
        queued: Seconds since the message was added, with delays and earlier attempts, by the clocks of the backend and
            of this process; 0 for a channel.
        payload: The decoded payload.
    """

    hook: ClassVar[str] = "message_received"

    source: Destination
    headers: Mapping[str, str]
    group: str = ""
    consumer: str = ""
    id: str = ""
    attempt: int = 1
    queued: float = 0.0
    payload: Any = None


class MessageSettled(msgspec.Struct, frozen=True):
    """The event that a delivery was settled, or that settling it found its lease lost.

    >>> import ailf
    >>> from ailf.instruments import MessageSettled
    >>> from ailf.testing import Recorder
    >>> recorder = Recorder()
    >>> with ailf.connect("memory://", instruments=[recorder]) as backend:
    ...     entry_id = backend.stream("tasks").add("a report")
    ...     backend.stream("tasks").group("workers").process(lambda delivery: None, until_idle=True)
    >>> for event in recorder.of(MessageSettled):
    ...     print(event.outcome, event.dead, event.handled < 5)
    ack False True

    Attributes:
        source: The stream.
        headers: The headers of the message.
        group: The group's name.
        consumer: The consumer's name.
        id: The entry's id.
        attempt: The number of this delivery, from 1.
        outcome: ``"ack"``, ``"nack"``, ``"reject"`` or ``"release"``; ``"lost"`` if its lease had ended.
        dead: Whether the message is a dead letter now.
        queued: As in `MessageReceived`.
        handled: Seconds since the handler, or the ``with`` block, began; since the message was received if there is
            neither.
        error: The text of the error that is kept for the dead letter, or "".
        payload: The decoded payload.
    """

    hook: ClassVar[str] = "message_settled"

    source: Destination
    headers: Mapping[str, str]
    group: str
    consumer: str
    id: str
    attempt: int
    outcome: str
    dead: bool
    queued: float
    handled: float
    error: str = ""
    payload: Any = None


class MessageDied(msgspec.Struct, frozen=True):
    """The event that a message became a dead letter of its group.

    >>> import ailf
    >>> from ailf.instruments import MessageDied
    >>> from ailf.testing import Recorder
    >>> recorder = Recorder()
    >>> with ailf.connect("memory://", instruments=[recorder]) as backend:
    ...     entry_id = backend.stream("tasks").add("a report")
    ...     with backend.stream("tasks").group("workers").consumer() as consumer:
    ...         consumer.take(timeout=5).reject("nobody wants it")
    >>> for event in recorder.of(MessageDied):
    ...     print(event.source.name, event.group, event.reason)
    tasks workers rejected

    Attributes:
        source: The stream.
        group: The group's name.
        id: The entry's id.
        reason: ``"rejected"``, ``"undecodable"`` or ``"max_deliveries"``.
    """

    hook: ClassVar[str] = "message_died"

    source: Destination
    group: str
    id: str
    reason: str


class Waited(msgspec.Struct, frozen=True):
    """The event that a call of ``acquire`` has ended, of a lock or a rate limiter.

    >>> import ailf
    >>> from ailf.instruments import Waited
    >>> from ailf.testing import Recorder
    >>> recorder = Recorder()
    >>> with ailf.connect("memory://", instruments=[recorder]) as backend, backend.lock("report"):
    ...     pass
    >>> for event in recorder.of(Waited):
    ...     print(event.kind, event.name, event.error, event.seconds < 5)
    lock report None True

    Attributes:
        backend: The URL of the backend, without credentials.
        kind: ``"lock"`` or ``"rate_limiter"``.
        name: The name of the lock or limiter; several names of a lock are joined by ``+``.
        key: The limiter's key; "" for a lock.
        seconds: The duration of the call.
        error: The exception that the call raises, such as `LockTimeoutError`; None if it acquired.
    """

    hook: ClassVar[str] = "waited"

    backend: str
    kind: str
    name: str
    key: str
    seconds: float
    error: BaseException | None = None


class LeaseExpired(msgspec.Struct, frozen=True):
    """The event that a lease was lost, so that another consumer or holder may have what it was for.

    >>> import ailf
    >>> from ailf.instruments import LeaseExpired
    >>> from ailf.testing import Recorder
    >>> recorder = Recorder()
    >>> from ailf.testing import ManualClock
    >>> from ailf_memory import MemoryBackend
    >>> clock = ManualClock()
    >>> with MemoryBackend(clock) as backend:
    ...     backend.instrument(recorder)
    ...     lease = backend.lock("report", ttl=30.0).acquire()
    ...     clock.advance(31)
    ...     assert lease.lost
    >>> for event in recorder.of(LeaseExpired):
    ...     print(event.lease)
    the lease on lock 'report'

    Attributes:
        backend: The URL of the backend, without credentials.
        lease: A description of the lease: "the lease on lock 'report'".
        reason: The reason, as text for an operator.
    """

    hook: ClassVar[str] = "lease_expired"

    backend: str
    lease: str
    reason: str


class MessagesMissed(msgspec.Struct, frozen=True):
    """The event of a gap: the connection of the subscriptions is back, and messages may be missing.

    >>> import ailf
    >>> from ailf.instruments import MessagesMissed
    >>> from ailf.testing import Recorder
    >>> recorder = Recorder()
    >>> from ailf_memory import MemoryBackend
    >>> with MemoryBackend() as backend, backend.pubsub().listen("news") as subscription:
    ...     backend.instrument(recorder)
    ...     backend.store.break_subscriptions("the server was restarted")
    ...     gap = subscription.get(timeout=5)
    >>> for event in recorder.of(MessagesMissed):
    ...     print(event.subscriptions, event.reason)
    1 the server was restarted

    Attributes:
        backend: The URL of the backend, without credentials.
        reason: The cause of the interruption, as text for an operator.
        seconds: The length of the interruption.
        subscriptions: The number of subscriptions that may have missed messages.
    """

    hook: ClassVar[str] = "messages_missed"

    backend: str
    reason: str
    seconds: float
    subscriptions: int


class MessagesDropped(msgspec.Struct, frozen=True):
    """The event that a subscription has dropped a message, as its buffer was full.

    >>> import ailf
    >>> from ailf.instruments import MessagesDropped
    >>> from ailf.testing import Recorder
    >>> recorder = Recorder()
    >>> import time
    >>> with ailf.connect("memory://", instruments=[recorder]) as backend:
    ...     with backend.pubsub().listen("news", buffer=1) as subscription:
    ...         backend.pubsub().publish_many([("news", "old"), ("news", "new")])
    ...         while not recorder.of(MessagesDropped):
    ...             time.sleep(0.001)
    >>> for event in recorder.of(MessagesDropped):
    ...     print(event.source.name, event.size)
    news 5

    Attributes:
        source: The channel.
        size: The bytes of the message's body.
    """

    hook: ClassVar[str] = "messages_dropped"

    source: Destination
    size: int


class ConnectionLost(msgspec.Struct, frozen=True):
    """The event that the backend has become unavailable, and failed operations are retried.

    >>> import ailf
    >>> from ailf.instruments import ConnectionLost
    >>> from ailf.testing import Faults, Recorder
    >>> recorder = Recorder()
    >>> with ailf.connect("memory://", instruments=[recorder]) as backend:
    ...     Faults(backend).next("fetch", ailf.ConnectionLostError)
    ...     backend.stream("tasks").group("workers").process(lambda delivery: None, until_idle=True)
    >>> for event in recorder.of(ConnectionLost):
    ...     print(event.backend, type(event.error).__name__)
    memory:// ConnectionLostError

    Attributes:
        backend: The URL of the backend, without credentials.
        error: The first error.
    """

    hook: ClassVar[str] = "connection_lost"

    backend: str
    error: Exception


class ConnectionRestored(msgspec.Struct, frozen=True):
    """The event that the backend is available again.

    >>> import ailf
    >>> from ailf.instruments import ConnectionRestored
    >>> from ailf.testing import Faults, Recorder
    >>> recorder = Recorder()
    >>> with ailf.connect("memory://", instruments=[recorder]) as backend:
    ...     Faults(backend).next("fetch", ailf.ConnectionLostError)
    ...     backend.stream("tasks").group("workers").process(lambda delivery: None, until_idle=True)
    >>> for event in recorder.of(ConnectionRestored):
    ...     print(event.backend, event.seconds < 5)
    memory:// True

    Attributes:
        backend: The URL of the backend, without credentials.
        seconds: The length of the outage.
    """

    hook: ClassVar[str] = "connection_restored"

    backend: str
    seconds: float


Event = (
    MessageSent
    | MessageReceived
    | MessageSettled
    | MessageDied
    | Waited
    | LeaseExpired
    | MessagesMissed
    | MessagesDropped
    | ConnectionLost
    | ConnectionRestored
)
"""Any event."""


class Instrument:
    """The base class of instruments: override the hooks that you need; the others are never called.

    >>> import ailf
    >>> from ailf.instruments import Instrument, MessageSettled
    >>> class Outcomes(Instrument):
    ...     def message_settled(self, event: MessageSettled) -> None:
    ...         print(event.source.name, event.outcome)
    >>> with ailf.connect("memory://", instruments=[Outcomes()]) as backend:
    ...     entry_id = backend.stream("tasks").add("a report")
    ...     backend.stream("tasks").group("workers").process(lambda delivery: None, until_idle=True)
    tasks ack
    """

    def message_sent(self, event: MessageSent) -> None:
        """Observe a call that adds or publishes messages, when it ends."""

    def message_received(self, event: MessageReceived) -> None:
        """Observe a message that is leased to a consumer of this process, or that comes to a subscription."""

    def message_settled(self, event: MessageSettled) -> None:
        """Observe that a delivery is settled."""

    def message_died(self, event: MessageDied) -> None:
        """Observe that a message becomes a dead letter."""

    def waited(self, event: Waited) -> None:
        """Observe the end of a call of ``acquire``, whether it had to wait or not."""

    def lease_expired(self, event: LeaseExpired) -> None:
        """Observe that a lease is lost. It is called from the thread that renews leases, or where it is noticed."""

    def messages_missed(self, event: MessagesMissed) -> None:
        """Observe a gap in the subscriptions of a backend."""

    def messages_dropped(self, event: MessagesDropped) -> None:
        """Observe that a subscription drops a message."""

    def connection_lost(self, event: ConnectionLost) -> None:
        """Observe the beginning of an outage. It is called from the thread or task that notices it."""

    def connection_restored(self, event: ConnectionRestored) -> None:
        """Observe the end of an outage."""

    def sending(self, destination: Destination, headers: Mapping[str, str]) -> Mapping[str, str]:  # noqa: ARG002 - for those that override it
        """Return the headers to send: these, or others, such as those with a span's ``traceparent``.

        It is called once for each call that sends, before its messages are encoded. One `message_sent` follows, in the
        same thread or task, with the headers that the last instrument returned.

        Arguments:
            destination: The stream or channel.
            headers: The headers that the caller gave; {} without any.
        """
        return headers

    def handling(self, handled: Any) -> AbstractContextManager[object]:  # noqa: ARG002 - as above
        """Return a context manager within which a handler, or the body of ``with delivery``, runs.

        It is left with the handler's exception, which it can't suppress. On asyncio it is entered and left in the task
        that runs the handler, so that context variables which it sets are the handler's.

        Arguments:
            handled: The `Delivery` or `AsyncDelivery`, the list of deliveries of a batch, or the `Message`.
        """
        return contextlib.nullcontext()


_HOOKS: Final = tuple(name for name, each in vars(Instrument).items() if not name.startswith("_") and callable(each))


class Instruments:
    """The instruments of one backend: for each hook, the methods that override it.

    >>> from ailf.instruments import ConnectionRestored, Instruments
    >>> from ailf.testing import Recorder
    >>> instruments, recorder = Instruments("memory://"), Recorder()
    >>> instruments.add([recorder])
    >>> instruments.emit(ConnectionRestored("memory://", seconds=1.5))
    >>> recorder.events
    [ConnectionRestored(backend='memory://', seconds=1.5)]

    Attributes:
        backend: The URL of the backend, without credentials.
    """

    __slots__ = ("_guard", "backend", *_HOOKS)

    message_sent: tuple[Any, ...]
    message_received: tuple[Any, ...]
    message_settled: tuple[Any, ...]
    message_died: tuple[Any, ...]
    waited: tuple[Any, ...]
    lease_expired: tuple[Any, ...]
    messages_missed: tuple[Any, ...]
    messages_dropped: tuple[Any, ...]
    connection_lost: tuple[Any, ...]
    connection_restored: tuple[Any, ...]
    sending: tuple[Any, ...]
    handling: tuple[Any, ...]

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self._guard = threading.Lock()
        for hook in _HOOKS:
            setattr(self, hook, ())

    def add(self, instruments: Iterable[Instrument]) -> None:
        """Call these instruments, too; one that is there already is not added again.

        Raises:
            InvalidArgumentError: An object isn't an `Instrument`; none is added.
        """
        checked = [check_kind("an instrument", each, Instrument) for each in instruments]
        with self._guard:
            for instrument in checked:
                for hook in _HOOKS:
                    methods = getattr(self, hook)
                    if getattr(type(instrument), hook) is not getattr(Instrument, hook) and not any(
                        each.__self__ is instrument for each in methods
                    ):
                        setattr(self, hook, (*methods, getattr(instrument, hook)))

    def added(self) -> tuple[Instrument, ...]:
        """Return the instruments whose hooks are called, each once."""
        methods = [method for hook in _HOOKS for method in getattr(self, hook)]
        return tuple({id(each.__self__): each.__self__ for each in methods}.values())

    def _remove(self, instrument: Instrument, hook: str, error: BaseException) -> None:
        """Remove an instrument that has raised, and log that, once."""
        found = False
        with self._guard:
            for each in _HOOKS:
                methods = getattr(self, each)
                left = tuple(method for method in methods if method.__self__ is not instrument)
                found = found or len(left) < len(methods)
                setattr(self, each, left)
        if found:  # else another thread has removed it
            name = f"{type(instrument).__module__}.{type(instrument).__qualname__}"
            about = About(f"instrument {name}", {"backend": self.backend})
            log.failure(logging.ERROR, about, "%s failed, so it is removed", hook, error=error)

    # --- events --------------------------------------------------------------------------------------------------

    def emit(self, event: Event) -> None:
        """Call the hook of this event."""
        for method in getattr(self, event.hook):
            try:
                method(event)
            except Exception as error:  # noqa: BLE001 - an instrument is user code, and affects nothing else
                self._remove(method.__self__, event.hook, error)

    def emit_in_thread(self, event: Event) -> None:
        """As `emit`, from a thread of ours, which outlives every exception."""
        try:
            self.emit(event)
        except BaseException as error:  # noqa: BLE001 - as above
            about = About("instruments", {"backend": self.backend})
            log.failure(logging.ERROR, about, "the hook %s was ended", event.hook, error=error)

    # --- wrappers ------------------------------------------------------------------------------------------------

    def headers_to_send(self, destination: Destination, headers: Mapping[str, str] | None) -> Mapping[str, str] | None:
        """Return the headers to send with a call to this destination.

        Raises:
            InvalidArgumentError: The caller's headers are invalid.
        """
        if headers is not None:
            check_mapping("headers", headers)
        chosen: Mapping[str, str] = check_headers(headers)
        for method in self.sending:
            try:
                changed = method(destination, dict(chosen))
                check_mapping("headers", changed)
                chosen = check_headers(changed)
            except Exception as error:  # noqa: BLE001 - as above; so are headers that can't be sent
                self._remove(method.__self__, "sending", error)
        return chosen or None

    async def observe_sending(
        self,
        destination: Destination,
        headers: Mapping[str, str] | None,
        payloads: Sequence[Any],
        send: Callable[[Mapping[str, str] | None], Awaitable[T]],
        ids_of: Callable[[T], Sequence[str]],
        now: Callable[[], float],
        names: Sequence[str] = (),
    ) -> T:
        """Send within the hooks `sending` and `message_sent`; return the result of `send`.

        Arguments:
            destination: The stream or channel.
            headers: The headers that the caller gave.
            payloads: The payloads, one for each message.
            send: Sends them with the headers that it is given.
            ids_of: Returns the ids of the new entries, given the result.
            now: Returns the time in seconds.
            names: The stream or channel of each message, where they differ.
        """
        begin = now()
        count, given = len(payloads), tuple(payloads)
        each_name = tuple(names) or (destination.name,) * count
        chosen: Mapping[str, str] | None = None
        try:
            chosen = self.headers_to_send(destination, headers)
            result = await send(chosen)
        except BaseException as error:
            self.emit(MessageSent(destination, chosen or {}, count, (), now() - begin, error, given, each_name))
            raise
        ids = tuple(ids_of(result))
        self.emit(MessageSent(destination, chosen or {}, count, ids, now() - begin, None, given, each_name))
        return result

    async def observe_waiting(
        self, kind: str, name: str, key: str, acquiring: Awaitable[T], now: Callable[[], float]
    ) -> T:
        """Acquire within the hook `waited`; return the result of `acquiring`. Its arguments are those of `Waited`."""
        begin = now()
        try:
            result = await acquiring
        except BaseException as error:
            self.emit(Waited(self.backend, kind, name, key, now() - begin, error))
            raise
        self.emit(Waited(self.backend, kind, name, key, now() - begin))
        return result

    async def observe_handling(
        self,
        handled: object,
        call: Callable[[], Awaitable[tuple[T, BaseException | None]]],
        reason: Callable[[], BaseException | None] = lambda: None,
    ) -> tuple[T, BaseException | None]:
        """Call a handler within the hook `handling`; return its result and its exception.

        Arguments:
            handled: What the handler handles, as users see it.
            call: Calls it, and returns its result and its exception.
            reason: Returns, once it has ended, what counts as its exception in place of its own; None for its own.
        """
        handling = self.around(handled)
        try:
            result, error = await call()
        except BaseException as interruption:
            handling.leave(reason() or interruption)
            raise
        handling.leave(reason() or error)
        return result, error

    def around(self, handled: object) -> "Handling":
        """Enter the context managers of all instruments around a handler; `Handling.leave` leaves them."""
        handling = Handling(self)
        try:
            for method in self.handling:
                handling.enter(method, handled)
        except BaseException as error:  # as Ctrl-C in a hook: no handler runs, after which they would be left
            handling.leave(error)
            raise
        return handling


class Handling:
    """The context managers that are entered around one call of a handler.

    >>> from ailf.instruments import Instruments
    >>> handling = Instruments("memory://").around("a delivery")
    >>> handling.leave(None)
    """

    __slots__ = ("_entered", "_instruments")

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments
        self._entered: list[tuple[Instrument, AbstractContextManager[object]]] = []

    def enter(self, method: Any, handled: object) -> None:
        """Enter the context manager of one instrument."""
        with self._guarded(method.__self__):
            context = method(handled)
            context.__enter__()
            self._entered.append((method.__self__, context))

    def leave(self, error: BaseException | None) -> None:
        """Leave the context managers, the last one first, with the handler's exception.

        Each is left, even if another raises what passes to the caller.
        """
        if not self._entered:
            return
        instrument, context = self._entered.pop()
        try:
            with self._guarded(instrument, error):
                context.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        finally:
            self.leave(error)

    @contextlib.contextmanager
    def _guarded(self, instrument: Instrument, error: BaseException | None = None) -> Iterator[None]:
        """Remove an instrument that raises; a context manager made by a generator may raise the handler's error."""
        try:
            yield
        except Exception as failure:  # noqa: BLE001 - as in `Instruments.emit`
            if failure is not error:
                self._instruments._remove(instrument, "handling", failure)  # noqa: SLF001 - the two are one
        except BaseException as failure:
            if failure is not error:
                raise


def as_instruments(value: object) -> list[Instrument]:
    """Return the argument ``instruments`` as a list.

    Raises:
        InvalidArgumentError: It is one instrument, or nothing that can be iterated.
    """
    if isinstance(value, Instrument) or not isinstance(value, Iterable):
        raise InvalidArgumentError(f"instruments must be a list of Instrument objects, not {type(value).__name__}")
    return list(value)
