"""What a backend implements: a few atomic transitions, each one round trip, and nothing else.

A driver never retries, never calls user code, and never waits longer than the ``timeout`` it is given (at most one
second) or than the deadline of one request. Everything a user sees is written once, above it. It is bound to a
`Runtime` when it is made: its ``async def`` methods suspend only on asyncio.

Clauses say *must* and *may*; the ids in brackets are those of the contract, which ``contract_tests`` checks.

Errors: whatever a client library raises *must* be mapped to the tree of `ailf.errors`, with the original as
``__cause__``. A `ConnectionLostError` or `BackendTimeoutError` *must* have ``maybe_applied=True`` when the request was
sent; after `BackendDriver.close` every call *must* raise `ClosedError`.
"""

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import attrs

from ailf.runtime import Runtime
from ailf.values import DeadLetter

__all__ = [
    "Action",
    "BackendDriver",
    "Capability",
    "Claim",
    "Confirmed",
    "Fetched",
    "Filter",
    "Frame",
    "Listener",
    "PubSubDriver",
    "Receipt",
    "Record",
    "Refused",
    "Settlement",
    "StreamDriver",
    "Waiter",
]

T = TypeVar("T")


class Capability(enum.Enum):
    """What a driver can do. What it doesn't declare raises `UnsupportedError` when the object is made (B2)."""

    PUBSUB = "pubsub"
    PATTERNS = "patterns"
    STREAM = "stream"
    PROCESSES = "processes"
    """Several processes that open the same URL see the same things."""


class BackendDriver(ABC):
    """An opened backend: it makes the drivers of the interfaces.

    Making one *must not* touch the network; the first call does. One driver *must* be usable from many threads (thread
    runtime) or tasks (asyncio) at once, and after a fork the child's use *must* open connections of its own (B4).

    Attributes:
        capabilities: What this driver can do.
        runtime: The runtime it is bound to.
        max_payload: The largest body in bytes that core sends or accepts (B5).
        url: What it was opened with, credentials hidden, for messages.
    """

    capabilities: ClassVar[frozenset[Capability]]
    runtime: Runtime
    max_payload: int
    url: str

    @abstractmethod
    async def ping(self) -> None:
        """Return when the backend answers and is fit for use.

        Raises:
            ConnectionLostError: It can't be reached.
            PermissionDeniedError: It refuses the credentials.
            UnsupportedError: It is too old (B1).
        """

    @abstractmethod
    async def close(self) -> None:
        """Give back every connection; calls under way *must* end with `ClosedError` (B3). It *must* be idempotent."""

    def interrupt(self) -> None:  # noqa: B027 - a driver whose calls never block has nothing to do
        """Make calls that block in other threads end with `ClosedError` (B3). It *may* be called from any thread."""

    @abstractmethod
    def twin(self, runtime: Runtime) -> "BackendDriver":
        """Return another driver on the same place, bound to another runtime.

        Leases are renewed by a thread, so one that declares `Capability.STREAM` *must* support the thread runtime.

        Raises:
            UnsupportedError: The client library has no such flavour.
        """

    def pubsub(self) -> "PubSubDriver":
        """Return the driver for pub/sub; declared by `Capability.PUBSUB`."""
        raise NotImplementedError

    def stream(self) -> "StreamDriver":
        """Return the driver for streams; declared by `Capability.STREAM`."""
        raise NotImplementedError

    def unwrap(self, kind: type[T]) -> T | None:  # noqa: ARG002 - the default has nothing underneath
        """Return the client underneath, if it is of this kind."""
        return None


# --- pub/sub -----------------------------------------------------------------------------------------------------


@attrs.frozen
class Filter:
    """What a listener asks for: a channel's name, or a pattern."""

    text: str
    is_pattern: bool = False


@attrs.frozen
class Frame:
    """A body that arrived on a channel because of this filter; one that matches several arrives once for each."""

    filter: Filter
    channel: str
    body: bytes


@attrs.frozen
class Confirmed:
    """From now on everything that this filter matches arrives."""

    filter: Filter


@attrs.frozen
class Refused:
    """The backend refuses this filter."""

    filter: Filter
    error: Exception


