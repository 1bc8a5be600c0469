"""A client that the user brought: what ailf takes from it, and the executor that serves it.

Taken are its address, credentials, TLS and topology (`ailf_redis.connection.endpoint`). The client's connections and
pool stay its own: ailf neither borrows from them nor closes them.
"""

from collections.abc import Mapping
from typing import Any, Final

import attrs
import redis
from redis import asyncio as aredis
from redis import connection as blocking
from redis.asyncio import sentinel as asentinel
from redis.sentinel import SentinelConnectionPool

from ailf.checks import check_seconds
from ailf.errors import InvalidArgumentError, UnsupportedError
from ailf.runtime import Runtime
from ailf_redis.cluster.executor import ClusterExecutor
from ailf_redis.connection.endpoint import ClusterEndpoints, ServerEndpoint, clean, on_threads
from ailf_redis.connection.executor import Executor
from ailf_redis.pooled.executor import PooledExecutor
from ailf_redis.sentinel.endpoint import SentinelEndpoint
from ailf_redis.settings import Settings
from ailf_redis.versions import forced_host_of

__all__ = ["UserClient"]

Home = ServerEndpoint | SentinelEndpoint | ClusterEndpoints

_CLIENTS: Final[Mapping[str, tuple[Any, ...]]] = {
    "blocking": (redis.Redis, redis.RedisCluster),
    "asyncio": (aredis.Redis, aredis.RedisCluster),
}
_PLAIN: Final[Mapping[str, Any]] = {"blocking": blocking.Connection, "asyncio": aredis.Connection}
_TLS: Final[Mapping[str, Any]] = {"blocking": blocking.SSLConnection, "asyncio": aredis.SSLConnection}


@attrs.frozen
class UserClient:
    """A client, and where its connections come from.

    Attributes:
        client: The client itself, for `unwrap`.
        flavour: Its flavour.
        origin: Where connections of its flavour come from.
        threads: Where blocking ones come from.
        timeout: Seconds for one call, its answer included.
    """

    client: Any
    flavour: str
    endpoint: Home
    threads: Home
    timeout: float

    @classmethod
    def of(cls, client: Any, flavour: str, timeout: float | None, twin: Any = None) -> "UserClient":
        """Look at a client.

        Arguments:
            client: A client of redis-py of this flavour.
            flavour: "blocking" or "asyncio".
            timeout: Seconds for one call; None: the client's own, or 5 where it would wait for ever.
            twin: For an asyncio client, a blocking one on the same server; None: one like it is made.

        Raises:
            InvalidArgumentError: It is nothing that can be used.
            UnsupportedError: It needs a twin.
        """
        if timeout is not None:
            check_seconds("timeout", timeout, least=0.001)
        endpoint = _endpoint(client, flavour, timeout)
        if flavour == "blocking":
            threads = endpoint
        else:
            threads = _on_threads(endpoint) if twin is None else _endpoint(twin, "blocking", timeout)
        return cls(client, flavour, endpoint, threads, _node(endpoint).options["socket_timeout"])

    def executor(self, settings: Settings, runtime: Runtime) -> Executor:
        """Return what serves it.

        Raises:
            UnsupportedError: A blocking client was brought and this is asyncio.
        """
        if runtime.flavour not in ("blocking", self.flavour):
            raise UnsupportedError("a blocking client was brought; for asyncio bring one of redis.asyncio")
        endpoint = self.endpoint if runtime.flavour == self.flavour else self.threads
        if isinstance(endpoint, ClusterEndpoints):
            return ClusterExecutor(settings, endpoint, runtime)
        return PooledExecutor(settings, endpoint, runtime)


def _node(endpoint: Home) -> ServerEndpoint:
    if isinstance(endpoint, ClusterEndpoints):
        return endpoint.node
    return endpoint.master if isinstance(endpoint, SentinelEndpoint) else endpoint


