"""Propagate trace context: messages that a handler sends join the trace of the message that it handles.

The context is W3C Trace Context: two headers, ``traceparent`` and ``tracestate``, which are passed on unchanged. This
module makes no spans. A tracer reads the headers of a delivery, and sets those of its own span:

>>> import ailf
>>> from ailf.tracing import carrying
>>> span = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
>>> with ailf.connect("memory://") as backend, carrying(span):
...     first = backend.stream("traced").add("task")
...     assert next(iter(backend.stream("traced").read())).headers == span

Headers that aren't valid by W3C are not passed on: a message of another program must not make its handler's sends fail.
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
"""``tracestate``, up to the length that W3C requires to be propagated."""

_carried: ContextVar[Mapping[str, str]] = ContextVar("ailf_trace")
_NOTHING: Final[Mapping[str, str]] = {}


def carried() -> Mapping[str, str]:
    """Return the trace headers in effect: ``traceparent`` and perhaps ``tracestate``; an empty mapping without one."""
    return _carried.get(_NOTHING)


class _Carrying(AbstractContextManager[None]):
    """The context manager of `carrying`. A generator would cost each message of a worker several times as much."""

    __slots__ = ("_token", "_trace")

    def __init__(self, trace: Mapping[str, str]) -> None:
        self._trace = trace

    def __enter__(self) -> None:
        self._token = _carried.set(self._trace)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _carried.reset(self._token)


def carrying(headers: Mapping[str, str]) -> AbstractContextManager[None]:
    """Return a context within which sends join the trace of these headers, or no trace if they have no valid one.

    Arguments:
        headers: The headers of a message; those that belong to no trace are ignored.
    """
    if PARENT not in headers:
        return _Carrying(_NOTHING)
    return _Carrying(_trace_of(headers))


def _trace_of(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return the trace headers among these; none if ``traceparent`` isn't valid."""
    if not _PARENT.fullmatch(headers[PARENT]):
        return _NOTHING
    state = headers.get(STATE)
    if state is None or not _STATE.fullmatch(state):  # W3C: an invalid state is dropped, and the trace continues
        return {PARENT: headers[PARENT]}
    return {PARENT: headers[PARENT], STATE: state}


def stamped(headers: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Return the headers to send, with the trace in effect added unless they have a ``traceparent`` of their own."""
    trace = _carried.get(_NOTHING)
    if not trace or (headers and PARENT in headers):
        return headers
    return {**trace, **(headers or {})}
