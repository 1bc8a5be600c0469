"""What arrives on asyncio: `Received` hands replies on, and a `LoopLink` keeps them for who receives."""

import asyncio
import contextlib
from asyncio import get_running_loop
from collections.abc import Sequence
from typing import Any

import hiredis

from ailf.errors import ConnectionLostError
from ailf_redis.connection import Command, Executor, Link, Replies, packed

__all__ = ["LoopLink", "Received", "drop"]


def drop(connection: Any, loop: asyncio.AbstractEventLoop) -> bool:
    """Give back a connection of redis-py from any thread, without waiting; return whether there was one.

    Where its loop is closed nothing of asyncio can end it any more: its socket is closed, and neither asyncio nor
    redis-py are to say that it was forgotten.
    """
    writer = connection._writer
    if not isinstance(writer, asyncio.StreamWriter):  # it is gone; or a fake's, which has no socket
        return writer is not None
    if loop.is_closed():
        connection._writer = connection._reader = None
        _close_socket(writer.transport)
        return True

    def end() -> None:
        writer.transport.abort()
        connection._close()

    if loop is asyncio._get_running_loop():
        end()
    else:
        with contextlib.suppress(RuntimeError):  # closed just now
            loop.call_soon_threadsafe(end)
    return True


def _close_socket(transport: Any) -> None:
    protocol = getattr(transport, "_ssl_protocol", None)
    if protocol is not None:  # TLS stands on a transport of its own
        transport._closed = True
        transport = protocol._transport
    sock = getattr(transport, "_sock", None)
    if sock is not None:  # else it is another loop's transport, whose socket was closed with the loop
        transport._sock, transport._closing = None, True
        sock.close()


class Received(asyncio.BufferedProtocol):
    """Takes the place of a connection's own protocol, for which each read would be a new quarter of a megabyte."""

    def __init__(self, connection: Any) -> None:
        self.loop = get_running_loop()
        self._connection = connection
        self._replies = Replies(connection._parser.parse_error)
        self._buffer = memoryview(self._replies.buffer)  # TLS fills a part of it, and a part of a bytearray is a copy
        self._transport: asyncio.Transport = connection._writer.transport
        self._before = self._transport.get_protocol()
        self._transport.set_protocol(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's form
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self.take(self._replies.taken(nbytes))
        except hiredis.HiredisError as error:
            self.connection_lost(ConnectionError(f"what it sent is no reply: {error}"))
            self._transport.abort()
        except BaseException as error:  # Ctrl-C: what is taken in part would be taken for others' replies
            self.connection_lost(ConnectionError(f"it was interrupted: {error!r}"))
            self._transport.abort()
            raise

    def drop(self) -> bool:
        """Give back the connection from any thread, without waiting; return whether there still was one."""
        return drop(self._connection, self.loop)

    def take(self, replies: list[Any]) -> None:
        """Do something with what has arrived."""
        raise NotImplementedError


class LoopLink(Received, Link):
    """What has arrived waits for who receives it; the transport rests while that is much."""

    MUCH, LARGE = 4096, 1024 * 1024
    """How many replies may wait, and about how many bytes."""

    def __init__(self, executor: Executor, connection: Any) -> None:
        self._executor = executor
        self._arrived: list[Any] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._lost: Exception | None = None
        self._resting = False
        super().__init__(connection)
        executor.linked(self)

    async def send(self, commands: Sequence[Command]) -> None:
        if self._transport.is_closing():
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
            self._wake()

    def interrupt(self) -> None:
        self._transport.close()

    async def close(self) -> None:
        await self._connection.disconnect()
