"""A scripted server: it sends the replies that a test gives it, also byte by byte, as no real server does."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Self

import hiredis

__all__ = ["HELLO", "Scripted", "trickled"]

HOST = "127.0.0.1"
HELLO = b"*4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n8.0.0\r\n"

Answer = Callable[[list[bytes]], Iterable[bytes]]
"""A function that returns the reply to a command, in pieces."""


def trickled(reply: bytes, pause: float = 0.02) -> Iterable[bytes]:
    """Yield a reply byte by byte, with a pause of `pause` seconds after each."""
    for at in range(len(reply)):
        yield reply[at : at + 1]
        time.sleep(pause)


class Scripted:
    """The scripted server, for the length of a `with` block.

    Attributes:
        url: Its URL.
        port: Its port.
        answer: The function that gives its replies.
        greets: Whether it replies to HELLO as a server does.
        introduced: Whether it replies to CLIENT as a server does, and leaves that out of `commands`.
        commands: The commands that it received, connection by connection.
        finished: How many replies it has sent to their ends.
    """

    def __init__(self, answer: Answer, *, greets: bool = True, introduced: bool = True) -> None:
        self.answer = answer
        self.greets = greets
        self.introduced = introduced
        self.commands: list[list[list[bytes]]] = []
        self.finished = 0
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://{HOST}:{self.port}/0"
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="scripted", daemon=True)]

    def say(self, message: bytes) -> None:
        """Send an unsolicited message on the youngest connection."""
        self._sockets[-1].sendall(message)

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for each in (self._listener, *self._sockets):
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                thread = threading.Thread(target=self._serve, args=(client,), name="scripted-client", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        commands: list[list[bytes]] = []
        self.commands.append(commands)
        reader: Any = hiredis.Reader()
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                reader.feed(data)
                while (command := reader.gets()) is not False:
                    if self.introduced and command[0] == b"CLIENT":  # how a new connection introduces itself
                        client.sendall(b"+OK\r\n")
                        continue
                    commands.append(command)
                    for piece in (HELLO,) if self.greets and command[0] == b"HELLO" else self.answer(command):
                        client.sendall(piece)
                    self.finished += 1
