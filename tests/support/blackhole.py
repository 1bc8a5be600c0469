"""A port that answers no attempt to connect, as a host behind a firewall that drops packets."""

import contextlib
import socket
from collections.abc import Iterator

__all__ = ["black_hole"]

HOST = "127.0.0.1"


@contextlib.contextmanager
def black_hole() -> Iterator[tuple[str, int]]:
    """Yield the address of a port whose queue of connections is full: the system drops further attempts."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((HOST, 0))
        listener.listen(0)
        for _ in range(4):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(listener.getsockname())
        yield listener.getsockname()
