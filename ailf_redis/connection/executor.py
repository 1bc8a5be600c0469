"""How commands reach the server: the one seam of the driver, with an executor for each flavour.

Both (`ailf_redis.pool`, `ailf_redis.wire`) stand on redis-py's own connections, which do address, TLS, handshake,
authentication and database. What waits for long (blocking reads, subscriptions) has a `Link`, a connection of its own.

The rule of these files: an error says whether the request may have reached the server (``maybe_applied``), a call that
is given up (a cancelled task, Ctrl-C) never leaves a reply for the next one, and every wait has a deadline.
"""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from ailf.errors import ClosedError
from ailf_redis.connection.resp import AROUND, FOREIGN, HEADERS, SLACK, Command, CommandPrefix
from ailf_redis.errors import MISREAD, mapped, misread
from ailf_redis.settings import Settings

__all__ = ["Executor", "IdentityRef", "Link", "LinkAround"]

T = TypeVar("T")


class IdentityRef(weakref.ref[T]):
    """A weak reference that can be looked up in a set at any time, also when what it refers to is gone."""

    __slots__ = ()
    __hash__ = object.__hash__
    __eq__ = object.__eq__


class Executor(ABC):
    """Sends commands and returns their replies. Redis' replies as they are: bytes, integers, lists, None.

    Each call has `timeout` seconds in all, counted once from its beginning: for its turn, the connection, the request
    and the whole answer. Only making a connection has `connect_timeout` seconds of its own; where it takes longer than
    the call has, the connection is kept for the next call.

    Attributes:
        most: How many bytes a reply may have that holds no entries of a stream.
        entry: How many bytes an entry of ours may have in a reply, with its headers.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.most = settings.max_payload + SLACK
        self.entry = settings.max_payload + HEADERS + AROUND
        self.where = settings.url
        self.closed = False
        self._links: weakref.WeakSet[Link] = weakref.WeakSet()

    def call(self, *command: Any) -> Awaitable[Any]:
        """Send one command and return its reply.

        Raises:
            BackendError: By kind; see `ailf_redis.errors`.
        """
        return self.call_page(0, *command)

    def call_page(self, entries: int, *command: Any) -> Awaitable[Any]:
        """Send one command whose reply may hold that many entries of a stream, and return its reply."""
        return self._call(command, entries)

    async def read_page(self, entries: int, read: Callable[[Any], T], *command: Any) -> T:
        """Send one command whose reply may hold that many entries; return what ``read`` makes of it."""
        reply = await self.call_page(entries, *command)
        try:
            return read(reply)
        except MISREAD as error:
            raise misread(error, self.where) from error

    def page(self, entries: int) -> int:
        """Return how many bytes a reply may have that may hold that many entries."""
        return max(entries * self.entry + SLACK, FOREIGN) if entries else self.most

    def call_prefixed(self, prefix: CommandPrefix, last: bytes, read: Callable[[Any], T]) -> Awaitable[T]:
        """Send a command by its stem and last argument, and return what ``read`` makes of its reply."""
        return self._call_prefixed(prefix, last, read)

    async def _call_prefixed(self, prefix: CommandPrefix, last: bytes, read: Callable[[Any], T]) -> T:
        return await self.read_page(0, read, *prefix.command, last)

    async def _call(self, command: Command, entries: int = 0) -> Any:
        reply = (await self.call_many([command], entries))[0]
        if isinstance(reply, Exception):
            raise mapped(reply, self.where, sent=True)
        return reply

    @abstractmethod
    async def call_many(self, commands: Sequence[Command], entries: int = 0) -> list[Any]:
        """Send commands in one write and return their replies in order; an error reply is returned, not raised.

        Arguments:
            commands: The commands.
            entries: How many entries of a stream each reply may hold.
        """

    @abstractmethod
    async def link(self, near: str | None = None) -> "Link":
        """Return a connection of its own; in a cluster to the node of this key."""

    def linked(self, link: "Link") -> None:
        """Remember a connection of its own for as long as somebody has it."""
        self._links.add(link)

    def apart(self, keys: Sequence[str]) -> list[list[int]]:
        """Return which of these keys one script may use together, by their positions: all, but in a cluster."""
        return [list(range(len(keys)))]

    @abstractmethod
    async def close(self) -> None:
        """Give back every connection; calls under way end with `ClosedError`."""

    def interrupt(self) -> None:  # noqa: B027 - asyncio calls are ended by close, on their loop
        """End calls that block in other threads."""

    def abandon(self) -> bool:
        """Give back every connection from any thread, without waiting; return whether there was one."""
        self.closed = True
        return sum(link.drop() for link in tuple(self._links)) > 0

    def lost(self, error: Exception, *, sent: bool) -> Exception:
        """Return what to raise for a broken call: that we closed it ourselves, or the mapped error."""
        if self.closed:
            return ClosedError(f"the backend {self.where} is closed")
        return mapped(error, self.where, sent=sent)

    def check_open(self) -> None:
        """Raise `ClosedError` after close."""
        if self.closed:
            raise ClosedError(f"the backend {self.where} is closed")


class Link(ABC):
    """A connection of its own: what is sent and what arrives are independent of each other."""

    @abstractmethod
    async def send(self, commands: Sequence[Command]) -> None:
        """Send commands, also while another thread or task receives."""

    @abstractmethod
    async def receive(self, timeout: float) -> list[Any]:
        """Return the replies that have arrived, in order; none after so many seconds without any.

        Raises:
            ConnectionLostError: The connection is gone.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """End a `receive` under way with `ConnectionLostError`, from any thread. The link is not used after that."""

    @abstractmethod
    def drop(self) -> bool:
        """Give back the connection from any thread, without waiting; return whether there still was one.

        A thread that is reading gives it back itself.
        """

    @abstractmethod
    async def close(self) -> None:
        """Give back the connection. It is idempotent."""


class LinkAround(Link):
    """A link around another one, which sends and receives."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def send(self, commands: Sequence[Command]) -> None:
        await self._link.send(commands)

    async def receive(self, timeout: float) -> list[Any]:
        return await self._link.receive(timeout)

    def interrupt(self) -> None:
        self._link.interrupt()

    def drop(self) -> bool:
        return self._link.drop()

    async def close(self) -> None:
        await self._link.close()
