"""The implementation of pub/sub for both flavours: publishing, requests and replies, subscriptions, handlers.

A request carries the channel of the process's inbox and an id, in headers that users don't see; a reply carries the id.
"""

import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from ailf.checks import check_count, check_name, check_pairs, check_prefix, check_seconds
from ailf.codecs import Payloads, open_envelope, seal_envelope
from ailf.driver import Capability, Filter, Frame
from ailf.engine import Engine
from ailf.engine.inbox import FAILED, INBOX, REPLY_TO, REQUEST, RESERVED_HEADERS, PendingReply, check_free
from ailf.engine.subscriptions import MessageBuffer
from ailf.errors import (
    AilfError,
    DecodeError,
    InvalidArgumentError,
    NoResponderError,
    RequestFailedError,
    RequestTimeoutError,
    UnsupportedError,
)
from ailf.instruments import Destination, MessageReceived
from ailf.logs import About, Fields, Log
from ailf.patterns import matches
from ailf.pubsub.concurrent import HandlerLoops, Take
from ailf.pubsub.message import Answer, AsyncMessage, Message
from ailf.runtime import name_of
from ailf.runtime.signals import stopped_by_signals
from ailf.safe_text import describe, safe_text
from ailf.tracing import carrying
from ailf.user_errors import interrupts, is_fatal
from ailf.values import ChannelInfo, Gap, Overflow

__all__ = ["BUFFER", "ErrorHook", "Handler", "PubSubFlow"]

T = TypeVar("T")

Handler = Callable[[Message[Any]], Any]
ErrorHook = Callable[[Exception, Message[bytes]], Any]
"""Called with the error and the message as it arrived: channel, headers and raw bytes."""

log = Log("ailf.pubsub")

BUFFER = 1024
"""The default size of a subscription's buffer, in messages."""


