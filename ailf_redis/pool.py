"""Blocking calls: a pool of redis-py connections, each driven directly by one thread at a time."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import hiredis
from redis import connection as blocking
from redis.exceptions import RedisError, ResponseError

from ailf.errors import BackendTimeoutError
from ailf_redis.connection import READ_SIZE, Command, Executor, Link, Replies
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

    async def call_many(self, commands: Sequence[Command]) -> list[Any]:
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
                connection = _connect(self.settings)
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

    async def link(self) -> Link:
        self.check_open()
        try:
            return _Link(self, _connect(self.settings))
        except (RedisError, OSError) as error:
            raise self.lost(error, sent=False) from error

    def interrupt(self) -> None:
        self.closed = True
        with self._lock:
            for connection in self._busy:
                _shut(connection)

    async def close(self) -> None:
        self.interrupt()
        if self._pid != os.getpid():
            return
        self._disconnect_idle()
        until = time.monotonic() + self.settings.timeout
        while self._busy and time.monotonic() < until:  # each thread gives back its own, woken by the interrupt
            time.sleep(0.001)  # noqa: ASYNC251 - a flow of the thread runtime
        self._disconnect_idle()

    def _disconnect_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.disconnect()


class _Link(Link):
    def __init__(self, executor: Executor, connection: Any) -> None:
        self._executor = executor
        self._connection = connection
        self._socket: socket.socket = connection._sock
        self._replies = Replies(connection._parser.parse_error)
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
                data = self._socket.recv(READ_SIZE)
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
