"""Blocking calls: a pool of redis-py connections, each driven directly by one thread at a time.

A call's time is counted once, from its beginning. The kernel keeps it for a call that neither waited for its turn nor
made a connection, as a single send or receive is bounded by a timeout of the socket. What is left of the time is
counted only where that isn't enough: where the request or the answer doesn't go in one piece, or less than `timeout` is
left.

Ctrl-C may come between any two lines. So connections that are in use are known by weak references, and the right to use
one is an object: one that nobody holds any more is closed, or given back, when it is collected.
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
from ailf_redis.connection.blocking_link import ThreadLink, shut
from ailf_redis.connection.endpoint import ServerEndpoint, server_of
from ailf_redis.connection.executor import Executor, IdentityRef, Link
from ailf_redis.connection.resp import (
    IDLE,
    NOTHING,
    TEXT,
    Command,
    CommandPrefix,
    Replies,
    as_texts,
    check_size,
    packed,
)
from ailf_redis.errors import BROKEN, MISREAD, mapped, misread
from ailf_redis.settings import Settings
from ailf_redis.versions import parse_error_of, sock_of

__all__ = ["BlockingExecutor"]


T = TypeVar("T")

LINGER: Final = 200e-6
"""Seconds that a thread looks for its reply before it sleeps: about as long as it takes to be woken."""

PING: Final = packed([("PING",)])

SELDOM: Final = 63
"""How many calls in a row sleep at once, at most, where replies don't come that soon."""

_give_way = getattr(os, "sched_yield", lambda: None)


class _Wire:
    """One connection, driven directly: redis-py makes it, and stands no longer between the calls and the socket.

    Attributes:
        used: When the last call over it began.
        late: Whether the call that has it has less than `timeout` left, so that the kernel can't keep its deadline.
        ref: What finds it while it is in use.
    """

    def __init__(self, connection: Any, timeout: float, collected: "Callable[[IdentityRef[_Wire]], object]") -> None:
        self.ref = IdentityRef(self, collected)
        self._connection = connection
        self._socket: socket.socket = sock_of(connection)
        self._replies = Replies(parse_error_of(connection))
        self._plain = not isinstance(self._socket, ssl.SSLSocket)
        self._timeout = timeout
        self._watch = select.poll()
        self._watch.register(self._socket, select.POLLIN)
        self._pause = self._pausing = 0
        self.used = 0.0
        self.late = False
        if self._plain:  # the kernel keeps the deadline, which saves two system calls per request
            self._socket.settimeout(None)
            seconds, part = divmod(timeout, 1)
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

    def send(self, data: bytes, until: float) -> None:
        """Send a request, within the call's time."""
        sent = 0
        if not self.late:
            try:
                sent = self._socket.send(data)
            except BlockingIOError as error:
                raise TimeoutError("the server takes nothing") from error
        if sent < len(data):
            self._send_rest(memoryview(data)[sent:], until)

    def _send_rest(self, rest: memoryview, until: float) -> None:
        try:
            while rest:
                self._limit(until)
                rest = rest[self._socket.send(rest) :]
        finally:
            self._socket.settimeout(None if self._plain else self._timeout)

    def receive(self, count: int, until: float, most: int) -> list[Any]:
        """Return that many replies, and leave what is behind them."""
        replies = [self.receive_one(until, most)]
        while len(replies) < count:
            reply = self._replies.following()
            replies.append(self._receive_rest(until, most) if reply is NOTHING else reply)
        return replies

    def receive_one(self, until: float, most: int, *, awake: bool = False) -> Any:
        """Return one reply, within the call's time.

        Arguments:
            until: When that is over.
            most: How many bytes the reply may have.
            awake: Whether to look for it for a moment before sleeping.
        """
        if self.late:
            return self._receive_rest(until, most)
        try:
            size = self._linger() if awake and self._plain else None
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
        """Return a reply of which not everything came at once."""
        try:
            while True:
                self._limit(until)
                size = self._socket.recv_into(self._replies.buffer)
                if not size:
                    raise ConnectionError("the server closed it")
                if (reply := self._replies.first(size, most)) is not NOTHING:
                    return reply
                arrived += size
                check_size(arrived, most)
        finally:
            self._socket.settimeout(None if self._plain else self._timeout)

    def _limit(self, until: float) -> None:
        """Bound the next use of the socket by what is left of the call's time."""
        left = until - SystemClock.wait_time()
        if left <= 0:
            raise TimeoutError("the call's time is over")
        self._socket.settimeout(left)

    def answers(self, until: float) -> bool:
        """Tell whether the server answers a PING, whatever it says."""
        try:
            self.late = True
            self.send(PING, until)
            self._receive_rest(until, len(self._replies.buffer))
        except BROKEN:
            return False
        return self.clean()

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


