"""Streams in memory: the same transitions as elsewhere, each one step under the store's lock."""

import bisect
import heapq
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from ailf.driver import Action, Claim, Fetched, Receipt, Record, Settlement, StreamDriver, Waiter
from ailf.engine import Engine
from ailf.errors import InvalidArgumentError
from ailf.stream import AsyncStream, Stream
from ailf.values import EARLIEST, LATEST, DeadLetter

if TYPE_CHECKING:
    from ailf_memory.backend import MemoryDriver

__all__ = ["AsyncMemoryStream", "MemoryStream", "MemoryStreamDriver", "StreamState"]

T = TypeVar("T")
Key = tuple[int, int]

FIRST: Key = (0, 0)


class MemoryStream(Stream[T]):
    """`Stream` in memory; one made alone has a store of its own."""

    def _open_engine(self) -> Engine:
        from ailf_memory.backend import MemoryBackend  # noqa: PLC0415 - the backend names this class

        return MemoryBackend().engine


class AsyncMemoryStream(AsyncStream[T]):
    """`AsyncStream` in memory; one made alone has a store of its own."""

    def _open_engine(self) -> Engine:
        from ailf_memory.backend import AsyncMemoryBackend  # noqa: PLC0415 - the backend names this class

        return AsyncMemoryBackend().engine


@attrs.define
class _Pending:
    """A delivered entry that isn't settled.

    Attributes:
        due_ms: When it may be delivered (again): the end of its lease, or of its delay.
        holder: The consumer that has it leased; None while it waits.
        grant: How often it was delivered.
        forgiven: How many of these don't count as attempts.
        error: What was last said of it.
    """

    due_ms: int
    holder: str | None = None
    grant: int = 0
    forgiven: int = 0
    error: str = ""

    @property
    def attempt(self) -> int:
        return self.grant - self.forgiven


class _Group:
    """One group: where it stands, what is out, what it gave up on."""

    def __init__(self, position: Key) -> None:
        self.position = position
        self.pending: dict[Key, _Pending] = {}
        self.dead: list[DeadLetter] = []
        self.letters = 0
        self._due: list[tuple[int, Key]] = []

    def schedule(self, key: Key, due_ms: int) -> None:
        """Let the entry be due then, and no longer at any other time."""
        self.pending[key].due_ms = due_ms
        heapq.heappush(self._due, (due_ms, key))

    def next_due(self) -> tuple[int, Key] | None:
        """Return what is due first; superseded times fall out here."""
        while self._due:
            due_ms, key = self._due[0]
            pending = self.pending.get(key)
            if pending is not None and pending.due_ms == due_ms:
                return due_ms, key
            heapq.heappop(self._due)
        return None


