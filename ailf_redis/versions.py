"""What differs between redis-py 5.1 and 8. Whatever is needed of its private parts is taken here, too.

Nothing else asks which version it is.
"""

import asyncio
import importlib
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
    "is_asyncio",
    "left_over",
    "pack_by",
    "parse_error_of",
    "parser_class",
    "quiet",
    "reader_of",
    "sock_of",
    "writer_of",
]

OLDEST: Final = (5, 1)
NEWEST: Final = (8,)


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def check_version(version: str = redis.__version__) -> None:
    """Refuse a redis-py that ailf doesn't know.

    Raises:
        UnsupportedError: It is too old, or too new.
    """
    found = _parts(version)
    if found < OLDEST or found[:1] > NEWEST:
        raise UnsupportedError(
            f"redis-py {version} is installed; ailf_redis works with 5.1 to 8: pip install 'redis>=5.1,<9'"
        )


check_version()  # before anything else can fail for want of another one

VERSION: Final = _parts(redis.__version__)

SILENT: Final[dict[str, Any]] = {"driver_info": None} if VERSION >= (7, 1) else {"lib_name": None, "lib_version": None}
"""The options with which a connection doesn't tell the server which library it is of: that would cost two requests."""


def quiet(*, on_asyncio: bool) -> dict[str, Any]:
    """Return the options with which the server sends no notifications of maintenance, which nobody here reads."""
    if ((8,) if on_asyncio else (7,)) > VERSION:
        return {}
    maintenance = importlib.import_module("redis.maint_notifications")
    return {"maint_notifications_config": maintenance.MaintNotificationsConfig(enabled=False)}


class _Guarded:
    """Makes redis-py's parser, which reads the answers to a sign-in, raise redis-py's errors whatever a server says."""

    def parse_error(self, said: str) -> Exception:
        """Return the error for an error reply; hiredis, which calls this, dies of an error that is raised here."""
        try:
            error: Exception = super().parse_error(said)  # type: ignore[misc]  # the parser's
        except Exception:  # noqa: BLE001 - a redirection to nowhere, for example
            return ResponseError(said)
        return error


class _BlockingParser(_Guarded, blocking.DefaultParser):  # type: ignore[misc, valid-type]  # redis-py chooses it
    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except (TypeError, ValueError) as error:
            raise InvalidResponse(f"it can't be made a value of: {error}") from error


class _AsyncioParser(_Guarded, aio.DefaultParser):  # type: ignore[misc, valid-type]  # as above
    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except (TypeError, ValueError) as error:
            raise InvalidResponse(f"it can't be made a value of: {error}") from error


def parser_class(*, on_asyncio: bool) -> type:
    """Return what reads the answers while a connection is made."""
    return _AsyncioParser if on_asyncio else _BlockingParser


def can_read(connection: Any) -> Any:
    """Return whether a connection of either flavour has something to read; a fake's answer is to be awaited on asyncio.

    Before redis-py 8 a connection of asyncio reads in order to tell, and can be cancelled there.
    """
    reader = getattr(connection, "_reader", None)
    if isinstance(reader, asyncio.StreamReader):
        return bool(reader._buffer) or reader.at_eof() or reader.exception() is not None  # type: ignore[attr-defined]
    ask = getattr(connection, "can_read", None) or connection.can_read_destructive
    return ask()


# --- what redis-py shows to nobody, the same in all of these versions ------------------------------------------------


def is_asyncio(connection: Any) -> bool:
    """Tell whether a connection is for asyncio."""
    return hasattr(connection, "_reader")


def sock_of(connection: Any) -> Any:
    """Return the socket of a blocking connection, None where it has none; a fake's is none."""
    return connection._sock


def reader_of(connection: Any) -> Any:
    """Return the stream that a connection of asyncio reads from, or None."""
    return connection._reader


def writer_of(connection: Any) -> Any:
    """Return the stream that a connection of asyncio writes to, or None."""
    return connection._writer


def left_over(connection: Any) -> tuple[bytes, bool]:
    """Return, and take away, what a connection of asyncio has read and not used, and whether it has ended."""
    reader = connection._reader
    if reader is None:
        return b"", True
    data = bytes(reader._buffer)
    reader._buffer.clear()
    return data, reader.at_eof() or reader.exception() is not None


def parse_error_of(connection: Any) -> Callable[[str], Exception]:
    """Return what makes an exception of the text of an error reply."""
    parse: Callable[[str], Exception] = connection._parser.parse_error
    return parse


def pack_by(connection: Any, packer: object) -> None:
    """Let a connection pack its commands by a packer of ours; a fake packs nothing."""
    if hasattr(connection, "_command_packer"):
        connection._command_packer = packer


def drop(connection: Any) -> None:
    """Close a connection of asyncio at once, in any thread, whatever has become of its event loop."""
    connection._close()


def forced_host_of(manager: Any) -> str | None:
    """Return the host that a Sentinel client puts in place of the master's; None: none, or it can't."""
    host: str | None = getattr(manager, "_force_master_ip", None)
    return host


def connections_of(pool: Any) -> list[Any]:
    """Return the connections of a pool of redis-py's."""
    return [*pool._available_connections, *pool._in_use_connections]
