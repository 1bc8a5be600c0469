"""The pooled executor: a pool of redis-py connections, each used by one call at a time.

It serves users' clients and the nodes of a cluster, in both flavours, with any class of connection, fakeredis' too. A
`Port` of `ailf_redis.connection.exchange` sends and receives over each. `BlockingExecutor` and `AsyncioExecutor` are
faster, and need the socket of redis-py's own classes.
"""

import asyncio
import contextlib
import math
import socket
from asyncio import _get_running_loop
from collections import deque
from collections.abc import Sequence
from typing import Any

import attrs
from redis.exceptions import ReadOnlyError

from ailf.errors import BackendTimeoutError, ConnectionLostError
from ailf.runtime import Runtime
from ailf.runtime.aio import check_ended, start_task
from ailf.runtime.process import process_id
from ailf.runtime.semaphore import FairSemaphore
from ailf_redis.connection.aio_link import LoopLink, discard
from ailf_redis.connection.blocking_link import ThreadLink, shut
from ailf_redis.connection.endpoint import Endpoint, PendingConnections, ServerEndpoint, disconnect, maybe_await
from ailf_redis.connection.exchange import Port, port_of
from ailf_redis.connection.executor import Executor, IdentityRef, Link
from ailf_redis.connection.resp import IDLE, Command, packed
from ailf_redis.errors import BROKEN
from ailf_redis.pooled.fake import AsyncioFakeLink, BlockingFakeLink
from ailf_redis.sentinel.endpoint import SentinelEndpoint
from ailf_redis.sentinel.master import MasterTracker
from ailf_redis.settings import Settings
from ailf_redis.versions import can_read, drop, reader_of, sock_of

__all__ = ["PooledExecutor"]


