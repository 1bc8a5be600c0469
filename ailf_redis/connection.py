"""How commands reach the server: the one seam of the driver, with an executor for each flavour.

Both stand on redis-py's own connections, which do address, TLS, handshake, authentication and database. Blocking calls
take a connection from a pool; asyncio calls share one, on which they are pipelined as they come. What waits for long
(blocking reads, subscriptions) has a `Link`, a connection of its own.

The rule of this file: an error says whether the request may have reached the server (``maybe_applied``), a call that is
given up (a cancelled task, Ctrl-C) never leaves a reply for the next one, and every wait has a deadline.
"""

import asyncio
import contextlib
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis
from redis import asyncio as aredis
from redis import connection as blocking
from redis.exceptions import RedisError, ResponseError

from ailf.errors import BackendTimeoutError, ClosedError, ConnectionLostError
from ailf.runtime import Runtime
from ailf_redis.errors import mapped
from ailf_redis.settings import Settings

__all__ = ["AsyncioExecutor", "BlockingExecutor", "Command", "Executor", "Link", "executor_for"]

Command = Sequence[Any]

_NOTHING: Final = object()
_READ = 64 * 1024


class Executor(ABC):
    """Sends commands and returns their replies. Redis' replies as they are: bytes, integers, lists, None."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.where = settings.url
        self.closed = False

    async def call(self, *command: Any) -> Any:
        """Send one command and return its reply.

        Raises:
            BackendError: By kind; see `ailf_redis.errors`.
        """
        reply = (await self.call_many([command]))[0]
        if isinstance(reply, Exception):
            raise mapped(reply, self.where, sent=True)
        return reply

    @abstractmethod
    async def call_many(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one write and return their replies in order; an error reply is returned, not raised."""

    @abstractmethod
    async def link(self) -> "Link":
        """Return a connection of its own."""

    @abstractmethod
    async def close(self) -> None:
        """Give back every connection; calls under way end with `ClosedError`."""

    def interrupt(self) -> None:  # noqa: B027 - asyncio calls are ended by close, on their loop
        """End calls that block in other threads."""

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
    async def close(self) -> None:
        """Give back the connection. It is idempotent."""


def executor_for(settings: Settings, runtime: Runtime) -> Executor:
    """Return the executor for a runtime's flavour."""
    return AsyncioExecutor(settings) if runtime.flavour == "asyncio" else BlockingExecutor(settings)


class _Replies:
    """Cuts what arrives into replies."""

    def __init__(self, parse_error: Callable[[str], Exception]) -> None:
        self._reader = hiredis.Reader(
            protocolError=hiredis.ProtocolError, replyError=parse_error, notEnoughData=_NOTHING
        )

    def feed(self, data: bytes) -> list[Any]:
        """Take bytes; return the replies they complete."""
        self._reader.feed(data)
        replies = []
        while (reply := self._reader.gets()) is not _NOTHING:
            replies.append(reply)
        return replies


# --- blocking ----------------------------------------------------------------------------------------------------


def _blocking_connection(settings: Settings) -> Any:
    kinds = {True: blocking.SSLConnection, False: blocking.Connection}
    kind = blocking.UnixDomainSocketConnection if settings.path is not None else kinds[settings.tls]
    connection = kind(**settings.connection_options())
    try:
        connection.connect()
    except BaseException:
        connection.disconnect()
        raise
    return connection


def _shut(connection: Any) -> None:
    """Wake whoever reads from a connection, without freeing its descriptor under his hands."""
    sock = connection._sock
    if sock is not None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # the base class's: an SSLSocket's would drop its TLS state


class BlockingExecutor(Executor):
    """A pool of connections, used by one thread at a time; after a fork the child begins with an empty one."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self.settings.max_connections)
        self._idle: list[Any] = []
        self._busy: set[Any] = set()

    async def call_many(self, commands: Sequence[Command]) -> list[Any]:  # noqa: D102 - see Executor, here and below
        self.check_open()
        if self._pid != os.getpid():
            self._begin()
        slots = self._slots
        if not slots.acquire(timeout=self.settings.timeout):
            raise BackendTimeoutError(
                f"all {self.settings.max_connections} connections to {self.where} were busy for "
                f"{self.settings.timeout:g} s; allow more with max_connections"
            )
        try:
            return self._exchange(commands)
        finally:
            slots.release()

    def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        sent = False
        connection = None
        try:
            connection = self._take()
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            sent = True
            replies = [self._reply(connection) for _ in commands]
        except (RedisError, OSError) as error:
            self._drop(connection)
            raise self.lost(error, sent=sent) from error
        except BaseException:  # Ctrl-C between the write and the read: the reply must find nobody
            self._drop(connection)
            raise
        with self._lock:
            self._busy.discard(connection)
            self._idle.append(connection)
        return replies

    def _reply(self, connection: Any) -> Any:
        try:
            return connection.read_response(disconnect_on_error=True)
        except ResponseError as error:
            return error

    def _take(self) -> Any:
        """Return a connection that the server has not closed meanwhile."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                connection = _blocking_connection(self.settings)
                break
            with contextlib.suppress(RedisError, OSError):
                if not connection.can_read(0):
                    break
            connection.disconnect()
        with self._lock:
            self._busy.add(connection)
        if self.closed:
            _shut(connection)
        return connection

    def _drop(self, connection: Any) -> None:
        if connection is not None:
            with self._lock:
                self._busy.discard(connection)
            connection.disconnect()

    async def link(self) -> Link:  # noqa: D102
        self.check_open()
        try:
            return _BlockingLink(self, _blocking_connection(self.settings))
        except (RedisError, OSError) as error:
            raise self.lost(error, sent=False) from error

    def interrupt(self) -> None:  # noqa: D102
        self.closed = True
        with self._lock:
            for connection in self._busy:
                _shut(connection)

    async def close(self) -> None:  # noqa: D102
        self.interrupt()
        if self._pid != os.getpid():
            return
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.disconnect()
        until = time.monotonic() + self.settings.timeout
        while self._busy and time.monotonic() < until:  # each thread gives back its own, woken by the interrupt
            time.sleep(0.001)
        self._settle_idle()

    def _settle_idle(self) -> None:
        with self._lock:
            late, self._idle = self._idle, []
        for connection in late:
            connection.disconnect()


