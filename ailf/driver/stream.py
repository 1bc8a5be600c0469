"""The driver of streams: add and read entries, and the transitions of consumer groups."""

import enum
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Coroutine, Hashable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import msgspec

from ailf.checks import check_text, check_time
from ailf.errors import BackendError
from ailf.values import Added, GroupInfo, MessageInfo, MessageState, Page, Position, Retention, StreamInfo

__all__ = [
    "Action",
    "Claim",
    "ConsumerState",
    "Draft",
    "Fetched",
    "Letter",
    "Outcome",
    "Receipt",
    "Record",
    "Settlement",
    "StreamDriver",
    "StreamRequest",
    "StreamsWaiter",
    "Swept",
    "Waiter",
    "Waiting",
]

T = TypeVar("T")

StreamRequest: TypeAlias = Callable[["StreamDriver"], Coroutine[Any, Any, T]]
"""A request for `StreamDriver.together`: it is called with the driver to use."""


class Action(enum.Enum):
    """How a delivery is settled."""

    ACK = "ack"
    """As done."""
    NACK = "nack"
    """As failed: deliver it again after a delay."""
    REJECT = "reject"
    """As a dead letter."""
    RELEASE = "release"
    """Give it back; this delivery doesn't count as an attempt."""


class Outcome(enum.Enum):
    """The result of a settlement."""

    LOST = 0
    """The lease had ended; nothing was changed."""
    DONE = 1
    DEAD = 2
    """The message is a dead letter now."""


class Draft(msgspec.Struct, frozen=True):
    """An entry to be added.

    Attributes:
        body: The encoded payload.
        headers: The producer's headers.
        key: The ordering key; its messages are delivered one after another (S3). "" for none.
        delay: Seconds of *now* until groups may deliver the entry (S7).
        at: The time from which groups may deliver it, in seconds since 1970 UTC; the later of both counts.
        max_deliveries: The entry's own ``max_deliveries``; None for the group's.
    """

    body: bytes
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    key: str = ""
    delay: float = 0.0
    at: float = 0.0
    max_deliveries: int | None = None


class Record(msgspec.Struct, frozen=True):
    """A stored entry.

    Attributes:
        id: Opaque text, strictly increasing per stream (S1).
        body: The encoded payload.
        headers: The producer's headers.
        foreign: Whether another program wrote the entry; then ``body`` is a JSON object of its fields.
        problem: The reason why the entry can't be decoded, as text, or ""; ``body`` is then what can be shown of it.
        key: The ordering key, or "" (S26).
    """

    id: str
    body: bytes
    headers: Mapping[str, str]
    foreign: bool = False
    problem: str = ""
    key: str = ""


class Receipt(msgspec.Struct, frozen=True):
    """The proof of one delivery: it identifies one grant of one entry and never another (S4).

    Attributes:
        id: The driver's name of the entry within the group.
        consumer: The identity of the consumer, unique per opened consumer.
        grant: A number that no other grant of this entry has.
    """

    id: str
    consumer: str
    grant: int


class Claim(msgspec.Struct, frozen=True):
    """An entry that was leased to a consumer.

    Attributes:
        record: The entry.
        receipt: The proof of this delivery, to settle it with.
        attempt: The number of the attempt, from 1; expiry and nack add one, release adds none (S5).
    """

    record: Record
    receipt: Receipt
    attempt: int


class Letter(msgspec.Struct, frozen=True):
    """A stored dead letter.

    Attributes:
        id: The id of the dead letter among those of its group.
        record: The entry, with the id that it has in the stream, even if it is no longer there. `StreamDriver.time_of`
            *must* accept that id (S26).
        reason: Why the group gave up on it: of its last settlement, or ``"max_deliveries"``.
        error: The last error, or "".
        attempts: The number of deliveries that count as attempts.
        died: When the message became a dead letter, in seconds since 1970 UTC on the backend's clock (S26).
    """

    id: str
    record: Record
    reason: str
    error: str
    attempts: int
    died: float


class Settlement(msgspec.Struct, frozen=True):
    """How to settle one delivery.

    Attributes:
        receipt: The delivery.
        action: How to settle it.
        delay: With NACK and RELEASE: seconds until the message may be delivered again.
        reason: With REJECT: the dead letter's reason.
        error: With NACK and REJECT: the error, kept for the dead letter.
    """

    receipt: Receipt
    action: Action
    delay: float = 0.0
    reason: str = ""
    error: str = ""


