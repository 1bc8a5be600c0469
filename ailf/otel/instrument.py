"""`OpenTelemetry`: the instrument."""

import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, Final

import attrs

from ailf.checks import check_list
from ailf.errors import InvalidArgumentError
from ailf.instruments import (
    ConnectionLost,
    ConnectionRestored,
    Destination,
    Instrument,
    LeaseExpired,
    MessageDied,
    MessageReceived,
    MessagesDropped,
    MessageSent,
    MessageSettled,
    MessagesMissed,
    Waited,
)
from ailf.labels import DEFAULT_NAMES
from ailf.otel.api import (
    Link,
    Span,
    SpanKind,
    TraceContextTextMapPropagator,
    contexts,
    metrics,
    propagate,
    trace,
)
from ailf.otel.attributes import SCHEMA_URL, Naming, of_message, operation_of
from ailf.otel.messages import Messages, key_of
from ailf.otel.metrics import Metrics
from ailf.otel.process import NANOSECONDS, Process
from ailf.otel.spans import Spans, creation_of, fail, inject
from ailf.pubsub import Message
from ailf.tracing import carried
from ailf.version import __version__

__all__ = ["OpenTelemetry"]

SPANS: Final = ("send", "receive", "process", "settle")
"""The types of operations that have spans."""

_W3C: Final = TraceContextTextMapPropagator()

MOST_SENDS: Final = 8
"""The number of sends that are under way in one task or thread, one inside another."""


@attrs.frozen
class _Send:
    """The span of a send that is under way."""

    owner: "OpenTelemetry"
    span: Span
    begin: int


_sends: ContextVar[tuple[_Send, ...]] = ContextVar("ailf_otel_sends", default=())
"""The sends that are under way in this task or thread: a ``traceparent`` alone need not be of one send only."""


