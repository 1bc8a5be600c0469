"""The harnesses of ailf's own backends."""

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import fakeredis
import redis
import redis.asyncio
from msgspec.structs import replace

import ailf
from ailf.driver import Capability, Draft
from ailf.testing import ManualClock
from ailf_memory import AsyncMemoryBackend, MemoryBackend, MemoryStore
from ailf_redis import AsyncRedisBackend, RedisBackend
from ailf_redis.keys import Keys
from contract_tests.harness import Harness, UrlHarness
from tests.support.clusters import Cluster
from tests.support.proxy import Proxy

__all__ = ["ClusterHarness", "FakeHarness", "MemoryHarness", "RedisHarness", "UserClientHarness"]


class MemoryHarness(Harness):
    """The memory backend with a manual clock: no test waits for time to pass."""

    lease = 30.0
    arrival_grace = 0.0
    url = "memory://contract"
    blocking: type[ailf.Backend] = MemoryBackend
    on_asyncio: type[ailf.AsyncBackend] = AsyncMemoryBackend

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store: Any = MemoryStore(self.clock)
        self.capabilities = MemoryBackend().capabilities

    def connect(self) -> ailf.Backend:
        """Open a blocking backend on the store."""
        return self.blocking(store=self.store)  # type: ignore[call-arg]  # a memory backend's

    def connect_async(self) -> ailf.AsyncBackend:
        """Open an asyncio backend on the store."""
        return self.on_asyncio(store=self.store)  # type: ignore[call-arg]  # a memory backend's

    def other_namespace(self) -> Harness:
        """Return a harness on a store of its own."""
        return type(self)()

    async def advance(self, seconds: float) -> None:
        """Move the clock."""
        self.clock.advance(seconds)

    async def step_back(self, seconds: float) -> None:
        """Set the clock back."""
        self.clock.step_back(seconds)

    def now(self) -> float:
        """Return the time of the clock in seconds."""
        return self.clock.now_ms() / 1000

    async def interrupt_subscriptions(self) -> None:
        """Interrupt every subscription, like a lost connection."""
        self.store.break_subscriptions()

    async def add_broken(self, stream: str) -> None:
        """Add an entry with the `problem` of one that a backend can't read."""
        with self.store.lock:
            state = self.store.streams[stream]
            state.append(Draft(b"1"), self.clock.now_ms())
            state.records[-1] = replace(state.records[-1], problem="broken by a test")

    async def publish_broken(self, channel: str) -> None:
        """Publish on a channel whose name is not text."""
        with self.store.lock:
            for listener in self.store.listeners:
                listener.offer(f"{channel}\udcff", b"\xff")


BROKEN: Final = {b"ailf.body": b"1", b"ailf.headers": b'{"h": "\xff"}'}


class RedisHarness(UrlHarness):
    """A Redis server, with writes of other programs, and connections that can be cut or frozen."""

    _proxy: Proxy

    @contextlib.contextmanager
    def freezable(self, timeout: float) -> Iterator[Harness]:
        """Open backends through a proxy that can hold back all bytes."""
        with Proxy(urlsplit(self._base).port or 6379) as proxy:
            harness = type(self)(f"{proxy.url}?timeout={timeout}")
            harness._proxy = proxy
            yield harness

    def freeze(self, *, frozen: bool) -> None:
        """Hold back all bytes, or pass them on again."""
        if frozen:
            self._proxy.stall()
        else:
            self._proxy.resume()

    async def interrupt_subscriptions(self) -> None:
        """Let the server close the connections of all subscribers."""
        with redis.Redis.from_url(self._base) as raw:
            raw.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    async def add_foreign(self, stream: str) -> None:
        """Add an entry with the fields of another program."""
        with redis.Redis.from_url(self._base) as raw:
            raw.xadd(Keys(self._namespace()).stream(stream), {"job": "sweep"})

    async def add_broken(self, stream: str) -> None:
        """Add an entry whose fields are not text."""
        with redis.Redis.from_url(self._base) as raw:
            raw.xadd(Keys(self._namespace()).stream(stream), BROKEN)

    async def publish_broken(self, channel: str) -> None:
        """Publish on a channel whose name is not text."""
        with redis.Redis.from_url(self._base) as raw:
            raw.publish(Keys(self._namespace()).channel(channel).encode() + b"\xff", b"\xff")

    def _namespace(self) -> str:
        (namespace,) = parse_qs(urlsplit(self._url).query)["namespace"]
        return namespace


