"""A trace is propagated only if it is valid by W3C and fits, so that it never makes a send fail."""

from typing import Any

import pytest

from ailf.codecs import Payloads
from ailf.errors import InvalidArgumentError
from ailf.tracing import carried, carrying

PAYLOADS = Payloads("stream 's'", Any, 1 << 20)
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE = {"traceparent": PARENT, "tracestate": "rojo=00f067aa0ba902b7,\tcongo=t61rcWkgMzE"}


def sent_within(headers: dict[str, str], own: dict[str, str] | None = None) -> dict[str, str]:
    """Return the headers of a message that is sent within `carrying`."""
    with carrying(headers):
        return PAYLOADS.pack(1, own)[1]


@pytest.mark.parametrize(
    "parent",
    [
        "", "x", "00-a", PARENT.upper(), PARENT + "\n", PARENT + "-", PARENT + "-more", PARENT[:-1], " " + PARENT,
        "ff" + PARENT[2:], "01" + PARENT[2:] + "-" + "x" * 300, "01" + PARENT[2:] + "-\x00", "01" + PARENT[2:] + "more",
        f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01", "é" * 55,
        "x" * 100_000, "\ud800",
    ],
)  # fmt: skip
def test_what_is_no_trace_is_not_carried(parent: str) -> None:
    """S15: a handler's sends have no trace if its message has no valid one."""
    assert sent_within({"traceparent": parent, "tracestate": "a=b"}) == {}
    assert sent_within({"traceparent": parent}, {"h": "v"}) == {"h": "v"}
    with carrying(TRACE), carrying({"traceparent": parent}):
        assert carried() == {}


@pytest.mark.parametrize("parent", [PARENT, "01" + PARENT[2:], "cc" + PARENT[2:] + "-what-the-future=will/be.like"])
@pytest.mark.parametrize("state", ["a=b", "x" * 512, TRACE["tracestate"]])
def test_a_trace_is_carried_as_it_is(parent: str, state: str) -> None:
    """S15: a trace of this or a later version is propagated, beside the sender's own headers."""
    trace = {"traceparent": parent, "tracestate": state}
    assert sent_within({**trace, "other": "not carried"}, {"h": "v"}) == {**trace, "h": "v"}


@pytest.mark.parametrize("state", ["", "x" * 513, "x" * 100_000, "a=\x00", "a=é", "a=b\n", "\ud800"])
def test_a_trace_goes_on_without_a_state_that_is_none(state: str) -> None:
    """S15: a `tracestate` that is too long or no printable ASCII is dropped, and the trace is propagated."""
    assert sent_within({**TRACE, "tracestate": state}) == {"traceparent": PARENT}


@pytest.mark.parametrize("own", [{f"h{n}": "v" for n in range(63)}, {"h": "v" * (64 * 1024 - 10)}])
def test_a_trace_that_has_no_room_is_left_out(own: dict[str, str]) -> None:
    """S15, B5: headers that are valid without a trace are sent, if need be without it; others are refused."""
    assert sent_within(TRACE, own) == own
    with pytest.raises(InvalidArgumentError, match="header 'h': keys and values must be non-empty"):
        sent_within(TRACE, {"h": ""})
