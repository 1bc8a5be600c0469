"""The driver of pub/sub: broadcast, at most once, no replay. `ailf.driver` has the rules of all drivers."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence

import msgspec

from ailf.values import ChannelInfo

__all__ = ["Confirmed", "Filter", "Frame", "Listener", "PubSubDriver", "Refused"]


class Filter(msgspec.Struct, frozen=True):
    """A channel's name or a pattern that a listener subscribes to.

    Attributes:
        text: The name or pattern.
        is_pattern: Whether it is a pattern.
        is_sharded: Whether it is a sharded channel; it is separate from the ordinary channel of the same name.
    """

    text: str
    is_pattern: bool = False
    is_sharded: bool = False


class Frame(msgspec.Struct, frozen=True):
    """A body that arrived on a channel. A body that matches several filters arrives once for each.

    Attributes:
        filter: The filter that matches.
        channel: The channel's name; bytes that aren't UTF-8 are lone surrogates, as `os.fsdecode` makes them.
        body: The body.
        problem: The reason why the body can't be decoded, as text, or "".
    """

    filter: Filter
    channel: str
    body: bytes
    problem: str = ""


class Confirmed(msgspec.Struct, frozen=True):
    """A listener's item: from now on every message that this filter matches arrives."""

    filter: Filter


class Refused(msgspec.Struct, frozen=True):
    """A listener's item: the backend refuses this filter, because of ``error``."""

    filter: Filter
    error: Exception


class PubSubDriver(ABC):
    """Broadcast: at most once, no replay.

    >>> from ailf.driver import Confirmed, Filter, Frame
    >>> from ailf.runtime import ThreadRuntime, run
    >>> from ailf_memory import MemoryStore
    >>> from ailf_memory.driver import MemoryDriver
    >>> pubsub = MemoryDriver(MemoryStore(), ThreadRuntime()).pubsub()
    >>> listener, news = run(pubsub.listen()), Filter("news")
    >>> run(listener.change([news], []))
    >>> assert list(run(listener.receive(1.0))) == [Confirmed(news)]
    >>> counts = run(pubsub.publish([("news", b'"hello"')]))
    >>> assert list(run(listener.receive(1.0))) == [Frame(news, "news", b'"hello"')]
    >>> run(listener.close())
    """

    @abstractmethod
    def publish(
        self, messages: Sequence[tuple[str, bytes]], *, sharded: bool = False
    ) -> Awaitable[Sequence[int] | None]:
        """Publish bodies on channels, in this order, in one round trip; ``sharded`` only with `Capability.SHARDED`.

        It *may* return how many listeners received each body; it *must not* return 0 if there may have been one (P9).

        The bodies of calls that are awaited one after another *must* arrive at every listener in that order (P1). It
        *must not* wait for any listener (P4).
        """

    @abstractmethod
    async def listen(self) -> "Listener":
        """Return a listener with a connection of its own."""

    async def channels(self, prefix: str, *, sharded: bool = False) -> list[ChannelInfo]:
        """Return the channels that a listener subscribes to by name, if their names begin with ``prefix`` (N8).

        Each comes once, with the number of its listeners; of a cluster, on all nodes. With ``sharded`` they are the
        sharded channels. It is only called with `Capability.LISTING`.

        Raises:
            ProtocolError: There are more than `ailf.driver.listing.MOST_LISTED`; `ailf.driver.listing.too_many` makes
                the error.
        """
        raise NotImplementedError


class Listener(ABC):
    """One connection that receives messages, with any number of filters.

    >>> from ailf.driver import Filter, Listener, Refused
    >>> from ailf.runtime import ThreadRuntime, run
    >>> from ailf_memory import MemoryStore
    >>> from ailf_memory.driver import MemoryDriver
    >>> listener = run(MemoryDriver(MemoryStore(), ThreadRuntime()).pubsub().listen())
    >>> assert isinstance(listener, Listener)
    >>> run(listener.change([Filter("agents.*", is_pattern=True)], []))
    >>> for item in run(listener.receive(1.0)):
    ...     if isinstance(item, Refused):
    ...         raise item.error
    >>> run(listener.close())
    """

    @abstractmethod
    async def change(self, add: Sequence[Filter], drop: Sequence[Filter]) -> None:
        """Subscribe to the filters ``add`` and unsubscribe from ``drop``.

        `receive` returns a `Confirmed` or `Refused` for each filter in ``add``. `change` *may* be called while another
        thread or task is in `receive`.
        """

    @abstractmethod
    async def receive(self, timeout: float) -> Sequence[Frame | Confirmed | Refused]:
        """Return the items that arrived, in order; an empty sequence after ``timeout`` seconds without any.

        A message that is published after a filter's `Confirmed` *must* be returned, or the connection be reported as
        lost (P2).

        Raises:
            ConnectionLostError: The connection is lost or silent, so messages may be missing (P5).
        """

    @abstractmethod
    def interrupt(self) -> None:
        """End a `receive` under way at once, from any thread. The listener is not used after that (P10)."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connection. It *must* be idempotent."""
