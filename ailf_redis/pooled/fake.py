"""Dedicated connections without a socket: those of fakeredis, on threads and on asyncio."""

import asyncio
import math
import threading
from asyncio import _get_running_loop
from collections.abc import Sequence
from typing import Any, Final

from ailf.errors import ConnectionLostError
from ailf.runtime.clock import SystemClock
from ailf_redis.connection.aio_link import discard
from ailf_redis.connection.endpoint import answer, done
from ailf_redis.connection.exchange import GLANCE
from ailf_redis.connection.executor import Executor, Link
from ailf_redis.connection.resp import Command, packed
from ailf_redis.errors import BROKEN
from ailf_redis.versions import can_read, sock_of, writer_of

__all__ = ["AsyncioFakeLink", "BlockingFakeLink"]

MOST_REPLIES: Final = 1000
"""How many replies a link returns at once, however many more are there."""


class FakeLink(Link):
    """What both flavours share: reading what is there once the first reply has come."""

    def __init__(self, executor: Executor, connection: Any) -> None:
        self._executor = executor
        self._connection = connection
        self._gone = False
        executor.linked(self)

    async def send(self, commands: Sequence[Command]) -> None:
        if self._gone:
            raise ConnectionLostError(f"the connection to {self._executor.where} is gone")
        try:
            self._send(packed(commands))
        except BROKEN as error:
            raise self._executor.lost(error, sent=True) from error

    def _send(self, data: bytes) -> None:
        """Send bytes."""
        raise NotImplementedError

    async def _first(self, timeout: float) -> list[Any]:
        """Return the first reply; none after so many seconds without it."""
        raise NotImplementedError

    async def receive(self, timeout: float) -> list[Any]:
        replies: list[Any] = []
        try:
            replies = await self._first(timeout)
            while replies and len(replies) < MOST_REPLIES and await done(can_read(self._connection)):
                replies.append(await answer(self._connection))
        except BROKEN as error:
            if not replies:  # else the next one finds it broken too
                raise self._executor.lost(error, sent=True) from error
        return replies

    async def close(self) -> None:
        self._gone = True
        await done(self._connection.disconnect())


class BlockingFakeLink(FakeLink):
    """A fake does what it is asked while it is sent, so who sends what blocks can't be interrupted: a thread does."""

    _sender: threading.Thread | None = None

    def __init__(self, executor: Executor, connection: Any) -> None:
        super().__init__(executor, connection)
        self._reading = threading.Lock()
        self._writing = threading.Lock()

    async def send(self, commands: Sequence[Command]) -> None:
        if commands[0][0] != "XREAD":
            await super().send(commands)
            return
        self._sender = threading.Thread(target=self._block, args=(packed(commands),), name="ailf-fake", daemon=True)
        self._sender.start()

    def _send(self, data: bytes) -> None:
        with self._writing:
            sock_of(self._connection).sendall(data)

    def _block(self, data: bytes) -> None:
        self._send(data)
        if self._gone:
            self._connection.disconnect()

    async def receive(self, timeout: float) -> list[Any]:
        with self._reading:
            if self._gone:
                raise self._executor.lost(ConnectionError("it was closed"), sent=True)
            return await super().receive(timeout)

    async def _first(self, timeout: float) -> list[Any]:
        now = SystemClock.wait_time
        until = now() + timeout
        while not self._connection.can_read(max(0.0, min(GLANCE, until - now()))):
            if self._gone:
                raise ConnectionError("it was interrupted")
            if now() >= until:
                return []
        return [await answer(self._connection)]

    def interrupt(self) -> None:
        self._gone = True

    def drop(self) -> bool:
        had, self._gone = not self._gone, True
        return had

    async def close(self) -> None:
        self._gone = True
        if self._sender is None or not self._sender.is_alive():  # else it ends the connection when it comes back
            with self._reading:
                await super().close()


class AsyncioFakeLink(FakeLink):
    """Receives in slices, so that it can be interrupted."""

    def __init__(self, executor: Executor, connection: Any) -> None:
        super().__init__(executor, connection)
        self._loop = asyncio.get_running_loop()

    async def send(self, commands: Sequence[Command]) -> None:
        if self._loop is not asyncio.get_running_loop():
            self._gone = True
        await super().send(commands)

    def _send(self, data: bytes) -> None:
        writer_of(self._connection).writelines([data])

    async def _first(self, timeout: float) -> list[Any]:
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        while True:
            try:
                async with asyncio.timeout_at(min(until, loop.time() + GLANCE)):
                    return [await answer(self._connection, timeout=math.inf)]
            except TimeoutError:
                if self._gone:
                    raise ConnectionError("it was interrupted") from None
                if loop.time() >= until:
                    return []

    def interrupt(self) -> None:
        self._gone = True
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
        self._gone = True
        return discard(self._connection, self._loop)
