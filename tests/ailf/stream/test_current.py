"""`current_delivery` in programs that leave a block in an unusual way."""

import asyncio

import ailf


def test_a_delivery_that_is_entered_twice() -> None:
    """The body that is left last has no current delivery behind it, although the first exit settled the message."""
    with ailf.connect("memory://") as backend, backend.stream("s").group("g").consumer() as consumer:
        backend.stream("s").add(1, headers={"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"})
        delivery = consumer.get(0)
        assert delivery is not None
        with delivery:
            with delivery:
                assert ailf.current_delivery() == delivery
            assert ailf.current_delivery() == delivery
            assert delivery.settled
        assert ailf.current_delivery() is None
        backend.stream("s").add(2)
        assert [entry.headers for entry in backend.stream("s").read()][1] == {}


def test_a_block_that_another_task_leaves() -> None:
    """A delivery that is left in another task than it was entered in is settled there."""

    async def main() -> None:
        async with ailf.connect_async("memory://") as backend, backend.stream("s").group("g").consumer() as consumer:
            await backend.stream("s").add(1)
            delivery = await consumer.get(0)
            assert delivery is not None
            await asyncio.create_task(delivery.__aenter__())
            assert ailf.current_delivery() is None
            await delivery.__aexit__(None, None, None)
            assert delivery.settled
            assert ailf.current_delivery() is None

    asyncio.run(main())