_Slots: TypeAlias = "queue.SimpleQueue[_Slot]"


class _Slot:
    """The right to use a connection.

    Attributes:
        late: Whether there was a wait for it.
    """

    def __init__(self, home: "weakref.ref[_Slots]") -> None:
        self.late = False
        self._home = home

    def __del__(self) -> None:
        slots = self._home()
        if slots is not None:  # it was taken, and the taker was interrupted before it gave it back
            slots.put(_Slot(self._home))


class BlockingExecutor(Executor):
    """A pool of connections, used by one thread at a time; after a fork the child begins with an empty one."""

    def __init__(self, settings: Settings, endpoint: ServerEndpoint | None = None) -> None:
        super().__init__(settings)
        self._endpoint = endpoint or server_of(settings, "blocking")
        self._under_way = self._endpoint.under_way
        self._timeout = settings.timeout
        self._begin()

    def _begin(self) -> None:
        self._slots: _Slots = queue.SimpleQueue()
        home = weakref.ref(self._slots)
        for _ in range(self.settings.max_connections):
            self._slots.put(_Slot(home))
        self._idle: deque[_Wire] = deque()  # a stack: the wire that was used last is the likeliest to be alive
        self._busy: set[IdentityRef[_Wire]] = set()
        self._under_way.forget()
        self._pid = os.getpid()  # last: where Ctrl-C comes before it, a child begins anew once more

    async def call_prefixed(self, prefix: CommandPrefix, last: bytes, read: Callable[[Any], T]) -> T:
        reply = self._ask(prefix.with_last_argument(last))
        try:
            return read(reply)
        except MISREAD as error:
            raise misread(error, self.where) from error

    def _ask(self, data: bytes) -> Any:
        """Send a command that is packed; return its reply, which holds no entries."""
        reply = self._exchange(data, 1, self.most)
        if isinstance(reply, Exception):
            raise mapped(reply, self.where, sent=True)
        return reply

    async def call_page(self, entries: int, *command: Any) -> Any:
        data = hiredis.pack_command(command if TEXT.issuperset(map(type, command)) else as_texts(command))
        reply = self._exchange(data, 1, self.page(entries))
        if isinstance(reply, Exception):
            raise mapped(reply, self.where, sent=True)
        return reply

    async def call_many(self, commands: Sequence[Command], entries: int = 0) -> list[Any]:
        if not commands:
            return []
        replies = self._exchange(packed(commands), len(commands), self.page(entries))
        return [replies] if len(commands) == 1 else replies

    def _exchange(self, data: bytes, count: int, most: int) -> Any:
        """Send what is packed; return its reply, or of several commands all replies."""
        now = SystemClock.wait_time()
        until = now + self._timeout
        slots, slot = self._slot()
        sent = False
        wire = None
        try:
            wire = self._take(now, until)
            wire.late = wire.late or slot.late
            sent = count > 1  # of several commands the first may arrive whole; one that is cut short is nothing
            wire.send(data, until)
            sent = True
            alone = len(self._busy) == 1  # else others need the core
            reply = wire.receive_one(until, most, awake=alone) if count == 1 else wire.receive(count, until, most)
        except BROKEN as error:
            if wire is not None:
                self._drop(wire)
                self._disconnect_idle()  # they have most likely broken with it, and each would cost a timeout
            raise self.lost(error, sent=sent) from error
        except BaseException:  # Ctrl-C between the write and the read: the reply must find nobody
            self._drop(wire)
            raise
        else:
            self._give_back(wire)
            return reply
        finally:
            slots.put(slot)

    def _slot(self) -> tuple[_Slots, _Slot]:
        """Wait for the right to use a connection.

        Returns:
            Where it is given back, which a fork doesn't change, and the right.
        """
        self.check_open()
        if self._pid != os.getpid():
            self._begin()
        slots = self._slots
        try:
            slot = slots.get(block=False)
        except queue.Empty:
            slot = self._waited_for(slots)
            slot.late = True
            return slots, slot
        slot.late = False
        return slots, slot

    def _waited_for(self, slots: _Slots) -> _Slot:
        try:
            return slots.get(timeout=self._timeout)
        except queue.Empty:
            raise BackendTimeoutError(
                f"all {self.settings.max_connections} connections to {self.where} were busy for "
                f"{self._timeout:g} s; allow more with max_connections"
            ) from None

    def _give_back(self, wire: _Wire) -> None:
        if wire.clean():
            wire.late = False
            self._busy.discard(wire.ref)
            self._idle.append(wire)
        else:
            self._drop(wire)

    def _take(self, now: float, until: float) -> _Wire:
        """Return a connection that the server has not closed meanwhile."""
        wire = None
        while self._idle and wire is None:
            try:
                wire = self._idle.pop()
            except IndexError:  # another thread was quicker
                break
            if wire.stale():
                wire.close()
                wire = None
            elif now - wire.used >= IDLE and not self._still_there(wire, until):
                wire = None
        if wire is None:
            wire = self._made(until)
        wire.used = now
        self._busy.add(wire.ref)
        if self.closed:
            wire.shut()
        return wire

    def _still_there(self, wire: _Wire, until: float) -> bool:
        """Ask over a connection that was idle for long; where no answer comes, drop the other ones, too."""
        if wire.answers(until - self._timeout / 2):  # the other half is for a new connection and the call
            return True
        wire.close()
        self._disconnect_idle()
        return False

    def _made(self, until: float) -> _Wire:
        """Return a new connection. One that took longer than the call has is kept for the next call.

        Raises:
            TimeoutError: It took longer.
        """
        wire = _Wire(run(self._endpoint.connect()), self._timeout, self._busy.discard)
        wire.late = True
        if (now := SystemClock.wait_time()) >= until:
            wire.used, wire.late = now, False
            self._idle.append(wire)
            raise TimeoutError("connecting took longer than the call has")
        return wire

    def _drop(self, wire: _Wire | None) -> None:
        if wire is not None:
            self._busy.discard(wire.ref)
            wire.close()

    async def link(self, near: str | None = None) -> Link:  # noqa: ARG002 - one server has every key
        self.check_open()
        try:
            return ThreadLink(self, await self._endpoint.connect())
        except BROKEN as error:
            raise self.lost(error, sent=False) from error

    def interrupt(self) -> None:
        self.closed = True
        if self._pid == os.getpid():  # else they are the parent's
            for ref in tuple(self._busy):
                if (wire := ref()) is not None:
                    wire.shut()
            self._under_way.interrupt()

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
        # Each thread gives back its own, woken by the interrupt.
        while (self._under_way.interrupt() or self._busy) and SystemClock.wait_time() < until:
            time.sleep(0.001)  # noqa: ASYNC251 - a flow of the thread runtime
        self._disconnect_idle()

    def _disconnect_idle(self) -> None:
        while self._idle:
            with contextlib.suppress(IndexError):
                self._idle.pop().close()
