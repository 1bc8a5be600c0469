"""Checks of arguments. All are pure: a `check_` function returns its value or raises `InvalidArgumentError`."""

import enum
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import attrs

from ailf.errors import MAX_SECONDS, InvalidArgumentError

__all__ = [
    "MAX_NAME",
    "MAX_SECONDS",
    "check_count",
    "check_flag",
    "check_headers",
    "check_kind",
    "check_list",
    "check_mapping",
    "check_member",
    "check_name",
    "check_pairs",
    "check_prefix",
    "check_seconds",
    "check_text",
    "check_time",
    "floor_ms",
    "to_ms",
    "too_large",
    "valid_between",
    "valid_count",
    "valid_flag",
    "valid_key",
    "valid_seconds",
    "valid_wait",
]

M = TypeVar("M", bound=enum.Enum)

MAX_NAME = 512
"""The longest name, in bytes of UTF-8."""

MAX_SHOWN = 10**20
"""An error shows only integers below this one: Python refuses to print an integer of thousands of digits."""

MAX_HEADERS = 64
PAIR = 2
MAX_HEADER_BYTES = 64 * 1024


def check_name(kind: str, name: object) -> str:
    """Check the name of a channel, stream, group, … (B5)."""
    if isinstance(name, str) and name.isascii() and 0 < len(name) <= MAX_NAME:  # fast path: nearly all names
        return name
    if not isinstance(name, str):
        raise InvalidArgumentError(f"the name of a {kind} must be text, not {type(name).__name__}")
    if not name:
        raise InvalidArgumentError(f"the name of a {kind} must not be empty")
    size = len(_utf8(f"the name of a {kind}", name))
    if size > MAX_NAME:
        raise InvalidArgumentError(f"the name of a {kind} is {size} bytes long; at most {MAX_NAME} are allowed")
    return name


