"""Listing by SCAN: a page is one SCAN of one node, which passes a bounded number of keys, however many there are.

SCAN returns each key that exists from its first step to its last one at least once, even while the server resizes its
table. How many it finds is known only afterwards: the cursor says how many keys the next step passes, so that it finds
about four fifths of a page, and it carries the keys for which a page had no room.

In a cluster one node after another is scanned. If a node has gone, its keys are elsewhere, and the scan begins anew.
"""

from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

import attrs

from ailf.driver.listing import LONGEST_CURSOR, bad_cursor, join_cursor, split_cursor
from ailf.errors import PermissionDeniedError, UnsupportedError
from ailf_redis.connection.executor import Executor
from ailf_redis.errors import MISREAD, misread
from ailf_redis.replies import name_of_bytes

__all__ = ["Found", "Pass", "encoded", "needs_right", "scan"]

T = TypeVar("T")

MOST_PASSED: Final = 1000
"""The most keys that one SCAN passes, about; more for a larger page."""

LEAST_PASSED: Final = 10
"""The fewest keys that one SCAN passes, about."""

FULL: Final = 0.8
"""The share of a page that a step should find; if it finds more than a page, the rest is carried in the cursor."""

LARGEST: Final = 2**64 - 1
"""The largest cursor of a server."""

PARTS: Final = 4
"""The parts of a cursor, without the keys that it carries."""


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
class _ScanState:
    """Where a page begins.

    Attributes:
        passed: The number of the pass.
        node: The node.
        scan: The server's cursor; "" if the pass is over, and only carried keys are left of it.
        count: The number of keys to pass; 0 if nothing is known about them.
        carried: The keys that were found and had no room in a page.
    """

    passed: int = 0
    node: str = ""
    scan: str = "0"
    count: int = 0
    carried: tuple[str, ...] = ()

    def text(self, kind: str) -> str:
        return join_cursor(kind, str(self.passed), self.node, self.scan, str(self.count), *self.carried)


def _read_cursor(kind: str, cursor: str, passes: int) -> _ScanState:
    """Read a cursor."""
    passed, node, scan, count, *carried = split_cursor(kind, cursor, PARTS, more=True)
    numbers = (passed, scan or "0", count)
    known = all(each.isascii() and each.isdecimal() and int(each) <= LARGEST for each in numbers)
    if not known or int(passed) >= passes or not (scan or carried):
        raise bad_cursor(kind, cursor)
    return _ScanState(int(passed), node, scan, int(count), tuple(carried))


def _count(state: _ScanState, limit: int) -> int:
    """Return how many keys the next step passes."""
    dense = max(LEAST_PASSED, int(FULL * limit))
    return max(LEAST_PASSED, min(state.count or dense, max(MOST_PASSED, dense)))


def _next_count(count: int, found: int, limit: int) -> int:
    """Return how many keys to pass after a step that passed `count` and found some: keys are in random order."""
    return min(4 * count, max(LEAST_PASSED, int(FULL * limit * count / max(found, 1))), LARGEST)


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
    state = _read_cursor(kind, cursor, len(passes)) if cursor else _ScanState()
    passed = state.passed
    read = passes[passed].read
    if state.scan and len(state.carried) < limit:
        state = await _step(executor, passes[passed], state, limit)
    names: dict[T, None] = {}
    rest: list[str] = []
    for key in state.carried:
        name = read(key)
        if name is None or name in names:
            continue
        if len(names) < limit:
            names[name] = None
        else:
            rest.append(key)
    behind = attrs.evolve(state, carried=tuple(rest))
    if not rest and not state.scan:
        if passed + 1 == len(passes):
            return Found(passed, list(names), "")
        behind = _ScanState(passed + 1)
    text = behind.text(kind)
    if len(text) > LONGEST_CURSOR:  # other programs' names, of thousands of bytes each: the page takes them all
        return await scan(executor, kind, passes, cursor, limit + len(rest))
    return Found(passed, list(names), text)


async def _step(executor: Executor, current: Pass[T], state: _ScanState, limit: int) -> _ScanState:
    """Make one SCAN; return where the next one begins, with the keys that were found and those that were carried."""
    nodes = await executor.nodes()
    if state.node not in nodes:  # the first page, or the node has gone
        state = _ScanState(state.passed, nodes[0], carried=state.carried)
    count = _count(state, limit)
    command = ("SCAN", state.scan, "MATCH", encoded(current.pattern), "COUNT", count, "TYPE", current.type)
    try:
        reply = await executor.call_at(state.node, 1, *command)
    except PermissionDeniedError as error:
        raise needs_right(error, executor.where, "SCAN", "+scan") from error
    try:
        end = reply[0].decode()
        keys = [key for key in map(name_of_bytes, reply[1]) if current.read(key) is not None]
        if not end.isdecimal():
            raise ValueError
    except MISREAD as error:
        raise misread(error, executor.where) from error
    node = state.node
    if end == "0":  # the end of this node
        at = nodes.index(node) + 1
        node, end = (nodes[at], "0") if at < len(nodes) else (node, "")
    return _ScanState(state.passed, node, end, _next_count(count, len(keys), limit), (*state.carried, *keys))


def needs_right(error: PermissionDeniedError, where: str, command: str, rules: str) -> Exception:
    """Return the error for a request that the user has no right to; `error` itself if it is about something else."""
    if command.lower() not in str(error).lower():
        return error
    return UnsupportedError(
        f"{where} can't list what exists: its user has no right to {command}; add {rules} to its ACL rules"
    )
