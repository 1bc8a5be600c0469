"""The values that cross the API: frozen, comparable, without behaviour that waits."""

import enum
import random
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Generic, TypeAlias, TypeVar

import attrs
import msgspec

from ailf.checks import valid_between, valid_count, valid_seconds, valid_wait
from ailf.errors import BackendError, InvalidArgumentError

__all__ = [
    "EARLIEST",
    "LATEST",
    "Added",
    "Backoff",
    "DeadLetter",
    "DeadLettered",
    "Decision",
    "Entry",
    "Gap",
    "GroupEvent",
    "GroupInfo",
    "GroupReset",
    "LeaseLost",
    "LimitState",
    "LockHolder",
    "LockInfo",
    "OnLost",
    "Overflow",
    "Position",
    "Retention",
    "Trimmed",
]

T_co = TypeVar("T_co", covariant=True)
P_co = TypeVar("P_co", covariant=True)

EARLIEST: Final = "earliest"
"""A position before the first entry of a stream."""

LATEST: Final = "latest"
"""A position after the last entry that a stream has now."""

Position: TypeAlias = str | datetime
"""A place in a stream: the id of an entry, EARLIEST, LATEST, or a time (with its zone) on the backend's clock."""


class Overflow(enum.Enum):
    """What a subscription does when its buffer is full (publishers never wait)."""

    DROP_OLDEST = "drop_oldest"
    DROP_NEWEST = "drop_newest"
    CLOSE = "close"


class OnLost(enum.Enum):
    """What happens to the body of `Lock.hold` when its lease is lost."""

    CANCEL = "cancel"
    """It is left with `LeaseLostError`: on asyncio it is cancelled at once; a thread can't be: at its end."""
    SIGNAL = "signal"
    """Nothing: the body looks at ``lease.lost`` itself."""


class LockHolder(msgspec.Struct, frozen=True):
    """Somebody who has a lock.

    Attributes:
        fence: The number of the grant; 0 where another program stored it without one.
        remaining: Seconds that it lasts unless it is extended.
    """

    fence: int
    remaining: float


class LockInfo(msgspec.Struct, frozen=True):
    """How a lock stands.

    Attributes:
        holders: Who has it, oldest grant first; for a lock at most one.
        waiting: How many are in line. Of those in one process only the first is, unless the lock is fair.
    """

    holders: tuple[LockHolder, ...] = ()
    waiting: int = 0


class LimitState(msgspec.Struct, frozen=True):
    """How one limit of a rate limiter stands.

    Attributes:
        remaining: The largest cost that would pass now.
        retry_after: Seconds after which this limit allows what was asked; 0 if it does, None if it never can.
        reset_after: Seconds until it is as good as unused.
    """

    remaining: int
    retry_after: float | None
    reset_after: float


class Decision(msgspec.Struct, Generic[P_co], frozen=True):
    """What a rate limiter said; true in a condition if the call is allowed.

    Attributes:
        allowed: Whether every limit allowed it, and so was charged; else none was.
        remaining: The largest cost that would pass now; of several limits the least.
        retry_after: Seconds after which another try may pass: it will, if nothing else happens meanwhile. 0 if this one
            did; None if a cost is above the capacity of its limit, so that none ever will.
        reset_after: Seconds until every limit is as good as unused.
        limits: How each limit stands, by name; an only one is called "".
        bound: The name of the limit that has to be waited for longest; None if allowed, or if it is only the turn of
            others who wait.
        at: The backend's time of the decision, in seconds since 1970.
        permit: What was charged, to be settled or given back; None if denied, or if nothing was asked for.
        error: Why the backend could not be asked, where the limiter has ``on_backend_error``.
    """

    allowed: bool
    remaining: int
    retry_after: float | None
    reset_after: float
    limits: Mapping[str, LimitState]
    bound: str | None
    at: float
    permit: P_co | None = None
    error: BackendError | None = None

    def __bool__(self) -> bool:
        return self.allowed


class Gap(msgspec.Struct, frozen=True):
    """Messages may be missing here: the subscription was interrupted and has come back.

    Attributes:
        reason: What interrupted it, for an operator to read.
        seconds: How long it was away, in seconds of this process's clock.
    """

    reason: str
    seconds: float


