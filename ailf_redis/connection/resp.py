"""Commands packed, and replies read, as RESP; how large either may be. Nothing in here waits."""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import hiredis
import msgspec

from ailf.checks import MAX_HEADER_BYTES

__all__ = [
    "IDLE",
    "NOTHING",
    "PIECE",
    "TEXT",
    "Command",
    "CommandPrefix",
    "OversizeError",
    "Replies",
    "as_texts",
    "check_size",
    "packed",
]

T = TypeVar("T")

Command = Sequence[Any]

READ_SIZE: Final = 64 * 1024

IDLE: Final = 30.0
"""Seconds without use after which a connection is asked with PING before it is used again.

A firewall between the two may have forgotten it, and drops what is sent over it without a word.
"""

SLACK: Final = 1024 * 1024
"""The bytes that a reply may have beside the entries in it."""

HEADERS: Final = 6 * MAX_HEADER_BYTES
"""The bytes that an entry's headers may have as JSON, where a control character is six: \\u0001."""

AROUND: Final = 32 * 1024
"""The bytes that an entry may have beside its body and headers.

JSON puts 6 around each of 64 headers. A reply names the fields. An ordering key has up to 512, the key of a dedup id up
to 8 kB, and a dead letter's reason and error up to 8 kB each.
"""

FOREIGN: Final = 64 * 1024 * 1024
"""The least limit of bytes where a reply holds entries of a stream.

Another program may have written them, larger than `max_payload`: such an entry has to arrive, to be told from ours and
to become a dead letter. A limit below it would stop the whole group.
"""

PIECE: Final = 32 * 1024 * 1024
"""The bytes of entries that one reply returns where a page is read in pieces, unless a single one has more."""

NOTHING: Final = object()
"""What stands for a reply that has not arrived whole."""


TEXT: Final = frozenset({str, bytes})
"""The types of arguments that are packed.

hiredis turns a number into text by `repr`, where a signal handler may run. One that raises makes `repr` return NULL,
which hiredis dereferences: the process dies of Ctrl-C. So numbers are made text here, where Python sees the error.
"""


def as_texts(command: Command) -> tuple[Any, ...]:
    """Return a command whose numbers are text."""
    return tuple([each if type(each) in TEXT else _as_text(each) for each in command])


def _as_text(argument: Any) -> str | bytes:
    if isinstance(argument, int | float | str):
        return str(argument)
    return bytes(memoryview(argument))  # which refuses everything that is no buffer


def packed(commands: Sequence[Command]) -> bytes:
    """Return commands as they go over the wire."""
    if len(commands) == 1:
        one: bytes = hiredis.pack_command(as_texts(commands[0]))
        return one
    return b"".join([hiredis.pack_command(as_texts(command)) for command in commands])


class CommandPrefix(msgspec.Struct, frozen=True):
    """A command but for its last argument, packed once for all the times that it is sent.

    Attributes:
        command: What stands before the last argument.
        packed: The same as it goes over the wire.
    """

    command: Command
    packed: bytes

    @classmethod
    def of(cls, *command: Any) -> "CommandPrefix":
        """Pack it."""
        return cls(command, packed([(*command, b"")]).removesuffix(b"$0\r\n\r\n"))

    def with_last_argument(self, last: bytes) -> bytes:
        """Return the whole command as it goes over the wire."""
        return b"%b$%d\r\n%b\r\n" % (self.packed, len(last), last)


class OversizeError(hiredis.ProtocolError):
    """A reply is larger than it can have been meant to be."""


def check_size(size: int, most: int) -> None:
    """Refuse a reply of which more has arrived than it can have.

    Raises:
        OversizeError: It is too large.
    """
    if size > most:
        raise OversizeError(f"a reply of over {size} bytes, where at most {most} are possible")


class Replies:
    """Cuts what arrives into replies.

    Attributes:
        buffer: Where what arrives is put, before `taken` or `first` is told how much that is.
        unfinished: About how many bytes have arrived of a reply that isn't whole; `taken` counts them.
    """

    def __init__(self, parse_error: Callable[[str], Exception]) -> None:
        self.unfinished = 0
        reader = hiredis.Reader(protocolError=hiredis.ProtocolError, replyError=parse_error, notEnoughData=NOTHING)
        self.buffer = bytearray(READ_SIZE)
        self._feed: Callable[[Any, int, int], None] = reader.feed  # any buffer, whatever its stub says
        self.following: Callable[[], Any] = reader.gets
        self.has_more: Callable[[], bool] = reader.has_data

    def taken(self, size: int) -> list[Any]:
        """Take so many bytes of the buffer; return the replies they complete."""
        self._feed(self.buffer, 0, size)
        replies = []
        while (reply := self.following()) is not NOTHING:
            replies.append(reply)
        if not replies:
            self.unfinished += size
        elif self.unfinished:
            self.unfinished = 0
        return replies

    def first(self, size: int) -> Any:
        """Take so many bytes of the buffer; return the next reply, or `NOTHING` while it isn't whole.

        `has_more` tells of bytes behind it.
        """
        self._feed(self.buffer, 0, size)
        return self.following()
