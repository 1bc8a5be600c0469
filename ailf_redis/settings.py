"""The options of a connection, from a URL or from code.

The rule of this file: an unknown option or an impossible value is refused when it is given, and no error shows
credentials.
"""

import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Self

import attrs
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.retry import Retry

from ailf.checks import check_count, check_flag, check_seconds, check_text
from ailf.errors import InvalidArgumentError
from ailf.urls import Host, Url, check_options, scheme_of, split_url
from ailf_redis.versions import SILENT, quiet

__all__ = ["DEFAULT_URL", "SCHEMES", "Address", "Settings"]

DEFAULT_URL = "redis://localhost:6379/0"

Address = tuple[str, int]

ONE: Final = ("redis", "rediss", "valkey", "valkeys", "unix")
SENTINEL: Final = ("redis+sentinel", "rediss+sentinel")
CLUSTER: Final = ("redis+cluster", "rediss+cluster")
SCHEMES: Final = (*ONE, *SENTINEL, *CLUSTER)
TLS: Final = ("rediss", "valkeys", "rediss+sentinel", "rediss+cluster")

SERVER_PORT: Final = 6379
SENTINEL_PORT: Final = 26379

MAX_TIMEOUT = 86_400.0
"""The longest timeout, in seconds."""

MAX_CONNECTIONS = 65_535
MAX_DB = 2**31 - 1
MAX_PORT = 65_535
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
    "tls_cert": str,
    "tls_key": str,
    "db": int,
    "client_name": str,
}
"""The options of a URL, after the ``?``. None of them weakens TLS: only an explicit argument in code does."""

_SENTINEL_OPTIONS: Final[Mapping[str, Callable[[str], Any]]] = {"sentinel_username": str, "sentinel_password": str}
"""Further options of the URL of Sentinels."""

_KEYWORDS: Final = ("username", "password", "credentials", "tls_verify")
"""Options that only a keyword gives: the text of a URL can't, must not, or does it in another place."""

_UNVERIFIED: Final = frozenset(
    {"tls_verify", "tls_insecure", "verify", "insecure", "ssl_cert_reqs", "ssl_check_hostname"}
)
"""Options by which URLs of other libraries switch verification off."""

_SECRETS: Final = frozenset({"username", "password", "sentinel_username", "sentinel_password"})


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
    check_text(field.name, text, secret=field.name in _SECRETS)


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


def _addresses(value: object, field: "attrs.Attribute[Any]", addresses: object) -> None:  # noqa: ARG001 - attrs' form
    if not isinstance(addresses, Sequence) or isinstance(addresses, str | bytes):
        raise InvalidArgumentError(f"{field.name} must be a list of pairs (host, port), not {type(addresses).__name__}")
    for each in addresses:
        match each:
            case (host, port):
                check_text(f"a host of {field.name}", host)
                if check_count(f"a port of {field.name}", port, least=1) > MAX_PORT:
                    raise InvalidArgumentError(f"a port of {field.name} must be at most {MAX_PORT}, not {port!r}")
            case _:
                raise InvalidArgumentError(f"each of {field.name} must be a pair (host, port), not {each!r}")


def _frozen(addresses: Any) -> Any:
    """Return addresses as a tuple of tuples; anything else as it is, for the validator to refuse."""
    if not isinstance(addresses, list | tuple):
        return addresses
    return tuple(tuple(each) if isinstance(each, list) else each for each in addresses)


