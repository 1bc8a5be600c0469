"""The names of opentelemetry-api that this package uses; without it an import gives one clear error."""

try:
    from opentelemetry import context as contexts
    from opentelemetry import metrics, propagate, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ImportError('ailf.otel needs opentelemetry-api: pip install "ailf[otel]"', name="opentelemetry") from error

__all__ = [
    "Context",
    "Link",
    "Span",
    "SpanContext",
    "SpanKind",
    "Status",
    "StatusCode",
    "TraceContextTextMapPropagator",
    "contexts",
    "metrics",
    "propagate",
    "trace",
]
