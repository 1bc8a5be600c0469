"""A user's own redis-py client: the endpoints that ailf makes from it, and the executor over them.

ailf takes the client's address, credentials, TLS and topology. It neither uses nor closes the client's connections.
"""

from collections.abc import Mapping
from typing import Any, Final

import attrs
import redis
from redis import asyncio as aredis
from redis.asyncio import sentinel as asentinel
from redis.sentinel import SentinelConnectionPool

from ailf.checks import check_seconds
from ailf.errors import InvalidArgumentError
from ailf.runtime import Runtime
from ailf_redis.cluster.executor import ClusterExecutor
from ailf_redis.connection.endpoint import KINDS, ClusterEndpoints, ServerEndpoint, clean, in_flavour
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


@attrs.frozen
class UserClient:
    """A user's client, and the endpoints made from it.

    Attributes:
        client: The client itself, for `unwrap`.
        flavour: The client's flavour.
        endpoint: Makes connections of the client's flavour.
        blocking_endpoint: Makes blocking connections; that of the client itself, if it is blocking.
        timeout: Seconds for one call, from its beginning to the end of its reply.
    """

    client: Any
    flavour: str
    endpoint: Home
    blocking_endpoint: Home
    timeout: float

    @classmethod
    def of(cls, client: Any, flavour: str, timeout: float | None, blocking_client: Any = None) -> "UserClient":
        """Check a client and make its endpoints.

        Arguments:
            client: A client of redis-py of this flavour.
            flavour: "blocking" or "asyncio".
            timeout: Seconds for one call; None: the client's own, or 5 if it has none.
            blocking_client: For an asyncio client, a blocking one on the same server; None: its endpoint is made from
                the asyncio client.

        Raises:
            InvalidArgumentError: The client can't be used.
            UnsupportedError: No blocking endpoint can be made from the asyncio client.
        """
        if timeout is not None:
            check_seconds("timeout", timeout, least=0.001)
        endpoint = _endpoint(client, flavour, timeout)
        if flavour == "blocking":
            blocking_endpoint = endpoint
        elif blocking_client is None:
            blocking_endpoint = _in_flavour(endpoint, "blocking")
        else:
            blocking_endpoint = _endpoint(blocking_client, "blocking", timeout)
        return cls(client, flavour, endpoint, blocking_endpoint, _node(endpoint).options["socket_timeout"])

    def executor(self, settings: Settings, runtime: Runtime) -> Executor:
        """Return an executor over the endpoint of the runtime's flavour.

        Raises:
            UnsupportedError: The client is blocking, the runtime is asyncio, and redis-py has no such connections.
        """
        if runtime.flavour == self.flavour:
            endpoint = self.endpoint
        elif runtime.flavour == "blocking":
            endpoint = self.blocking_endpoint
        else:
            endpoint = _in_flavour(self.endpoint, runtime.flavour)
        if isinstance(endpoint, ClusterEndpoints):
            return ClusterExecutor(settings, endpoint, runtime)
        return PooledExecutor(settings, endpoint, runtime)


def _node(endpoint: Home) -> ServerEndpoint:
    if isinstance(endpoint, ClusterEndpoints):
        return endpoint.node
    return endpoint.master if isinstance(endpoint, SentinelEndpoint) else endpoint


def _in_flavour(endpoint: Home, flavour: str) -> Home:
    if isinstance(endpoint, ClusterEndpoints):
        return attrs.evolve(endpoint, node=in_flavour(endpoint.node, flavour))
    if isinstance(endpoint, SentinelEndpoint):
        sentinels = [in_flavour(each, flavour) for each in endpoint.sentinels]
        return attrs.evolve(endpoint, master=in_flavour(endpoint.master, flavour), sentinels=sentinels)
    return in_flavour(endpoint, flavour)


def _endpoint(client: Any, flavour: str, timeout: float | None) -> Home:
    """Return the endpoint that makes connections like the client's."""
    if not isinstance(client, _CLIENTS[flavour]):
        raise _unusable(client, flavour)
    if isinstance(client, redis.RedisCluster | aredis.RedisCluster):
        return _cluster_endpoints(client, flavour, timeout)
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool | asentinel.SentinelConnectionPool):
        return _sentinel_endpoint(pool, flavour, timeout)
    return _server_endpoint(pool, timeout)


def _unusable(client: Any, flavour: str) -> InvalidArgumentError:
    name = f"{type(client).__module__}.{type(client).__qualname__}"
    other = next((each for each, kinds in _CLIENTS.items() if each != flavour and isinstance(client, kinds)), None)
    if other is not None:
        backend = "AsyncRedisBackend" if other == "asyncio" else "RedisBackend"
        return InvalidArgumentError(f"{name} is for {other} programs: pass it to {backend}.from_client")
    return InvalidArgumentError(
        f"from_client can't use {name}: pass a Redis or RedisCluster of redis-py "
        f"({'redis' if flavour == 'blocking' else 'redis.asyncio'}), or open the backend by URL"
    )


def _server_endpoint(pool: Any, timeout: float | None) -> ServerEndpoint:
    kind, options = pool.connection_class, clean(pool.connection_kwargs, timeout)
    if "path" in options:
        return ServerEndpoint(kind, options, f"unix://{options['path']}")
    scheme = "redis" if kind.__module__.startswith("redis.") else kind.__module__.partition(".")[0]
    where = f"{options.get('host', 'localhost')}:{options.get('port', 6379)}/{options.get('db') or 0}"
    return ServerEndpoint(kind, options, f"{scheme}://{where}")


def _sentinel_endpoint(pool: Any, flavour: str, timeout: float | None) -> SentinelEndpoint:
    if not pool.is_master:
        raise InvalidArgumentError(f"replicas can't write: pass Sentinel.master_for({pool.service_name!r})")
    manager = pool.sentinel_manager
    plain, tls, _ = KINDS[flavour]
    kind = tls if issubclass(pool.connection_class, tls) else plain
    service = pool.service_name
    sentinels = [_server_endpoint(each.connection_pool, timeout) for each in manager.sentinels]
    addresses = ",".join(each.where.partition("//")[2].rpartition("/")[0] for each in sentinels)
    options = clean(pool.connection_kwargs, timeout)
    return SentinelEndpoint(
        master=ServerEndpoint(kind, options, ""),
        sentinels=sentinels,
        service=service,
        peers=manager.min_other_sentinels,
        forced_host=forced_host_of(manager),
        where=f"redis+sentinel://{addresses}/{service}",
    )


def _cluster_endpoints(client: Any, flavour: str, timeout: float | None) -> ClusterEndpoints:
    """Return the nodes that a cluster's client knows now as seeds; from then on ailf follows the cluster itself."""
    manager = client.nodes_manager
    nodes = {**manager.startup_nodes, **manager.nodes_cache}
    seeds = [(each.host, int(each.port)) for each in nodes.values()]
    if flavour == "blocking":
        pool = client.get_redis_connection(client.get_default_node()).connection_pool
        kind, client_options = pool.connection_class, pool.connection_kwargs
    else:
        kind, client_options = manager.connection_kwargs["connection_class"], manager.connection_kwargs
    # redis-py's cluster client uses redis_connect_func to allow reading from replicas.
    options = clean(client_options, timeout) | {"redis_connect_func": None}
    where = f"redis+cluster://{','.join(f'{host}:{port}' for host, port in seeds)}"
    return ClusterEndpoints(
        ServerEndpoint(kind, options, ""), seeds, lambda address: manager.remap_host_port(*address), where
    )
