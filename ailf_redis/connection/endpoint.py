"""Endpoints make connections, from the settings of a URL or with the address, credentials and TLS of a user's client.

The connections of a user's client may decode, retry, or be half-read, so none of them is used. Those made here use
RESP2 and bytes, never retry, and have explicit timeouts. Only `ServerEndpoint.connect` makes a connection.
"""

import _thread
import asyncio
import contextlib
import inspect
import queue
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import attrs
import redis
from redis import asyncio as aredis
from redis import connection as blocking
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ailf.errors import UnsupportedError
from ailf.runtime.clock import SystemClock
from ailf_redis.connection.blocking_link import shut
from ailf_redis.connection.introduction import introduction_of
from ailf_redis.connection.resp import packed
from ailf_redis.connection.transport import speaks_plain
from ailf_redis.errors import WrongTransportError
from ailf_redis.settings import Address, Settings
from ailf_redis.versions import SILENT, introduce, is_asyncio, pack_by, parser_class, quiet, sock_of

__all__ = [
    "KINDS",
    "Address",
    "ClusterEndpoints",
    "Endpoint",
    "PendingConnections",
    "ServerEndpoint",
    "clean",
    "disconnect",
    "in_flavour",
    "maybe_await",
    "nodes_of",
    "read_reply",
    "server_of",
]

_DROPPED: Final = frozenset(
    {
        *("retry", "retry_on_error", "retry_on_timeout", "health_check_interval"),  # ailf retries by its own rule
        *("driver_info", "lib_name", "lib_version"),  # ailf sends its own
        *("encoding", "encoding_errors", "parser_class", "encoder_class", "command_packer", "response_callbacks"),
        *(
            "maint_notifications_pool_handler",
            "oss_cluster_maint_notifications_handler",
        ),  # they change the client's pool
        "maint_notifications_config",  # ailf gives its own, where the flavour has it (`versions.quiet`)
        *("maintenance_state", "maintenance_notification_hash"),
        *("orig_host_address", "orig_socket_timeout", "orig_socket_connect_timeout"),
        *("connection_pool", "connection_class", "max_connections", "himport_registry", "cache", "cache_config"),
    }
)

KINDS: Final[Mapping[str, tuple[type, type, type]]] = {
    "blocking": (blocking.Connection, blocking.SSLConnection, blocking.UnixDomainSocketConnection),
    "asyncio": (aredis.Connection, aredis.SSLConnection, aredis.UnixDomainSocketConnection),
}
"""redis-py's classes for TCP, TLS and unix sockets, by flavour."""

_TLS: Final = (blocking.SSLConnection, aredis.SSLConnection)

QUICK: Final = 1.0
"""Seconds after which a TLS handshake is slow enough to ask whether the server has TLS at all."""

_HANDSHAKE: Final = ("username", "password", "credential_provider", "db", "redis_connect_func")
"""The options for which redis-py sends commands and reads replies while it connects."""

_SHUT_INTERVAL: Final = 0.05
"""Seconds between two tries to shut a connection that is late."""

_TWINS: Final[Mapping[str, Mapping[type, type]]] = {
    "blocking": dict(zip(KINDS["asyncio"], KINDS["blocking"], strict=True)),
    "asyncio": dict(zip(KINDS["blocking"], KINDS["asyncio"], strict=True)),
}
"""By flavour: its class of redis-py for each class of the other flavour."""

_ONE_FLAVOUR: Final = {
    "event_dispatcher": None,
    "ssl_validate_ocsp": False,
    "ssl_validate_ocsp_stapled": False,
    "ssl_ocsp_context": None,
    "ssl_ocsp_expected_cert": None,
}
"""The options that connections of one flavour only have, with the values that change nothing."""


# --- both flavours of redis-py's connections ----------------------------------------------------------------------


async def maybe_await(result: Any) -> Any:
    """Return the result of a connection's method, awaited if the connection is asyncio's."""
    return await result if hasattr(result, "__await__") else result


