"""Where connections come from: the settings of a URL, or the address, credentials and TLS of a client that was brought.

Nothing in here uses such a client's connections. They may decode, retry, or stand half-read; those made here never do:
RESP2, bytes, no retries, every timeout explicit. `ServerEndpoint.connect` is the one place where a connection is made.
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

from ailf.errors import UnsupportedError
from ailf_redis.connection.blocking_link import shut
from ailf_redis.connection.resp import packed
from ailf_redis.settings import Settings
from ailf_redis.versions import SILENT, is_asyncio, pack_by, parser_class, quiet, sock_of

__all__ = [
    "Address",
    "ClusterEndpoints",
    "Endpoint",
    "ServerEndpoint",
    "UnderWay",
    "answer",
    "clean",
    "done",
    "hang_up",
    "on_threads",
    "server_of",
]

Address = tuple[str, int]

_FORGOTTEN: Final = frozenset(
    {
        *("retry", "retry_on_error", "retry_on_timeout", "health_check_interval"),  # ailf's own rule of retries
        *("encoding", "encoding_errors", "parser_class", "encoder_class", "command_packer", "response_callbacks"),
        *(
            "maint_notifications_pool_handler",
            "oss_cluster_maint_notifications_handler",
        ),  # they act on the client's pool
        *("maintenance_state", "maintenance_notification_hash"),
        *("orig_host_address", "orig_socket_timeout", "orig_socket_connect_timeout"),
        *("connection_pool", "connection_class", "max_connections", "himport_registry", "cache", "cache_config"),
    }
)

_KINDS: Final[Mapping[str, tuple[type, type, type]]] = {
    "blocking": (blocking.Connection, blocking.SSLConnection, blocking.UnixDomainSocketConnection),
    "asyncio": (aredis.Connection, aredis.SSLConnection, aredis.UnixDomainSocketConnection),
}
"""redis-py's classes for TCP, TLS and unix sockets."""

_SIGN_IN: Final = ("username", "password", "credential_provider", "client_name", "db", "redis_connect_func")
"""The options for which redis-py sends something, and reads the answer, while it connects; `driver_info` is another."""

_AGAIN: Final = 0.05
"""Seconds between two looks whether a connection that is late can be ended."""

_TWINS: Final[Mapping[type, type]] = {
    aredis.Connection: blocking.Connection,
    aredis.SSLConnection: blocking.SSLConnection,
    aredis.UnixDomainSocketConnection: blocking.UnixDomainSocketConnection,
}


# --- both flavours of redis-py in one text ------------------------------------------------------------------------


async def done(result: Any) -> Any:
    """Return what a method of a connection returns, which on asyncio is to be awaited."""
    return await result if hasattr(result, "__await__") else result


async def answer(connection: Any, **options: Any) -> Any:
    """Return the next reply; an error reply is returned, not raised."""
    try:
        return await done(connection.read_response(disable_decoding=True, disconnect_on_error=False, **options))
    except ResponseError as error:
        return error


async def hang_up(connection: Any) -> None:
    """End a connection at once."""
    nowait = {"nowait": True} if isinstance(connection, aredis.Connection | aredis.UnixDomainSocketConnection) else {}
    await done(connection.disconnect(**nowait))


# --- connections being made ---------------------------------------------------------------------------------------


class UnderWay:
    """The connections of one executor that threads wait for before the first call over them, so that closing ends that.

    A thread makes one at a time. On asyncio a task makes it, which is cancelled.
    """

    def __init__(self) -> None:
        self._of: dict[int, Any] = {}
        self._over = False

    @contextlib.contextmanager
    def making(self, connection: Any) -> Iterator[None]:
        """Let `interrupt` end what this thread waits for at a connection; on asyncio do nothing.

        Raises:
            ConnectionError: It was called already.
        """
        if is_asyncio(connection):
            yield
            return
        try:
            self._of[threading.get_ident()] = connection
            if self._over:
                raise ConnectionError("the backend was closed")
            yield
        finally:
            self._of.pop(threading.get_ident(), None)

    def interrupt(self) -> bool:
        """End every wait, from any thread, and begin none; return whether there was one.

        A connection that has no socket yet is missed, so it is to be called until there is none.
        """
        self._over = True
        connections = tuple(self._of.values())
        for each in connections:
            shut(sock_of(each))
        return bool(connections)

    def forget(self) -> None:
        """Leave the parent's alone, in a forked child."""
        self._of.clear()


# --- origins ------------------------------------------------------------------------------------------------------


class Endpoint(ABC):
    """Makes connections to one server.

    Attributes:
        where: The server, for messages, without credentials.
    """

    where: str

    @abstractmethod
    async def connect(self) -> Any:
        """Return a new connection.

        Raises:
            RedisError, OSError: It can't be made; nothing is left of it.
        """


