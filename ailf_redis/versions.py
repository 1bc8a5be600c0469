"""The differences between redis-py 5.1 and 8, and all uses of redis-py's private parts.

The rule of this file: no other module asks for redis-py's version or touches its private parts.
"""

import asyncio
import importlib
import socket
from collections.abc import Callable
from typing import Any, Final

import redis
from redis import connection as blocking
from redis.asyncio import connection as aio
from redis.exceptions import InvalidResponse, ResponseError

from ailf.errors import UnsupportedError

__all__ = [
    "SILENT",
    "can_read",
    "check_version",
    "connections_of",
    "drop",
    "forced_host_of",
    "introduce",
    "is_asyncio",
    "left_over",
    "pack_by",
    "parse_error_of",
    "parser_class",
    "quiet",
    "reader_of",
    "sock_of",
    "take_unread",
    "writer_of",
]

OLDEST: Final = (5, 1)
NEWEST: Final = (8,)


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def check_version(version: str = redis.__version__) -> None:
    """Refuse a version of redis-py that ailf doesn't support.

    Raises:
        UnsupportedError: It is too old or too new.
    """
    installed = _parts(version)
    if installed < OLDEST or installed[:1] > NEWEST:
        raise UnsupportedError(
            f"redis-py {version} is installed; ailf_redis works with 5.1 to 8: pip install 'redis>=5.1,<9'"
        )


check_version()  # first: with an unsupported version anything below may fail

VERSION: Final = _parts(redis.__version__)

SILENT: Final[dict[str, Any]] = {"driver_info": None} if VERSION >= (7, 1) else {"lib_name": None, "lib_version": None}
"""The options that stop a connection from sending the name and version of its library, which takes two requests."""


def quiet(*, on_asyncio: bool) -> dict[str, Any]:
    """Return the options that switch off notifications of maintenance, which ailf doesn't read."""
    if ((8,) if on_asyncio else (7,)) > VERSION:
        return {}
    maintenance = importlib.import_module("redis.maint_notifications")
    return {"maint_notifications_config": maintenance.MaintNotificationsConfig(enabled=False)}


class _Guarded:
    """Makes redis-py's parser, which reads the replies of the handshake, raise only redis-py's errors."""

    def parse_error(self, text: str) -> Exception:
        """Return the error for an error reply. It must not raise: hiredis, which calls it, would crash."""
        try:
            error: Exception = super().parse_error(text)  # type: ignore[misc]  # the parser's
        except Exception:  # noqa: BLE001 - for example a redirection without an address
            return ResponseError(text)
        return error


class _BlockingParser(_Guarded, blocking.DefaultParser):  # type: ignore[misc, valid-type]  # redis-py chooses it
    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except (TypeError, ValueError) as error:
            raise InvalidResponse(f"it can't be converted to a Python value:  {error}") from error


class _AsyncioParser(_Guarded, aio.DefaultParser):  # type: ignore[misc, valid-type]  # as above
    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except (TypeError, ValueError) as error:
            raise InvalidResponse(f"it can't be converted to a Python value:  {error}") from error


def parser_class(*, on_asyncio: bool) -> type:
    """Return the class of the parser for the handshake."""
    return _AsyncioParser if on_asyncio else _BlockingParser


def can_read(connection: Any) -> Any:
    """Return whether a connection of either flavour has something to read; await the result if it is awaitable.

    It is awaitable for a fake on asyncio. For redis-py's own connections on asyncio the buffer is read directly, as
    their method reads from the socket before redis-py 8, and can be cancelled there.
    """
    reader = getattr(connection, "_reader", None)
    if isinstance(reader, asyncio.StreamReader):
        return bool(reader._buffer) or reader.at_eof() or reader.exception() is not None  # type: ignore[attr-defined]
    ask = getattr(connection, "can_read", None) or connection.can_read_destructive
    return ask()


# --- private parts, the same in all of these versions -----------------------------------------------------------------


def is_asyncio(connection: Any) -> bool:
    """Return whether a connection is for asyncio."""
    return hasattr(connection, "_reader")


def sock_of(connection: Any) -> Any:
    """Return the socket of a blocking connection, or None; a fake has another object in its place."""
    return connection._sock


def take_unread(connection: Any) -> int:
    """Return, once, how many replies are to come to the commands that `introduce` has sent.

    The first reader of a connection drops them, and reads a reply of its own before there is a second reader.
    """
    unread: int = getattr(connection, "ailf_unread", 0)
    connection.ailf_unread = 0
    return unread


def introduce(connection: Any, data: bytes, count: int) -> None:
    """Send `count` packed commands over a new connection; what reads from it then drops their replies.

    A fake, which has no socket, is left alone.
    """
    if is_asyncio(connection):
        if not isinstance(reader_of(connection), asyncio.StreamReader):
            return
        writer_of(connection).write(data)
    elif isinstance(sock_of(connection), socket.socket):
        sock_of(connection).sendall(data)
    else:
        return
    connection.ailf_unread = count


def reader_of(connection: Any) -> Any:
    """Return the stream that an asyncio connection reads from, or None."""
    return connection._reader


def writer_of(connection: Any) -> Any:
    """Return the stream that an asyncio connection writes to, or None."""
    return connection._writer


def left_over(connection: Any) -> tuple[bytes, bool]:
    """Remove and return the unread bytes of an asyncio connection; return too whether it has ended."""
    reader = connection._reader
    if reader is None:
        return b"", True
    data = bytes(reader._buffer)
    reader._buffer.clear()
    return data, reader.at_eof() or reader.exception() is not None


def parse_error_of(connection: Any) -> Callable[[str], Exception]:
    """Return the function that makes an exception from the text of an error reply."""
    parse: Callable[[str], Exception] = connection._parser.parse_error
    return parse


def pack_by(connection: Any, packer: object) -> None:
    """Replace the packer of a connection's commands; a fake has none."""
    if hasattr(connection, "_command_packer"):
        connection._command_packer = packer


def drop(connection: Any) -> None:
    """Close an asyncio connection at once, from any thread, even if its event loop is closed."""
    connection._close()


def forced_host_of(manager: Any) -> str | None:
    """Return the host that a Sentinel client uses instead of the master's; None if there is none."""
    host: str | None = getattr(manager, "_force_master_ip", None)
    return host


def connections_of(pool: Any) -> list[Any]:
    """Return all connections of a pool."""
    return [*pool._available_connections, *pool._in_use_connections]