class OpenTelemetry(Instrument):
    """The instrument for OpenTelemetry. One object may observe any number of backends.

    Spans: ``add`` and ``publish`` (PRODUCER; CLIENT if the caller gave a ``traceparent`` of its own, which is kept),
    ``receive`` (CLIENT), ``process`` (CONSUMER), and ``ack``, ``nack``, ``reject``, ``release`` and ``dead_letter``
    (CLIENT), each with the stream's name. The current span is in effect within handlers and within ``with delivery``.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        *,
        names: Iterable[str] = DEFAULT_NAMES,
        spans: Iterable[str] = SPANS,
    ) -> None:
        """Choose the providers and what is recorded.

        Arguments:
            tracer_provider: Makes the spans; the global one if None.
            meter_provider: Makes the metrics; the global one if None.
            names: The kinds whose names are in the names of spans and attributes of metrics: some of ``stream``,
                ``channel``, ``lock`` and ``rate_limiter``. Give only kinds that have few names.
            spans: The types of operations that have spans: some of ``send``, ``receive``, ``process`` and ``settle``.
                Without spans the trace is propagated all the same, and metrics are recorded.

        Raises:
            InvalidArgumentError: A kind or type doesn't exist.
        """
        chosen = check_list("spans", spans)
        if unknown := [each for each in chosen if each not in SPANS]:
            raise InvalidArgumentError(f"spans: {unknown[0]!r} is none of {', '.join(SPANS)}")
        tracer = trace.get_tracer("ailf", __version__, tracer_provider, SCHEMA_URL)
        self._naming = Naming(names)
        self._spans = Spans(tracer, self._naming, frozenset(chosen))
        self._metrics = Metrics(metrics.get_meter("ailf", __version__, meter_provider, SCHEMA_URL))
        self._messages = Messages()

    # --- sending -------------------------------------------------------------------------------------------------

    def sending(self, destination: Destination, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Start the span of a send, and return the headers with its context; a caller's own context is kept."""
        current = contexts.get_current()
        given = carried()
        if given and not trace.get_current_span(current).get_span_context().is_valid:
            current = _W3C.extract(given, current)  # no span is current, but a trace of `ailf.tracing`
        own = creation_of(headers)
        if "send" not in self._spans.chosen:
            return inject(headers, current) if own is None else headers
        operation = operation_of(destination)
        begin = time.time_ns()
        span = self._spans.tracer.start_span(
            self._naming.span_name(operation, destination),
            current,
            SpanKind.PRODUCER if own is None else SpanKind.CLIENT,
            self._naming.of_span(destination, operation, "send"),
            None if own is None else [Link(own)],
            begin,
        )
        _sends.set((*_sends.get()[1 - MOST_SENDS :], _Send(self, span, begin)))
        return inject(headers, trace.set_span_in_context(span, current)) if own is None else headers

    def message_sent(self, event: MessageSent) -> None:
        """End the span of the send."""
        send = self._take_send()
        if send is not None:
            span = send.span
            if event.count > 1:
                span.set_attribute("messaging.batch.message_count", event.count)
            elif event.ids:
                span.set_attribute("messaging.message.id", event.ids[0])
            if event.count == 1 and event.destination.kind == "channel":  # a batch may be for several channels
                span.set_attribute("messaging.destination.name", event.destination.name)
            if event.error is not None:
                fail(span, event.error)
            span.end(send.begin + round(event.seconds * NANOSECONDS))
        attributes = self._naming.of_metric(
            event.destination, operation_of(event.destination), "send", error=event.error
        )
        self._metrics.sent.add(event.count, attributes)
        self._metrics.operation_duration.record(event.seconds, attributes)

    def _take_send(self) -> _Send | None:
        """Return the last send of this instrument, in this task or thread, that is under way."""
        sends = _sends.get()
        for send in reversed(sends):
            if send.owner is self:
                _sends.set(tuple(each for each in sends if each is not send))
                return send
        return None  # its arguments were refused before it began

    # --- receiving and handling ----------------------------------------------------------------------------------

    def message_received(self, event: MessageReceived) -> None:
        """Count a message, and remember when it came."""
        attributes = self._naming.of_metric(event.source, "receive", "receive", event.group)
        self._metrics.consumed.add(1, attributes)
        if event.source.kind == "stream":
            self._metrics.queue_duration.record(event.queued, self._naming.of_own(event.source, event.group))
            self._messages.receive(key_of(event.source, event.group, event.id), creation_of(event.headers))
        elif "receive" in self._spans.chosen:
            self._spans.receive(event.source, event.headers, time.time_ns())

    def handling(self, handled: Any) -> AbstractContextManager[object]:
        """Return the context of a handler: its span is current in it."""
        parts = (self._spans, self._metrics, self._messages)
        if isinstance(handled, Message):
            return Process(*parts, Destination(handled.backend, "channel", handled.channel), handled.headers)
        if isinstance(handled, list):
            return Process(*parts, handled[0].source, {}, handled, batch=True)
        return Process(*parts, handled.source, handled.headers, (handled,))

    # --- settling ------------------------------------------------------------------------------------------------

    def message_settled(self, event: MessageSettled) -> None:
        """Record a settlement. The hook tells of it when it is done, so its span has no length."""
        key = key_of(event.source, event.group, event.id)
        known = self._messages.settle(key, forget=event.outcome == "ack")
        described = of_message(event.group, event.consumer, event.id, event.attempt)
        if "receive" in self._spans.chosen and event.outcome != "release" and known.received:  # it came to no handler
            self._spans.receive(event.source, event.headers, known.received, described)
        self._metrics.settled.add(1, {**self._naming.of_own(event.source, event.group), "ailf.outcome": event.outcome})
        if "settle" not in self._spans.chosen:
            return
        operation = "settle" if event.outcome == "lost" else event.outcome
        attributes = {**self._naming.of_span(event.source, operation, "settle"), **described}
        if event.dead:
            attributes["ailf.message.dead"] = True
        parent = known.parent() if known.attempts else propagate.extract(event.headers)
        lost = ("LeaseLostError", "the lease had ended") if event.outcome == "lost" else None
        self._spans.record(
            operation, event.source, parent, attributes, [creation_of(event.headers)], time.time_ns(), error=lost
        )

    def message_died(self, event: MessageDied) -> None:
        """Record a dead letter; its span belongs to the message's trace, and links to the attempts of this process."""
        attributes = {**self._naming.of_own(event.source, event.group), "ailf.reason": event.reason}
        self._metrics.dead.add(1, attributes)
        known = self._messages.find(key_of(event.source, event.group, event.id))
        if known is None or known.creation is None or "settle" not in self._spans.chosen:
            return
        of_span = {
            **self._naming.of_span(event.source, "dead_letter", "settle"),
            "messaging.consumer.group.name": event.group,
            "messaging.message.id": event.id,
            "ailf.reason": event.reason,
        }
        parent = trace.set_span_in_context(trace.NonRecordingSpan(known.creation))
        links = [known.creation, *(context for _, context in known.attempts)]
        self._spans.record("dead_letter", event.source, parent, of_span, links, time.time_ns())

    # --- other events --------------------------------------------------------------------------------------------

    def waited(self, event: Waited) -> None:
        """Record how long ``acquire`` took."""
        attributes = {"ailf.kind": event.kind, **self._naming.server(event.backend)}
        if name := self._naming.labels.name(event.kind, event.name):
            attributes["ailf.name"] = name
        self._metrics.wait_duration.record(event.seconds, self._naming.with_error(attributes, event.error))

    def lease_expired(self, event: LeaseExpired) -> None:
        """Count a lost lease."""
        self._metrics.lost_leases.add(1, self._naming.server(event.backend))

    def messages_missed(self, event: MessagesMissed) -> None:
        """Record a gap."""
        self._metrics.gap_duration.record(event.seconds, self._naming.server(event.backend))

    def messages_dropped(self, event: MessagesDropped) -> None:
        """Count a dropped message."""
        self._metrics.dropped.add(1, self._naming.of_own(event.source, ""))

    def connection_lost(self, event: ConnectionLost) -> None:
        """Count an outage."""
        self._metrics.outages.add(1, self._naming.with_error(self._naming.server(event.backend), event.error))

    def connection_restored(self, event: ConnectionRestored) -> None:
        """Record the length of an outage."""
        self._metrics.outage_duration.record(event.seconds, self._naming.server(event.backend))
