"""Broadcast between agents: `PubSub` and `AsyncPubSub`, two thin faces of one flow.

At most once, in order per publisher and channel, and what may have been missed is said (`Gap`). A publisher never waits
for a subscriber.
"""

import functools
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from ailf.attached import Attached
from ailf.checks import check_count, check_name
from ailf.codecs import Payloads, open_envelope, seal_envelope
from ailf.driver import Capability, Filter, Frame
from ailf.engine import Engine
from ailf.errors import DecodeError, InvalidArgumentError
from ailf.hub import Inbox
from ailf.patterns import matches
from ailf.runtime import run
from ailf.values import Gap, Message, Overflow

__all__ = ["AsyncPubSub", "AsyncSubscription", "PubSub", "Subscription"]

T = TypeVar("T")
Handler = Callable[[Message[Any]], Any]
ErrorHook = Callable[[Exception, Message[bytes]], Any]
"""Called with what went wrong and the message as it arrived: its channel, its headers and its raw bytes."""

log = logging.getLogger("ailf.pubsub")

BUFFER = 1024
"""How many messages a subscription holds unless told otherwise."""


class _Flow:
    """The one text of both flavours."""

    def __init__(self, engine: Engine, type_: Any, on_error: ErrorHook | None) -> None:
        engine.require(Capability.PUBSUB, "pub/sub")
        self.engine = engine
        self.payloads = Payloads("a message", type_, engine.driver.max_payload)
        self.errors = 0
        self._on_error = on_error
        self._driver = engine.driver.pubsub()
        self._handlers: dict[Filter, list[Handler]] = {}
        self._inbox: Inbox | None = None

    # --- publishing ----------------------------------------------------------------------------------------------

    async def publish(self, channel: str, data: Any, headers: Mapping[str, str] | None) -> None:
        await self._send(f"publish on channel {channel!r}", [(channel, data)], headers)

    async def publish_many(self, messages: Iterable[tuple[str, Any]], headers: Mapping[str, str] | None) -> None:
        listed = list(messages)
        if listed:
            await self._send(f"publish {len(listed)} messages", listed, headers)

    async def _send(self, what: str, messages: Sequence[tuple[str, Any]], headers: Mapping[str, str] | None) -> None:
        sealed = []
        for channel, data in messages:
            check_name("channel", channel)
            sealed.append((channel, seal_envelope(*self.payloads.pack(data, headers))))
        await self.engine.call(what, self._driver.publish, sealed, again=False)

    # --- receiving -----------------------------------------------------------------------------------------------

    def filters(self, channels: Iterable[str], patterns: str | Sequence[str] | None) -> list[Filter]:
        chosen = [Filter(check_name("channel", each)) for each in channels]
        if patterns:
            self.engine.require(Capability.PATTERNS, "patterns of channels")
            listed = [patterns] if isinstance(patterns, str) else patterns
            chosen += [Filter(check_name("pattern", each), is_pattern=True) for each in listed]
        if not chosen:
            raise InvalidArgumentError("name at least one channel, or a pattern, to listen to")
        return chosen

    async def open(self, filters: Iterable[Filter], size: int, overflow: Overflow) -> Inbox:
        hub = self.engine.hub
        inbox = hub.inbox(size=size, overflow=overflow)
        try:
            await hub.add(inbox, filters)
        except BaseException:
            await hub.remove(inbox)
            raise
        return inbox

    async def next(self, inbox: Inbox, timeout: float | None = None) -> Message[Any] | Gap | None:
        """Return the next message that can be decoded, or gap; None at the end or after so many seconds."""
        while True:
            item = await inbox.get(timeout)
            if not isinstance(item, Frame):
                return item
            message = await self._decode(item)
            if message is not None:
                return message

    async def _decode(self, frame: Frame) -> Message[Any] | None:
        raw = Message(frame.channel, frame.body)
        try:
            body, headers = open_envelope(frame.body)
            raw = Message(frame.channel, body, headers)
            data, shown = self.payloads.unpack(body, headers)
        except DecodeError as error:
            await self._failed("a message that can't be decoded", error, raw)
            return None
        return Message(frame.channel, data, shown)

    async def _failed(self, what: str, error: Exception, raw: Message[bytes]) -> None:
        self.errors += 1
        log.error("channel %r: %s: %r", raw.channel, what, error, exc_info=error)
        if self._on_error is None:
            return
        try:
            await self.engine.runtime.call(self._on_error, error, raw)
        except Exception:
            log.exception("channel %r: the error hook failed", raw.channel)

    # --- handlers ------------------------------------------------------------------------------------------------

    async def subscribe(self, channel: str, handler: Handler, *, pattern: bool) -> None:
        self.engine.runtime.check_callable(f"the handler for {channel!r}", handler)
        (wanted,) = self.filters((), channel) if pattern else self.filters((channel,), None)
        handlers = self._handlers.setdefault(wanted, [])
        handlers.append(handler)  # before the first message can come
        try:
            if self._inbox is None or self._inbox.ended:
                self._inbox = await self.open((wanted,), BUFFER, Overflow.DROP_OLDEST)
            else:
                await self.engine.hub.add(self._inbox, (wanted,))
        except BaseException:
            handlers.remove(handler)
            raise

    async def unsubscribe(self, channel: str, *, pattern: bool) -> None:
        unwanted = Filter(channel, is_pattern=pattern)
        self._handlers.pop(unwanted, None)
        if self._inbox is not None:
            await self.engine.hub.drop(self._inbox, (unwanted,))

    async def run(self) -> None:
        inbox = self._inbox
        if inbox is None:
            raise InvalidArgumentError("nothing to run: subscribe(channel, handler) first")
        while (item := await inbox.get()) is not None:
            if isinstance(item, Gap):
                log.warning("messages may be missing: %s", item.reason)
            elif (message := await self._decode(item)) is not None:
                await self._handle(message, item)

    async def _handle(self, message: Message[Any], frame: Frame) -> None:
        for wanted, handlers in tuple(self._handlers.items()):
            fits = matches(wanted.text, message.channel) if wanted.is_pattern else wanted.text == message.channel
            for handler in tuple(handlers) if fits else ():
                try:
                    await self.engine.runtime.call(handler, message)
                except Exception as error:  # noqa: BLE001 - one handler's error harms nobody else (P8)
                    raw = Message(frame.channel, frame.body, message.headers)
                    await self._failed(f"handler {getattr(handler, '__qualname__', handler)} failed", error, raw)

    def stop(self) -> None:
        if self._inbox is not None:
            self._inbox.end()

    async def close(self) -> None:
        inbox, self._inbox = self._inbox, None
        self._handlers.clear()
        if inbox is not None:
            inbox.end()
            if not self.engine.closed:
                await self.engine.hub.remove(inbox)


