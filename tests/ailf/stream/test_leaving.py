"""A consumer leaves its group while its own events are handled."""

import asyncio
import time
from typing import Any

import pytest

import ailf
from contract_tests.helpers.tasks import cancel

OPTIONS: dict[str, Any] = {"max_processing": 0.3, "takeover": 0.3, "lease": 0.3}


def test_an_event_closes_the_consumer() -> None:
    """`on_event` may close the consumer whose delivery waits for it: neither waits for the other."""
    with ailf.connect("memory://") as backend:
        backend.stream("s").add_many([1, 2, 3])
        opened: list[ailf.Consumer[Any]] = []
        group = backend.stream("s").group("g", on_event=lambda _: opened[0].close(), **OPTIONS)
        with group.consumer(prefetch=3) as consumer:
            opened.append(consumer)
            begin = time.monotonic()
            with pytest.raises(ailf.LeaseLostError), consumer.take(5):
                time.sleep(1)
            assert time.monotonic() - begin < 4
        assert group.info().pending == 0


@pytest.mark.parametrize("again", [False, True])
def test_an_event_closes_the_consumer_of_a_cancelled_block(again: bool) -> None:
    """The same on asyncio, where the block is cancelled when its lease has ended."""

    async def main() -> None:
        async with ailf.connect_async("memory://") as backend:
            await backend.stream("s").add_many([1, 2, 3])
            opened: list[ailf.AsyncConsumer[Any]] = []

            async def close(_: object) -> None:
                await opened[0].aclose()

            group = backend.stream("s").group("g", on_event=close, **OPTIONS)
            entered = asyncio.Event()

            async def block() -> None:
                async with group.consumer(prefetch=3) as consumer:
                    opened.append(consumer)
                    async with await consumer.take(5):
                        entered.set()
                        await asyncio.sleep(5)

            task = asyncio.ensure_future(block())
            await entered.wait()
            await asyncio.sleep(1)
            await cancel(task, at_each_step=again)
            await asyncio.wait([task], timeout=3)
            assert task.cancelled()
            assert (await group.info()).pending == 0

    asyncio.run(main())
