"""The values that cross the API. They are frozen and comparable, and none of their methods waits."""

import enum
import random
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, Generic, TypeAlias

import attrs
import msgspec

from ailf.checks import valid_between, valid_count, valid_seconds, valid_wait
from ailf.errors import BackendError, InvalidArgumentError
from ailf.payload_types import T_co

__all__ = [
    "EARLIEST",
    "LATEST",
    "Added",
    "Backoff",
    "ChannelInfo",
    "ConsumerInfo",
    "DeadLetter",
    "DeadLettered",
    "Decision",
    "Entry",
    "Gap",
    "GroupEvent",
    "GroupInfo",
    "GroupReset",
    "HeldLock",
    "LeaseLost",
    "LimitState",
    "LimiterName",
    "LockHolder",
    "LockInfo",
    "MessageInfo",
    "MessageState",
    "OnLost",
    "Overflow",
    "Page",
    "Position",
    "Retention",
    "StreamInfo",
    "Trimmed",
]


EARLIEST: Final = "earliest"
"""A position before the first entry of a stream."""

LATEST: Final = "latest"
"""A position after the last entry that a stream has now."""

Position: TypeAlias = str | datetime
"""A place in a stream: an entry's id, EARLIEST, LATEST, or a datetime with a time zone, on the backend's clock."""


class Overflow(enum.Enum):
    """The policy of a subscription whose buffer is full. Publishers never wait.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     subscription = backend.pubsub().listen("news", buffer=100, overflow=ailf.Overflow.DROP_NEWEST)
    """

    DROP_OLDEST = "drop_oldest"
    """Drop the oldest message in the buffer."""
    DROP_NEWEST = "drop_newest"
    """Drop the message that has arrived."""
    CLOSE = "close"
    """Close the subscription."""


class OnLost(enum.Enum):
    """The reaction to a lost lease: of the body of `Lock.hold`, or of a handler of `Group.process`.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend, backend.lock("report").hold(on_lost=ailf.OnLost.SIGNAL) as lease:
    ...     assert not lease.lost
    """

    CANCEL = "cancel"
    """On asyncio, cancel the body or handler at once. A thread can't be cancelled: `Lock.hold` raises at its end."""
    SIGNAL = "signal"
    """Do nothing: the body or handler checks ``lost`` of its lease or delivery."""


class LockHolder(msgspec.Struct, frozen=True):
    """One holder of a lock.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend, backend.lock("report", ttl=30.0) as lease:
    ...     for holder in backend.lock("report").inspect().holders:
    ...         assert holder.fence == lease.fence
    ...         assert 0 < holder.remaining <= 30

    Attributes:
        fence: The fence of the grant; 0 if another program stored the lock without one.
        remaining: Seconds until the lease ends unless it is extended.
    """

    fence: int
    remaining: float


class LockInfo(msgspec.Struct, frozen=True):
    """The state of a lock, from ``lock.inspect()``.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     backend.lock("report").inspect()
    LockInfo(holders=(), waiting=0)

    Attributes:
        holders: The holders, oldest grant first; at most one unless it is a semaphore.
        waiting: The number of waiters in the wait queue. A lock that isn't fair puts only the first waiter of each
            process in it.
    """

    holders: tuple[LockHolder, ...] = ()
    waiting: int = 0


class LimitState(msgspec.Struct, frozen=True):
    """The state of one limit of a rate limiter.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     llm = backend.rate_limiter("llm", requests="60/minute", tokens="1000/minute")
    ...     llm.peek("gpt").limits["tokens"]
    LimitState(remaining=1000, retry_after=0.0, reset_after=0.0)

    Attributes:
        remaining: The largest cost that would be allowed now.
        retry_after: Seconds after which this limit allows the call; 0 if it does now, None if it never can.
        reset_after: Seconds until the limit is back at full capacity.
    """

    remaining: int
    retry_after: float | None
    reset_after: float