class _BlockingLink(Link):
    def __init__(self, executor: Executor, connection: Any) -> None:
        self._executor = executor
        self._connection = connection
        self._socket: socket.socket = connection._sock
        self._replies = _Replies(connection._parser.parse_error)
        self._writing = threading.Lock()

    async def send(self, commands: Sequence[Command]) -> None:
        packed = b"".join(self._connection.pack_commands(commands))
        try:
            with self._writing:
                self._socket.sendall(packed)
        except OSError as error:
            raise self._executor.lost(error, sent=True) from error

    async def receive(self, timeout: float) -> list[Any]:
        until = time.monotonic() + timeout
        try:
            while (left := until - time.monotonic()) > 0:
                self._socket.settimeout(left)
                data = self._socket.recv(_READ)
                if not data:
                    raise ConnectionError("the server closed it")
                replies = self._replies.feed(data)
                if replies:
                    return replies
        except TimeoutError:
            pass
        except (OSError, hiredis.HiredisError) as error:
            raise self._executor.lost(error, sent=True) from error
        return []

    def interrupt(self) -> None:
        _shut(self._connection)

    async def close(self) -> None:
        self._connection.disconnect()


# --- asyncio -----------------------------------------------------------------------------------------------------


async def _asyncio_connection(settings: Settings) -> Any:
    kinds = {True: aredis.SSLConnection, False: aredis.Connection}
    kind = aredis.UnixDomainSocketConnection if settings.path is not None else kinds[settings.tls]
    connection = kind(**settings.connection_options())
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
        self._replies = _Replies(connection._parser.parse_error)
        self._queue: deque[_Asked] = deque()
        self._task = self.loop.create_task(self._read(), name="ailf-redis-replies")

    def usable(self) -> bool:
        """Tell whether it can be used from here: not broken, and of this process and loop."""
        return not self.broken and self.usable_loop()

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
            while data := await self._reader.read(_READ):
                for reply in self._replies.feed(data):
                    self._answer(reply)
        except (OSError, hiredis.HiredisError) as error:
            cause = error
        finally:
            self.broken = True
            self._executor.retire(self)
            self._fail(cause)

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
        await self._connection.disconnect()


class AsyncioExecutor(Executor):
    """One connection for all calls of an event loop."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._wire: _Wire | None = None
        self._retired: set[_Wire] = set()
        self._connecting: asyncio.Lock | None = None

    async def call_many(self, commands: Sequence[Command]) -> list[Any]:  # noqa: D102 - see Executor, here and below
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
                await self._bury()
                try:
                    wire = self._wire = _Wire(await _asyncio_connection(self.settings), self)
                except (RedisError, OSError) as error:
                    raise self.lost(error, sent=False) from error
            return wire

    def retire(self, wire: _Wire) -> None:
        """Use it no more for new calls."""
        if self._wire is wire:
            self._wire = None
        self._retired.add(wire)

    async def _bury(self) -> None:
        for wire in tuple(self._retired):
            if wire.broken:
                self._retired.discard(wire)
                if wire.usable_loop():
                    await wire.close()

    async def link(self) -> Link:  # noqa: D102
        self.check_open()
        try:
            return _AsyncioLink(self, await _asyncio_connection(self.settings))
        except (RedisError, OSError) as error:
            raise self.lost(error, sent=False) from error

    async def close(self) -> None:  # noqa: D102
        self.closed = True
        wires = {*self._retired, *([self._wire] if self._wire is not None else [])}
        self._retired.clear()
        self._wire = None
        for wire in wires:
            if wire.usable_loop():
                await wire.close()


class _AsyncioLink(Link):
    def __init__(self, executor: Executor, connection: Any) -> None:
        self._executor = executor
        self._connection = connection
        self._reader: asyncio.StreamReader = connection._reader
        self._writer: asyncio.StreamWriter = connection._writer
        self._replies = _Replies(connection._parser.parse_error)

    async def send(self, commands: Sequence[Command]) -> None:
        if self._writer.is_closing():
            raise ConnectionLostError(f"the connection to {self._executor.where} is gone")
        self._writer.writelines(self._connection.pack_commands(commands))

    async def receive(self, timeout: float) -> list[Any]:
        try:
            async with asyncio.timeout(timeout):
                while True:
                    data = await self._reader.read(_READ)
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
