"""`Executor` sends commands and returns replies; `Link` is a dedicated connection. Both are abstract.

The executors of this folder, `BlockingExecutor` and `AsyncioExecutor`, stand on redis-py's connections, which do
address, TLS, handshake, authentication and database. Subscriptions and blocking reads wait long, so each has a link.

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
    """A weak reference that is hashed and compared by identity, so a set finds it even after its object is gone."""

    __slots__ = ()
    __hash__ = object.__hash__
    __eq__ = object.__eq__


class Executor(ABC):
    """Sends commands and returns their replies unchanged: bytes, integers, lists, None.

    Each call has `timeout` seconds in all, counted once from its beginning: for its wait for a connection, the request
    and the whole reply. Only making a connection has `connect_timeout` seconds of its own; if it takes longer than the
    call's time, the connection is kept for the next call.

    Attributes:
        most: The most bytes of a reply that holds no entries of a stream.
        entry: The most bytes that an entry of ours has in a reply, headers included.
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
            BackendError: The call failed; `ailf_redis.errors` chooses the subclass.
        """
        return self.call_page(0, *command)

    def call_page(self, entries: int, *command: Any) -> Awaitable[Any]:
        """Send one command whose reply may hold `entries` entries of a stream; return its reply."""
        return self._call(command, entries)

    async def read_page(self, entries: int, read: Callable[[Any], T], *command: Any) -> T:
        """Send one command whose reply may hold `entries` entries; return the reply converted by `read`."""
        reply = await self.call_page(entries, *command)
        try:
            return read(reply)
        except MISREAD as error:
            raise misread(error, self.where) from error

    def max_size(self, entries: int) -> int:
        """Return the most bytes of a reply that may hold `entries` entries."""
        return max(entries * self.entry + SLACK, FOREIGN) if entries else self.most

    def call_prefixed(self, prefix: CommandPrefix, last: bytes, read: Callable[[Any], T]) -> Awaitable[T]:
        """Send a command by its prefix and its last argument; return its reply converted by `read`."""
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
            entries: The most entries of a stream that each reply may hold.
        """

    @abstractmethod
    async def link(self, near: str | None = None) -> "Link":
        """Return a dedicated connection; in a cluster, to the node of the key `near`."""

    async def nodes(self) -> list[str]:
        """Return the nodes among which keys are spread, as `call_at` takes them; "" stands for the only one."""
        return [""]

    def call_at(self, node: str, entries: int, *command: Any) -> Awaitable[Any]:  # noqa: ARG002 - there is one node
        """Send one command to a node, as `call_page` does; no redirection is followed."""
        return self.call_page(entries, *command)

    def track_link(self, link: "Link") -> None:
        """Remember a link while it is in use, for `abandon`."""
        self._links.add(link)

    def group_by_slot(self, keys: Sequence[str]) -> list[list[int]]:
        """Return the positions of `keys` in groups that one script may use together: one group, except in a cluster."""
        return [list(range(len(keys)))]

    @abstractmethod
    async def close(self) -> None:
        """Close every connection; pending calls end with `ClosedError`."""

    def interrupt(self) -> None:  # noqa: B027 - close ends asyncio calls, on their loop
        """End the calls that block in other threads."""

    def abandon(self) -> bool:
        """Close every connection from any thread, without waiting; return whether there was one."""
        self.closed = True
        return sum(link.drop() for link in tuple(self._links)) > 0

    def lost(self, error: Exception, *, sent: bool) -> Exception:
        """Return the error to raise for a broken call: `ClosedError` after close, else `error` mapped to ailf's."""
        if self.closed:
            return ClosedError(f"the backend {self.where} is closed")
        return mapped(error, self.where, sent=sent)

    def check_open(self) -> None:
        """Raise `ClosedError` after close."""
        if self.closed:
            raise ClosedError(f"the backend {self.where} is closed")


class Link(ABC):
    """A dedicated connection; sending and receiving are independent of each other."""

    @abstractmethod
    async def send(self, commands: Sequence[Command]) -> None:
        """Send commands; another thread or task may receive meanwhile."""

    @abstractmethod
    async def receive(self, timeout: float) -> list[Any]:
        """Return the replies that have arrived, in order; none if none arrives within `timeout` seconds.

        Raises:
            ConnectionLostError: The connection is closed or broken.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """End a pending `receive` with `ConnectionLostError`, from any thread. The link is not used after that."""

    @abstractmethod
    def drop(self) -> bool:
        """Close the connection from any thread, without waiting; return whether it was still open.

        If a thread is reading, that thread closes it.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the connection. It may be called again."""


class LinkAround(Link):
    """A link that sends and receives over another one."""

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
