"""The driver of streams in memory. Each step is one transition of `StreamState`, under the store's lock."""

import heapq
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

from msgspec.structs import replace

from ailf.checks import to_ms
from ailf.driver import (
    ConsumerState,
    Draft,
    Fetched,
    Letter,
    Outcome,
    Receipt,
    Record,
    Settlement,
    StreamDriver,
    StreamsWaiter,
    Swept,
    Waiter,
    Waiting,
)
from ailf.driver.listing import join_cursor, split_cursor
from ailf.errors import InvalidArgumentError, StreamFullError
from ailf.values import Added, GroupInfo, MessageInfo, Page, Retention, StreamInfo
from ailf_memory.state.entries import FIRST, LONGEST, id_before, key_of, text_of
from ailf_memory.state.group import GroupState
from ailf_memory.state.stream import StreamState
from ailf_memory.store import StoreHandle

__all__ = ["MemoryStreamDriver", "MemoryWaiter"]


class MemoryStreamDriver(StreamDriver):
    """Streams in memory. A step that may make entries available notifies the waiters.

    Attributes:
        group_class: The class of the groups of new streams.
    """

    group_class: ClassVar[type[GroupState]] = GroupState

    def __init__(self, handle: StoreHandle) -> None:
        self._handle = handle
        self._store = handle.store

    def _state(self, stream: str) -> StreamState:
        """Return the state of a stream, and make it if it is missing."""
        if self._handle.closed:
            self._handle.check_open()
        state = self._store.streams.get(stream)
        if state is None:
            state = self._store.streams[stream] = StreamState(self.group_class)
        return state

    def _group(self, stream: str, group: str) -> GroupState | None:
        return self._state(stream).groups.get(group)

    def _now(self) -> int:
        return self._store.clock.now_ms()

    def _after(self, seconds: float) -> int:
        return self._now() + to_ms(seconds)

    def _changed(self, stream: str) -> None:
        """Notify the waiters: entries of the stream may have become available."""
        self._store.notify()
        state = self._store.streams.get(stream)
        if state is not None:
            state.version = self._store.version

    # --- the stream ----------------------------------------------------------------------------------------------

    async def declare(self, stream: str, partitions: int | None, *, void: bool = False) -> int | None:
        with self._store.lock:
            self._handle.check_open()
            state = self._store.streams.get(stream) if partitions is None else self._state(stream)
            return None if state is None else state.declare(partitions, void=void)

    async def add(self, stream: str, drafts: Sequence[Draft], *, retention: Retention | None) -> list[str]:
        with self._store.lock:
            state, now_ms = self._state(stream), self._now()
            if retention is not None:
                self._make_room(stream, len(drafts), retention)
            ids = [state.append(draft, now_ms) for draft in drafts]
            self._changed(stream)
            return ids

    def _make_room(self, stream: str, count: int, retention: Retention) -> None:
        if not self._state(stream).make_room(count, retention, self._now()):
            raise StreamFullError(
                f"can't add {count} messages to stream {stream!r} of {self._handle.url}: its retention keeps at most "
                f"{retention.max_len}, and too many are unsettled. Let its groups settle some, or set wait= in the "
                "retention"
            )

    async def add_once(
        self, stream: str, draft: Draft, *, dedup_id: str, token: str, window: float, retention: Retention | None
    ) -> Added:
        with self._store.lock:
            state, now_ms = self._state(stream), self._now()
            earlier = state.added_before(dedup_id, token, now_ms)
            if earlier is not None:
                return earlier
            if retention is not None:
                self._make_room(stream, 1, retention)
            added = state.append_once(draft, dedup_id=dedup_id, token=token, window=window, now_ms=now_ms)
            self._changed(stream)
            return added

    async def cancel(self, stream: str, entry_id: str) -> bool:
        with self._store.lock:
            cancelled = self._state(stream).cancel(entry_id, self._now())
            self._changed(stream)
            return cancelled

    async def trim(self, stream: str, retention: Retention, *, after: str = "") -> Swept:
        start = key_of(after or text_of(FIRST))
        with self._store.lock:
            swept, _ = self._state(stream).trim(retention, self._now(), start=start)
            self._changed(stream)
            return swept

    async def length(self, stream: str) -> int:
        with self._store.lock:
            return len(self._state(stream).keys)

    async def read(self, stream: str, start: str, end: str, limit: int, *, after: bool = False) -> list[Record]:
        with self._store.lock:
            return self._state(stream).read(start, end, limit, after=after)

    async def last_id(self, stream: str) -> str:
        with self._store.lock:
            return text_of(self._state(stream).last)

    def id_before(self, timestamp: float) -> str:
        return id_before(timestamp)

    def time_of(self, entry_id: str) -> float:
        return key_of(entry_id)[0] / 1000

    async def delete(self, stream: str) -> None:
        with self._store.lock:
            self._handle.check_open()
            deleted = self._store.streams.pop(stream, None)
            self._changed(stream)
        del deleted  # as above

    # --- its groups ----------------------------------------------------------------------------------------------

    async def open_group(self, stream: str, group: str, start: str) -> bool:
        with self._store.lock:
            state = self._state(stream)
            position = state.locate(start)
            if group in state.groups:
                return False
            state.open(group, position)
            return True

    async def delete_group(self, stream: str, group: str) -> None:
        with self._store.lock:
            deleted = self._state(stream).groups.pop(group, None)
            self._changed(stream)
        del deleted  # to free many messages takes time, which no other call should wait for

    async def seek(self, stream: str, group: str, position: str) -> bool:
        with self._store.lock:
            after = self._state(stream).locate(position)
            state = self._group(stream, group)
            if state is None:
                return False
            forgotten = state.seek(after, self._now())
            self._changed(stream)
        while True:  # a page at a time; a fetch continues it too, and leases nothing before
            with self._store.lock:
                if state.continue_seek(self._now()):
                    break
        forgotten.clear()
        return True

    async def pause(self, stream: str, group: str, *, paused: bool) -> bool:
        with self._store.lock:
            state = self._group(stream, group)
            if state is not None:
                state.paused = paused
                self._changed(stream)
            return state is not None

    async def info(self, stream: str, group: str) -> GroupInfo:
        with self._store.lock:
            return self._state(stream).info(group, self._now())

    async def inspect(self, stream: str, group: str, entry_id: str) -> MessageInfo | None:
        key_of(entry_id)
        with self._store.lock:
            state = self._group(stream, group)
            return None if state is None else state.inspect(entry_id, self._now())

    async def fetch(
        self,
        stream: str,
        group: str,
        consumer: str,
        *,
        count: int,
        lease: float,
        alive: float,
        max_deliveries: int,
        waiting: Waiting | None = None,  # noqa: ARG002 - every change notifies all waiters
        key_concurrency: int = 1,
    ) -> Fetched:
        with self._store.lock:
            its, now_ms = self._state(stream), self._now()
            state = its.groups.get(group)
            fetched = (state or its.open(group)).fetch(
                consumer, count, until_ms=now_ms + to_ms(lease), alive_ms=now_ms + to_ms(alive),
                max_deliveries=max_deliveries, key_concurrency=key_concurrency, now_ms=now_ms,
            )  # fmt: skip
            if fetched.next_due == 0:  # this step ended early, or made more entries due than it leased
                self._changed(stream)
            if state is not None and (fetched.claims or fetched.dead):
                return fetched
            more = fetched.claims or fetched.dead or fetched.next_due == 0
            return replace(fetched, position=None if more else self._store.version, reset=state is None)

    async def settle(
        self, stream: str, group: str, settlements: Sequence[Settlement], *, max_deliveries: int
    ) -> list[Outcome]:
        with self._store.lock:
            state, now_ms = self._group(stream, group), self._now()
            if state is None:
                return [Outcome.LOST] * len(settlements)
            outcomes = [state.settle(each, max_deliveries, now_ms) for each in settlements]
            self._changed(stream)
            return outcomes

    async def extend(self, stream: str, group: str, receipts: Sequence[Receipt], *, lease: float) -> list[bool]:
        with self._store.lock:
            state, now_ms, until_ms = self._group(stream, group), self._now(), self._after(lease)
            return [state is not None and state.extend(each, until_ms, now_ms) for each in receipts]

    async def heartbeat(self, stream: str, group: str, consumers: Sequence[str], *, alive: float) -> None:
        with self._store.lock:
            state = self._group(stream, group)
            if state is not None:
                state.alive.update(dict.fromkeys(consumers, self._after(alive)))

    async def leave(self, stream: str, group: str, consumer: str) -> None:
        left = False
        while not left:
            with self._store.lock:
                state = self._group(stream, group)
                left = state is None or state.leave(consumer, self._now())
                self._changed(stream)

    # --- dead letters --------------------------------------------------------------------------------------------

    async def dead_letters(self, stream: str, group: str, after: str, limit: int) -> list[Letter]:
        number = _number(after or "0")
        with self._store.lock:
            state = self._group(stream, group)
            return [] if state is None else state.dead_letters(number, limit)

    def check_letter(self, letter: str) -> None:
        _number(letter)

    async def take_dead_letters(self, stream: str, group: str, letters: Sequence[str], *, redrive: bool) -> list[bool]:
        numbers = [_number(each) for each in letters]
        with self._store.lock:
            state, now_ms = self._group(stream, group), self._now()
            taken = [state is not None and state.take_dead_letter(each, now_ms, redrive=redrive) for each in numbers]
            self._changed(stream)
            return taken

    # --- what exists ---------------------------------------------------------------------------------------------

    async def list_streams(self, prefix: str, cursor: str, limit: int) -> Page[str]:
        self._handle.check_open()
        (after,) = split_cursor("streams", cursor, 1) if cursor else (None,)
        names, more = self._store.stream_names.page(prefix, after, limit)
        with self._store.lock:
            listed = tuple(name for name in names if (state := self._store.streams.get(name)) and state.listed)
        return Page(listed, join_cursor("streams", names[-1]) if more else "")

    async def list_groups(self, stream: str, after: str, limit: int) -> list[str]:
        self._handle.check_open()
        state = self._store.streams.get(stream)
        names = [] if state is None else list(state.groups)  # without the lock: the copy is one step
        return heapq.nsmallest(limit, (name for name in names if name > after))

    async def list_consumers(self, stream: str, group: str, after: str, limit: int) -> list[ConsumerState]:
        self._handle.check_open()
        stored = self._store.streams.get(stream)
        state = None if stored is None else stored.groups.get(group)
        if state is None:
            return []
        known = {*list(state.alive), *list(state.held)}  # as above
        names = heapq.nsmallest(limit, (name for name in known if name > after))
        with self._store.lock:
            return state.consumers(names, self._now())

    async def stream_info(self, stream: str) -> StreamInfo:
        with self._store.lock:
            self._handle.check_open()
            state = self._store.streams.get(stream)
            return StreamInfo(stream) if state is None else state.summary(stream)

    # --- waiting -------------------------------------------------------------------------------------------------

    def waiter(self, stream: str, group: str | None) -> "MemoryWaiter":  # noqa: ARG002 - all groups notify alike
        return MemoryWaiter(self._handle, stream)

    def streams_waiter(self, streams: Sequence[str], group: str | None) -> "MemoryStreamsWaiter":  # noqa: ARG002 - as above
        return MemoryStreamsWaiter(self._handle, streams)