@attrs.frozen
class Settings:
    """The address of a server, of Sentinels or of a cluster, and the options of the connections.

    >>> from ailf_redis import RedisBackend, Settings
    >>> settings = Settings(host="redis.example.com", password="secret", tls=True, namespace="crew")
    >>> with RedisBackend(settings) as backend:  # it connects at the first call
    ...     tasks = backend.stream("tasks")

    Attributes:
        host: Name or address.
        port: TCP port.
        db: Database number; the server ignores it for pub/sub.
        username: The name of an ACL user; None: the default user.
        password: The user's password.
        path: The path of a unix socket, used instead of `host` and `port`.
        sentinels: The addresses of Sentinels, as pairs of host and port, used instead of `host` and `port`.
        master: The name of the master that the Sentinels watch.
        sentinel_username: The name of an ACL user of the Sentinels; None: the default user.
        sentinel_password: The password for the Sentinels.
        nodes: The addresses of some nodes of a cluster, used instead of `host` and `port`; one that answers is enough.
        tls: Whether to use TLS; the certificate chain and the host name are verified.
        tls_ca: A file of CA certificates to trust instead of the system's.
        tls_cert: A file with a certificate chain by which the client identifies itself, and with its key unless
            `tls_key` has that.
        tls_key: A file with the private key of `tls_cert`, which is not encrypted.
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
        InvalidArgumentError: A value has the wrong type, is out of its range, or contradicts another one.
    """

    host: str = attrs.field(default="localhost", validator=_text)
    port: int = attrs.field(default=6379, validator=_count(1, 65_535))
    db: int = attrs.field(default=0, validator=_count(0, MAX_DB))
    username: str | None = attrs.field(default=None, repr=False, validator=_optional_text)
    password: str | None = attrs.field(default=None, repr=False, validator=_optional_text)
    path: str | None = attrs.field(default=None, validator=_optional_text)
    sentinels: Sequence[Address] = attrs.field(default=(), converter=_frozen, validator=_addresses)
    master: str | None = attrs.field(default=None, validator=_optional_text)
    sentinel_username: str | None = attrs.field(default=None, repr=False, validator=_optional_text)
    sentinel_password: str | None = attrs.field(default=None, repr=False, validator=_optional_text)
    nodes: Sequence[Address] = attrs.field(default=(), converter=_frozen, validator=_addresses)
    tls: bool = attrs.field(default=False, validator=_bool)
    tls_ca: str | None = attrs.field(default=None, validator=_optional_text)
    tls_cert: str | None = attrs.field(default=None, validator=_optional_text)
    tls_key: str | None = attrs.field(default=None, validator=_optional_text)
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

    def __attrs_post_init__(self) -> None:
        if (self.sentinels and (self.nodes or self.path is not None)) or (self.nodes and self.path is not None):
            raise InvalidArgumentError("sentinels, nodes and path exclude each other: give one of them")
        if bool(self.sentinels) != (self.master is not None):
            raise InvalidArgumentError("sentinels and master belong together: give both, or neither")
        if not self.sentinels and (self.sentinel_username or self.sentinel_password):
            raise InvalidArgumentError("sentinel_username and sentinel_password are for sentinels, and none are given")
        if self.nodes and self.db:
            raise InvalidArgumentError(f"a cluster has only database 0, not {self.db}")
        if self.tls_key is not None and self.tls_cert is None:
            raise InvalidArgumentError("tls_key is the key of a certificate: give tls_cert, too")
        files = [name for name in ("tls_ca", "tls_cert", "tls_key") if getattr(self, name) is not None]
        if files and not self.tls:
            raise InvalidArgumentError(
                f"{files[0]} is for TLS, which is off: begin the URL with rediss:// (or valkeys://, "
                "rediss+sentinel://, rediss+cluster://), or give Settings tls=True"
            )

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Read a URL.

        - ``redis://[user:password@]host[:port][/db][?option=…]``; ``rediss://…`` is the same with TLS; ``valkey://…``
          and ``valkeys://…`` are other names of these two.
        - ``unix://[user:password@]/path``
        - ``redis+sentinel://[user:password@]host[:port],host[:port],…/master[/db]``: the master that Sentinels name.
        - ``redis+cluster://[user:password@]host[:port],host[:port],…``: a cluster, by some of its nodes.
        - ``rediss+sentinel://…`` and ``rediss+cluster://…``, where each connection uses TLS.

        Percent-encode the user and the password. A password that contains a bare ``/``, ``?`` or ``#`` is accepted if
        the URL can be read in only one way, and refused otherwise.

        Arguments:
            url: The URL.
            options: Options that the URL doesn't give: those that may follow its ``?``, ``username``, ``password``,
                ``credentials`` and ``tls_verify``.

        Raises:
            InvalidArgumentError: A part is invalid or out of its range, or given twice; the message shows no
                credentials.
        """
        parts = split_url(url, several=scheme_of(url) in (*SENTINEL, *CLUSTER))
        if parts.scheme not in SCHEMES:
            raise InvalidArgumentError(f"{parts.shown}: the scheme must be one of {', '.join(SCHEMES)}")
        known = {**_OPTIONS, **(_SENTINEL_OPTIONS if parts.scheme in SENTINEL else {})}
        if weak := sorted(_UNVERIFIED & set(parts.options)):
            raise InvalidArgumentError(
                f"{parts.shown}: {weak[0]} is no option of a URL, so that no configuration switches the verification "
                "of TLS off; for a test, a program can pass the keyword tls_verify=False"
            )
        check_options(parts, known)
        fields = _place(parts)
        for name, text in parts.options.items():
            _set(fields, parts, name, _option(parts, known[name], name, text))
        for name, value in options.items():
            if name not in known and name not in _KEYWORDS:
                raise InvalidArgumentError(
                    f"{parts.shown}: unknown option {name!r}; known are {', '.join(sorted((*known, *_KEYWORDS)))}"
                )
            _set(fields, parts, name, value)
        try:
            return cls(**fields)
        except InvalidArgumentError as error:
            message = str(error)
        raise InvalidArgumentError(f"{parts.shown}: {message}")

    @property
    def url(self) -> str:
        """The URL without credentials, for messages."""
        if self.path is not None:
            return f"unix://{self.path}"
        scheme = "rediss" if self.tls else "redis"
        if self.sentinels:
            return f"{scheme}+sentinel://{_listed(self.sentinels)}/{self.master}"
        if self.nodes:
            return f"{scheme}+cluster://{_listed(self.nodes)}"
        return f"{scheme}://{_listed(self.addresses)}/{self.db}"

    @property
    def addresses(self) -> Sequence[Address]:
        """The addresses that are connected to first: of the server, the Sentinels or the nodes; none of a socket."""
        if self.path is not None:
            return ()
        return self.sentinels or self.nodes or ((self.host, self.port),)

    def check_files(self) -> None:
        """Check that the files of TLS can be used.

        Raises:
            InvalidArgumentError: One can't be read, has no certificate or key, or the key is encrypted, or not that of
                the certificate.
        """

        def refuse_password() -> str:
            raise ValueError("the key is encrypted")

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        name = "tls_ca"
        try:
            if self.tls_ca is not None:
                context.load_verify_locations(self.tls_ca)
            name = "tls_cert"
            if self.tls_cert is not None:
                context.load_cert_chain(self.tls_cert, self.tls_key, refuse_password)
        except (OSError, ValueError) as error:  # of which ssl.SSLError is one
            files = " with tls_key ".join(repr(each) for each in (getattr(self, name), self.tls_key) if each)
            shown = repr(self.tls_ca) if name == "tls_ca" else files
            raise InvalidArgumentError(f"{self.url}: {name} {shown} can't be used: {error}") from error

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
        host, port = self.addresses[0]
        options.update(host=host, port=port, socket_keepalive=self.keepalive)
        if self.tls:
            options.update(
                ssl_ca_certs=self.tls_ca,
                ssl_certfile=self.tls_cert,
                ssl_keyfile=self.tls_key,
                ssl_cert_reqs="required" if self.tls_verify else "none",
                ssl_check_hostname=self.tls_verify,
                ssl_min_version=ssl.TLSVersion.TLSv1_2,
            )
        return options

    def sentinel_options(self) -> dict[str, Any]:
        """Return redis-py's options for one connection to a Sentinel: as to a server, with their own credentials."""
        options = self.connection_options() | {"db": 0}
        options.pop("credential_provider", None)
        return options | {"username": self.sentinel_username, "password": self.sentinel_password}

    def client_options(self, *, on_asyncio: bool) -> dict[str, Any]:
        """Return redis-py's options for a raw client on the same server."""
        options = {**self.connection_options(), **quiet(on_asyncio=on_asyncio)}
        if self.tls:
            options["ssl"] = True
        if self.path is not None:
            options["unix_socket_path"] = options.pop("path")
        return {**options, "max_connections": self.max_connections}


