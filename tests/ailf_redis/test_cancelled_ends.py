"""The end of a block on asyncio whose task is cancelled while it waits for the server, once or again and again."""

import asyncio
import logging
import subprocess
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

import ailf
from ailf_redis import AsyncRedisBackend
from contract_tests.helpers.processes import running
from contract_tests.helpers.tasks import cancel
from tests.support.servers import Server

LONG = 60.0
"""Seconds that leases last: what is free again within a test was given back."""

HOLDS: dict[str, Callable[[ailf.AsyncBackend], Any]] = {
    "lock": lambda backend: backend.lock("l", ttl=LONG).hold(),
    "limiter": lambda backend: backend.rate_limiter("r", ailf.Concurrency(1, ttl=LONG)).hold(),
    "semaphore": lambda backend: backend.semaphore("s", 1, ttl=LONG),
}


def drop_clients(server: Server) -> None:
    """Close the connections of all clients."""
    with server.client() as admin:
        admin.execute_command("CLIENT", "KILL", "TYPE", "normal")


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Wait until a condition is true."""
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110 - it asks a server
            await asyncio.sleep(0.02)


async def cancelled(block: Coroutine[Any, Any, Any], leaves: asyncio.Event, *, again: bool) -> None:
    """Cancel a block that begins to end, once or at each step."""
    task = asyncio.ensure_future(block)
    async with asyncio.timeout(10):
        await leaves.wait()
    await cancel(task, at_each_step=again)
    await asyncio.wait([task], timeout=20)
    assert task.cancelled()


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("error", [None, ValueError("of the block")])
@pytest.mark.parametrize("hold", HOLDS)
def test_a_release_that_is_cancelled(private: Server, hold: str, error: Exception | None, again: bool) -> None:
    """A release that waits for a new connection is made nevertheless."""

    async def main() -> None:
        async with AsyncRedisBackend(private.url) as backend, AsyncRedisBackend(private.url) as other:
            leaves = asyncio.Event()

            async def block() -> None:
                async with HOLDS[hold](backend):
                    drop_clients(private)
                    leaves.set()
                    if error is not None:
                        raise error

            async def take() -> None:
                async with HOLDS[hold](other):
                    pass

            await cancelled(block(), leaves, again=again)
            await asyncio.wait_for(take(), 10)

    asyncio.run(main())


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("error", [None, ValueError("of the block")])
def test_a_settlement_that_is_cancelled(
    private: Server, error: Exception | None, again: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A settlement that waits for a new connection is made, and its consumer, which lives on, keeps no lease."""

    async def main() -> None:
        async with AsyncRedisBackend(private.url) as backend:
            leaves = asyncio.Event()
            await backend.stream("s").add(1)
            group = backend.stream("s").group("g", lease=1, takeover=1, backoff=ailf.Backoff(0))

            async def settled() -> bool:
                return (await group.info()).pending == 0

            async with group.consumer() as consumer:

                async def block() -> None:
                    async with await consumer.take(5):
                        drop_clients(private)
                        leaves.set()
                        if error is not None:
                            raise error

                await cancelled(block(), leaves, again=again)
                if error is None:
                    await until(settled)
                else:
                    delivery = await consumer.take(10)
                    assert delivery.attempt == 2
                    await delivery.ack()
                await asyncio.sleep(1.5)
                assert await settled()

    asyncio.run(main())
    told = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert [each for each in told if "unavailable" not in each and "back after" not in each] == []


def test_an_ack_that_is_cancelled(private: Server, caplog: pytest.LogCaptureFixture) -> None:
    """An ack of the body whose reply was not awaited is no lost lease when the block ends."""
    events: list[Any] = []

    async def main() -> None:
        async with AsyncRedisBackend(private.url) as backend:
            await backend.stream("s").add(1)
            group = backend.stream("s").group("g", lease=LONG, on_event=events.append)
            async with group.consumer() as consumer:
                acks = asyncio.Event()

                async def block() -> None:
                    async with await consumer.take(5) as delivery:
                        private.pause()
                        asyncio.get_running_loop().call_later(0.2, private.resume)
                        acks.set()
                        await delivery.ack()

                await cancelled(block(), acks, again=False)
                assert (await group.info()).pending == 0

    asyncio.run(main())
    assert events == []
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("options", [{"concurrency": 2}, {"concurrency": 2, "threads": True}, {"batch": 2}])
def test_a_worker_whose_handlers_end_slowly(any_server: Server, namespace: str, options: dict[str, Any]) -> None:
    """A worker that is cancelled again leaves its group when its handlers have ended, with nothing in hand."""

    async def main() -> None:
        async with ailf.connect_async(f"{any_server.url}?namespace={namespace}") as backend:
            await backend.stream("s").add_many(range(6))
            group = backend.stream("s").group("g", lease=LONG, takeover=LONG)
            begun = asyncio.Event()

            async def handle(_: Any) -> None:
                begun.set()
                try:
                    await asyncio.sleep(10)
                finally:
                    await asyncio.sleep(0.2)

            loop = asyncio.get_running_loop()
            handler: Any = (lambda _: loop.call_soon_threadsafe(begun.set)) if "threads" in options else handle

            async def left() -> bool:
                info = await group.info()
                return (info.pending, info.consumers) == (0, {})

            await cancelled(group.process(handler, **options), begun, again=True)
            await until(left)

    asyncio.run(main())


ENDING = """
import asyncio, sys, anyio, ailf

async def main():
    with anyio.move_on_after(0.5):
        async with (
            ailf.connect_async(sys.argv[1]) as backend,
            backend.stream("s").group("g", lease=60, takeover=60).consumer(prefetch=5) as consumer,
            await consumer.take(5),
        ):
            await asyncio.sleep(5)

anyio.run(main)
"""


def test_a_program_that_ends_with_its_scope(any_server: Server, namespace: str) -> None:
    """A program that ends right after a scope of anyio has given back its messages, and left the group."""
    url = f"{any_server.url}?namespace={namespace}"
    with ailf.connect(url) as backend:
        with backend.stream("s").group("g").consumer():
            pass  # the server has the script of leaving: nothing is sent twice
        backend.stream("s").add_many(range(5))
        with running("-c", ENDING, url, stderr=subprocess.PIPE) as process:
            _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")
        info = backend.stream("s").group("g").info()
        assert (info.pending, info.consumers) == (0, {})
