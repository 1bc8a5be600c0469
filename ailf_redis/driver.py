"""`RedisDriver`, the root driver: it makes the drivers of the interfaces over one executor."""

import contextlib
import secrets
import time
from typing import Any, Final

import redis
import redis.asyncio

from ailf.driver import BackendDriver, Capability, Finding
from ailf.errors import ConnectionLostError, PermissionDeniedError, ProtocolError, UnsupportedError
from ailf.runtime import Runtime
from ailf_redis.cluster.executor import ClusterExecutor
from ailf_redis.cluster.pubsub import ClusterPubSubDriver
from ailf_redis.connection.aio import AsyncioExecutor
from ailf_redis.connection.blocking import BlockingExecutor
from ailf_redis.connection.endpoint import nodes_of
from ailf_redis.connection.executor import Executor
from ailf_redis.connection.transport import expects_tls
from ailf_redis.diagnosis import answers_of, findings, probes, questions, rights_findings
from ailf_redis.errors import MISREAD, mapped, misread
from ailf_redis.keys import Keys
from ailf_redis.lock import RedisLockDriver
from ailf_redis.pooled.executor import PooledExecutor
from ailf_redis.pubsub import RedisPubSubDriver
from ailf_redis.ratelimit import RedisRateLimiterDriver
from ailf_redis.raw_client import RawClient, asyncio_client, blocking_client, close_blocking
from ailf_redis.replies import text
from ailf_redis.sentinel.endpoint import sentinels_of
from ailf_redis.settings import Settings
from ailf_redis.stream import RedisStreamDriver
from ailf_redis.user_client import UserClient

__all__ = ["RedisDriver"]

SCAN_PROBE: Final = ("SCAN", "0", "COUNT", "1")
"""The request that shows whether the user has the right to list."""

TLS_ALERT: Final = r"\x15"
"""How hiredis shows the first byte of an alert, with which a few servers with TLS end a connection without."""

PROBE: Final = 1.0
"""Seconds that a server has to show that it expects TLS, when it can't be opened without."""

SERVERS: Final = 3
"""The most servers that are asked for that."""

OLDEST = (6, 2)
"""The oldest server on which the scripts run: they use XPENDING IDLE and exclusive ranges."""


PAGE: Final = 1000
"""The number of keys that one SCAN of `RedisDriver.remove_namespaces` looks at."""


