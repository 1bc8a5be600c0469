"""What arrives on asyncio: `ReplyProtocol` hands replies on, and a `LoopLink` keeps them for who receives.

A connection belongs to the event loop that made it. `discard` ends it from elsewhere.
"""

import asyncio
import contextlib
from asyncio import _get_running_loop, get_running_loop
from collections.abc import Sequence
from typing import Any

from ailf.errors import ConnectionLostError
from ailf_redis.connection.executor import Executor, Link
from ailf_redis.connection.resp import Command, Replies, packed
from ailf_redis.versions import can_read, drop, left_over, parse_error_of, writer_of

__all__ = ["LoopLink", "ReplyProtocol", "discard"]


def discard(connection: Any, loop: asyncio.AbstractEventLoop) -> bool:
    """End a connection from any thread, without waiting; return whether there was one.

    A loop that has ended leaves the sockets of its connections open: the socket is closed, and neither asyncio nor
    redis-py is to say that the connection was forgotten.

    Arguments:
        connection: One of redis-py, for asyncio.
        loop: The loop that it belongs to.
    """
    writer = writer_of(connection)
    if writer is None:
        return False
    transport: Any = getattr(writer, "transport", None)
    if not hasattr(transport, "abort"):  # a fake's, which has no socket
        writer.close()
        return True
    if loop.is_closed():
        _end_without_loop(transport)
        with contextlib.suppress(RuntimeError):
            drop(connection)
        return True

    def end() -> None:
        transport.abort()
        drop(connection)

    if loop is _get_running_loop():
        end()
    else:
        with contextlib.suppress(RuntimeError):  # closed just now
            loop.call_soon_threadsafe(end)
    return True


def _end_without_loop(transport: Any) -> None:
    """Close the socket of a transport whose loop is closed."""
    with contextlib.suppress(RuntimeError):  # having noted down that the transport is closing, it would ask its loop
        transport.abort()
    plain = getattr(getattr(transport, "_ssl_protocol", None), "_transport", transport)
    if (finish := getattr(plain, "_call_connection_lost", None)) is not None:  # what the loop would have called
        with contextlib.suppress(RuntimeError):
            finish(None)


class ReplyProtocol(asyncio.BufferedProtocol):
    """Takes the place of a connection's own protocol, for which each read would be a new quarter of a megabyte."""

    def __init__(self, connection: Any) -> None:
        self.loop = get_running_loop()
        self._connection = connection
        self._replies = Replies(parse_error_of(connection))
        self._buffer = memoryview(self._replies.buffer)  # TLS fills a part of it, and a part of a bytearray is a copy
        self._transport: asyncio.Transport = writer_of(connection).transport
        self._before = self._transport.get_protocol()
        self._transport.set_protocol(self)
        if can_read(connection):
            self.loop.call_soon(self._take_over)

    def _take_over(self) -> None:
        """Take what had arrived before, as a server refuses whom it has no room for without being asked."""
        data, ended = left_over(self._connection)
        self._buffer[: len(data)] = data
        if data:
            self.buffer_updated(len(data))
        if ended:
            self.connection_lost(None)
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's form
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self.take(self._replies.taken(nbytes, self.limit))
            if self._replies.unfinished:
                self._replies.check(self.limit())
        except Exception as error:  # noqa: BLE001 - whatever it is, the next reply would be taken for another's
            self.connection_lost(error)
            self._transport.abort()
        except BaseException as error:  # Ctrl-C: what is taken in part would be taken for others' replies
            self.interrupted(error)
            raise

    def interrupted(self, error: BaseException) -> None:
        """End the connection, as nobody knows what belongs to whom."""
        self.connection_lost(ConnectionError(f"it was interrupted: {error!r}"))
        self._transport.abort()

    def drop(self) -> bool:
        """Give back the connection from any thread, without waiting; return whether there still was one."""
        return discard(self._connection, self.loop)

    def take(self, replies: list[Any]) -> None:
        """Do something with what has arrived."""
        raise NotImplementedError

    def limit(self) -> int:
        """Return how many bytes the next reply may have."""
        raise NotImplementedError


class LoopLink(ReplyProtocol, Link):
    """What has arrived waits for who receives it; the transport rests while that is much."""

    MUCH, LARGE = 4096, 1024 * 1024
    """How many replies may wait, and about how many bytes."""

    def __init__(self, executor: Executor, connection: Any) -> None:
        self._executor = executor
        self._loop = get_running_loop()
        self._arrived: list[Any] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._lost: Exception | None = None
        self._resting = False
        super().__init__(connection)
        executor.linked(self)

    async def send(self, commands: Sequence[Command]) -> None:
        if self._transport.is_closing() or self._loop is not get_running_loop():
            raise ConnectionLostError(f"the connection to {self._executor.where} is gone")
        self._transport.write(packed(commands))

    async def receive(self, timeout: float) -> list[Any]:
        if not self._arrived and self._lost is None:
            await self._wait(timeout)
        if self._arrived:
            arrived, self._arrived, self._size = self._arrived, [], 0
            self._rest(resting=False)
            return arrived
        if self._lost is not None:
            raise self._executor.lost(self._lost, sent=True) from self._lost
        return []

    async def _wait(self, timeout: float) -> None:
        loop = get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(timeout, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def buffer_updated(self, nbytes: int) -> None:
        self._size += nbytes
        super().buffer_updated(nbytes)

    def limit(self) -> int:
        return self._executor.page(1)

    def take(self, replies: list[Any]) -> None:
        self._arrived += replies
        if self._arrived:
            self._wake()
            if len(self._arrived) >= self.MUCH or self._size >= self.LARGE:
                self._rest(resting=True)

    def _rest(self, *, resting: bool) -> None:
        """Read no more, or again; not every loop takes that twice."""
        if resting is self._resting or self._transport.is_closing():
            return
        self._resting = resting
        if resting:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lost is None:
            self._lost = exc or ConnectionError("the server closed it")
            self._before.connection_lost(exc)
            drop(self._connection)
            self._wake()

    def interrupt(self) -> None:
        if self._loop is _get_running_loop():
            self._transport.abort()
        else:
            discard(self._connection, self._loop)

    async def close(self) -> None:
        discard(self._connection, self._loop)  # a polite end of TLS waits for the server's
        if self._loop is get_running_loop():
            await asyncio.sleep(0)  # in which the transport says that it is gone