class Decision(msgspec.Struct, Generic[T_co], frozen=True):
    """The answer of a rate limiter; true in a condition if the call is allowed.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     decision = backend.rate_limiter("api", "10/second").try_acquire("alice")
    ...     if not decision:
    ...         print(f"try again in {decision.retry_after} s")

    Attributes:
        allowed: Whether every limit allowed the call. Then each limit was charged; else none was.
        remaining: The largest cost that would be allowed now; of several limits, the smallest.
        retry_after: Seconds after which another try is allowed, if no other call is charged before. 0 if this one was
            allowed; None if a cost is above the capacity of its limit, so that it never can be.
        reset_after: Seconds until every limit is back at full capacity.
        limits: The state of each limit, by name; the name of an unnamed limit is "".
        bound: The name of the limit with the longest wait; None if the call was allowed, or only has to wait for its
            turn in the wait queue.
        at: The backend's time of the decision, in seconds since 1970.
        permit: The charge, to be settled or cancelled; None if the call was denied or all costs were 0.
        error: The error of the backend, if ``on_backend_error`` of the limiter decided instead of the backend.
    """

    allowed: bool
    remaining: int
    retry_after: float | None
    reset_after: float
    limits: Mapping[str, LimitState]
    bound: str | None
    at: float
    permit: T_co | None = None
    error: BackendError | None = None

    def __bool__(self) -> bool:
        return self.allowed


class Gap(msgspec.Struct, frozen=True):
    """An item of a subscription: its connection was interrupted and is back; messages may be missing here.

    >>> import ailf
    >>> from ailf_memory import MemoryBackend
    >>> with MemoryBackend() as backend, backend.pubsub().listen("news") as subscription:
    ...     backend.store.break_subscriptions("the server was restarted")
    ...     item = subscription.get(timeout=5)
    ...     if isinstance(item, ailf.Gap):
    ...         print("something may be missing:", item.reason)
    something may be missing: the server was restarted

    Attributes:
        reason: The cause of the interruption, as text for an operator.
        seconds: The length of the interruption, on this process's clock.
    """

    reason: str
    seconds: float


class Entry(msgspec.Struct, Generic[T_co], frozen=True):
    """One entry of a stream, read without a group: ``for entry in stream.read(): …``.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     stream = backend.stream("orders")
    ...     entry_id = stream.add({"teas": 2}, headers={"priority": "high"})
    ...     for entry in stream.read():
    ...         assert entry.id == entry_id
    ...         print(entry.data, entry.headers["priority"])
    {'teas': 2} high

    Attributes:
        id: Opaque text, strictly increasing per stream.
        data: The payload, decoded.
        headers: The producer's headers.
        stream: The stream's name.
        key: The ordering key, or "".
        added: When the entry was added, in seconds since 1970 on the backend's clock.
    """

    id: str
    data: T_co
    headers: Mapping[str, str]
    stream: str
    key: str
    added: float


@attrs.frozen(kw_only=True)
class DeadLetter(Generic[T_co]):
    """A message that a group gave up on.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     for letter in backend.stream("tasks").group("workers").dead_letters.list():
    ...         print(letter.origin, letter.reason, letter.error)

    Attributes:
        id: The id of the dead letter among the dead letters of its group.
        stream: The stream's name.
        group: The group's name.
        origin: The id of the entry in the stream.
        key: The ordering key, or "".
        added: When the entry was added, in seconds since 1970 on the backend's clock.
        died: When it became a dead letter, on the same clock. A redriven message that fails again dies anew.
        body: The encoded payload, as it was added.
        headers: The producer's headers.
        reason: ``"rejected"``, ``"undecodable"`` or ``"max_deliveries"``.
        error: The last error, such as a handler's exception or the text of a `Reject`, or "".
        attempts: The number of deliveries that count as attempts.
    """

    id: str
    stream: str
    group: str
    origin: str
    key: str
    added: float
    died: float
    body: bytes
    headers: Mapping[str, str]
    reason: str
    error: str
    attempts: int
    _decode: Callable[[], T_co] = attrs.field(repr=False, eq=False)

    @property
    def data(self) -> T_co:
        """The payload, decoded anew at each access.

        Raises:
            DecodeError: The body is not what the ``type`` of the stream expects; ``body`` has its bytes.
        """
        return self._decode()


class Added(msgspec.Struct, frozen=True):
    """The result of ``stream.add_once("order-7", order)``.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     first = backend.stream("orders").add_once("order-7", "two teas")
    ...     again = backend.stream("orders").add_once("order-7", "two teas")
    >>> assert again == ailf.Added(first.id, duplicate=True)

    Attributes:
        id: The id of the entry: of this message, or of the earlier one with the same dedup id.
        duplicate: Whether an earlier message has the same dedup id, so that nothing was added now.
    """

    id: str
    duplicate: bool


