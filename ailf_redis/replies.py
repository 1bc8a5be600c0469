"""What the server's replies mean. Pure.

An entry of ours has the field ``ailf.body`` and, where there are any, ``ailf.headers`` as JSON. Any other entry was
written by another program: its body is then a JSON object of its fields.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from ailf.driver import Claim, Fetched, Receipt, Record
from ailf.values import DeadLetter, GroupInfo

__all__ = [
    "BODY",
    "as_dead_letters",
    "as_fetched",
    "as_flags",
    "as_info",
    "as_nothing",
    "as_record",
    "as_records",
    "entry_fields",
    "headers_field",
    "text",
]

BODY: Final = b"ailf.body"
HEADERS: Final = b"ailf.headers"
ORIGIN: Final = b"ailf.origin"
LETTER_FIELDS: Final = 8
ALONE: Final = 2

_headers = msgspec.json.Decoder(dict[str, str])
_json = msgspec.json.Encoder()


def text(raw: bytes | str) -> str:
    """Return a name or id as text; what is not UTF-8 stays recognisable."""
    return raw if isinstance(raw, str) else raw.decode("utf-8", "backslashreplace")


def headers_field(headers: Mapping[str, str]) -> bytes:
    """Return headers as an entry keeps them, b"" where there are none."""
    return _json.encode(headers) if headers else b""


def entry_fields(body: bytes, headers: Mapping[str, str]) -> list[bytes]:
    """Return the fields of an entry of ours to which nothing special is to be done."""
    return [BODY, body, HEADERS, headers_field(headers)] if headers else [BODY, body]


def as_record(entry_id: bytes, fields: Sequence[bytes]) -> Record:
    """Return a stored entry, whoever wrote it."""
    if len(fields) == ALONE and fields[0] == BODY:  # nearly all of ours
        return Record(text(entry_id), fields[1], {})
    known = dict(zip(fields[::2], fields[1::2], strict=True))
    if BODY not in known:
        return Record(text(entry_id), _foreign(fields, known), {}, foreign=True)
    headers: dict[str, str] = {}
    if HEADERS in known:
        try:
            headers = _headers.decode(known[HEADERS])
        except msgspec.MsgspecError:  # damaged: no reader can tell what it said
            return Record(text(entry_id), b"\xff" + known[BODY], {})
    return Record(text(entry_id), known[BODY], headers)


def _foreign(fields: Sequence[bytes], known: dict[bytes, bytes]) -> bytes:
    try:
        return _json.encode({key.decode(): value.decode() for key, value in known.items()})
    except UnicodeDecodeError:  # has no JSON form, and no codec must take it for one
        return b"\xff".join(fields)


def as_nothing(reply: Any) -> None:
    """Read a reply that says nothing."""


def as_flags(reply: Sequence[int]) -> list[bool]:
    """Return what a script says of several things, yes or no."""
    return [bool(each) for each in reply]


def as_records(reply: Sequence[Any]) -> list[Record]:
    """Return stored entries, whoever wrote them."""
    return [as_record(*entry) for entry in reply]


def as_info(reply: Sequence[Any]) -> GroupInfo:
    """Return what ``info.lua`` says."""
    length, lag, pending, delayed, dead, names, oldest, evicted, paused, exists = reply
    return GroupInfo(
        length=length,
        lag=None if lag < 0 else lag,
        pending=pending,
        delayed=delayed,
        dead=dead,
        consumers={text(name): held for name, held in zip(names[::2], names[1::2], strict=True)},
        oldest=None if oldest < 0 else oldest / 1000,
        evicted=evicted,
        paused=bool(paused),
        exists=bool(exists),
    )


def as_fetched(consumer: str, reply: Sequence[Any]) -> Fetched:
    """Return what ``fetch.lua`` says."""
    again, fresh, grant, dead, reset, last, ring, next_due = reply
    claims = [_again(consumer, *claim) for claim in again]
    for entry in fresh:
        record = as_record(*entry)
        claims.append(Claim(record, Receipt(record.id, consumer, grant), 1))
    return Fetched(
        claims=claims,
        dead=[text(each) for each in dead],
        position=(text(last), text(ring)) if last else None,
        next_due=None if next_due < 0 else next_due / 1000,
        reset=bool(reset),
    )


def _again(consumer: str, member: bytes, fields: Sequence[bytes], grant: int, attempt: int) -> Claim:
    if fields[0] == ORIGIN:  # a dead letter that was put back
        return Claim(as_record(fields[1], fields[2:]), Receipt(text(member), consumer, grant), attempt)
    record = as_record(member, fields)
    return Claim(record, Receipt(record.id, consumer, grant), attempt)


def as_dead_letters(reply: Sequence[Any]) -> list[DeadLetter]:
    """Return dead letters."""
    return [_as_dead_letter(*letter) for letter in reply]


def _as_dead_letter(letter_id: bytes, fields: Sequence[bytes]) -> DeadLetter:
    """Return a dead letter as ``bury`` in the scripts writes it: what is known of it first, then the entry's fields."""
    known = dict(zip(fields[:LETTER_FIELDS:2], fields[1:LETTER_FIELDS:2], strict=True))
    record = as_record(letter_id, fields[LETTER_FIELDS:])
    return DeadLetter(
        id=record.id,
        origin=text(known[ORIGIN]),
        body=record.body,
        headers=record.headers,
        reason=text(known[b"ailf.reason"]),
        error=text(known[b"ailf.error"]),
        attempts=int(known[b"ailf.attempts"]),
    )