class PooledExecutor(Executor):
    """A pool of connections to an endpoint; a forked child, or another event loop, begins with an empty one."""

    def __init__(self, settings: Settings, endpoint: ServerEndpoint | SentinelEndpoint, runtime: Runtime) -> None:
        super().__init__(settings)
        self.where = endpoint.where
        self.runtime = runtime
        self._tracker: MasterTracker | None = None
        self._pending = PendingConnections()
        self._endpoint: Endpoint
        if isinstance(endpoint, SentinelEndpoint):
            own = endpoint.with_pending(self._pending)
            self._endpoint = self._tracker = MasterTracker(own, self, runtime, self._leave_master)
        else:
            self._endpoint = attrs.evolve(endpoint, pending=self._pending)
        self._on_asyncio = runtime.flavour == "asyncio"
        self._inherited: list[Any] = []  # the parent's: kept alive, as collecting them would close them
        self._begin((process_id(), None))  # it belongs to the loop in which it is first used

    def _begin(self, home: tuple[int, Any]) -> None:
        self._home = home
        self._permits = FairSemaphore(self.runtime, self.settings.max_connections)
        self._idle: deque[Port] = deque()
        # The keys are weak references: on threads, a connection whose call Ctrl-C has ended is closed when it is
        # collected. On asyncio the values keep the connections alive after their loop has ended, for `_move`.
        self._busy: dict[IdentityRef[Port], Port | None] = {}
        self._pending.forget()
        self._connecting: set[asyncio.Task[Any]] = set()
        self._unclaimed: list[asyncio.Task[Any]] = []  # those of them for which no call waits

    def _here(self) -> tuple[int, Any]:
        return process_id(), _get_running_loop() if self._on_asyncio else None

    def _move(self) -> None:
        """Reset the pool in a forked child or the next event loop; close the connections of a loop that has ended."""
        here = self._here()
        if self._home == here:
            return
        pid, loop = self._home
        former = [port.connection for port in (*self._idle, *self._in_use())]
        if pid != process_id():
            self._inherited += former
        elif loop is not None:
            check_ended(loop, f"the connections to {self.where}")
            for connection in former:
                discard(connection, loop)
        if self._tracker is not None:
            self._tracker.move(forked=pid != process_id())
        self._begin(here)

    def _in_use(self) -> list[Port]:
        """Return the connections that calls use now."""
        return [port for ref in tuple(self._busy) if (port := ref()) is not None]

    def _use(self, port: Port) -> None:
        """Register a connection as in use, so that closing the backend or a change of the master can end it."""
        busy = self._busy
        port.ref = IdentityRef(port, lambda ref: busy.pop(ref, None))
        busy[port.ref] = port if self._on_asyncio else None

    def _unuse(self, port: Port) -> None:
        if port.ref is not None:
            self._busy.pop(port.ref, None)

    async def call_many(self, commands: Sequence[Command], entries: int = 0, until: float | None = None) -> list[Any]:
        """See `Executor.call_many`; `until` ends it earlier, on the runtime's clock."""
        self.check_open()
        self._move()
        permits, count, timeout = self._permits, self.settings.max_connections, self.settings.timeout
        begin = self.runtime.now()
        until = begin + timeout if until is None else min(until, begin + timeout)
        if until <= begin:
            raise self.lost(TimeoutError(), sent=False)
        permit = await permits.take(max(0.0, until - begin))
        if permit is None:
            raise BackendTimeoutError(
                f"all {count} connections to {self.where} were busy for {until - begin:g} s; raise max_connections"
            )
        try:
            return await self._exchange(commands, self.max_size(entries), until)
        finally:
            permits.release(permit)

    async def _exchange(self, commands: Sequence[Command], most: int, until: float) -> list[Any]:
        port = None
        sent = False
        try:
            port = await self._take(until)
            connection = port.connection
            # Of several commands the first may arrive whole; a part of a single one does nothing. asyncio's writer
            # buffers everything, so how much was sent is unknown.
            sent = len(commands) > 1 or self._on_asyncio
            port.used = self.runtime.now()
            await port.send(packed(commands), until)
            sent = True
            if self._tracker is not None and not self._on_asyncio:
                await self._tracker.wait_for_reply(connection, sock_of(connection), until)
            replies = await port.receive(len(commands), until, most)
            if self._tracker is not None:
                self._tracker.check(connection)  # a former master's changes are lost
        except BROKEN as error:
            if port is not None:
                await self._drop(port)
                await self._drop_idle()  # they are most likely broken too, and each would cost a timeout
            raise self.lost(error, sent=sent) from error
        except BaseException:  # cancelled, or Ctrl-C, before the reply was read: it must reach no other call
            await self._drop(port)
            raise
        if self._tracker is not None and any(map(_demoted, replies)):
            await self._drop(port)
            await self._drop_idle()
            applied = not all(map(_demoted, replies))
            raise ConnectionLostError(f"{self.where}: the master is a replica now", maybe_applied=applied)
        self._unuse(port)
        self._idle.append(port)
        return replies

    async def _take(self, until: float) -> Port:
        """Return an idle connection that still works, or a new one; either leads to the master."""
        while True:
            port = await self._idle_port(until) or port_of(await self._connect(until))
            self._use(port)
            try:
                self.check_open()  # it may have been closed while the connection was being made
                if self._tracker is None or await self._tracker.leads_to_master(port.connection, port, until):
                    return port
                await self._drop_idle()  # the others most likely don't lead there either
            except BaseException:
                await self._drop(port)
                raise
            await self._drop(port)

    async def _idle_port(self, until: float) -> Port | None:
        """Return an idle connection that still works, or None."""
        while self._idle:
            try:
                port = self._idle.pop()
            except IndexError:  # another thread was quicker
                break
            if not port.awaits_unread() and await _is_stale(port.connection):
                await disconnect(port.connection)
            elif await self._check_alive(port, until):
                return port
        return None

    async def _check_alive(self, port: Port, until: float) -> bool:
        """Send a PING over a connection that was idle for long; without a reply, drop all other idle ones too."""
        now = self.runtime.now()
        if now - port.used < IDLE or self._tracker is not None:  # the tracker asks for the role instead
            return True
        self._use(port)  # so that closing the backend interrupts this
        try:
            if await port.answers_ping(now + (until - now) / 2):  # the other half is for a new connection and the call
                return True
        except BaseException:
            await self._drop(port)
            raise
        finally:
            self._unuse(port)
        await self._drop(port)
        await self._drop_idle()
        return False

    async def _connect(self, until: float) -> Any:
        """Return a new connection; one that is late, or whose caller was cancelled, is kept for the next call.

        On Python 3.11 a handshake can swallow a cancellation (asyncio.wait_for), so a task of its own does it.

        Raises:
            TimeoutError: The connection was not made in time.
        """
        if not self._on_asyncio:
            connection = await self._endpoint.connect()
            if self.runtime.now() < until:
                return connection
            self._idle.append(port_of(connection))
            raise TimeoutError("connecting took longer than the call's time")
        if self._unclaimed:
            connecting = self._unclaimed.pop()
        else:
            connecting = start_task(self._endpoint.connect(), name="ailf-connect")
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connecting.discard)
        try:
            left = None if until == math.inf else max(0.0, until - self.runtime.now())
            await asyncio.wait([connecting], timeout=left)
        except asyncio.CancelledError:
            self._leave(connecting)
            raise
        if connecting.cancelled():
            raise ConnectionError("the backend was closed while it connected")
        if connecting.done():
            return connecting.result()
        self._leave(connecting)
        raise TimeoutError("connecting takes longer than the call's time")

    def _leave(self, connecting: "asyncio.Task[Any]") -> None:
        """Leave a connection that is being made to the next call that needs one."""
        self._unclaimed.append(connecting)
        connecting.add_done_callback(self._keep)

    def _keep(self, made: "asyncio.Task[Any]") -> None:
        if made not in self._unclaimed:  # a call waits for it
            return
        self._unclaimed.remove(made)
        if made.cancelled() or made.exception() is not None:
            return
        if self.closed:
            drop(made.result())
        else:
            self._idle.append(port_of(made.result()))

    async def _drop(self, port: Port | None) -> None:
        if port is not None:
            self._unuse(port)
            await disconnect(port.connection)

    async def _drop_idle(self) -> None:
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread was quicker
                await disconnect(self._idle.pop().connection)

    async def link(self, near: str | None = None) -> Link:  # noqa: ARG002 - one server has every key
        self.check_open()
        self._move()
        try:
            connection = await self._connect(math.inf)
        except BROKEN as error:
            raise self.lost(error, sent=False) from error
        if self.closed:  # while it was being made
            await disconnect(connection)
            self.check_open()
        link = self._new_link(connection)
        return link if self._tracker is None else self._tracker.link(link, connection)

    def _new_link(self, connection: Any) -> Link:
        if self._on_asyncio:
            return (LoopLink if isinstance(reader_of(connection), asyncio.StreamReader) else AsyncioFakeLink)(
                self, connection
            )
        return (ThreadLink if isinstance(sock_of(connection), socket.socket) else BlockingFakeLink)(self, connection)

    def _leave_master(self) -> None:
        """Close every connection for calls, those of pending calls too, as another server is the master now."""
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread was quicker
                self._end(self._idle.pop().connection)
        for port in self._in_use():  # each call then drops its own
            if self._on_asyncio:
                self._end(port.connection)
            else:
                shut(sock_of(port.connection))

    def _end(self, connection: Any) -> None:
        """Close a connection without waiting."""
        _, loop = self._home
        if loop is None:
            connection.disconnect()
        else:
            discard(connection, loop)

    def interrupt(self) -> None:
        self.closed = True
        if not self._on_asyncio and self._home == self._here():  # else they are the parent's
            for port in self._in_use():
                shut(sock_of(port.connection))  # a fake has no socket to shut, and never blocks for long
            self._pending.interrupt()

    def abandon(self) -> bool:
        had = super().abandon()
        ports: list[Port] = []
        if self._home[0] == process_id():  # else they are the parent's
            ports = [*self._idle, *self._in_use()]
            self._pending.interrupt()
        self._idle.clear()
        for port in ports:
            self._end(port.connection)
        return bool(ports) or had

    async def close(self) -> None:
        self.interrupt()
        self._move()
        if self._on_asyncio:
            for port in self._in_use():
                await disconnect(port.connection)
        if self._tracker is not None:
            await self._tracker.close()
        for connecting in tuple(self._connecting):
            connecting.cancel()
        until = self.runtime.now() + self.settings.timeout
        # The interrupt wakes each call that has a connection, and the call drops it.
        while (self._pending.interrupt() or self._busy or self._connecting) and self.runtime.now() < until:
            await self.runtime.event().wait(0.001)
        while self._idle:
            self._end(self._idle.pop().connection)  # an orderly end of TLS would wait for the server


def _demoted(reply: Any) -> bool:
    """Return whether a reply says that the server is a replica; old servers say so within a script's error."""
    return isinstance(reply, ReadOnlyError) or (isinstance(reply, Exception) and "READONLY" in str(reply))


async def _is_stale(connection: Any) -> bool:
    """Return whether the server has closed a connection, or sent something unsolicited."""
    try:
        return bool(await maybe_await(can_read(connection)))
    except BROKEN:
        return True
