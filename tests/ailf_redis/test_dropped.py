"""A backend that is dropped without being closed warns, and closes its connections and threads."""

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from textwrap import dedent
from typing import Any

import pytest
import redis
import redis.asyncio

import ailf
from ailf_memory import AsyncMemoryBackend, MemoryBackend
from ailf_redis import AsyncRedisBackend, RedisBackend, RedisLock
from tests.support.servers import Server

pytestmark = pytest.mark.filterwarnings("default::ResourceWarning")


@contextlib.contextmanager
def dropped(*urls: str) -> Iterator[None]:
    """Expect that the backends are dropped here, that each warns once, and that there is no other warning."""
    threads = set(threading.enumerate())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
        messages = [str(each.message) for each in caught if each.category is ResourceWarning]
    assert len(messages) == len(urls), messages
    for url in urls:
        assert sum(f"the backend {url} was dropped without being closed" in each for each in messages) == 1, messages
    assert soon(lambda: not [each for each in threading.enumerate() if each not in threads and each.is_alive()])


def soon(condition: Callable[[], object]) -> bool:
    """Wait up to 10 s for a condition; return whether it holds."""
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return bool(condition())


def connections(server: Server) -> int:
    """Return how many connections a server has, without the one that asks."""
    with redis.Redis(port=server.port, password=server.password) as raw:
        return len(raw.client_list()) - 1


def use(backend: Any) -> None:
    """Use everything that takes a connection or a thread, and release nothing."""
    subscription = backend.pubsub().listen("c")
    subscription.__enter__()
    backend.stream("s").add(1)
    consumer = backend.stream("s").group("g").consumer()
    consumer.get(1)
    backend.lock("l").acquire()
    backend.rate_limiter("r", "5 parallel").acquire()


async def use_async(backend: Any) -> None:
    """Do the same on asyncio."""
    subscription = backend.pubsub().listen("c")
    await subscription.__aenter__()
    await backend.stream("s").add(1)
    consumer = backend.stream("s").group("g").consumer()
    await consumer.get(1)
    await backend.lock("l").acquire()
    await backend.rate_limiter("r", "5 parallel").acquire()


def test_blocking(private: Server) -> None:
    """Connections are closed, threads end, and the warning has no password."""
    with dropped(f"redis://127.0.0.1:{private.port}/0"):
        use(ailf.connect(f"redis://default:@127.0.0.1:{private.port}/0"))
    assert soon(lambda: connections(private) == 0)


def test_objects_keep_it_alive(private: Server) -> None:
    """As long as an object of the backend can be used, the backend isn't dropped."""
    url = f"redis://127.0.0.1:{private.port}/0"
    with dropped():
        stream = ailf.connect(url).stream("s")
        gc.collect()
        stream.add(1)
    with dropped(url):
        del stream
    assert soon(lambda: connections(private) == 0)


def test_a_standalone_object(private: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropping a standalone object drops the backend that it opened."""
    monkeypatch.setenv("AILF_URL", private.url)
    with dropped(f"redis://127.0.0.1:{private.port}/0"):
        RedisLock("l").try_acquire()
    assert soon(lambda: connections(private) == 0)


def test_asyncio_while_its_loop_runs(private: Server) -> None:
    """Connections are closed too if the garbage collector runs in another thread."""
    url = f"redis://127.0.0.1:{private.port}/0"

    async def main(collect: Callable[[], Any]) -> None:
        await use_async(await ailf.connect_async(url))
        await asyncio.sleep(0)
        await asyncio.to_thread(gc.collect)
        collect()
        assert await asyncio.to_thread(soon, lambda: connections(private) == 0)

    gc.disable()
    try:
        with dropped(url):
            asyncio.run(main(gc.collect))
    finally:
        gc.enable()


def test_asyncio_after_its_loop(private: Server) -> None:
    """Sockets are closed without the loop, and neither asyncio nor redis-py complain about them."""
    url = f"redis://127.0.0.1:{private.port}/0"
    kept: list[Any] = []

    async def main() -> None:
        backend = await ailf.connect_async(url)
        await use_async(backend)
        kept.append(backend)

    with dropped(url):
        asyncio.run(main())
        kept.clear()
    assert soon(lambda: connections(private) == 0)


def test_user_clients(private: Server) -> None:
    """A backend over the user's client does the same, and the client stays usable."""
    with redis.Redis(port=private.port) as client:
        with dropped(f"redis://localhost:{private.port}/0"):
            use(RedisBackend.from_client(client))
        client.flushall()  # the leases

    async def main() -> None:
        async with redis.asyncio.Redis(port=private.port) as other:
            backend = AsyncRedisBackend.from_client(other)
            await use_async(backend)
            kept.append(backend)

    kept: list[Any] = []
    with dropped(f"redis://localhost:{private.port}/0"):
        asyncio.run(main())
        kept.clear()
    assert soon(lambda: connections(private) == 0)


def test_what_needs_no_warning(private: Server) -> None:
    """A backend that was closed, one that was never used, and one in memory have nothing to release."""
    with dropped():
        use_and_close = ailf.connect(private.url)
        use(use_and_close)
        use_and_close.close()
        del use_and_close
        RedisBackend(private.url)
        AsyncRedisBackend(private.url)
        ailf.connect_async(private.url)
        memory = MemoryBackend()
        memory.stream("s").add(1)
        memory.lock("l").acquire()
        del memory

        async def main() -> None:
            backend = AsyncMemoryBackend()
            await backend.stream("s").add(1)

        asyncio.run(main())
    assert soon(lambda: connections(private) == 0)


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_subscriptions_in_memory(flavour: str) -> None:
    """A dropped memory backend ends the readers of its subscriptions, and the store forgets them."""
    store = MemoryBackend().store

    async def main() -> None:
        await AsyncMemoryBackend(store=store, url="memory://shop").pubsub().listen("c").__aenter__()

    with dropped("memory://shop"):
        if flavour == "asyncio":
            asyncio.run(main())
        else:
            MemoryBackend(store=store, url="memory://shop").pubsub().listen("c").__enter__()
    assert not store.listeners


def test_nothing_is_said_at_the_end_of_a_program(private: Server) -> None:
    """A program that ends with an open backend gets no warning."""
    program = """
        import sys, ailf
        backend = ailf.connect(sys.argv[1])
        subscription = backend.pubsub().listen("c")
        subscription.__enter__()
        lease = backend.lock("l").acquire()
    """
    command = [sys.executable, "-W", "error", "-c", dedent(program), private.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
