"""Asyncio calls: all tasks share one redis-py connection, on which their requests are pipelined.

The rule of this file: each reply goes to the oldest pending request. So a request that is given up keeps its place, and
a connection is closed as soon as requests and replies may not match any more.
"""

import asyncio
from asyncio import get_running_loop
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias, TypeVar

import hiredis

from ailf.errors import BackendTimeoutError
from ailf.runtime.aio import check_ended, start_task
from ailf.runtime.process import process_id
from ailf_redis.connection.aio_link import LoopLink, ReplyProtocol, discard
from ailf_redis.connection.endpoint import server_of
from ailf_redis.connection.executor import Executor, Link
from ailf_redis.connection.resp import IDLE, PING, TEXT, Command, CommandPrefix, as_texts, packed
from ailf_redis.errors import BROKEN, MISREAD, mapped, misread
from ailf_redis.settings import Settings
from ailf_redis.versions import drop

__all__ = ["AsyncioExecutor"]

T = TypeVar("T")


def _unchanged(reply: Any) -> Any:
    return reply


_Request: TypeAlias = tuple[asyncio.Future[Any], int, Callable[[Any], Any], list[float], int]
"""A pending request.

The future of its result; the number of replies that make the result (0: one reply, which is the result itself); the
function that converts a reply; the time at which the request was written, in a list that is empty until then; the most
entries of a stream that each reply may hold.
"""


def _unsolicited(reply: Any) -> _Request:
    """Raise the error that ends a connection after an unsolicited reply; an error reply is raised as it is."""
    raise reply if isinstance(reply, BROKEN) else hiredis.ProtocolError("an unsolicited reply")