async def read_reply(connection: Any, **options: Any) -> Any:
    """Return the next reply; an error reply is returned, not raised."""
    try:
        return await maybe_await(connection.read_response(disable_decoding=True, disconnect_on_error=False, **options))
    except ResponseError as error:
        return error


async def disconnect(connection: Any) -> None:
    """Close a connection at once."""
    nowait = {"nowait": True} if isinstance(connection, aredis.Connection | aredis.UnixDomainSocketConnection) else {}
    await maybe_await(connection.disconnect(**nowait))


# --- connections being made ---------------------------------------------------------------------------------------


class PendingConnections:
    """The connections that threads of one executor are making, so that closing the executor can interrupt them.

    A thread makes one connection at a time. On asyncio a task makes it, and closing cancels the task.
    """

    def __init__(self) -> None:
        self._by_thread: dict[int, Any] = {}
        self._interrupted = False

    @contextlib.contextmanager
    def track(self, connection: Any) -> Iterator[None]:
        """Let `interrupt` end this thread's waits on a connection; do nothing on asyncio.

        Raises:
            ConnectionError: `interrupt` was called before.
        """
        if is_asyncio(connection):
            yield
            return
        try:
            self._by_thread[threading.get_ident()] = connection
            if self._interrupted:
                raise ConnectionError("the backend was closed")
            yield
        finally:
            self._by_thread.pop(threading.get_ident(), None)

    def interrupt(self) -> bool:
        """End every wait, from any thread, and refuse new ones; return whether a connection was being made.

        It misses a connection that has no socket yet, so the caller repeats it until it returns False.
        """
        self._interrupted = True
        connections = tuple(self._by_thread.values())
        for connection in connections:
            shut(sock_of(connection))
        return bool(connections)

    def forget(self) -> None:
        """Forget the parent's connections, in a forked child."""
        self._by_thread.clear()


# --- endpoints ----------------------------------------------------------------------------------------------------


class Endpoint(ABC):
    """Makes connections to one server.

    Attributes:
        where: The server's URL without credentials, for messages.
    """

    where: str

    @abstractmethod
    async def connect(self) -> Any:
        """Return a new connection.

        Raises:
            RedisError, OSError: The connection can't be made; nothing of it stays open.
        """


