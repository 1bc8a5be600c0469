"""What the server's replies mean. Pure.

An entry of ours has the field ``ailf.body`` and, where there are any, ``ailf.headers`` as JSON. Any other entry was
written by another program: its body is then a JSON object of its fields. Other programs may write anything, also into
what only we write: whatever it is, there is a record of it, which names the problem. Each entry is read by itself, so
one that can't be read costs no other.
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
    "as_flag",
    "as_flags",
    "as_ids",
    "as_info",
    "as_nothing",
    "as_record",
    "as_records",
    "as_sizes",
    "entry_fields",
    "headers_field",
    "is_text",
    "oversize",
    "oversize_letter",
    "pieces",
    "text",
]

BODY: Final = b"ailf.body"
HEADERS: Final = b"ailf.headers"
ORIGIN: Final = b"ailf.origin"
LETTER_NAMES: Final = (ORIGIN, b"ailf.reason", b"ailf.error", b"ailf.attempts")
LETTER_FIELDS: Final = 2 * len(LETTER_NAMES)
PACKED: Final = b"ailf.packed"
AGAIN: Final = b"~"
ALONE: Final = 2
BYTES: Final = {bytes}
DIGITS: Final = 20
"""How many digits a number may have that a script has written. Python refuses to read one of over 4300."""

UNREADABLE: Final = (TypeError, ValueError, LookupError, AttributeError, msgspec.MsgspecError, RecursionError)
"""What reading an entry may raise."""

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
    if not BYTES.issuperset(map(type, fields)):
        raise TypeError("the fields of an entry are bytes")
    if len(fields) == ALONE and fields[0] == BODY:  # nearly all of ours
        return Record(text(entry_id), fields[1], {})
    known = dict(zip(fields[::2], fields[1::2], strict=True))
    if BODY not in known:
        problem = "" if all(map(is_text, fields)) else "another program added it, and its fields are not UTF-8"
        body = _json.encode({text(key): text(value) for key, value in known.items()})
        return Record(text(entry_id), body, {}, foreign=True, problem=problem)
    headers: dict[str, str] = {}
    problem = ""
    if HEADERS in known:
        try:
            headers = _headers.decode(known[HEADERS])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            problem = "its headers are no JSON object of texts"
    return Record(text(entry_id), known[BODY], headers, problem=problem)


def _unreadable(error: Exception, entry_id: Any, fields: Any) -> Record:
    """Return a record of an entry that can't be read, so that it costs itself alone. A number is how many bytes it has.

    Raises:
        Exception: It is the error, where this is no entry at all.
    """
    if type(entry_id) is bytes and type(fields) is int:
        return oversize(text(entry_id), fields)
    if type(entry_id) is not bytes or not BYTES.issuperset(map(type, fields)) or len(fields) % 2:
        raise error
    return Record(text(entry_id), b"", {}, problem=f"it can't be read ({type(error).__name__})")


def oversize(entry_id: str, size: int) -> Record:
    """Return the record of an entry for which no reply has room."""
    return Record(entry_id, b"", {}, problem=f"its {size} bytes are more than an answer may have")


def oversize_letter(letter_id: str, size: int) -> DeadLetter:
    """Return a dead letter for which no reply has room; it can be redriven and purged as any other."""
    error = f"its {size} bytes are more than an answer may have"
    return DeadLetter(letter_id, letter_id, b"", {}, reason="undecodable", error=error, attempts=0)


def as_sizes(reply: Sequence[Any]) -> list[tuple[str, int]]:
    """Return what ``sizes.lua`` says: of each entry its id, and how many bytes a reply has for it."""
    return [(text(entry_id), int(size)) for entry_id, size in reply]


def as_ids(reply: Sequence[Any]) -> list[str]:
    """Return the ids in what ``sizes.lua`` says."""
    return [text(entry_id) for entry_id, _ in reply]


def pieces(sizes: Sequence[tuple[str, int]], most: int) -> list[list[tuple[str, int]]]:
    """Return entries in pieces of at most ``most`` bytes; one that has more is a piece by itself."""
    found: list[list[tuple[str, int]]] = []
    left = 0
    for each in sizes:
        left -= each[1]
        if not found or left < 0:
            found.append([])
            left = most - each[1]
        found[-1].append(each)
    return found


def _as_some_record(entry_id: bytes, fields: Sequence[bytes]) -> Record:
    """Return a stored entry, or that it can't be read."""
    try:
        return as_record(entry_id, fields)
    except UNREADABLE as error:
        return _unreadable(error, entry_id, fields)


