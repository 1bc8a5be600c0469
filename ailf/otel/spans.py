"""The spans of what has happened, and the context of spans in headers."""

import contextlib
import traceback
from collections.abc import Iterable, Mapping

from ailf.checks import check_headers
from ailf.errors import InvalidArgumentError
from ailf.instruments import Destination
from ailf.labels import error_type
from ailf.otel.api import Context, Link, Span, SpanContext, SpanKind, Status, StatusCode, propagate, trace
from ailf.otel.attributes import Attributes, Naming
from ailf.safe_text import LONGEST_TRACEBACK, MOST_FRAMES, describe, safe_text, text_of

__all__ = ["Spans", "creation_of", "fail", "inject"]


class Spans:
    """Makes the spans of one instrument."""

    def __init__(self, tracer: trace.Tracer, naming: Naming, chosen: frozenset[str]) -> None:
        self.tracer = tracer
        self.naming = naming
        self.chosen = chosen

    def receive(
        self,
        source: Destination,
        headers: Mapping[str, str],
        begin: int,
        of_message: Attributes | None = None,
        end: int | None = None,
    ) -> None:
        """Record that a message was received, at `begin`, and has come to its handler at `end`."""
        attributes = {**self.naming.of_span(source, "receive", "receive"), **(of_message or {})}
        if source.kind == "channel":
            attributes["messaging.destination.name"] = source.name
        self.record("receive", source, propagate.extract(headers), attributes, [creation_of(headers)], begin, end)

    def record(
        self,
        operation: str,
        source: Destination,
        parent: Context,
        attributes: Attributes,
        links: Iterable[SpanContext | None],
        begin: int,
        end: int | None = None,
        error: tuple[str, str] | None = None,
    ) -> None:
        """Record a span of something that has happened."""
        span = self.tracer.start_span(
            self.naming.span_name(operation, source),
            parent,
            SpanKind.CLIENT,
            attributes,
            [Link(each) for each in links if each is not None],
            begin,
        )
        if error is not None:
            span.set_attribute("error.type", error[0])
            span.set_status(Status(StatusCode.ERROR, error[1]))
        span.end(begin if end is None else end)


def creation_of(headers: Mapping[str, str]) -> SpanContext | None:
    """Return the creation context of a message; None if its headers have no valid one."""
    if not headers:
        return None
    context = trace.get_current_span(propagate.extract(headers, Context())).get_span_context()
    return context if context.is_valid else None


def inject(headers: Mapping[str, str], context: Context) -> Mapping[str, str]:
    """Return headers with a context: without its baggage if that has no room, unchanged if the rest has none either."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier, context)
    if not carrier:
        return headers
    without_baggage = {name: value for name, value in carrier.items() if name != "baggage"}
    for added in (carrier, without_baggage):
        with contextlib.suppress(InvalidArgumentError):
            return check_headers({**added, **headers})
    return headers


def fail(span: Span, error: BaseException) -> None:
    """Record the error with which an operation has ended; its texts are safe for an exporter."""
    if not span.is_recording():
        return
    text = text_of(error)
    frames = "".join(traceback.format_tb(error.__traceback__, limit=-MOST_FRAMES))
    span.set_attribute("error.type", error_type(error))
    span.set_status(Status(StatusCode.ERROR, text))
    span.add_event(
        "exception",
        {
            "exception.type": error_type(error),
            "exception.message": text,
            "exception.stacktrace": safe_text(f"{frames}{describe(error)}", LONGEST_TRACEBACK),
        },
    )
