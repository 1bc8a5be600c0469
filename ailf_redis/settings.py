"""How to reach a server, from a URL or from code. Strict: an option that nobody knows is refused, not ignored."""

import ssl
from collections.abc import Callable, Mapping
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import attrs
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from ailf.errors import InvalidArgumentError

__all__ = ["Settings"]

DEFAULT_URL = "redis://localhost:6379/0"


def _flag(text: str) -> bool:
    try:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except KeyError:
        raise ValueError(text) from None


_OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "namespace": str,
    "timeout": float,
    "connect_timeout": float,
    "retry_for": float,
    "max_connections": int,
    "max_payload": int,
    "keepalive": _flag,
    "tls_ca": str,
    "db": int,
}
"""What may follow the ``?``. Nothing here weakens TLS: that takes an explicit argument in code."""


@attrs.frozen
class Settings:
    """Where the server is and how to talk to it.

    Attributes:
        host: Name or address.
        port: TCP port.
        db: Database number; pub/sub ignores it on the server's side.
        username: Of an ACL user; None for the default one.
        password: Of the user.
        path: A unix socket instead of host and port.
        tls: Whether to use TLS; the certificate chain and the host's name are verified.
        tls_ca: A file of CA certificates to trust instead of the system's.
        tls_verify: False switches verification off: for tests only.
        credentials: A redis-py credential provider instead of username and password.
        connect_timeout: Seconds for making a connection.
        timeout: Seconds for one answer.
        keepalive: Whether TCP keepalive is on.
        max_connections: How many connections blocking calls may use at once; further callers wait.
        namespace: What all keys and channels begin with; "" for plain names that other programs share.
        max_payload: The largest body in bytes.
        retry_for: For how many seconds a request is repeated where that does no harm.
    """

    host: str = "localhost"
    port: int = 6379
    db: int = 0
    username: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    path: str | None = None
    tls: bool = False
    tls_ca: str | None = None
    tls_verify: bool = True
    credentials: CredentialProvider | None = attrs.field(default=None, repr=False)
    connect_timeout: float = 5.0
    timeout: float = 5.0
    keepalive: bool = True
    max_connections: int = 64
    namespace: str = "ailf"
    max_payload: int = 1024 * 1024
    retry_for: float = 5.0

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Read ``redis://[user:password@]host[:port][/db][?option=…]``, ``rediss://…`` (TLS) or ``unix://[…@]/path``.

        Raises:
            InvalidArgumentError: A part is not understood; the message hides credentials.
        """
        parts = urlsplit(url)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise InvalidArgumentError(f"{shown}: the scheme must be redis, rediss or unix")
        found: dict[str, Any] = {"tls": parts.scheme == "rediss"}
        try:
            found["port"] = parts.port or 6379
        except ValueError as error:
            raise InvalidArgumentError(f"{shown}: the port is not a number below 65536") from error
        if parts.username:
            found["username"] = unquote(parts.username)
        if parts.password:
            found["password"] = unquote(parts.password)
        if parts.scheme == "unix":
            found["path"] = unquote(parts.path)
        else:
            found["host"] = unquote(parts.hostname or "localhost")
            if parts.path.strip("/"):
                found["db"] = _option(shown, "db", parts.path.strip("/"))
        for name, text in parse_qsl(parts.query, keep_blank_values=True):
            found[name] = _option(shown, name, text)
        return cls(**found)

    @property
    def url(self) -> str:
        """Where it is, for messages: without credentials."""
        if self.path is not None:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"

    def connection_options(self) -> dict[str, Any]:
        """Return redis-py's options for one connection, every default that could surprise set explicitly."""
        options: dict[str, Any] = {
            "db": self.db,
            "socket_timeout": self.timeout,
            "socket_connect_timeout": self.connect_timeout,
            "protocol": 2,
            "decode_responses": False,
            "health_check_interval": 0,
            "driver_info": None,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        if self.credentials is not None:
            options["credential_provider"] = self.credentials
        else:
            options.update(username=self.username, password=self.password)
        if self.path is not None:
            return {**options, "path": self.path}
        options.update(host=self.host, port=self.port, socket_keepalive=self.keepalive)
        if self.tls:
            options.update(
                ssl_ca_certs=self.tls_ca,
                ssl_cert_reqs="required" if self.tls_verify else "none",
                ssl_check_hostname=self.tls_verify,
                ssl_min_version=ssl.TLSVersion.TLSv1_2,
            )
        return options

    def client_options(self) -> dict[str, Any]:
        """Return redis-py's options for a raw client on the same server."""
        options = self.connection_options()
        if self.tls:
            options["ssl"] = True
        if self.path is not None:
            options["unix_socket_path"] = options.pop("path")
        return {**options, "max_connections": self.max_connections}


def _option(shown: str, name: str, text: str) -> Any:
    convert = _OPTIONS.get(name)
    if convert is None:
        raise InvalidArgumentError(f"{shown}: unknown option {name!r}; known are {', '.join(sorted(_OPTIONS))}")
    try:
        return convert(text)
    except ValueError as error:
        raise InvalidArgumentError(f"{shown}: {name} can't be {text!r}") from error