def _is_number(raw: bytes) -> bool:
    """Tell whether it is a number as the scripts write them."""
    return raw.isdigit() and len(raw) <= DIGITS


def is_text(raw: bytes) -> bool:
    """Tell whether it is UTF-8; other programs may write anything."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _unpacked(fields: Sequence[bytes]) -> Sequence[bytes]:
    """Return the fields of an entry of which ``pack`` in the scripts has made one: each has its length before it."""
    if len(fields) != ALONE or fields[0] != PACKED:
        return fields
    packed, found, at = fields[1], [], 0
    while (colon := packed.find(b":", at)) >= 0 and _is_number(length := packed[at:colon]):
        at = colon + 1 + int(length)
        found.append(packed[colon + 1 : at])
    return found if at == len(packed) and not len(found) % 2 else fields


def as_nothing(reply: Any) -> None:
    """Read a reply that says nothing."""


def as_flag(reply: int) -> bool:
    """Return what a script says, yes or no."""
    return int(reply) != 0


def as_flags(reply: Sequence[int]) -> list[bool]:
    """Return what a script says of several things, yes or no."""
    return [int(each) != 0 for each in reply]


def as_records(reply: Sequence[Any]) -> list[Record]:
    """Return stored entries, of any program."""
    return [_as_some_record(*entry) for entry in reply]


def as_info(reply: Sequence[Any]) -> GroupInfo:
    """Return what ``info.lua`` says."""
    length, lag, pending, delayed, dead, names, oldest, evicted, paused, exists = reply
    return GroupInfo(
        length=int(length),
        lag=None if lag < 0 else int(lag),
        pending=int(pending),
        delayed=int(delayed),
        dead=int(dead),
        consumers={text(name): int(held) for name, held in zip(names[::2], names[1::2], strict=True)},
        oldest=None if oldest < 0 else oldest / 1000,
        evicted=int(evicted),
        paused=as_flag(paused),
        exists=as_flag(exists),
    )


def as_fetched(consumer: str, reply: Sequence[Any]) -> Fetched:
    """Return what ``fetch.lua`` says."""
    again, fresh, grant, dead, reset, last, ring, next_due = reply
    grant = int(grant)
    claims = [_again(consumer, *claim) for claim in again]
    for entry in fresh:
        try:  # no call more for each entry
            record = as_record(*entry)
        except UNREADABLE as error:
            record = _unreadable(error, *entry)
        claims.append(Claim(record, Receipt(record.id, consumer, grant), 1))
    return Fetched(
        claims=claims,
        dead=[text(each) for each in dead],
        position=(text(last), text(ring)) if last else None,
        next_due=None if next_due < 0 else next_due / 1000,
        reset=int(reset) != 0,
    )


def _again(consumer: str, member: bytes, fields: Sequence[bytes], grant: int, attempt: int) -> Claim:
    if member.startswith(AGAIN):
        origin = member[1:]
        try:
            if fields[0] == ORIGIN:
                origin, fields = fields[1], fields[2:]
            record = as_record(origin, _unpacked(fields))
        except UNREADABLE as error:
            record = _unreadable(error, origin, fields)
        return Claim(record, Receipt(text(member), consumer, int(grant)), int(attempt))
    record = _as_some_record(member, fields)
    return Claim(record, Receipt(record.id, consumer, int(grant)), int(attempt))


def as_dead_letters(reply: Sequence[Any]) -> list[DeadLetter]:
    """Return dead letters."""
    return [_as_dead_letter(*letter) for letter in reply]


def _as_dead_letter(letter_id: bytes, fields: Sequence[bytes]) -> DeadLetter:
    """Return a dead letter as ``move_to_dead_letters`` in the scripts writes it: its own fields, then the entry's."""
    names, said = tuple(fields[:LETTER_FIELDS:2]), fields[1:LETTER_FIELDS:2]
    if names != LETTER_NAMES or not _is_number(said[-1]):
        said = (letter_id, b"undecodable", b"another program added it to the dead letters", b"0")
    else:
        fields = _unpacked(fields[LETTER_FIELDS:])
    origin, reason, error, attempts = said
    record = _as_some_record(letter_id, fields)
    return DeadLetter(
        id=record.id,
        origin=text(origin),
        body=record.body,
        headers=record.headers,
        reason=text(reason),
        error=text(error),
        attempts=int(attempts),
    )
