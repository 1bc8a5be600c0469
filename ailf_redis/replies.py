"""The server's replies, read. Nothing in here waits.

An entry of ailf has the field ``ailf.body`` and, if it has headers, ``ailf.headers`` as JSON. Any other entry is a
foreign one: its body is a JSON object of its fields. Other programs may write anything, into ailf's own fields too: an
entry that can't be read becomes a record that names the problem. Each entry is read by itself, so it affects no other.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from ailf.driver import Claim, ConsumerState, Fetched, Letter, Receipt, Record
from ailf.values import GroupInfo, MessageInfo, MessageState

__all__ = [
    "BODY",
    "SLEEPS",
    "as_consumers",
    "as_dead_letters",
    "as_fetched",
    "as_flag",
    "as_flags",
    "as_ids",
    "as_info",
    "as_names",
    "as_nothing",
    "as_partitions",
    "as_record",
    "as_records",
    "as_sizes",
    "as_stream_info",
    "entry_fields",
    "headers_field",
    "is_text",
    "name_of_bytes",
    "oversize",
    "oversize_dead_letter",
    "pieces",
    "text",
]

BODY: Final = b"ailf.body"
HEADERS: Final = b"ailf.headers"
HOW: Final = b"ailf.how"
ORIGIN: Final = b"ailf.origin"
LETTER_NAMES: Final = (ORIGIN, b"ailf.reason", b"ailf.error", b"ailf.attempts")
LETTER_FIELDS: Final = 2 * len(LETTER_NAMES)
PACKED: Final = b"ailf.packed"
AGAIN: Final = b"~"
ALONE: Final = 2
BYTES: Final = {bytes}
WATCHES: Final = 1
"""Of a fetch, that its waiter watches and others may sleep (see ``watch.lua``)."""
SLEEPS: Final = 3
"""Of a fetch, that its waiter sleeps (see ``watch.lua``); the position of such a waiter."""
DIGITS: Final = 20
"""The most digits of a number that a script has written. Python refuses to read one of over 4300."""

PARTITION_DIGITS: Final = 4
"""The most digits of a number of partitions, as in ``declare.lua``."""

UNREADABLE: Final = (TypeError, ValueError, LookupError, AttributeError, msgspec.MsgspecError, RecursionError)
"""The errors that reading an entry raises."""

_TERMS: Final = re.compile(rb"[0-9]*\|[0-9]*\|(.*)", re.DOTALL)
"""The value of ``ailf.how``, as ``options_of`` in the scripts reads it: the time, the number, the ordering key."""

LARGEST: Final = 2**64 - 1
"""The largest part of an id."""

_ID: Final = re.compile(rb"[0-9]{1,20}-[0-9]{1,20}")

_headers = msgspec.json.Decoder(dict[str, str])
_json = msgspec.json.Encoder()


def text(raw: bytes | str) -> str:
    """Return a name or id as text; bytes that are not UTF-8 are shown by backslash escapes."""
    return raw if isinstance(raw, str) else raw.decode("utf-8", "backslashreplace")


def name_of_bytes(raw: bytes) -> str:
    """Return a name as text; bytes that are not UTF-8 become lone surrogates, so that the name can be used again."""
    return raw.decode("utf-8", "surrogateescape")


def headers_field(headers: Mapping[str, str]) -> bytes:
    """Return headers as the field of an entry: JSON, or b"" if there are none."""
    return _json.encode(headers) if headers else b""


def entry_fields(body: bytes, headers: Mapping[str, str]) -> list[bytes]:
    """Return the fields of a plain entry: one without a delay, an ordering key or max deliveries of its own."""
    return [BODY, body, HEADERS, headers_field(headers)] if headers else [BODY, body]


def as_record(entry_id: bytes, fields: Sequence[bytes]) -> Record:
    """Return a stored entry, of ailf or of any other program."""
    if not BYTES.issuperset(map(type, fields)):
        raise TypeError("the fields of an entry are bytes")
    if len(fields) == ALONE and fields[0] == BODY:  # nearly all of ailf's entries
        return Record(text(entry_id), fields[1], {})
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    key = _key_of(fields[1]) if HOW in values and fields[0] == HOW else ""
    if BODY not in values:
        problem = "" if all(map(is_text, fields)) else "another program added it, and its fields are not UTF-8"
        body = _json.encode({text(name): text(value) for name, value in values.items()})
        return Record(text(entry_id), body, {}, foreign=True, problem=problem, key=key)
    headers: dict[str, str] = {}
    problem = ""
    if HEADERS in values:
        try:
            headers = _headers.decode(values[HEADERS])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            problem = "its headers are not a JSON object of strings"
    return Record(text(entry_id), values[BODY], headers, problem=problem, key=key)


def _key_of(how: bytes) -> str:
    """Return the ordering key in the field ``ailf.how``, or ""."""
    terms = _TERMS.fullmatch(how)
    return "" if terms is None else text(terms[1])


def _is_id(raw: bytes) -> bool:
    """Return whether bytes are the id of an entry, which tells a time; other programs may write anything."""
    return _ID.fullmatch(raw) is not None and all(int(part) <= LARGEST for part in raw.split(b"-"))


def _unreadable(error: Exception, entry_id: Any, fields: Any) -> Record:
    """Return the record of an entry that can't be read, with its problem; a number for `fields` is its size in bytes.

    Raises:
        Exception: `error` itself, if this is not an entry.
    """
    if type(entry_id) is bytes and type(fields) is int:
        return oversize(text(entry_id), fields)
    if type(entry_id) is not bytes or not BYTES.issuperset(map(type, fields)) or len(fields) % 2:
        raise error
    return Record(text(entry_id), b"", {}, problem=f"it can't be read ({type(error).__name__})")


def oversize(entry_id: str, size: int) -> Record:
    """Return the record of an entry that is too large for a reply."""
    return Record(entry_id, b"", {}, problem=f"its {size} bytes are more than a reply may have")


def oversize_dead_letter(letter_id: str, size: int) -> Letter:
    """Return a dead letter that is too large for a reply; it can be redriven and purged like any other."""
    record = oversize(letter_id, size)
    return Letter(letter_id, record, "undecodable", record.problem, 0, _time_of(letter_id))


def _time_of(letter_id: str) -> float:
    """Return when a dead letter was added, in seconds since 1970."""
    return int(letter_id.partition("-")[0]) / 1000


def as_sizes(reply: Sequence[Any]) -> list[tuple[str, int]]:
    """Read the reply of ``sizes.lua``: each entry's id, and the bytes that a reply with it has."""
    return [(text(entry_id), int(size)) for entry_id, size in reply]