@attrs.frozen(kw_only=True)
class Retention:
    """The rule that says which entries a stream keeps.

    Only entries that all groups have settled are removed, unless ``hard``.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     events = backend.stream("events", retention=ailf.Retention(max_len=10_000, max_age=86_400.0))

    Adding to a stream that is full of unsettled messages raises `StreamFullError`, after ``wait`` seconds. Each add
    removes a bounded number of entries; later adds remove a larger excess.

    Attributes:
        max_len: Keep at most ``max_len`` entries. While over 100 messages are pending, the stream may exceed it by 1 %
            or 100 entries, until settled ones are found among them.
        max_age: Keep entries at most ``max_age`` seconds.
        hard: Remove unsettled entries too; `GroupInfo.evicted` counts them. Such a stream is never full.
        wait: Seconds that adding waits for room.
        keep_settled: Whether entries that all groups have settled are kept, within ``max_len`` and ``max_age``; see
            `settled`.

    Raises:
        InvalidArgumentError: A value can't be used, or ``keep_settled=False`` is combined with ``max_age`` or ``hard``.
    """

    max_len: int | None = attrs.field(default=None, validator=attrs.validators.optional(valid_count))
    max_age: float | None = attrs.field(default=None, validator=attrs.validators.optional(valid_seconds))
    hard: bool = False
    wait: float = attrs.field(default=0.0, validator=valid_wait)
    keep_settled: bool = True

    def __attrs_post_init__(self) -> None:
        if not self.keep_settled and (self.hard or self.max_age is not None):
            raise InvalidArgumentError(
                "a Retention with keep_settled=False removes all settled entries and no others; leave out max_age and "
                "hard"
            )

    @classmethod
    def settled(cls, *, max_len: int | None = None, wait: float = 0.0) -> "Retention":
        """Return a retention for work queues: keep only entries that a group has not settled.

        Adding removes the oldest entries, up to the first one that a group has not settled, which may be a delayed one;
        `Stream.trim` does the same. Nothing is removed while the stream has no group. Removed entries are gone for
        groups made later, for a `seek` back, and for `read` and `tail`.

        Arguments:
            max_len: Keep at most ``max_len`` entries; a stream with ``max_len`` unsettled entries is full.
            wait: Seconds that adding waits for room.
        """
        return cls(max_len=max_len, wait=wait, keep_settled=False)


class Trimmed(msgspec.Struct, frozen=True):
    """The result of ``stream.trim(retention)``.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     stream = backend.stream("events")
    ...     ids = stream.add_many(["a", "b", "c"])
    ...     stream.trim(ailf.Retention(max_len=1, hard=True))
    Trimmed(removed=2, unsettled=0)

    Attributes:
        removed: The number of entries that were removed.
        unsettled: The number of these that a group had not settled; 0 unless the retention is ``hard``.
    """

    removed: int
    unsettled: int


class GroupInfo(msgspec.Struct, frozen=True):
    """The state of a group, from ``group.info()``.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     group = backend.stream("tasks").group("workers")
    ...     ids = backend.stream("tasks").add_many(["a", "b"])
    ...     with group.consumer(prefetch=1) as consumer, consumer.take(timeout=5):
    ...         info = group.info()
    ...         print(info.lag, info.pending, info.dead)
    1 1 0

    Attributes:
        length: The number of entries in the stream.
        lag: The number of entries that the group has never delivered; None if the exact number is unknown: where many
            or large entries would have to be counted, on Redis 6.2 or after entries were removed.
        pending: The number of messages that are leased to consumers.
        delayed: The number of messages that wait for their (next) delivery: for their time, the end of their backoff,
            their turn in the lane of their ordering key, or a free consumer.
        dead: The number of dead letters.
        consumers: The number of leased messages by consumer name: of the open consumers, and of those that were
            dropped with messages leased.
        oldest: The age in seconds of the oldest entry that the group has not settled; None without one.
        evicted: The number of entries that a ``hard`` retention removed before all groups had settled them.
        paused: Whether the group is paused.
        exists: Whether the group exists. If not, all entries count as lag, and all else is as in a new group.
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


class Page(msgspec.Struct, Generic[T_co], frozen=True):
    """One page of a listing, from ``listing.page()``.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     ids = [backend.stream(name).add("x") for name in ("a", "b")]
    ...     page = backend.streams().page(max_items=1)
    ...     rest = backend.streams().page(page.cursor)
    >>> sorted(page.items + rest.items)
    ['a', 'b']

    Attributes:
        items: The items; there may be none before the end.
        cursor: The cursor of the next page, which any listing of the same kind and prefix takes; "" at the end.
    """

    items: tuple[T_co, ...] = ()
    cursor: str = ""


class MessageState(enum.Enum):
    """What a group has made of an entry.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     entry_id, group = backend.stream("tasks").add("a report"), backend.stream("tasks").group("workers")
    ...     created = group.open()
    ...     group.inspect(entry_id).state
    <MessageState.UNREAD: 'unread'>
    """

    UNREAD = "unread"
    """The group has not read it yet."""
    LEASED = "leased"
    """It is in the hands of a consumer."""
    WAITING = "waiting"
    """It waits for its time, the end of its backoff, its turn in the lane of its ordering key, or a free consumer."""
    SETTLED = "settled"
    """Nothing is left to do: it was settled, is a dead letter, was removed, or the group began behind it."""
    UNKNOWN = "unknown"
    """It can't be told: it may be one of many redriven messages, or the backend has no such step."""


