"""Blocking calls: a pool of redis-py connections, each driven directly by one thread at a time.

A call's time is counted once, from its beginning. On the fast path the kernel keeps the deadline, as a timeout of the
socket bounds a single send or receive. The rest of the time is counted only where that isn't enough: where the request
or the reply doesn't go in one piece, or where the call waited for a permit or a connection.

Ctrl-C may come between any two lines. So connections in use are known by weak references, and a permit to use one is an
object: a connection that no call holds any more is closed when it is collected, and a permit is given back.
"""

import contextlib
import os
import queue
import select
import socket
import ssl
import struct
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias, TypeVar

import hiredis

from ailf.errors import BackendTimeoutError
from ailf.runtime import run
from ailf.runtime.clock import SystemClock
from ailf.runtime.process import process_id
from ailf_redis.connection.blocking_link import ThreadLink, shut
from ailf_redis.connection.endpoint import server_of
from ailf_redis.connection.executor import Executor, IdentityRef, Link
from ailf_redis.connection.resp import (
    IDLE,
    NOTHING,
    PING,
    TEXT,
    Command,
    CommandPrefix,
    Replies,
    as_texts,
    check_size,
    is_refusal,
    packed,
)
from ailf_redis.errors import BROKEN, MISREAD, mapped, misread
from ailf_redis.settings import Settings
from ailf_redis.versions import parse_error_of, sock_of, take_unread

__all__ = ["BlockingExecutor"]


T = TypeVar("T")

SPIN: Final = 200e-6
"""Seconds for which a thread busy-polls for its reply before it sleeps: about as long as a wake-up takes."""

SPIN_BACKOFF_MAX: Final = 63
"""The most calls in a row that don't spin, while spinning is useless."""

_yield_cpu = getattr(os, "sched_yield", lambda: None)


