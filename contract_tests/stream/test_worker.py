"""S: `process` and its handlers, on every backend."""

import asyncio
import signal
from typing import Any

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.fixtures import needs
from contract_tests.helpers.processes import running
from contract_tests.helpers.threads import in_thread
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM,)


async def test_outcomes_of_handlers(world: World) -> None:
    """S15: the result or error of a handler settles its own message and no other."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", max_deliveries=2, backoff=ailf.Backoff(initial=0.0))
    await stream.add_many(["fine", "false", "raises", "rejects", "also fine"])
    seen: list[tuple[str, int]] = []

    async def handler(delivery: Any) -> Any:
        seen.append((delivery.data, delivery.attempt))
        if len(seen) == 7:
            group.stop()
        if delivery.data == "raises":
            raise ZeroDivisionError("by zero")
        if delivery.data == "rejects":
            raise ailf.Reject("no use")
        return delivery.data != "false"

    await world.within_patience(group.process(handler))
    assert sorted(seen) == sorted(
        [("fine", 1), ("false", 1), ("raises", 1), ("rejects", 1), ("also fine", 1), ("false", 2), ("raises", 2)]
    )
    letters = {each.body: (each.reason, each.error, each.attempts) for each in await group.dead_letters.list()}
    assert letters == {
        b'"rejects"': ("rejected", "no use", 1),
        b'"false"': ("max_deliveries", "the handler returned False", 2),
        b'"raises"': ("max_deliveries", "ZeroDivisionError: by zero", 2),
    }


class OddError(Exception):
    """An error whose `str()` fails."""

    def __str__(self) -> str:
        return self.args[5]  # type: ignore[no-any-return]


HALF = b"\xed\xa0\xbd".decode("utf-8", "surrogatepass")
"""Half of a surrogate pair, as from an emoji that was cut: it can't be encoded."""

ODD_ERRORS: tuple[BaseException, ...] = (
    asyncio.CancelledError("of its own"),
    OddError("x"),
    ValueError(f"cut {HALF} off"),
    ValueError("x" * 5_000_000),
    ValueError("a\0b"),
    ailf.Reject(HALF),
    ExceptionGroup("group", [OddError("y"), ValueError(HALF)]),
)


async def test_odd_errors(world: World) -> None:
    """S15, S5: any error of a handler affects only its own delivery, and the dead letter has a readable text."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", max_deliveries=1)
    count = len(ODD_ERRORS)
    await stream.add_many(range(2 * count))
    fine: list[int] = []

    def handler(delivery: Any) -> None:
        if delivery.data % 2 == 0:
            raise ODD_ERRORS[delivery.data // 2]
        fine.append(delivery.data)
        if len(fine) == count:
            group.stop()

    await world.within_patience(group.process(handler, concurrency=3))
    assert sorted(fine) == list(range(1, 2 * count, 2))
    letters = sorted(await group.dead_letters.list(), key=lambda each: int(each.body))
    assert [int(each.body) for each in letters] == list(range(0, 2 * count, 2))
    texts = [each.error for each in letters]
    assert texts[0] == "CancelledError: of its own"
    assert texts[1] == "OddError: <no text: OddError.__str__ raised IndexError>"
    assert texts[2] == r"ValueError: cut \ud83d off"
    assert texts[3] == "ValueError: " + "x" * (len(texts[3]) - 12)
    assert texts[4] == "ValueError: a\0b"
    assert texts[5] == r"\ud83d"
    assert texts[6].endswith(r"ValueError: \ud83d")
    assert max(map(len, texts)) <= 2000


async def test_reasons(world: World) -> None:
    """S15: the reason of a nack or reject is stored as encodable text; a reason that is not text is refused."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", max_deliveries=1)
    await stream.add_many(range(3))
    async with group.consumer() as consumer:
        await (await world.take(consumer)).nack(reason=f"cut {HALF} off")
        await (await world.take(consumer)).reject(HALF)
        last = await world.take(consumer)
        with pytest.raises(ailf.InvalidArgumentError):
            await last.reject(None)
        await last.ack()
    assert [each.error for each in await group.dead_letters.list()] == [r"cut \ud83d off", r"\ud83d"]


async def test_retries(world: World) -> None:
    """S15, S7: a handler that raises Retry gets its message again after the delay of the Retry, and not before."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", max_deliveries=3, takeover=1000, backoff=ailf.Backoff(initial=0.0))
    await stream.add("retried")
    seen: list[float] = []
    errors = [ailf.Retry("at once"), ailf.Retry("busy", delay=world.lease), ailf.Retry(delay=0)]

    async def handler(delivery: Any) -> None:
        seen.append(world.harness.now())
        if delivery.attempt == 3:
            group.stop()
        raise errors[delivery.attempt - 1]

    working = asyncio.ensure_future(group.process(handler))
    await world.until(lambda: len(seen) == 2)
    await asyncio.sleep(0.05)
    assert len(seen) == 2
    await world.advance(world.lease)
    await world.within_patience(working)
    assert seen[2] - seen[1] >= world.lease - 0.002
    assert [(each.reason, each.error, each.attempts) for each in await group.dead_letters.list()] == [
        ("max_deliveries", str(errors[2]), 3)
    ]
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(ailf.InvalidArgumentError):
            ailf.Retry("when", delay=wrong)


async def test_concurrency(world: World) -> None:
    """S15: n handlers run at once if there is work, and never more; a handler that hangs delays no other."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g")
    await stream.add_many(range(30))
    running, most, done = 0, 0, 0
    release = asyncio.Event()

    async def handler(delivery: Any) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        if delivery.data == 0:
            await release.wait()
        else:
            await asyncio.sleep(0.005)
        running -= 1
        done += 1

    working = asyncio.ensure_future(group.process(handler, concurrency=4, prefetch=3))
    await world.until(lambda: done == 29)
    release.set()
    await world.until(lambda: done == 30)
    group.stop()
    await world.within_patience(working)
    assert most == 4


