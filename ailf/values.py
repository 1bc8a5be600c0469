"""The values that cross the API: frozen, comparable, without behaviour that waits."""

import enum
import random
from collections.abc import Mapping
from typing import Any, Final, Generic, TypeVar

import attrs

__all__ = [
    "EARLIEST",
    "LATEST",
    "Backoff",
    "DeadLetter",
    "Entry",
    "Gap",
    "GroupReset",
    "Message",
    "Overflow",
]

T_co = TypeVar("T_co", covariant=True)

EARLIEST: Final = "earliest"
"""A position before the first entry of a stream."""

LATEST: Final = "latest"
"""A position after the last entry that a stream has now."""


class Overflow(enum.Enum):
    """What a subscription does when its buffer is full (publishers never wait)."""

    DROP_OLDEST = "drop_oldest"
    DROP_NEWEST = "drop_newest"
    CLOSE = "close"


@attrs.frozen
class Message(Generic[T_co]):
    """One message of a channel.

    Attributes:
        channel: The channel it was published on.
        data: The payload, decoded.
        headers: What the publisher put beside the payload.
    """

    channel: str
    data: T_co
    headers: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Gap:
    """Messages may be missing here: the subscription was interrupted and has come back.

    Attributes:
        reason: What interrupted it, for an operator to read.
        seconds: How long it was away, in seconds of this process's clock.
    """

    reason: str
    seconds: float


@attrs.frozen
class Entry(Generic[T_co]):
    """One entry of a stream, read without a group.

    Attributes:
        id: Opaque text, strictly increasing per stream.
        data: The payload, decoded.
        headers: What the producer put beside the payload.
    """

    id: str
    data: T_co
    headers: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class DeadLetter:
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


@attrs.frozen
class GroupReset:
    """A group had vanished from the backend (a flush, an eviction, a restart) and was made again at EARLIEST.

    Attributes:
        stream: The stream's name.
        group: The group's name.
    """

    stream: str
    group: str


@attrs.frozen
class Backoff:
    """How long a failed message waits for its next delivery: exponential, bounded, with jitter.

    The delay after the n-th attempt is ``min(maximum, initial * factor**(n-1))``, less a random share of up to
    ``jitter`` of it, so that messages which failed together don't come back together ("Exponential Backoff And
    Jitter", Brooker, AWS Architecture Blog, 2015).

    Attributes:
        initial: Seconds after the first attempt.
        factor: By how much each further delay is longer.
        maximum: Seconds that no delay exceeds.
        jitter: The share of a delay that is random, 0 to 1.
    """

    initial: float = 1.0
    factor: float = 2.0
    maximum: float = 60.0
    jitter: float = 0.2

    def delay(self, attempt: int, chance: Any = random.random) -> float:
        """Return the seconds to wait after this attempt (1 is the first)."""
        longest: float = min(self.maximum, self.initial * self.factor ** min(attempt - 1, 64))
        return longest * (1.0 - self.jitter * float(chance()))