def _place(parts: Url) -> dict[str, Any]:
    """Return the fields that a URL gives before its options."""
    fields: dict[str, Any] = {"tls": parts.scheme in TLS}
    if parts.username is not None:
        fields["username"] = parts.username
    if parts.password is not None:
        fields["password"] = parts.password
    if parts.scheme == "unix":
        return fields | _socket(parts)
    if parts.scheme in SENTINEL:
        return fields | _sentinels(parts)
    database = parts.path.strip("/")
    if parts.scheme in CLUSTER:
        if database not in ("", "0"):
            raise InvalidArgumentError(f"{parts.shown}: a cluster has only database 0, not {database!r}")
        return fields | {"nodes": _hosts(parts, SERVER_PORT)}
    if "," in parts.host:
        raise InvalidArgumentError(
            f"{parts.shown}: {parts.scheme}:// names one host; write redis+sentinel://HOST,HOST/MASTER for Sentinels, "
            "or redis+cluster://HOST,HOST for a cluster"
        )
    fields |= {"host": parts.host or "localhost", "port": parts.port or SERVER_PORT}
    return fields | _database(parts, database)


def _socket(parts: Url) -> dict[str, Any]:
    """Return the path of the socket of a ``unix://`` URL, as the field ``path``."""
    if parts.host or parts.port is not None or not parts.path.strip("/"):
        raise InvalidArgumentError(f"{parts.shown}: after unix:// write the path of the socket: unix:///run/redis.sock")
    return {"path": parts.path}


