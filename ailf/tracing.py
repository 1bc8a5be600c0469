"""Carries a trace along: what a handler sends belongs to the trace of the message that it handles.

The context is that of W3C Trace Context, two headers, which travel as they are. Nothing here makes spans: a tracer that
does reads them from a delivery's ``headers``, and hands its own over with `carrying`. Headers without W3C's form are
no trace, and aren't carried: a message of another program must not make the sends of its handler fail.
"""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import TracebackType
from typing import Final

__all__ = ["carried", "carrying", "stamped"]

PARENT: Final = "traceparent"
STATE: Final = "tracestate"

_IDS: Final = "(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_PARENT: Final = re.compile(rf"00-{_IDS}|(?!00|ff)[0-9a-f]{{2}}-{_IDS}(?:-[!-~]{{0,200}})?")
"""``traceparent``: version 00, or a later one, which may go on after the flags."""

_STATE: Final = re.compile(r"[\t -~]{1,512}")
"""``tracestate``, up to the length that W3C asks everybody to pass on."""

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
    """Put what is sent within this context on the trace of these headers, or on none where they have no valid one."""
    if PARENT not in headers:
        return _Carrying(_NOTHING)
    return _Carrying(_trace_of(headers))


def _trace_of(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return the trace headers among these; nothing where ``traceparent`` isn't valid."""
    if not _PARENT.fullmatch(headers[PARENT]):
        return _NOTHING
    state = headers.get(STATE)
    if state is None or not _STATE.fullmatch(state):  # the trace goes on without it, as W3C has it
        return {PARENT: headers[PARENT]}
    return {PARENT: headers[PARENT], STATE: state}


def stamped(headers: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Return the headers of something to be sent, with the trace in effect unless they have one of their own."""
    trace = _carried.get(_NOTHING)
    if not trace or (headers and PARENT in headers):
        return headers
    return {**trace, **(headers or {})}