class MessageInfo(msgspec.Struct, frozen=True):
    """What a group has made of an entry, from ``group.inspect()``. A message that was redriven counts as its entry.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     entry_id, group = backend.stream("tasks").add("a report"), backend.stream("tasks").group("workers")
    ...     with group.consumer() as consumer, consumer.take(timeout=5):
    ...         info = group.inspect(entry_id)
    ...         assert info.state is ailf.MessageState.LEASED
    ...         print(info.attempts)
    1

    Attributes:
        state: What it has made of it.
        consumer: The consumer that has leased it; None unless it is leased.
        due: Seconds until its lease ends, or until it may be delivered; None where that depends on other messages.
        attempts: The number of its deliveries that count, that of the present lease included.
    """

    state: MessageState
    consumer: str | None = None
    due: float | None = None
    attempts: int = 0


class StreamInfo(msgspec.Struct, frozen=True):
    """The state of a stream, from ``stream.info()``.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     last = backend.stream("events").add_many(["a", "b"])[-1]
    ...     info = backend.stream("events").info()
    >>> assert (info.length, info.last_id, info.groups) == (2, last, 0)

    Attributes:
        name: The stream's name.
        length: The number of entries; 0 for a stream that doesn't exist.
        partitions: The number of partitions: 1 for an ordinary stream.
        first_id: The id of the first entry; None without one.
        last_id: The id of the last entry; None without one.
        added: When the last entry was added, in seconds since 1970 UTC on the backend's clock; None without one.
        groups: The number of groups.
        entries_added: The number of entries that were ever added, those that are gone included; None where the backend
            doesn't know it, as Redis 6.2, or the stream doesn't exist.
    """

    name: str
    length: int = 0
    partitions: int = 1
    first_id: str | None = None
    last_id: str | None = None
    added: float | None = None
    groups: int = 0
    entries_added: int | None = None


class ConsumerInfo(msgspec.Struct, frozen=True):
    """One consumer of a group, from ``group.consumers()``.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     group = backend.stream("tasks").group("workers")
    ...     entry_id = backend.stream("tasks").add("a")
    ...     with group.consumer() as consumer, consumer.take(timeout=5):
    ...         for each in group.consumers():
    ...             print(each.alive, each.in_hand)
    True 1

    Attributes:
        name: The consumer's name, which no other opened consumer has.
        pid: The id of its process; None if the program named the consumer itself.
        host: The name of its host; None as for ``pid``.
        last_seen: Seconds since its process was last known to be alive, if it has the ``takeover`` of the group object
            that lists; None where that is unknown.
        in_hand: The number of messages that are leased to it.
        alive: Whether the backend counts it as alive. If not, its messages go to others at their next fetch.
    """

    name: str
    pid: int | None = None
    host: str | None = None
    last_seen: float | None = None
    in_hand: int = 0
    alive: bool = False


class HeldLock(msgspec.Struct, frozen=True):
    """A lock or semaphore that is held, from ``backend.locks()``.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend, backend.lock("report"):
    ...     for lock in backend.locks():
    ...         print(lock.name, len(lock.holders), lock.waiting)
    report 1 0

    Attributes:
        name: The lock's name.
        holders: The holders, oldest grant first; at most one unless it is a semaphore.
        waiting: The number of waiters in the wait queue, as in `LockInfo`.
    """

    name: str
    holders: tuple[LockHolder, ...] = ()
    waiting: int = 0


class LimiterName(msgspec.Struct, frozen=True):
    """One key of a rate limiter that is not back at full capacity, from ``backend.limiters()``.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     decision = backend.rate_limiter("api", "10/minute").try_acquire("ann")
    ...     for limiter in backend.limiters():
    ...         print(limiter.name, limiter.key)
    api ann

    Attributes:
        name: The limiter's name.
        key: The key; it may be empty.
        root: The root of a budget tree; None for a limiter without one.
        limit: In a budget tree the limit whose key it is; else None.
    """

    name: str
    key: str
    root: str | None = None
    limit: str | None = None


