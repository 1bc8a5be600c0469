"""A firewall forgets idle connections: that costs one timeout in all, and none after a long idle time."""

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
    "ailf_redis.waiter.IDLE",
)
OPTIONS = "timeout=0.4&retry_for=0"


@pytest.fixture
def proxy(any_server: Server) -> Iterator[Proxy]:
    """A proxy between the backends and a server."""
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
    """Return a result, awaited if it is awaitable."""
    return await result if hasattr(result, "__await__") else result


async def used_at_once(backend: Any, flavour: str) -> None:
    """Make calls at once, so that a blocking backend's pool has several connections."""
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
kinds = pytest.mark.parametrize("user_client", [False, True], ids=["url", "user_client"])


def play(flow: Callable[[], Any], flavour: str) -> None:
    """Run a flow on asyncio; or, as a blocking one suspends nowhere, to its end in one step."""
    if flavour == "asyncio":
        asyncio.run(flow())
    else:
        with pytest.raises(StopIteration):
            flow().send(None)


@both
@kinds
def test_forgotten_connections_cost_one_timeout(proxy: Proxy, namespace: str, flavour: str, user_client: bool) -> None:
    """The first call over a forgotten connection fails and drops all idle connections; the next calls work."""

    async def flow() -> None:
        backend = opened(proxy, flavour, namespace, user_client=user_client)
        await used_at_once(backend, flavour)
        proxy.forget()
        assert await added(backend, 8) == 1
        await closed(backend)

    play(flow, flavour)


@both
@kinds
def test_a_connection_is_checked_after_a_long_idle_time(
    proxy: Proxy, namespace: str, flavour: str, user_client: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that was idle for 30 s must reply to a PING first, so no call over a forgotten one fails."""

    async def flow() -> None:
        backend = opened(proxy, flavour, namespace, user_client=user_client)
        await used_at_once(backend, flavour)
        for name in IDLE:
            monkeypatch.setattr(name, -1.0)
        proxy.forget()
        made = proxy.connections
        assert await added(backend, 8) == 0
        # One more where there was one alone: on a busy machine a PING may be late once.
        assert proxy.connections <= max(made, 2), "one new connection replaces all idle ones"
        await closed(backend)

    play(flow, flavour)


@both
@kinds
def test_a_connection_in_use_is_not_checked(
    any_server: Server, namespace: str, flavour: str, user_client: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No PING is sent before 30 s; after a reply to one, the same connection is used again."""

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
    """The dedicated connection of an idle consumer is checked by a PING too."""

    async def flow() -> None:
        backend = opened(proxy, flavour, namespace, user_client=user_client)
        consumer = backend.stream("s").group("g").consumer()
        assert await waited(consumer.get(timeout=0.1)) is None
        if flavour == "asyncio":
            await asyncio.sleep(0.3)  # until the wait that the call has left running ends
        for name in IDLE:
            monkeypatch.setattr(name, -1.0)
        proxy.forget()
        assert await waited(consumer.get(timeout=1.5)) is None, "without an error"
        await waited(consumer.aclose() if flavour == "asyncio" else consumer.close())
        await closed(backend)

    play(flow, flavour)
