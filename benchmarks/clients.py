"""The clients that `calls.py` compares: how each publishes, adds, locks and limits.

Each is a context manager over a URL. What it gives makes calls by name, one for each caller: callers lock names of
their own, and publish to a channel on which nobody listens.
"""

import contextlib
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Final
from urllib.parse import urlsplit

import bench
import hiredis
import redis
from bench import BODY, AsyncCall, Call
from redis import asyncio as aredis

import ailf

Calls = Mapping[str, Callable[[int], Call]]
AsyncCalls = Mapping[str, Callable[[int], AsyncCall]]
Open = Callable[[str], AbstractContextManager[Calls]]
OpenAsync = Callable[[str], AbstractAsyncContextManager[AsyncCalls]]

TTL: Final = 30
"""Seconds that a lock is granted for."""

PLENTY: Final = 1_000_000_000
"""What limits allow in an hour: all that is asked."""

WINDOW: Final = """
local count = redis.call('INCR', KEYS[1])
if count == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return count <= tonumber(ARGV[1]) and 1 or 0
"""
"""A limiter as short as can be: it counts what came in a window."""

HOUR_MS: Final = 3_600_000

UNLOCK: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


# --- calls that read the same, blocking or awaited ---------------------------------------------------------------


def _of_ours(backend: Any, turns: Callable[[int], Any]) -> dict[str, Callable[[int], Any]]:
    pubsub = backend.pubsub(type=bytes)
    stream = backend.stream("bench", type=bytes)
    limiter = backend.rate_limiter("bench", ailf.TokenBucket(PLENTY, per=3600.0))
    return {
        "publish": lambda _: lambda: pubsub.publish("bench", BODY),
        "add": lambda _: lambda: stream.add(BODY),
        "lock": turns,
        "limit": lambda _: lambda: limiter.try_acquire("user"),
    }


def _of_redis_py(client: Any, turns: Callable[[int], Any]) -> dict[str, Callable[[int], Any]]:
    count = client.register_script(WINDOW)
    return {
        "publish": lambda _: lambda: client.publish("bench", BODY),
        "add": lambda _: lambda: client.xadd("bench", {"body": BODY}),
        "lock": turns,
        "limit": lambda _: lambda: count(["window"], [PLENTY, HOUR_MS]),
    }


# --- blocking ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ours(url: str) -> Iterator[Calls]:
    """Give ailf's calls."""
    with ailf.connect(url) as backend:

        def turns(who: int) -> Call:
            lock = backend.lock(f"bench-{who}", ttl=TTL)
            return lambda: lock.acquire(0).release()

        yield _of_ours(backend, turns)


@contextlib.contextmanager
def redis_py(url: str) -> Iterator[Calls]:
    """Give redis-py's."""
    with redis.Redis.from_url(url) as client:

        def turns(who: int) -> Call:
            lock = client.lock(f"bench-{who}", timeout=TTL)

            def turn() -> None:
                lock.acquire(blocking=False)
                lock.release()

            return turn

        yield _of_redis_py(client, turns)


@contextlib.contextmanager
def glide(url: str) -> Iterator[Calls]:
    """Give valkey-glide's."""
    module = bench.peer("glide_sync")
    client = module.GlideClient.create(_glide_config(module, url))
    count, unlock = module.Script(WINDOW), module.Script(UNLOCK)
    taking = _taking(module)

    def turns(who: int) -> Call:
        def turn() -> None:
            token = uuid.uuid4().hex
            client.set(f"bench-{who}", token, **taking)
            client.invoke_script(unlock, [f"bench-{who}"], [token])

        return turn

    try:
        yield {
            "publish": lambda _: lambda: client.publish(BODY, "bench"),
            "add": lambda _: lambda: client.xadd("bench", [("body", BODY)]),
            "lock": turns,
            "limit": lambda _: lambda: client.invoke_script(count, ["window"], [str(PLENTY), str(HOUR_MS)]),
        }
    finally:
        client.close()


