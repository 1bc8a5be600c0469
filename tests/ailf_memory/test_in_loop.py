"""On asyncio, messages of a backend in this process take no turn of the event loop, and stop no other task."""

import asyncio
from typing import Any

import pytest

from ailf.runtime import AsyncioRuntime
from ailf_memory import AsyncMemoryBackend


async def _work(stream: Any, consumer: Any) -> None:
    await stream.add("task")
    delivery = await consumer.get()
    await delivery.ack()


def test_a_message_takes_no_turn() -> None:
    """Adding, getting and acking a message end without a suspension."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("tasks")
            async with stream.group("g").consumer() as consumer:
                await _work(stream, consumer)
                for _ in range(10):
                    with pytest.raises(StopIteration):
                        _work(stream, consumer).send(None)

    asyncio.run(scenario())


@pytest.mark.parametrize("timeout", [None, 0])
def test_other_tasks_run(timeout: float | None) -> None:
    """A task that always finds a message, or polls for one, lets other tasks run every fifty fetches."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream, turns = backend.stream("tasks"), list[int]()

            async def count() -> None:
                while True:
                    turns.append(1)
                    await asyncio.sleep(0)

            async with stream.group("g").consumer() as consumer:
                await _work(stream, consumer)
                other = asyncio.create_task(count())
                for _ in range(500):
                    if timeout is None:
                        await _work(stream, consumer)
                    else:
                        await consumer.get(timeout)
                other.cancel()
            assert 9 <= len(turns) <= 100

    asyncio.run(scenario())


def test_user_code_is_awaited() -> None:
    """An `on_event` that waits stops no loop; a caller that is cancelled meanwhile loses no message."""
    events: list[object] = []

    async def on_event(event: object) -> None:
        events.append(event)
        await asyncio.sleep(0.05)

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("tasks")
            await stream.add(1)
            group = stream.group("g", on_event=on_event)
            async with group.consumer() as consumer:
                await group.delete()  # so the next fetch reports a `GroupReset`
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(consumer.get(), 0.01)
                delivery = await consumer.get(1)
                assert delivery is not None
                assert delivery.data == 1
                assert len(events) == 1

    asyncio.run(scenario())


def test_a_cancelled_inline_run_is_run_anew() -> None:
    """If the caller in whose task a single flight runs is cancelled, one of those that wait for it runs it."""

    async def scenario() -> None:
        flight, runs, finish = AsyncioRuntime().single_flight(), list[str](), asyncio.Event()

        async def flow() -> None:
            runs.append("begun")
            await finish.wait()
            runs.append("ended")

        first = asyncio.create_task(flight.run_inline(flow))
        await asyncio.sleep(0)
        others = [asyncio.create_task(flight.run_inline(flow)), asyncio.create_task(flight.run(flow))]
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0.01)
        finish.set()
        await asyncio.gather(*others)
        assert first.cancelled()
        assert runs == ["begun", "begun", "ended"]

    asyncio.run(scenario())
