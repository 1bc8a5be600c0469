"""redis-py's errors are mapped to ailf's, only here.

The rule of this file: a message quotes the beginning of the server's text, but no command, payload or credentials.
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

__all__ = ["BROKEN", "MISREAD", "ScriptMissingError", "WrongTransportError", "mapped", "misread"]

BROKEN: Final = (exceptions.RedisError, OSError, hiredis.HiredisError, MemoryError)
"""The errors that break a connection. hiredis raises `MemoryError` if a reply claims billions of elements."""

MISREAD: Final = (TypeError, ValueError, LookupError, AttributeError)
"""The errors that reading a reply of an unexpected shape raises."""


class ScriptMissingError(BackendError):
    """The server doesn't know the script: it was restarted or flushed, or it is another server."""


class WrongTransportError(exceptions.ConnectionError):
    """The server expects TLS, or expects none; the text says which."""


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
"""The beginnings of temporary errors that redis-py has no class for, or that scripts return.

A server with `maxclients` clients refuses a new one without reading a request. UNBLOCKED: the master became a replica.
NOREPLICAS: fewer replicas are connected than `min-replicas-to-write` requires. Nothing was written then, as it refuses
a script at its first write.
"""
_DENIED = ("NOAUTH", "WRONGPASS", "NOPERM")
_DENIED_IN_SCRIPT = ("ACL failure in script", "The user executing the script can't run this command")
_READ_ONLY = ("READONLY", "MISCONF")
_LONGEST = 160

_IN_SCRIPT: Final = re.compile(
    r"Error running script \(call to f_\w+\): @user_script:\d+: (?:@?user_script: ?\d+: -?)?(?:ERR )?"
)
"""The prefix that Redis 6.2 adds to an error within a script, be it the script's own, Lua's, or a command's."""


def mapped(error: Exception, where: str, *, sent: bool) -> BackendError:
    """Return ailf's error for one of redis-py's.

    Arguments:
        error: The error that redis-py raised.
        where: The server's URL, without credentials.
        sent: Whether the request may have reached the server.
    """
    text = _text_of(error)
    denied = text.startswith(_DENIED) or any(words in str(error) for words in _DENIED_IN_SCRIPT)
    if isinstance(error, _REFUSED) or denied:
        return PermissionDeniedError(
            f"{where} denied the request: {text}. Check the user, the password and the ACL rules"
        )
    if isinstance(error, _NOT_READY) or text.startswith(_AWAY):
        return ConnectionLostError(f"{where} is not ready: {text}")
    if isinstance(error, _NONSENSE):
        return _not_understood(where, text, sent=sent)
    if isinstance(error, exceptions.TimeoutError | TimeoutError):
        return BackendTimeoutError(f"{where} did not reply in time", maybe_applied=sent)
    if isinstance(error, exceptions.ConnectionError | OSError):
        return _broken(error, where, text, sent=sent)
    return _refused(error, where, text)


def misread(error: Exception, where: str) -> Exception:
    """Return the error for a reply that could not be read; an error of ailf, which says more, is returned as it is."""
    if isinstance(error, AilfError):
        return error
    return _not_understood(where, f"it has an unexpected shape ({type(error).__name__})", sent=True)


def _not_understood(where: str, problem: str, *, sent: bool) -> ProtocolError:
    return ProtocolError(
        f"can't understand the reply of {where}: {problem}. Is it a Redis server, and does no proxy in between change "
        "its replies?",
        maybe_applied=sent,
    )


def _broken(error: Exception, where: str, text: str, *, sent: bool) -> BackendError:
    if isinstance(error, WrongTransportError):
        return ProtocolError(f"{where}: {error}", maybe_applied=False)
    if sent:
        return ConnectionLostError(f"the connection to {where} broke: {text}", maybe_applied=True)
    return ConnectionLostError(f"can't reach {where}: {text}. Is the server running, and is the address right?")


def _refused(error: Exception, where: str, text: str) -> BackendError:
    if isinstance(error, exceptions.NoScriptError):
        return ScriptMissingError(f"{where} doesn't know the script")
    if isinstance(error, exceptions.OutOfMemoryError) or text.startswith("OOM"):
        return BackendFullError(f"{where} has no memory left (maxmemory): {text}")
    if isinstance(error, exceptions.ReadOnlyError) or text.startswith(_READ_ONLY):
        return BackendReadOnlyError(f"{where} can't write: {text}")
    return BackendError(f"{where} refused the request: {text}")


def _text_of(error: Exception) -> str:
    """Return an error's text without the arguments that servers repeat, and without the position in a script."""
    text = _IN_SCRIPT.sub("", str(error)).partition(", with args beginning with")[0].partition("script: ")[0]
    return text[:_LONGEST].rstrip(" .") or type(error).__name__