@attrs.frozen
class ServerEndpoint(Endpoint):
    """One server at a fixed address.

    Attributes:
        kind: redis-py's class of connection, or a subclass.
        options: The arguments of the class.
        where: See `Endpoint`.
        pending: The connections that are being made.
    """

    kind: Any = attrs.field()
    options: Mapping[str, Any] = attrs.field(repr=False)
    where: str = attrs.field()
    pending: PendingConnections = attrs.field(factory=PendingConnections, repr=False, eq=False)

    async def connect(self) -> Any:
        if not issubclass(self.kind, _TLS):
            return await self._connect(self.options)
        # A third of the time for a handshake, a sixth to ask for the reason if it fails, and the rest to try it again.
        begin, seconds = SystemClock.wait_time(), self.options["socket_connect_timeout"]
        try:
            return await self._connect(self.within(min(QUICK, seconds / 3)).options)
        except (RedisError, OSError) as error:
            slow = isinstance(error, TimeoutError | RedisTimeoutError)
            if slow or ("SSL" in str(error) and "CERTIFICATE" not in str(error)):
                await self._check_speaks_tls(min(QUICK, seconds / 6))
            if not slow:
                raise
        left = begin + seconds - SystemClock.wait_time()
        return await self._connect(self.within(max(left, seconds / 6)).options)

    async def _check_speaks_tls(self, seconds: float) -> None:
        address = self.options.get("host", "localhost"), self.options.get("port", 6379)
        if await speaks_plain(address, seconds, on_asyncio=inspect.iscoroutinefunction(self.kind.connect)):
            raise WrongTransportError(
                f"the server at {address[0]}:{address[1]} doesn't use TLS: begin the URL with redis instead of rediss "
                "(valkey instead of valkeys), or leave ssl=True out of your own client"
            )

    async def _connect(self, given: Mapping[str, Any]) -> Any:
        # redis-py's own timeout is for the handshake alone: after that ailf counts.
        seconds = max(given["socket_timeout"], given["socket_connect_timeout"])
        on_asyncio = inspect.iscoroutinefunction(self.kind.connect)
        own = {"socket_timeout": seconds, "parser_class": parser_class(on_asyncio=on_asyncio)}
        own |= {**quiet(on_asyncio=on_asyncio), **SILENT, "client_name": None}
        options = {**given, **own}
        connection = self.kind(**options)
        try:
            await _connect(connection, given, self.pending)
            introduction = introduction_of(self.options.get("client_name"))
            introduce(connection, packed(introduction), len(introduction))
        except BaseException:
            await disconnect(connection)
            raise
        return connection

    def at(self, address: Address) -> "ServerEndpoint":
        """Return the endpoint of another server, with the same options and credentials."""
        host, port = address
        scheme = "rediss" if issubclass(self.kind, _TLS) else "redis"
        options = {**self.options, "host": host, "port": port}
        return attrs.evolve(self, options=options, where=f"{scheme}://{host}:{port}")

    def within(self, seconds: float) -> "ServerEndpoint":
        """Return this endpoint with timeouts of at most `seconds`."""
        limits = {name: min(self.options[name], seconds) for name in ("socket_timeout", "socket_connect_timeout")}
        return attrs.evolve(self, options={**self.options, **limits})


@attrs.frozen
class ClusterEndpoints:
    """The nodes of a cluster.

    Attributes:
        node: An endpoint with the options of every node; its address is replaced.
        seeds: The addresses of the nodes that are known at the start.
        remap: Converts an address that a node reports into one to connect to.
        where: The cluster's seeds, for messages.
    """

    node: ServerEndpoint
    seeds: Sequence[Address]
    remap: Callable[[Address], Address]
    where: str


def server_of(settings: Settings, flavour: str) -> ServerEndpoint:
    """Return the endpoint of the server that `settings` name."""
    plain, tls, local = KINDS[flavour]
    kind = local if settings.path is not None else tls if settings.tls else plain
    return ServerEndpoint(kind, settings.connection_options(), settings.url)


def nodes_of(settings: Settings, flavour: str) -> ClusterEndpoints:
    """Return the endpoints of the cluster that `settings` name."""
    return ClusterEndpoints(server_of(settings, flavour), settings.nodes, lambda address: address, settings.url)


# --- connecting ---------------------------------------------------------------------------------------------------


class _TextPacker:
    """Packs the commands of redis-py's handshake; see `ailf_redis.connection.resp.TEXT` for the reason."""

    def pack(self, *command: Any) -> list[bytes]:
        return [packed([command])]


async def _connect(connection: Any, options: Mapping[str, Any], pending: PendingConnections) -> None:
    """Connect within ``socket_connect_timeout`` seconds, redis-py's handshake included.

    redis-py alone would restart the time at each read. On threads each address of a host name, and the TLS
    handshake, has that time by itself, as redis-py hides the socket until then.
    """
    seconds = options["socket_connect_timeout"]
    if inspect.iscoroutinefunction(connection.connect):
        async with asyncio.timeout(seconds):
            await connection.connect()
        return
    pack_by(connection, _TextPacker())
    if any(options.get(name) for name in _HANDSHAKE):
        with _shut_after(seconds, connection), pending.track(connection):
            connection.connect()
    else:
        connection.connect()


