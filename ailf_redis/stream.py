"""Streams over Redis: a Redis stream, and per group what Redis' own pending list doesn't know."""

import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ailf.driver import Fetched, Receipt, Record, Settlement, StreamDriver, Waiter
from ailf.engine import Engine
from ailf.errors import BackendError, BackendTimeoutError, ClosedError, InvalidArgumentError
from ailf.stream import AsyncStream, Stream
from ailf.values import EARLIEST, LATEST, DeadLetter
from ailf_redis.connection import Executor, Link
from ailf_redis.errors import mapped
from ailf_redis.keys import Keys
from ailf_redis.replies import as_dead_letter, as_fetched, as_record, entry_fields, text
from ailf_redis.scripts import DELETE, EXTEND, FETCH, LEAVE, SETTLE

if TYPE_CHECKING:
    from ailf_redis.backend import RedisDriver

__all__ = ["AsyncRedisStream", "RedisStream", "RedisStreamDriver"]

T = TypeVar("T")

_ID: Final = re.compile(r"\d{1,20}(-\d{1,20})?")


class RedisStream(Stream[T]):
    """`Stream` over Redis; one made alone opens ``$AILF_URL`` where that is Redis, else ``redis://localhost:6379/0``."""

    def _open_engine(self) -> Engine:
        from ailf_redis.backend import RedisBackend  # noqa: PLC0415 - the backend names this class

        return RedisBackend().engine


class AsyncRedisStream(AsyncStream[T]):
    """`AsyncStream` over Redis; one made alone opens ``$AILF_URL`` where that is Redis, else ``redis://localhost:6379/0``."""

    def _open_engine(self) -> Engine:
        from ailf_redis.backend import AsyncRedisBackend  # noqa: PLC0415 - the backend names this class

        return AsyncRedisBackend().engine


def _milliseconds(seconds: float) -> int:
    """Return whole milliseconds, never fewer than the seconds asked for."""
    return math.ceil(seconds * 1000)


def _start(position: str) -> str:
    """Return where XRANGE begins or XGROUP CREATE stands, for EARLIEST or an id."""
    if position == EARLIEST:
        return "0"
    if _ID.fullmatch(position) is None:
        raise InvalidArgumentError(
            f"{position!r} is not the id of an entry; use one that add returned, EARLIEST or LATEST"
        )
    return position