def as_ids(reply: Sequence[Any]) -> list[str]:
    """Read the ids in the reply of ``sizes.lua``."""
    return [text(entry_id) for entry_id, _ in reply]


def pieces(sizes: Sequence[tuple[str, int]], most: int) -> list[list[tuple[str, int]]]:
    """Return entries in pieces of at most `most` bytes; an entry with more is a piece by itself."""
    result: list[list[tuple[str, int]]] = []
    left = 0
    for each in sizes:
        left -= each[1]
        if not result or left < 0:
            result.append([])
            left = most - each[1]
        result[-1].append(each)
    return result


def _as_any_record(entry_id: bytes, fields: Sequence[bytes]) -> Record:
    """Return a stored entry; if it can't be read, a record with the problem."""
    try:
        return as_record(entry_id, fields)
    except UNREADABLE as error:
        return _unreadable(error, entry_id, fields)


def _is_number(raw: bytes) -> bool:
    """Return whether bytes are a number as the scripts write one."""
    return raw.isdigit() and len(raw) <= DIGITS


def is_text(raw: bytes) -> bool:
    """Return whether bytes are UTF-8; other programs may write anything."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _unpacked(fields: Sequence[bytes]) -> Sequence[bytes]:
    """Return the fields that ``packed`` in the scripts has joined to one, each with its length before it."""
    if len(fields) != ALONE or fields[0] != PACKED:
        return fields
    packed, unpacked, at = fields[1], [], 0
    while (colon := packed.find(b":", at)) >= 0 and _is_number(length := packed[at:colon]):
        at = colon + 1 + int(length)
        unpacked.append(packed[colon + 1 : at])
    return unpacked if at == len(packed) and not len(unpacked) % 2 else fields


def as_nothing(reply: Any) -> None:
    """Ignore a reply that carries no information."""


def as_partitions(reply: bytes | None) -> int | None:
    """Read a stored number of partitions; None if there is none, or another program wrote something else."""
    return int(reply) if reply is not None and _is_number(reply) and len(reply) <= PARTITION_DIGITS else None


def as_flag(reply: int) -> bool:
    """Read a script's yes or no."""
    return int(reply) != 0


def as_flags(reply: Sequence[int]) -> list[bool]:
    """Read a script's list of yes or no."""
    return [int(each) != 0 for each in reply]


