"""Streams over Redis: a Redis stream, and helper keys for each group besides Redis' pending list."""

import itertools
import re
from collections.abc import Awaitable, Callable, Hashable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from ailf.cache import KeyedCache
from ailf.checks import floor_ms, to_ms
from ailf.driver import (
    Action,
    ConsumerState,
    Draft,
    Fetched,
    Letter,
    Outcome,
    Receipt,
    Record,
    Settlement,
    StreamDriver,
    StreamRequest,
    Swept,
    Waiting,
)
from ailf.driver.listing import too_many
from ailf.errors import AilfError, BackendError, InvalidArgumentError, ProtocolError, StreamFullError
from ailf.values import EARLIEST, LATEST, Added, GroupInfo, MessageInfo, Page, Retention, StreamInfo
from ailf_redis.connection.executor import Executor
from ailf_redis.connection.pipeline import PipelineExecutor, run_pipelined
from ailf_redis.connection.resp import FOREIGN, PIECE, SLACK, CommandPrefix
from ailf_redis.errors import MISREAD, mapped, misread
from ailf_redis.keys import Keys
from ailf_redis.listing import Pass, encoded, scan
from ailf_redis.replies import (
    BODY,
    as_consumers,
    as_dead_letters,
    as_fetched,
    as_flag,
    as_flags,
    as_ids,
    as_info,
    as_message_info,
    as_names,
    as_nothing,
    as_partitions,
    as_records,
    as_sizes,
    as_stream_info,
    entry_fields,
    headers_field,
    oversize,
    oversize_dead_letter,
    pieces,
    text,
)
from ailf_redis.scripts import (
    ADD,
    CANCEL,
    CONSUMERS,
    DECLARE,
    DELETE,
    DELETE_GROUP,
    EXTEND,
    FETCH,
    GROUPS,
    HEARTBEAT,
    INFO,
    INSPECT_MESSAGE,
    LEAVE,
    OPEN_GROUP,
    PAUSE,
    SEEK,
    SETTLE,
    SIZES,
    STREAM_INFO,
    TAKE_DEAD_LETTERS,
    TRIM,
    Script,
)
from ailf_redis.waiter import RedisStreamsWaiter, RedisWaiter, is_oversize

__all__ = ["RedisStreamDriver"]

R = TypeVar("R")
T = TypeVar("T")

_OUTCOMES: Final = {each.value: each for each in Outcome}

STEPS: Final = 1000
"""The most steps in which a consumer leaves, of 400 messages each; the rest comes back when it counts as dead."""

CONTINUES: Final = 2
"""The reply of a step that another one has to continue."""

RESET_STEPS: Final = 10_000
"""The most steps in which a group is moved or deleted, of 1,000 pending messages each."""

IDS: Final = 10_000
"""The number of ids for which the limit of a reply without entries is enough in any case."""

LONG: Final = 3600.0
"""Seconds that stand for any longer wait."""

_ID: Final = re.compile(r"[0-9]{1,20}(-[0-9]{1,20})?")
_USUAL_ID: Final = re.compile(r"([0-9]{1,18})-[0-9]{1,18}")  # no part of it can be above `LARGEST`
_WHOLE_ID: Final = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
LARGEST: Final = 2**64 - 1
_PARTITION: Final = re.compile(r".+/(?:0|[1-9][0-9]{0,2})", re.DOTALL)
"""The form of the names of partitions."""

_LAST_ID: Final = f"{LARGEST}-{LARGEST}"


def _start(position: str) -> str:
    """Return the position for XRANGE or XGROUP CREATE, given EARLIEST or an id."""
    return "0" if position == EARLIEST else _checked(position, _ID)


def _whole(entry_id: str) -> str:
    """Check that an id is complete, and return it: XRANGE takes a partial one for all ids that begin with it."""
    return _checked(entry_id, _WHOLE_ID)


def _checked(position: str, form: re.Pattern[str]) -> str:
    if not _has_form(position, form):
        raise InvalidArgumentError(
            f"{position!r} is not the id of an entry, which looks like '1700000000000-0'; use that of an entry of "
            "this stream, or as a position 'earliest' or 'latest'"
        )
    return position


def _has_form(text: str, form: re.Pattern[str]) -> bool:
    return form.fullmatch(text) is not None and all(int(part) <= LARGEST for part in text.split("-"))


def _without_id(settlement: Settlement) -> tuple[str, int, Action, float, str, str]:
    """Return a settlement without its entry's id; settlements that are equal in it are sent together."""
    receipt = settlement.receipt
    return receipt.consumer, receipt.grant, settlement.action, settlement.delay, settlement.reason, settlement.error


