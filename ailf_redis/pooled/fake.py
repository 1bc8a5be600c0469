"""Links to fakeredis, which has no socket, on threads and on asyncio."""

import asyncio
import math
import threading
from asyncio import _get_running_loop
from collections.abc import Sequence
from typing import Any, Final

from ailf.errors import ConnectionLostError
from ailf.runtime.clock import SystemClock
from ailf_redis.connection.aio_link import discard
from ailf_redis.connection.endpoint import maybe_await, read_reply
from ailf_redis.connection.exchange import POLL_INTERVAL
from ailf_redis.connection.executor import Executor, Link
from ailf_redis.connection.resp import Command, packed
from ailf_redis.errors import BROKEN
from ailf_redis.versions import can_read, sock_of, writer_of

__all__ = ["AsyncioFakeLink", "BlockingFakeLink"]

MOST_REPLIES: Final = 1000
"""The most replies that one `receive` returns."""


class FakeLink(Link):
    """The shared implementation: after the first reply, `receive` reads all others that are there."""

    def __init__(self, executor: Executor, connection: Any) -> None:
        self._executor = executor
        self._connection = connection
        self._closed = False
        executor.track_link(self)

    async def send(self, commands: Sequence[Command]) -> None:
        if self._closed:
            raise ConnectionLostError(f"the connection to {self._executor.where} is closed")
        try:
            self._send(packed(commands))
        except BROKEN as error:
            raise self._executor.lost(error, sent=True) from error

    def _send(self, data: bytes) -> None:
        """Send packed commands."""
        raise NotImplementedError

    async def _first(self, timeout: float) -> list[Any]:
        """Return the first reply in a list; an empty list if none comes within `timeout` seconds."""
        raise NotImplementedError

    async def receive(self, timeout: float) -> list[Any]:
        replies: list[Any] = []
        try:
            replies = await self._first(timeout)
            while replies and len(replies) < MOST_REPLIES and await maybe_await(can_read(self._connection)):
                replies.append(await read_reply(self._connection))
        except BROKEN as error:
            if not replies:  # else the next `receive` finds the connection broken too
                raise self._executor.lost(error, sent=True) from error
        return replies

    async def close(self) -> None:
        self._closed = True
        await maybe_await(self._connection.disconnect())


class BlockingFakeLink(FakeLink):
    """A fake runs a command while it is being sent, so a thread of its own sends those that block."""

    _sender: threading.Thread | None = None

    def __init__(self, executor: Executor, connection: Any) -> None:
        super().__init__(executor, connection)
        self._reading = threading.Lock()
        self._writing = threading.Lock()

    async def send(self, commands: Sequence[Command]) -> None:
        if commands[0][0] not in ("XREAD", "BLPOP"):
            await super().send(commands)
            return
        self._sender = threading.Thread(target=self._block, args=(packed(commands),), name="ailf-fake", daemon=True)
        self._sender.start()

    def _send(self, data: bytes) -> None:
        with self._writing:
            sock_of(self._connection).sendall(data)

    def _block(self, data: bytes) -> None:
        self._send(data)
        if self._closed:
            self._connection.disconnect()

    async def receive(self, timeout: float) -> list[Any]:
        with self._reading:
            if self._closed:
                raise self._executor.lost(ConnectionError("it was closed"), sent=True)
            return await super().receive(timeout)

    async def _first(self, timeout: float) -> list[Any]:
        now = SystemClock.wait_time
        until = now() + timeout
        while not self._connection.can_read(max(0.0, min(POLL_INTERVAL, until - now()))):
            if self._closed:
                raise ConnectionError("it was interrupted")
            if now() >= until:
                return []
        return [await read_reply(self._connection)]

    def interrupt(self) -> None:
        self._closed = True

    def drop(self) -> bool:
        had, self._closed = not self._closed, True
        return had

    async def close(self) -> None:
        self._closed = True
        if self._sender is None or not self._sender.is_alive():  # else the thread closes the connection at its end
            with self._reading:
                await super().close()


class AsyncioFakeLink(FakeLink):
    """Receives with a check every `POLL_INTERVAL`, so that it can be interrupted."""

    def __init__(self, executor: Executor, connection: Any) -> None:
        super().__init__(executor, connection)
        self._loop = asyncio.get_running_loop()

    async def send(self, commands: Sequence[Command]) -> None:
        if self._loop is not asyncio.get_running_loop():
            self._closed = True
        await super().send(commands)

    def _send(self, data: bytes) -> None:
        writer_of(self._connection).writelines([data])

    async def _first(self, timeout: float) -> list[Any]:
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        while True:
            try:
                async with asyncio.timeout_at(min(until, loop.time() + POLL_INTERVAL)):
                    return [await read_reply(self._connection, timeout=math.inf)]
            except TimeoutError:
                if self._closed:
                    raise ConnectionError("it was interrupted") from None
                if loop.time() >= until:
                    return []

    def interrupt(self) -> None:
        self._closed = True
        if self._loop is not _get_running_loop():
            discard(self._connection, self._loop)
        elif writer_of(self._connection) is not None:
            writer_of(self._connection).close()

    async def close(self) -> None:
        if self._loop is asyncio.get_running_loop():
            await super().close()
        else:
            self.interrupt()

    def drop(self) -> bool:
        self._closed = True
        return discard(self._connection, self._loop)
