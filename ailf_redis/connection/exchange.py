"""Calls over one connection of a client that was brought: a request out, its replies in, within one deadline.

TCP, TLS and unix sockets are read by ailf's own readers, not by redis-py's, which count a timeout anew for each read
and bound no reply. A fake has no socket, so it is asked through redis-py's methods, in slices of 50 ms.
"""

import asyncio
import socket
from abc import ABC, abstractmethod
from typing import Any, Final

from ailf.runtime.clock import SystemClock
from ailf_redis.connection.endpoint import answer, done
from ailf_redis.connection.executor import IdentityRef
from ailf_redis.connection.resp import NOTHING, READ_SIZE, Replies, check_size, packed
from ailf_redis.errors import BROKEN
from ailf_redis.versions import is_asyncio, parse_error_of, reader_of, sock_of, writer_of

__all__ = ["GLANCE", "Port", "port_of"]

GLANCE: Final = 0.05
"""Seconds after which a wait on a connection without a socket looks whether it was interrupted, or is over."""

_PING: Final = packed([("PING",)])


class Port(ABC):
    """What sends and receives over one connection.

    Attributes:
        connection: The connection.
        used: When the last call over it began, on the system's clock.
        ref: What finds it while a call has it.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.used = SystemClock.wait_time()
        self.ref: IdentityRef[Port] | None = None

    @abstractmethod
    async def send(self, data: bytes, until: float) -> None:
        """Send bytes. On asyncio they go out with the loop's next turns, and the reply's deadline is theirs too.

        Raises:
            TimeoutError: They can't be sent until then.
        """

    @abstractmethod
    async def receive(self, count: int, until: float, most: int) -> list[Any]:
        """Return that many replies, error replies among them, none of more than `most` bytes.

        Raises:
            TimeoutError: They don't come until then.
            hiredis.ProtocolError: They are none, or too large.
        """

    async def answers(self, until: float) -> bool:
        """Tell whether the server answers a PING, whatever it says."""
        try:
            await self.send(_PING, until)
            await self.receive(1, until, READ_SIZE)
        except BROKEN:
            return False
        return True


def port_of(connection: Any) -> Port:
    """Return what sends and receives over a connection of redis-py, of either flavour, or of a fake."""
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
    """Reads replies from bytes."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._replies = Replies(parse_error_of(connection))

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
            raise ConnectionError("more came than was asked for")
        return replies

    async def _read(self, until: float) -> int:
        """Read into the buffer; return how much."""
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
    async def send(self, data: bytes, until: float) -> None:  # noqa: ARG002 - asyncio's writer takes everything
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
    async def send(self, data: bytes, until: float) -> None:  # noqa: ARG002 - a fake does at once what it is asked
        sock_of(self.connection).sendall(data)

    async def receive(self, count: int, until: float, most: int) -> list[Any]:  # noqa: ARG002 - nothing is sent
        replies: list[Any] = []
        while len(replies) < count:
            while not self.connection.can_read(min(_left(until), GLANCE)):
                pass
            replies.append(await answer(self.connection))
        return replies


class _FakeLoopPort(Port):
    async def send(self, data: bytes, until: float) -> None:  # noqa: ARG002 - as above
        writer_of(self.connection).writelines([data])

    async def receive(self, count: int, until: float, most: int) -> list[Any]:  # noqa: ARG002 - as above
        replies = []
        for _ in range(count):
            async with asyncio.timeout(_left(until)):
                replies.append(await done(answer(self.connection, timeout=None)))
        return replies
