"""A group's calls of the driver: lease, settle, extend, control, dead letters; and the options of a group."""

import functools
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import attrs

from ailf.checks import check_count, check_kind, check_name, check_text, check_time, valid_count, valid_seconds
from ailf.codecs import Payloads
from ailf.driver import (
    Action,
    Capability,
    ConsumerState,
    Fetched,
    Letter,
    Outcome,
    Receipt,
    Settlement,
    StreamDriver,
    Waiting,
)
from ailf.driver.listing import join_cursor, split_cursor
from ailf.engine import Engine
from ailf.errors import DecodeError, InvalidArgumentError, NotFoundError, OutcomeUnknownError
from ailf.instruments import Destination, MessageDied
from ailf.listing import ReadPage
from ailf.logs import About, Fields, Log
from ailf.runtime.batching import Batcher, batcher
from ailf.stream.consumer_name import made_on
from ailf.stream.declaration import Declaration
from ailf.stream.lease import ALIVE
from ailf.stream.naming import naming
from ailf.stream.partitions import PartitionedDriver, Partitions
from ailf.user_errors import interrupts
from ailf.values import (
    EARLIEST,
    Backoff,
    ConsumerInfo,
    DeadLetter,
    DeadLettered,
    GroupEvent,
    GroupInfo,
    GroupReset,
    LeaseLost,
    MessageInfo,
    Page,
    Position,
    Retention,
)

__all__ = ["SETTLED_AT_ONCE", "TAKEOVER", "GroupFlow", "GroupOptions", "Stoppable", "consumer_info"]

log = Log("ailf.stream")

SETTLED_AT_ONCE = 100
"""The most deliveries that one request settles."""

TAKEOVER = 10.0
"""The default of `GroupOptions.takeover`."""

PAGE = 100
"""The most dead letters that one request handles."""

MOST_OF_A_KEY = 100
"""The largest `key_concurrency`: a backend looks at that many messages of a key at each delivery."""


class Stoppable(Protocol):
    """A worker of the group."""

    def stop(self) -> None:
        """Drain and end, from any thread."""


def _valid_position(value: object, field: "attrs.Attribute[Any]", position: object) -> None:  # noqa: ARG001 - attrs' form
    if isinstance(position, str):
        check_text(field.name, position)
    else:
        check_time(field.name, position)


def _valid_backoff(value: object, field: "attrs.Attribute[Any]", backoff: object) -> None:  # noqa: ARG001 - as above
    check_kind(field.name, backoff, Backoff)


def _valid_key_concurrency(value: object, field: "attrs.Attribute[Any]", count: int) -> None:  # noqa: ARG001 - as above
    if check_count(field.name, count) > MOST_OF_A_KEY:
        raise InvalidArgumentError(f"{field.name} must be at most {MOST_OF_A_KEY}, not {count}")


@attrs.frozen
class GroupOptions:
    """How a group treats its messages; see `Stream.group`."""

    start: Position = attrs.field(default=EARLIEST, validator=_valid_position)
    lease: float = attrs.field(default=30.0, validator=valid_seconds)
    takeover: float = attrs.field(default=TAKEOVER, validator=valid_seconds)
    max_deliveries: int = attrs.field(default=5, validator=valid_count)
    backoff: Backoff = attrs.field(factory=Backoff, validator=_valid_backoff)
    max_processing: float = attrs.field(default=86_400.0, validator=valid_seconds)
    on_event: Callable[[GroupEvent], Any] | None = None
    key_concurrency: int = attrs.field(default=1, validator=_valid_key_concurrency)

    @property
    def fetch_interval(self) -> float:
        """Seconds after which an idle consumer fetches, to find leases that ended and consumers that died."""
        return min(self.lease, self.takeover) / 4


