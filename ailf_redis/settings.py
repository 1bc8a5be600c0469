"""The options of a connection, from a URL or from code.

The rule of this file: an unknown option or an impossible value is refused when it is given, and no error shows
credentials.
"""

import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Self

import attrs
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.retry import Retry

from ailf.checks import check_count, check_flag, check_seconds, check_text
from ailf.errors import InvalidArgumentError
from ailf.urls import Url, check_options, split_url
from ailf_redis.versions import SILENT, quiet

__all__ = ["Settings"]

DEFAULT_URL = "redis://localhost:6379/0"
SCHEMES = ("redis", "rediss", "unix")


MAX_TIMEOUT = 86_400.0
"""The longest timeout, in seconds."""

MAX_CONNECTIONS = 65_535
MAX_DB = 2**31 - 1
MAX_BODY = 512 * 1024 * 1024
"""The largest value that a server stores unless it is configured otherwise, in bytes."""


def _flag(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


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
    "client_name": str,
}
"""The options of a URL, after the ``?``. None of them weakens TLS: only an explicit argument in code does."""


# --- checks of the fields -----------------------------------------------------------------------------------------


def _timeout(value: object, field: "attrs.Attribute[float]", seconds: float) -> None:  # noqa: ARG001 - attrs' form
    check_seconds(field.name, seconds, least=0.001)
    if seconds > MAX_TIMEOUT:
        raise InvalidArgumentError(f"{field.name} must be at most {MAX_TIMEOUT:g} seconds, not {seconds!r}")


def _wait(value: object, field: "attrs.Attribute[float]", seconds: float) -> None:  # noqa: ARG001 - attrs' form
    if check_seconds(field.name, seconds) > MAX_TIMEOUT:
        raise InvalidArgumentError(f"{field.name} must be at most {MAX_TIMEOUT:g} seconds, not {seconds!r}")


def _count(least: int, most: int) -> Callable[[object, "attrs.Attribute[int]", int], None]:
    def check(value: object, field: "attrs.Attribute[int]", count: int) -> None:  # noqa: ARG001 - attrs' form
        check_count(field.name, count, least=least)
        if count > most:
            raise InvalidArgumentError(f"{field.name} must be at most {most}, not {count!r}")

    return check


def _bool(value: object, field: "attrs.Attribute[bool]", flag: object) -> None:  # noqa: ARG001 - attrs' form
    check_flag(field.name, flag)


def _text(value: object, field: "attrs.Attribute[str]", text: object) -> None:  # noqa: ARG001 - attrs' form
    check_text(field.name, text, secret=field.name in ("username", "password"))


def _namespace(value: object, field: "attrs.Attribute[str]", text: object) -> None:  # noqa: ARG001 - attrs' form
    if text != "":
        check_text(field.name, text)


def _client_name(value: object, field: "attrs.Attribute[str]", text: object) -> None:  # noqa: ARG001 - attrs' form
    if not re.fullmatch("[!-~]+", check_text(field.name, text)):
        raise InvalidArgumentError(f"{field.name} must be printable ASCII without spaces, not {text!r}")


def _credentials(value: object, field: "attrs.Attribute[Any]", provider: object) -> None:  # noqa: ARG001 - attrs' form
    if not isinstance(provider, CredentialProvider):
        raise InvalidArgumentError(
            f"{field.name} must be a redis.credentials.CredentialProvider, not {type(provider).__name__}"
        )


_optional_text = attrs.validators.optional(_text)