class PipelinedConnection(ReplyProtocol):
    """One connection that many tasks use at once; their requests are pipelined.

    The requests of one turn of the event loop go out in one write, or in one for every `WRITE_BATCH` requests, so that
    the server begins before the last one is made. A cancelled request keeps its place in the queue: its reply is read
    and discarded. The requests in flight are bounded, and so are the bytes to be written: further calls wait.

    Attributes:
        cause: Why the connection was closed, once it is.
        closed: Whether it is closed.
        closed_event: A future that is done when the connection is closed.
        draining: Whether it takes no new calls; replies to pending requests still arrive.
        needs_ping: Whether it was idle for so long that a PING has to show that it still works.
    """

    MAX_IN_FLIGHT: Final = 8192
    """The most pending requests."""

    WRITE_BATCH: Final = 32
    """The number of requests that are written without waiting for the end of the turn."""

    def __init__(self, connection: Any, executor: "AsyncioExecutor") -> None:
        self.loop = get_running_loop()
        self.pid = process_id()
        self.closed = self.draining = self.needs_ping = False
        self._used = self.loop.time()
        self.cause: Exception = ConnectionError("the server did not reply to a request in time")
        self.closed_event = self.loop.create_future()
        self._executor = executor
        self._timeout = executor.settings.timeout
        self._out: list[bytes] = []
        self._queue: deque[_Request] = deque()
        self._parts: list[Any] = []
        self._waiting_for_capacity: deque[asyncio.Future[None]] = deque()
        self._write_paused = False
        self._sent: list[float] = []  # shared by the unwritten requests; gets the time at which they are written
        self._timer: asyncio.TimerHandle | None = None
        super().__init__(connection)

    def is_here(self) -> bool:
        """Return whether the connection belongs to this process and loop, so that it can be used and closed."""
        return self.loop is get_running_loop() and self.pid == process_id()

    def is_ready(self) -> bool:
        """Return whether `request` can be called from here, without waiting."""
        if not self._queue and self.loop.time() - self._used >= IDLE:
            self.needs_ping = True
        return (
            not self._write_paused
            and not self.needs_ping
            and len(self._queue) < self.MAX_IN_FLIGHT
            and self.loop is get_running_loop()
            and self.pid == process_id()
        )

    # --- requests ------------------------------------------------------------------------------------------------

    def request(
        self, data: bytes, count: int = 0, read: Callable[[Any], Any] = _unchanged, entries: int = 0
    ) -> "asyncio.Future[Any]":
        """Send packed commands; return the future of the result, which raises the error of a refused command.

        Arguments:
            data: One command or several.
            count: The number of commands, if there are several: the result is the list of all replies, error replies
                included. 0: one command.
            read: The function that converts a single reply.
            entries: The most entries of a stream that each reply may hold.
        """
        future: asyncio.Future[Any] = asyncio.Future(loop=self.loop)
        try:
            alone = not self._queue
            if not self._out and not alone:
                self.loop.call_soon(self._flush)
            if self._timer is None:
                self._timer = self.loop.call_later(self._timeout, self._check_deadlines)
            self._out.append(data)
            self._queue.append((future, count, read, self._sent, entries))
            if alone or len(self._out) >= self.WRITE_BATCH:
                self._flush()
        except BaseException as error:  # Ctrl-C: the requests to be written and the pending ones may differ by one
            future.cancel()
            self.interrupted(error)
            raise
        return future

    async def wait_for_capacity(self, until: float) -> bool:
        """Wait until `request` can be called; return whether that took time.

        Raises:
            ConnectionLostError: The connection closed, or drains because the server is silent; nothing was sent.
            BackendTimeoutError: The call's time has passed; nothing was sent.
        """
        waited = False
        while self._write_paused or len(self._queue) >= self.MAX_IN_FLIGHT:
            waiting: asyncio.Future[None] = self.loop.create_future()
            self._waiting_for_capacity.append(waiting)
            waited = True
            await asyncio.wait([waiting], timeout=max(0.0, until - self.loop.time()))
            if self.closed or self.draining:
                raise self._executor.lost(self.cause, sent=False) from self.cause
            if not waiting.done():
                waiting.cancel()
                raise self._executor.lost(TimeoutError(), sent=False)
        return waited

    def set_deadline(self, future: "asyncio.Future[Any]", until: float) -> None:
        """Give up a request at `until`, for a call that has less than `timeout` seconds left."""
        timer = self.loop.call_at(until, self._give_up, future)
        future.add_done_callback(lambda _: timer.cancel())

    async def answers_ping(self, until: float) -> bool:
        """Return whether the server replies to a PING, even if with an error."""
        self.needs_ping = True  # keeps other calls off the connection meanwhile
        future = self.request(PING)
        await asyncio.wait([future], timeout=max(0.0, until - self.loop.time()))
        if self.closed or not future.done():
            future.cancel()
            return False
        future.exception()  # a refused PING is a reply too
        self.needs_ping = False
        return True

    def _flush(self) -> None:
        try:
            out, self._out = self._out, []
            if out and not self.closed:
                self._used = self.loop.time()
                self._sent.append(self._used)
                self._sent = []
                self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        except BaseException as error:  # Ctrl-C: as above
            self.interrupted(error)
            raise

    def _check_deadlines(self) -> None:
        """Give up the requests whose time has passed; the next call uses another connection.

        They stay in the queue: their replies may still come, and must not reach other requests.
        """
        self._timer = None
        overdue = self.loop.time() - self._timeout
        for future, _, _, sent, _ in self._queue:
            if future.done():
                continue
            if not sent:  # it is about to be written, or Ctrl-C came before it was
                self._timer = self.loop.call_later(self._timeout, self._check_deadlines)
                self._flush()
                break
            if sent[0] > overdue:
                self._timer = self.loop.call_at(sent[0] + self._timeout, self._check_deadlines)
                break
            self._give_up(future)
        if self.draining:
            self._wake_waiting()

    def _give_up(self, future: "asyncio.Future[Any]") -> None:
        if not future.done():
            self._executor.drain(self)
            where = self._executor.where
            future.set_exception(BackendTimeoutError(f"{where} did not reply in time", maybe_applied=True))

    # --- replies -------------------------------------------------------------------------------------------------

    def handle_replies(self, replies: list[Any]) -> None:
        queue = self._queue
        request = None
        try:
            for reply in replies:
                request = queue.popleft() if queue else _unsolicited(reply)
                future, count, read, _, _ = request
                if count:
                    self._collect_part(request, reply)
                elif future.done():
                    continue
                elif isinstance(reply, Exception):
                    future.set_exception(mapped(reply, self._executor.where, sent=True))
                else:
                    try:
                        future.set_result(read(reply))
                    except MISREAD as error:
                        future.set_exception(misread(error, self._executor.where))
                    except Exception as error:  # noqa: BLE001 - it concerns this caller alone
                        future.set_exception(error)
        except BaseException:
            if request is not None and not request[0].done():  # it ends with the others
                queue.appendleft(request)
            raise
        if self._waiting_for_capacity and not self._write_paused:
            self._wake_waiting()

    def _collect_part(self, request: _Request, reply: Any) -> None:
        """Keep one of several replies to a request; complete the request with the last one."""
        future, count, _, _, _ = request
        self._parts.append(reply)
        if len(self._parts) < count:
            self._queue.appendleft(request)
            return
        parts, self._parts = self._parts, []
        if not future.done():
            future.set_result(parts)

    def max_size(self) -> int:
        return self._executor.max_size(self._queue[0][4] if self._queue else 0)

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._wake_waiting()

    def _wake_waiting(self) -> None:
        while self._waiting_for_capacity:
            waiting = self._waiting_for_capacity.popleft()
            if not waiting.done():
                waiting.set_result(None)

    # --- closing -------------------------------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        if self.closed:
            return
        self.closed = True
        self._executor.drain(self)
        if self._timer is not None:
            self._timer.cancel()
        self.cause = exc or ConnectionError("the server closed it")
        self._fail_pending(self.cause)
        self._wake_waiting()
        self._former_protocol.connection_lost(exc)
        drop(self._connection)
        self._executor.untrack(self)
        if not self.closed_event.done():
            self.closed_event.set_result(None)

    def _fail_pending(self, cause: Exception) -> None:
        """Fail all pending requests: the oldest with `cause`, the others with the loss of the connection."""
        while self._queue:
            future = self._queue.popleft()[0]
            if not future.done():
                error = self._executor.lost(cause, sent=True)
                error.__cause__ = cause
                future.set_exception(error)
            if not isinstance(cause, OSError):
                cause = ConnectionError("the reply to an earlier request can't be understood")

    async def close(self) -> None:
        self._transport.abort()
        await asyncio.wait([self.closed_event])

    def discard(self) -> None:
        """Close the connection from another event loop, after its own has ended."""
        if self.loop.is_closed():  # nothing waits for a reply any more
            self.closed = True
            self._queue.clear()
        discard(self._connection, self.loop)