class GroupFlow:
    """The shared implementation of `Group` and `AsyncGroup`.

    Attributes:
        retention: The retention that its stream object was given, or None.
        declaration: Whether the stream has the number of partitions that its stream object was given.
        partitions: The partitions of a partitioned stream; None for an ordinary one.
        source: The stream, as instruments are told.
        settling: Settles deliveries; on asyncio those of one pass of the event loop go in one request, unless a request
            is a step in the event loop itself.
        workers: The workers of this object that run in this process.
    """

    def __init__(
        self,
        engine: Engine,
        driver: StreamDriver,
        payloads: Payloads,
        stream: str,
        name: str,
        options: GroupOptions,
        retention: Retention | None,
        declaration: Declaration,
    ) -> None:
        self.engine = engine
        self.driver = driver
        self.payloads = payloads
        self.stream = stream
        self.name = check_name("group", name)
        self.options = options
        self.retention = retention
        self.declaration = declaration
        self.partitions: Partitions | None = driver.partitions if isinstance(driver, PartitionedDriver) else None
        self.source = Destination(engine.driver.url, "stream", stream)
        self.workers: set[Stoppable] = set()
        self._fetching = f"fetch from {self}"
        batched = engine.runtime.flavour == "asyncio" and not engine.in_loop
        self.settling: Batcher[Settlement, Outcome] = batcher(
            self.settle_many, SETTLED_AT_ONCE, batched=batched, check_loop=engine.check_open
        )
        if options.on_event is not None:
            engine.runtime.check_callable("on_event", options.on_event)

    def stop(self) -> None:
        """Drain and end every `process` under way."""
        for worker in tuple(self.workers):
            worker.stop()

    def __str__(self) -> str:
        return f"group {self.name!r} of stream {self.stream!r}"

    def log_fields(self) -> Fields:
        """Return the fields of a record of the log that is about it."""
        return {"backend": self.engine.driver.url, "stream": self.stream, "group": self.name}

    def about_entry(self, entry_id: str) -> About:
        """Return an entry as the subject of a record of the log."""
        return About(f"{self}: entry {entry_id}", {**self.log_fields(), "entry_id": entry_id})

    async def _call(self, what: str, request: Callable[..., Any], *args: Any, again: bool, **options: Any) -> Any:
        def description(*_: Any) -> str:
            return f"{what} {self}"

        if not self.declaration.made:
            await self.declaration.check(options.get("until"))
        try:
            return await self.engine.call(description, request, self.stream, self.name, *args, again=again, **options)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{description()}: {error}") from error

    # --- control -------------------------------------------------------------------------------------------------

    async def open(self, until: float | None = None) -> bool:
        """Make the group; return False if it exists."""
        if not self.declaration.made:
            await self.declaration.make(until)
        start = self.driver.locate(self.options.start)
        made: bool = await self._call("open", self.driver.open_group, start, again=True, until=until)
        return made

    async def delete(self) -> None:
        """Remove the group."""
        await self._call("delete", self.driver.delete_group, again=True)

    async def seek(self, position: Position) -> None:
        """Move the group. It isn't repeated: a repetition would forget what was fetched in between."""
        if not await self._call("seek in", self.driver.seek, self.driver.locate(position), again=False):
            raise self._missing("seek in")

    async def pause(self, *, paused: bool) -> None:
        """Let `fetch` lease nothing to any consumer, or lease again."""
        what = "pause" if paused else "resume"
        if not await self._call(what, self.driver.pause, again=True, paused=paused):
            raise self._missing(what)

    def _missing(self, what: str) -> NotFoundError:
        return NotFoundError(f"cannot {what} {self}: the group doesn't exist; make it with group.open()")

    async def info(self) -> GroupInfo:
        """Return the state of the group."""
        info: GroupInfo = await self._call("inspect", self.driver.info, again=True)
        return info

    async def inspect(self, entry_id: str) -> MessageInfo:
        """Return what the group has made of an entry."""
        check_text("the id of the message", entry_id)
        info: MessageInfo | None = await self._call("inspect a message of", self.driver.inspect, entry_id, again=True)
        if info is None:
            raise self._missing("inspect a message of")
        return info

    def listing_of_consumers(self) -> tuple[str, ReadPage[ConsumerInfo]]:
        """Return what a listing of the consumers needs: its name, and the function that reads a page."""
        self.engine.require(Capability.LISTING, "listing")
        return f"the consumers of {self}", self._consumers

    async def _consumers(self, cursor: str, limit: int) -> Page[ConsumerInfo]:
        (after,) = split_cursor("consumers", cursor, 1) if cursor else ("",)
        request = self.driver.list_consumers
        states: list[ConsumerState] = await self._call("list the consumers of", request, after, limit, again=True)
        return Page(
            tuple(consumer_info(each, self.options.takeover) for each in states),
            join_cursor("consumers", states[-1].name) if len(states) == limit else "",
        )

    # --- deliveries ----------------------------------------------------------------------------------------------

    def fetch(self, consumer: str, count: int, waiting: Waiting | None = None) -> Coroutine[Any, Any, Fetched]:
        """Fetch. A repetition does no harm: entries that a lost reply had leased come back when their leases end."""
        options = self.options
        return self.engine.call(
            self._fetching, self.driver.fetch, self.stream, self.name, consumer, again=True, until=0.0,  # they repeat
            count=count, lease=options.lease, alive=options.takeover * ALIVE, max_deliveries=options.max_deliveries,
            waiting=waiting, key_concurrency=options.key_concurrency,
        )  # fmt: skip

    def failure(self) -> Exception | None:
        """Return the error of a part of the group that fetches leave out at present; None if there is none."""
        return None

    async def heartbeat(self, consumers: Sequence[str], takeover: float) -> None:
        """Count these consumers, which hold no messages, as alive."""
        await self._call(
            "give heartbeats in", self.driver.heartbeat, consumers, again=True, until=0.0, alive=takeover * ALIVE
        )

    async def announce(self, fetched: Fetched) -> None:
        """Log and emit the events of a fetch."""
        for dead in fetched.dead:
            log.error(self.about_entry(dead), "became a dead letter: it has had its last delivery")
            await self._report_dead(dead, "max_deliveries")
        if fetched.reset:
            log.warning(self, "it had vanished from the backend and was made again at EARLIEST")
            await self._emit(GroupReset(self.stream, self.name))
            await self.declaration.make_again()

    async def settle_many(self, settlements: Sequence[Settlement]) -> Sequence[Outcome | Exception]:
        """Settle deliveries, `SETTLED_AT_ONCE` at most; return for each the outcome, or the error if it is unknown.

        After a lost reply the request is repeated once. A lease that still holds is then settled for certain. One that
        doesn't was either settled by the first request or had ended, and it can't be known which.
        """
        engine, most = self.engine, self.options.max_deliveries
        until = engine.runtime.now() + engine.retry_for
        request = (self._describe_settling, self.driver.settle, self.stream, self.name, settlements)
        try:
            return await engine.call(*request, again=False, max_deliveries=most)
        except OutcomeUnknownError as unknown:
            second = await engine.call(*request, again=True, until=until, max_deliveries=most)
            return [unknown if outcome is Outcome.LOST else outcome for outcome in second]

    def _describe_settling(self, _: str, __: str, settlements: Sequence[Settlement]) -> str:
        return f"settle {len(settlements)} message(s) of {self}"

    async def report(self, entry_id: str, settlement: Settlement, outcome: Outcome) -> None:
        """Report a dead letter if a settlement made one."""
        if outcome is Outcome.DEAD:
            reason = settlement.reason if settlement.action is Action.REJECT else "max_deliveries"
            await self._report_dead(entry_id, reason)

    async def _report_dead(self, entry_id: str, reason: str) -> None:
        """Report a dead letter to instruments and to `on_event`."""
        if self.engine.instruments.message_died:
            self.engine.instruments.emit(MessageDied(self.source, self.name, entry_id, reason))
        await self._emit(DeadLettered(self.stream, self.name, entry_id, reason))

    async def report_lost(self, entry_id: str) -> None:
        """Emit `LeaseLost`: a delivery turned out to be no longer this consumer's."""
        await self._emit(LeaseLost(self.stream, self.name, entry_id))

    async def extend(self, receipt: Receipt, lease: float) -> bool:
        """Let a lease end `lease` seconds from now; return whether it still held."""
        held: list[bool] = await self._call("extend a lease of", self.driver.extend, [receipt], again=True, lease=lease)
        return held[0]

    async def _emit(self, event: GroupEvent) -> None:
        """Call the user's `on_event` with an event."""
        if self.options.on_event is None:
            return
        _, failure = await self.engine.runtime.call_user_code(self.options.on_event, event)
        if failure is not None:
            if interrupts(failure):
                raise failure
            log.failure(logging.ERROR, self, "on_event failed", error=failure)

    # --- dead letters --------------------------------------------------------------------------------------------

    async def dead_letters(self, after: str, limit: int) -> list[DeadLetter[Any]]:
        """Return up to `limit` dead letters, read in pages."""
        check_count("limit", limit)
        if after != "":
            self._check_letter("list the dead letters of", check_text("after", after))
        letters: list[Letter] = []
        while len(letters) < limit:
            count = min(PAGE, limit - len(letters))
            page = await self._call("list the dead letters of", self.driver.dead_letters, after, count, again=True)
            letters += page
            if len(page) < count:
                break
            after = page[-1].id
        return [self._dead_letter(letter) for letter in letters]

    def _dead_letter(self, letter: Letter) -> DeadLetter[Any]:
        """Return the public form of a dead letter."""
        record = letter.record
        return DeadLetter(
            id=letter.id, stream=self.stream, group=self.name, origin=record.id, key=record.key,
            added=self.driver.time_of(record.id), died=letter.died, body=record.body, headers=dict(record.headers),
            reason=letter.reason, error=letter.error, attempts=letter.attempts,
            decode=functools.partial(_decoded, self.payloads, letter),
        )  # fmt: skip

    def _check_letter(self, what: str, letter: str) -> None:
        """Check the form of a dead letter's id; `what` is the operation."""
        with naming(f"{what} {self}"):
            self.driver.check_letter(letter)

    async def take_dead_letters(self, letters: Sequence[str], *, redrive: bool) -> int:
        """Redrive or purge these dead letters; return how many were there."""
        what = "redrive" if redrive else "purge"
        if not letters:
            raise InvalidArgumentError(f"{what} dead letters of {self}: no id was given; {what}_all takes them all")
        for letter in letters:
            self._check_letter(f"{what} dead letters of", check_text("the id of a dead letter", letter))
        taken = 0
        for start in range(0, len(letters), PAGE):
            page: list[bool] = await self._call(
                f"{what} {len(letters)} dead letter(s) of",
                self.driver.take_dead_letters,
                letters[start : start + PAGE],
                again=True,
                redrive=redrive,
            )
            taken += sum(page)
        return taken

    async def take_all_dead_letters(self, *, redrive: bool) -> int:
        """Redrive or purge the dead letters that there are now; return how many."""
        ids: list[str] = []
        what = f"{'redrive' if redrive else 'purge'} the dead letters of"
        while page := await self._call(what, self.driver.letter_ids, ids[-1] if ids else "", PAGE, again=True):
            ids += page
        return await self.take_dead_letters(ids, redrive=redrive) if ids else 0


def consumer_info(state: ConsumerState, takeover: float) -> ConsumerInfo:
    """Return what users see of a consumer of a group with this ``takeover``."""
    alive = takeover * ALIVE
    host, pid = made_on(state.name)
    seen = None if state.alive is None or state.alive > alive else alive - state.alive
    return ConsumerInfo(state.name, pid, host, seen, state.in_hand, alive=state.alive is not None and state.alive > 0)


def _decoded(payloads: Payloads, letter: Letter) -> Any:
    """Return the payload of a dead letter."""
    record = letter.record
    try:
        data, _ = payloads.unpack(record.body, record.headers, foreign=record.foreign, problem=record.problem)
    except DecodeError as error:
        raise DecodeError(f"dead letter {letter.id}: {error}") from error
    return data