async def test_drain(world: World) -> None:
    """S14: stop gives back unstarted messages at once, with the same attempt, and waits for the running handlers."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", lease=60)
    await stream.add_many(range(10))
    begun, ended = [], []
    go_on = asyncio.Event()

    async def handler(delivery: Any) -> None:
        begun.append(delivery.data)
        await go_on.wait()
        ended.append(delivery.data)

    working = asyncio.ensure_future(group.process(handler, concurrency=2, prefetch=8, drain=5))
    await world.until(lambda: len(begun) == 2)
    group.stop()
    await asyncio.sleep(0.1)
    assert not working.done()
    if world.flavour == "asyncio":  # on threads the caller's loop gives the buffer back only after its own handler
        async with group.consumer(prefetch=20) as other:
            assert [(d.data, d.attempt) for d in [await world.take(other) for _ in range(8)]] == [
                (number, 1) for number in range(2, 10)
            ]
    go_on.set()
    await world.within_patience(working)
    assert sorted(ended) == sorted(begun) == [0, 1]
    async with group.consumer() as other:
        assert sorted([(await world.take(other)).data for _ in range(8)]) == list(range(2, 10))
        await world.expect_none(other)


async def test_process_messages(world: World) -> None:
    """S15: process_messages passes plain payloads to its handler, also those added before create_consumer_group."""
    backend = await world.connect()
    stream = backend.stream("s")
    with pytest.raises(ailf.InvalidArgumentError, match="create_consumer_group"):
        await stream.process_messages(print)
    await stream.add({"n": 1})
    await stream.create_consumer_group("workers", "worker-1")
    await stream.add({"n": 2})
    got: list[Any] = []

    async def handler(task: Any) -> bool:
        got.append(task["n"])
        if len(got) == 2:
            stream.stop()
        return True

    await world.within_patience(stream.process_messages(handler))
    assert got == [1, 2]
    async with stream.group("workers").consumer() as consumer:
        await world.expect_none(consumer)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
@needs(Capability.PROCESSES, "url")
async def test_signals(world: World, number: signal.Signals) -> None:
    """S14: on SIGTERM or Ctrl-C process_messages finishes the running handler and gives back the rest at once."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.add_many(range(10))
    program = PROGRAMS[world.flavour]
    async with backend.pubsub().listen("begun") as begun:
        with running("-c", program, str(world.harness.url)) as child:
            assert await begun.get(4 * world.patience) == ailf.Message("begun", 0)
            child.send_signal(number)
            assert await world.within_patience(in_thread(child.wait)) == 0
    async with stream.group("g").consumer() as consumer:
        left = [await world.take(consumer) for _ in range(9)]
        assert sorted((each.data, each.attempt) for each in left) == [(number, 1) for number in range(1, 10)]


PROGRAMS = {
    "blocking": """if True:
        import sys, time, ailf

        with ailf.connect(sys.argv[1]) as backend:
            stream, pubsub = backend.stream("s"), backend.pubsub()
            stream.create_consumer_group("g", "w")

            def handler(task):
                pubsub.publish("begun", task)
                time.sleep(0.3)

            stream.process_messages(handler, prefetch=5)
    """,
    "asyncio": """if True:
        import asyncio, sys, ailf

        async def main():
            async with ailf.connect_async(sys.argv[1]) as backend:
                stream, pubsub = backend.stream("s"), backend.pubsub()
                await stream.create_consumer_group("g", "w")

                async def handler(task):
                    await pubsub.publish("begun", task)
                    await asyncio.sleep(0.3)

                await stream.process_messages(handler, prefetch=5)

        asyncio.run(main())
    """,
}
"""Programs that publish "begun" when a handler begins, and are then at work on the first of ten messages."""


async def test_drain_has_an_end(world: World) -> None:
    """S14: a handler that runs longer than `drain` is not waited for, and its message is not lost."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", lease=world.lease)
    await stream.add(1)
    begun, go_on = [], asyncio.Event()

    async def handler(delivery: Any) -> None:
        begun.append(delivery.data)
        await go_on.wait()
        raise ValueError("too late")

    working = asyncio.ensure_future(group.process(handler, concurrency=2, drain=0.1))
    await world.until(lambda: begun)
    group.stop()
    if world.flavour == "asyncio":  # a thread can't be interrupted: the caller's handler runs to its end
        await world.within_patience(working)
    go_on.set()
    await world.within_patience(working)
    await world.advance(world.lease * 1.2)
    async with group.consumer() as other:
        back = await other.get(world.patience)
        assert back is not None
        assert back.data == 1


async def test_prefetch_is_bounded(world: World) -> None:
    """S15: a busy worker holds the messages of one fetch, at most `prefetch`; other consumers can get the rest."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", lease=60)
    await stream.add_many(range(10))
    begun, go_on = [], asyncio.Event()

    async def handler(delivery: Any) -> None:
        begun.append(delivery.data)
        await go_on.wait()

    working = asyncio.ensure_future(group.process(handler, concurrency=1, prefetch=3))
    await world.until(lambda: begun)
    async with group.consumer() as other:
        got = []
        while (delivery := await other.get(0.1)) is not None:
            got.append(delivery.data)
            await delivery.ack()
        assert got == list(range(3, 10))
    go_on.set()
    await world.until(lambda: len(begun) == 3)
    group.stop()
    await world.within_patience(working)
    assert begun == [0, 1, 2]
