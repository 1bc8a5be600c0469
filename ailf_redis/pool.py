"""Blocking calls: a pool of redis-py connections, each driven directly by one thread at a time."""

import contextlib
import os
import queue
import select
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import hiredis
from redis import connection as blocking
from redis.exceptions import RedisError

from ailf.clock import SystemClock
from ailf.errors import BackendTimeoutError
from ailf_redis.connection import NOTHING, TEXT, Command, Executor, Link, Replies, Stem, as_texts, packed
from ailf_redis.errors import mapped
from ailf_redis.links import ThreadLink, shut
from ailf_redis.settings import Settings

__all__ = ["BlockingExecutor"]


def _connect(settings: Settings) -> Any:
    kinds = {True: blocking.SSLConnection, False: blocking.Connection}
    kind = blocking.UnixDomainSocketConnection if settings.path is not None else kinds[settings.tls]
    connection = kind(**settings.connection_options())
    try:
        connection.connect()
    except BaseException:
        connection.disconnect()
        raise
    return connection


T = TypeVar("T")

LINGER: Final = 200e-6
"""Seconds that a thread looks for its reply before it sleeps: about as long as it takes to be woken."""

SELDOM: Final = 63
"""How many calls in a row sleep at once, at most, where replies don't come that soon."""

_give_way = getattr(os, "sched_yield", lambda: None)