class Fetched(msgspec.Struct, frozen=True):
    """The result of a fetch.

    Attributes:
        claims: The entries that were leased to the consumer, in the order in which to handle them.
        dead: The ids of entries that became dead letters in this step, because they had been delivered too often.
        position: The position for `Waiter.wait`, which then misses nothing; None if another fetch may find more now.
        next_due: Seconds until a delayed or leased entry of this group is due, or None.
        reset: Whether the group had vanished and was created again (S9).
    """

    claims: Sequence[Claim]
    dead: Sequence[str] = ()
    position: Any = None
    next_due: float | None = None
    reset: bool = False


class Waiting(msgspec.Struct, frozen=True):
    """How the caller of a fetch goes on to wait for the next arrival.

    Attributes:
        waiter: The waiter of the group with which it waits.
        others: The number of further callers that wait with it. If the fetch leases more entries than that, no caller
            is left to wait, until some entry is settled.
        seconds: How long they wait, as far as is known.
    """

    waiter: "Waiter"
    others: int = 0
    seconds: float = float("inf")


class ConsumerState(msgspec.Struct, frozen=True):
    """A consumer of a group, as the backend knows it.

    >>> from ailf.runtime import ThreadRuntime, run
    >>> from ailf_memory import MemoryStore
    >>> from ailf_memory.driver import MemoryDriver
    >>> streams = MemoryDriver(MemoryStore(), ThreadRuntime()).stream()
    >>> run(streams.open_group("tasks", "workers", "earliest"))
    True
    >>> run(streams.heartbeat("tasks", "workers", ["worker-1"], alive=10.0))
    >>> for state in run(streams.list_consumers("tasks", "workers", "", 10)):
    ...     print(state.name, state.in_hand)
    worker-1 0

    Attributes:
        name: The identity of the consumer; bytes that aren't UTF-8 are lone surrogates, as `os.fsdecode` makes them.
        alive: Seconds until it counts as dead; 0 or less if it does now. None if it never gave a heartbeat.
        in_hand: The number of entries that are leased to it.
    """

    name: str
    alive: float | None
    in_hand: int


class Swept(msgspec.Struct, frozen=True):
    """The result of one step of `StreamDriver.trim`.

    Attributes:
        removed: The number of entries that it removed.
        unsettled: The number of these that a group had not settled.
        after: The position for the next step; "" if no more entries can go.
    """

    removed: int
    unsettled: int
    after: str = ""