@attrs.frozen
class Settings:
    """The address of a server, and the options of the connections to it.

    Example::

        settings = Settings(host="redis.example.com", password="secret", tls=True)
        backend = RedisBackend(settings)

    Attributes:
        host: Name or address.
        port: TCP port.
        db: Database number; the server ignores it for pub/sub.
        username: The name of an ACL user; None: the default user.
        password: The user's password.
        path: The path of a unix socket, used instead of `host` and `port`.
        tls: Whether to use TLS; the certificate chain and the host name are verified.
        tls_ca: A file of CA certificates to trust instead of the system's.
        tls_verify: False switches verification off; for tests only.
        credentials: A redis-py credential provider, used instead of `username` and `password`.
        connect_timeout: Seconds for making a connection, authentication included.
        timeout: Seconds for one call, from its beginning to the end of its reply.
        keepalive: Whether TCP keepalive is on.
        max_connections: The most connections that blocking calls use at once; further calls wait.
        namespace: The prefix of all keys and channels; "" for plain names that are shared with other programs.
        max_payload: The largest body in bytes.
        retry_for: For how many seconds a request is repeated where repeating it is safe.
        client_name: The name of the connections in ``CLIENT LIST``; None: ``ailf:<host>:<process id>``.

    Raises:
        InvalidArgumentError: A value has the wrong type or is out of its range.
    """

    host: str = attrs.field(default="localhost", validator=_text)
    port: int = attrs.field(default=6379, validator=_count(1, 65_535))
    db: int = attrs.field(default=0, validator=_count(0, MAX_DB))
    username: str | None = attrs.field(default=None, repr=False, validator=_optional_text)
    password: str | None = attrs.field(default=None, repr=False, validator=_optional_text)
    path: str | None = attrs.field(default=None, validator=_optional_text)
    tls: bool = attrs.field(default=False, validator=_bool)
    tls_ca: str | None = attrs.field(default=None, validator=_optional_text)
    tls_verify: bool = attrs.field(default=True, validator=_bool)
    credentials: CredentialProvider | None = attrs.field(
        default=None, repr=False, validator=attrs.validators.optional(_credentials)
    )
    connect_timeout: float = attrs.field(default=5.0, validator=_timeout)
    timeout: float = attrs.field(default=5.0, validator=_timeout)
    keepalive: bool = attrs.field(default=True, validator=_bool)
    max_connections: int = attrs.field(default=64, validator=_count(1, MAX_CONNECTIONS))
    namespace: str = attrs.field(default="ailf", validator=_namespace)
    max_payload: int = attrs.field(default=1024 * 1024, validator=_count(1, MAX_BODY))
    retry_for: float = attrs.field(default=5.0, validator=_wait)
    client_name: str | None = attrs.field(default=None, validator=attrs.validators.optional(_client_name))

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Read ``redis://[user:password@]host[:port][/db][?option=…]``, ``rediss://…`` (TLS) or ``unix://[…@]/path``.

        Percent-encode the user and the password. A password that contains a bare ``/``, ``?`` or ``#`` is accepted if
        the URL can be read in only one way, and refused otherwise.

        Raises:
            InvalidArgumentError: A part is invalid or out of its range; the message shows no credentials.
        """
        parts = split_url(url)
        if parts.scheme not in SCHEMES:
            raise InvalidArgumentError(f"{parts.shown}: the scheme must be redis, rediss or unix")
        check_options(parts, _OPTIONS)
        fields: dict[str, Any] = {"tls": parts.scheme == "rediss", "username": parts.username}
        fields["password"] = parts.password
        if parts.scheme == "unix":
            fields |= _socket(parts)
        else:
            fields |= {"host": parts.host or "localhost", "port": parts.port or 6379}
            if number := parts.path.strip("/"):
                fields["db"] = _option(parts, "db", number)
        if "db" in fields and "db" in parts.options:
            raise InvalidArgumentError(f"{parts.shown}: db is given in the path and as an option; give it once")
        fields |= {name: _option(parts, name, text) for name, text in parts.options.items()}
        try:
            return cls(**fields)
        except InvalidArgumentError as error:
            message = str(error)
        raise InvalidArgumentError(f"{parts.shown}: {message}")

    @property
    def url(self) -> str:
        """The server's URL without credentials, for messages."""
        if self.path is not None:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"

    def connection_options(self) -> dict[str, Any]:
        """Return redis-py's options for one connection; every default that could surprise is set explicitly."""
        options: dict[str, Any] = {
            "db": self.db,
            "client_name": self.client_name,
            "socket_timeout": self.timeout,
            "socket_connect_timeout": self.connect_timeout,
            "protocol": 2,
            "decode_responses": False,
            "health_check_interval": 0,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            **SILENT,
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

    def client_options(self, *, on_asyncio: bool) -> dict[str, Any]:
        """Return redis-py's options for a raw client on the same server."""
        options = {**self.connection_options(), **quiet(on_asyncio=on_asyncio)}
        if self.tls:
            options["ssl"] = True
        if self.path is not None:
            options["unix_socket_path"] = options.pop("path")
        return {**options, "max_connections": self.max_connections}


def _socket(parts: Url) -> dict[str, Any]:
    """Return the path of the socket of a ``unix://`` URL, as the field ``path``."""
    if parts.host or parts.port is not None or not parts.path.strip("/"):
        raise InvalidArgumentError(f"{parts.shown}: after unix:// write the path of the socket: unix:///run/redis.sock")
    return {"path": parts.path}


def _option(parts: Url, name: str, text: str) -> Any:
    try:
        return _OPTIONS[name](text)
    except (ValueError, KeyError):
        pass  # this error says more than the original one
    raise InvalidArgumentError(f"{parts.shown}: {name} can't be {text!r}")