class DirectConnection:
    """One connection, driven directly: redis-py makes it, and calls then use its socket without redis-py.

    Attributes:
        used: When the last call over it began.
        late: Whether its call has less than `timeout` seconds left, so that the kernel can't keep the deadline.
        ref: The weak reference by which it is known while it is in use.
    """

    def __init__(
        self, connection: Any, timeout: float, collected: "Callable[[IdentityRef[DirectConnection]], object]"
    ) -> None:
        self.ref = IdentityRef(self, collected)
        self._connection = connection
        self._socket: socket.socket = sock_of(connection)
        self._replies = Replies(parse_error_of(connection), take_unread(connection))
        self._plain = not isinstance(self._socket, ssl.SSLSocket)
        self._timeout = timeout
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._spin_backoff = self._spins_to_skip = 0
        self.used = 0.0
        self.late = False
        if self._plain:  # the kernel keeps the deadline, which saves two system calls per request
            self._socket.settimeout(None)
            seconds, part = divmod(timeout, 1)
            limit = struct.pack("@ll", int(seconds), int(part * 1_000_000) or (0 if seconds else 1))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def is_stale(self) -> bool:
        """Return whether the server has closed the connection, or sent something unsolicited.

        This is checked before every call: a call that finds out only afterwards can't tell whether it was carried out.
        """
        if not self._poll.poll(0):  # much cheaper than a read that finds nothing, since nothing is raised
            return not self._plain and self._socket.pending() > 0  # type: ignore[attr-defined]  # an SSLSocket has it
        return not self._replies.unread and (self._plain or self._has_unsolicited_data())

    def _has_unsolicited_data(self) -> bool:
        """Return whether more has arrived than TLS' own records, such as a session ticket."""
        try:
            self._socket.settimeout(0)
            self._socket.recv(1)
        except ssl.SSLWantReadError:
            self._socket.settimeout(self._timeout)
            return False
        except OSError:
            return True
        return True

    def send(self, data: bytes, until: float) -> None:
        """Send a request before the time `until`."""
        sent = 0
        if not self.late:
            try:
                sent = self._socket.send(data)
            except BlockingIOError as error:
                raise TimeoutError("the server reads nothing") from error
        if sent < len(data):
            self._send_rest(memoryview(data)[sent:], until)

    def _send_rest(self, rest: memoryview, until: float) -> None:
        try:
            while rest:
                self._set_timeout(until)
                rest = rest[self._socket.send(rest) :]
        finally:
            self._socket.settimeout(None if self._plain else self._timeout)

    def receive(self, count: int, until: float, most: int) -> list[Any]:
        """Return `count` replies of at most `most` bytes each; leave what is behind them."""
        replies = [self.receive_one(until, most)]
        while len(replies) < count:
            reply = self._replies.following()
            replies.append(self._receive_rest(until, most) if reply is NOTHING else reply)
        return replies

    def receive_one(self, until: float, most: int, *, spin: bool = False) -> Any:
        """Return one reply.

        Arguments:
            until: The end of the call's time.
            most: The most bytes that the reply may have.
            spin: Whether to busy-poll for a moment before sleeping.
        """
        if self.late:
            return self._receive_rest(until, most)
        try:
            size = self._spin() if spin and self._plain else None
            if size is None:
                size = self._socket.recv_into(self._replies.buffer)
        except BlockingIOError as error:
            raise TimeoutError("the server is silent") from error
        if not size:
            raise ConnectionError("the server closed it")
        if (reply := self._replies.first(size, most)) is not NOTHING:
            return reply
        return self._receive_rest(until, most, size)

    def _receive_rest(self, until: float, most: int, arrived: int = 0) -> Any:
        """Return a reply that didn't arrive at once; `arrived` bytes of it have."""
        try:
            while True:
                self._set_timeout(until)
                size = self._socket.recv_into(self._replies.buffer)
                if not size:
                    raise ConnectionError("the server closed it")
                if (reply := self._replies.first(size, most)) is not NOTHING:
                    return reply
                arrived += size
                check_size(arrived, most)
        finally:
            self._socket.settimeout(None if self._plain else self._timeout)

    def refusal(self) -> Exception | None:
        """Return the error that the server sent before it closed the new connection without reading from it; or None.

        A request that is sent meanwhile fails, and then nothing has read the error yet.
        """
        with contextlib.suppress(*BROKEN):
            self._socket.settimeout(0)
            size = self._socket.recv_into(self._replies.buffer)
            if size and is_refusal(bytes(self._replies.buffer[:size])):
                reply = self._replies.first(size, size)
                return reply if isinstance(reply, Exception) else None
        return None

    def _set_timeout(self, until: float) -> None:
        """Bound the next use of the socket by the rest of the call's time."""
        left = until - SystemClock.wait_time()
        if left <= 0:
            raise TimeoutError("the call's time is over")
        self._socket.settimeout(left)

    def answers_ping(self, until: float) -> bool:
        """Return whether the server replies to a PING, even if with an error."""
        try:
            self.late = True
            self.send(PING, until)
            self._receive_rest(until, len(self._replies.buffer))
        except BROKEN:
            return False
        return self.is_clean()

    def _spin(self) -> int | None:
        """Busy-poll for `SPIN` seconds; return how many bytes were read, or None. After a useless spin, skip the next.

        A core that has fallen asleep wakes in 5 µs on bare metal and in 50 on a virtual machine, longer than the server
        needs for a command. Between two polls the CPU is yielded to other threads and processes. Each useless spin
        doubles the number of calls that skip it, up to `SPIN_BACKOFF_MAX`; a quick reply resets it.
        """
        if self._spins_to_skip:
            self._spins_to_skip -= 1
            return None
        until = SystemClock.fine_time() + SPIN
        while True:
            try:
                size = self._socket.recv_into(self._replies.buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                size = None
            if SystemClock.fine_time() > until:  # also with a reply: other threads kept this one from an earlier poll
                self._spin_backoff = self._spins_to_skip = min(2 * self._spin_backoff + 1, SPIN_BACKOFF_MAX)
                return size
            if size is not None:
                self._spin_backoff = 0
                return size
            _yield_cpu()

    def is_clean(self) -> bool:
        """Return whether everything that was read is used up; the next call would take the rest for its reply."""
        return not self._replies.has_more()

    def shut(self) -> None:
        """Wake the thread that reads, without freeing the descriptor that it uses."""
        shut(self._socket)

    def close(self) -> None:
        self._connection.disconnect()


_Permits: TypeAlias = "queue.SimpleQueue[_Permit]"


class _Permit:
    """The right to use a connection.

    Attributes:
        late: Whether its call waited for it.
    """

    def __init__(self, permits: "weakref.ref[_Permits]") -> None:
        self.late = False
        self._permits = permits

    def __del__(self) -> None:
        permits = self._permits()
        if permits is not None:  # its call was interrupted before it gave it back
            permits.put(_Permit(self._permits))


class BlockingExecutor(Executor):
    """A pool of connections, each used by one thread at a time; after a fork the child begins with an empty one."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._endpoint = server_of(settings, "blocking")
        self._pending = self._endpoint.pending
        self._timeout = settings.timeout
        self._begin()

    def _begin(self) -> None:
        self._permits: _Permits = queue.SimpleQueue()
        # Kept here: the collector clears a weak reference that it finds in garbage.
        self._permits_ref = weakref.ref(self._permits)
        for _ in range(self.settings.max_connections):
            self._permits.put(_Permit(self._permits_ref))
        self._idle: deque[DirectConnection] = deque()  # a stack: the last one used is the likeliest to work
        self._busy: set[IdentityRef[DirectConnection]] = set()
        self._pending.forget()
        self._pid = process_id()  # last: if Ctrl-C comes before it, a child resets the pool once more

    async def call_prefixed(self, prefix: CommandPrefix, last: bytes, read: Callable[[Any], T]) -> T:
        reply = self._request(prefix.with_last_argument(last))
        try:
            return read(reply)
        except MISREAD as error:
            raise misread(error, self.where) from error

    def _request(self, data: bytes) -> Any:
        """Send a packed command; return its reply, which holds no entries."""
        reply = self._exchange(data, 1, self.most)
        if isinstance(reply, Exception):
            raise mapped(reply, self.where, sent=True)
        return reply

    async def call_page(self, entries: int, *command: Any) -> Any:
        data = hiredis.pack_command(command if TEXT.issuperset(map(type, command)) else as_texts(command))
        reply = self._exchange(data, 1, self.max_size(entries))
        if isinstance(reply, Exception):
            raise mapped(reply, self.where, sent=True)
        return reply

    async def call_many(self, commands: Sequence[Command], entries: int = 0) -> list[Any]:
        if not commands:
            return []
        replies = self._exchange(packed(commands), len(commands), self.max_size(entries))
        return [replies] if len(commands) == 1 else replies

    def _exchange(self, data: bytes, count: int, most: int) -> Any:
        """Send `count` packed commands; return the reply, or the list of replies to several commands."""
        now = SystemClock.wait_time()
        until = now + self._timeout
        permits, permit = self._take_permit()
        sent = False
        connection = None
        try:
            connection = self._take(now, until)
            connection.late = connection.late or permit.late
            sent = count > 1  # of several commands the first may arrive whole; a part of a single one does nothing
            connection.send(data, until)
            sent = True
            if count == 1:
                spin = len(self._busy) == 1  # else other threads need the core
                reply = connection.receive_one(until, most, spin=spin)
            else:
                reply = connection.receive(count, until, most)
        except BROKEN as error:
            refusal = None
            if connection is not None:
                if not isinstance(error, TimeoutError):
                    refusal = connection.refusal()
                self._drop(connection)
                self._disconnect_idle()  # they are most likely broken too, and each would cost a timeout
            if refusal is not None:
                raise mapped(refusal, self.where, sent=True) from error
            raise self.lost(error, sent=sent) from error
        except BaseException:  # Ctrl-C between the write and the read: the reply must reach no other call
            self._drop(connection)
            raise
        else:
            self._give_back(connection)
            return reply
        finally:
            permits.put(permit)

    def _take_permit(self) -> tuple[_Permits, _Permit]:
        """Wait for the right to use a connection.

        Returns:
            The queue that it is given back to, which a fork doesn't change, and the permit.
        """
        self.check_open()
        if self._pid != process_id():
            self._begin()
        permits = self._permits
        try:
            permit = permits.get(block=False)
        except queue.Empty:
            permit = self._wait_for_permit(permits)
            permit.late = True
            return permits, permit
        permit.late = False
        return permits, permit

    def _wait_for_permit(self, permits: _Permits) -> _Permit:
        try:
            return permits.get(timeout=self._timeout)
        except queue.Empty:
            raise BackendTimeoutError(
                f"all {self.settings.max_connections} connections to {self.where} were busy for "
                f"{self._timeout:g} s; raise max_connections"
            ) from None

    def _give_back(self, connection: DirectConnection) -> None:
        if connection.is_clean():
            connection.late = False
            self._busy.discard(connection.ref)
            self._idle.append(connection)
        else:
            self._drop(connection)

    def _take(self, now: float, until: float) -> DirectConnection:
        """Return an idle connection that still works, or a new one."""
        connection = None
        while self._idle and connection is None:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread was quicker
                break
            if connection.is_stale():
                connection.close()
                connection = None
            elif now - connection.used >= IDLE and not self._check_alive(connection, until):
                connection = None
        if connection is None:
            connection = self._connect(until)
        connection.used = now
        self._busy.add(connection.ref)
        if self.closed:
            connection.shut()
        return connection

    def _check_alive(self, connection: DirectConnection, until: float) -> bool:
        """Send a PING over a connection that was idle for long; without a reply, drop all other idle ones too."""
        if connection.answers_ping(until - self._timeout / 2):  # the other half is for a new connection and the call
            return True
        connection.close()
        self._disconnect_idle()
        return False

    def _connect(self, until: float) -> DirectConnection:
        """Return a new connection; one that took longer than the call's time is kept for the next call.

        Raises:
            TimeoutError: It took longer.
        """
        connection = DirectConnection(run(self._endpoint.connect()), self._timeout, self._busy.discard)
        connection.late = True
        if (now := SystemClock.wait_time()) >= until:
            connection.used, connection.late = now, False
            self._idle.append(connection)
            raise TimeoutError("connecting took longer than the call's time")
        return connection

    def _drop(self, connection: DirectConnection | None) -> None:
        if connection is not None:
            self._busy.discard(connection.ref)
            connection.close()

    async def link(self, near: str | None = None) -> Link:  # noqa: ARG002 - one server has every key
        self.check_open()
        try:
            return ThreadLink(self, await self._endpoint.connect())
        except BROKEN as error:
            raise self.lost(error, sent=False) from error

    def interrupt(self) -> None:
        self.closed = True
        if self._pid == process_id():  # else they are the parent's
            for ref in tuple(self._busy):
                if (connection := ref()) is not None:
                    connection.shut()
            self._pending.interrupt()

    def abandon(self) -> bool:
        had = super().abandon() or bool(self._idle or self._busy)
        self.interrupt()
        self._disconnect_idle()
        return had

    async def close(self) -> None:
        self.interrupt()
        if self._pid != process_id():
            return
        self._disconnect_idle()
        until = SystemClock.wait_time() + self.settings.timeout
        # The interrupt wakes each thread that has a connection, and the thread gives it back.
        while (self._pending.interrupt() or self._busy) and SystemClock.wait_time() < until:
            time.sleep(0.001)  # noqa: ASYNC251 - a flow of the thread runtime
        self._disconnect_idle()

    def _disconnect_idle(self) -> None:
        while self._idle:
            with contextlib.suppress(IndexError):
                self._idle.pop().close()