class RedisDriver(BackendDriver):
    """The root driver over one server, the master of Sentinels, or a cluster."""

    capabilities: frozenset[Capability] = frozenset(
        {
            Capability.PUBSUB,
            Capability.PATTERNS,
            Capability.SHARDED,
            Capability.STREAM,
            Capability.ORDERING,
            Capability.LOCK,
            Capability.SEVERAL_LOCKS,
            Capability.RATE_LIMITER,
            Capability.BUDGET_TREES,
            Capability.LISTING,
            Capability.PROCESSES,
        }
    )

    def __init__(self, settings: Settings, runtime: Runtime, user_client: UserClient | None = None) -> None:
        self.settings = settings
        self.runtime = runtime
        self.max_payload = settings.max_payload
        self.timeout = settings.timeout
        self.executor = _executor(settings, runtime, user_client)
        self.keys = Keys(settings.namespace, cluster=isinstance(self.executor, ClusterExecutor))
        self.url = self.executor.where
        if isinstance(self.executor, ClusterExecutor):
            self.capabilities -= {Capability.SEVERAL_LOCKS}  # several names have several slots
            self.several_servers = True
        self._user_client = user_client
        self._raw = RawClient(lambda: asyncio_client(settings))
        self._raw_blocking: redis.Redis | None = None
        self._probed = False

    async def ping(self) -> None:
        try:
            hello = await self._say_hello()
        except (ConnectionLostError, ProtocolError) as failure:
            if not self._probed and (isinstance(failure, ConnectionLostError) or TLS_ALERT in str(failure)):
                await self._check_expects_no_tls(failure)
            raise
        if isinstance(hello, Exception):
            error = mapped(hello, self.url, sent=True)
            if isinstance(error, PermissionDeniedError) and "hello" in str(hello).lower():
                await self.executor.call("PING")  # the user lacks the right to HELLO: the version stays unknown
                return
            if "unknown command" in str(hello).lower() or "wrong number" in str(hello).lower():
                raise self._too_old("before 6.2") from hello
            raise error from hello
        try:
            fields = dict(zip(hello[::2], hello[1::2], strict=True))
            version = text(fields.get(b"version", b"0"))
        except MISREAD as error:
            raise misread(error, self.url) from error
        if fields.get(b"server") == b"fakeredis":  # its version is fakeredis' own
            return
        if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST:
            raise self._too_old(version)
        if version.startswith("6."):
            self.capabilities -= {Capability.SHARDED}

    async def _check_expects_no_tls(self, error: Exception) -> None:
        """Raise an error that says more than `error` if a server expects TLS and the URL has none."""
        if self._user_client is not None or self.settings.tls:
            return
        for address in self.settings.addresses[:SERVERS]:
            if await expects_tls(address, PROBE, on_asyncio=self.runtime.flavour == "asyncio"):
                raise ProtocolError(
                    f"{self.url}: the server at {address[0]}:{address[1]} expects TLS: begin the URL with rediss "
                    "instead of redis (valkeys instead of valkey)",
                    maybe_applied=False,
                ) from error

    async def _say_hello(self) -> Any:
        """Return the reply to HELLO; ask once, in the same write, whether the user may list."""
        if not self._probed:
            with contextlib.suppress(ConnectionLostError):  # a server that refuses a connection replies to one command
                hello, scanned = await self.executor.call_many([("HELLO",), SCAN_PROBE])
                self._note_right_to_scan(scanned)
                return hello
        (hello,) = await self.executor.call_many([("HELLO",)])
        return hello

    def _note_right_to_scan(self, reply: Any) -> None:
        """Remove `Capability.LISTING` if the user lacks the right to SCAN, or the server or a proxy doesn't know it."""
        error = mapped(reply, self.url, sent=True) if isinstance(reply, Exception) else None
        if isinstance(error, ConnectionLostError):  # it is loading, say: the next ping asks again
            return
        self._probed = True
        if error is not None:
            self.capabilities -= {Capability.LISTING}
            self.reasons = {
                Capability.LISTING: f"its user needs the right to SCAN: add +scan to its ACL rules ({error})"
            }

    def _too_old(self, version: str) -> UnsupportedError:
        return UnsupportedError(
            f"the server at {self.url} is too old ({version}); ailf needs Redis 6.2, Valkey 7.2 or newer"
        )

    async def close(self) -> None:
        await self.executor.close()
        await self._raw.aclose()
        if self._raw_blocking is not None:
            close_blocking(self._raw_blocking)

    def interrupt(self) -> None:
        self.executor.interrupt()

    def abandon(self) -> bool:
        return self.executor.abandon()

    def with_runtime(self, runtime: Runtime) -> "RedisDriver":
        made = RedisDriver(self.settings, runtime, self._user_client)
        made.capabilities, made.reasons, made._probed = self.capabilities, self.reasons, self._probed
        if isinstance(self.executor, ClusterExecutor) and isinstance(made.executor, ClusterExecutor):
            made.executor.share_map(self.executor)
        return made

    def pubsub(self) -> RedisPubSubDriver:
        if isinstance(self.executor, ClusterExecutor):
            return ClusterPubSubDriver(self.executor, self.keys)
        return RedisPubSubDriver(self.executor, self.keys)

    def lock(self) -> RedisLockDriver:
        return RedisLockDriver(self.executor, self.keys)

    def rate_limiter(self) -> RedisRateLimiterDriver:
        return RedisRateLimiterDriver(self.executor, self.keys)

    def stream(self) -> RedisStreamDriver:
        return RedisStreamDriver(self.executor, self.keys)

    async def diagnose(self) -> list[Finding]:
        """Return what the server says about itself; of a cluster, one of its nodes."""
        sent = time.time()
        (clock,) = await self.executor.call_many(questions()[:1])
        now = (sent + time.time()) / 2
        replies = await self.executor.call_many(questions()[1:])
        name = f"ailf-doctor-{secrets.token_hex(8)}"
        asked = probes(self.keys, name, sharded=Capability.SHARDED in self.capabilities)
        rights = rights_findings(list(asked), await self.executor.call_many(list(asked.values())))
        try:
            found = list(findings(answers_of([clock, *replies]), now))
        except MISREAD as error:
            raise misread(error, self.url) from error
        return [*rights, *found]

    async def remove_namespaces(self, prefix: str) -> int | None:
        pattern, removed = self.keys.namespaces(prefix), 0
        for node in await self.executor.nodes():
            cursor = b"0"
            while True:
                reply = await self.executor.call_at(node, 1, "SCAN", cursor, "MATCH", pattern, "COUNT", PAGE)
                try:
                    cursor, keys = reply
                except MISREAD as error:
                    raise misread(error, self.url) from error
                for each in await self.executor.call_many([("UNLINK", key) for key in keys]) if keys else ():
                    if isinstance(each, Exception):
                        raise mapped(each, self.url, sent=True)
                    removed += each
                if cursor == b"0":
                    break
        return removed

    def unwrap(self, kind: type[Any]) -> Any:
        if self._user_client is not None:
            return self._user_client.client if isinstance(self._user_client.client, kind) else None
        on_asyncio = self.runtime.flavour == "asyncio"
        if self.settings.nodes or kind is not (redis.asyncio.Redis if on_asyncio else redis.Redis):
            return None
        self.executor.check_open()
        if on_asyncio:
            return self._raw.get()
        if self._raw_blocking is None:
            self._raw_blocking = blocking_client(self.settings)
        return self._raw_blocking


def _executor(settings: Settings, runtime: Runtime, user_client: UserClient | None) -> Executor:
    if user_client is not None:
        return user_client.executor(settings, runtime)
    if settings.sentinels:
        return PooledExecutor(settings, sentinels_of(settings, runtime.flavour), runtime)
    if settings.nodes:
        return ClusterExecutor(settings, nodes_of(settings, runtime.flavour), runtime)
    return AsyncioExecutor(settings) if runtime.flavour == "asyncio" else BlockingExecutor(settings)
