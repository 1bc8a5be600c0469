"""Text for terminals: names, payloads, durations and sizes. Pure.

The rule of this file: no text of users reaches a terminal unchanged. Characters that a terminal could interpret are
written as escapes.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any

import msgspec

__all__ = ["as_json", "cut", "decoded", "duration", "headers_text", "payload_text", "plain", "size", "visible"]

SHOWN = 200
"""The most characters of a payload that are shown without ``--full``."""

_MILLISECOND, _SECOND, _MINUTE, _HOUR, _DAY = 0.001, 1, 60, 3600, 86_400
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


def decoded(body: bytes) -> Any:
    """Return the payload of a body: its JSON value, or else its text, or else the bytes."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body


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


def plain(value: Any) -> Any:
    """Return a value as what JSON has: objects as dicts, bytes as base64."""
    return msgspec.to_builtins(value, str_keys=True)


def as_json(value: Any) -> str:
    """Return a value as one line of JSON in ASCII, which no terminal interprets."""
    return json.dumps(plain(value), ensure_ascii=True, separators=(", ", ": "))


def duration(seconds: float | None) -> str:
    """Return a duration with two or three digits and its unit; "-" for None."""
    if seconds is None:
        return "-"
    sign, rest = ("-" if seconds < 0 else ""), abs(seconds)
    if rest < _MILLISECOND:
        return f"{sign}{rest * 1_000_000:.0f} µs"
    if rest < _SECOND:
        return f"{sign}{rest * 1000:.1f} ms"
    if rest < _MINUTE:
        return f"{sign}{rest:.1f} s"
    if rest < _HOUR:
        return f"{sign}{rest / _MINUTE:.1f} min"
    if rest < _DAY:
        return f"{sign}{rest / _HOUR:.1f} h"
    return f"{sign}{rest / _DAY:.1f} d"


def size(number: int) -> str:
    """Return a number of bytes with its unit."""
    if number < _KIB:
        return f"{number} bytes"
    return f"{number / _KIB:.1f} KiB" if number < _MIB else f"{number / _MIB:.1f} MiB"
