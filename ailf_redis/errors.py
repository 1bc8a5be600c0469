"""redis-py's errors become ailf's, here and nowhere else.

What the server said is quoted up to its first words; commands, payloads and credentials never are.
"""

import re
from typing import Final

import hiredis
from redis import exceptions

from ailf.errors import (
    AilfError,
    BackendError,
    BackendFullError,
    BackendReadOnlyError,
    BackendTimeoutError,
    ConnectionLostError,
    PermissionDeniedError,
    ProtocolError,
)

__all__ = ["BROKEN", "MISREAD", "ScriptMissingError", "mapped", "misread"]

BROKEN: Final = (exceptions.RedisError, OSError, hiredis.HiredisError, MemoryError)
"""What ends a connection. hiredis raises `MemoryError` where a reply claims billions of elements."""

MISREAD: Final = (TypeError, ValueError, LookupError, AttributeError)
"""What reading a reply raises that is not of the shape it should be."""


class ScriptMissingError(BackendError):
    """The server doesn't know the script: it was restarted, flushed, or is another one."""


_NONSENSE = (hiredis.HiredisError, exceptions.InvalidResponse, MemoryError)
_REFUSED = (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError)
_NOT_READY = (
    exceptions.BusyLoadingError,
    exceptions.ClusterDownError,  # MASTERDOWN too
    exceptions.TryAgainError,
    exceptions.AskError,  # and MOVED, its subclass: the key's slot is on its way to another node
)
_FULL = "max number of clients"
_AWAY = ("LOADING", "BUSY ", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "UNBLOCKED", "NOREPLICAS", _FULL, f"ERR {_FULL}")
"""What errors say that pass by themselves and have no class, in scripts' replies or in redis-py.

A server that has no room for one more client says so instead of reading a request. UNBLOCKED: a master became a
replica. NOREPLICAS: fewer replicas are connected than `min-replicas-to-write` asks for, so
nothing was written, as a script is refused at its first write only.
"""
_DENIED = ("NOAUTH", "WRONGPASS", "NOPERM")
_DENIED_IN_SCRIPT = ("ACL failure in script", "The user executing the script can't run this command")
_READ_ONLY = ("READONLY", "MISCONF")
_LONGEST = 160

_IN_SCRIPT: Final = re.compile(
    r"Error running script \(call to f_\w+\): @user_script:\d+: (?:@?user_script: ?\d+: -?)?(?:ERR )?"
)
"""What Redis 6.2 puts before an error within a script: of its own, of Lua's, or of a command, whose kind follows."""


def mapped(error: Exception, where: str, *, sent: bool) -> BackendError:
    """Return ailf's error for one of redis-py's.

    Arguments:
        error: What redis-py raised.
        where: The server's URL, without credentials.
        sent: Whether the request may have reached the server.
    """
    said = _said(error)
    denied = said.startswith(_DENIED) or any(words in str(error) for words in _DENIED_IN_SCRIPT)
    if isinstance(error, _REFUSED) or denied:
        return PermissionDeniedError(f"{where} refuses it: {said}. Check the user, the password and the ACL rules")
    if isinstance(error, _NOT_READY) or said.startswith(_AWAY):
        return ConnectionLostError(f"{where} is not ready: {said}")
    if isinstance(error, _NONSENSE):
        return _not_understood(where, said, sent=sent)
    if isinstance(error, exceptions.TimeoutError | TimeoutError):
        return BackendTimeoutError(f"{where} did not answer in time", maybe_applied=sent)
    if isinstance(error, exceptions.ConnectionError | OSError):
        return _broken(where, said, sent=sent)
    return _refused(error, where, said)


def misread(error: Exception, where: str) -> Exception:
    """Return the error for a reply that could not be read; one of ours, which says more, as it is."""
    if isinstance(error, AilfError):
        return error
    return _not_understood(where, f"its answer has another shape ({type(error).__name__})", sent=True)


def _not_understood(where: str, said: str, *, sent: bool) -> ProtocolError:
    return ProtocolError(
        f"what {where} answers can't be understood: {said}. Is it a Redis server, and nothing in between that changes "
        "what it says?",
        maybe_applied=sent,
    )


def _broken(where: str, said: str, *, sent: bool) -> BackendError:
    if sent:
        return ConnectionLostError(f"the connection to {where} broke: {said}", maybe_applied=True)
    return ConnectionLostError(f"can't reach {where}: {said}. Is the server running, and is the address right?")


def _refused(error: Exception, where: str, said: str) -> BackendError:
    if isinstance(error, exceptions.NoScriptError):
        return ScriptMissingError(f"{where} doesn't know the script")
    if isinstance(error, exceptions.OutOfMemoryError) or said.startswith("OOM"):
        return BackendFullError(f"{where} has no memory left (maxmemory): {said}")
    if isinstance(error, exceptions.ReadOnlyError) or said.startswith(_READ_ONLY):
        return BackendReadOnlyError(f"{where} can't write: {said}")
    return BackendError(f"{where} refused the request: {said}")


def _said(error: Exception) -> str:
    """Return the error's words without the arguments that servers like to repeat, and without where a script stood."""
    words = _IN_SCRIPT.sub("", str(error)).partition(", with args beginning with")[0].partition("script: ")[0]
    return words[:_LONGEST].rstrip(" .") or type(error).__name__
