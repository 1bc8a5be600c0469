"""What a backend implements for streams: adding, reading, and the transitions of consumer groups."""

import enum
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import msgspec

from ailf.checks import check_text, check_time
from ailf.values import Added, DeadLetter, GroupInfo, Position, Retention

__all__ = [
    "Action",
    "Claim",
    "Draft",
    "Fetched",
    "Outcome",
    "Receipt",
    "Record",
    "Settlement",
    "StreamDriver",
    "Swept",
    "Waiter",
]


class Action(enum.Enum):
    """How a delivery is settled."""

    ACK = "ack"
    NACK = "nack"
    REJECT = "reject"
    RELEASE = "release"


class Outcome(enum.Enum):
    """What became of a delivery that was settled."""

    LOST = 0
    """Its lease had ended; nothing was changed."""
    DONE = 1
    DEAD = 2
    """It is a dead letter now."""


class Draft(msgspec.Struct, frozen=True):
    """An entry to be added.

    Attributes:
        body: The payload.
        headers: What travels beside it.
        key: Messages of one ordering key are delivered one after another (S3); "" for none.
        delay: Seconds of *now* until groups may deliver it (S7).
        at: The same as a point in time, in seconds since 1970 UTC; the later of both counts.
        max_deliveries: Instead of the group's; None for that.
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
        body: The payload.
        headers: What travels beside it.
        foreign: True when another program wrote it; then ``body`` is a JSON object of its fields.
        problem: Why nobody can decode it, in words, or ""; ``body`` is then what can be shown of it.
    """

    id: str
    body: bytes
    headers: Mapping[str, str]
    foreign: bool = False
    problem: str = ""


class Receipt(msgspec.Struct, frozen=True):
    """What proves that a delivery is still mine: it names one grant of one entry and never another (S4).

    Attributes:
        id: The entry, as the driver names it within the group.
        consumer: Who got it; unique per opened consumer.
        grant: A number that no other grant of this entry has.
    """

    id: str
    consumer: str
    grant: int


class Claim(msgspec.Struct, frozen=True):
    """An entry that was leased to a consumer.

    Attributes:
        record: The entry.
        receipt: What settles it.
        attempt: 1 for the first; expiry and nack add one, release adds none (S5).
    """

    record: Record
    receipt: Receipt
    attempt: int


class Settlement(msgspec.Struct, frozen=True):
    """What to do with one delivery.

    Attributes:
        receipt: The delivery.
        action: What to do.
        delay: With NACK and RELEASE: seconds until it may be delivered again.
        reason: With REJECT: the dead letter's reason.
        error: With NACK and REJECT: what happened, kept for the dead letter.
    """

    receipt: Receipt
    action: Action
    delay: float = 0.0
    reason: str = ""
    error: str = ""


class Fetched(msgspec.Struct, frozen=True):
    """What a fetch found.

    Attributes:
        claims: The entries leased to the consumer, in the order to be handled.
        dead: Ids of the entries that became dead letters in this step, because they had been delivered too often.
        position: What `Waiter.wait` needs in order to miss nothing; None where there may be more at once.
        next_due: Seconds until a delayed or leased entry of this group comes due, or None.
        reset: True when the group had vanished and was made again (S9).
    """

    claims: Sequence[Claim]
    dead: Sequence[str] = ()
    position: Any = None
    next_due: float | None = None
    reset: bool = False


class Swept(msgspec.Struct, frozen=True):
    """What one step of `StreamDriver.trim` did.

    Attributes:
        removed: How many entries it removed.
        unsettled: How many of these some group had not settled.
        after: Where the next step goes on; "" where nothing more can go.
    """

    removed: int
    unsettled: int
    after: str = ""