def _on_threads(endpoint: Home) -> Home:
    if isinstance(endpoint, ClusterEndpoints):
        return attrs.evolve(endpoint, node=on_threads(endpoint.node))
    if isinstance(endpoint, SentinelEndpoint):
        sentinels = [on_threads(each) for each in endpoint.sentinels]
        return attrs.evolve(endpoint, master=on_threads(endpoint.master), sentinels=sentinels)
    return on_threads(endpoint)


def _endpoint(client: Any, flavour: str, timeout: float | None) -> Home:
    """Return where connections like the client's come from."""
    if not isinstance(client, _CLIENTS[flavour]):
        raise _unusable(client, flavour)
    if isinstance(client, redis.RedisCluster | aredis.RedisCluster):
        return _cluster(client, flavour, timeout)
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool | asentinel.SentinelConnectionPool):
        return _watched(pool, flavour, timeout)
    return _direct(pool, timeout)


def _unusable(client: Any, flavour: str) -> InvalidArgumentError:
    name = f"{type(client).__module__}.{type(client).__qualname__}"
    other = next((each for each, kinds in _CLIENTS.items() if each != flavour and isinstance(client, kinds)), None)
    if other is not None:
        face = "AsyncRedisBackend" if other == "asyncio" else "RedisBackend"
        return InvalidArgumentError(f"{name} is for {other} programs: bring it to {face}.from_client")
    return InvalidArgumentError(
        f"{name} can't be brought; bring a Redis or RedisCluster of redis-py "
        f"({'redis' if flavour == 'blocking' else 'redis.asyncio'}), or open the backend by URL"
    )


def _direct(pool: Any, timeout: float | None) -> ServerEndpoint:
    kind, options = pool.connection_class, clean(pool.connection_kwargs, timeout)
    if "path" in options:
        return ServerEndpoint(kind, options, f"unix://{options['path']}")
    scheme = "redis" if kind.__module__.startswith("redis.") else kind.__module__.partition(".")[0]
    where = f"{options.get('host', 'localhost')}:{options.get('port', 6379)}/{options.get('db') or 0}"
    return ServerEndpoint(kind, options, f"{scheme}://{where}")


def _watched(pool: Any, flavour: str, timeout: float | None) -> SentinelEndpoint:
    if not pool.is_master:
        raise InvalidArgumentError(f"replicas can't write: bring Sentinel.master_for({pool.service_name!r})")
    manager = pool.sentinel_manager
    tls = issubclass(pool.connection_class, _TLS[flavour])
    service = pool.service_name
    sentinels = [_direct(each.connection_pool, timeout) for each in manager.sentinels]
    shown = ",".join(each.where.partition("//")[2].rpartition("/")[0] for each in sentinels)
    options = clean(pool.connection_kwargs, timeout)
    return SentinelEndpoint(
        master=ServerEndpoint((_TLS if tls else _PLAIN)[flavour], options, ""),
        sentinels=sentinels,
        service=service,
        peers=manager.min_other_sentinels,
        forced_host=forced_host_of(manager),
        where=f"sentinel://{shown}/{service}",
    )


def _cluster(client: Any, flavour: str, timeout: float | None) -> ClusterEndpoints:
    """Return the nodes that a cluster's client knows now; from here on ailf follows the cluster by itself."""
    manager = client.nodes_manager
    known = {**manager.startup_nodes, **manager.nodes_cache}
    seeds = [(each.host, int(each.port)) for each in known.values()]
    if flavour == "blocking":
        pool = client.get_redis_connection(client.get_default_node()).connection_pool
        kind, told = pool.connection_class, pool.connection_kwargs
    else:
        kind, told = manager.connection_kwargs["connection_class"], manager.connection_kwargs
    # What redis_connect_func does there is to allow reading from replicas.
    options = clean(told, timeout) | {"redis_connect_func": None}
    where = f"cluster://{','.join(f'{host}:{port}' for host, port in seeds)}"
    return ClusterEndpoints(
        ServerEndpoint(kind, options, ""), seeds, lambda address: manager.remap_host_port(*address), where
    )