class AsyncioExecutor(Executor):
    """One connection for all calls of an event loop; the next event loop has another one."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._endpoint = server_of(settings, "asyncio")
        self._connection: PipelinedConnection | None = None
        self._draining: set[PipelinedConnection] = set()
        self._connecting: asyncio.Task[PipelinedConnection] | None = None
        self._home: asyncio.AbstractEventLoop | None = None
        self._pid = process_id()

    def call_prefixed(self, prefix: CommandPrefix, last: bytes, read: Callable[[Any], T]) -> Awaitable[T]:
        connection = self._connection
        if connection is not None and connection.is_ready():
            return connection.request(prefix.with_last_argument(last), 0, read)
        return self._call_prefixed(prefix, last, read)

    def call_page(self, entries: int, *command: Any) -> Awaitable[Any]:
        # The future itself if possible: each coroutine between a future and its caller takes time.
        connection = self._connection
        if connection is not None and connection.is_ready():
            data = hiredis.pack_command(command if TEXT.issuperset(map(type, command)) else as_texts(command))
            return connection.request(data, 0, _unchanged, entries)
        return self._call(command, entries)

    async def _call(self, command: Command, entries: int = 0) -> Any:
        return await self._request(packed([command]), 0, entries)

    async def call_many(self, commands: Sequence[Command], entries: int = 0) -> list[Any]:
        if not commands:
            return []
        replies: list[Any] = await self._request(packed(commands), len(commands), entries)
        return replies

    async def _request(self, data: bytes, count: int, entries: int) -> Any:
        """Send packed commands and return their result, after waiting for a connection and its capacity."""
        until = get_running_loop().time() + self.settings.timeout
        connection, late = self._connection, False
        if connection is None or connection.needs_ping or not connection.is_here():
            connection, late = await self._ready_connection(until), True
            if connection.draining:  # it broke before this task continued
                raise self.lost(connection.cause, sent=False) from connection.cause
        late = await connection.wait_for_capacity(until) or late
        future = connection.request(data, count, _unchanged, entries)
        if late:
            connection.set_deadline(future, until)
        return await future

    async def _ready_connection(self, until: float) -> PipelinedConnection:
        """Return a working connection, which is checked or made once for all calls that wait for it.

        Connecting continues when a caller is cancelled or its time has passed.
        """
        self.check_open()
        self._move()
        connecting = self._connecting
        if connecting is None:
            connecting = self._connecting = start_task(self._check_or_connect(), name="ailf-connect")
            connecting.add_done_callback(self._connecting_done)
        await asyncio.wait([connecting], timeout=max(0.0, until - get_running_loop().time()))
        if not connecting.done():
            raise self.lost(TimeoutError(), sent=False)
        try:
            return connecting.result()
        except BROKEN as error:
            raise self.lost(error, sent=False) from error
        except asyncio.CancelledError:
            raise self.lost(ConnectionError("connecting was cancelled"), sent=False) from None

    def _connecting_done(self, connecting: "asyncio.Task[PipelinedConnection]") -> None:
        if self._connecting is connecting:
            self._connecting = None
        if not connecting.cancelled():
            connecting.exception()  # marks it as retrieved: the waiting calls raise it, but there may be none

    async def _check_or_connect(self) -> PipelinedConnection:
        """Return the present connection if it replies to a PING, else a new one."""
        connection = self._connection
        if connection is not None and connection.is_here():
            # Half of the time is for a new connection and the call.
            if await connection.answers_ping(get_running_loop().time() + self.settings.timeout / 2):
                return connection
            connection.drop()
        if connection is not None:
            self.drain(connection)
        connection = PipelinedConnection(await self._endpoint.connect(), self)
        if self.closed:  # while it was being made
            await connection.close()
            self.check_open()
        self._connection = connection
        return connection

    def _move(self) -> None:
        """Adopt the running loop; close the connections of a loop that has ended, but not those of a parent process."""
        running, pid = get_running_loop(), process_id()
        if self._home is running:
            return
        if self._connection is not None:
            self.drain(self._connection)
        if self._home is not None and self._pid == pid:
            check_ended(self._home, f"the connection to {self.where}")
            while self._draining:
                self._draining.pop().discard()
        self._connecting, self._home, self._pid = None, running, pid

    def drain(self, connection: PipelinedConnection) -> None:
        """Send no new calls over this connection; replies to pending requests still arrive."""
        connection.draining = True
        if self._connection is connection:
            self._connection = None
        self._draining.add(connection)

    def untrack(self, connection: PipelinedConnection) -> None:
        """Stop tracking a connection that has closed."""
        self._draining.discard(connection)

    async def link(self, near: str | None = None) -> Link:  # noqa: ARG002 - one server has every key
        self.check_open()
        try:
            return LoopLink(self, await self._endpoint.connect())
        except BROKEN as error:
            raise self.lost(error, sent=False) from error

    def abandon(self) -> bool:
        connections = {*self._draining, *([self._connection] if self._connection is not None else [])}
        self._connection = None
        had = super().abandon()
        return sum(connection.drop() for connection in connections if connection.pid == process_id()) > 0 or had

    async def close(self) -> None:
        self.closed = True
        self._move()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        connections = {*self._draining, *([self._connection] if self._connection is not None else [])}
        self._draining.clear()
        self._connection = None
        for connection in connections:
            if connection.is_here():
                await connection.close()