class StreamDriver(ABC):
    """Streams and their consumer groups. Every method is one atomic step on *now*, the backend's clock.

    >>> import ailf
    >>> from ailf.driver import Action, Claim, Draft, Fetched, Letter, Outcome, Receipt, Record, Settlement, Swept
    >>> from ailf.runtime import ThreadRuntime, run
    >>> from ailf_memory import MemoryStore
    >>> from ailf_memory.driver import MemoryDriver
    >>> streams = MemoryDriver(MemoryStore(), ThreadRuntime()).stream()
    >>> ids = run(streams.add("tasks", [Draft(b'"a report"', key="ann")], retention=None))
    >>> run(streams.open_group("tasks", "workers", ailf.EARLIEST))
    True
    >>> fetched: Fetched = run(
    ...     streams.fetch("tasks", "workers", "w1", count=1, lease=30.0, alive=10.0, max_deliveries=5)
    ... )
    >>> claim: Claim = fetched.claims[0]
    >>> record: Record = claim.record
    >>> record.body, claim.attempt
    (b'"a report"', 1)
    >>> receipt: Receipt = claim.receipt
    >>> no = Settlement(receipt, Action.REJECT, reason="rejected", error="nobody wants it")
    >>> assert run(streams.settle("tasks", "workers", [no], max_deliveries=5)) == [Outcome.DEAD]
    >>> letter: Letter = run(streams.dead_letters("tasks", "workers", "", 10))[0]
    >>> letter.reason, letter.error
    ('rejected', 'nobody wants it')
    >>> assert run(streams.trim("tasks", ailf.Retention.settled())) == Swept(removed=1, unsettled=0)

    A position is an id, EARLIEST or LATEST. A driver *must* raise `InvalidArgumentError` for a text that isn't an id
    where an id is expected, with a message that shows the text and says what an id looks like.
    """

    # --- the stream ----------------------------------------------------------------------------------------------

    @abstractmethod
    async def declare(self, stream: str, partitions: int | None, *, void: bool = False) -> int | None:
        """Return the number of partitions that is stored for the stream; if none is, store ``partitions`` first (S21).

        A stream that has entries or groups and no stored number was used by a program that stores none. It counts as 1,
        an ordinary stream, and then 1 *must* be stored, even while the backend is out of memory. 0 stands for a stream
        that is a partition of another one; it *must* be stored for a stream that was used, too. `delete` removes the
        number.

        With None it *must* store nothing and make nothing. It returns None then if no number is stored and the stream
        doesn't exist. With ``void`` a stored 0 counts as no number, and is replaced.
        """

    @abstractmethod
    def add(self, stream: str, drafts: Sequence[Draft], *, retention: Retention | None) -> Awaitable[list[str]]:
        """Append entries in this order, all or none, and return their ids; they are readable on return (S1).

        An entry with a time *must not* be delivered by any group before that time (S7); `read` returns it at once. With
        ``retention`` it *must* first remove entries, as a step of `trim` does. If that step ends early, so that settled
        entries may be left, it *must* add the entries anyway (S8). The stream *may* then exceed ``max_len``: by
        100 entries or 1 %, or by as much as it did before, in entries or in bytes.

        Raises:
            StreamFullError: The stream has no room: it has ``max_len`` unsettled entries (S8). Nothing was added.
        """

    @abstractmethod
    async def add_once(
        self, stream: str, draft: Draft, *, dedup_id: str, token: str, window: float, retention: Retention | None
    ) -> Added:
        """Add an entry, unless one was added under ``dedup_id`` within its window; then return that one's id (S7).

        A dedup id *must* be remembered for ``window`` seconds, even if the entry is settled or trimmed, unless `cancel`
        removed the entry. A repetition with the same ``token`` *must* return the same result, so that it is safe after
        a lost reply, even after a `cancel`, and then it adds nothing.
        """

    @abstractmethod
    async def cancel(self, stream: str, entry_id: str) -> bool:
        """Remove an entry whose time has not come; return False and change nothing for any other entry.

        If `add_once` added the entry, its dedup id *must* be free after this step, so that a later call adds one (S7).
        """

    @abstractmethod
    async def trim(self, stream: str, retention: Retention, *, after: str = "") -> Swept:
        """Remove entries that all groups have settled, oldest first (S8), in steps of bounded work.

        Entries beyond ``max_len`` or older than ``max_age`` go, also behind unsettled ones. Without ``keep_settled``
        all entries before the first unsettled one go, and none while the stream has no group. With ``hard`` the oldest
        entries go, settled or not, and the unsettled ones *must* be counted. A removed entry that is leased *may* count
        as unsettled until its lease ends. A step *may* stop early; `Swept.after` is the position for the next one.

        Arguments:
            stream: The stream.
            retention: The rule that says which entries are kept.
            after: `Swept.after` of the previous step, or "" for the first.
        """

    @abstractmethod
    async def length(self, stream: str) -> int:
        """Return the number of entries; 0 if the stream is missing. It *must* be cheap, however long the stream is."""

    @abstractmethod
    async def read(self, stream: str, start: str, end: str, limit: int, *, after: bool = False) -> list[Record]:
        """Return at most ``limit`` entries from ``start`` to ``end`` inclusive, in order; change no group (S17).

        With ``after`` the entry ``start`` itself is excluded.
        """

    @abstractmethod
    async def last_id(self, stream: str) -> str:
        """Return the id of the last entry ever added, or an id before all; the next entry comes after it."""

    def locate(self, position: Position) -> str:
        """Return a position for the other methods: a time becomes the id before it."""
        if isinstance(position, str):
            return check_text("a position", position)
        return self.id_before(check_time("a position", position))

    @abstractmethod
    def id_before(self, timestamp: float) -> str:
        """Return an id after all entries that were added before a time, and before all others.

        Arguments:
            timestamp: Seconds since 1970 UTC on the backend's clock.
        """

    @abstractmethod
    def time_of(self, entry_id: str) -> float:
        """Return when an entry was added, in seconds since 1970 UTC on the backend's clock, from its id alone.

        `id_before` of this time *must* be before the entry, and that of a later millisecond *must not*.
        """

    @abstractmethod
    async def delete(self, stream: str) -> None:
        """Remove the stream, its groups and all of their state."""

    # --- its groups ----------------------------------------------------------------------------------------------

    @abstractmethod
    async def open_group(self, stream: str, group: str, start: str) -> bool:
        """Create the group at a position; return False and don't move it if it exists (S9)."""

    @abstractmethod
    async def delete_group(self, stream: str, group: str) -> None:
        """Remove the group and all of its state; its receipts become invalid."""

    @abstractmethod
    async def seek(self, stream: str, group: str, position: str) -> bool:
        """Move the group to a position; return False and create nothing if it doesn't exist (S9).

        Pending messages *must* be forgotten: their receipts become invalid, and entries after the position are
        delivered as new ones. Dead letters stay, and redriven messages are still delivered.
        """

    @abstractmethod
    async def pause(self, stream: str, group: str, *, paused: bool) -> bool:
        """Pause or resume the group; return False and create nothing if it doesn't exist (S9).

        While it is paused, `fetch` *must* lease no entries. Pending messages can be settled and extended.
        """

    @abstractmethod
    async def info(self, stream: str, group: str) -> GroupInfo:
        """Return the state of a group, changing nothing (S10).

        If the group or the stream is missing, `GroupInfo.exists` *must* be False, and neither is created.
        """

    async def inspect(self, stream: str, group: str, entry_id: str) -> MessageInfo | None:  # noqa: ARG002 - see below
        """Return what a group has made of an entry, in one bounded step; None if the group is missing (S28).

        It *must* change nothing. A message that was redriven counts as its entry; a driver *may* look at some of these
        only, and say UNKNOWN where it would say SETTLED. A driver without such a step says UNKNOWN, as this one does.

        Raises:
            InvalidArgumentError: This is not the id of an entry.
        """
        return MessageInfo(MessageState.UNKNOWN)

    @abstractmethod
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
        """Lease up to ``count`` entries to the consumer: those due again first, then new ones in id order (S2, S3).

        It *may* lease fewer if the entries are large; `Fetched.position` is None then.

        At any time at most one valid lease per entry and group *must* exist. An entry that was delivered
        ``max_deliveries`` times *must* become a dead letter in this step instead (S5). A missing group *must* be
        created again at EARLIEST and reported (S9). An entry that vanished from the stream *must not* be delivered
        again, and *must not* block others.

        With ordering keys (`Capability.ORDERING`) at most ``key_concurrency`` entries of one key *must* be leased, or
        wait for their retry, at any time in the group; the number of the last fetch counts. The next one of the key is
        leased only in the place of one that is settled; with 1 therefore after all earlier ones (S3). Keys take turns:
        when an entry is leased, the others of its key come behind all that are due (S20). A fetch that has its count
        *must* read on where keys compete, as far as one step may, so that a backlog of one key hides no other.

        The consumer counts as alive for ``alive`` seconds. The leases of consumers that no longer count as alive *must*
        end in this step. Such a consumer *must* be forgotten when it has no leases (S11, S12).

        With ``waiting`` the caller waits with `Fetched.position` next. A driver *may* ignore it; then every waiter of
        the group is woken by every arrival. If it wakes fewer, an arrival *must* still wake one that waits. A waiter
        that dies *may* delay that until another waiter's next fetch.
        """

    @abstractmethod
    async def settle(
        self, stream: str, group: str, settlements: Sequence[Settlement], *, max_deliveries: int
    ) -> list[Outcome]:
        """Settle deliveries; for each whose lease has ended return LOST, and nothing *must* change (S4).

        ACK: done. NACK: due after ``delay`` seconds, or a dead letter at once if this was its last delivery. REJECT: a
        dead letter. RELEASE: due after ``delay`` seconds, and this delivery doesn't count (S5).
        """

    @abstractmethod
    async def extend(self, stream: str, group: str, receipts: Sequence[Receipt], *, lease: float) -> list[bool]:
        """Let leases end ``lease`` seconds from now; return False for each that had ended, and change nothing (S4)."""

    @abstractmethod
    async def heartbeat(self, stream: str, group: str, consumers: Sequence[str], *, alive: float) -> None:
        """Count these consumers as alive for ``alive`` seconds (S12)."""

    @abstractmethod
    async def leave(self, stream: str, group: str, consumer: str) -> None:
        """Release all leases of the consumer and forget it (S6, S11).

        It *may* take several steps, but *must not* forget the consumer before the last: if one fails, no message is
        lost.
        """

    # --- dead letters --------------------------------------------------------------------------------------------

    @abstractmethod
    async def dead_letters(self, stream: str, group: str, after: str, limit: int) -> list[Letter]:
        """Return up to ``limit`` of the group's dead letters whose id is after ``after`` ("" for all), oldest first."""

    async def letter_ids(self, stream: str, group: str, after: str, limit: int) -> list[str]:
        """Return the ids of what `dead_letters` returns; a driver *may* find them without reading the letters.

        It *may* return fewer, if the letters are large, but *must* return one if there is one.
        """
        return [each.id for each in await self.dead_letters(stream, group, after, limit)]

    def check_letter(self, letter: str) -> None:  # noqa: B027 - a driver may take any text
        """Check that a text has the form of a dead letter's id; it *must not* make a request (S16).

        Raises:
            InvalidArgumentError: It hasn't; the message says what an id looks like.
        """

    @abstractmethod
    async def take_dead_letters(self, stream: str, group: str, letters: Sequence[str], *, redrive: bool) -> list[bool]:
        """Remove dead letters; with ``redrive`` deliver them to this group again as new ones, attempt 1 (S16).

        Return False for each dead letter that doesn't exist any more, so that each is redriven once. It *must* work for
        dead letters whose entry is no longer in the stream.
        """

    # --- what exists: only called with `Capability.LISTING` ------------------------------------------------------

    async def list_streams(self, prefix: str, cursor: str, limit: int) -> Page[str]:
        """Return at most ``limit`` names of streams that begin with ``prefix``, in one bounded step (N1, N2, N3).

        The work *must* be bounded by ``limit`` and a constant, however many streams there are: so a page *may* have few
        items or none before the end. `Page.cursor` is the driver's own text (`ailf.driver.listing` helps to make it),
        and "" only at the end. A stream that exists from the step with the cursor "" to the one that returns "" *must*
        be in one of the pages, and *may* be in several.

        A stream exists if it has had an entry or has a group. A stream that is a partition of another one *must not* be
        returned, and the partitioned stream *must*, as soon as its number of partitions is stored. Every character of
        the prefix stands for itself. A name that isn't UTF-8 comes with lone surrogates, as `os.fsdecode` makes them.

        Raises:
            InvalidArgumentError: ``cursor`` is not "" nor a cursor that this method returns.
        """
        raise NotImplementedError

    async def list_groups(self, stream: str, after: str, limit: int) -> list[str]:
        """Return the first ``limit`` names of groups that come after a name, in ascending order (N6).

        A driver that has to read all of them at once *must* refuse more than `ailf.driver.listing.MOST_LISTED`, by
        `ailf.driver.listing.too_many`.
        """
        raise NotImplementedError

    async def list_consumers(self, stream: str, group: str, after: str, limit: int) -> list[ConsumerState]:
        """Return the first ``limit`` consumers of a group whose names come after a name, in ascending order (N7).

        They are those that have given heartbeats and were not forgotten since, and those that hold entries. The list
        of a missing group is empty. For too many consumers the rule of `list_groups` applies.
        """
        raise NotImplementedError

    async def stream_info(self, stream: str) -> StreamInfo:
        """Return the state of a stream, as an ordinary one; change and create nothing (N6)."""
        raise NotImplementedError

    # --- waiting -------------------------------------------------------------------------------------------------

    @abstractmethod
    def waiter(self, stream: str, group: str | None) -> "Waiter":
        """Return a waiter for new entries of the stream and, with ``group``, for messages that come back to it."""

    def server_of(self, stream: str) -> Hashable:  # noqa: ARG002 - one server has every stream
        """Return what identifies the server of a stream: while one server doesn't reply, the core goes on with others.

        It *must not* wait, and *may* be wrong for a while after data have moved. None: there is only one, or the server
        isn't known yet.
        """
        return None

    async def together(self, requests: Sequence[StreamRequest[T]]) -> list[T | Exception]:
        """Make requests that don't depend on each other; return for each its result, or the error that it raised.

        Each is called with the driver to use, which *may* be another object than this one. They call the methods that
        make requests, and wait for nothing else. A driver that can send several requests in one round trip *should*;
        then all of them have the time of one request. This one makes one after another, and none after a
        `BackendError`, which is the result of those that are left, too.
        """
        results: list[T | Exception] = []
        for request in requests:
            try:
                results.append(await request(self))
            except BackendError as error:
                return results + [error] * (len(requests) - len(results))
            except Exception as error:  # noqa: BLE001 - it is that request's alone
                results.append(error)
        return results

    def streams_waiter(self, streams: Sequence[str], group: str | None) -> "StreamsWaiter | None":  # noqa: ARG002 - see below
        """Return a waiter for several streams at once, such as the partitions of one; it *should* use one connection.

        None if the driver has none: then the core waits with a `waiter` for each, at the same time (S25).
        """
        return None


