"""Carries a trace along: what a handler sends belongs to the trace of the message that it handles.

The context is that of W3C Trace Context, two headers, which travel as they are. Nothing here makes spans: a tracer that
does reads them from a delivery's ``headers``, and hands its own over with `carrying`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

__all__ = ["carried", "carrying", "stamped"]

PARENT: Final = "traceparent"
STATE: Final = "tracestate"

_carried: ContextVar[Mapping[str, str]] = ContextVar("ailf_trace")
_NOTHING: Final[Mapping[str, str]] = {}


def carried() -> Mapping[str, str]:
    """Return the trace headers in effect here: ``traceparent`` and ``tracestate``, or nothing."""
    return _carried.get(_NOTHING)


@contextmanager
def carrying(headers: Mapping[str, str]) -> Iterator[None]:
    """Put what is sent within this context on the trace of these headers, or on none where they have none."""
    trace = {name: headers[name] for name in (PARENT, STATE) if name in headers} if PARENT in headers else _NOTHING
    token = _carried.set(trace)
    try:
        yield
    finally:
        _carried.reset(token)


def stamped(headers: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Return the headers of something to be sent, with the trace in effect unless they have one of their own."""
    trace = carried()
    if not trace or (headers and PARENT in headers):
        return headers
    return {**trace, **(headers or {})}