class _Subscribed:
    """What both faces of a subscription share: the inbox, once it is open."""

    def __init__(self, flow: _Flow, filters: list[Filter], size: int, overflow: Overflow) -> None:
        self._flow = flow
        self._filters = filters
        self._size = check_count("buffer", size)
        self._overflow = overflow
        self._inbox: Inbox | None = None

    @property
    def dropped(self) -> int:
        """How many messages were dropped because the buffer was full."""
        return self._opened.dropped

    @property
    def dropped_bytes(self) -> int:
        """The size of the dropped messages, in bytes."""
        return self._opened.dropped_bytes

    @property
    def _opened(self) -> Inbox:
        if self._inbox is None:
            raise InvalidArgumentError("a subscription must be entered first: `with pubsub.listen(…) as subscription`")
        return self._inbox

    async def _enter(self) -> None:
        if self._inbox is None:
            self._inbox = await self._flow.open(self._filters, self._size, self._overflow)

    async def _leave(self) -> None:
        if self._inbox is not None:
            self._inbox.end()
            if not self._flow.engine.closed:
                await self._flow.engine.hub.remove(self._inbox)


class Subscription(_Subscribed, Generic[T]):
    """What `PubSub.listen` returns: a context manager, and an iterator of `Message` and `Gap`.

    On entry it is confirmed: what is published afterwards arrives, or is counted as dropped, or lies in a `Gap`.
    """

    def __enter__(self) -> Self:
        """Subscribe, and return when the backend has confirmed it."""
        run(self._enter())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()

    def __iter__(self) -> Iterator[Message[T] | Gap]:
        """Iterate until it is closed."""
        return self

    def __next__(self) -> Message[T] | Gap:
        """Wait for the next message or gap.

        Raises:
            ClosedError: The backend was closed, or the buffer was full and the policy is CLOSE.
        """
        item = run(self._flow.next(self._opened))
        if item is None:
            raise StopIteration
        return item

    def get(self, timeout: float | None = None) -> Message[T] | Gap | None:
        """Return the next message or gap; None after so many seconds, or when it is closed."""
        return run(self._flow.next(self._opened, timeout))

    def close(self) -> None:
        """End it, from any thread; who iterates over it comes to the end."""
        run(self._leave())


