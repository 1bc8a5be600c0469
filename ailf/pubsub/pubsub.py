"""Broadcast: `PubSub` and `AsyncPubSub`, both over `ailf.pubsub.flow.PubSubFlow`.

A message is delivered at most once, in order per publisher and channel. A `Gap` shows where messages may be missing. A
publisher never waits for a subscriber.
"""

import functools
import threading
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self

from ailf.checks import check_count, check_flag, check_list, check_name
from ailf.engine import Engine
from ailf.engine.standalone import StandaloneObject
from ailf.errors import ClosedError, InvalidArgumentError
from ailf.logs import Log
from ailf.payload_types import T
from ailf.pubsub.flow import BUFFER, ErrorHook, Handler, PubSubFlow
from ailf.pubsub.message import AsyncMessage, Message
from ailf.pubsub.subscription import AsyncSubscription, Subscription
from ailf.runtime import run
from ailf.runtime.signals import check_signals
from ailf.values import ChannelInfo, Overflow

__all__ = ["AsyncPubSub", "PubSub"]


log = Log("ailf.pubsub")


class _PubSubBase(StandaloneObject):
    """The base of `PubSub` and `AsyncPubSub`: the options."""

    def __init__(
        self,
        *,
        type: Any = Any,  # noqa: A002 - `type=` is the API
        on_error: ErrorHook | None = None,
        sharded: bool = False,
        validate: bool = False,
        engine: Engine | None = None,
    ) -> None:
        super().__init__(engine)
        self._type = type
        self._validate = check_flag("validate", validate)
        self._sharded = check_flag("sharded", sharded)
        if on_error is not None and not callable(on_error):
            raise InvalidArgumentError(f"on_error must be callable, not {on_error!r}")
        self._on_error = on_error

    @functools.cached_property
    def _flow(self) -> PubSubFlow:
        return PubSubFlow(self._engine, self._type, self._on_error, sharded=self._sharded, validate=self._validate)

    @property
    def errors(self) -> int:
        """The number of messages that couldn't be decoded, plus that of handler calls that failed."""
        return self._flow.errors

    async def _end(self) -> None:
        if "_flow" in vars(self):
            await self._flow.close()
        await self._close()

    def stop(self) -> None:
        """End `run`, from any thread, handler or signal handler. Call `subscribe` again before the next `run`."""
        self._flow.stop()


