"""One exchange over one connection: requests out, replies in, within one deadline, whatever redis-py's class is.

ailf reads from TCP, TLS and unix sockets itself: redis-py would restart the timeout at each read, and bounds no
reply. A fake has no socket, so it is read by redis-py's methods, with a check every `POLL_INTERVAL`.
"""

import asyncio
import socket
from abc import ABC, abstractmethod
from typing import Any, Final

from ailf.runtime.clock import SystemClock
from ailf_redis.connection.endpoint import read_reply
from ailf_redis.connection.executor import IdentityRef
from ailf_redis.connection.resp import NOTHING, PING, READ_SIZE, Replies, check_size
from ailf_redis.errors import BROKEN
from ailf_redis.versions import is_asyncio, parse_error_of, reader_of, sock_of, take_unread, writer_of

__all__ = ["POLL_INTERVAL", "Port", "port_of"]

POLL_INTERVAL: Final = 0.05
"""Seconds after which a wait on a connection without a socket checks for interruption and for its deadline."""


class Port(ABC):
    """Sends requests and receives replies over one connection.

    Attributes:
        connection: redis-py's connection.
        used: When the last call over it began, on the system's clock.
        ref: The weak reference by which it is known while a call uses it.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.used = SystemClock.wait_time()
        self.ref: IdentityRef[Port] | None = None

    @abstractmethod
    async def send(self, data: bytes, until: float) -> None:
        """Send `data` before the time `until`. On asyncio it is only queued: the deadline of the replies bounds it.

        Raises:
            TimeoutError: It could not be sent in time.
        """

    @abstractmethod
    async def receive(self, count: int, until: float, most: int) -> list[Any]:
        """Return `count` replies, error replies included, of at most `most` bytes each.

        Raises:
            TimeoutError: They did not arrive before `until`.
            hiredis.ProtocolError: They are malformed or too large.
        """

    def awaits_unread(self) -> bool:
        """Return whether replies are still to come to what was sent when the connection was made."""
        return False

    async def answers_ping(self, until: float) -> bool:
        """Return whether the server replies to a PING, even if with an error."""
        try:
            await self.send(PING, until)
            await self.receive(1, until, READ_SIZE)
        except BROKEN:
            return False
        return True


def port_of(connection: Any) -> Port:
    """Return the port over a connection of redis-py or fakeredis, of either flavour."""
    if not is_asyncio(connection):
        return _SocketPort(connection) if isinstance(sock_of(connection), socket.socket) else _FakePort(connection)
    kind = _StreamPort if isinstance(reader_of(connection), asyncio.StreamReader) else _FakeLoopPort
    return kind(connection)


def _left(until: float) -> float:
    left = until - SystemClock.wait_time()
    if left <= 0:
        raise TimeoutError("the call's time is over")
    return left


class _ReadPort(Port):
    """Reads bytes, and cuts them into replies."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._replies = Replies(parse_error_of(connection), take_unread(connection))

    def awaits_unread(self) -> bool:
        return self._replies.unread > 0

    async def receive(self, count: int, until: float, most: int) -> list[Any]:
        replies: list[Any] = []
        arrived = 0
        while len(replies) < count:
            size = await self._read(until)
            if not size:
                raise ConnectionError("the server closed it")
            reply = self._replies.first(size, most)
            arrived += size
            while reply is not NOTHING:
                replies.append(reply)
                arrived = 0
                reply = self._replies.following() if len(replies) < count else NOTHING
            if len(replies) < count:
                check_size(arrived, most)
        if self._replies.has_more():
            raise ConnectionError("an unsolicited reply")
        return replies

    async def _read(self, until: float) -> int:
        """Read into the buffer before the time `until`; return how many bytes."""
        raise NotImplementedError


class _SocketPort(_ReadPort):
    async def send(self, data: bytes, until: float) -> None:
        rest = memoryview(data)
        while rest:
            sock_of(self.connection).settimeout(_left(until))
            rest = rest[sock_of(self.connection).send(rest) :]

    async def _read(self, until: float) -> int:
        sock = sock_of(self.connection)
        if sock is None:  # closed by another thread
            raise ConnectionError("it was closed")
        sock.settimeout(_left(until))
        size: int = sock.recv_into(self._replies.buffer)
        return size


class _StreamPort(_ReadPort):
    async def send(self, data: bytes, until: float) -> None:  # noqa: ARG002 - asyncio's writer buffers everything
        writer_of(self.connection).write(data)

    async def _read(self, until: float) -> int:
        reader: asyncio.StreamReader | None = reader_of(self.connection)
        if reader is None:
            raise ConnectionError("it was closed")
        async with asyncio.timeout(_left(until)):
            data = await reader.read(READ_SIZE)
        self._replies.buffer[: len(data)] = data
        return len(data)


class _FakePort(Port):
    async def send(self, data: bytes, until: float) -> None:  # noqa: ARG002 - a fake carries commands out at once
        sock_of(self.connection).sendall(data)

    async def receive(self, count: int, until: float, most: int) -> list[Any]:  # noqa: ARG002 - no bytes are counted
        replies: list[Any] = []
        while len(replies) < count:
            while not self.connection.can_read(min(_left(until), POLL_INTERVAL)):
                pass
            replies.append(await read_reply(self.connection))
        return replies


class _FakeLoopPort(Port):
    async def send(self, data: bytes, until: float) -> None:  # noqa: ARG002 - as above
        writer_of(self.connection).writelines([data])

    async def receive(self, count: int, until: float, most: int) -> list[Any]:  # noqa: ARG002 - as above
        replies = []
        for _ in range(count):
            async with asyncio.timeout(_left(until)):
                replies.append(await read_reply(self.connection, timeout=None))
        return replies