class AsyncSubscription(_Subscribed, Generic[T]):
    """What `AsyncPubSub.listen` returns: a context manager, and an iterator of `Message` and `Gap`.

    On entry it is confirmed: what is published afterwards arrives, or is counted as dropped, or lies in a `Gap`.
    """

    async def __aenter__(self) -> Self:
        """Subscribe, and return when the backend has confirmed it."""
        await self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[Message[T] | Gap]:
        """Iterate until it is closed."""
        return self

    async def __anext__(self) -> Message[T] | Gap:
        """Wait for the next message or gap.

        Raises:
            ClosedError: The backend was closed, or the buffer was full and the policy is CLOSE.
        """
        item = await self._flow.next(self._opened)
        if item is None:
            raise StopAsyncIteration
        return item

    async def get(self, timeout: float | None = None) -> Message[T] | Gap | None:
        """Return the next message or gap; None after so many seconds, or when it is closed."""
        return await self._flow.next(self._opened, timeout)

    async def aclose(self) -> None:
        """End it; who iterates over it comes to the end."""
        await self._leave()


class _PubSubBase(Attached):
    """What both faces share: how the flow is made."""

    def __init__(self, *, type: Any = Any, on_error: ErrorHook | None = None, engine: Engine | None = None) -> None:  # noqa: A002 - `type=` is the API
        super().__init__(engine)
        self._type = type
        self._on_error = on_error

    @functools.cached_property
    def _flow(self) -> _Flow:
        return _Flow(self._engine, self._type, self._on_error)

    @property
    def errors(self) -> int:
        """How many messages couldn't be decoded or made a handler raise."""
        return self._flow.errors

    def stop(self) -> None:
        """End `run`, from any thread, a handler or a signal; subscribe again to run again (P10)."""
        self._flow.stop()


class PubSub(_PubSubBase, Generic[T]):
    """Broadcast to agents and listen to them. Get one from `Backend.pubsub`; annotate with this class.

    At most once, ordered per publisher and channel (P1). Safe to share between threads.
    """

    def publish(self, channel: str, data: T, *, headers: Mapping[str, str] | None = None) -> None:
        """Send a message to whoever listens to the channel now.

        Arguments:
            channel: Any non-empty text.
            data: The payload; JSON unless the object has another ``type``, or ``bytes`` as they are.
            headers: Text beside the payload.

        Raises:
            EncodeError: The payload has no JSON form.
            InvalidArgumentError: The name, a header or the size is out of bounds; nothing was sent.
            OutcomeUnknownError: The connection broke after the send.
            BackendError: The backend couldn't do it.
        """
        run(self._flow.publish(channel, data, headers))

    def publish_many(self, messages: Iterable[tuple[str, T]], *, headers: Mapping[str, str] | None = None) -> None:
        """Send messages, as pairs of channel and payload, in this order and one round trip; see `publish`."""
        run(self._flow.publish_many(messages, headers))

    def listen(
        self,
        *channels: str,
        pattern: str | Sequence[str] | None = None,
        buffer: int = BUFFER,
        overflow: Overflow = Overflow.DROP_OLDEST,
    ) -> Subscription[T]:
        """Return a subscription to these channels and patterns, to be entered with ``with``.

        Arguments:
            channels: Names, taken literally.
            pattern: One or several patterns: ``*``, ``?``, ``[abc]``, and a backslash before a literal character.
            buffer: How many messages it holds while you are busy.
            overflow: What happens to a message for which there is no room.

        Raises:
            UnsupportedError: The backend has no patterns.
        """
        return Subscription(self._flow, self._flow.filters(channels, pattern), buffer, overflow)

    def subscribe(self, channel: str, handler: Handler, *, pattern: bool = False) -> None:
        """Let `run` call the handler with each `Message` of the channel; confirmed on return (P2).

        Arguments:
            channel: A name, or with ``pattern=True`` a pattern.
            handler: Called with the message. What it raises is logged and counted, and harms no other (P8).
            pattern: Whether ``channel`` is a pattern.
        """
        run(self._flow.subscribe(channel, handler, pattern=pattern))

    def unsubscribe(self, channel: str, *, pattern: bool = False) -> None:
        """Take the channel's handlers away."""
        run(self._flow.unsubscribe(channel, pattern=pattern))

    def run(self) -> None:
        """Call the handlers, one message at a time, until `stop`.

        Raises:
            ClosedError: The backend was closed.
            InvalidArgumentError: Nothing is subscribed.
        """
        run(self._flow.run())

    def run_in_thread(self, *, daemon: bool = True) -> threading.Thread:
        """Start `run` in a thread of its own and return it; `stop` or `close` ends it."""
        thread = threading.Thread(target=self.run, name="ailf-pubsub-run", daemon=daemon)
        thread.start()
        return thread

    def close(self) -> None:
        """End `run`, give up the subscriptions made with `subscribe`, and close what this object opened itself."""
        run(_close(self))

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()


