"""Carries a trace along: what a handler sends belongs to the trace of the message that it handles.

The context is that of W3C Trace Context, two headers, which travel as they are. Nothing here makes spans: a tracer that
does reads them from a delivery's ``headers``, and hands its own over with `carrying`.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import TracebackType
from typing import Final

__all__ = ["carried", "carrying", "stamped"]

PARENT: Final = "traceparent"
STATE: Final = "tracestate"

_carried: ContextVar[Mapping[str, str]] = ContextVar("ailf_trace")
_NOTHING: Final[Mapping[str, str]] = {}


def carried() -> Mapping[str, str]:
    """Return the trace headers in effect here: ``traceparent`` and ``tracestate``, or nothing."""
    return _carried.get(_NOTHING)


class _Carrying(AbstractContextManager[None]):
    """A class, because a generator costs each message of a worker several times as much."""

    __slots__ = ("_token", "_trace")

    def __init__(self, trace: Mapping[str, str]) -> None:
        self._trace = trace

    def __enter__(self) -> None:
        self._token = _carried.set(self._trace)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _carried.reset(self._token)


def carrying(headers: Mapping[str, str]) -> AbstractContextManager[None]:
    """Put what is sent within this context on the trace of these headers, or on none where they have none."""
    if PARENT not in headers:
        return _Carrying(_NOTHING)
    return _Carrying({name: headers[name] for name in (PARENT, STATE) if name in headers})


def stamped(headers: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Return the headers of something to be sent, with the trace in effect unless they have one of their own."""
    trace = _carried.get(_NOTHING)
    if not trace or (headers and PARENT in headers):
        return headers
    return {**trace, **(headers or {})}