def _number(letter: str) -> int:
    """Return the number of a dead letter's id, by which dead letters are ordered."""
    if len(letter) > LONGEST or not (letter.isascii() and letter.isdecimal()):
        raise InvalidArgumentError(
            f"{letter!r} is not the id of a dead letter, which looks like '7'; use that of one "
            "in the list of dead letters"
        )
    return int(letter)


class _StoreWait:
    """Waits until the store notifies: what the two waiters share."""

    def __init__(self, handle: StoreHandle) -> None:
        self._handle = handle
        self._store = handle.store
        self._event = handle.runtime.event()
        self._interrupted = False

    async def _wait(self, came: Callable[[], bool], timeout: float) -> bool:
        """Return True when something has come already, or the store notifies; False if the wait is interrupted."""
        self._store.subscribe(self._event.set)
        try:
            notified = not self._interrupted and (came() or await self._event.wait(timeout))
            return notified and not self._interrupted
        finally:
            self._store.unsubscribe(self._event.set)
            self._event.clear()
            self._interrupted = False

    def _has_after(self, stream: str, entry_id: str) -> bool:
        """Tell whether the stream has an entry after an id."""
        state = self._store.streams.get(stream)
        return state is not None and state.after(state.locate(entry_id)) < len(state.keys)

    def interrupt(self) -> None:
        self._interrupted = True
        self._event.set()

    async def close(self) -> None:
        pass