class AsyncPubSub(_PubSubBase, Generic[T]):
    """Broadcast to agents and listen to them. Get one from `AsyncBackend.pubsub`; annotate with this class.

    At most once, ordered per publisher and channel (P1). Safe to share between tasks.
    """

    async def publish(self, channel: str, data: T, *, headers: Mapping[str, str] | None = None) -> None:
        """Send a message to whoever listens to the channel now.

        Arguments:
            channel: Any non-empty text.
            data: The payload; JSON unless the object has another ``type``, or ``bytes`` as they are.
            headers: Text beside the payload.

        Raises:
            EncodeError: The payload has no JSON form.
            InvalidArgumentError: The name, a header or the size is out of bounds; nothing was sent.
            OutcomeUnknownError: The connection broke after the send.
            BackendError: The backend couldn't do it.
        """
        await self._flow.publish(channel, data, headers)

    async def publish_many(
        self, messages: Iterable[tuple[str, T]], *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send messages, as pairs of channel and payload, in this order and one round trip; see `publish`."""
        await self._flow.publish_many(messages, headers)

    def listen(
        self,
        *channels: str,
        pattern: str | Sequence[str] | None = None,
        buffer: int = BUFFER,
        overflow: Overflow = Overflow.DROP_OLDEST,
    ) -> AsyncSubscription[T]:
        """Return a subscription to these channels and patterns, to be entered with ``async with``.

        Arguments:
            channels: Names, taken literally.
            pattern: One or several patterns: ``*``, ``?``, ``[abc]``, and a backslash before a literal character.
            buffer: How many messages it holds while you are busy.
            overflow: What happens to a message for which there is no room.

        Raises:
            UnsupportedError: The backend has no patterns.
        """
        return AsyncSubscription(self._flow, self._flow.filters(channels, pattern), buffer, overflow)

    async def subscribe(self, channel: str, handler: Handler, *, pattern: bool = False) -> None:
        """Let `run` call the handler with each `Message` of the channel; confirmed on return (P2).

        Arguments:
            channel: A name, or with ``pattern=True`` a pattern.
            handler: A function or coroutine function, called with the message. What it raises is logged and counted,
                and harms no other (P8).
            pattern: Whether ``channel`` is a pattern.
        """
        await self._flow.subscribe(channel, handler, pattern=pattern)

    async def unsubscribe(self, channel: str, *, pattern: bool = False) -> None:
        """Take the channel's handlers away."""
        await self._flow.unsubscribe(channel, pattern=pattern)

    async def run(self) -> None:
        """Call the handlers, one message at a time, until `stop`.

        Raises:
            ClosedError: The backend was closed.
            InvalidArgumentError: Nothing is subscribed.
        """
        await self._flow.run()

    async def aclose(self) -> None:
        """End `run`, give up the subscriptions made with `subscribe`, and close what this object opened itself."""
        await _close(self)

    async def __aenter__(self) -> Self:
        """Return the object itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()


async def _close(pubsub: _PubSubBase) -> None:
    if "_flow" in vars(pubsub):
        await pubsub._flow.close()
    await pubsub._close()
