"""Asyncio calls: all tasks share one redis-py connection, on which their requests are pipelined as they come."""

import asyncio
from asyncio import get_running_loop
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from os import getpid
from typing import Any, Final, TypeAlias, TypeVar

import hiredis

from ailf.errors import BackendTimeoutError, ClosedError
from ailf.runtime.aio import check_ended, start_task
from ailf_redis.connection.aio_link import LoopLink, ReplyProtocol, discard
from ailf_redis.connection.endpoint import Endpoint, server_of
from ailf_redis.connection.executor import Executor, Link
from ailf_redis.connection.resp import IDLE, TEXT, Command, CommandPrefix, as_texts, packed
from ailf_redis.errors import BROKEN, MISREAD, mapped, misread
from ailf_redis.settings import Settings
from ailf_redis.versions import drop

__all__ = ["AsyncioExecutor"]

T = TypeVar("T")


def _as_it_is(reply: Any) -> Any:
    return reply


_Asked: TypeAlias = tuple[asyncio.Future[Any], int, Callable[[Any], Any], list[float], int]
"""A request: its answer; for how many replies that stands (0: for one, which is the result itself); what is made of a
reply; when it was sent, once it is; how many entries of a stream each reply may hold."""


def _unasked(reply: Any) -> _Asked:
    """End a connection on which something is said that nobody asked for: a server's refusal says why."""
    raise reply if isinstance(reply, BROKEN) else hiredis.ProtocolError("a reply that nobody asked for")


PING: Final = packed([("PING",)])


