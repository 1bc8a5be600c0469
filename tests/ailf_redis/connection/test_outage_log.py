"""The log of an outage: one line at its beginning and one at its end, whatever the program does meanwhile."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import ailf
from tests.support.servers import NewServer, Server

AWAY = 1.5


@pytest.fixture
def private(new_server: NewServer) -> Server:
    """A server of the test's own, which keeps its data when it restarts."""
    return new_server(appendonly=True)


def check(caplog: pytest.LogCaptureFixture) -> None:
    """Check that the two lines of one outage were logged, and no other warning."""
    lines = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(lines) == 2, lines
    assert "is unavailable" in lines[0]
    assert "is back after" in lines[1]


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    last = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.02)


def leave_for_a_while(server: Server) -> None:
    """Kill the server, and restart it after `AWAY` seconds."""
    server.kill()
    time.sleep(AWAY)
    server.restart()


def test_on_threads(private: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Two workers of several threads, a subscription, a lock that is renewed, and a waiter for it."""
    with ailf.connect(f"{private.url}?timeout=0.5&retry_for=0.3") as backend:
        done: list[Any] = []
        groups = [backend.stream("s").group(name) for name in ("one", "two")]
        works = [
            threading.Thread(target=each.process, args=(lambda d: done.append(d.data),), kwargs={"concurrency": 3})
            for each in groups
        ]
        lock = backend.lock("l", ttl=10)
        lease = lock.acquire()
        waiting = threading.Thread(target=lambda: done.append(lock.acquire().release()))
        with backend.pubsub().listen("c") as events:
            for each in (*works, waiting):
                each.start()
            backend.stream("s").add("before")
            until(lambda: len(done) == 2 and not any(each.info().pending for each in groups))
            leave_for_a_while(private)
            assert isinstance(events.get(20), ailf.Gap)
            until(lambda: _added(backend))
            until(lambda: len(done) == 4)
            lease.release()
            waiting.join(20)
        for group in groups:
            group.stop()
        for each in works:
            each.join(20)
    check(caplog)


def _added(backend: Any) -> bool:
    try:
        backend.stream("s").add("after")
    except ailf.BackendError:
        return False
    return True


def test_on_asyncio(private: Server, caplog: pytest.LogCaptureFixture) -> None:
    """The same on one event loop."""

    async def main() -> None:
        async with ailf.connect_async(f"{private.url}?timeout=0.5&retry_for=0.3") as backend:
            done: list[Any] = []

            async def handle(delivery: Any) -> None:
                done.append(delivery.data)

            groups = [backend.stream("s").group(name) for name in ("one", "two")]
            works = [asyncio.ensure_future(each.process(handle, concurrency=3)) for each in groups]
            lock = backend.lock("l", ttl=10)
            lease = await lock.acquire()
            waiting = asyncio.ensure_future(lock.acquire())
            async with backend.pubsub().listen("c") as events:
                await backend.stream("s").add("before")
                await _until(lambda: len(done) == 2)
                for group in groups:
                    await _settled(group)
                await asyncio.to_thread(leave_for_a_while, private)
                assert isinstance(await events.get(20), ailf.Gap)
                await backend.stream("s").add("after")
                await _until(lambda: len(done) == 4)
                await lease.release()
                await (await asyncio.wait_for(waiting, 20)).release()
            for group in groups:
                group.stop()
            await asyncio.wait_for(asyncio.gather(*works), 20)

    asyncio.run(main())
    check(caplog)


async def _settled(group: ailf.AsyncGroup) -> None:
    for _ in range(1000):
        if not (await group.info()).pending:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("its messages were not settled")


async def _until(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come true")


def test_an_idle_worker(private: Server, caplog: pytest.LogCaptureFixture) -> None:
    """An idle worker logs that the backend is back, although no message comes."""
    with ailf.connect(f"{private.url}?timeout=0.5&retry_for=0.3") as backend:
        group = backend.stream("s").group("g")
        work = threading.Thread(target=group.process, args=(lambda _: None,), kwargs={"concurrency": 3})
        work.start()
        until(lambda: group.info().consumers)
        leave_for_a_while(private)
        until(lambda: len(caplog.records) == 2)
        group.stop()
        work.join(20)
    check(caplog)


def test_an_idle_subscription(private: Server, caplog: pytest.LogCaptureFixture) -> None:
    """An idle subscription logs it too."""
    with ailf.connect(private.url) as backend, backend.pubsub().listen("c") as events:
        leave_for_a_while(private)
        assert isinstance(events.get(20), ailf.Gap)
    check(caplog)


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_a_server_that_is_down_at_the_start(private: Server, flavour: str) -> None:
    """The error's chain shows how the connection failed, and none of ailf's own machinery."""
    private.stop()

    async def on_asyncio() -> None:
        await ailf.connect_async(private.url)

    with pytest.raises(ailf.ConnectionLostError, match="Is the server running") as raised:
        asyncio.run(on_asyncio()) if flavour == "asyncio" else ailf.connect(private.url)
    chain: list[BaseException] = []
    error: BaseException | None = raised.value
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    assert all(isinstance(each, ailf.AilfError | OSError) or "redis" in type(each).__module__ for each in chain), chain
