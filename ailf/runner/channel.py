"""Messages between the runner and a worker: lines of JSON over a pair of sockets, which ends when either process dies.

The runner never blocks on it: a message that a worker doesn't read in time is dropped.
"""

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["LONGEST", "Channel"]

LONGEST = 16 * 1024 * 1024
"""The longest message, in bytes."""

CHUNK = 65_536


class Channel:
    """One end of a connection."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._sending = threading.Lock()
        self._received = bytearray()

    def fileno(self) -> int:
        """Return the file descriptor, for a selector."""
        return self._socket.fileno()

    def send(self, kind: str, **content: Any) -> bool:
        """Send a message, from any thread; return whether it was sent."""
        line = json.dumps({"kind": kind, **content}).encode() + b"\n"
        try:
            with self._sending:
                self._socket.sendall(line)
        except OSError:  # the other process has ended, or doesn't read
            return False
        return True

    def receive(self) -> Iterator[dict[str, Any]] | None:
        """Return the messages that have come, after waiting for data if the socket blocks; None at the end."""
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            return iter(())
        except OSError:
            return None
        if not data or len(self._received) > LONGEST:
            return None
        self._received += data
        if b"\n" not in data:
            return iter(())
        *lines, rest = bytes(self._received).split(b"\n")
        self._received[:] = rest
        return map(json.loads, lines)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