@contextlib.contextmanager
def bare(url: str) -> Iterator[Calls]:
    """Give a socket's: the bytes that ailf would send, and one read."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def asking(*command: Any) -> Call:
            data = hiredis.pack_command(command)

            def ask() -> None:
                connection.sendall(data)
                connection.recv(65536)

            return ask

        publish, add = asking("PUBLISH", "ailf:channel:bench", BODY), asking("XADD", "ailf:bench", "*", "body", BODY)
        yield {"publish": lambda _: publish, "add": lambda _: add}


# --- asyncio -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def async_ours(url: str) -> AsyncIterator[AsyncCalls]:
    """Give ailf's calls."""
    async with ailf.connect_async(url) as backend:

        def turns(who: int) -> AsyncCall:
            lock = backend.lock(f"bench-{who}", ttl=TTL)

            async def turn() -> None:
                await (await lock.acquire(0)).release()

            return turn

        yield _of_ours(backend, turns)


@contextlib.asynccontextmanager
async def async_redis_py(url: str) -> AsyncIterator[AsyncCalls]:
    """Give redis-py's."""
    async with aredis.Redis.from_url(url) as client:

        def turns(who: int) -> AsyncCall:
            lock = client.lock(f"bench-{who}", timeout=TTL)

            async def turn() -> None:
                await lock.acquire(blocking=False)
                await lock.release()

            return turn

        yield _of_redis_py(client, turns)


@contextlib.asynccontextmanager
async def async_coredis(url: str) -> AsyncIterator[AsyncCalls]:
    """Give coredis'."""
    module, locks = bench.peer("coredis"), bench.peer("coredis.patterns.lock")
    async with module.Redis.from_url(url) as client:
        sha = await client.script_load(WINDOW)

        def turns(who: int) -> AsyncCall:
            lock = locks.Lock(client, f"bench-{who}", timeout=TTL, blocking=False)

            async def turn() -> None:
                await lock.acquire()
                await lock.release()

            return turn

        yield {
            "publish": lambda _: lambda: client.publish("bench", BODY),
            "add": lambda _: lambda: client.xadd("bench", {"body": BODY}),
            "lock": turns,
            "limit": lambda _: lambda: client.evalsha(sha, ["window"], [PLENTY, HOUR_MS]),
        }


@contextlib.asynccontextmanager
async def async_glide(url: str) -> AsyncIterator[AsyncCalls]:
    """Give valkey-glide's."""
    module = bench.peer("glide")
    client = await module.GlideClient.create(_glide_config(module, url))
    count, unlock = module.Script(WINDOW), module.Script(UNLOCK)
    taking = _taking(module)

    def turns(who: int) -> AsyncCall:
        async def turn() -> None:
            token = uuid.uuid4().hex
            await client.set(f"bench-{who}", token, **taking)
            await client.invoke_script(unlock, [f"bench-{who}"], [token])

        return turn

    try:
        yield {
            "publish": lambda _: lambda: client.publish(BODY, "bench"),
            "add": lambda _: lambda: client.xadd("bench", [("body", BODY)]),
            "lock": turns,
            "limit": lambda _: lambda: client.invoke_script(count, ["window"], [str(PLENTY), str(HOUR_MS)]),
        }
    finally:
        await client.close()


def _glide_config(module: Any, url: str) -> Any:
    where = urlsplit(url)
    return module.GlideClientConfiguration([module.NodeAddress(where.hostname, where.port)])


def _taking(module: Any) -> dict[str, Any]:
    """Return the options of SET that take a lock."""
    return {
        "conditional_set": module.ConditionalChange.ONLY_IF_DOES_NOT_EXIST,
        "expiry": module.ExpirySet(module.ExpiryType.SEC, TTL),
    }


BLOCKING: Mapping[str, Open] = {"ailf": ours, "redis-py": redis_py, "valkey-glide": glide, "bare socket": bare}

ASYNCIO: Mapping[str, OpenAsync] = {
    "ailf": async_ours,
    "redis-py": async_redis_py,
    "coredis": async_coredis,
    "valkey-glide": async_glide,
}