@contextlib.contextmanager
def _shut_after(seconds: float, connection: Any) -> Iterator[None]:
    """Shut a connection, and so wake the thread that reads from it, if the block takes over `seconds`."""
    # This waits for no thread or event of `threading`: Ctrl-C at the wrong moment leaves their locks locked.
    finished: queue.SimpleQueue[object] = queue.SimpleQueue()
    late = threading.Event()
    # An interrupted thread may never put into `finished`; then it drops the connection, which puts.
    reference = weakref.ref(connection, finished.put)

    def is_finished(seconds: float) -> bool:
        with contextlib.suppress(queue.Empty):
            finished.get(timeout=seconds)
            return True
        return False

    def shut_it() -> None:
        if (alive := reference()) is not None:
            shut(sock_of(alive))

    def watch() -> None:
        if not is_finished(seconds):
            late.set()
            shut_it()
            while reference() is not None and not is_finished(_SHUT_INTERVAL):
                shut_it()  # it may have got its socket only now

    try:
        with contextlib.suppress(RuntimeError):  # the interpreter is ending, and starts no more threads
            _thread.start_new_thread(watch, ())
        yield
    except (RedisError, OSError) as error:
        if late.is_set():
            raise TimeoutError(f"the handshake took over {seconds:g} s") from error
        raise
    finally:
        finished.put(None)


# --- options ------------------------------------------------------------------------------------------------------


def clean(options: Mapping[str, Any], timeout: float | None) -> dict[str, Any]:
    """Return the options of one of our connections, made from those of a user's client.

    Arguments:
        options: The options of the client's own connections.
        timeout: Seconds for one call, and the most for making a connection; None: the client's ``socket_timeout``, or 5
            if that is None, and its ``socket_connect_timeout``.
    """
    kept = {name: value for name, value in options.items() if name not in _DROPPED}
    seconds = timeout or kept.get("socket_timeout") or 5.0
    connecting = kept.get("socket_connect_timeout") or seconds  # redis-py has a default of its own
    return kept | {
        "socket_timeout": seconds,
        "socket_connect_timeout": connecting if timeout is None else min(connecting, timeout),
        "protocol": 2,
        "decode_responses": False,
    }


def in_flavour(endpoint: ServerEndpoint, flavour: str) -> ServerEndpoint:
    """Return the endpoint of the same server for the other flavour, such as blocking for the renewal of leases.

    Raises:
        UnsupportedError: The connections' class, or an option of them, is of one flavour only.
    """
    kind = _TWINS[flavour].get(endpoint.kind) or _fake_kind(endpoint.kind, flavour)
    if kind is None or endpoint.options.get("redis_connect_func") is not None:
        raise UnsupportedError(
            f"this client's {endpoint.kind.__qualname__} connections have no {flavour} class; {_OTHER_WAY[flavour]}"
        )
    options = dict(endpoint.options)
    for name, default in _ONE_FLAVOUR.items():
        given = options.pop(name, default)
        if given != default and name != "event_dispatcher":
            raise UnsupportedError(f"redis-py's {flavour} connections have no {name}; {_OTHER_WAY[flavour]}")
    if "client_class" in options:  # fakeredis has it
        options["client_class"] = redis.Redis if flavour == "blocking" else aredis.Redis
    return attrs.evolve(endpoint, kind=kind, options=options)


_OTHER_WAY: Final = {
    "blocking": "the thread that renews leases needs one. Pass a blocking client too: "
    "AsyncRedisBackend.from_client(client, blocking=redis.Redis(…))",
    "asyncio": "open an asyncio backend of its own: AsyncRedisBackend.from_client(redis.asyncio.Redis(…))",
}
"""By flavour: what to do where a client can't be used in it."""


def _fake_kind(kind: type, flavour: str) -> type | None:
    if kind.__module__.partition(".")[0] != "fakeredis":
        return None
    import fakeredis  # noqa: PLC0415 - it is installed only if the user's client is a fake

    made: type = fakeredis.FakeRedisConnection if flavour == "blocking" else fakeredis.FakeAsyncRedisConnection
    return made