def check_prefix(prefix: object) -> str:
    """Check the prefix of names to list: any text, which may be empty.

    A listed name that isn't UTF-8 has lone surrogates for its bytes, as `os.fsdecode` makes them; so may a prefix.
    """
    if not isinstance(prefix, str):
        raise InvalidArgumentError(f"prefix must be text, not {type(prefix).__name__}")
    try:
        size = len(prefix.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as error:
        raise InvalidArgumentError("prefix is not valid Unicode text (a lone surrogate)") from error
    if size > MAX_NAME:
        raise InvalidArgumentError(f"prefix is {size} bytes long; at most {MAX_NAME} are allowed")
    return prefix


def check_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Check headers (B5); return a copy."""
    if not headers:
        return {}
    if len(headers) > MAX_HEADERS:
        raise InvalidArgumentError(f"{len(headers)} headers are too many; at most {MAX_HEADERS} are allowed")
    size = 0
    for key, value in headers.items():
        texts: tuple[object, ...] = (key, value)
        for text in texts:
            if not isinstance(text, str) or not text:
                raise InvalidArgumentError(f"header {key!r}: keys and values must be non-empty text")
            size += len(_utf8(f"header {key!r}", text))
    if size > MAX_HEADER_BYTES:
        raise InvalidArgumentError(f"the headers are {size} bytes long; at most {MAX_HEADER_BYTES} are allowed")
    return dict(headers)


def too_large(what: str, body: bytes, limit: int) -> InvalidArgumentError:
    """Return the error for a body that is larger than ``max_payload`` (B5)."""
    return InvalidArgumentError(
        f"the payload for {what} is {len(body)} bytes long; max_payload is {limit}. "
        "Store it elsewhere and send a reference, or open the backend with a larger max_payload"
    )


def check_seconds(what: str, value: object, *, least: float = 0.0, zero: bool = True) -> float:
    """Check a duration in seconds, at most `MAX_SECONDS`; return it as a float.

    Arguments:
        what: The name of the argument, for the error.
        value: The duration.
        least: The shortest duration that is allowed.
        zero: Whether 0 is allowed, if ``least`` is 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgumentError(f"{what} must be a finite number of seconds, not {value!r}")
    if least <= value <= MAX_SECONDS and (value or zero):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidArgumentError(f"{what} must be a finite number of seconds, not {value!r}")
    shown = repr(value) if isinstance(value, float) or abs(value) < MAX_SHOWN else "one of over 20 digits"
    if value > MAX_SECONDS:
        raise InvalidArgumentError(f"{what} must be at most {MAX_SECONDS:,.0f} seconds (100 years), not {shown}")
    raise InvalidArgumentError(f"{what} must be {'at least' if zero else 'more than'} {least:g} seconds, not {shown}")


def check_count(what: str, value: object, *, least: int = 1) -> int:
    """Check a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidArgumentError(f"{what} must be a whole number of at least {least}, not {value!r}")
    return value


def check_flag(what: str, value: object) -> bool:
    """Check a bool. Nothing else counts as one: a text like "false" would be true in a condition."""
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"{what} must be True or False, not {value!r}")
    return value


def check_text(what: str, value: object, *, secret: bool = False) -> str:
    """Check that a text is not empty, has no NUL and is valid Unicode. The error doesn't show a ``secret`` text."""
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{what} must be text, not {type(value).__name__}")
    if not value or "\0" in value:
        raise InvalidArgumentError(
            f"{what} must be non-empty text without NUL" + ("" if secret else f", not {value!r}")
        )
    if any("\ud800" <= each <= "\udfff" for each in value):
        raise InvalidArgumentError(f"{what} is not valid Unicode text (a lone surrogate)")
    return value


def check_member(what: str, value: object, kind: type[M]) -> M:
    """Check a member of an enum; the error lists the members."""
    if not isinstance(value, kind):
        members = ", ".join(f"{kind.__name__}.{each.name}" for each in kind)
        raise InvalidArgumentError(f"{what} must be one of {members}, not {value!r}")
    return value


def check_kind(what: str, value: object, kind: type) -> Any:
    """Check that a value is an instance of a class."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise InvalidArgumentError(f"{what} must be {article} {kind.__name__}, not {value!r}")
    return value


def check_list(what: str, value: object) -> list[Any]:
    """Return the items of a list or another iterable. Text, bytes and mappings don't count as lists of items."""
    if isinstance(value, str | bytes | bytearray | memoryview | Mapping) or not isinstance(value, Iterable):
        raise InvalidArgumentError(f"{what} must be a list or another iterable, not {type(value).__name__}")
    return list(value)


def check_mapping(what: str, value: object) -> None:
    """Check that a value is a mapping."""
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(f"{what} must be a mapping, like a dict, not {type(value).__name__}")


def check_pairs(what: str, value: object) -> list[tuple[Any, Any]]:
    """Return the pairs of a list or another iterable."""
    listed = check_list(what, value)
    for each in listed:
        if not isinstance(each, tuple | list) or len(each) != PAIR:
            raise InvalidArgumentError(f"{what} must be pairs of a channel and its payload, not {type(each).__name__}")
    return listed


def check_time(what: str, value: object) -> float:
    """Check a point in time; return it in seconds since 1970 UTC.

    A time before 1970 counts as 1970. No `datetime` is too late: the end of the year 9999 is less than 2**53 ms, so
    every backend stores it exactly.
    """
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise InvalidArgumentError(
            f"{what} must be a datetime with a time zone, not {value!r}; write datetime(…, tzinfo=UTC), or give a delay"
        )
    return max(0.0, value.timestamp())


def to_ms(seconds: float) -> int:
    """Return seconds as whole milliseconds, rounded up.

    The seconds are rounded to the microsecond first: 2.007 s is a little more in binary, and becomes 2007 ms, not 2008.
    """
    return -(-round(seconds * 1_000_000) // 1000)


def floor_ms(seconds: float) -> int:
    """Return seconds as whole milliseconds, rounded down; rounded to the microsecond first, as in `to_ms`."""
    return round(seconds * 1_000_000) // 1000


# --- validators for the fields of values --------------------------------------------------------------------------


def valid_seconds(value: Any, field: "attrs.Attribute[float]", seconds: float) -> None:  # noqa: ARG001 - attrs' form
    """Check a duration of at least a millisecond."""
    check_seconds(field.name, seconds, least=0.001)


def valid_wait(value: Any, field: "attrs.Attribute[float]", seconds: float) -> None:  # noqa: ARG001 - attrs' form
    """Check the seconds of a wait; 0 means not to wait."""
    check_seconds(field.name, seconds)


def valid_count(value: Any, field: "attrs.Attribute[int]", count: int) -> None:  # noqa: ARG001 - attrs' form
    """Check a whole number of at least 1."""
    check_count(field.name, count)


def valid_between(least: float, most: float) -> "Callable[[Any, attrs.Attribute[float], object], None]":
    """Return a validator for a number from ``least`` to ``most``."""

    def check(value: Any, field: "attrs.Attribute[float]", number: object) -> None:  # noqa: ARG001 - attrs' form
        if isinstance(number, bool) or not isinstance(number, int | float) or not least <= number <= most:
            raise InvalidArgumentError(f"{field.name} must be a number from {least:g} to {most:g}, not {number!r}")

    return check


def valid_key(value: Any, field: "attrs.Attribute[str]", key: str) -> None:  # noqa: ARG001 - attrs' form
    """Check a name."""
    check_name(field.name, key)


def valid_flag(value: Any, field: "attrs.Attribute[bool]", flag: object) -> None:  # noqa: ARG001 - attrs' form
    """Check a bool."""
    check_flag(field.name, flag)


def _utf8(what: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{what} is not valid Unicode text (a lone surrogate)") from error