class _Wire(ReplyProtocol):
    """One connection that many tasks use at once, and that pipelines by itself.

    What is asked in one turn of the event loop goes out in one write, or in several where it is much, so that the
    server is at work before the last is asked; replies go to the oldest request. A caller that was cancelled leaves its
    place in the queue, so its reply is taken and thrown away. What is in flight is bounded, and so is what waits to be
    written: further callers wait.

    Attributes:
        cause: Why it is used no more, once it isn't.
    """

    MOST: Final = 8192
    """How many requests may be in flight."""

    MUCH: Final = 32
    """How many requests are written without waiting for more."""

    def __init__(self, connection: Any, executor: "AsyncioExecutor") -> None:
        self.loop = get_running_loop()
        self.pid = getpid()
        self.broken = self.retired = self.dormant = False
        self._used = self.loop.time()
        self.cause: Exception = ConnectionError("the server left a request without an answer")
        self.gone = self.loop.create_future()
        self._executor = executor
        self._timeout = executor.settings.timeout
        self._out: list[bytes] = []
        self._queue: deque[_Asked] = deque()
        self._parts: list[Any] = []
        self._full: deque[asyncio.Future[None]] = deque()
        self._choked = False
        self._sent: list[float] = []  # when what is not sent yet was sent, once it is
        self._deadline: asyncio.TimerHandle | None = None
        super().__init__(connection)

    def is_here(self) -> bool:
        """Tell whether it is of this process and loop, so that it can be used and closed from here."""
        return self.loop is get_running_loop() and self.pid == getpid()

    def is_ready(self) -> bool:
        """Tell whether one can ask from here, without waiting."""
        if not self._queue and self.loop.time() - self._used >= IDLE:
            self.dormant = True
        return (
            not self._choked
            and not self.dormant
            and len(self._queue) < self.MOST
            and self.loop is get_running_loop()
            and self.pid == getpid()
        )

    # --- asking --------------------------------------------------------------------------------------------------

    def ask(
        self, data: bytes, count: int = 0, read: Callable[[Any], Any] = _as_it_is, entries: int = 0
    ) -> "asyncio.Future[Any]":
        """Send what is packed; return what will be its reply, or raise what the server refuses.

        Arguments:
            data: A command, or several.
            count: Of several: how many. Then all replies are the result, errors among them.
            read: What to make of a single reply.
            entries: How many entries of a stream each reply may hold.
        """
        answer: asyncio.Future[Any] = asyncio.Future(loop=self.loop)
        try:
            if not self._out:
                self.loop.call_soon(self._flush)
            if self._deadline is None:
                self._deadline = self.loop.call_later(self._timeout, self._look)
            self._out.append(data)
            self._queue.append((answer, count, read, self._sent, entries))
            if len(self._out) >= self.MUCH:
                self._flush()
        except BaseException as error:  # Ctrl-C: what is sent and what is waited for may differ by one
            answer.cancel()
            self.interrupted(error)
            raise
        return answer

    async def room(self, until: float) -> bool:
        """Wait until one can ask; return whether that took time.

        Raises:
            ConnectionLostError: The server is silent, or gone; nothing was sent.
            BackendTimeoutError: The call's time is over; nothing was sent.
        """
        waited = False
        while self._choked or len(self._queue) >= self.MOST:
            waiting: asyncio.Future[None] = self.loop.create_future()
            self._full.append(waiting)
            waited = True
            await asyncio.wait([waiting], timeout=max(0.0, until - self.loop.time()))
            if self.broken or self.retired:
                raise self._executor.lost(self.cause, sent=False) from self.cause
            if not waiting.done():
                waiting.cancel()
                raise self._executor.lost(TimeoutError(), sent=False)
        return waited

    def hurry(self, answer: "asyncio.Future[Any]", until: float) -> None:
        """Give up on a request earlier than others, as its call has less time left."""
        timer = self.loop.call_at(until, self._give_up, answer)
        answer.add_done_callback(lambda _: timer.cancel())

    async def answers(self, until: float) -> bool:
        """Tell whether the server answers a PING, whatever it says."""
        self.dormant = True  # meanwhile nobody else asks
        answer = self.ask(PING)
        await asyncio.wait([answer], timeout=max(0.0, until - self.loop.time()))
        if self.broken or not answer.done():
            answer.cancel()
            return False
        answer.exception()  # also that it may not PING is an answer
        self.dormant = False
        return True

    def _flush(self) -> None:
        try:
            out, self._out = self._out, []
            if out and not self.broken:
                self._used = self.loop.time()
                self._sent.append(self._used)
                self._sent = []
                self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        except BaseException as error:  # Ctrl-C: as above
            self.interrupted(error)
            raise

    def _look(self) -> None:
        """Give up on requests that the server has left without an answer; the next call tries another connection.

        Their places stay: the replies may still come, and must find nobody else.
        """
        self._deadline = None
        overdue = self.loop.time() - self._timeout
        for answer, _, _, sent, _ in self._queue:
            if answer.done():
                continue
            if not sent:  # it is about to be written, or Ctrl-C came before it was
                self._deadline = self.loop.call_later(self._timeout, self._look)
                self._flush()
                break
            if sent[0] > overdue:
                self._deadline = self.loop.call_at(sent[0] + self._timeout, self._look)
                break
            self._give_up(answer)
        if self.retired:
            self._let_in()

    def _give_up(self, answer: "asyncio.Future[Any]") -> None:
        if not answer.done():
            self._executor.retire(self)
            where = self._executor.where
            answer.set_exception(BackendTimeoutError(f"{where} did not answer in time", maybe_applied=True))

    # --- answers -------------------------------------------------------------------------------------------------

    def take(self, replies: list[Any]) -> None:
        queue = self._queue
        asked = None
        try:
            for reply in replies:
                asked = queue.popleft() if queue else _unasked(reply)
                answer, count, read, _, _ = asked
                if count:
                    self._part(asked, reply)
                elif answer.done():
                    continue
                elif isinstance(reply, Exception):
                    answer.set_exception(mapped(reply, self._executor.where, sent=True))
                else:
                    try:
                        answer.set_result(read(reply))
                    except MISREAD as error:
                        answer.set_exception(misread(error, self._executor.where))
                    except Exception as error:  # noqa: BLE001 - it is the caller's alone
                        answer.set_exception(error)
        except BaseException:
            if asked is not None and not asked[0].done():  # it ends with the others
                queue.appendleft(asked)
            raise
        if self._full and not self._choked:
            self._let_in()

    def _part(self, asked: _Asked, reply: Any) -> None:
        """Take one of the replies that belong together; the others are to come."""
        answer, count, _, _, _ = asked
        self._parts.append(reply)
        if len(self._parts) < count:
            self._queue.appendleft(asked)
            return
        parts, self._parts = self._parts, []
        if not answer.done():
            answer.set_result(parts)

    def limit(self) -> int:
        return self._executor.page(self._queue[0][4] if self._queue else 0)

    def pause_writing(self) -> None:
        self._choked = True

    def resume_writing(self) -> None:
        self._choked = False
        self._let_in()

    def _let_in(self) -> None:
        while self._full:
            waiting = self._full.popleft()
            if not waiting.done():
                waiting.set_result(None)

    # --- the end -------------------------------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        if self.broken:
            return
        self.broken = True
        self._executor.retire(self)
        if self._deadline is not None:
            self._deadline.cancel()
        self.cause = exc or ConnectionError("the server closed it")
        self._fail(self.cause)
        self._let_in()
        self._before.connection_lost(exc)
        drop(self._connection)
        self._executor.forget(self)
        if not self.gone.done():
            self.gone.set_result(None)

    def _fail(self, cause: Exception) -> None:
        """End all requests: the oldest with what its answer did, the others since the connection is gone."""
        while self._queue:
            answer = self._queue.popleft()[0]
            if not answer.done():
                error = self._executor.lost(cause, sent=True)
                error.__cause__ = cause
                answer.set_exception(error)
            if not isinstance(cause, OSError):
                cause = ConnectionError("the answer to an earlier request can't be understood")

    async def close(self) -> None:
        self._transport.abort()
        await asyncio.wait([self.gone])

    def discard(self) -> None:
        """Close it from another event loop, as its own has ended."""
        if self.loop.is_closed():  # nobody waits for a reply any more
            self.broken = True
            self._queue.clear()
        discard(self._connection, self.loop)