class RedisStreamDriver(StreamDriver):
    """The transitions of streams and groups, each one command or script."""

    def __init__(self, backend: "RedisDriver") -> None:
        self._executor = backend.executor
        self._keys = backend.keys
        self._swept: dict[tuple[str, str], float] = {}

    async def add(self, stream: str, entries: Sequence[tuple[bytes, Mapping[str, str]]]) -> list[str]:
        key = self._keys.stream(stream)
        replies = await self._executor.call_many(
            [("XADD", key, "*", *entry_fields(body, headers)) for body, headers in entries]
        )
        for done, reply in enumerate(replies):
            if isinstance(reply, Exception):
                error = mapped(reply, self._executor.where, sent=True)
                error.maybe_applied = error.maybe_applied or done > 0  # the entries before it are there
                error.add_note(f"it is entry {done + 1} of {len(entries)}")
                raise error from reply
        return [text(reply) for reply in replies]

    async def read(self, stream: str, start: str, end: str, limit: int, *, after: bool = False) -> list[Record]:
        low = await self.last_id(stream) if start == LATEST else _start(start)
        high = "+" if end == LATEST else _start(end)
        key = self._keys.stream(stream)
        entries = await self._executor.call("XRANGE", key, f"({low}" if after else low, high, "COUNT", limit)
        return [as_record(*entry) for entry in entries]

    async def last_id(self, stream: str) -> str:
        entries = await self._executor.call("XREVRANGE", self._keys.stream(stream), "+", "-", "COUNT", 1)
        return text(entries[0][0]) if entries else "0-0"

    async def delete(self, stream: str) -> None:
        await DELETE.run(self._executor, [self._keys.stream(stream)], self._keys.helper_prefixes(stream))

    async def open_group(self, stream: str, group: str, start: str) -> bool:
        position = "$" if start == LATEST else _start(start)
        command = ("XGROUP", "CREATE", self._keys.stream(stream), group, position, "MKSTREAM")
        (reply,) = await self._executor.call_many([command])
        if isinstance(reply, Exception):
            if "BUSYGROUP" in str(reply):
                return False
            raise mapped(reply, self._executor.where, sent=True)
        return True

    async def fetch(
        self, stream: str, group: str, consumer: str, *, count: int, lease: float, max_deliveries: int
    ) -> Fetched:
        keys = self._keys.group(stream, group)
        arguments = (group, consumer, count, _milliseconds(lease), max_deliveries, self._sweeps(stream, group, lease))
        reply = await FETCH.run(self._executor, [keys.stream, keys.due, keys.notes, keys.dead, keys.bell], arguments)
        return as_fetched(reply, consumer)

    def _sweeps(self, stream: str, group: str, lease: float) -> int:
        """Tell whether this fetch also looks for entries that other programs left pending: once per lease is enough."""
        now = time.monotonic()
        if now < self._swept.get((stream, group), 0.0):
            return 0
        self._swept[stream, group] = now + lease
        return 1

    async def settle(
        self, stream: str, group: str, settlements: Sequence[Settlement], *, max_deliveries: int
    ) -> list[bool]:
        keys = self._keys.group(stream, group)
        arguments: list[Any] = [group, max_deliveries]
        for each in settlements:
            arguments += (each.receipt.id, each.receipt.consumer, each.receipt.grant)
            arguments += (each.action.value, _milliseconds(each.delay), each.reason, each.error)
        reply = await SETTLE.run(self._executor, [keys.stream, keys.due, keys.notes, keys.dead, keys.bell], arguments)
        return [bool(done) for done in reply]

    async def extend(self, stream: str, group: str, receipts: Sequence[Receipt], *, lease: float) -> list[bool]:
        keys = self._keys.group(stream, group)
        arguments: list[Any] = [group, _milliseconds(lease)]
        for each in receipts:
            arguments += (each.id, each.consumer, each.grant)
        reply = await EXTEND.run(self._executor, [keys.stream, keys.due], arguments)
        return [bool(kept) for kept in reply]

    async def leave(self, stream: str, group: str, consumer: str) -> None:
        keys = self._keys.group(stream, group)
        await LEAVE.run(self._executor, [keys.stream, keys.due, keys.notes, keys.bell], [group, consumer])

    async def dead_letters(self, stream: str, group: str, after: str, limit: int) -> list[DeadLetter]:
        key = self._keys.group(stream, group).dead
        low = f"({_start(after)}" if after else "-"
        letters = await self._executor.call("XRANGE", key, low, "+", "COUNT", limit)
        return [as_dead_letter(*letter) for letter in letters]

    def waiter(self, stream: str, group: str | None) -> "RedisWaiter":
        bell = None if group is None else self._keys.group(stream, group).bell
        return RedisWaiter(self._executor, self._keys, stream, bell)


class RedisWaiter(Waiter):
    """XREAD BLOCK without a group on the stream and the group's bell: it sees what comes, and takes nothing."""

    MARGIN: Final = 2.0
    """Seconds that the server may be late with saying that nothing came."""

    def __init__(self, executor: Executor, keys: Keys, stream: str, bell: str | None) -> None:
        self._executor = executor
        self._stream = keys.stream(stream)
        self._bell = bell
        self._link: Link | None = None
        self._interrupted = False

    async def wait(self, position: Any, timeout: float) -> None:
        try:
            replies = await self._exchange(self._command(position, timeout), timeout + self.MARGIN)
        except (BackendError, ClosedError):
            await self._drop()
            if self._interrupted:
                return
            raise
        except BaseException:  # cancelled: the answer still comes, to nobody
            await self._drop()
            raise
        if replies and isinstance(replies[0], Exception):
            raise mapped(replies[0], self._executor.where, sent=True)

    async def _exchange(self, command: list[Any], timeout: float) -> list[Any]:
        if self._interrupted:
            return []
        link = self._link
        if link is None:
            link = self._link = await self._executor.link()
        await link.send([command])
        if self._interrupted:  # between the look above and the link's being there to be interrupted
            raise ClosedError("interrupted")
        replies = await link.receive(timeout)
        if not replies:
            raise BackendTimeoutError(f"{self._executor.where} did not answer in time", maybe_applied=True)
        return replies

    def _command(self, position: Any, timeout: float) -> list[Any]:
        last, ring = (position, None) if isinstance(position, str) else position
        if last == EARLIEST:
            last = "0-0"
        keys, ids = [self._stream], [last]
        if self._bell is not None and ring is not None:
            keys.append(self._bell)
            ids.append(ring)
        return ["XREAD", "COUNT", 1, "BLOCK", max(1, _milliseconds(timeout)), "STREAMS", *keys, *ids]

    def interrupt(self) -> None:
        self._interrupted = True
        link = self._link
        if link is not None:
            link.interrupt()

    async def close(self) -> None:
        self._interrupted = True
        await self._drop()

    async def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close()
