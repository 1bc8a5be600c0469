"""RESP: commands are packed, and replies read, within limits of size. Nothing in here waits."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis
import msgspec
from redis.exceptions import ResponseError

from ailf.checks import MAX_HEADER_BYTES

__all__ = [
    "IDLE",
    "NOTHING",
    "PIECE",
    "PING",
    "TEXT",
    "Command",
    "CommandPrefix",
    "OversizeError",
    "Replies",
    "as_texts",
    "check_size",
    "is_refusal",
    "packed",
]

Command = Sequence[Any]

READ_SIZE: Final = 64 * 1024

IDLE: Final = 30.0
"""Seconds of idleness after which a connection must reply to a PING before it is used again.

A firewall may have forgotten the connection, and silently drops what is sent over it.
"""

SLACK: Final = 1024 * 1024
"""The most bytes of a reply besides the entries in it."""

HEADERS: Final = 6 * MAX_HEADER_BYTES
"""The most bytes of an entry's headers as JSON, where a control character has six bytes: \\u0001."""

AROUND: Final = 32 * 1024
"""The most bytes of an entry besides its body and headers.

JSON adds 6 bytes to each of 64 headers. A reply names the fields. An ordering key has up to 512 bytes, the key of a
dedup id up to 8 kB, and a dead letter's reason and error up to 8 kB each.
"""

FOREIGN: Final = 64 * 1024 * 1024
"""The lowest limit, in bytes, of a reply that holds entries of a stream.

Another program may have written an entry that is larger than `max_payload`. It has to arrive, to be recognized and to
become a dead letter; a lower limit would stop the whole group.
"""

PIECE: Final = 32 * 1024 * 1024
"""The most bytes of entries in one reply when a page is read in pieces; a single entry may have more."""

NOTHING: Final = object()
"""Stands for a reply that is still incomplete."""


TEXT: Final = frozenset({str, bytes})
"""The types of arguments that hiredis may pack.

hiredis converts a number by `repr`, during which a signal handler may run. If the handler raises, `repr` returns NULL,
which hiredis dereferences: Ctrl-C crashes the process. So numbers are converted here, where Python sees the error.
"""


def as_texts(command: Command) -> tuple[Any, ...]:
    """Return a command with its numbers converted to text."""
    return tuple([each if type(each) in TEXT else _as_text(each) for each in command])


def _as_text(argument: Any) -> str | bytes:
    if isinstance(argument, int | float | str):
        return str(argument)
    return bytes(memoryview(argument))  # memoryview refuses anything but a buffer


def packed(commands: Sequence[Command]) -> bytes:
    """Return commands as bytes of RESP."""
    if len(commands) == 1:
        one: bytes = hiredis.pack_command(as_texts(commands[0]))
        return one
    return b"".join([hiredis.pack_command(as_texts(command)) for command in commands])


PING: Final = packed([("PING",)])
"""A PING as bytes of RESP."""


class CommandPrefix(msgspec.Struct, frozen=True):
    """A command without its last argument, packed once and sent many times.

    Attributes:
        command: The command without its last argument.
        packed: The same as bytes of RESP.
    """

    command: Command
    packed: bytes

    @classmethod
    def of(cls, *command: Any) -> "CommandPrefix":
        """Pack a command, given without its last argument."""
        return cls(command, packed([(*command, b"")]).removesuffix(b"$0\r\n\r\n"))

    def with_last_argument(self, last: bytes) -> bytes:
        """Return the whole command as bytes of RESP."""
        return b"%b$%d\r\n%b\r\n" % (self.packed, len(last), last)


class OversizeError(hiredis.ProtocolError):
    """A reply is larger than any reply to its request can be."""


def check_size(size: int, most: int) -> None:
    """Refuse a reply of which `size` bytes have arrived, if it may have `most` bytes.

    Raises:
        OversizeError: It is too large.
    """
    if size > most:
        raise OversizeError(f"a reply of over {size} bytes, where at most {most} are possible")