class _Wire:
    """One connection, driven directly: redis-py makes it, and stands no longer between the calls and the socket."""

    def __init__(self, settings: Settings) -> None:
        self._connection = _connect(settings)
        self._socket: socket.socket = self._connection._sock
        self._replies = Replies(self._connection._parser.parse_error)
        self._plain = not isinstance(self._socket, ssl.SSLSocket)
        self._timeout = settings.timeout
        self._watch = select.poll()
        self._watch.register(self._socket, select.POLLIN)
        self._pause = self._pausing = 0
        if self._plain:  # the kernel keeps the deadline, which saves two system calls per request
            self._socket.settimeout(None)
            seconds, part = divmod(settings.timeout, 1)
            limit = struct.pack("@ll", int(seconds), int(part * 1_000_000) or (0 if seconds else 1))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def stale(self) -> bool:
        """Tell whether the server has closed it, or said something that nobody asked for.

        It is asked before every call: who learns it only by the call can't tell whether the request was carried out.
        """
        if not self._watch.poll(0):  # a fraction of what a read costs that finds nothing, since nothing is raised
            return not self._plain and self._socket.pending() > 0  # type: ignore[attr-defined]  # an SSLSocket has it
        return self._plain or self._spoken()

    def _spoken(self) -> bool:
        """Tell whether what arrived is more than TLS' own talk, such as a session's ticket."""
        try:
            self._socket.settimeout(0)
            self._socket.recv(1)
        except ssl.SSLWantReadError:
            self._socket.settimeout(self._timeout)
            return False
        except OSError:
            return True
        return True

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except BlockingIOError as error:
            raise TimeoutError("the server takes nothing") from error

    def receive(self, count: int) -> list[Any]:
        """Return so many replies, and leave what is behind them."""
        replies = [self.receive_one()]
        while len(replies) < count:
            reply = self._replies.following()
            replies.append(self.receive_one() if reply is NOTHING else reply)
        return replies

    def receive_one(self, *, awake: bool = False) -> Any:
        """Return one reply.

        Arguments:
            awake: Whether to look for it for a moment before sleeping.
        """
        replies, size = self._replies, None
        try:
            if awake and self._plain:
                size = self._linger()
            while True:
                if size is None:
                    size = self._socket.recv_into(replies.buffer)
                if not size:
                    raise ConnectionError("the server closed it")
                if (reply := replies.first(size)) is not NOTHING:
                    return reply
                size = None
        except BlockingIOError as error:
            raise TimeoutError("the server is silent") from error

    def _linger(self) -> int | None:
        """Return how much has come within a moment, or None; where that was in vain, ever more calls don't wait for it.

        A core that has fallen asleep is woken in 5 µs on bare metal and in 50 on a virtual one, which is more than the
        server needs for a command. Whoever else wants the core has it meanwhile.
        """
        if self._pausing:
            self._pausing -= 1
            return None
        until = SystemClock.fine_time() + LINGER
        while True:
            try:
                size = self._socket.recv_into(self._replies.buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                size = None
            if SystemClock.fine_time() > until:  # also where it has come: others kept this one from looking sooner
                self._pause = self._pausing = min(2 * self._pause + 1, SELDOM)
                return size
            if size is not None:
                self._pause = 0
                return size
            _give_way()

    def clean(self) -> bool:
        """Tell whether nothing is left of what was read: it would be taken for the next call's reply."""
        return not self._replies.has_more()

    def shut(self) -> None:
        """Wake whoever reads, without freeing the descriptor under his hands."""
        shut(self._socket)

    def close(self) -> None:
        self._connection.disconnect()


class BlockingExecutor(Executor):
    """A pool of connections, used by one thread at a time; after a fork the child begins with an empty one."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._slots: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(self.settings.max_connections):
            self._slots.put(None)
        self._idle: deque[_Wire] = deque()  # a stack: the wire that was used last is the likeliest to be alive
        self._busy: set[_Wire] = set()

    async def call(self, *command: Any) -> Any:
        return self._ask(hiredis.pack_command(command if TEXT.issuperset(map(type, command)) else as_texts(command)))

    async def finish(self, stem: Stem, last: bytes, read: Callable[[Any], T]) -> T:
        return read(self._ask(stem.ending(last)))

    def _ask(self, data: bytes) -> Any:
        """Send a command that is packed; return its reply."""
        reply = self._exchange(data, 1)
        if isinstance(reply, Exception):
            raise mapped(reply, self.where, sent=True)
        return reply

    async def call_many(self, commands: Sequence[Command]) -> list[Any]:
        if not commands:
            return []
        replies = self._exchange(packed(commands), len(commands))
        return [replies] if len(commands) == 1 else replies

    def _exchange(self, data: bytes, count: int) -> Any:
        """Send what is packed; return its reply, or of several commands all replies."""
        slots = self._slot()
        sent = False
        wire = None
        try:
            wire = self._take()
            sent = count > 1  # of several commands the first may arrive whole; one that is cut short is nothing
            wire.send(data)
            sent = True
            alone = len(self._busy) == 1  # else others need the core
            reply = wire.receive_one(awake=alone) if count == 1 else wire.receive(count)
        except (RedisError, OSError, hiredis.HiredisError) as error:
            self._drop(wire)
            raise self.lost(error, sent=sent) from error
        except BaseException:  # Ctrl-C between the write and the read: the reply must find nobody
            self._drop(wire)
            raise
        else:
            self._give_back(wire)
            return reply
        finally:
            slots.put(None)

    def _slot(self) -> "queue.SimpleQueue[None]":
        """Wait for the right to use a connection; return where it is given back, which a fork doesn't change."""
        self.check_open()
        if self._pid != os.getpid():
            self._begin()
        slots = self._slots
        try:
            slots.get(timeout=self.settings.timeout)
        except queue.Empty:
            raise BackendTimeoutError(
                f"all {self.settings.max_connections} connections to {self.where} were busy for "
                f"{self.settings.timeout:g} s; allow more with max_connections"
            ) from None
        return slots

    def _give_back(self, wire: _Wire) -> None:
        if wire.clean():
            self._busy.discard(wire)
            self._idle.append(wire)
        else:
            self._drop(wire)

    def _take(self) -> _Wire:
        """Return a connection that the server has not closed meanwhile."""
        while True:
            try:
                wire = self._idle.pop()
            except IndexError:
                wire = _Wire(self.settings)
                break
            if not wire.stale():
                break
            wire.close()
        self._busy.add(wire)
        if self.closed:
            wire.shut()
        return wire

    def _drop(self, wire: _Wire | None) -> None:
        if wire is not None:
            self._busy.discard(wire)
            wire.close()

    async def link(self, near: str | None = None) -> Link:  # noqa: ARG002 - one server has every key
        self.check_open()
        try:
            return ThreadLink(self, _connect(self.settings))
        except (RedisError, OSError) as error:
            raise self.lost(error, sent=False) from error

    def interrupt(self) -> None:
        self.closed = True
        if self._pid == os.getpid():  # else they are the parent's
            for wire in tuple(self._busy):
                wire.shut()

    def abandon(self) -> bool:
        had = super().abandon() or bool(self._idle or self._busy)
        self.interrupt()
        self._disconnect_idle()
        return had

    async def close(self) -> None:
        self.interrupt()
        if self._pid != os.getpid():
            return
        self._disconnect_idle()
        until = SystemClock.wait_time() + self.settings.timeout
        while self._busy and SystemClock.wait_time() < until:  # each thread gives back its own, woken by the interrupt
            time.sleep(0.001)  # noqa: ASYNC251 - a flow of the thread runtime
        self._disconnect_idle()

    def _disconnect_idle(self) -> None:
        while self._idle:
            with contextlib.suppress(IndexError):
                self._idle.pop().close()