class AsyncioExecutor(Executor):
    """One connection for all calls of an event loop, and when that has ended, of the next one."""

    def __init__(self, settings: Settings, endpoint: Endpoint | None = None) -> None:
        super().__init__(settings)
        self._endpoint = endpoint or server_of(settings, "asyncio")
        self._wire: _Wire | None = None
        self._retired: set[_Wire] = set()
        self._making: asyncio.Task[_Wire] | None = None
        self._home: asyncio.AbstractEventLoop | None = None
        self._pid = getpid()

    def call_prefixed(self, prefix: CommandPrefix, last: bytes, read: Callable[[Any], T]) -> Awaitable[T]:
        wire = self._wire
        if wire is not None and wire.is_ready():
            return wire.ask(prefix.with_last_argument(last), 0, read)
        return self._call_prefixed(prefix, last, read)

    def call_page(self, entries: int, *command: Any) -> Awaitable[Any]:
        # A reply's future itself, where that is possible: each coroutine between it and the caller takes its time.
        wire = self._wire
        if wire is not None and wire.is_ready():
            data = hiredis.pack_command(command if TEXT.issuperset(map(type, command)) else as_texts(command))
            return wire.ask(data, 0, _as_it_is, entries)
        return self._call(command, entries)

    async def _call(self, command: Command, entries: int = 0) -> Any:
        return await self._ask(packed([command]), 0, entries)

    async def call_many(self, commands: Sequence[Command], entries: int = 0) -> list[Any]:
        if not commands:
            return []
        replies: list[Any] = await self._ask(packed(commands), len(commands), entries)
        return replies

    async def _ask(self, data: bytes, count: int, entries: int) -> Any:
        """Ask, when there is a connection, and room on it."""
        until = get_running_loop().time() + self.settings.timeout
        wire, late = self._wire, False
        if wire is None or wire.dormant or not wire.is_here():
            wire, late = await self._connected(until), True
            if wire.retired:  # it broke before this task's turn came
                raise self.lost(wire.cause, sent=False) from wire.cause
        late = await wire.room(until) or late
        answer = wire.ask(data, count, _as_it_is, entries)
        if late:
            wire.hurry(answer, until)
        return await answer

    async def _connected(self, until: float) -> _Wire:
        """Return a connection that works, made or looked at once for all calls.

        A cancelled caller leaves it being made, and so does one whose time is over.
        """
        self.check_open()
        self._move()
        making = self._making
        if making is None:
            making = self._making = start_task(self._make(), name="ailf-connect")
            making.add_done_callback(self._made)
        await asyncio.wait([making], timeout=max(0.0, until - get_running_loop().time()))
        if not making.done():
            raise self.lost(TimeoutError(), sent=False)
        try:
            return making.result()
        except BROKEN as error:
            raise self.lost(error, sent=False) from error
        except asyncio.CancelledError:
            raise self.lost(ConnectionError("connecting was cancelled"), sent=False) from None

    def _made(self, making: "asyncio.Task[_Wire]") -> None:
        if self._making is making:
            self._making = None
        if not making.cancelled():
            making.exception()  # each call that waits is told; there may be none

    async def _make(self) -> _Wire:
        """Ask over a connection that was idle for long whether it works; else make one."""
        wire = self._wire
        if wire is not None and wire.is_here():
            if await wire.answers(get_running_loop().time() + self.settings.timeout / 2):  # the rest is for the call
                return wire
            wire.drop()
        if wire is not None:
            self.retire(wire)
        wire = _Wire(await self._endpoint.connect(), self)
        if self.closed:  # while it was being made
            await wire.close()
            raise ClosedError(f"the backend {self.where} is closed")
        self._wire = wire
        return wire

    def _move(self) -> None:
        """Belong to the running loop; close what is of one that has ended, but not what is of a parent process."""
        here, pid = get_running_loop(), getpid()
        if self._home is here:
            return
        if self._wire is not None:
            self.retire(self._wire)
        if self._home is not None and self._pid == pid:
            check_ended(self._home, f"the connection to {self.where}")
            while self._retired:
                self._retired.pop().discard()
        self._making, self._home, self._pid = None, here, pid

    def retire(self, wire: _Wire) -> None:
        """Use it no more for new calls."""
        wire.retired = True
        if self._wire is wire:
            self._wire = None
        self._retired.add(wire)

    def forget(self, wire: _Wire) -> None:
        """It is gone."""
        self._retired.discard(wire)

    async def link(self, near: str | None = None) -> Link:  # noqa: ARG002 - one server has every key
        self.check_open()
        try:
            return LoopLink(self, await self._endpoint.connect())
        except BROKEN as error:
            raise self.lost(error, sent=False) from error

    def abandon(self) -> bool:
        wires = {*self._retired, *([self._wire] if self._wire is not None else [])}
        self._wire = None
        had = super().abandon()
        return sum(wire.drop() for wire in wires if wire.pid == getpid()) > 0 or had

    async def close(self) -> None:
        self.closed = True
        self._move()
        if self._making is not None:
            self._making.cancel()
            await asyncio.wait([self._making])
        wires = {*self._retired, *([self._wire] if self._wire is not None else [])}
        self._retired.clear()
        self._wire = None
        for wire in wires:
            if wire.is_here():
                await wire.close()
