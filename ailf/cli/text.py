"""Text for terminals: names, payloads, durations and sizes. Pure.

The rule of this file: no text of users reaches a terminal unchanged. Characters that a terminal could interpret are
written as escapes.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any

import msgspec

__all__ = [
    "as_json",
    "counted",
    "cut",
    "duration",
    "headers_text",
    "message_value",
    "payload_text",
    "size",
    "visible",
]

SHOWN = 200
"""The most characters of a payload that are shown without ``--full``."""

_MILLISECOND = 0.001
_UNITS = ((1e-6, "µs"), (_MILLISECOND, "ms"), (1.0, "s"), (60.0, "min"), (3600.0, "h"), (86_400.0, "d"))
_KIB, _MIB = 1024, 1024 * 1024


def visible(text: str) -> str:
    r"""Return a text in one line, with every character that isn't printable as its escape, such as ``\x1b``."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text
    )


def cut(text: str, longest: int = SHOWN) -> str:
    """Return the beginning of a text, with the number of characters that are missing."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]}… ({len(text) - longest:,} more)"


def message_value(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return a message as a value for JSON: ``data`` is its JSON value or text; of any other body ``base64`` is."""
    try:
        return {"data": msgspec.json.decode(body), "headers": dict(headers)}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return {"data": body.decode(), "headers": dict(headers)}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode(), "headers": dict(headers)}


def counted(number: int, what: str) -> str:
    """Return a number of things: "1 entry", "2 entries"."""
    plural = f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{number:,} {what if number == 1 else plural}"


def payload_text(body: bytes, *, full: bool = False) -> str:
    """Return a body for a terminal: its text, or else base64.

    Arguments:
        body: The encoded payload.
        full: Whether all of it is wanted, not only the beginning.
    """
    longest = len(body) if full else SHOWN
    try:
        text = body.decode()
    except UnicodeDecodeError:
        shown = base64.b64encode(body[:longest]).decode()
        return f"base64:{shown}" if longest >= len(body) else f"base64:{shown}… ({size(len(body))} in all)"
    return visible(text if full else cut(text))


def headers_text(headers: Mapping[str, str]) -> str:
    """Return the headers of a message to be written behind its payload; "" without any."""
    return f"  [{' '.join(f'{name}={value}' for name, value in sorted(headers.items()))}]" if headers else ""


def as_json(value: Any) -> str:
    """Return a value as one line of JSON in ASCII, which no terminal interprets."""
    return json.dumps(msgspec.to_builtins(value, str_keys=True), ensure_ascii=True, separators=(", ", ": "))


def duration(seconds: float | None) -> str:
    """Return a duration with its unit; "-" for None."""
    if seconds is None:
        return "-"
    size, unit = next((each for each in reversed(_UNITS) if abs(seconds) >= each[0]), _UNITS[0])
    return f"{seconds / size:.{0 if size < _MILLISECOND else 1}f} {unit}"


def size(number: int) -> str:
    """Return a number of bytes with its unit."""
    if number < _KIB:
        return f"{number} bytes"
    return f"{number / _KIB:.1f} KiB" if number < _MIB else f"{number / _MIB:.1f} MiB"
