"""Broadcast between agents: `PubSub` and `AsyncPubSub`, two thin faces of one flow.

At most once, in order per publisher and channel, and what may have been missed is said (`Gap`). A publisher never waits
for a subscriber.
"""

import functools
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from ailf.checks import check_flag, check_list, check_name
from ailf.engine import Engine
from ailf.engine.standalone import StandaloneObject
from ailf.errors import ClosedError, InvalidArgumentError
from ailf.pubsub.flow import BUFFER, ErrorHook, Handler, PubSubFlow
from ailf.pubsub.message import AsyncMessage, Message
from ailf.pubsub.subscription import AsyncSubscription, Subscription
from ailf.runtime import run
from ailf.runtime.signals import check_signals
from ailf.values import Overflow

__all__ = ["AsyncPubSub", "PubSub"]

T = TypeVar("T")

log = logging.getLogger("ailf.pubsub")


class _PubSubBase(StandaloneObject):
    """What both faces share: how the flow is made."""

    def __init__(
        self,
        *,
        type: Any = Any,  # noqa: A002 - `type=` is the API
        on_error: ErrorHook | None = None,
        sharded: bool = False,
        engine: Engine | None = None,
    ) -> None:
        super().__init__(engine)
        self._type = type
        self._sharded = check_flag("sharded", sharded)
        if on_error is not None and not callable(on_error):
            raise InvalidArgumentError(f"on_error must be callable, not {on_error!r}")
        self._on_error = on_error

    @functools.cached_property
    def _flow(self) -> PubSubFlow:
        return PubSubFlow(self._engine, self._type, self._on_error, sharded=self._sharded)

    @property
    def errors(self) -> int:
        """How many messages couldn't be decoded or made a handler raise."""
        return self._flow.errors

    async def _end(self) -> None:
        if "_flow" in vars(self):
            await self._flow.close()
        await self._close()

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

    def request(
        self, channel: str, data: Any, *, timeout: float = 5.0, headers: Mapping[str, str] | None = None
    ) -> Message[T]:
        """Ask whoever listens to the channel, and return the first reply (P9).

        Replies come from a handler's return value, or from `Message.reply`.

        Arguments:
            channel: Any non-empty text.
            data: The payload.
            timeout: Seconds to wait for the reply.
            headers: Text beside the payload.

        Raises:
            NoResponderError: Nobody listens there, where the backend can know it; otherwise the time runs out.
            RequestTimeoutError: No reply came in time.
            RequestFailedError: The responder's handler raised.
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
        """Ask everybody who listens to the channel, and return the replies that come; see `request`.

        Arguments:
            channel: Any non-empty text.
            data: The payload.
            count: Return when so many have come; None: when the time is over.
            timeout: Seconds to wait for replies.
            headers: Text beside the payload.
        """
        return run(self._flow.request_many(channel, data, count, timeout, headers))

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
        return Subscription(self._flow, self._flow.filters(channels, _listed(pattern)), buffer, overflow)

    def subscribe(self, channel: str, handler: Handler, *, pattern: bool = False) -> None:
        """Let `run` call the handler with each `Message` of the channel; confirmed on return (P2).

        Arguments:
            channel: A name, or with ``pattern=True`` a pattern.
            handler: Called with the message. What it returns, unless None, answers a `request`. What it raises is
                logged and counted, and harms no other (P8).
            pattern: Whether ``channel`` is a pattern.
        """
        run(self._flow.subscribe(channel, handler, pattern=check_flag("pattern", pattern)))

    def unsubscribe(self, channel: str, *, pattern: bool = False) -> None:
        """Take the channel's handlers away."""
        run(self._flow.unsubscribe(check_name("channel", channel), pattern=check_flag("pattern", pattern)))

    def run(self, *, signals: bool | None = None) -> None:
        """Call the handlers, one message at a time, until `stop`.

        Arguments:
            signals: Whether SIGTERM and Ctrl-C stop it as `stop` does: True, False, or None for those whose handlers
                are the default ones (only in the main thread). A second signal acts as it did before.

        Raises:
            ClosedError: The backend was closed.
            InvalidArgumentError: Nothing is subscribed.
            BaseException: What a handler raised that is no `Exception`, such as Ctrl-C.
        """
        run(self._flow.run(check_signals(signals)))

    def run_in_thread(self, *, daemon: bool = True) -> threading.Thread:
        """Start `run` in a thread of its own and return it; `stop` or `close` ends it."""
        check_flag("daemon", daemon)
        thread = threading.Thread(target=self._run_to_the_end, name="ailf-pubsub-run", daemon=daemon)
        thread.start()
        return thread

    def _run_to_the_end(self) -> None:
        try:
            self.run()
        except ClosedError as error:
            log.info("the handlers have ended: %s", error)

    def close(self) -> None:
        """End `run`, give up the subscriptions made with `subscribe`, and close what this object opened itself."""
        run(self._end())

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

    async def request(
        self, channel: str, data: Any, *, timeout: float = 5.0, headers: Mapping[str, str] | None = None
    ) -> AsyncMessage[T]:
        """Ask whoever listens to the channel, and return the first reply (P9).

        Replies come from a handler's return value, or from `Message.reply`.

        Arguments:
            channel: Any non-empty text.
            data: The payload.
            timeout: Seconds to wait for the reply.
            headers: Text beside the payload.

        Raises:
            NoResponderError: Nobody listens there, where the backend can know it; otherwise the time runs out.
            RequestTimeoutError: No reply came in time.
            RequestFailedError: The responder's handler raised.
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
        """Ask everybody who listens to the channel, and return the replies that come; see `request`.

        Arguments:
            channel: Any non-empty text.
            data: The payload.
            count: Return when so many have come; None: when the time is over.
            timeout: Seconds to wait for replies.
            headers: Text beside the payload.
        """
        return await self._flow.request_many(channel, data, count, timeout, headers)

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
        return AsyncSubscription(self._flow, self._flow.filters(channels, _listed(pattern)), buffer, overflow)

    async def subscribe(self, channel: str, handler: Handler, *, pattern: bool = False) -> None:
        """Let `run` call the handler with each `Message` of the channel; confirmed on return (P2).

        Arguments:
            channel: A name, or with ``pattern=True`` a pattern.
            handler: A function or coroutine function, called with the message. What it returns, unless None, answers a
                `request`. What it raises is logged and counted, and harms no other (P8).
            pattern: Whether ``channel`` is a pattern.
        """
        await self._flow.subscribe(channel, handler, pattern=check_flag("pattern", pattern))

    async def unsubscribe(self, channel: str, *, pattern: bool = False) -> None:
        """Take the channel's handlers away."""
        await self._flow.unsubscribe(check_name("channel", channel), pattern=check_flag("pattern", pattern))

    async def run(self, *, signals: bool | None = None) -> None:
        """Call the handlers, one message at a time, until `stop`.

        Arguments:
            signals: Whether SIGTERM and Ctrl-C stop it as `stop` does: True, False, or None for those whose handlers
                are the default ones (only in the main thread). A second signal acts as it did before.

        Raises:
            ClosedError: The backend was closed.
            InvalidArgumentError: Nothing is subscribed.
            BaseException: What a handler raised that is no `Exception`, such as Ctrl-C. A `CancelledError` of the
                handler's own is an error like any other.
        """
        await self._flow.run(check_signals(signals))

    async def aclose(self) -> None:
        """End `run`, give up the subscriptions made with `subscribe`, and close what this object opened itself."""
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
    """Return patterns as a list; None where there are none."""
    if pattern is None:
        return None
    return [pattern] if isinstance(pattern, str) else check_list("pattern", pattern)