class Waiter(ABC):
    """Waits for entries, and claims none: a cancelled or lost wait loses no message (S6).

    >>> from ailf.driver import Draft, Waiter, Waiting
    >>> from ailf.runtime import ThreadRuntime, run
    >>> from ailf_memory import MemoryStore
    >>> from ailf_memory.driver import MemoryDriver
    >>> streams = MemoryDriver(MemoryStore(), ThreadRuntime()).stream()
    >>> waiter = streams.waiter("tasks", "workers")
    >>> assert isinstance(waiter, Waiter)
    >>> fetched = run(
    ...     streams.fetch(
    ...         "tasks", "workers", "w1", count=1, lease=30.0, alive=10.0, max_deliveries=5, waiting=Waiting(waiter)
    ...     )
    ... )
    >>> ids = run(streams.add("tasks", [Draft(b'"a report"')], retention=None))
    >>> run(waiter.wait(fetched.position, 1.0))
    True
    >>> run(waiter.close())

    One caller at a time waits with it. The consumers of a group in one process share one.
    """

    @abstractmethod
    async def wait(self, position: Any, timeout: float) -> bool:
        """Return True when there may be entries after ``position``, False after ``timeout`` seconds (at most one).

        ``position`` comes from `Fetched`, or is EARLIEST or an id, such as one from `StreamDriver.last_id`. It *must*
        return at once if an entry came between the fetch and the wait, or if a message came back to the group in
        between: then the two are at most five seconds apart. It *may* return True without any entry.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """End the `wait` under way at once, or the next one if none is, from any thread (P10).

        The wait returns False. Later ones wait as before.
        """

    async def hand_over(self, position: Any) -> Any:
        """Note that nobody waits with it for now; return the position to wait with later.

        If the driver counts on this waiter to be woken by the group's next arrival, it *must* wake another one that
        waits instead.
        """
        return position

    @abstractmethod
    async def close(self) -> None:
        """Free its resources, which a later `wait` takes anew. It *must* be idempotent."""


class StreamsWaiter(ABC):
    """Waits for entries of several streams at once, and claims none. One caller at a time waits with it.

    >>> from ailf.driver import Draft, StreamsWaiter
    >>> from ailf.runtime import ThreadRuntime, run
    >>> from ailf_memory import MemoryStore
    >>> from ailf_memory.driver import MemoryDriver
    >>> streams = MemoryDriver(MemoryStore(), ThreadRuntime()).stream()
    >>> positions = [run(streams.last_id(name)) for name in ("a", "b")]
    >>> waiter = streams.streams_waiter(["a", "b"], None)
    >>> assert isinstance(waiter, StreamsWaiter)
    >>> ids = run(streams.add("b", [Draft(b'"a report"')], retention=None))
    >>> list(run(waiter.wait(positions, 1.0)))
    [1]
    >>> run(waiter.close())
    """

    @abstractmethod
    async def wait(self, positions: Sequence[Any], timeout: float) -> Collection[int]:
        """Return the streams that may have entries, by their index; none after ``timeout`` seconds (at most one).

        It does for each stream what `Waiter.wait` does, given the positions in the order of the streams: it *must*
        return at once if an entry came to any of them between its fetch and the wait.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """End the `wait` under way at once, or the next one if none is, from any thread; it returns no stream (P10)."""

    @abstractmethod
    async def close(self) -> None:
        """Free its resources, which a later `wait` takes anew. It *must* be idempotent."""
