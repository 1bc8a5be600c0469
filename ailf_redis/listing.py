"""Listing by SCAN: a page is one SCAN of one node, of at most `COUNT` keys of any kind, however many keys there are.

SCAN returns each key that exists from its first step to its last one at least once, even while the server resizes its
table. A step may find more keys than a page has room for. Then the next page repeats the step, and skips what came: the
cursor says where the step ended and which key was the last, by the order of hashes. If the step ends elsewhere now, it
isn't the same one, and nothing is skipped.

In a cluster one node after another is scanned. If a node has gone, its keys are elsewhere, and the scan begins anew.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

import attrs

from ailf.driver.listing import bad_cursor, join_cursor, split_cursor
from ailf.errors import PermissionDeniedError, UnsupportedError
from ailf_redis.connection.executor import Executor
from ailf_redis.errors import MISREAD, misread
from ailf_redis.replies import name_of_bytes

__all__ = ["Found", "Pass", "encoded", "needs_right", "scan"]

T = TypeVar("T")

COUNT: Final = 1000
"""The keys that one SCAN passes, about; more for a larger page."""

LARGEST: Final = 2**64 - 1
"""The largest cursor of a server."""

PARTS: Final = 5


def encoded(text: str) -> bytes:
    """Return a key or pattern as it is sent: lone surrogates stand for bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape")


@attrs.frozen
class Pass(Generic[T]):
    """One pass over all keys.

    Attributes:
        pattern: The pattern of the keys.
        type: The type of their values.
        read: Returns the name in a key; None for a key that is not of this kind.
    """

    pattern: str
    type: str
    read: Callable[[str], T | None]


@attrs.frozen
class Found(Generic[T]):
    """What one step has found.

    Attributes:
        passed: The number of the pass.
        names: The names, each once.
        cursor: The cursor of the next page; "" at the end.
    """

    passed: int
    names: list[T]
    cursor: str


@attrs.frozen
class _Place:
    """Where a page begins.

    Attributes:
        passed: The number of the pass.
        node: The node.
        scan: The server's cursor.
        end: Where the step ended when it was made before; "" if it was not.
        last: The hash of the last key that came; "" if none did.
    """

    passed: int = 0
    node: str = ""
    scan: str = "0"
    end: str = ""
    last: str = ""

    def text(self, kind: str) -> str:
        return join_cursor(kind, str(self.passed), self.node, self.scan, self.end, self.last)


def _place(kind: str, cursor: str, passes: int) -> _Place:
    """Read a cursor."""
    passed, node, scan, end, last = split_cursor(kind, cursor, PARTS)
    numbers = [each for each in (passed, scan, end) if each]
    if (
        not all(each.isascii() and each.isdecimal() and int(each) <= LARGEST for each in numbers)
        or not (passed and scan and int(passed) < passes)
        or bool(end) != bool(last)
    ):
        raise bad_cursor(kind, cursor)
    return _Place(int(passed), node, scan, end, last)


def _hash(key: bytes) -> str:
    return hashlib.blake2b(key, digest_size=8).hexdigest()


async def scan(executor: Executor, kind: str, passes: Sequence[Pass[T]], cursor: str, limit: int) -> Found[T]:
    """Return the names that one step finds, at most `limit`.

    Arguments:
        executor: Sends the step.
        kind: What is listed, for the cursor.
        passes: The passes over the keys, one after another.
        cursor: The cursor of the page; "" for the first one.
        limit: The most names.

    Raises:
        InvalidArgumentError: `cursor` is not a cursor of this kind.
        UnsupportedError: The user lacks the right to SCAN.
    """
    place = _place(kind, cursor, len(passes)) if cursor else _Place()
    nodes = await executor.nodes()
    if place.node not in nodes:  # the first page, or the node has gone
        place = _Place(place.passed, nodes[0])
    current = passes[place.passed]
    command = ("SCAN", place.scan, "MATCH", encoded(current.pattern), "COUNT", max(COUNT, limit), "TYPE", current.type)
    try:
        reply = await executor.call_at(place.node, 1, *command)
    except PermissionDeniedError as error:
        raise needs_right(error, executor.where, "SCAN", "+scan") from error
    try:
        end = reply[0].decode()
        keys = sorted({(_hash(key), key) for key in reply[1]})
    except MISREAD as error:
        raise misread(error, executor.where) from error
    if end == place.end:  # the same step again
        keys = [each for each in keys if each[0] > place.last]
    found: dict[T, str] = {}
    for digest, key in keys:
        name = current.read(name_of_bytes(key))
        if name is None or name in found:
            continue
        if len(found) == limit:
            again = _Place(place.passed, place.node, place.scan, end, found[next(reversed(found))])
            return Found(place.passed, list(found), again.text(kind))
        found[name] = digest
    behind = _behind(place, end, nodes, len(passes))
    return Found(place.passed, list(found), "" if behind is None else behind.text(kind))


def _behind(place: _Place, end: str, nodes: Sequence[str], passes: int) -> _Place | None:
    """Return where the next page begins when all of a step has come; None at the end."""
    if end != "0":
        return _Place(place.passed, place.node, end)
    at = nodes.index(place.node) + 1
    if at < len(nodes):
        return _Place(place.passed, nodes[at])
    return _Place(place.passed + 1, nodes[0]) if place.passed + 1 < passes else None


def needs_right(error: PermissionDeniedError, where: str, command: str, rules: str) -> Exception:
    """Return the error for a request that the user has no right to; `error` itself if it is about something else."""
    if command.lower() not in str(error).lower():
        return error
    return UnsupportedError(
        f"{where} can't list what exists: its user has no right to {command}; add {rules} to its ACL rules"
    )