class StreamDriver(ABC):
    """Streams and their consumer groups. Every method is one atomic step on *now*, the backend's clock.

    A position is an id, EARLIEST or LATEST. Where an id is asked for and the text is none, a driver *must* raise
    `InvalidArgumentError`.
    """

    # --- the stream ----------------------------------------------------------------------------------------------

    @abstractmethod
    def add(self, stream: str, drafts: Sequence[Draft], *, retention: Retention | None) -> Awaitable[list[str]]:
        """Append entries in this order, all of them or none, and return their ids; readable on return (S1).

        An entry with a time *must not* be delivered by any group before it (S7), and is seen by `read` at once. With
        ``retention`` it *must* first remove what may go, as a step of `trim` does. Where that step ends early, so that
        settled entries may be left, it *must* add all the same (S8). The stream *may* then exceed ``max_len``: by 100
        entries or a hundredth, or by what it was longer before.

        Raises:
            StreamFullError: There is no room: the stream has ``max_len`` entries that are not settled (S8). Nothing was
                added.
        """

    @abstractmethod
    async def add_once(
        self, stream: str, draft: Draft, *, dedup_id: str, token: str, window: float, retention: Retention | None
    ) -> Added:
        """Add, unless an entry was added under this id within its window; then return that one's id (S7).

        It *must* be known for its window, settled and trimmed or not, unless `cancel` removed it. A repetition with the
        same ``token`` *must* give the same answer, so that it is safe after a lost one; also after a `cancel`, where it
        adds nothing.
        """

    @abstractmethod
    async def cancel(self, stream: str, entry_id: str) -> bool:
        """Remove an entry whose time has not come; return False, and change nothing, for any other.

        Where `add_once` added it, it *must* forget the dedup id in the same step, so that another call adds again (S7).
        """

    @abstractmethod
    async def trim(self, stream: str, retention: Retention, *, after: str = "") -> Swept:
        """Remove entries that all groups have settled, oldest first (S8), in steps of bounded work.

        Entries go that are beyond ``max_len`` or older than ``max_age``, also behind one that is not settled. Without
        ``keep_settled`` all before the first that is not settled go, and none while the stream has no group. With
        ``hard`` the oldest go, settled or not, and it *must* count those that were not. A step *may* stop early, and
        says in `Swept.after` where the next one goes on.

        Arguments:
            stream: The stream.
            retention: What is kept.
            after: What the step before returned, or "" for the first.
        """

    @abstractmethod
    async def length(self, stream: str) -> int:
        """Return how many entries the stream has; 0 where it is missing. It *must* be cheap, whatever the length."""

    @abstractmethod
    async def read(self, stream: str, start: str, end: str, limit: int, *, after: bool = False) -> list[Record]:
        """Return the entries from ``start`` to ``end`` inclusive, in order, at most ``limit``; touch no group (S17).

        With ``after`` the entry ``start`` itself is left out.
        """

    @abstractmethod
    async def last_id(self, stream: str) -> str:
        """Return the id after which the next entry will be."""

    def locate(self, position: Position) -> str:
        """Return a position as the other methods take it: a time as the id before it."""
        if isinstance(position, str):
            return check_text("a position", position)
        return self.id_before(check_time("a position", position))

    @abstractmethod
    def id_before(self, timestamp: float) -> str:
        """Return an id after all entries added before a time, and before all added at or after it.

        Arguments:
            timestamp: Seconds since 1970 UTC on the backend's clock.
        """

    @abstractmethod
    async def delete(self, stream: str) -> None:
        """Remove the stream, its groups and everything kept for them."""

    # --- its groups ----------------------------------------------------------------------------------------------

    @abstractmethod
    async def open_group(self, stream: str, group: str, start: str) -> bool:
        """Make the group, after a position; return False, and move nothing, where it exists (S9)."""

    @abstractmethod
    async def delete_group(self, stream: str, group: str) -> None:
        """Remove the group and everything kept for it; receipts of it prove nothing any more."""

    @abstractmethod
    async def seek(self, stream: str, group: str, position: str) -> bool:
        """Let the group go on after a position; return False, and make nothing, where it doesn't exist (S9).

        What is out *must* be forgotten, so that its receipts prove nothing any more, and entries after the position
        are delivered as new ones. Dead letters stay; what was redriven of them is still to be delivered.
        """

    @abstractmethod
    async def pause(self, stream: str, group: str, *, paused: bool) -> bool:
        """Pause or resume the group; return False, and make nothing, where it doesn't exist (S9).

        While it is paused, `fetch` *must* lease nothing to anybody; what is out can be settled and extended.
        """

    @abstractmethod
    async def info(self, stream: str, group: str) -> GroupInfo:
        """Return the state of a group, changing nothing (S10).

        Where the group or the stream is missing it *must* say so in `GroupInfo.exists`, and make neither.
        """

    @abstractmethod
    async def fetch(
        self, stream: str, group: str, consumer: str, *, count: int, lease: float, alive: float, max_deliveries: int
    ) -> Fetched:
        """Lease up to ``count`` entries to the consumer: those due again first, then new ones in id order (S2, S3).

        It *may* lease fewer where they are large; `Fetched.position` is None then.

        At any instant at most one valid lease per entry and group *must* exist. An entry delivered ``max_deliveries``
        times *must* become a dead letter in this same step instead (S5). A group that is missing *must* be made again
        at EARLIEST and reported (S9). An entry that vanished from the stream *must not* come back nor stop the others.
        An entry with an ordering key *must not* be leased before those before it are settled
        (`Capability.ORDERING`, S3).

        The consumer counts as alive for ``alive`` seconds. The leases of one that no longer does *must* end in this
        step, and it *must* be forgotten when it has none (S11, S12).
        """

    @abstractmethod
    async def settle(
        self, stream: str, group: str, settlements: Sequence[Settlement], *, max_deliveries: int
    ) -> list[Outcome]:
        """Settle deliveries; for each, LOST where the receipt's lease has ended, and then nothing *must* change (S4).

        ACK: done. NACK: available after ``delay``, or a dead letter at once when this was its last delivery. REJECT: a
        dead letter. RELEASE: available after ``delay``, and this delivery doesn't count (S5).
        """

    @abstractmethod
    async def extend(self, stream: str, group: str, receipts: Sequence[Receipt], *, lease: float) -> list[bool]:
        """Let leases end ``lease`` seconds from now; for each, False where it had ended, and nothing changed (S4)."""

    @abstractmethod
    async def heartbeat(self, stream: str, group: str, consumers: Sequence[str], *, alive: float) -> None:
        """Count these consumers as alive for so many seconds (S12)."""

    @abstractmethod
    async def leave(self, stream: str, group: str, consumer: str) -> None:
        """Release everything the consumer holds and forget it (S6, S11).

        It *may* take several steps, but *must not* forget it before the last: nothing is dropped where one fails.
        """

    # --- what a group gave up on ---------------------------------------------------------------------------------

    @abstractmethod
    async def dead_letters(self, stream: str, group: str, after: str, limit: int) -> list[DeadLetter]:
        """Return the group's dead letters whose own id is after this one ("" for the first), oldest first."""

    async def letter_ids(self, stream: str, group: str, after: str, limit: int) -> list[str]:
        """Return the ids of what `dead_letters` returns; a driver *may* tell them without reading the letters."""
        return [each.id for each in await self.dead_letters(stream, group, after, limit)]

    @abstractmethod
    async def take_dead_letters(self, stream: str, group: str, letters: Sequence[str], *, redrive: bool) -> list[bool]:
        """Remove dead letters; with ``redrive`` deliver them to this group again as new ones, attempt 1 (S16).

        For each, return False where it was not there any more, so that each is redriven once. It *must* work for
        letters whose entry is no longer in the stream.
        """

    @abstractmethod
    def waiter(self, stream: str, group: str | None) -> "Waiter":
        """Return what waits for new entries of the stream and for what comes back to the group."""


class Waiter(ABC):
    """Waits, and claims nothing: a cancelled or lost wait loses no message (S6)."""

    @abstractmethod
    async def wait(self, position: Any, timeout: float) -> bool:
        """Return True when there may be something after ``position``, False after so many seconds (at most one).

        ``position`` comes from `Fetched`, or is an id from `StreamDriver.last_id` or `StreamDriver.read`. It *must*
        return at once when something came between the fetch and the wait. It *may* return early for nothing.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """Make a `wait` under way, and every later one, return at once, from any thread (P10)."""

    @abstractmethod
    async def close(self) -> None:
        """Give back what it holds. It *must* be idempotent."""