def _owner(receipt: Receipt) -> tuple[str, int]:
    """Return a receipt without its entry's id; receipts that are equal in it are sent together."""
    return receipt.consumer, receipt.grant


def _as_single_id(entry_id: bytes) -> list[str]:
    return [entry_id.decode()]


def _as_added(count: int, reply: Sequence[Any]) -> tuple[int, list[str]]:
    """Read the reply of ``add.lua``: below 0 if the stream is full, else whether it was a duplicate; and the ids."""
    state, *ids = reply
    if state >= 0 and len(ids) != count:
        raise ValueError
    return int(state), [text(each) for each in ids]


def _as_swept(reply: Sequence[Any]) -> Swept:
    removed, unsettled, more = reply
    return Swept(int(removed), int(unsettled), text(more))


def _as_last_id(entries: Sequence[Any]) -> str:
    return text(entries[0][0]) if entries else "0-0"


def _as_outcomes(count: int, reply: Sequence[Any]) -> list[Outcome]:
    outcomes = [_OUTCOMES[each] for each in reply]
    if len(outcomes) != count:
        raise ValueError
    return outcomes


def _limits(retention: Retention | None) -> tuple[Any, Any, int]:
    """Return a retention as ``lua/shared/retention.lua`` takes it."""
    if retention is None:
        return "", "", 0
    age = "" if retention.max_age is None else to_ms(retention.max_age)
    return retention.max_len or "", age, int(retention.hard) if retention.keep_settled else 2


