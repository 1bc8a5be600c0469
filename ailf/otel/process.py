"""The span of a handler, which is current within it."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Final

from ailf.instruments import Destination
from ailf.otel.api import Context, Link, Span, SpanKind, contexts, propagate, trace
from ailf.otel.attributes import Attributes, of_message
from ailf.otel.messages import Known, Messages, key_of_delivery
from ailf.otel.metrics import Metrics
from ailf.otel.spans import Spans, creation_of, fail

__all__ = ["NANOSECONDS", "Process"]

NANOSECONDS: Final = 1_000_000_000

_entered: ContextVar[object] = ContextVar("ailf_otel_entered", default=None)
"""Changes with each handler that is entered, to find out whether it is left in the context in which it was entered."""


class Process(AbstractContextManager[None]):
    """The span of a handler, or of the body of ``with delivery``."""

    def __init__(
        self,
        spans: Spans,
        metrics: Metrics,
        messages: Messages,
        source: Destination,
        headers: Mapping[str, str],
        deliveries: Sequence[Any] = (),
        *,
        batch: bool = False,
    ) -> None:
        self._spans = spans
        self._naming = spans.naming
        self._metrics = metrics
        self._messages = messages
        self._source = source
        self._headers = headers
        self._deliveries = deliveries
        self._batch = batch
        self._span: Span | None = None

    def __enter__(self) -> None:
        """Start the span, and make it the current one."""
        base = contexts.get_current()
        context = propagate.extract(self._headers, base)
        self._began, self._begin = time.perf_counter_ns(), time.time_ns()
        earlier = [self._receive(each) for each in self._deliveries]
        if "process" in self._spans.chosen:
            self._span = span = self._spans.tracer.start_span(
                self._naming.span_name("process", self._source),
                context,
                SpanKind.CONSUMER,
                self._attributes(),
                self._links(base, context, earlier),
                self._begin,
            )
            for each in self._deliveries:
                self._messages.begin(key_of_delivery(each), each.attempt, span.get_span_context())
            context = trace.set_span_in_context(span, context)
        self._token = contexts.attach(context)
        self._mark: Token[object] = _entered.set(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the span; make the one before the current one, unless another task has entered it."""
        took = time.perf_counter_ns() - self._began
        with contextlib.suppress(ValueError):
            _entered.reset(self._mark)
            contexts.detach(self._token)
        if self._span is not None:
            if error is not None:
                fail(self._span, error)
            self._span.end(self._begin + took)
        group = self._deliveries[0].group if self._deliveries else ""
        attributes = self._naming.of_metric(self._source, "process", "process", group, error)
        self._metrics.process_duration.record(took / NANOSECONDS, attributes)

    def _receive(self, delivery: Any) -> Known:
        """Record that a message came to its handler: its time in the consumer's buffer. A batch has no such span."""
        known = self._messages.forward(key_of_delivery(delivery))
        if known.received and not self._batch and "receive" in self._spans.chosen:
            described = of_message(delivery.group, delivery.consumer, delivery.id, delivery.attempt)
            self._spans.receive(self._source, delivery.headers, known.received, described, self._begin)
        return known

    def _attributes(self) -> Attributes:
        attributes = self._naming.of_span(self._source, "process", "process")
        if not self._deliveries:
            return {**attributes, "messaging.destination.name": self._source.name}
        first = self._deliveries[0]
        if not self._batch:
            return {**attributes, **of_message(first.group, first.consumer, first.id, first.attempt)}
        return {
            **attributes,
            "messaging.consumer.group.name": first.group,
            "messaging.client.id": first.consumer,
            "messaging.batch.message_count": len(self._deliveries),
        }

    def _links(self, base: Context, context: Context, known: Sequence[Known]) -> list[Link]:
        """Return links to the creation contexts, the earlier attempts, and the span in whose scope this is."""
        links: list[Link] = []
        if self._batch:
            for each in self._deliveries:
                if (creation := creation_of(each.headers)) is not None:
                    links.append(Link(creation, {"messaging.message.id": each.id}))  # noqa: PERF401 - reads best
        else:
            current, creation = (trace.get_current_span(each).get_span_context() for each in (base, context))
            if creation is not current and creation.is_valid:
                links.append(Link(creation))
                if current.is_valid:
                    links.append(Link(current, {"ailf.link": "scope"}))
        for each, message in zip(self._deliveries, known, strict=True):
            links += [
                Link(of, {"ailf.link": "attempt", "ailf.message.attempt": attempt, "messaging.message.id": each.id})
                for attempt, of in message.attempts
            ]
        return links
