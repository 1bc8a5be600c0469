"""Nothing is left after close: no thread, task, socket or client; no key without TTL outside the documented list."""

import asyncio
import contextlib
import re
import threading
from pathlib import Path

import redis

import ailf
from tests.support.servers import NewServer, Server

DOCUMENTED = Path(__file__).parents[2] / "docs" / "redis-keys.md"


def sockets() -> set[str]:
    """Return the open sockets of this process."""
    links = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor that listed the folder is closed by now
            links.add(str(descriptor.readlink()))
    return {link for link in links if link.startswith("socket:")}


def clients(server: Server) -> int:
    """Return how many clients a server has, without the one that asks."""
    with server.client() as admin:
        return len(admin.client_list()) - 1


def use(backend: ailf.Backend) -> None:
    """Use calls, a subscription, a consumer that waits, leases that are renewed, and the raw client."""
    pubsub, stream = backend.pubsub(), backend.stream("s")
    with pubsub.listen("c") as subscription, stream.group("g", lease=0.2).consumer() as consumer:
        pubsub.publish("c", 1)
        assert subscription.get(5) is not None
        assert consumer.get(0.05) is None
        stream.add(1)
        delivery = consumer.get(5)
        assert delivery is not None
        threading.Event().wait(0.15)  # long enough for a renewal, which has a connection of its own
        delivery.ack()
    with backend.rate_limiter("r", "9 parallel ttl 0.3").hold(timeout=1):
        threading.Event().wait(0.15)
    assert backend.unwrap(redis.Redis).ping()


async def use_async(backend: ailf.AsyncBackend) -> None:
    """Use the same on asyncio."""
    pubsub, stream = backend.pubsub(), backend.stream("s")
    async with pubsub.listen("c") as subscription, stream.group("g", lease=0.2).consumer() as consumer:
        await pubsub.publish("c", 1)
        assert await subscription.get(5) is not None
        assert await consumer.get(0.05) is None
        await stream.add(1)
        delivery = await consumer.get(5)
        assert delivery is not None
        await asyncio.sleep(0.15)
        await delivery.ack()
    async with backend.rate_limiter("r", "9 parallel ttl 0.3").hold(timeout=1):
        await asyncio.sleep(0.15)
    assert await backend.unwrap(redis.asyncio.Redis).ping()


def test_a_closed_backend_leaves_nothing(new_server: NewServer) -> None:
    """B3: after close no thread, no socket and no client of the server is left."""
    server = new_server()
    threads, before = set(threading.enumerate()), sockets()
    with ailf.connect(server.url) as backend:
        use(backend)
        assert clients(server) >= 2
    assert set(threading.enumerate()) == threads
    assert sockets() == before
    assert clients(server) == 0


def test_a_closed_asyncio_backend_leaves_nothing(new_server: NewServer) -> None:
    """B3: after aclose no task, no thread, no socket and no client of the server is left."""
    server = new_server()

    async def main() -> None:
        threads, before = set(threading.enumerate()), sockets()
        async with ailf.connect_async(server.url) as backend:
            await use_async(backend)
            assert clients(server) >= 2
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert set(threading.enumerate()) == threads
        assert sockets() == before

    asyncio.run(main())
    assert clients(server) == 0


def test_every_key_has_a_ttl_or_is_documented(new_server: NewServer) -> None:
    """Keys without TTL are those that docs/redis-keys.md lists, and a settled message leaves none of its own."""
    server = new_server()
    patterns = documented()
    assert len(patterns) == 8
    with ailf.connect(server.url) as backend, server.client() as admin:
        limiter = backend.rate_limiter("r", a="9/minute", b="9/minute sliding", c="9/minute fixed", d="9 parallel")
        limiter.acquire("k").settle(a=2)
        stream = backend.stream("s")
        stream.add_many([1, 2, 3, 4, 5])
        stream.add_once("once", 6, key="k")
        group = stream.group("g")
        with group.consumer() as consumer:
            for settle in ("ack", "nack", "release", "reject", "reject"):
                delivery = consumer.get(5)
                assert delivery is not None
                getattr(delivery, settle)(**{"reject": {"reason": "x"}, "nack": {"delay": 60}}.get(settle, {}))
            assert consumer.get(5) is not None
            assert consumer.get(5) is not None  # the one with a key
            group.dead_letters.redrive(group.dead_letters.list()[0].id)
            keys = {key.decode(): admin.ttl(key) for key in admin.scan_iter()}
        lasting = [key for key, ttl in keys.items() if ttl == -1]
        assert len(lasting) == 8
        for key in lasting:
            assert any(re.fullmatch(pattern, key) for pattern in patterns), f"{key} is not in docs/redis-keys.md"
        assert any(key.endswith(":bell:g") and ttl >= 0 for key, ttl in keys.items())
        stream.delete()
        assert [key for key in admin.scan_iter() if admin.ttl(key) == -1] == []


def documented() -> list[str]:
    """Return regular expressions for the keys without TTL that the documentation lists."""
    rows = re.findall(r"^\| `([^`]+)` \|[^|]*\|[^|]*\| none", DOCUMENTED.read_text(), re.MULTILINE)
    return [re.sub(r"<\w+>", ".+", re.escape(row)) for row in rows]