class MemoryWaiter(_StoreWait, Waiter):
    """Waits until the store notifies."""

    def __init__(self, handle: StoreHandle, stream: str) -> None:
        super().__init__(handle)
        self._stream = stream

    async def wait(self, position: Any, timeout: float) -> bool:
        return await self._wait(lambda: self._changed_since(position), timeout)

    def _changed_since(self, position: Any) -> bool:
        """Tell whether the store has changed since a version, or the stream has an entry after an id."""
        with self._store.lock:
            if isinstance(position, int):
                return self._store.version != position
            return self._has_after(self._stream, position)


class MemoryStreamsWaiter(_StoreWait, StreamsWaiter):
    """Waits until the store notifies of a change of one of several streams."""

    def __init__(self, handle: StoreHandle, streams: Sequence[str]) -> None:
        super().__init__(handle)
        self._streams = streams

    async def wait(self, positions: Sequence[Any], timeout: float) -> Collection[int]:
        now = self._handle.runtime.now
        until = now() + timeout
        while await self._wait(lambda: bool(self._changed_since(positions)), until - now()):
            if changed := self._changed_since(positions):  # else the store notified of another stream
                return changed
        return ()

    def _changed_since(self, positions: Sequence[Any]) -> list[int]:
        """Return the streams that have changed since a version of the store, or have an entry after an id."""
        with self._store.lock:
            return [at for at, each in enumerate(positions) if self._has_changed(self._streams[at], each)]

    def _has_changed(self, stream: str, position: Any) -> bool:
        if not isinstance(position, int):
            return self._has_after(stream, position)
        state = self._store.streams.get(stream)
        return state is None or max(state.version, self._store.moved) > position
