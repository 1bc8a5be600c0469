"""Listening: the flow under `PubSub`, and `Subscription` and `AsyncSubscription`, the two faces of one inbox."""

import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ailf.checks import check_count, check_name, check_pairs, check_seconds
from ailf.codecs import Payloads, open_envelope, seal_envelope
from ailf.driver import Capability, Filter, Frame
from ailf.engine import Engine
from ailf.engine.inbox import FAILED, REPLY_TO, REQUEST, RESERVED_HEADERS, PendingReply, check_free
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
from ailf.patterns import matches
from ailf.pubsub.message import Answer, AsyncMessage, Message
from ailf.runtime import name_of
from ailf.runtime.signals import stopped_by_signals
from ailf.safe_text import describe, log_failure, safe_text
from ailf.tracing import carrying
from ailf.user_errors import interrupts, is_fatal
from ailf.values import Gap, Overflow

__all__ = ["BUFFER", "ErrorHook", "Handler", "PubSubFlow"]

T = TypeVar("T")
Handler = Callable[[Message[Any]], Any]
ErrorHook = Callable[[Exception, Message[bytes]], Any]
"""Called with what went wrong and the message as it arrived: its channel, its headers and its raw bytes."""

log = logging.getLogger("ailf.pubsub")

BUFFER = 1024
"""How many messages a subscription holds unless told otherwise."""


