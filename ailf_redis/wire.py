"""Asyncio calls: all tasks share one redis-py connection, on which their requests are pipelined as they come."""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Sequence
from typing import Any

import hiredis
from redis import asyncio as aredis
from redis.exceptions import RedisError

from ailf.errors import BackendTimeoutError, ConnectionLostError
from ailf_redis.connection import READ_SIZE, Command, Executor, Link, Replies
from ailf_redis.settings import Settings

__all__ = ["AsyncioExecutor"]


async def _connect(settings: Settings) -> Any:
    kinds = {True: aredis.SSLConnection, False: aredis.Connection}
    kind = aredis.UnixDomainSocketConnection if settings.path is not None else kinds[settings.tls]
    connection: Any = kind(**settings.connection_options())
    try:
        await connection.connect()
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return connection


class _Asked:
    """A request on the wire: how many replies it waits for, and who waits."""

    __slots__ = ("answer", "left", "replies")

    def __init__(self, answer: "asyncio.Future[list[Any]]", left: int) -> None:
        self.answer = answer
        self.left = left
        self.replies: list[Any] = []


class _Wire:
    """One connection that many tasks use at once: requests go out as they come, replies go to the oldest request.

    A caller that was cancelled leaves its place in the queue, so its reply is taken and thrown away. The bytes are
    written at once and without waiting: what is in flight is bounded by the callers, each of whom waits for its reply.
    """

    def __init__(self, connection: Any, executor: "AsyncioExecutor") -> None:
        self.loop = asyncio.get_running_loop()
        self.pid = os.getpid()
        self.broken = False
        self._connection = connection
        self._executor = executor
        self._reader: asyncio.StreamReader = connection._reader
        self._writer: asyncio.StreamWriter = connection._writer
        self._replies = Replies(connection._parser.parse_error)
        self._queue: deque[_Asked] = deque()
        self._task = self.loop.create_task(self._read(), name="ailf-redis-replies")

    def usable(self) -> bool:
        """Tell whether it can be used from here: not broken, and of this process and loop."""
        return not (self.broken or self._writer.is_closing()) and self.usable_loop()

    def usable_loop(self) -> bool:
        """Tell whether it is of this process and loop, so that it can be closed from here."""
        return self.pid == os.getpid() and self.loop is asyncio.get_running_loop()

    async def ask(self, commands: Sequence[Command], timeout: float) -> list[Any]:
        asked = _Asked(self.loop.create_future(), len(commands))
        self._writer.writelines(self._connection.pack_commands(commands))
        self._queue.append(asked)
        timer = self.loop.call_later(timeout, self._late, asked.answer)
        try:
            return await asked.answer
        finally:
            timer.cancel()

    def _late(self, answer: "asyncio.Future[list[Any]]") -> None:
        """The server is silent: leave this wire to those who wait on it, so that the next call tries another."""
        if not answer.done():
            self._executor.retire(self)
            where = self._executor.where
            answer.set_exception(BackendTimeoutError(f"{where} did not answer in time", maybe_applied=True))

    async def _read(self) -> None:
        cause: Exception = ConnectionError("the server closed it")
        try:
            while data := await self._reader.read(READ_SIZE):
                for reply in self._replies.feed(data):
                    self._answer(reply)
        except (OSError, hiredis.HiredisError) as error:
            cause = error
        finally:
            self.broken = True
            self._executor.retire(self)
            self._fail(cause)
            with contextlib.suppress(RedisError):
                await self._connection.disconnect()  # here and not in a caller, who may be cancelled meanwhile
            self._executor.forget(self)

    def _answer(self, reply: Any) -> None:
        asked = self._queue[0]
        asked.replies.append(reply)
        asked.left -= 1
        if not asked.left:
            self._queue.popleft()
            if not asked.answer.done():
                asked.answer.set_result(asked.replies)

    def _fail(self, cause: Exception) -> None:
        while self._queue:
            answer = self._queue.popleft().answer
            if not answer.done():
                error = self._executor.lost(cause, sent=True)
                error.__cause__ = cause
                answer.set_exception(error)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


class AsyncioExecutor(Executor):
    """One connection for all calls of an event loop."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._wire: _Wire | None = None
        self._retired: set[_Wire] = set()
        self._connecting: asyncio.Lock | None = None

    async def call_many(self, commands: Sequence[Command]) -> list[Any]:
        self.check_open()
        wire = self._wire
        if wire is None or not wire.usable():
            wire = await self._connect()
        return await wire.ask(commands, self.settings.timeout)

    async def _connect(self) -> _Wire:
        """Make the connection once for all who want it; the next one tries where this one fails or is cancelled."""
        if self._connecting is None or (self._wire is not None and self._wire.loop is not asyncio.get_running_loop()):
            self._connecting, self._wire = asyncio.Lock(), None
        async with self._connecting:
            wire = self._wire
            if wire is None or not wire.usable():
                self.check_open()
                if wire is not None:
                    self.retire(wire)
                try:
                    wire = self._wire = _Wire(await _connect(self.settings), self)
                except (RedisError, OSError) as error:
                    raise self.lost(error, sent=False) from error
                if self.closed:  # while it was being made
                    await wire.close()
                    self.check_open()
            return wire

    def retire(self, wire: _Wire) -> None:
        """Use it no more for new calls."""
        if self._wire is wire:
            self._wire = None
        self._retired.add(wire)

    def forget(self, wire: _Wire) -> None:
        """It is gone."""
        self._retired.discard(wire)

    async def link(self) -> Link:
        self.check_open()
        try:
            return _Link(self, await _connect(self.settings))
        except (RedisError, OSError) as error:
            raise self.lost(error, sent=False) from error

    async def close(self) -> None:
        self.closed = True
        wires = {*self._retired, *([self._wire] if self._wire is not None else [])}
        self._retired.clear()
        self._wire = None
        for wire in wires:
            if wire.usable_loop():
                await wire.close()


class _Link(Link):
    def __init__(self, executor: Executor, connection: Any) -> None:
        self._executor = executor
        self._connection = connection
        self._reader: asyncio.StreamReader = connection._reader
        self._writer: asyncio.StreamWriter = connection._writer
        self._replies = Replies(connection._parser.parse_error)

    async def send(self, commands: Sequence[Command]) -> None:
        if self._writer.is_closing():
            raise ConnectionLostError(f"the connection to {self._executor.where} is gone")
        self._writer.writelines(self._connection.pack_commands(commands))

    async def receive(self, timeout: float) -> list[Any]:
        try:
            async with asyncio.timeout(timeout):
                while True:
                    data = await self._reader.read(READ_SIZE)
                    if not data:
                        raise ConnectionError("the server closed it")
                    replies = self._replies.feed(data)
                    if replies:
                        return replies
        except TimeoutError:
            return []
        except (OSError, hiredis.HiredisError) as error:
            raise self._executor.lost(error, sent=True) from error

    def interrupt(self) -> None:
        self._writer.close()

    async def close(self) -> None:
        await self._connection.disconnect()
