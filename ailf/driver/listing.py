"""Pages of names: the cursors of drivers as text, and the error for what is too much for one reply. All of it is pure.

A cursor is the kind of its listing and a driver's own parts, each quoted as in a URL, with colons between them. So it
is printable ASCII, whatever bytes a name has.
"""

from typing import Final
from urllib.parse import quote, unquote

from ailf.errors import InvalidArgumentError, ProtocolError

__all__ = ["LONGEST_CURSOR", "MOST_LISTED", "bad_cursor", "join_cursor", "split_cursor", "too_many"]

MOST_LISTED: Final = 10_000
"""The most names in what a driver reads in one reply: channels, and on some backends groups and consumers."""

LONGEST_CURSOR: Final = 64 * 1024
"""The most characters of a cursor: a name of 512 bytes, quoted, needs 1,536."""

SHOWN: Final = 80
"""The most characters of a text that is not a cursor, in the error."""


def join_cursor(kind: str, *parts: str) -> str:
    """Return a cursor; a part may have lone surrogates for bytes that are not UTF-8, as `os.fsdecode` makes them."""
    return ":".join((kind, *(quote(each, safe="", errors="surrogateescape") for each in parts)))


def split_cursor(kind: str, cursor: str, count: int, *, more: bool = False) -> list[str]:
    """Return the parts of a cursor that `join_cursor` has made for the same kind of listing.

    Arguments:
        kind: The kind of listing, such as "streams".
        cursor: The cursor.
        count: The number of its parts.
        more: Whether there may be more parts.

    Raises:
        InvalidArgumentError: It is no such cursor.
    """
    if len(cursor) <= LONGEST_CURSOR:
        parts = [unquote(each, errors="surrogateescape") for each in cursor.split(":")[1:]]
        try:
            if (len(parts) == count or (more and len(parts) > count)) and join_cursor(kind, *parts) == cursor:
                return parts
        except UnicodeEncodeError:
            pass
    raise bad_cursor(kind, cursor)


def bad_cursor(kind: str, cursor: str) -> InvalidArgumentError:
    """Return the error for a text that is no cursor of this kind of listing."""
    shown = cursor if len(cursor) <= SHOWN else f"{cursor[:SHOWN]}…"
    return InvalidArgumentError(
        f'{shown!r} is not a cursor of a listing of {kind}; use the cursor of a page of such a listing, or "" for the '
        "first page"
    )


def too_many(where: str, what: str) -> ProtocolError:
    """Return the error for more than `MOST_LISTED` names in one reply.

    Arguments:
        where: The URL of the backend, without credentials.
        what: What there is too much of, and what to do about it: "channels; give a prefix".
    """
    return ProtocolError(f"{where} has more than {MOST_LISTED:,} {what}")