class StreamState:
    """One stream: its entries in order, and its groups."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.records: list[Record] = []
        self.groups: dict[str, _Group] = {}
        self.version = 0

    def append(self, now_ms: int, body: bytes, headers: Mapping[str, str]) -> str:
        """Add one entry under the next id, which is never below the last, whatever the clock does."""
        ms, seq = self.keys[-1] if self.keys else FIRST
        key = (now_ms, 0) if now_ms > ms else (ms, seq + 1)
        self.keys.append(key)
        self.records.append(Record(_text(key), body, dict(headers)))
        return self.records[-1].id

    def after(self, key: Key) -> int:
        """Return the index of the first entry after this key."""
        return bisect.bisect_right(self.keys, key)

    def record(self, key: Key) -> Record:
        """Return one entry."""
        return self.records[bisect.bisect_left(self.keys, key)]


def _text(key: Key) -> str:
    return f"{key[0]}-{key[1]}"


def _key(text: str) -> Key:
    ms, dash, seq = text.partition("-")
    if not (ms.isdecimal() and (seq.isdecimal() if dash else not seq)):
        raise InvalidArgumentError(f"{text!r} is not the id of an entry; use one that add returned, EARLIEST or LATEST")
    return int(ms), int(seq or 0)


class MemoryStreamDriver(StreamDriver):
    """The transitions of streams and groups."""

    def __init__(self, backend: "MemoryDriver") -> None:
        self._backend = backend
        self._store = backend.store

    def _state(self, stream: str) -> StreamState:
        """Return the stream, made where it doesn't exist, as elsewhere."""
        self._backend.check_open()
        return self._store.streams.setdefault(stream, StreamState())

    def _changed(self, state: StreamState) -> None:
        state.version += 1
        self._store.ring()

    async def add(self, stream: str, entries: Sequence[tuple[bytes, Mapping[str, str]]]) -> list[str]:
        with self._store.lock:
            state = self._state(stream)
            now_ms = self._store.clock.now_ms()
            ids = [state.append(now_ms, body, headers) for body, headers in entries]
            self._changed(state)
            return ids

    async def read(self, stream: str, start: str, end: str, limit: int, *, after: bool = False) -> list[Record]:
        with self._store.lock:
            state = self._state(stream)
            low = self._position(state, start)
            first = bisect.bisect_right(state.keys, low) if after else bisect.bisect_left(state.keys, low)
            last = len(state.keys) if end == LATEST else bisect.bisect_right(state.keys, self._position(state, end))
            return state.records[first : min(last, first + limit)]

    def _position(self, state: StreamState, text: str) -> Key:
        if text == EARLIEST:
            return FIRST
        if text == LATEST:
            return state.keys[-1] if state.keys else FIRST
        return _key(text)

    async def last_id(self, stream: str) -> str:
        with self._store.lock:
            return _text(self._position(self._state(stream), LATEST))

    async def delete(self, stream: str) -> None:
        with self._store.lock:
            self._backend.check_open()
            state = self._store.streams.pop(stream, None)
            if state is not None:
                self._changed(state)

    async def open_group(self, stream: str, group: str, start: str) -> bool:
        with self._store.lock:
            state = self._state(stream)
            position = self._position(state, start)
            if group in state.groups:
                return False
            state.groups[group] = _Group(position)
            return True

    async def fetch(
        self, stream: str, group: str, consumer: str, *, count: int, lease: float, max_deliveries: int
    ) -> Fetched:
        with self._store.lock:
            state = self._state(stream)
            reset = group not in state.groups
            known = state.groups.setdefault(group, _Group(FIRST))
            now_ms = self._store.clock.now_ms()
            until_ms = now_ms + round(lease * 1000)
            claims: list[Claim] = []
            dead: list[str] = []
            while len(claims) < count and (due := known.next_due()) is not None and due[0] <= now_ms:
                key = due[1]
                pending = known.pending[key]
                if pending.attempt >= max_deliveries:
                    dead.append(_text(key))
                    self._bury(state, known, key, "max_deliveries", pending.error or "every lease ended unsettled")
                else:
                    claims.append(self._claim(state, known, key, consumer, until_ms))
            first = state.after(known.position)
            for key in state.keys[first : first + count - len(claims)]:
                known.pending[key] = _Pending(until_ms)
                known.position = key
                claims.append(self._claim(state, known, key, consumer, until_ms))
            upcoming = known.next_due()
            return Fetched(
                claims=claims,
                dead=dead,
                position=None if claims or dead else state.version,
                next_due=None if upcoming is None else (upcoming[0] - now_ms) / 1000,
                reset=reset,
            )

    def _claim(self, state: StreamState, group: _Group, key: Key, consumer: str, until_ms: int) -> Claim:
        pending = group.pending[key]
        pending.holder = consumer
        pending.grant += 1
        group.schedule(key, until_ms)
        record = state.record(key)
        return Claim(record, Receipt(record.id, consumer, pending.grant), pending.attempt)

    def _bury(self, state: StreamState, group: _Group, key: Key, reason: str, error: str) -> None:
        pending = group.pending.pop(key)
        record = state.record(key)
        group.letters += 1
        group.dead.append(
            DeadLetter(str(group.letters), record.id, record.body, dict(record.headers), reason, error, pending.attempt)
        )

    def _mine(self, group: _Group, receipt: Receipt) -> _Pending | None:
        """Return what the receipt proves, while its lease lasts."""
        pending = group.pending.get(_key(receipt.id))
        if pending is None or pending.holder != receipt.consumer or pending.grant != receipt.grant:
            return None
        return pending if pending.due_ms > self._store.clock.now_ms() else None

    async def settle(
        self, stream: str, group: str, settlements: Sequence[Settlement], *, max_deliveries: int
    ) -> list[bool]:
        with self._store.lock:
            state = self._state(stream)
            known = state.groups.get(group)
            if known is None:
                return [False] * len(settlements)
            done = [self._settle(state, known, each, max_deliveries) for each in settlements]
            self._changed(state)
            return done

    def _settle(self, state: StreamState, group: _Group, asked: Settlement, max_deliveries: int) -> bool:
        pending = self._mine(group, asked.receipt)
        if pending is None:
            return False
        key = _key(asked.receipt.id)
        if asked.action is Action.ACK:
            del group.pending[key]
        elif asked.action is Action.REJECT:
            self._bury(state, group, key, asked.reason, asked.error)
        elif asked.action is Action.NACK and pending.attempt >= max_deliveries:
            self._bury(state, group, key, "max_deliveries", asked.error)
        elif asked.action is Action.NACK:
            pending.error = asked.error
            self._park(group, key, asked.delay)
        else:
            self._release(group, key)
        return True

    def _release(self, group: _Group, key: Key) -> None:
        group.pending[key].forgiven += 1
        self._park(group, key, 0.0)

    def _park(self, group: _Group, key: Key, delay: float) -> None:
        group.pending[key].holder = None
        group.schedule(key, self._store.clock.now_ms() + round(delay * 1000))

    async def extend(self, stream: str, group: str, receipts: Sequence[Receipt], *, lease: float) -> list[bool]:
        with self._store.lock:
            known = self._state(stream).groups.get(group)
            until_ms = self._store.clock.now_ms() + round(lease * 1000)
            kept = []
            for receipt in receipts:
                mine = known is not None and self._mine(known, receipt) is not None
                if known is not None and mine:
                    known.schedule(_key(receipt.id), until_ms)
                kept.append(mine)
            return kept

    async def leave(self, stream: str, group: str, consumer: str) -> None:
        with self._store.lock:
            state = self._state(stream)
            known = state.groups.get(group)
            if known is None:
                return
            for key, pending in known.pending.items():
                if pending.holder == consumer and pending.due_ms > self._store.clock.now_ms():
                    self._release(known, key)
            self._changed(state)

    async def dead_letters(self, stream: str, group: str, after: str, limit: int) -> list[DeadLetter]:
        with self._store.lock:
            known = self._state(stream).groups.get(group)
            letters = [] if known is None else known.dead
            if after and not after.isdecimal():
                raise InvalidArgumentError(f"{after!r} is not the id of a dead letter")
            return [each for each in letters if int(each.id) > int(after or 0)][:limit]

    def waiter(self, stream: str, group: str | None) -> "MemoryWaiter":  # noqa: ARG002 - one bell serves all groups
        return MemoryWaiter(self._backend, stream)


class MemoryWaiter(Waiter):
    """Waits for the store's bell."""

    def __init__(self, backend: "MemoryDriver", stream: str) -> None:
        self._backend = backend
        self._store = backend.store
        self._stream = stream
        self._bell = backend.runtime.event()
        self._interrupted = False

    async def wait(self, position: Any, timeout: float) -> None:
        self._store.on_change(self._bell.set)
        try:
            if not (self._interrupted or self._moved(position)):
                await self._bell.wait(timeout)
        finally:
            self._store.off_change(self._bell.set)
            self._bell.clear()

    def _moved(self, position: Any) -> bool:
        """Tell whether something came since: to a group, known by the stream's version, or after an id."""
        with self._store.lock:
            state = self._store.streams.get(self._stream)
            if state is None:
                return position not in (0, EARLIEST) and not isinstance(position, str)
            if isinstance(position, int):
                return state.version != position
            return state.after(FIRST if position == EARLIEST else _key(position)) < len(state.keys)

    def interrupt(self) -> None:
        self._interrupted = True
        self._bell.set()

    async def close(self) -> None:
        self.interrupt()
