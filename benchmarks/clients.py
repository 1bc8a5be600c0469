"""The clients that `calls.py` compares: how each publishes, adds, locks and limits.

Each is a context manager over a URL. It yields a function for each call's name, which makes the call of one caller:
each caller locks a name of its own, and all publish to a channel without listeners.
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
"""Seconds for which a lock is granted."""

PLENTY: Final = 1_000_000_000
"""The calls that a limit allows in an hour: more than are made."""

WINDOW: Final = """
local count = redis.call('INCR', KEYS[1])
if count == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return count <= tonumber(ARGV[1]) and 1 or 0
"""
"""The shortest limiter: it counts the calls of a window."""

HOUR_MS: Final = 3_600_000

UNLOCK: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


# --- calls that are written the same, blocking or awaited --------------------------------------------------------


def _of_ailf(backend: Any, lock_calls: Callable[[int], Any]) -> dict[str, Callable[[int], Any]]:
    pubsub = backend.pubsub(type=bytes)
    stream = backend.stream("bench", type=bytes)
    limiter = backend.rate_limiter("bench", ailf.TokenBucket(PLENTY, per=3600.0))
    return {
        "publish": lambda _: lambda: pubsub.publish("bench", BODY),
        "add": lambda _: lambda: stream.add(BODY),
        "lock": lock_calls,
        "limit": lambda _: lambda: limiter.try_acquire("user"),
    }


def _of_redis_py(client: Any, lock_calls: Callable[[int], Any]) -> dict[str, Callable[[int], Any]]:
    count = client.register_script(WINDOW)
    return {
        "publish": lambda _: lambda: client.publish("bench", BODY),
        "add": lambda _: lambda: client.xadd("bench", {"body": BODY}),
        "lock": lock_calls,
        "limit": lambda _: lambda: count(["window"], [PLENTY, HOUR_MS]),
    }


# --- blocking ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ours(url: str) -> Iterator[Calls]:
    """Yield ailf's calls."""
    with ailf.connect(url) as backend:

        def lock_calls(caller: int) -> Call:
            lock = backend.lock(f"bench-{caller}", ttl=TTL)
            return lambda: lock.acquire(0).release()

        yield _of_ailf(backend, lock_calls)


@contextlib.contextmanager
def redis_py(url: str) -> Iterator[Calls]:
    """Yield redis-py's calls."""
    with redis.Redis.from_url(url) as client:

        def lock_calls(caller: int) -> Call:
            lock = client.lock(f"bench-{caller}", timeout=TTL)

            def acquire_and_release() -> None:
                lock.acquire(blocking=False)
                lock.release()

            return acquire_and_release

        yield _of_redis_py(client, lock_calls)


@contextlib.contextmanager
def glide(url: str) -> Iterator[Calls]:
    """Yield valkey-glide's calls."""
    module = bench.peer("glide_sync")
    client = module.GlideClient.create(_glide_config(module, url))
    count, unlock = module.Script(WINDOW), module.Script(UNLOCK)
    taking = _taking(module)

    def lock_calls(caller: int) -> Call:
        def acquire_and_release() -> None:
            token = uuid.uuid4().hex
            client.set(f"bench-{caller}", token, **taking)
            client.invoke_script(unlock, [f"bench-{caller}"], [token])

        return acquire_and_release

    try:
        yield {
            "publish": lambda _: lambda: client.publish(BODY, "bench"),
            "add": lambda _: lambda: client.xadd("bench", [("body", BODY)]),
            "lock": lock_calls,
            "limit": lambda _: lambda: client.invoke_script(count, ["window"], [str(PLENTY), str(HOUR_MS)]),
        }
    finally:
        client.close()


@contextlib.contextmanager
def bare(url: str) -> Iterator[Calls]:
    """Yield a socket's calls: it sends the bytes that ailf would send, and reads once."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def sending(*command: Any) -> Call:
            data = hiredis.pack_command(command)

            def send() -> None:
                connection.sendall(data)
                connection.recv(65536)

            return send

        publish, add = sending("PUBLISH", "ailf:channel:bench", BODY), sending("XADD", "ailf:bench", "*", "body", BODY)
        yield {"publish": lambda _: publish, "add": lambda _: add}


# --- asyncio -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def async_ours(url: str) -> AsyncIterator[AsyncCalls]:
    """Yield ailf's calls."""
    async with ailf.connect_async(url) as backend:

        def lock_calls(caller: int) -> AsyncCall:
            lock = backend.lock(f"bench-{caller}", ttl=TTL)

            async def acquire_and_release() -> None:
                await (await lock.acquire(0)).release()

            return acquire_and_release

        yield _of_ailf(backend, lock_calls)


@contextlib.asynccontextmanager
async def async_redis_py(url: str) -> AsyncIterator[AsyncCalls]:
    """Yield redis-py's calls."""
    async with aredis.Redis.from_url(url) as client:

        def lock_calls(caller: int) -> AsyncCall:
            lock = client.lock(f"bench-{caller}", timeout=TTL)

            async def acquire_and_release() -> None:
                await lock.acquire(blocking=False)
                await lock.release()

            return acquire_and_release

        yield _of_redis_py(client, lock_calls)


@contextlib.asynccontextmanager
async def async_coredis(url: str) -> AsyncIterator[AsyncCalls]:
    """Yield coredis' calls."""
    module, locks = bench.peer("coredis"), bench.peer("coredis.patterns.lock")
    async with module.Redis.from_url(url) as client:
        sha = await client.script_load(WINDOW)

        def lock_calls(caller: int) -> AsyncCall:
            lock = locks.Lock(client, f"bench-{caller}", timeout=TTL, blocking=False)

            async def acquire_and_release() -> None:
                await lock.acquire()
                await lock.release()

            return acquire_and_release

        yield {
            "publish": lambda _: lambda: client.publish("bench", BODY),
            "add": lambda _: lambda: client.xadd("bench", {"body": BODY}),
            "lock": lock_calls,
            "limit": lambda _: lambda: client.evalsha(sha, ["window"], [PLENTY, HOUR_MS]),
        }


@contextlib.asynccontextmanager
async def async_glide(url: str) -> AsyncIterator[AsyncCalls]:
    """Yield valkey-glide's calls."""
    module = bench.peer("glide")
    client = await module.GlideClient.create(_glide_config(module, url))
    count, unlock = module.Script(WINDOW), module.Script(UNLOCK)
    taking = _taking(module)

    def lock_calls(caller: int) -> AsyncCall:
        async def acquire_and_release() -> None:
            token = uuid.uuid4().hex
            await client.set(f"bench-{caller}", token, **taking)
            await client.invoke_script(unlock, [f"bench-{caller}"], [token])

        return acquire_and_release

    try:
        yield {
            "publish": lambda _: lambda: client.publish(BODY, "bench"),
            "add": lambda _: lambda: client.xadd("bench", [("body", BODY)]),
            "lock": lock_calls,
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
