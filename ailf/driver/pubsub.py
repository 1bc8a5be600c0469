"""What a backend implements for pub/sub: broadcast, at most once, no replay. See `ailf.driver` for the rules of all."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence

import msgspec

__all__ = ["Confirmed", "Filter", "Frame", "Listener", "PubSubDriver", "Refused"]


class Filter(msgspec.Struct, frozen=True):
    """What a listener asks for: a channel's name, or a pattern.

    Attributes:
        text: The name or pattern.
        is_pattern: Which of both.
        is_sharded: A channel that only one shard of a cluster knows; apart from an ordinary one of the same name.
    """

    text: str
    is_pattern: bool = False
    is_sharded: bool = False


class Frame(msgspec.Struct, frozen=True):
    """A body that arrived on a channel because of this filter; one that matches several arrives once for each.

    Attributes:
        filter: The filter.
        channel: The channel's name; bytes that are no text are lone surrogates, as `os.fsdecode` makes them.
        body: The body.
        problem: Why nobody can decode it, in words, or "".
    """

    filter: Filter
    channel: str
    body: bytes
    problem: str = ""


class Confirmed(msgspec.Struct, frozen=True):
    """From now on everything that this filter matches arrives."""

    filter: Filter


class Refused(msgspec.Struct, frozen=True):
    """The backend refuses this filter."""

    filter: Filter
    error: Exception


class PubSubDriver(ABC):
    """Broadcast: at most once, no replay."""

    @abstractmethod
    def publish(
        self, messages: Sequence[tuple[str, bytes]], *, sharded: bool = False
    ) -> Awaitable[Sequence[int] | None]:
        """Send bodies to channels (sharded ones only with `Capability.SHARDED`), in this order, in one round trip.

        It *may* return how many listeners heard each; it *must not* say 0 where there may have been one (P9).

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
