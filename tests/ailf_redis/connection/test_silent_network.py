"""Connections that were idle: a firewall that forgot them costs one timeout in all, and none where it was long ago."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis import asyncio as aredis

import ailf
from ailf_redis import AsyncRedisBackend, RedisBackend
from tests.support.proxy import Proxy
from tests.support.servers import Server

IDLE = (
    "ailf_redis.connection.blocking.IDLE",
    "ailf_redis.connection.aio.IDLE",
    "ailf_redis.pooled.executor.IDLE",
    "ailf_redis.stream.IDLE",
)
OPTIONS = "timeout=0.4&retry_for=0"


@pytest.fixture
def proxy(any_server: Server) -> Iterator[Proxy]:
    """Stands between the backends and a server."""
    with Proxy(any_server.port) as between:
        yield between


def opened(proxy: Proxy, flavour: str, namespace: str, *, user_client: bool) -> Any:
    """Return a backend through the proxy."""
    if not user_client:
        backend: Any = RedisBackend if flavour == "blocking" else AsyncRedisBackend
        return backend(f"{proxy.url}?{OPTIONS}&namespace={namespace}")
    if flavour == "blocking":
        client = redis.Redis(port=proxy.port, socket_timeout=0.4)
        return RedisBackend.from_client(client, retry_for=0, namespace=namespace)
    loop_client = aredis.Redis(port=proxy.port, socket_timeout=0.4)
    return AsyncRedisBackend.from_client(loop_client, retry_for=0, namespace=namespace)


async def waited(result: Any) -> Any:
    """Return a result, awaited where it is asyncio's."""
    return await result if hasattr(result, "__await__") else result


async def used_at_once(backend: Any, flavour: str) -> None:
    """Have several connections in the pool, where there is one."""
    stream = backend.stream("s")
    if flavour == "asyncio":
        await asyncio.gather(*(stream.add(0) for _ in range(6)))
        return
    barrier = threading.Barrier(6)

    def add() -> None:
        barrier.wait()
        for _ in range(20):
            stream.add(0)

    threads = [threading.Thread(target=add) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def added(backend: Any, count: int) -> int:
    """Add messages one after another; return how many calls failed."""
    failed = 0
    for number in range(count):
        try:
            await waited(backend.stream("s").add(number))
        except ailf.BackendError:
            failed += 1
    return failed


async def closed(backend: Any) -> None:
    """Close either flavour."""
    await waited(backend.aclose() if hasattr(backend, "aclose") else backend.close())


both = pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
kinds = pytest.mark.parametrize("user_client", [False, True], ids=["url", "brought"])


def play(flow: Callable[[], Any], flavour: str) -> None:
    """Run a flow that awaits nothing where it is blocking."""
    if flavour == "asyncio":
        asyncio.run(flow())
    else:
        with pytest.raises(StopIteration):
            flow().send(None)


@both
@kinds
def test_forgotten_connections_cost_one_timeout(proxy: Proxy, namespace: str, flavour: str, user_client: bool) -> None:
    """The call that finds out fails, and takes all idle connections with it: the next ones work."""

    async def flow() -> None:
        backend = opened(proxy, flavour, namespace, user_client=user_client)
        await used_at_once(backend, flavour)
        proxy.forget()
        assert await added(backend, 8) == 1
        await closed(backend)

    play(flow, flavour)


@both
@kinds
def test_a_connection_is_asked_after_a_quiet_time(
    proxy: Proxy, namespace: str, flavour: str, user_client: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was idle for 30 s is asked with PING first, so no call over a forgotten one fails."""

    async def flow() -> None:
        backend = opened(proxy, flavour, namespace, user_client=user_client)
        await used_at_once(backend, flavour)
        for name in IDLE:
            monkeypatch.setattr(name, -1.0)
        proxy.forget()
        made = proxy.connections
        assert await added(backend, 8) == 0
        assert proxy.connections <= made, "one new one, instead of all that were idle"
        await closed(backend)

    play(flow, flavour)


@both
@kinds
def test_a_connection_in_use_is_not_asked(
    any_server: Server, namespace: str, flavour: str, user_client: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is asked before 30 s; what answers is used again, on the same connection, whatever it says to PING."""

    def pings(raw: redis.Redis) -> int:
        stats: dict[str, dict[str, int]] = raw.info("commandstats")
        return stats.get("cmdstat_ping", {}).get("calls", 0)

    async def flow() -> None:
        with any_server.client() as raw, Proxy(any_server.port) as between:
            backend = opened(between, flavour, namespace, user_client=user_client)
            before = pings(raw)
            assert await added(backend, 5) == 0
            assert pings(raw) == before
            for name in IDLE:
                monkeypatch.setattr(name, -1.0)
            assert await added(backend, 5) == 0
            assert 4 <= pings(raw) - before <= 5
            assert between.connections == 1
            await closed(backend)

    play(flow, flavour)


@both
@kinds
def test_a_forgotten_link(
    proxy: Proxy, namespace: str, flavour: str, user_client: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that nobody has asked for long waits over a connection of its own, which is asked as well."""

    async def flow() -> None:
        backend = opened(proxy, flavour, namespace, user_client=user_client)
        consumer = backend.stream("s").group("g").consumer()
        assert await waited(consumer.get(timeout=0.1)) is None
        if flavour == "asyncio":
            await asyncio.sleep(0.3)  # until the wait that the call left behind has ended
        for name in IDLE:
            monkeypatch.setattr(name, -1.0)
        proxy.forget()
        assert await waited(consumer.get(timeout=1.5)) is None, "without an error"
        await waited(consumer.aclose() if flavour == "asyncio" else consumer.close())
        await closed(backend)

    play(flow, flavour)