class PubSub(_PubSubBase, Generic[T]):
    """Broadcast, and requests with replies. Get one from `Backend.pubsub`; annotate with this class.

    A message is delivered at most once, in order per publisher and channel. The object may be shared by any number of
    threads.

    Arguments:
        type: The type of payloads; a body that doesn't match it can't be decoded.
        on_error: Called with the error and the raw message, if a message can't be decoded or a handler fails.
        sharded: Whether to use sharded channels, which only one shard of a cluster carries.
        validate: Whether each published payload is decoded before it is sent, so that only what receivers can decode
            is sent.

    Example:
        >>> import ailf
        >>> with ailf.connect("memory://") as backend:
        ...     pubsub = backend.pubsub()
        ...     with pubsub.listen("news") as subscription:
        ...         pubsub.publish("news", {"title": "hello"})
        ...         assert subscription.get(timeout=5) == ailf.Message("news", {"title": "hello"})
    """

    def publish(self, channel: str, data: T, *, headers: Mapping[str, str] | None = None) -> None:
        """Publish a message to the current subscribers of a channel.

        Arguments:
            channel: The channel's name; any non-empty text.
            data: The payload, sent as JSON; ``bytes`` are sent unchanged.
            headers: Names and values, both text, sent beside the payload.

        Raises:
            EncodeError: The payload is not of the object's ``type``, or can't be written as JSON. Nothing was sent.
            InvalidArgumentError: The name, a header or the size can't be used; nothing was sent.
            OutcomeUnknownError: The message was sent, and no reply came.
            BackendError: The backend couldn't do it.
        """
        run(self._flow.publish(channel, data, headers))

    def publish_many(self, messages: Iterable[tuple[str, T]], *, headers: Mapping[str, str] | None = None) -> None:
        """Publish messages, given as pairs of channel and payload, in order and in one round trip; see `publish`."""
        run(self._flow.publish_many(messages, headers))

    def request(
        self, channel: str, data: Any, *, timeout: float = 5.0, headers: Mapping[str, str] | None = None
    ) -> Message[T]:
        """Publish a request to the subscribers of a channel, and return the first reply.

        A reply is the return value of a handler, or is sent by `Message.reply`.

        Arguments:
            channel: The channel's name.
            data: The payload.
            timeout: Seconds to wait for the reply.
            headers: Headers of the request, as for `publish`.

        Raises:
            NoResponderError: The channel has no listener. If the backend can't know that, the request times out.
            RequestTimeoutError: No reply came in time.
            RequestFailedError: The responder's handler raised an error.
            DecodeError: The reply can't be decoded.
            BackendError: The backend couldn't do it.
        """
        reply: Message[T] = run(self._flow.request(channel, data, timeout, headers))
        return reply

    def request_many(
        self,
        channel: str,
        data: Any,
        *,
        count: int | None = None,
        timeout: float = 5.0,
        headers: Mapping[str, str] | None = None,
    ) -> list[Message[T]]:
        """Publish a request to the subscribers of a channel, and return the replies that arrive; see `request`.

        A failed reply, or one that can't be decoded, is logged and left out; with ``count=1`` it raises an error.

        Arguments:
            channel: The channel's name.
            data: The payload.
            count: Return when `count` replies have arrived; None waits until `timeout` has passed.
            timeout: Seconds to wait for replies.
            headers: Headers of the request, as for `publish`.
        """
        return run(self._flow.request_many(channel, data, count, timeout, headers))

    def listen(
        self,
        *channels: str,
        pattern: str | Sequence[str] | None = None,
        buffer: int = BUFFER,
        overflow: Overflow = Overflow.DROP_OLDEST,
    ) -> Subscription[T]:
        """Return a subscription to channels and patterns, to be entered with ``with``.

        Arguments:
            channels: The channels' names, which are literal.
            pattern: One or several patterns: ``*``, ``?``, ``[abc]``, and a backslash before a literal character.
            buffer: The number of messages that are buffered until they are read.
            overflow: What happens to a message when the buffer is full.

        Raises:
            InvalidArgumentError: There is neither a channel nor a pattern, or one can't be used.
            UnsupportedError: The backend or a sharded channel has no patterns.
        """
        return Subscription(self._flow, self._flow.filters(channels, _listed(pattern)), buffer, overflow)

    def subscribe(self, channel: str, handler: Handler, *, pattern: bool = False) -> None:
        """Register a handler, which `run` calls with each `Message` of the channel. It is confirmed on return.

        Arguments:
            channel: The channel's name, or with ``pattern=True`` a pattern.
            handler: A function of the message. Its return value, unless None, is the reply to a `request`. Its error is
                logged and counted (`errors`), and doesn't affect other handlers.
            pattern: Whether `channel` is a pattern.
        """
        run(self._flow.subscribe(channel, handler, pattern=check_flag("pattern", pattern)))

    def unsubscribe(self, channel: str, *, pattern: bool = False) -> None:
        """Remove the handlers of a channel or pattern."""
        run(self._flow.unsubscribe(check_name("channel", channel), pattern=check_flag("pattern", pattern)))

    def channels(self, prefix: str = "") -> list[ChannelInfo]:
        """Return the channels that have subscribers now, sorted by name, in one request.

        Channels that are subscribed to only by a pattern are not among them, nor are those for replies and wake-ups.

        Arguments:
            prefix: The beginning of the names; every character stands for itself.

        Raises:
            ProtocolError: There are more than 10,000; give a prefix.
            UnsupportedError: The backend can't list channels, or its user lacks the right.
            BackendError: The backend is unavailable, or refused the request.
        """
        return run(self._flow.channels(prefix))

    def run(self, *, concurrency: int = 1, signals: bool | None = None) -> None:
        """Call the handlers until `stop`. It returns when the messages that have arrived before are handled.

        Arguments:
            concurrency: How many messages are handled at once, each in a thread. 1 keeps the order of each channel;
                above 1 there is no order. The handlers of one message are called one after another. A message for which
                no thread is free waits in the buffer, of which the oldest is dropped when it is full.
            signals: Whether SIGTERM and Ctrl-C call `stop`: True, False, or None for those whose handlers are the
                default ones (only in the main thread). A second signal acts as it did before.

        Raises:
            ClosedError: The backend was closed.
            InvalidArgumentError: No handler is subscribed.
            BaseException: A handler raised an error that isn't an `Exception`, such as `KeyboardInterrupt`.
        """
        run(self._flow.run(check_signals(signals), concurrency))

    def run_in_thread(self, *, concurrency: int = 1, daemon: bool = True) -> threading.Thread:
        """Start `run` in a thread of its own and return it; `stop` or `close` ends it.

        Arguments:
            concurrency: As for `run`.
            daemon: Whether the process may end while the thread runs.
        """
        check_count("concurrency", concurrency)
        check_flag("daemon", daemon)
        thread = threading.Thread(
            target=self._run_to_the_end, args=(concurrency,), name="ailf-pubsub-run", daemon=daemon
        )
        thread.start()
        return thread

    def _run_to_the_end(self, concurrency: int) -> None:
        try:
            self.run(concurrency=concurrency)
        except ClosedError as error:
            log.info(self._flow, "the handlers have ended: %s", error)

    def close(self) -> None:
        """End `run`, remove the handlers, and close the backend that this object opened itself, if any."""
        run(self._end())

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()


