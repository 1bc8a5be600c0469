"""Commands packed, and replies read, as RESP; how large either may be. Nothing in here waits."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import hiredis
import msgspec
from redis.exceptions import ResponseError

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

    hiredis makes error replies of its own class, in C. It goes on with NULL where a class of Python raises, be it
    redis-py's (which refuses ``-MOVED`` without an address) or a signal's handler within it, and the process dies.
    They become redis-py's errors here, where Python sees what is raised. An error within a list stays hiredis'.

    Attributes:
        buffer: Where what arrives is put, before `taken` or `first` is told how much that is.
        unfinished: About how many bytes have arrived of a reply that isn't whole; `taken` counts them. Not 0 either
            after what is no reply. `check` tells what is wrong.
    """

    def __init__(self, parse_error: Callable[[str], Exception]) -> None:
        self.unfinished = 0
        reader = hiredis.Reader(protocolError=hiredis.ProtocolError, replyError=_Said, notEnoughData=NOTHING)
        self.buffer = bytearray(READ_SIZE)
        self._parse_error = parse_error
        self._broken: Exception | None = None
        self._at_begin = True  # whether the next bytes begin a reply, or go on with its first line
        self._line = b""  # what has come of a first line that isn't whole
        self._feed: Callable[[Any, int, int], None] = reader.feed  # any buffer, whatever its stub says
        self._next: Callable[[], Any] = reader.gets
        self.has_more: Callable[[], bool] = reader.has_data

    def taken(self, size: int, most: Callable[[], int]) -> list[Any]:
        """Take so many bytes of the buffer; return the replies they complete, those before what is no reply too.

        Arguments:
            size: How many bytes.
            most: How many bytes the next reply may have.
        """
        replies = []
        try:
            if self._at_begin and self.buffer[0] not in _PLAIN and not _begins_short_list(self.buffer, 0, size):
                self._look(size, most())
            self._feed(self.buffer, 0, size)
            while (reply := self._next()) is not NOTHING:
                replies.append(reply if type(reply) is not _Said else self._as_error(reply))
                if not self.has_more():
                    self._at_begin, self.unfinished = True, 0
                    return replies
        except _CHOKED as error:
            self._broken, self.unfinished = _no_reply(error), 1
            return replies
        self._at_begin = self._line != b""
        if not replies:
            self.unfinished += size
        elif self.unfinished:
            self.unfinished = 0
        return replies

    def check(self, most: int) -> None:
        """Refuse what is no reply, or has grown larger than `most` bytes.

        Raises:
            hiredis.ProtocolError, MemoryError: It is.
        """
        if self._broken is not None:
            raise self._broken
        check_size(self.unfinished, most)

    def first(self, size: int, most: int) -> Any:
        """Take so many bytes of the buffer; return the next reply, or `NOTHING` while it isn't whole.

        `has_more` tells of bytes behind it.

        Arguments:
            size: How many bytes.
            most: How many bytes the reply may have.

        Raises:
            hiredis.ProtocolError, MemoryError: It is no reply.
        """
        if self._at_begin and self.buffer[0] not in _PLAIN and not _begins_short_list(self.buffer, 0, size):
            self._look(size, most)
        self._feed(self.buffer, 0, size)
        try:
            reply = self._next()
        except _CHOKED as error:
            raise _no_reply(error) from error
        self._at_begin = reply is not NOTHING or self._line != b""
        return reply if type(reply) is not _Said else self._as_error(reply)

    def following(self) -> Any:
        """Return the reply behind the last one, or `NOTHING` while it isn't whole; see `first`."""
        self._at_begin = False  # it may have begun in what came with the last one, and is not looked at
        return self.first(0, 0)

    def _look(self, size: int, most: int) -> None:
        """Refuse what hiredis would make room for at once: kinds of RESP3, and lists of more than can come.

        What stands within a list, or behind another reply in the same bytes, isn't seen: that would be a second parser.
        """
        self._line += self.buffer[: min(size, _LONGEST)]
        if not self._line.startswith(b"*"):
            raise hiredis.ProtocolError(f"it begins with {self._line[:1]!r}, as no reply of RESP2 does")
        count, end, _ = self._line[1:].partition(b"\r")
        if not end and len(self._line) < _LONGEST:  # the rest of the line is to come
            return
        self._line = b""
        if not count.isdigit() or int(count) > most // _LEAST:
            raise hiredis.ProtocolError(f"a list that is longer than the {most} bytes that are possible")

    def _as_error(self, said: hiredis.ReplyError) -> Exception:
        """Return redis-py's error for an error reply, whatever a server says in it."""
        words = str(said)
        try:
            return self._parse_error(words)
        except Exception:  # noqa: BLE001 - a redirection to nowhere, for example
            return ResponseError(words)


_Said: Final = hiredis.ReplyError

_PLAIN: Final = b"+-:$"
"""What the replies of RESP2 begin with that are no lists."""

_LONGEST: Final = 32
"""How many bytes the first line of a list has at most: it is a number."""

_LEAST: Final = 3
"""How many bytes an element of a list has at least."""

_begins_short_list: Final = re.compile(rb"\*[^\r]{0,5}\r").match

_CHOKED: Final = (hiredis.HiredisError, MemoryError, TypeError, ValueError)
"""What hiredis raises for what is no reply: the last two for what Python can't hold, as a map with lists for keys."""


def _no_reply(error: Exception) -> Exception:
    """Return the error that says so: hiredis' own, or one like it."""
    if isinstance(error, hiredis.HiredisError | MemoryError):
        return error
    return hiredis.ProtocolError(f"it can't be made a value of: {error}")
