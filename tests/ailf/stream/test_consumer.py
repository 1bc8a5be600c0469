"""What no backend of its own can show of a consumer: how it gives back what it holds."""

import asyncio
import time
from typing import Any

import pytest

import ailf
from ailf.driver import Draft, Outcome
from ailf.runtime import run
from ailf.stream.group_flow import SETTLED_AT_ONCE
from ailf.testing import ManualClock
from ailf_memory import AsyncMemoryBackend
from ailf_memory.stream import MemoryStreamDriver

COUNT = 5 * SETTLED_AT_ONCE


def test_a_message_that_is_given_back_is_not_lost(
    namespace: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """S4: while a consumer leaves step by step, the leases that it has given back are not reported as lost."""
    leave = MemoryStreamDriver.leave

    async def leave_slowly(self: MemoryStreamDriver, *args: Any) -> None:
        await leave(self, *args)
        time.sleep(0.6)  # noqa: ASYNC251 - it runs in a thread; two renewals become due

    monkeypatch.setattr(MemoryStreamDriver, "leave", leave_slowly)
    with ailf.connect(f"memory://{namespace}") as backend:
        backend.stream("s").add_many(range(10))
        with backend.stream("s").group("g", lease=0.6).consumer(prefetch=10) as consumer:
            assert consumer.get(1) is not None
    assert caplog.messages == []


def test_messages_not_started_are_released_in_pages(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """S14: a request releases at most `SETTLED_AT_ONCE` messages; all are available, the attempt unchanged."""
    sizes = watched(monkeypatch)
    with ailf.connect(f"memory://{namespace}") as backend:
        stream = backend.stream("s")
        stream.add_many(range(COUNT + 1))
        group = stream.group("g")
        group.process(lambda _: group.stop(), prefetch=COUNT + 1)
        assert max(sizes) == SETTLED_AT_ONCE
        with group.consumer(prefetch=COUNT) as consumer:
            again = [consumer.get(0) for _ in range(COUNT)]
            assert sorted((each.data, each.attempt) for each in again if each) == [(n, 1) for n in range(1, COUNT + 1)]


def test_releasing_ends_at_its_deadline(
    namespace: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """S14: a backend that is too slow for all pages holds up no stop; the log says so."""
    sizes = watched(monkeypatch, seconds=0.2)
    monkeypatch.setattr("ailf.stream.consumer_flow.LEAVING", 0.3)
    with ailf.connect(f"memory://{namespace}") as backend:
        backend.stream("s").add_many(range(COUNT))
        group = backend.stream("s").group("g")
        group.process(lambda _: group.stop(), prefetch=COUNT)
        assert sizes.count(SETTLED_AT_ONCE) == 2
    (line,) = caplog.messages
    assert line.endswith("when their leases end: release 299 of 499 messages of group 'g' of stream 's': out of time")


def test_undecodable_messages_are_rejected_in_pages(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """S13: a request makes at most `SETTLED_AT_ONCE` entries dead letters, however many can't be decoded."""
    with ailf.connect(f"memory://{namespace}") as backend:
        added: Any = backend.engine.driver.stream().add("s", [Draft(b"{")] * COUNT, retention=None)
        run(added)
        group = backend.stream("s").group("g")
        sizes = watched(monkeypatch)
        with group.consumer(prefetch=COUNT) as consumer:
            assert consumer.get(0) is None
        assert sizes == [SETTLED_AT_ONCE] * 5
        assert group.info().dead == COUNT


def watched(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> list[int]:
    """Note the size of each request that settles messages, and let those of more than one take some seconds."""
    sizes: list[int] = []
    settle = MemoryStreamDriver.settle

    async def noted(self: MemoryStreamDriver, *args: Any, **options: Any) -> list[Outcome]:
        sizes.append(len(args[2]))
        time.sleep(seconds if len(args[2]) > 1 else 0)  # noqa: ASYNC251 - it runs in a thread
        return await settle(self, *args, **options)

    monkeypatch.setattr(MemoryStreamDriver, "settle", noted)
    return sizes


def test_a_wait_of_hardly_any_time_stops_no_loop() -> None:
    """On a clock that stands still, the event loop goes on while the next fetch is the rounding of a time away."""

    async def main() -> None:
        async with AsyncMemoryBackend(ManualClock()) as backend:
            consumer = backend.stream("s").group("g").consumer()
            async with consumer:
                waiting = asyncio.ensure_future(consumer.get())
                await asyncio.sleep(0.05)
                wait = consumer._flow._wait
                assert wait is not None
                wait.fetch_at = 5e-324
                wait.waiter.interrupt()
                await asyncio.sleep(0.05)
                waiting.cancel()

    asyncio.run(main())


def test_a_batch_that_is_lost_takes_no_more_time() -> None:
    """S18: if the leases of all messages end while more are awaited, the call goes on for the rest of its timeout."""

    async def main() -> None:
        clock = ManualClock()
        async with AsyncMemoryBackend(clock) as backend:
            stream = backend.stream("s")
            await stream.add(1)
            async with stream.group("g", lease=10, max_processing=10, max_deliveries=1).consumer() as consumer:
                taking = asyncio.ensure_future(consumer._flow.next_many(2, timeout=100, linger=20))
                await asyncio.sleep(0.05)
                clock.advance(20)
                await asyncio.sleep(0.05)
                assert not taking.done()
                clock.advance(80)
                assert await asyncio.wait_for(taking, 5) == []

    asyncio.run(main())
