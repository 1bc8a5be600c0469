"""Links on threads: dedicated connections that one thread reads while others send.

Sockets are non-blocking. A thread that can't read or write yet polls with its own deadline and without holding a lock,
so a reader never delays a writer. OpenSSL allows one thread at a time in a TLS session, so each non-blocking call of
the socket is locked by itself.
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
from ailf_redis.versions import parse_error_of, sock_of, take_unread

__all__ = ["ThreadLink", "shut"]

MAX_POLL: Final = 1.0
"""Seconds after which a poll is repeated: a thread that sends may have read the bytes of a TLS session meanwhile."""


def shut(sock: Any) -> None:
    """Wake the thread that reads from a socket, without freeing the descriptor that it uses."""
    if isinstance(sock, socket.socket):
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # the base class's: SSLSocket.shutdown drops the TLS state


class ThreadLink(Link):
    """A link over a connection of redis-py with a real socket."""

    def __init__(self, executor: Executor, connection: Any) -> None:
        self._executor = executor
        self._connection = connection
        self._socket: socket.socket = sock_of(connection)
        self._socket.settimeout(0)
        self._replies = Replies(parse_error_of(connection), take_unread(connection))
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        self._closed = False
        executor.track_link(self)

    def _max_size(self) -> int:
        return self._executor.max_size(1)

    def fileno(self) -> int:
        """Return the socket's descriptor, for polling several links at once; -1 when it is closed."""
        return self._socket.fileno()

    async def send(self, commands: Sequence[Command]) -> None:
        rest = memoryview(packed(commands))
        until = SystemClock.wait_time() + self._executor.settings.timeout
        try:
            with self._writing:
                while rest:
                    rest = rest[self._when_ready(self._socket.send, rest, select.POLLOUT, until) :]
        except OSError as error:
            raise self._executor.lost(error, sent=True) from error
        except BaseException:  # Ctrl-C: a part may have been sent, and the next command would be appended to it
            self.interrupt()
            raise

    async def receive(self, timeout: float) -> list[Any]:
        until = SystemClock.wait_time() + timeout
        with self._reading:
            try:
                return self._receive(until)
            except TimeoutError:
                return []
            except BROKEN as error:
                raise self._executor.lost(error, sent=True) from error
            except BaseException:  # Ctrl-C: a part of a reply may have been read and lost
                self.interrupt()
                raise

    def _receive(self, until: float) -> list[Any]:
        """Return the replies that have arrived, at least one; wait for it until the time `until`."""
        while True:
            if self._closed:
                raise ConnectionError("it was closed")
            if self._replies.unfinished:
                self._replies.check(self._max_size())
            size = self._when_ready(self._socket.recv_into, self._replies.buffer, select.POLLIN, until)
            if not size:
                raise ConnectionError("the server closed it")
            replies = self._replies.feed(size, self._max_size)
            if replies:
                return replies

    def _when_ready(self, operation: Callable[[Any], Any], argument: Any, ready: int, until: float) -> Any:
        """Call a non-blocking operation of the socket as soon as it doesn't block.

        Raises:
            TimeoutError: It still blocks at the time `until`.
        """
        while True:
            with self._lock:
                try:
                    return operation(argument)
                except BlockingIOError:
                    events = ready
                except ssl.SSLWantReadError:
                    events = select.POLLIN
                except ssl.SSLWantWriteError:
                    events = select.POLLOUT
            left = until - SystemClock.wait_time()
            if left <= 0:
                raise TimeoutError("nothing arrives" if events == select.POLLIN else "the server reads nothing")
            poll = select.poll()
            poll.register(self._socket, events)
            poll.poll(min(left, MAX_POLL) * 1000)

    def interrupt(self) -> None:
        self._closed = True
        shut(self._socket)

    def drop(self) -> bool:
        had = not self._closed
        self.interrupt()
        return had

    async def close(self) -> None:
        if self._connection.pid == os.getpid():  # else this is a forked child, and the parent still uses the connection
            self.interrupt()
            with self._reading:  # a thread that still reads needs the socket until it returns
                self._connection.disconnect()
        else:
            self._connection.disconnect()
