"""Reading on asyncio: `ReplyProtocol` passes replies on as they arrive; `LoopLink` is a dedicated connection over it.

A connection belongs to the event loop that made it. `discard` closes it from elsewhere.
"""

import asyncio
import contextlib
from asyncio import _get_running_loop, get_running_loop
from collections.abc import Sequence
from typing import Any

from ailf.errors import ConnectionLostError
from ailf_redis.connection.executor import Executor, Link
from ailf_redis.connection.resp import Command, Replies, packed
from ailf_redis.versions import can_read, drop, left_over, parse_error_of, take_unread, writer_of

__all__ = ["LoopLink", "ReplyProtocol", "discard"]


def discard(connection: Any, loop: asyncio.AbstractEventLoop) -> bool:
    """Close a connection from any thread, without waiting; return whether it was open.

    A loop that has ended leaves the sockets of its connections open. This closes such a socket too, so that neither
    asyncio nor redis-py warns of an unclosed connection.

    Arguments:
        connection: redis-py's connection for asyncio.
        loop: The loop that it belongs to.
    """
    writer = writer_of(connection)
    if writer is None:
        return False
    transport: Any = getattr(writer, "transport", None)
    if not hasattr(transport, "abort"):  # a fake, which has no socket
        writer.close()
        return True
    if loop.is_closed():
        _close_without_loop(transport)
        with contextlib.suppress(RuntimeError):
            drop(connection)
        return True

    def close() -> None:
        transport.abort()
        drop(connection)

    if loop is _get_running_loop():
        close()
    else:
        with contextlib.suppress(RuntimeError):  # the loop was closed just now
            loop.call_soon_threadsafe(close)
    return True


def _close_without_loop(transport: Any) -> None:
    """Close the socket of a transport whose loop is closed."""
    with contextlib.suppress(RuntimeError):  # it marks itself as closing, and then fails to call its loop
        transport.abort()
    plain = getattr(getattr(transport, "_ssl_protocol", None), "_transport", transport)
    if (finish := getattr(plain, "_call_connection_lost", None)) is not None:  # the loop would have called it
        with contextlib.suppress(RuntimeError):
            finish(None)


class ReplyProtocol(asyncio.BufferedProtocol):
    """Replaces a connection's own protocol: it reads into one buffer, instead of allocating 256 KiB for each read."""

    def __init__(self, connection: Any) -> None:
        self.loop = get_running_loop()
        self._connection = connection
        self._replies = Replies(parse_error_of(connection), take_unread(connection))
        self._buffer = memoryview(self._replies.buffer)  # TLS fills a slice of it; a slice of a bytearray is a copy
        self._transport: asyncio.Transport = writer_of(connection).transport
        self._former_protocol = self._transport.get_protocol()
        self._transport.set_protocol(self)
        if can_read(connection):
            self.loop.call_soon(self._take_over)

    def _take_over(self) -> None:
        """Handle what had arrived before: a server that is full sends a refusal without reading a request."""
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
            self.handle_replies(self._replies.feed(nbytes, self.max_size))
            if self._replies.unfinished:
                self._replies.check(self.max_size())
        except Exception as error:  # noqa: BLE001 - after any error the next reply might reach the wrong request
            self.connection_lost(error)
            self._transport.abort()
        except BaseException as error:  # Ctrl-C: as above, for the rest of these replies
            self.interrupted(error)
            raise

    def interrupted(self, error: BaseException) -> None:
        """Close the connection, as replies may no longer match their requests."""
        self.connection_lost(ConnectionError(f"it was interrupted: {error!r}"))
        self._transport.abort()

    def drop(self) -> bool:
        """Close the connection from any thread, without waiting; return whether it was still open."""
        return discard(self._connection, self.loop)

    def handle_replies(self, replies: list[Any]) -> None:
        """Handle the replies that have arrived."""
        raise NotImplementedError

    def max_size(self) -> int:
        """Return the most bytes of the next reply."""
        raise NotImplementedError


class LoopLink(ReplyProtocol, Link):
    """A dedicated connection: replies wait for `receive`; while too many wait, nothing is read from the socket."""

    MAX_REPLIES, MAX_BYTES = 4096, 1024 * 1024
    """The number of waiting replies, and about the number of their bytes, at which reading pauses."""

    def __init__(self, executor: Executor, connection: Any) -> None:
        self._executor = executor
        self._loop = get_running_loop()
        self._arrived: list[Any] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._lost: Exception | None = None
        self._reading_paused = False
        super().__init__(connection)
        executor.track_link(self)

    async def send(self, commands: Sequence[Command]) -> None:
        if self._transport.is_closing() or self._loop is not get_running_loop():
            raise ConnectionLostError(f"the connection to {self._executor.where} is closed")
        self._transport.write(packed(commands))

    async def receive(self, timeout: float) -> list[Any]:
        if not self._arrived and self._lost is None:
            await self._wait(timeout)
        if self._arrived:
            arrived, self._arrived, self._size = self._arrived, [], 0
            self._pause_reading(paused=False)
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

    def max_size(self) -> int:
        return self._executor.max_size(1)

    def handle_replies(self, replies: list[Any]) -> None:
        self._arrived += replies
        if self._arrived:
            self._wake()
            if len(self._arrived) >= self.MAX_REPLIES or self._size >= self.MAX_BYTES:
                self._pause_reading(paused=True)

    def _pause_reading(self, *, paused: bool) -> None:
        """Pause or resume reading from the socket. Not every event loop allows either twice in a row."""
        if paused is self._reading_paused or self._transport.is_closing():
            return
        self._reading_paused = paused
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lost is None:
            self._lost = exc or ConnectionError("the server closed it")
            self._former_protocol.connection_lost(exc)
            drop(self._connection)
            self._wake()

    def interrupt(self) -> None:
        if self._loop is _get_running_loop():
            self._transport.abort()
        else:
            discard(self._connection, self._loop)

    async def close(self) -> None:
        discard(self._connection, self._loop)  # an orderly end of TLS would wait for the server
        if self._loop is get_running_loop():
            await asyncio.sleep(0)  # in this turn the transport calls `connection_lost`