class PubSubDriver(ABC):
    """Broadcast: at most once, no replay."""

    @abstractmethod
    async def publish(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Send bodies to channels, in this order, in one round trip.

        Calls awaited one after another *must* arrive in that order at every listener (P1). It *must not* wait for any
        listener (P4).
        """

    @abstractmethod
    async def listen(self) -> "Listener":
        """Return a listener with a connection of its own."""


class Listener(ABC):
    """One connection that receives; any number of filters."""

    @abstractmethod
    async def change(self, add: Sequence[Filter], drop: Sequence[Filter]) -> None:
        """Ask for filters and give up others. Answers to ``add`` come through `receive`.

        It *may* be called while another thread or task is in `receive`.
        """

    @abstractmethod
    async def receive(self, timeout: float) -> Sequence[Frame | Confirmed | Refused]:
        """Return what arrived, in order; empty after so many seconds without anything.

        What is published after a filter's `Confirmed` *must* be returned, or the connection reported as lost (P2).

        Raises:
            ConnectionLostError: The connection is gone or silent, so messages may have been missed (P5).
        """

    @abstractmethod
    def interrupt(self) -> None:
        """Make a `receive` under way end at once, from any thread; the listener is not used after that (P10)."""

    @abstractmethod
    async def close(self) -> None:
        """Give back the connection. It *must* be idempotent."""


# --- streams -----------------------------------------------------------------------------------------------------


class Action(enum.Enum):
    """How a delivery is settled."""

    ACK = "ack"
    NACK = "nack"
    REJECT = "reject"
    RELEASE = "release"


@attrs.frozen
class Record:
    """A stored entry.

    Attributes:
        id: Opaque text, strictly increasing per stream (S1).
        body: The payload.
        headers: What travels beside it.
        foreign: True when another program wrote it; then ``body`` is a JSON object of its fields.
    """

    id: str
    body: bytes
    headers: Mapping[str, str]
    foreign: bool = False


@attrs.frozen
class Receipt:
    """What proves that a delivery is still mine: it names one grant of one entry and never another (S4).

    Attributes:
        id: The entry.
        consumer: Who got it; unique per opened consumer.
        grant: How often the entry had been delivered then, this time included.
    """

    id: str
    consumer: str
    grant: int


@attrs.frozen
class Claim:
    """An entry that was leased to a consumer.

    Attributes:
        record: The entry.
        receipt: What settles it.
        attempt: 1 for the first; expiry and nack add one, release adds none (S5).
    """

    record: Record
    receipt: Receipt
    attempt: int


@attrs.frozen
class Settlement:
    """What to do with one delivery.

    Attributes:
        receipt: The delivery.
        action: What to do.
        delay: With NACK: seconds until it may be delivered again.
        reason: With REJECT: the dead letter's reason.
        error: With NACK and REJECT: what happened, kept for the dead letter.
    """

    receipt: Receipt
    action: Action
    delay: float = 0.0
    reason: str = ""
    error: str = ""


@attrs.frozen
class Fetched:
    """What a fetch found.

    Attributes:
        claims: The entries leased to the consumer, in the order to be handled.
        dead: Ids that became dead letters in this step, because they had been delivered too often.
        position: What `Waiter.wait` needs in order to miss nothing; None where there may be more at once.
        next_due: Seconds until a delayed or leased entry of this group comes due, or None.
        reset: True when the group had vanished and was made again (S9).
    """

    claims: Sequence[Claim]
    dead: Sequence[str] = ()
    position: Any = None
    next_due: float | None = None
    reset: bool = False


class StreamDriver(ABC):
    """Streams and their consumer groups. Every method is one atomic step on *now*, the backend's clock."""

    @abstractmethod
    async def add(self, stream: str, entries: Sequence[tuple[bytes, Mapping[str, str]]]) -> list[str]:
        """Append entries in this order and return their ids; readable by every group on return (S1)."""

    @abstractmethod
    async def read(self, stream: str, start: str, end: str, limit: int, *, after: bool = False) -> list[Record]:
        """Return the entries from ``start`` to ``end`` inclusive, in order, at most ``limit``; touch no group (S17).

        ``start`` and ``end`` are ids, EARLIEST or LATEST; with ``after`` the entry ``start`` itself is left out.

        Raises:
            InvalidArgumentError: Not an id of this backend.
        """

    @abstractmethod
    async def last_id(self, stream: str) -> str:
        """Return the id after which the next entry will be."""

    @abstractmethod
    async def delete(self, stream: str) -> None:
        """Remove the stream, its groups and everything kept for them."""

    @abstractmethod
    async def open_group(self, stream: str, group: str, start: str) -> bool:
        """Make the group, at a position; return False, and move nothing, where it exists (S9)."""

    @abstractmethod
    async def fetch(
        self, stream: str, group: str, consumer: str, *, count: int, lease: float, max_deliveries: int
    ) -> Fetched:
        """Lease up to ``count`` entries to the consumer: those due again first, then new ones in id order (S2, S3).

        At any instant at most one valid lease per entry and group *must* exist. An entry delivered ``max_deliveries``
        times *must* become a dead letter in this same step instead (S5). A group that is missing *must* be made again
        at EARLIEST and reported (S9). An entry that vanished from the stream *must not* come back nor stop the others.
        """

    @abstractmethod
    async def settle(
        self, stream: str, group: str, settlements: Sequence[Settlement], *, max_deliveries: int
    ) -> list[bool]:
        """Settle deliveries; for each, False where the receipt's lease has ended, and then nothing *must* change (S4).

        ACK: done. NACK: available after ``delay``, or a dead letter at once when this was its last delivery. REJECT: a
        dead letter. RELEASE: available at once and this delivery doesn't count (S5).
        """

    @abstractmethod
    async def extend(self, stream: str, group: str, receipts: Sequence[Receipt], *, lease: float) -> list[bool]:
        """Let leases end ``lease`` seconds from now; for each, False where it had ended, and nothing changed (S4)."""

    @abstractmethod
    async def leave(self, stream: str, group: str, consumer: str) -> None:
        """Release everything the consumer holds and forget it, in one step, so that nothing is dropped (S6, S11)."""

    @abstractmethod
    async def dead_letters(self, stream: str, group: str, after: str, limit: int) -> list[DeadLetter]:
        """Return the group's dead letters whose own id is after this one ("" for the first), oldest first."""

    @abstractmethod
    def waiter(self, stream: str, group: str | None) -> "Waiter":
        """Return what waits for new entries of the stream and for what comes back to the group."""


class Waiter(ABC):
    """Waits, and claims nothing: a cancelled or lost wait loses no message (S6)."""

    @abstractmethod
    async def wait(self, position: Any, timeout: float) -> None:
        """Return when there may be something after ``position``, or after so many seconds (at most one).

        ``position`` comes from `Fetched`, or is an id from `StreamDriver.last_id` or `StreamDriver.read`. It *must*
        return at once when something came between the fetch and the wait. It *may* return early for nothing.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """Make a `wait` under way, and every later one, return at once, from any thread (P10)."""

    @abstractmethod
    async def close(self) -> None:
        """Give back what it holds. It *must* be idempotent."""