class Replies:
    """A parser that cuts the bytes that arrive into replies.

    hiredis makes errors of its own class in C. If it called a Python class for them and that raised, as redis-py's does
    for ``-MOVED`` without an address and a signal handler may do at any time, hiredis would crash on NULL. So error
    replies become redis-py's errors here, where Python sees what is raised. An error within a list stays hiredis'.

    Attributes:
        buffer: The bytes that arrive are put here; then `feed` or `first` gets their number.
        unread: How many replies are still to come to what was sent when the connection was made; they are dropped.
        unfinished: About how many bytes of an incomplete reply have arrived, as `feed` counts them; 1 after malformed
            bytes. If it isn't 0, `check` says whether something is wrong.
    """

    def __init__(self, parse_error: Callable[[str], Exception], unread: int = 0) -> None:
        self.unread = unread
        self._unread_line = b""  # the part that has arrived of an unread reply
        self.unfinished = 0
        reader = hiredis.Reader(protocolError=hiredis.ProtocolError, replyError=_ErrorReply, notEnoughData=NOTHING)
        self.buffer = bytearray(READ_SIZE)
        self._parse_error = parse_error
        self._broken: Exception | None = None
        self._at_begin = True  # whether the next bytes begin a reply, or continue its first line
        self._line = b""  # the part that has arrived of an incomplete first line
        self._feed: Callable[[Any, int, int], None] = reader.feed  # it takes any buffer, unlike its stub
        self._next: Callable[[], Any] = reader.gets
        self.has_more: Callable[[], bool] = reader.has_data

    def feed(self, size: int, most: Callable[[], int]) -> list[Any]:
        """Parse `size` bytes of the buffer; return the replies that they complete, up to the first malformed one.

        Arguments:
            size: The number of new bytes in the buffer.
            most: Returns the most bytes that the next reply may have.
        """
        replies: list[Any] = []
        try:
            if self.unread and not (size := self._drop_unread(size)):
                return replies
            if self._at_begin and self.buffer[0] not in _NOT_LISTS and not _begins_short_list(self.buffer, 0, size):
                self._check_first_line(size, most())
            self._feed(self.buffer, 0, size)
            while (reply := self._next()) is not NOTHING:
                replies.append(reply if type(reply) is not _ErrorReply else self._as_error(reply))
                if not self.has_more():
                    self._at_begin, self.unfinished = True, 0
                    return replies
        except _MALFORMED as error:
            self._broken, self.unfinished = _protocol_error(error), 1
            return replies
        self._at_begin = self._line != b""
        if not replies:
            self.unfinished += size
        elif self.unfinished:
            self.unfinished = 0
        return replies

    def check(self, most: int) -> None:
        """Refuse malformed bytes, and an incomplete reply of more than `most` bytes.

        Raises:
            hiredis.ProtocolError, MemoryError: There is one.
        """
        if self._broken is not None:
            raise self._broken
        check_size(self.unfinished, most)

    def first(self, size: int, most: int) -> Any:
        """Parse `size` bytes of the buffer; return the next reply, or `NOTHING` while it is incomplete.

        `has_more` says whether there are bytes behind the reply.

        Arguments:
            size: The number of new bytes in the buffer.
            most: The most bytes that the reply may have; only the announced length of a list is checked against it.

        Raises:
            hiredis.ProtocolError, MemoryError: The reply is malformed.
        """
        if self.unread and not (size := self._drop_unread(size)):
            return NOTHING
        if self._at_begin and self.buffer[0] not in _NOT_LISTS and not _begins_short_list(self.buffer, 0, size):
            self._check_first_line(size, most)
        self._feed(self.buffer, 0, size)
        try:
            reply = self._next()
        except _MALFORMED as error:
            raise _protocol_error(error) from error
        self._at_begin = reply is not NOTHING or self._line != b""
        return reply if type(reply) is not _ErrorReply else self._as_error(reply)

    def following(self) -> Any:
        """Return the reply behind the last one, or `NOTHING` while it is incomplete; see `first`."""
        self._at_begin = False  # it may have begun together with the last one, and is not checked
        return self.first(0, 0)

    def _drop_unread(self, size: int) -> int:
        """Drop the unread replies, which are one line each, from the begin of the buffer; return how many bytes remain.

        Anything but such a reply is left to the parser: a server may refuse a connection before it reads from it.

        Raises:
            hiredis.ProtocolError: A line does not end.
        """
        arrived = self._unread_line + self.buffer[:size]
        self._unread_line = b""
        while self.unread and arrived:
            line, end, rest = arrived.partition(b"\r\n")
            if line[:1] not in (b"+", b"-") or is_refusal(line):
                self.unread = 0
            elif not end:
                self._unread_line, arrived = arrived, b""
            else:
                self.unread, arrived = self.unread - 1, rest
        if len(self._unread_line) > _LONGEST_LINE or len(arrived) > len(self.buffer):
            raise hiredis.ProtocolError("an endless line")
        self.buffer[: len(arrived)] = arrived
        return len(arrived)

    def _check_first_line(self, size: int, most: int) -> None:
        """Refuse a reply for which hiredis would allocate too much: a type of RESP3, or a list that is too long.

        A list within a list, or behind another reply in the same bytes, isn't checked: that takes a second parser.
        """
        self._line += self.buffer[: min(size, _LONGEST)]
        if not self._line.startswith(b"*"):
            raise hiredis.ProtocolError(f"it begins with {self._line[:1]!r}, which is not RESP2")
        count, end, _ = self._line[1:].partition(b"\r")
        if not end and len(self._line) < _LONGEST:  # the rest of the line is to come
            return
        self._line = b""
        if not count.isdigit() or int(count) > most // _LEAST:
            raise hiredis.ProtocolError(f"a list that is longer than the {most} bytes that are possible")

    def _as_error(self, reply: hiredis.ReplyError) -> Exception:
        """Return redis-py's error for an error reply, whatever its text is."""
        text = str(reply)
        try:
            return self._parse_error(text)
        except Exception:  # noqa: BLE001 - for example a redirection without an address
            return ResponseError(text)


_ErrorReply: Final = hiredis.ReplyError

_LONGEST_LINE: Final = 4096
"""The most bytes of an unread reply."""

is_refusal: Final = re.compile(rb"-(?:DENIED |[A-Z]+ .*(?:max number of clients|maxclients))").match
"""Matches the error that a server sends, before it closes a new connection, without reading from it."""

_NOT_LISTS: Final = b"+-:$"
"""The first bytes of RESP2's types except lists."""

_LONGEST: Final = 32
"""The most bytes in the first line of a list, which is a number."""

_LEAST: Final = 3
"""The fewest bytes of an element of a list."""

_begins_short_list: Final = re.compile(rb"\*[^\r]{0,5}\r").match

_MALFORMED: Final = (hiredis.HiredisError, MemoryError, TypeError, ValueError)
"""The errors that hiredis raises for malformed bytes: the last two if Python can't hold a value, like a list as key."""


def _protocol_error(error: Exception) -> Exception:
    """Return the error for malformed bytes: hiredis' own, or a `ProtocolError` in place of Python's."""
    if isinstance(error, hiredis.HiredisError | MemoryError):
        return error
    return hiredis.ProtocolError(f"it can't be converted to a Python value: {error}")