def as_records(reply: Sequence[Any]) -> list[Record]:
    """Read stored entries, of ailf or of any other program."""
    return [_as_any_record(*entry) for entry in reply]


def as_info(reply: Sequence[Any]) -> GroupInfo:
    """Read the reply of ``info.lua``."""
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


_STATES = (MessageState.UNREAD, MessageState.LEASED, MessageState.WAITING, MessageState.SETTLED, MessageState.UNKNOWN)


def as_message_info(reply: Sequence[Any]) -> MessageInfo | None:
    """Read the reply of ``inspect.lua``; None if the group is missing."""
    state, consumer, left, attempts = reply
    if not state:
        return None
    due = None if left < 0 else left / 1000
    return MessageInfo(_STATES[int(state) - 1], name_of_bytes(consumer) if consumer else None, due, int(attempts))


def as_names(reply: Sequence[bytes] | int) -> list[str] | None:
    """Read the reply of ``groups.lua``; None if there are too many groups."""
    return None if isinstance(reply, int) else [name_of_bytes(each) for each in reply]


def as_consumers(reply: Sequence[Any]) -> list[ConsumerState] | None:
    """Read the reply of ``consumers.lua``; None if there are too many consumers."""
    if not reply:
        return None
    known, leases = reply
    alive = {name: int(left) / 1000 for name, left in zip(known[::2], known[1::2], strict=True)}
    held: dict[bytes, int] = {}
    for name, number in zip(leases[::2], leases[1::2], strict=True):
        held[name] = held.get(name, 0) + int(number)
    names = dict.fromkeys((*alive, *held))
    return [ConsumerState(name_of_bytes(name), alive.get(name), held.get(name, 0)) for name in names]


def as_stream_info(reply: Sequence[Any]) -> tuple[int, str | None, str | None, int, int | None]:
    """Read the reply of ``stream_info.lua``: length, first id, last id, number of groups, entries ever added."""
    length, first, last, groups, added = reply
    return int(length), text(first) or None, text(last) or None, int(groups), None if int(added) < 0 else int(added)


def as_fetched(consumer: str, reply: Sequence[Any]) -> Fetched:
    """Read the reply of ``fetch.lua``."""
    due, fresh, grant, dead, reset, last, ring, next_due, state = reply
    grant = int(grant)
    claims = [_as_due_claim(consumer, *claim) for claim in due]
    for entry in fresh:
        try:  # inlined: a function call for each entry takes time
            record = as_record(*entry)
        except UNREADABLE as error:
            record = _unreadable(error, *entry)
        claims.append(Claim(record, Receipt(record.id, consumer, grant), 1))
    return Fetched(
        claims=claims,
        dead=[text(each) for each in dead],
        position=(text(last), text(ring), state == WATCHES) if last else SLEEPS if state == SLEEPS else None,
        next_due=None if next_due < 0 else next_due / 1000,
        reset=int(reset) != 0,
    )


def _as_due_claim(consumer: str, member: bytes, fields: Sequence[bytes], grant: int, attempt: int) -> Claim:
    if member.startswith(AGAIN):
        origin = member[1:]
        try:
            if fields[0] == ORIGIN:
                origin, fields = fields[1] if _is_id(fields[1]) else origin, fields[2:]
            record = as_record(origin, _unpacked(fields))
        except UNREADABLE as error:
            record = _unreadable(error, origin, fields)
        return Claim(record, Receipt(text(member), consumer, int(grant)), int(attempt))
    record = _as_any_record(member, fields)
    return Claim(record, Receipt(record.id, consumer, int(grant)), int(attempt))


def as_dead_letters(reply: Sequence[Any]) -> list[Letter]:
    """Read dead letters."""
    return [_as_dead_letter(*letter) for letter in reply]


def _as_dead_letter(letter_id: bytes, fields: Sequence[bytes]) -> Letter:
    """Read a dead letter as ``move_to_dead_letters`` in the scripts writes it: its own fields, then the entry's."""
    names, details = tuple(fields[:LETTER_FIELDS:2]), fields[1:LETTER_FIELDS:2]
    if names != LETTER_NAMES or not _is_number(details[-1]):
        details = (letter_id, b"undecodable", b"another program added it to the dead letters", b"0")
    else:
        fields = _unpacked(fields[LETTER_FIELDS:])
    origin, reason, error, attempts = details
    record = _as_any_record(origin if _is_id(origin) else letter_id, fields)
    own = text(letter_id)
    return Letter(own, record, text(reason), text(error), int(attempts), _time_of(own))
