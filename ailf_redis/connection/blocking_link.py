"""Links on threads: connections that one thread reads while others send.

Nobody waits inside a socket: it is never blocked, and who finds nothing to read, or no room to write, waits beside it
with a deadline of his own. So a reader's time is not a writer's, and in TLS, where OpenSSL lets only one thread into a
session, each takes a turn of no length.
"""

import contextlib
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from ailf.runtime.clock import SystemClock
from ailf_redis.connection.executor import Executor, Link
from ailf_redis.connection.resp import Command, Replies, packed
from ailf_redis.errors import BROKEN
from ailf_redis.versions import parse_error_of, sock_of

__all__ = ["ThreadLink", "shut"]

GLANCE: Final = 1.0
"""Seconds after which who waits looks again: what has arrived of a TLS session may have been read by who sent."""


def shut(sock: Any) -> None:
    """Wake whoever reads, without freeing the descriptor under his hands."""
    if isinstance(sock, socket.socket):
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # the base class's: an SSLSocket's would drop its TLS state


class ThreadLink(Link):
    """A link over a connection of redis-py that has a real socket."""

    def __init__(self, executor: Executor, connection: Any) -> None:
        self._executor = executor
        self._connection = connection
        self._socket: socket.socket = sock_of(connection)
        self._socket.settimeout(0)
        self._replies = Replies(parse_error_of(connection))
        self._turn = threading.Lock()
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        self._gone = False
        executor.linked(self)

    def _most(self) -> int:
        return self._executor.page(1)

    def fileno(self) -> int:
        """Return the socket's descriptor, so that a thread can wait for several; -1 when it is closed."""
        return self._socket.fileno()

    async def send(self, commands: Sequence[Command]) -> None:
        rest = memoryview(packed(commands))
        until = SystemClock.wait_time() + self._executor.settings.timeout
        try:
            with self._writing:
                while rest:
                    rest = rest[self._step(self._socket.send, rest, select.POLLOUT, until) :]
        except OSError as error:
            raise self._executor.lost(error, sent=True) from error
        except BaseException:  # Ctrl-C: a part may have been sent, into which the next one's would go
            self.interrupt()
            raise

    async def receive(self, timeout: float) -> list[Any]:
        until = SystemClock.wait_time() + timeout
        with self._reading:
            try:
                return self._received(until)
            except TimeoutError:
                return []
            except BROKEN as error:
                raise self._executor.lost(error, sent=True) from error
            except BaseException:  # Ctrl-C: a part may have been read, which is lost
                self.interrupt()
                raise

    def _received(self, until: float) -> list[Any]:
        """Return what has arrived, at least one reply."""
        while True:
            if self._gone:
                raise ConnectionError("it was closed")
            if self._replies.unfinished:
                self._replies.check(self._most())
            size = self._step(self._socket.recv_into, self._replies.buffer, select.POLLIN, until)
            if not size:
                raise ConnectionError("the server closed it")
            replies = self._replies.taken(size, self._most)
            if replies:
                return replies

    def _step(self, do: Callable[[Any], Any], what: Any, ready: int, until: float) -> Any:
        """Do something with the socket as soon as it can be done at once.

        Raises:
            TimeoutError: It can't be, until then.
        """
        while True:
            with self._turn:
                try:
                    return do(what)
                except BlockingIOError:
                    events = ready
                except ssl.SSLWantReadError:
                    events = select.POLLIN
                except ssl.SSLWantWriteError:
                    events = select.POLLOUT
            left = until - SystemClock.wait_time()
            if left <= 0:
                raise TimeoutError("nothing arrives" if events == select.POLLIN else "the server takes nothing")
            poll = select.poll()
            poll.register(self._socket, events)
            poll.poll(min(left, GLANCE) * 1000)

    def interrupt(self) -> None:
        self._gone = True
        shut(self._socket)

    def drop(self) -> bool:
        had = not self._gone
        self.interrupt()
        return had

    async def close(self) -> None:
        if self._connection.pid == os.getpid():  # else a forked child's copy: the parent still uses the connection
            self.interrupt()
            with self._reading:  # whoever still reads would find his socket gone in the middle of it
                self._connection.disconnect()
        else:
            self._connection.disconnect()