@attrs.frozen
class ServerEndpoint(Endpoint):
    """A server at a known place.

    Attributes:
        kind: redis-py's class of connection, or one derived from it.
        options: Its arguments.
        where: See `Endpoint`.
        under_way: The connections that are being made.
    """

    kind: Any = attrs.field()
    options: Mapping[str, Any] = attrs.field(repr=False)
    where: str = attrs.field()
    under_way: UnderWay = attrs.field(factory=UnderWay, repr=False, eq=False)

    async def connect(self) -> Any:
        # Its own timeout is for signing in alone: from then on ailf counts.
        seconds = max(self.options["socket_timeout"], self.options["socket_connect_timeout"])
        on_asyncio = inspect.iscoroutinefunction(self.kind.connect)
        own = {"socket_timeout": seconds, "parser_class": parser_class(on_asyncio=on_asyncio)}
        own |= quiet(on_asyncio=on_asyncio)
        connection = self.kind(**{**self.options, **own})
        try:
            await _connected(connection, self.options, self.under_way)
        except BaseException:
            await hang_up(connection)
            raise
        return connection

    def at(self, address: Address) -> "ServerEndpoint":
        """Return the same for another server, with the same credentials."""
        host, port = address
        return attrs.evolve(self, options={**self.options, "host": host, "port": port}, where=f"redis://{host}:{port}")

    def within(self, seconds: float) -> "ServerEndpoint":
        """Return the same with timeouts of at most `seconds`."""
        limits = {name: min(self.options[name], seconds) for name in ("socket_timeout", "socket_connect_timeout")}
        return attrs.evolve(self, options={**self.options, **limits})


@attrs.frozen
class ClusterEndpoints:
    """The nodes of a cluster.

    Attributes:
        node: How to connect to one, whatever its address.
        seeds: Those that were told.
        remap: What turns an address that a node tells into one to connect to.
        where: The cluster, for messages.
    """

    node: ServerEndpoint
    seeds: Sequence[Address]
    remap: Callable[[Address], Address]
    where: str


def server_of(settings: Settings, flavour: str) -> ServerEndpoint:
    """Return the server that settings name."""
    plain, tls, local = _KINDS[flavour]
    kind = local if settings.path is not None else tls if settings.tls else plain
    return ServerEndpoint(kind, settings.connection_options(), settings.url)


# --- connecting ---------------------------------------------------------------------------------------------------


class _TextPacker:
    """What redis-py packs a handshake's commands with: see `ailf_redis.connection.TEXT`."""

    def pack(self, *command: Any) -> list[bytes]:
        return [packed([command])]


async def _connected(connection: Any, options: Mapping[str, Any], under_way: UnderWay) -> None:
    """Connect within the time for that, sign-in included, which redis-py counts anew for each read.

    On threads each address of a name, and TLS' handshake, has that time by itself: redis-py hides their socket.
    """
    seconds = options["socket_connect_timeout"]
    if inspect.iscoroutinefunction(connection.connect):
        async with asyncio.timeout(seconds):
            await connection.connect()
        return
    pack_by(connection, _TextPacker())
    if any(options.get(each) for each in _SIGN_IN) or not SILENT.items() <= options.items():
        with _ended_after(seconds, connection), under_way.making(connection):
            connection.connect()
    else:
        connection.connect()


@contextlib.contextmanager
def _ended_after(seconds: float, connection: Any) -> Iterator[None]:
    """Wake the thread that reads from a connection after that many seconds."""
    # No thread or event of `threading` is waited for here: Ctrl-C at the wrong moment leaves their locks locked.
    over: queue.SimpleQueue[object] = queue.SimpleQueue()
    late = threading.Event()
    reached = weakref.ref(connection, over.put)  # who is kept from saying that it is over drops the connection

    def is_over(seconds: float) -> bool:
        with contextlib.suppress(queue.Empty):
            over.get(timeout=seconds)
            return True
        return False

    def wake() -> None:
        if (found := reached()) is not None:
            shut(sock_of(found))

    def watch() -> None:
        if not is_over(seconds):
            late.set()
            wake()
            while reached() is not None and not is_over(_AGAIN):
                wake()  # it may have been connected only now

    try:
        with contextlib.suppress(RuntimeError):  # the interpreter ends, and starts no more threads
            _thread.start_new_thread(watch, ())
        yield
    except (RedisError, OSError) as error:
        if late.is_set():
            raise TimeoutError(f"signing in took over {seconds:g} s") from error
        raise
    finally:
        over.put(None)


# --- options ------------------------------------------------------------------------------------------------------


def clean(options: Mapping[str, Any], timeout: float | None) -> dict[str, Any]:
    """Return a client's options for one of our connections.

    Arguments:
        options: The client's, for its own connections.
        timeout: Seconds for one call; None: the client's, or 5 where it waits for ever.
    """
    kept = {name: value for name, value in options.items() if name not in _FORGOTTEN}
    seconds = timeout or kept.get("socket_timeout") or 5.0
    return kept | {
        "socket_timeout": seconds,
        "socket_connect_timeout": kept.get("socket_connect_timeout") or seconds,
        "protocol": 2,
        "decode_responses": False,
    }


def on_threads(endpoint: ServerEndpoint) -> ServerEndpoint:
    """Return the blocking twin of an asyncio origin: leases are renewed by a thread.

    Raises:
        UnsupportedError: Its connections are of a class of somebody's own.
    """
    kind = _TWINS.get(endpoint.kind) or _blocking_fake(endpoint.kind)
    if kind is None or endpoint.options.get("redis_connect_func") is not None:
        raise UnsupportedError(
            f"leases are renewed by a thread, and {endpoint.kind.__qualname__} connections are for asyncio only; "
            "bring a blocking client for it too: AsyncRedisBackend.from_client(client, blocking=redis.Redis(…))"
        )
    options = {name: value for name, value in endpoint.options.items() if name != "event_dispatcher"}
    if "client_class" in options:  # a fake's
        options["client_class"] = redis.Redis
    return attrs.evolve(endpoint, kind=kind, options=options)


def _blocking_fake(kind: type) -> type | None:
    if kind.__module__.partition(".")[0] != "fakeredis":
        return None
    import fakeredis  # noqa: PLC0415 - only who brought a fake has it

    return fakeredis.FakeRedisConnection
