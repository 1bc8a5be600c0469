"""How a connection introduces itself to its server: by the commands that `CLIENT LIST` shows the results of.

They are sent with the first request, so they take no round trip, and their replies are dropped: a user without the
right to CLIENT, and a server before 7.2, which knows no library names, refuse them without harm.
"""

import os
import re
import socket
from typing import Final

from ailf.version import __version__
from ailf_redis.connection.resp import Command

__all__ = ["introduction_of"]

_FORBIDDEN: Final = re.compile(r"[^!-~]")
"""The characters that a name of a client can't have: anything but printable ASCII without the space."""


LIBRARY: Final[tuple[Command, Command]] = (
    ("CLIENT", "SETINFO", "LIB-NAME", "ailf"),
    ("CLIENT", "SETINFO", "LIB-VER", __version__),
)


def introduction_of(client_name: str | None) -> list[Command]:
    """Return the commands that name a connection and its library.

    Arguments:
        client_name: The name; None: ``ailf:<host>:<process id>``.
    """
    name = client_name or f"ailf:{socket.gethostname()}:{os.getpid()}"
    return [("CLIENT", "SETNAME", _FORBIDDEN.sub("_", name)), *LIBRARY]