class RedisStreamDriver(StreamDriver):
    """The transitions of streams and groups; each is one command or script."""

    def __init__(self, executor: Executor, keys: Keys) -> None:
        self._executor = executor
        self._keys = keys
        most = executor.entry  # it is sent only if it is higher than the script's default
        self._most = (str(most),) if most > FOREIGN - SLACK else ()
        self._adding: KeyedCache[str, CommandPrefix] = KeyedCache(
            lambda stream: CommandPrefix.of("XADD", self._keys.stream(stream), "*", BODY)
        )

    async def declare(self, stream: str, partitions: int | None, *, void: bool = False) -> int | None:
        # By commands on one key each: a script with two would fail while a cluster moves their slot.
        if (stored := await self._partitions(stream)) is not None and not (void and stored == 0):
            return stored
        used = await self._executor.read_page(0, as_flag, "EXISTS", self._keys.stream(stream))
        if partitions is not None:
            number = 1 if used and partitions else partitions
            return await DECLARE.run(self._executor, [self._keys.meta(stream)], [number, int(used), int(void)], int)
        if not used:
            return None
        stored = await self._partitions(stream)  # stored meanwhile, before the stream was made
        return 1 if stored is None or (void and stored == 0) else stored

    def _partitions(self, stream: str) -> Awaitable[int | None]:
        return self._executor.read_page(0, as_partitions, "HGET", self._keys.meta(stream), "partitions")

    def add(self, stream: str, drafts: Sequence[Draft], *, retention: Retention | None) -> Awaitable[list[str]]:
        if retention is None and len(drafts) == 1:
            draft = drafts[0]
            if not (draft.key or draft.delay or draft.at or draft.max_deliveries):  # a plain XADD
                if draft.headers:
                    return self._add_headed(stream, draft)
                return self._executor.call_prefixed(self._adding[stream], draft.body, _as_single_id)
        return self._add_all(stream, drafts, retention)

    async def _add_headed(self, stream: str, draft: Draft) -> list[str]:
        fields = entry_fields(draft.body, draft.headers)
        command = ("XADD", self._keys.stream(stream), "*", *fields)
        return await self._executor.read_page(0, _as_single_id, *command)

    async def _add_all(self, stream: str, drafts: Sequence[Draft], retention: Retention | None) -> list[str]:
        _, ids = await self._add(stream, self._keys.stream(stream), drafts, retention)
        return ids

    async def add_once(
        self, stream: str, draft: Draft, *, dedup_id: str, token: str, window: float, retention: Retention | None
    ) -> Added:
        duplicate, (added,) = await self._add(
            stream, self._keys.once(stream, dedup_id), [draft], retention, token, to_ms(window)
        )
        return Added(added, bool(duplicate))

    async def _add(
        self,
        stream: str,
        once: str,
        drafts: Sequence[Draft],
        retention: Retention | None,
        token: str = "",
        window_ms: int = 0,
    ) -> tuple[int, list[str]]:
        """Add entries; return whether they are a duplicate, and their ids."""
        key, meta = self._keys.stream(stream), self._keys.meta(stream)
        arguments: list[Any] = [*_limits(retention), *self._keys.entry_removed_prefixes(stream), token, window_ms]
        for each in drafts:
            arguments += (to_ms(each.delay), to_ms(each.at), each.max_deliveries or "")
            arguments += (each.key, each.body, headers_field(each.headers))
        read, page = partial(_as_added, len(drafts)), len(drafts) // IDS
        state, ids = await ADD.run(self._executor, [key, meta, once], arguments, read, page)
        if state < 0:
            raise StreamFullError(f"{self._executor.where}: {key} has no room for {len(drafts)} more messages")
        return state, ids

    async def cancel(self, stream: str, entry_id: str) -> bool:
        arguments = (_whole(entry_id), self._keys.once(stream, ""), *self._keys.entry_removed_prefixes(stream))
        return await CANCEL.run(self._executor, [self._keys.stream(stream)], arguments, as_flag)

    async def trim(self, stream: str, retention: Retention, *, after: str = "") -> Swept:
        keys = [self._keys.stream(stream), self._keys.meta(stream)]
        arguments = (*_limits(retention), *self._keys.entry_removed_prefixes(stream), _whole(after) if after else "0-0")
        return await TRIM.run(self._executor, keys, arguments, _as_swept)

    async def length(self, stream: str) -> int:
        return await self._executor.read_page(0, int, "XLEN", self._keys.stream(stream))

    async def read(self, stream: str, start: str, end: str, limit: int, *, after: bool = False) -> list[Record]:
        low = await self.last_id(stream) if start == LATEST else _start(start)
        high = "+" if end == LATEST else _start(end)
        if after and low == _LAST_ID:  # no range can begin after it
            return []
        key = self._keys.stream(stream)
        return await self._page(key, f"({low}" if after else low, high, limit, as_records, oversize)

    async def _page(
        self,
        key: str,
        low: str,
        high: str,
        limit: int,
        read: Callable[[Any], list[R]],
        too_large: Callable[[str, int], R],
    ) -> list[R]:
        """Read a range; in pieces if other programs' entries make it too large for one reply.

        Arguments:
            key: The stream.
            low: The beginning of the range.
            high: The end of the range.
            limit: The most entries.
            read: Converts a reply.
            too_large: Makes the result for an entry that is too large for a reply, from its id and size.
        """
        try:
            return await self._executor.read_page(limit, read, "XRANGE", key, low, high, "COUNT", limit)
        except ProtocolError as error:
            if not is_oversize(error):
                raise
        sizes: list[tuple[str, int]] = []
        while len(sizes) < limit:
            rest = f"({sizes[-1][0]}" if sizes else low
            more = await SIZES.run(self._executor, [key], (rest, high, limit - len(sizes), 0), as_sizes, limit)
            sizes += more
            if not more or more[-1][0] == _LAST_ID:
                break
        entries: list[R] = []
        for piece in pieces(sizes, PIECE):
            (first, size), (last, _) = piece[0], piece[-1]
            if size > self._executor.max_size(1) - SLACK:
                entries.append(too_large(first, size))
            else:
                count = len(piece)
                entries += await self._executor.read_page(count, read, "XRANGE", key, first, last, "COUNT", count)
        return entries

    async def last_id(self, stream: str) -> str:
        key = self._keys.stream(stream)
        try:
            return await self._executor.read_page(1, _as_last_id, "XREVRANGE", key, "+", "-", "COUNT", 1)
        except ProtocolError as error:
            if not is_oversize(error):
                raise
        return await SIZES.run(self._executor, [key], ("+", "-", 1, 1), _as_last_id)

    def id_before(self, timestamp: float) -> str:
        return f"{max(0, floor_ms(timestamp) - 1)}-18446744073709551615"

    def time_of(self, entry_id: str) -> float:
        usual = _USUAL_ID.fullmatch(entry_id)  # each entry that is read takes this step
        return int(_checked(entry_id, _ID).partition("-")[0] if usual is None else usual[1]) / 1000

    async def delete(self, stream: str) -> None:
        keys = [self._keys.stream(stream), self._keys.meta(stream)]
        await DELETE.run(self._executor, keys, self._keys.helper_prefixes(stream), as_nothing)

    async def open_group(self, stream: str, group: str, start: str) -> bool:
        return await self._run(OPEN_GROUP, stream, group, ["$" if start == LATEST else _start(start)], as_flag)

    async def delete_group(self, stream: str, group: str) -> None:
        keys = (*self._keys.group(stream, group), self._keys.wake(stream, group))
        for _ in range(RESET_STEPS):  # the group exists until the last step, and delivers nothing that was pending
            if await DELETE_GROUP.run(self._executor, keys, [group], int) != CONTINUES:
                return

    async def seek(self, stream: str, group: str, position: str) -> bool:
        state = await self._run(SEEK, stream, group, ["$" if position == LATEST else _start(position)], int)
        for _ in range(RESET_STEPS):  # fetches continue it too, and lease nothing before
            if state != CONTINUES:
                break
            state = await self._run(SEEK, stream, group, [""], int)
        return state != 0

    async def pause(self, stream: str, group: str, *, paused: bool) -> bool:
        return await self._run(PAUSE, stream, group, [int(paused)], as_flag)

    async def info(self, stream: str, group: str) -> GroupInfo:
        keys = [*self._keys.group(stream, group), self._keys.meta(stream)]
        # The reply grows with the consumers, so it may be as large as a page.
        return await INFO.run(self._executor, keys, [group], as_info, page=1)

    async def inspect(self, stream: str, group: str, entry_id: str) -> MessageInfo | None:
        return await self._run(INSPECT_MESSAGE, stream, group, [_whole(entry_id)], as_message_info)

    async def _run(
        self, script: Script, stream: str, group: str, arguments: Sequence[Any], read: Callable[[Any], R]
    ) -> R:
        """Run a script on a group's keys, with the group's name as its first argument."""
        return await script.run(self._executor, self._keys.group(stream, group), (group, *arguments), read)

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
        waiting: Waiting | None = None,
        key_concurrency: int = 1,
    ) -> Fetched:
        arguments: tuple[str, ...] = (group, consumer, str(count), str(to_ms(lease)), str(to_ms(alive)))
        arguments += (str(max_deliveries), *self._most)
        keys, read = self._keys.group(stream, group), partial(as_fetched, consumer)
        width = () if key_concurrency == 1 else (str(key_concurrency),)
        if waiting is None or not isinstance(waiter := waiting.waiter, RedisWaiter) or waiter.wake is None:
            if width:
                arguments += (() if self._most else ("",)) + ("", "", "", *width)
            return await FETCH.run(self._executor, keys, arguments, read, count)
        name, milliseconds = waiter.name, str(to_ms(min(waiting.seconds, LONG)))
        arguments += (() if self._most else ("",)) + (name, str(waiting.others), milliseconds, *width)
        fetched = await FETCH.run(self._executor, (*keys, waiter.wake), arguments, read, count)
        waiter.told(name, fetched.position, alive, waiting.seconds)
        return fetched

    async def settle(
        self, stream: str, group: str, settlements: Sequence[Settlement], *, max_deliveries: int
    ) -> list[Outcome]:
        arguments: list[Any] = [group, str(max_deliveries)]
        for (consumer, grant, action, delay, reason, error), alike in itertools.groupby(settlements, _without_id):
            members = [each.receipt.id for each in alike]
            arguments += (consumer, str(grant), action.value, str(to_ms(delay)), reason, error)
            arguments += (str(len(members)), *members)
        keys, read = self._keys.group(stream, group), partial(_as_outcomes, len(settlements))
        return await SETTLE.run(self._executor, keys, arguments, read)

    async def extend(self, stream: str, group: str, receipts: Sequence[Receipt], *, lease: float) -> list[bool]:
        arguments: list[Any] = [to_ms(lease)]
        for (consumer, grant), alike in itertools.groupby(receipts, _owner):
            members = [each.id for each in alike]
            arguments += (consumer, grant, len(members), *members)
        return await self._run(EXTEND, stream, group, arguments, as_flags)

    async def heartbeat(self, stream: str, group: str, consumers: Sequence[str], *, alive: float) -> None:
        await self._run(HEARTBEAT, stream, group, [to_ms(alive), *consumers], as_nothing)

    async def leave(self, stream: str, group: str, consumer: str) -> None:
        for _ in range(STEPS):  # no message is lost between two steps: the consumer exists until the last one
            if await self._run(LEAVE, stream, group, [consumer], as_flag):
                return

    async def dead_letters(self, stream: str, group: str, after: str, limit: int) -> list[Letter]:
        if after == _LAST_ID:  # no range can begin after it
            return []
        key = self._keys.group(stream, group).dead
        low = f"({_start(after)}" if after else "-"
        return await self._page(key, low, "+", limit, as_dead_letters, oversize_dead_letter)

    async def letter_ids(self, stream: str, group: str, after: str, limit: int) -> list[str]:
        if after == _LAST_ID:
            return []
        key = self._keys.group(stream, group).dead
        low = f"({_start(after)}" if after else "-"
        return await SIZES.run(self._executor, [key], (low, "+", limit, 0), as_ids, limit)

    def check_letter(self, letter: str) -> None:
        if not _has_form(letter, _WHOLE_ID):
            raise InvalidArgumentError(
                f"{letter!r} is not the id of a dead letter, which looks like '1700000000000-0'; use that of "
                "one in the list of dead letters"
            )

    async def take_dead_letters(self, stream: str, group: str, letters: Sequence[str], *, redrive: bool) -> list[bool]:
        for each in letters:
            self.check_letter(each)
        return await self._run(TAKE_DEAD_LETTERS, stream, group, [int(redrive), *letters], as_flags)

    # --- what exists ---------------------------------------------------------------------------------------------

    async def list_streams(self, prefix: str, cursor: str, limit: int) -> Page[str]:
        # First the streams that have a key of their own, but for partitions; then those that have partitions.
        keys = self._keys
        passes = [
            Pass(keys.streams_pattern(prefix), "stream", keys.stream_name),
            Pass(keys.metas_pattern(prefix), "hash", keys.meta_name),
        ]
        found = await scan(self._executor, "streams", passes, cursor, limit)
        partitioned = found.passed == 1
        asked = found.names if partitioned else [each for each in found.names if _PARTITION.fullmatch(each)]
        stored = dict(zip(asked, await self._stored_partitions(asked), strict=True))
        if partitioned:
            names = [each for each in asked if (stored[each] or 0) > 1]
        else:
            names = [each for each in found.names if stored.get(each) != 0]
        return Page(tuple(names), found.cursor)

    async def _stored_partitions(self, streams: Sequence[str]) -> list[int | None]:
        """Return the stored numbers of partitions; None where there is none, or another program stored something."""
        if not streams:
            return []
        commands = [("HGET", encoded(self._keys.meta(each)), "partitions") for each in streams]
        numbers: list[int | None] = []
        for reply in await self._executor.call_many(commands):
            error = mapped(reply, self._executor.where, sent=True) if isinstance(reply, Exception) else None
            if error is not None and type(error) is not BackendError:  # that is for a value of another type
                raise error
            try:
                numbers.append(None if error is not None else as_partitions(reply))
            except MISREAD as failure:
                raise misread(failure, self._executor.where) from failure
        return numbers

    async def list_groups(self, stream: str, after: str, limit: int) -> list[str]:
        names = await GROUPS.run(self._executor, [self._keys.stream(stream)], [], as_names, page=1)
        if names is None:
            raise self._too_many(f"groups of stream {stream!r}")
        return sorted(each for each in names if each > after)[:limit]

    async def list_consumers(self, stream: str, group: str, after: str, limit: int) -> list[ConsumerState]:
        states = await CONSUMERS.run(self._executor, self._keys.group(stream, group), [group], as_consumers, page=1)
        if states is None:
            raise self._too_many(f"consumers of group {group!r} of stream {stream!r}")
        return sorted((each for each in states if each.name > after), key=lambda each: each.name)[:limit]

    def _too_many(self, what: str) -> AilfError:
        return too_many(self._executor.where, f"{what}; they can't be listed")

    async def stream_info(self, stream: str) -> StreamInfo:
        key = self._keys.stream(stream)
        length, first, last, groups, count = await STREAM_INFO.run(self._executor, [key], [], as_stream_info)
        added = None if last is None else self.time_of(last)
        return StreamInfo(stream, length, first_id=first, last_id=last, added=added, groups=groups, entries_added=count)

    # --- waiting -------------------------------------------------------------------------------------------------

    def waiter(self, stream: str, group: str | None) -> "RedisWaiter":
        return RedisWaiter(self._executor, self._keys, stream, group)

    def server_of(self, stream: str) -> Hashable:
        return self._executor.server_of(self._keys.stream(stream))

    async def together(self, requests: Sequence[StreamRequest[T]]) -> list[T | Exception]:
        driver = RedisStreamDriver(PipelineExecutor(self._executor), self._keys)
        return await run_pipelined(self._executor, [each(driver) for each in requests])

    def streams_waiter(self, streams: Sequence[str], group: str | None) -> RedisStreamsWaiter | None:
        if self._keys.spread:  # no command may block on keys of several slots
            return None
        return RedisStreamsWaiter(self._executor, self._keys, streams, group)
