"""The names of consumers: they are made here, and read here.

An opened consumer's name is that which the program gave it, or its host's name, a dash and the process id; then a colon
and eight characters that are new for each opened consumer. The first of the eight is a ``p`` where the program gave no
name, and a hexadecimal digit where it gave one: so "worker-7", a program's own name, is not read as process 7.
"""

import os
import re
import secrets
import socket
from typing import Final

from ailf.checks import check_name

__all__ = ["made_on", "unique_name"]

_OURS: Final = re.compile(r"(.+)-([0-9]{1,10}):p[0-9a-f]{7}", re.DOTALL)


def unique_name(name: str | None) -> str:
    """Return a new consumer's name, which no other one has.

    Arguments:
        name: The name that the program gave it, or None.

    Raises:
        InvalidArgumentError: ``name`` can't be used.
    """
    token = secrets.token_hex(4)
    if name is None:
        return f"{check_name('consumer', f'{socket.gethostname()}-{os.getpid()}')}:p{token[1:]}"
    return f"{check_name('consumer', name)}:{token}"


def made_on(consumer: str) -> tuple[str | None, int | None]:
    """Return the host and the process id in a consumer's name; None for both where the program named it itself."""
    match = _OURS.fullmatch(consumer)
    return (None, None) if match is None else (match[1], int(match[2]))