class PubSubFlow:
    """The implementation of `PubSub` and `AsyncPubSub`."""

    def __init__(
        self, engine: Engine, type_: Any, on_error: ErrorHook | None, *, sharded: bool, validate: bool = False
    ) -> None:
        engine.require(Capability.PUBSUB, "pub/sub")
        if sharded:
            engine.require(Capability.SHARDED, "sharded channels")
        self.engine = engine
        self._instruments = engine.instruments
        self._sharded = sharded
        self._options = {"sharded": True} if sharded else {}
        self.payloads = Payloads("a message", type_, engine.driver.max_payload, validate=validate)
        self.errors = 0
        self._guard = engine.runtime.guard()  # of `errors`, which several threads may count
        self._message_class = Message if engine.runtime.flavour == "blocking" else AsyncMessage
        self._on_error = on_error
        self._driver = engine.driver.pubsub()
        self._handlers: dict[Filter, list[Handler]] = {}
        self._buffer: MessageBuffer | None = None

    def __str__(self) -> str:
        return "the handlers of a PubSub"

    def log_fields(self) -> Fields:
        """Return the fields of a record of the log that is about its handlers."""
        return {"backend": self.engine.driver.url}

    def _about(self, what: str) -> About:
        """Return the subject of a record of the log."""
        return About(what, self.log_fields())

    # --- publishing ----------------------------------------------------------------------------------------------

    def publish(
        self, channel: str, data: Any, headers: Mapping[str, str] | None, *, observed: bool = False
    ) -> Coroutine[Any, Any, object]:
        if not observed and (self._instruments.message_sent or self._instruments.sending):
            return self._observe([(channel, data)], headers, partial(self.publish, channel, data, observed=True))
        check_free(headers)
        return self._publish(_publishing, [self._sealed(channel, data, headers)])

    async def publish_many(
        self, messages: Iterable[tuple[str, Any]], headers: Mapping[str, str] | None, *, observed: bool = False
    ) -> None:
        pairs = check_pairs("messages", messages)
        if not observed and (self._instruments.message_sent or self._instruments.sending) and pairs:
            publish = partial(self.publish_many, pairs, observed=True)
            await self._observe(pairs, headers, publish)
            return
        check_free(headers)
        sealed = [self._sealed(channel, data, headers) for channel, data in pairs]
        if sealed:
            await self._publish(f"publish {len(sealed)} messages", sealed)

    def _observe(
        self,
        messages: Sequence[tuple[str, Any]],
        headers: Mapping[str, str] | None,
        publish: Callable[[Mapping[str, str] | None], Coroutine[Any, Any, T]],
    ) -> Coroutine[Any, Any, T]:
        """Publish within the hooks of the instruments."""
        destination = Destination(self._instruments.backend, "channel", messages[0][0])
        now = self.engine.runtime.now
        names, payloads = zip(*messages, strict=True)
        return self._instruments.observe_sending(destination, headers, payloads, publish, _no_ids, now, names)

    def _sealed(self, channel: str, data: Any, headers: Mapping[str, str] | None) -> tuple[str, bytes]:
        """Return a message as the driver publishes it."""
        check_name("channel", channel)
        payloads = self.payloads
        if payloads.kinds and not isinstance(data, payloads.kinds):
            raise payloads.wrong_kind(data)
        body, packed = payloads.pack(data, headers)
        if payloads.validate:
            payloads.check(body, packed)
        return channel, seal_envelope(body, packed)

    def _publish(
        self, what: str | Callable[..., str], sealed: Sequence[tuple[str, bytes]], until: float | None = None
    ) -> Coroutine[Any, Any, Sequence[int] | None]:
        """Publish without repetition; return the number of receivers of each message, or None if it isn't known."""
        return self.engine.call(what, self._driver.publish, sealed, again=False, until=until, **self._options)

    # --- requests and replies ------------------------------------------------------------------------------------

    async def request(self, channel: str, data: Any, timeout: float, headers: Mapping[str, str] | None) -> Any:
        pending, replies = await self._request(channel, data, 1, timeout, headers)
        if replies:
            return replies[0]
        raise RequestTimeoutError(
            f"request on channel {channel!r}: no reply within {timeout:g} s"
            + (f" (replies may be missing: {pending.interrupted})" if pending.interrupted else "")
        )

    async def request_many(
        self, channel: str, data: Any, count: int | None, timeout: float, headers: Mapping[str, str] | None
    ) -> list[Any]:
        most = None if count is None else check_count("count", count)
        return (await self._request(channel, data, most, timeout, headers))[1]

    async def _request(
        self,
        channel: str,
        data: Any,
        count: int | None,
        timeout: float,
        headers: Mapping[str, str] | None,
        *,
        observed: bool = False,
    ) -> tuple[PendingReply, list[Message[Any]]]:
        """Publish a request, and collect replies until there are `count` or the time has passed."""
        if not observed and (self._instruments.message_sent or self._instruments.sending):
            request = partial(self._request, channel, data, count, timeout, observed=True)
            return await self._observe([(channel, data)], headers, request)
        check_free(headers)
        check_name("channel", channel)
        now = self.engine.runtime.now
        until = now() + check_seconds("timeout", timeout, least=0.001)
        body, packed = self.payloads.pack(data, headers)
        inbox = self.engine.reply_inbox
        await inbox.open(until)
        pending = inbox.expect()
        try:
            sealed = seal_envelope(body, {**packed, REPLY_TO: inbox.channel, REQUEST: pending.id})
            receivers = await self._publish(f"request on channel {channel!r}", [(channel, sealed)], until)
            if receivers is not None and not receivers[0]:
                raise NoResponderError(f"request on channel {channel!r}: the channel has no listener")
            replies: list[Message[Any]] = []
            while (count is None or len(replies) < count) and (frame := await pending.next(until - now())) is not None:
                replies += self._reply(channel, frame, only=count == 1)
        finally:
            inbox.forget(pending)
        return pending, replies

    def _reply(self, channel: str, frame: Frame, *, only: bool) -> list[Message[Any]]:
        """Return a reply as a list. If it failed or can't be decoded, raise if it is the `only` one, else return []."""
        body, headers = open_envelope(frame.body)
        if FAILED not in headers:
            try:
                data, unpacked = self.payloads.unpack(body, headers)
            except DecodeError as error:
                if only:
                    raise
                log.warning(self._about(f"request on channel {channel!r}"), "a reply is left out: %s", error)
                return []
            return [self._message_class(channel, data, _public(unpacked))]
        why = safe_text(headers[FAILED])  # another program may have written it
        if only:
            raise RequestFailedError(f"request on channel {channel!r}: the responder failed: {why}")
        log.warning(self._about(f"request on channel {channel!r}"), "a responder failed: %s", why)
        return []

    def _answer_to(self, request_headers: Mapping[str, str]) -> Answer | None:
        """Return the function that replies to a request with these headers; None if they are not of a request."""
        if REPLY_TO not in request_headers or REQUEST not in request_headers:
            return None
        inbox, request = request_headers[REPLY_TO], request_headers[REQUEST]

        async def answer(data: Any, headers: Mapping[str, str] | None, failed: str = "") -> None:
            check_free(headers)
            body, packed = (b"", {}) if failed else self.payloads.pack(data, headers)
            sealed = seal_envelope(body, {**packed, REQUEST: request, **({FAILED: failed} if failed else {})})
            await self.engine.call(f"reply to {request}", self._driver.publish, [(inbox, sealed)], again=False)

        return answer

    # --- what exists ---------------------------------------------------------------------------------------------

    async def channels(self, prefix: str) -> list[ChannelInfo]:
        self.engine.require(Capability.LISTING, "listing")
        check_prefix(prefix)
        found = await self.engine.call("list channels", self._driver.channels, prefix, again=True, **self._options)
        return sorted((each for each in found if not each.name.startswith(INBOX)), key=lambda each: each.name)

    # --- receiving -----------------------------------------------------------------------------------------------

    def filters(self, channels: Iterable[str], patterns: str | Sequence[str] | None) -> list[Filter]:
        filters = [Filter(check_name("channel", name), is_sharded=self._sharded) for name in channels]
        if patterns:
            self.engine.require(Capability.PATTERNS, "patterns of channels")
            if self._sharded:
                raise UnsupportedError(
                    "sharded channels have no patterns, as no shard knows the channels of the others"
                )
            listed = [patterns] if isinstance(patterns, str) else patterns
            filters += [Filter(check_name("pattern", pattern), is_pattern=True) for pattern in listed]
        if not filters:
            raise InvalidArgumentError("a subscription needs at least one channel or pattern")
        return filters

    async def open(self, filters: Iterable[Filter], size: int, overflow: Overflow) -> MessageBuffer:
        runtime = self.engine.runtime
        buffer = MessageBuffer(
            runtime.event(), size=size, overflow=overflow, now=runtime.now, instruments=self._instruments
        )
        await self.engine.subscriptions.attach(buffer, filters)
        return buffer

    async def next(self, buffer: MessageBuffer, timeout: float | None = None) -> Any:
        """Return the next message that can be decoded, or gap; None at the end or after `timeout` seconds.

        Messages that are buffered at the call are all tried, even if `timeout` runs out while some can't be decoded.
        """
        now = self.engine.runtime.now
        until = None if timeout is None else now() + check_seconds("timeout", timeout)
        buffered = 0 if until is None else len(buffer)
        while True:
            item = buffer.take() or await buffer.get(None if until is None else max(0.0, until - now()))
            if not isinstance(item, Frame):
                return item
            if (message := await self._decode(item)) is not None:
                return message
            buffered -= 1
            if until is not None and buffered <= 0 and now() >= until:
                return None

    async def _decode(self, frame: Frame) -> Message[Any] | None:
        try:
            body, headers = open_envelope(frame.body)
            data, unpacked = self.payloads.unpack(body, headers, problem=frame.problem)
        except DecodeError as error:
            await self._failed("a message that can't be decoded", error, self._raw(frame))
            return None
        if self._instruments.message_received:
            source = Destination(self._instruments.backend, "channel", frame.channel)
            self._instruments.emit(MessageReceived(source, unpacked, payload=data))
        if not headers:  # as most messages: it isn't a request, and there are no headers to hide
            return self._message_class(frame.channel, data, unpacked, None, self._instruments.backend)
        answer = self._answer_to(headers)
        return self._message_class(frame.channel, data, _public(unpacked), answer, self._instruments.backend)

    def _raw(self, frame: Frame) -> Message[bytes]:
        """Return the message with its raw bytes, and with its headers if its envelope can be opened."""
        with contextlib.suppress(DecodeError):
            body, headers = open_envelope(frame.body)
            return self._message_class(
                safe_text(frame.channel), body, _public(headers), self._answer_to(headers), self._instruments.backend
            )
        return self._message_class(safe_text(frame.channel), frame.body, backend=self._instruments.backend)

    async def _failed(self, what: str, error: BaseException, raw: Message[bytes]) -> None:
        with self._guard:
            self.errors += 1
        quotes = isinstance(error, DecodeError)  # a decoder's error may quote the payload, which stays out of logs
        about, shown = self._about(f"channel {raw.channel!r}"), None if quotes else error
        log.failure(logging.ERROR, about, "%s: %s", what, describe(error), error=shown)
        await self._reply_failure(error, raw)
        if self._on_error is None:
            return
        _, failure = await self.engine.runtime.call_user_code(self._on_error, error, raw)
        if failure is not None:
            if interrupts(failure):
                raise failure
            log.failure(logging.ERROR, about, "the error hook failed", error=failure)

    async def _reply_failure(self, error: BaseException, raw: Message[bytes]) -> None:
        """If the message is a request, reply that it failed."""
        if raw.answer is None:
            return
        try:
            await raw.answer(None, None, describe(error))
        except AilfError as failure:
            about = self._about(f"channel {raw.channel!r}")
            log.warning(about, "the failure could not be reported to the requester: %s", failure)

    # --- handlers ------------------------------------------------------------------------------------------------

    async def subscribe(self, channel: str, handler: Handler, *, pattern: bool) -> None:
        self.engine.runtime.check_callable(f"the handler for {channel!r}", handler)
        (added,) = self.filters((), channel) if pattern else self.filters((channel,), None)
        if self._buffer is not None and self._buffer.ended:  # its handlers ended with the buffer
            self._handlers.clear()
        handlers = self._handlers.setdefault(added, [])
        handlers.append(handler)  # before the first message can arrive
        try:
            if self._buffer is None or self._buffer.ended:
                self._buffer = await self.open((added,), BUFFER, Overflow.DROP_OLDEST)
            else:
                await self.engine.subscriptions.add(self._buffer, (added,))
        except BaseException:
            handlers.remove(handler)
            raise

    async def unsubscribe(self, channel: str, *, pattern: bool) -> None:
        removed = Filter(channel, is_pattern=pattern, is_sharded=self._sharded)
        self._handlers.pop(removed, None)
        if self._buffer is not None:
            await self.engine.subscriptions.drop(self._buffer, (removed,))

    async def run(self, signals: bool | None, concurrency: int) -> None:  # noqa: FBT001 - as the option has it
        check_count("concurrency", concurrency)
        if (buffer := self._buffer) is None:
            raise InvalidArgumentError("run: no handler is subscribed; call subscribe(channel, handler) first")
        self.engine.check_home()
        with stopped_by_signals(self.engine.runtime.from_signal(self.stop), signals):
            if concurrency == 1:
                await self._handle_all(buffer.get)
            else:
                await HandlerLoops(self.engine.runtime, buffer, self._handle_all, concurrency, self).run()

    async def _handle_all(self, take: Take) -> None:
        """Handle one item after another, until there is none."""
        while (item := await take()) is not None:
            if isinstance(item, Gap):
                log.warning(self, "messages may be missing: %s", item.reason)
            elif (message := await self._decode(item)) is not None:
                await self._handle(message, item)

    async def _handle(self, message: Message[Any], frame: Frame) -> None:
        for subscribed, handlers in tuple(self._handlers.items()):
            fits = subscribed == frame.filter or (
                matches(subscribed.text, message.channel)
                if subscribed.is_pattern
                else subscribed.text == message.channel
            )
            for handler in tuple(handlers) if fits else ():
                await self._call(handler, message, frame)

    async def _call(self, handler: Handler, message: Message[Any], frame: Frame) -> None:
        """Call a handler, and send its result as the reply; its error doesn't affect other handlers (P8)."""
        with carrying(message.headers):
            if self._instruments.handling:
                call = partial(self.engine.runtime.call_user_code, handler, message)
                result, error = await self._instruments.observe_handling(message, call)
            else:
                result, error = await self.engine.runtime.call_user_code(handler, message)
            if error is None and result is not None and message.answer is not None:
                try:
                    await message.answer(result, None)
                except Exception as failure:  # noqa: BLE001 - the result can't be sent, or the backend is unavailable
                    error = failure
        if error is None:
            return
        if interrupts(error):
            raise error
        raw = self._message_class(frame.channel, frame.body, message.headers, message.answer, message.backend)
        await self._failed(f"handler {name_of(handler)} failed", error, raw)
        if is_fatal(error):
            raise error

    def stop(self) -> None:
        if self._buffer is not None:
            self._buffer.end()

    async def close(self) -> None:
        self.engine.check_home()
        buffer, self._buffer = self._buffer, None
        self._handlers.clear()
        if buffer is not None:
            buffer.end()
            if not self.engine.closed:
                await self.engine.subscriptions.remove(buffer)


def _no_ids(_: object) -> tuple[str, ...]:
    """Return no id, as the messages of a channel have none."""
    return ()


def _publishing(sealed: Sequence[tuple[str, bytes]]) -> str:
    return f"publish on channel {sealed[0][0]!r}"


def _public(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers without those of requests and replies."""
    return {name: value for name, value in headers.items() if name not in RESERVED_HEADERS}
