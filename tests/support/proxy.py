"""A bad network in a few lines: a TCP proxy that stalls, loses replies, cuts or forgets on request.

Two threads per connection, one for each direction; every method acts on all connections at once.
"""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self

HOST = "127.0.0.1"
CHUNK = 65536


class Proxy:
    """A proxy between clients and a port of this machine, for the length of a `with` block.

    Attributes:
        port: The port for clients.
        url: The Redis URL of that port.
        forge: A function that changes the bytes of replies; by default they stay the same.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://{HOST}:{self.port}/0"
        self._changed = threading.Condition()  # guards everything below
        self._links: list[_Link] = []
        self._stalled = False
        self._dropping = False
        self._closing = False
        self.forge: Callable[[bytes], bytes] = bytes
        self._acceptor = threading.Thread(target=self._accept, name="proxy-accept", daemon=True)

    @property
    def connections(self) -> int:
        """The number of open connections."""
        with self._changed:
            return sum(not link.closed for link in self._links)

    def cut(self) -> None:
        """Close every connection; bytes on their way are lost. New connections work."""
        with self._changed:
            links, self._links = self._links, []
            for link in links:
                link.close()
            self._changed.notify_all()
        for link in links:
            link.join()

    def stall(self) -> None:
        """Hold all bytes in both directions until `resume`. Connecting still works, as with a hung host."""
        self._set(stalled=True, dropping=False)

    def forget(self) -> None:
        """Silently drop the bytes of every existing connection, in both directions. New connections work.

        A firewall does so with connections that were idle for too long.
        """
        with self._changed:
            for link in self._links:
                link.forgotten = True

    def drop_replies(self) -> None:
        """Pass requests on and drop the replies, until `resume`.

        A connection that has lost a reply is out of step afterwards: `cut` it before `resume`.
        """
        self._set(stalled=False, dropping=True)

    def resume(self) -> None:
        """Pass all bytes again; held ones are passed on."""
        self._set(stalled=False, dropping=False)

    def close(self) -> None:
        """Cut all connections, stop listening and end all threads."""
        with self._changed:
            self._closing = True
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port)):
            self._acceptor.join()  # the connection wakes it
        self._listener.close()
        self.cut()

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set(self, *, stalled: bool, dropping: bool) -> None:
        with self._changed:
            self._stalled, self._dropping = stalled, dropping
            self._changed.notify_all()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with self._changed:
                if self._closing:
                    client.close()
                    return
                self._forget_ended()
            self._connect(client)

    def _forget_ended(self) -> None:
        for link in [link for link in self._links if not link.alive]:
            link.join()
            self._links.remove(link)

    def _connect(self, client: socket.socket) -> None:
        try:
            target = socket.create_connection((HOST, self._target_port), timeout=5.0)
        except OSError:  # the target is down: the client sees its connection close
            client.close()
            return
        target.settimeout(None)
        link = _Link(self, client, target)
        with self._changed:
            link.start()  # under the guard: `cut` and `forget` find its threads running
            self._links.append(link)

    def may_pass(self, link: "_Link", *, is_reply: bool) -> bool:
        """Wait while stalled; tell whether the bytes that were read are passed on, or dropped."""
        with self._changed:
            self._changed.wait_for(lambda: link.closed or not self._stalled)
            return not (link.closed or link.forgotten or (is_reply and self._dropping))

    def end(self, link: "_Link") -> None:
        """Close both sides when one has ended, also if a stall holds the other thread."""
        with self._changed:
            link.close()
            self._changed.notify_all()


class _Link:
    """The connection of one client and the one to the target."""

    def __init__(self, proxy: Proxy, client: socket.socket, target: socket.socket) -> None:
        self.closed = self.forgotten = False
        self._proxy = proxy
        self._sockets = (client, target)
        self._pumps = (
            threading.Thread(target=self._pump, args=(client, target), name="proxy-requests", daemon=True),
            threading.Thread(target=self._pump, args=(target, client), name="proxy-replies", daemon=True),
        )

    @property
    def alive(self) -> bool:
        return any(pump.is_alive() for pump in self._pumps)

    def start(self) -> None:
        for pump in self._pumps:
            pump.start()

    def close(self) -> None:
        """Wake both threads out of their reads and writes."""
        self.closed = True
        # Closed only after `join`: the system could reuse the descriptor while a thread still reads it.
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        for pump in self._pumps:
            pump.join()
        for each in self._sockets:
            each.close()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        is_reply = sink is self._sockets[0]
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                if self._proxy.may_pass(self, is_reply=is_reply):
                    sink.sendall(self._proxy.forge(data) if is_reply else data)
        self._proxy.end(self)