class Entry(msgspec.Struct, Generic[T_co], frozen=True):
    """One entry of a stream, read without a group.

    Attributes:
        id: Opaque text, strictly increasing per stream.
        data: The payload, decoded.
        headers: What the producer put beside the payload.
    """

    id: str
    data: T_co
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that a group gave up on.

    Attributes:
        id: The letter's own id among the group's dead letters.
        origin: The id the entry had in the stream.
        body: The payload as bytes, as it was added.
        headers: What the producer put beside the payload.
        reason: Why it is here: ``"rejected"``, ``"undecodable"`` or ``"max_deliveries"``.
        error: The last thing said about it (a handler's exception, the text of a ``Reject``), or "".
        attempts: How often it was delivered.
    """

    id: str
    origin: str
    body: bytes
    headers: Mapping[str, str]
    reason: str
    error: str
    attempts: int


class Added(msgspec.Struct, frozen=True):
    """What became of a message that was to be added once.

    Attributes:
        id: The entry's id: of this message, or of the one that was added before under the same dedup id.
        duplicate: Whether it had been added before, so that nothing was added now.
    """

    id: str
    duplicate: bool


@attrs.frozen(kw_only=True)
class Retention:
    """How much of a stream is kept. Only what all of its groups have settled is removed, unless ``hard`` (S8).

    A stream that is full of unsettled messages takes no more: `StreamFullError`, at once or after ``wait`` seconds.
    Each add removes a bounded number of entries; where much more has to go, the excess goes with later adds.

    Attributes:
        max_len: Keep at most ``max_len`` entries. Where over 100 messages are out, it may be exceeded by a hundredth or
            100 entries until settled ones are found among them.
        max_age: Keep entries at most ``max_age`` seconds.
        hard: Remove unsettled entries too; `GroupInfo.evicted` counts them. Such a stream is never full.
        wait: Seconds that adding waits for room.
        keep_settled: Whether entries that all groups have settled are kept, within ``max_len`` and ``max_age``; see
            `settled`.
    """

    max_len: int | None = attrs.field(default=None, validator=attrs.validators.optional(valid_count))
    max_age: float | None = attrs.field(default=None, validator=attrs.validators.optional(valid_seconds))
    hard: bool = False
    wait: float = attrs.field(default=0.0, validator=valid_wait)
    keep_settled: bool = True

    def __attrs_post_init__(self) -> None:
        if not self.keep_settled and (self.hard or self.max_age is not None):
            raise InvalidArgumentError(
                "a retention without keep_settled removes all that is settled and nothing else; "
                "leave out max_age and hard"
            )

    @classmethod
    def settled(cls, *, max_len: int | None = None, wait: float = 0.0) -> "Retention":
        """Return a retention for work queues: keep only what some group has not settled.

        Adding removes the oldest entries, up to the first that a group has yet to settle (which may be one that waits
        for its time); `Stream.trim` does so too. Nothing is removed while the stream has no group. What is removed is
        not seen by a group that is made later, by a `seek` back, by `read`, nor by `tail`.

        Arguments:
            max_len: At most ``max_len`` entries; a stream with so many that are not settled is full.
            wait: Seconds that adding waits for room.
        """
        return cls(max_len=max_len, wait=wait, keep_settled=False)


class Trimmed(msgspec.Struct, frozen=True):
    """What a trim removed.

    Attributes:
        removed: How many entries.
        unsettled: How many of these some group had not settled; 0 unless the retention is ``hard``.
    """

    removed: int
    unsettled: int


class GroupInfo(msgspec.Struct, frozen=True):
    """How a group stands (S10).

    Attributes:
        length: How many entries the stream has.
        lag: How many of them the group has not been handed yet; None where that can't be told exactly.
        pending: How many messages consumers have in hand.
        delayed: How many wait to be delivered (again): for their time, their backoff, their turn, or a free hand.
        dead: How many dead letters there are.
        consumers: How many messages each consumer has in hand, by name; those that are open, or were and left some.
        oldest: Age in seconds of the oldest entry that the group has not settled; None where there is none.
        evicted: How many entries a ``hard`` retention took from the stream before all groups had settled them.
        paused: Whether the group is paused.
        exists: Whether there is such a group. If not, all entries count as lag, and all else is as in a new group.
    """

    length: int = 0
    lag: int | None = 0
    pending: int = 0
    delayed: int = 0
    dead: int = 0
    consumers: Mapping[str, int] = msgspec.field(default_factory=dict)
    oldest: float | None = None
    evicted: int = 0
    paused: bool = False
    exists: bool = True


class GroupReset(msgspec.Struct, frozen=True):
    """A group had vanished from the backend (a flush, an eviction, a restart) and was made again at EARLIEST.

    Attributes:
        stream: The stream's name.
        group: The group's name.
    """

    stream: str
    group: str


class DeadLettered(msgspec.Struct, frozen=True):
    """A message became a dead letter of its group.

    Attributes:
        stream: The stream's name.
        group: The group's name.
        id: The entry's id in the stream.
        reason: ``"rejected"``, ``"undecodable"`` or ``"max_deliveries"``.
    """

    stream: str
    group: str
    id: str
    reason: str


class LeaseLost(msgspec.Struct, frozen=True):
    """A delivery turned out to be no longer this consumer's when it was settled or extended.

    Attributes:
        stream: The stream's name.
        group: The group's name.
        id: The entry's id in the stream.
    """

    stream: str
    group: str
    id: str


GroupEvent: TypeAlias = GroupReset | DeadLettered | LeaseLost
"""What the hook for events of a group is called with."""


@attrs.frozen
class Backoff:
    """How long a failed message waits for its next delivery: exponential, bounded, with jitter.

    The delay after the n-th attempt is ``min(maximum, initial * factor**(n-1))``, less a random share of up to
    ``jitter`` of it, so that messages which failed together don't come back together ("Exponential Backoff And
    Jitter", Brooker, AWS Architecture Blog, 2015).

    Attributes:
        initial: Seconds after the first attempt; 0 for none.
        factor: By how much each further delay is longer, 1 to 1000.
        maximum: Seconds that no delay exceeds, at least ``initial``.
        jitter: The share of a delay that is random, 0 to 1.
    """

    initial: float = attrs.field(default=1.0, validator=valid_wait)
    factor: float = attrs.field(default=2.0, validator=valid_between(1.0, 1000.0))
    maximum: float = attrs.field(default=60.0, validator=valid_wait)
    jitter: float = attrs.field(default=0.2, validator=valid_between(0.0, 1.0))

    def __attrs_post_init__(self) -> None:
        if self.maximum < self.initial:
            raise InvalidArgumentError(
                f"a backoff's maximum must not be below its initial delay: {self.maximum!r} < {self.initial!r}"
            )

    def delay(self, attempt: int, chance: Any = random.random) -> float:
        """Return the seconds to wait after this attempt (1 is the first)."""
        longest: float = min(self.maximum, self.initial * self.factor ** min(attempt - 1, 64))
        return longest * (1.0 - self.jitter * float(chance()))