class ChannelInfo(msgspec.Struct, frozen=True):
    """A channel with subscribers, from ``pubsub.channels()``.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend, backend.pubsub().listen("news"):
    ...     list(backend.pubsub().channels())
    [ChannelInfo(name='news', subscribers=1)]

    Attributes:
        name: The channel's name.
        subscribers: The number of connections that subscribe to it by its name: one for each backend object that does.
            Those that subscribe by a pattern are not counted.
    """

    name: str
    subscribers: int


class GroupReset(msgspec.Struct, frozen=True):
    """The event that a group had vanished from the backend (a flush, an eviction, a restart) and was created again.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     events: list[ailf.GroupEvent] = []
    ...     group = backend.stream("tasks").group("workers", on_event=events.append)
    ...     with group.consumer() as consumer:
    ...         backend.stream("tasks").delete()  # as a flush of the server does
    ...         entry_id = backend.stream("tasks").add("a")
    ...         consumer.take(timeout=5).ack()
    >>> events
    [GroupReset(stream='tasks', group='workers')]

    The new group begins at EARLIEST.

    Attributes:
        stream: The stream's name.
        group: The group's name.
    """

    stream: str
    group: str


class DeadLettered(msgspec.Struct, frozen=True):
    """The event that a message became a dead letter of its group.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     events: list[ailf.GroupEvent] = []
    ...     group = backend.stream("tasks").group("workers", on_event=events.append)
    ...     entry_id = backend.stream("tasks").add("a")
    ...     with group.consumer() as consumer:
    ...         consumer.take(timeout=5).reject("no such customer")
    >>> assert events == [ailf.DeadLettered("tasks", "workers", entry_id, "rejected")]

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
    """The event that a delivery was settled or extended after its lease was lost; nothing was changed.

    >>> import ailf
    >>> from ailf.testing import ManualClock
    >>> from ailf_memory import MemoryBackend
    >>> clock = ManualClock()
    >>> events: list[ailf.GroupEvent] = []
    >>> with MemoryBackend(clock) as backend:
    ...     group = backend.stream("tasks").group("workers", lease=30.0, on_event=events.append)
    ...     entry_id = backend.stream("tasks").add("a")
    ...     with group.consumer() as consumer:
    ...         delivery = consumer.take(timeout=5)
    ...         clock.advance(31)
    ...         try:
    ...             delivery.ack()
    ...         except ailf.LeaseLostError:
    ...             pass
    >>> assert events == [ailf.LeaseLost("tasks", "workers", entry_id)]

    Attributes:
        stream: The stream's name.
        group: The group's name.
        id: The entry's id in the stream.
    """

    stream: str
    group: str
    id: str


GroupEvent: TypeAlias = GroupReset | DeadLettered | LeaseLost
"""The argument of a group's ``on_event``."""


@attrs.frozen
class Backoff:
    """The delay of a failed message until its next delivery: exponential, bounded, with jitter.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     group = backend.stream("mails").group("mailers", backoff=ailf.Backoff(initial=0.5, maximum=30.0))

    The delay after the n-th attempt is ``min(maximum, initial * factor**(n-1))``, less a random share of up to
    ``jitter`` of it, so that messages which failed together don't come back together ("Exponential Backoff And
    Jitter", Brooker, AWS Architecture Blog, 2015).

    Attributes:
        initial: Seconds after the first attempt; 0 for no delay.
        factor: The factor from one delay to the next, 1 to 1000.
        maximum: The longest delay in seconds, at least ``initial``.
        jitter: The random share of a delay, 0 to 1.

    Raises:
        InvalidArgumentError: A value is out of bounds.
    """

    initial: float = attrs.field(default=1.0, validator=valid_wait)
    factor: float = attrs.field(default=2.0, validator=valid_between(1.0, 1000.0))
    maximum: float = attrs.field(default=60.0, validator=valid_wait)
    jitter: float = attrs.field(default=0.2, validator=valid_between(0.0, 1.0))

    def __attrs_post_init__(self) -> None:
        if self.maximum < self.initial:
            raise InvalidArgumentError(
                f"the maximum of a Backoff must be at least its initial delay: {self.maximum!r} < {self.initial!r}"
            )

    def delay(self, attempt: int, chance: Any = random.random) -> float:
        """Return the seconds to wait after an attempt.

        Arguments:
            attempt: The number of the attempt, from 1.
            chance: Returns a random number from 0 to 1; for tests.
        """
        longest: float = min(self.maximum, self.initial * self.factor ** min(attempt - 1, 64))
        return longest * (1.0 - self.jitter * float(chance()))