class UserClientHarness(RedisHarness):
    """A Redis server through user-supplied clients, whose own options must not matter."""

    def connect(self) -> ailf.Backend:
        """Open a backend from a client that decodes its replies to text."""
        client = redis.Redis.from_url(self._bare(), decode_responses=True, protocol=3)
        backend = RedisBackend.from_client(client, namespace=self._namespace(), timeout=self._timeout())
        backend.ping()
        return backend

    def connect_async(self) -> ailf.AsyncBackend:
        """Open an asyncio backend from such a client."""
        client = redis.asyncio.Redis.from_url(self._bare(), decode_responses=True, protocol=3)
        return AsyncRedisBackend.from_client(client, namespace=self._namespace(), timeout=self._timeout())

    def _bare(self) -> str:
        """Return the server's URL without the options of ailf."""
        return self._base.partition("?")[0]

    def _timeout(self) -> float | None:
        values = parse_qs(urlsplit(self._url).query).get("timeout")
        return float(values[0]) if values else None


class FakeHarness(Harness):
    """A fakeredis server in this process."""

    capabilities = frozenset(Capability) - {Capability.PROCESSES, Capability.SHARDED}

    def __init__(self, server: fakeredis.FakeServer | None = None) -> None:
        self._server = server or fakeredis.FakeServer()
        self._namespace = f"contract-{uuid.uuid4().hex[:12]}"

    def connect(self) -> ailf.Backend:
        """Open a backend from a blocking fakeredis client."""
        backend = RedisBackend.from_client(fakeredis.FakeRedis(server=self._server), namespace=self._namespace)
        backend.ping()
        return backend

    def connect_async(self) -> ailf.AsyncBackend:
        """Open a backend from an asyncio fakeredis client."""
        client = fakeredis.FakeAsyncRedis(server=self._server)
        return AsyncRedisBackend.from_client(client, namespace=self._namespace)

    def other_namespace(self) -> Harness:
        """Return a harness on another namespace of the same server."""
        return type(self)(self._server)

    async def add_foreign(self, stream: str) -> None:
        """Add an entry with the fields of another program."""
        fakeredis.FakeRedis(server=self._server).xadd(Keys(self._namespace).stream(stream), {"job": "sweep"})

    async def add_broken(self, stream: str) -> None:
        """Add an entry whose fields are not text."""
        fakeredis.FakeRedis(server=self._server).xadd(Keys(self._namespace).stream(stream), BROKEN)

    async def publish_broken(self, channel: str) -> None:
        """Publish on a channel whose name is not text."""
        name = Keys(self._namespace).channel(channel).encode() + b"\xff"
        fakeredis.FakeRedis(server=self._server).publish(name, b"\xff")


class ClusterHarness(Harness):
    """A cluster, through user-supplied clients."""

    capabilities = frozenset(Capability) - {Capability.SEVERAL_LOCKS, Capability.PROCESSES}

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._namespace = f"contract-{uuid.uuid4().hex[:12]}"

    def connect(self) -> ailf.Backend:
        """Open a backend from a blocking client, which can be closed after that."""
        with self._cluster.client() as client:
            backend = RedisBackend.from_client(client, namespace=self._namespace)
        backend.ping()
        return backend

    def connect_async(self) -> ailf.AsyncBackend:
        """Open a backend from an asyncio client."""
        return AsyncRedisBackend.from_client(self._cluster.async_client(), namespace=self._namespace)

    def other_namespace(self) -> Harness:
        """Return a harness on another namespace of the same cluster."""
        return type(self)(self._cluster)

    async def interrupt_subscriptions(self) -> None:
        """Let every node close the connections of its subscribers."""
        for node in self._cluster.nodes:
            with node.client() as raw:
                raw.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    async def add_foreign(self, stream: str) -> None:
        """Add an entry with the fields of another program."""
        with self._cluster.client() as client:
            client.xadd(Keys(self._namespace).stream(stream), {"job": "sweep"})

    async def add_broken(self, stream: str) -> None:
        """Add an entry whose fields are not text."""
        with self._cluster.client() as client:
            client.xadd(Keys(self._namespace).stream(stream), BROKEN)

    async def publish_broken(self, channel: str) -> None:
        """Publish on a channel whose name is not text."""
        name = Keys(self._namespace).channel(channel).encode() + b"\xff"
        with self._cluster.client() as client:  # at the node that serves plain channels: from another it may come late
            client.publish(name, b"\xff", target_nodes=client.get_node_from_key(self._namespace))