class PubSubFlow:
    """The one text of both flavours."""

    def __init__(self, engine: Engine, type_: Any, on_error: ErrorHook | None, *, sharded: bool) -> None:
        engine.require(Capability.PUBSUB, "pub/sub")
        if sharded:
            engine.require(Capability.SHARDED, "sharded channels")
        self.engine = engine
        self._sharded = sharded
        self._options = {"sharded": True} if sharded else {}
        self.payloads = Payloads("a message", type_, engine.driver.max_payload)
        self.errors = 0
        self._face = Message if engine.runtime.flavour == "blocking" else AsyncMessage
        self._on_error = on_error
        self._driver = engine.driver.pubsub()
        self._handlers: dict[Filter, list[Handler]] = {}
        self._inbox: MessageBuffer | None = None

    # --- publishing ----------------------------------------------------------------------------------------------

    def publish(self, channel: str, data: Any, headers: Mapping[str, str] | None) -> Coroutine[Any, Any, object]:
        check_free(headers)
        return self._publish(_publishing, [self._sealed(channel, data, headers)])

    async def publish_many(self, messages: Iterable[tuple[str, Any]], headers: Mapping[str, str] | None) -> None:
        check_free(headers)
        sealed = [self._sealed(channel, data, headers) for channel, data in check_pairs("messages", messages)]
        if sealed:
            await self._publish(f"publish {len(sealed)} messages", sealed)

    def _sealed(self, channel: str, data: Any, headers: Mapping[str, str] | None) -> tuple[str, bytes]:
        """Return what is to be published."""
        check_name("channel", channel)
        body, packed = self.payloads.pack(data, headers)
        return channel, seal_envelope(body, packed)

    def _publish(
        self, what: str | Callable[..., str], sealed: Sequence[tuple[str, bytes]], until: float | None = None
    ) -> Coroutine[Any, Any, Sequence[int] | None]:
        """Publish, once; return how many heard each, where that is known."""
        return self.engine.call(what, self._driver.publish, sealed, again=False, until=until, **self._options)

    # --- asking and answering ------------------------------------------------------------------------------------

    async def request(self, channel: str, data: Any, timeout: float, headers: Mapping[str, str] | None) -> Any:
        ticket, replies = await self._ask(channel, data, 1, timeout, headers)
        if replies:
            return replies[0]
        raise RequestTimeoutError(
            f"request on channel {channel!r}: no reply within {timeout:g} s"
            + (f" (replies may be missing: {ticket.interrupted})" if ticket.interrupted else "")
        )

    async def request_many(
        self, channel: str, data: Any, count: int | None, timeout: float, headers: Mapping[str, str] | None
    ) -> list[Any]:
        most = None if count is None else check_count("count", count)
        return (await self._ask(channel, data, most, timeout, headers))[1]

    async def _ask(
        self, channel: str, data: Any, count: int | None, timeout: float, headers: Mapping[str, str] | None
    ) -> tuple[PendingReply, list[Message[Any]]]:
        """Ask, and collect replies until there are enough, or the time is over."""
        check_free(headers)
        check_name("channel", channel)
        now = self.engine.runtime.now
        until = now() + check_seconds("timeout", timeout, least=0.001)
        body, packed = self.payloads.pack(data, headers)
        desk = self.engine.reply_inbox
        await desk.open(until)
        ticket = desk.expect()
        try:
            sealed = seal_envelope(body, {**packed, REPLY_TO: desk.channel, REQUEST: ticket.id})
            heard = await self._publish(f"request on channel {channel!r}", [(channel, sealed)], until)
            if heard is not None and not heard[0]:
                raise NoResponderError(f"request on channel {channel!r}: nobody listens there")
            replies: list[Message[Any]] = []
            while (count is None or len(replies) < count) and (frame := await ticket.next(until - now())) is not None:
                replies += self._reply(channel, frame, only=count == 1)
        finally:
            desk.forget(ticket)
        return ticket, replies

    def _reply(self, channel: str, frame: Frame, *, only: bool) -> list[Message[Any]]:
        """Return a reply; where a responder failed, or it can't be decoded, raise, or with several leave it out."""
        body, headers = open_envelope(frame.body)
        if FAILED not in headers:
            try:
                data, shown = self.payloads.unpack(body, headers)
            except DecodeError as error:
                if only:
                    raise
                log.warning("request on channel %r: a reply is left out: %s", channel, error)
                return []
            return [self._face(channel, data, _shown(shown))]
        why = safe_text(headers[FAILED])  # of a responder that may not be ours
        if only:
            raise RequestFailedError(f"request on channel {channel!r}: the responder failed: {why}")
        log.warning("request on channel %r: a responder failed: %s", channel, why)
        return []

    def _answer_to(self, asked: Mapping[str, str]) -> Answer | None:
        """Return what answers a message that asks, by its headers; or None."""
        if REPLY_TO not in asked or REQUEST not in asked:
            return None
        where, request = asked[REPLY_TO], asked[REQUEST]

        async def answer(data: Any, headers: Mapping[str, str] | None, failed: str = "") -> None:
            check_free(headers)
            body, packed = (b"", {}) if failed else self.payloads.pack(data, headers)
            sealed = seal_envelope(body, {**packed, REQUEST: request, **({FAILED: failed} if failed else {})})
            await self.engine.call(f"reply to {request}", self._driver.publish, [(where, sealed)], again=False)

        return answer

    # --- receiving -----------------------------------------------------------------------------------------------

    def filters(self, channels: Iterable[str], patterns: str | Sequence[str] | None) -> list[Filter]:
        chosen = [Filter(check_name("channel", each), is_sharded=self._sharded) for each in channels]
        if patterns:
            self.engine.require(Capability.PATTERNS, "patterns of channels")
            if self._sharded:
                raise UnsupportedError("sharded channels have no patterns: no shard knows the channels of the others")
            listed = [patterns] if isinstance(patterns, str) else patterns
            chosen += [Filter(check_name("pattern", each), is_pattern=True) for each in listed]
        if not chosen:
            raise InvalidArgumentError("name at least one channel, or a pattern, to listen to")
        return chosen

    async def open(self, filters: Iterable[Filter], size: int, overflow: Overflow) -> MessageBuffer:
        inbox = MessageBuffer(self.engine.runtime.event(), size=size, overflow=overflow, now=self.engine.runtime.now)
        await self.engine.subscriptions.attach(inbox, filters)
        return inbox

    async def next(self, inbox: MessageBuffer, timeout: float | None = None) -> Any:
        """Return the next message that can be decoded, or gap; None at the end or after `timeout` seconds.

        Messages that are there when it is called are looked at in any case, also where most can't be decoded.
        """
        now = self.engine.runtime.now
        until = None if timeout is None else now() + check_seconds("timeout", timeout)
        there = 0 if until is None else len(inbox)
        while True:
            item = inbox.take() or await inbox.get(None if until is None else max(0.0, until - now()))
            if not isinstance(item, Frame):
                return item
            if (message := await self._decode(item)) is not None:
                return message
            there -= 1
            if until is not None and there <= 0 and now() >= until:
                return None

    async def _decode(self, frame: Frame) -> Message[Any] | None:
        try:
            body, headers = open_envelope(frame.body)
            data, shown = self.payloads.unpack(body, headers, problem=frame.problem)
        except DecodeError as error:
            await self._failed("a message that can't be decoded", error, self._raw(frame))
            return None
        if not headers:  # most have none, so nobody asks, and there is nothing to hide
            return self._face(frame.channel, data, shown)
        return self._face(frame.channel, data, _shown(shown), answer=self._answer_to(headers))

    def _raw(self, frame: Frame) -> Message[bytes]:
        """Return the message with its bytes, with headers where its envelope can be opened."""
        with contextlib.suppress(DecodeError):
            body, headers = open_envelope(frame.body)
            return self._face(safe_text(frame.channel), body, _shown(headers), answer=self._answer_to(headers))
        return self._face(safe_text(frame.channel), frame.body)

    async def _failed(self, what: str, error: BaseException, raw: Message[bytes]) -> None:
        self.errors += 1
        hidden = isinstance(error, DecodeError)  # what a decoder says may quote the payload
        log_failure(
            log,
            logging.ERROR,
            "channel %r: %s: %s",
            raw.channel,
            what,
            describe(error),
            error=None if hidden else error,
        )
        await self._excuse(error, raw)
        if self._on_error is None:
            return
        _, failure = await self.engine.runtime.call_user_code(self._on_error, error, raw)
        if failure is not None:
            if interrupts(failure):
                raise failure
            log_failure(log, logging.ERROR, "channel %r: the error hook failed", raw.channel, error=failure)

    async def _excuse(self, error: BaseException, raw: Message[bytes]) -> None:
        """Tell who waits for a reply that none will come."""
        if raw.answer is None:
            return
        try:
            await raw.answer(None, None, describe(error))
        except AilfError as away:
            log.warning("channel %r: who asked could not be told that it failed: %s", raw.channel, away)

    # --- handlers ------------------------------------------------------------------------------------------------

    async def subscribe(self, channel: str, handler: Handler, *, pattern: bool) -> None:
        self.engine.runtime.check_callable(f"the handler for {channel!r}", handler)
        (wanted,) = self.filters((), channel) if pattern else self.filters((channel,), None)
        if self._inbox is not None and self._inbox.ended:  # its handlers ended with it
            self._handlers.clear()
        handlers = self._handlers.setdefault(wanted, [])
        handlers.append(handler)  # before the first message can come
        try:
            if self._inbox is None or self._inbox.ended:
                self._inbox = await self.open((wanted,), BUFFER, Overflow.DROP_OLDEST)
            else:
                await self.engine.subscriptions.add(self._inbox, (wanted,))
        except BaseException:
            handlers.remove(handler)
            raise

    async def unsubscribe(self, channel: str, *, pattern: bool) -> None:
        unwanted = Filter(channel, is_pattern=pattern, is_sharded=self._sharded)
        self._handlers.pop(unwanted, None)
        if self._inbox is not None:
            await self.engine.subscriptions.drop(self._inbox, (unwanted,))

    async def run(self, signals: bool | None) -> None:  # noqa: FBT001 - as the option has it
        if (inbox := self._inbox) is None:
            raise InvalidArgumentError("nothing to run: subscribe(channel, handler) first")
        with stopped_by_signals(self.engine.runtime.from_signal(self.stop), signals):
            await self._run(inbox)

    async def _run(self, inbox: MessageBuffer) -> None:
        while (item := await inbox.get()) is not None:
            if isinstance(item, Gap):
                log.warning("messages may be missing: %s", item.reason)
            elif (message := await self._decode(item)) is not None:
                await self._handle(message, item)

    async def _handle(self, message: Message[Any], frame: Frame) -> None:
        for wanted, handlers in tuple(self._handlers.items()):
            fits = wanted == frame.filter or (
                matches(wanted.text, message.channel) if wanted.is_pattern else wanted.text == message.channel
            )
            for handler in tuple(handlers) if fits else ():
                await self._call(handler, message, frame)

    async def _call(self, handler: Handler, message: Message[Any], frame: Frame) -> None:
        """Call a handler, and answer with what it returns; its error harms no other (P8)."""
        with carrying(message.headers):
            result, error = await self.engine.runtime.call_user_code(handler, message)
            if error is None and result is not None and message.answer is not None:
                try:
                    await message.answer(result, None)
                except Exception as failure:  # noqa: BLE001 - what it returned can't be sent, or the backend is away
                    error = failure
        if error is None:
            return
        if interrupts(error):
            raise error
        raw = self._face(frame.channel, frame.body, message.headers, answer=message.answer)
        await self._failed(f"handler {name_of(handler)} failed", error, raw)
        if is_fatal(error):
            raise error

    def stop(self) -> None:
        if self._inbox is not None:
            self._inbox.end()

    async def close(self) -> None:
        self.engine.check_home()
        inbox, self._inbox = self._inbox, None
        self._handlers.clear()
        if inbox is not None:
            inbox.end()
            if not self.engine.closed:
                await self.engine.subscriptions.remove(inbox)


def _publishing(sealed: Sequence[tuple[str, bytes]]) -> str:
    return f"publish on channel {sealed[0][0]!r}"


def _shown(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that are the publisher's own."""
    return {name: value for name, value in headers.items() if name not in RESERVED_HEADERS}