def _sentinels(parts: Url) -> dict[str, Any]:
    master, _, database = parts.path.strip("/").partition("/")
    if not master:
        raise InvalidArgumentError(
            f"{parts.shown}: the name of the master is missing; write it after the Sentinels: "
            f"{parts.scheme}://HOST:{SENTINEL_PORT},HOST:{SENTINEL_PORT}/MASTER"
        )
    return {"sentinels": _hosts(parts, SENTINEL_PORT), "master": master, **_database(parts, database)}


def _hosts(parts: Url, port: int) -> list[Address]:
    """Return the addresses in a URL; a single host may be left out."""
    hosts = [Host("localhost", parts.port)] if len(parts.hosts) == 1 and not parts.host else parts.hosts
    if not all(each.name for each in hosts):
        raise InvalidArgumentError(f"{parts.shown}: a host is missing before or after a comma")
    return [(each.name, each.port or port) for each in hosts]


def _database(parts: Url, number: str) -> dict[str, Any]:
    return {"db": _option(parts, int, "db", number)} if number else {}


def _set(fields: dict[str, Any], parts: Url, name: str, value: Any) -> None:
    """Set a field that must not have been given before."""
    if name == "db" and "db" in fields and "db" in parts.options:
        raise InvalidArgumentError(f"{parts.shown}: db is given in the path and as an option; give it once")
    if name in fields:
        raise InvalidArgumentError(f"{parts.shown}: {name} is given in the URL and as a keyword; give it once")
    fields[name] = value


def _listed(addresses: Sequence[Address]) -> str:
    return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in addresses)


def _option(parts: Url, read: Callable[[str], Any], name: str, text: str) -> Any:
    try:
        return read(text)
    except (ValueError, KeyError):
        pass  # this error says more than the original one
    raise InvalidArgumentError(f"{parts.shown}: {name} can't be {text!r}")