class AsyncPubSub(_PubSubBase, Generic[T]):
    """Broadcast, and requests with replies. Get one from `AsyncBackend.pubsub`; annotate with this class.

    A message is delivered at most once, in order per publisher and channel. The object may be shared by any number of
    tasks.

    Arguments:
        type: The type of payloads; a body that doesn't match it can't be decoded.
        on_error: Called with the error and the raw message, if a message can't be decoded or a handler fails.
        sharded: Whether to use sharded channels, which only one shard of a cluster carries.
        validate: Whether each published payload is decoded before it is sent, so that only what receivers can decode
            is sent.

    Example:
        >>> import asyncio, ailf
        >>> async def main() -> None:
        ...     async with ailf.connect_async("memory://") as backend:
        ...         pubsub = backend.pubsub()
        ...         async with pubsub.listen("news") as subscription:
        ...             await pubsub.publish("news", {"title": "hello"})
        ...             assert await subscription.get(timeout=5) == ailf.Message("news", {"title": "hello"})
        >>> asyncio.run(main())
    """

    async def publish(self, channel: str, data: T, *, headers: Mapping[str, str] | None = None) -> None:
        """Publish a message to the current subscribers of a channel.

        Arguments:
            channel: The channel's name; any non-empty text.
            data: The payload, sent as JSON; ``bytes`` are sent unchanged.
            headers: Names and values, both text, sent beside the payload.

        Raises:
            EncodeError: The payload is not of the object's ``type``, or can't be written as JSON. Nothing was sent.
            InvalidArgumentError: The name, a header or the size can't be used; nothing was sent.
            OutcomeUnknownError: The message was sent, and no reply came.
            BackendError: The backend couldn't do it.
        """
        await self._flow.publish(channel, data, headers)

    async def publish_many(
        self, messages: Iterable[tuple[str, T]], *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish messages, given as pairs of channel and payload, in order and in one round trip; see `publish`."""
        await self._flow.publish_many(messages, headers)

    async def request(
        self, channel: str, data: Any, *, timeout: float = 5.0, headers: Mapping[str, str] | None = None
    ) -> AsyncMessage[T]:
        """Publish a request to the subscribers of a channel, and return the first reply.

        A reply is the return value of a handler, or is sent by `Message.reply`.

        Arguments:
            channel: The channel's name.
            data: The payload.
            timeout: Seconds to wait for the reply.
            headers: Headers of the request, as for `publish`.

        Raises:
            NoResponderError: The channel has no listener. If the backend can't know that, the request times out.
            RequestTimeoutError: No reply came in time.
            RequestFailedError: The responder's handler raised an error.
            DecodeError: The reply can't be decoded.
            BackendError: The backend couldn't do it.
        """
        reply: AsyncMessage[T] = await self._flow.request(channel, data, timeout, headers)
        return reply

    async def request_many(
        self,
        channel: str,
        data: Any,
        *,
        count: int | None = None,
        timeout: float = 5.0,
        headers: Mapping[str, str] | None = None,
    ) -> list[AsyncMessage[T]]:
        """Publish a request to the subscribers of a channel, and return the replies that arrive; see `request`.

        A failed reply, or one that can't be decoded, is logged and left out; with ``count=1`` it raises an error.

        Arguments:
            channel: The channel's name.
            data: The payload.
            count: Return when `count` replies have arrived; None waits until `timeout` has passed.
            timeout: Seconds to wait for replies.
            headers: Headers of the request, as for `publish`.
        """
        return await self._flow.request_many(channel, data, count, timeout, headers)

    def listen(
        self,
        *channels: str,
        pattern: str | Sequence[str] | None = None,
        buffer: int = BUFFER,
        overflow: Overflow = Overflow.DROP_OLDEST,
    ) -> AsyncSubscription[T]:
        """Return a subscription to channels and patterns, to be entered with ``async with``.

        Arguments:
            channels: The channels' names, which are literal.
            pattern: One or several patterns: ``*``, ``?``, ``[abc]``, and a backslash before a literal character.
            buffer: The number of messages that are buffered until they are read.
            overflow: What happens to a message when the buffer is full.

        Raises:
            InvalidArgumentError: There is neither a channel nor a pattern, or one can't be used.
            UnsupportedError: The backend or a sharded channel has no patterns.
        """
        return AsyncSubscription(self._flow, self._flow.filters(channels, _listed(pattern)), buffer, overflow)

    async def subscribe(self, channel: str, handler: Handler, *, pattern: bool = False) -> None:
        """Register a handler, which `run` calls with each `Message` of the channel. It is confirmed on return.

        Arguments:
            channel: The channel's name, or with ``pattern=True`` a pattern.
            handler: A function or coroutine function of the message. Its return value, unless None, is the reply to a
                `request`. Its error is logged and counted (`errors`), and doesn't affect other handlers.
            pattern: Whether `channel` is a pattern.
        """
        await self._flow.subscribe(channel, handler, pattern=check_flag("pattern", pattern))

    async def unsubscribe(self, channel: str, *, pattern: bool = False) -> None:
        """Remove the handlers of a channel or pattern."""
        await self._flow.unsubscribe(check_name("channel", channel), pattern=check_flag("pattern", pattern))

    async def channels(self, prefix: str = "") -> list[ChannelInfo]:
        """Return the channels that have subscribers now, sorted by name, in one request.

        Channels that are subscribed to only by a pattern are not among them, nor are those for replies and wake-ups.

        Arguments:
            prefix: The beginning of the names; every character stands for itself.

        Raises:
            ProtocolError: There are more than 10,000; give a prefix.
            UnsupportedError: The backend can't list channels, or its user lacks the right.
            BackendError: The backend is unavailable, or refused the request.
        """
        return await self._flow.channels(prefix)

    async def run(self, *, concurrency: int = 1, signals: bool | None = None) -> None:
        """Call the handlers until `stop`. It returns when the messages that have arrived before are handled.

        Arguments:
            concurrency: How many messages are handled at once, each in a task. 1 keeps the order of each channel; above
                1 there is no order. The handlers of one message are called one after another. A message for which no
                task is free waits in the buffer, of which the oldest is dropped when it is full.
            signals: Whether SIGTERM and Ctrl-C call `stop`: True, False, or None for those whose handlers are the
                default ones (only in the main thread). A second signal acts as it did before.

        Raises:
            ClosedError: The backend was closed.
            InvalidArgumentError: No handler is subscribed.
            BaseException: A handler raised an error that isn't an `Exception`, such as `KeyboardInterrupt`. A
                `CancelledError` that a handler raises itself is an error like any other.
        """
        await self._flow.run(check_signals(signals), concurrency)

    async def aclose(self) -> None:
        """End `run`, remove the handlers, and close the backend that this object opened itself, if any."""
        await self._end()

    async def __aenter__(self) -> Self:
        """Return the object itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()


def _listed(pattern: object) -> list[str] | None:
    """Return the patterns as a list, or None without any."""
    if pattern is None:
        return None
    return [pattern] if isinstance(pattern, str) else check_list("pattern", pattern)
