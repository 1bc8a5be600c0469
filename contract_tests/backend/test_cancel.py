"""B8, S6: a call that is cancelled or interrupted, at any await, disturbs no other call and loses nothing."""

import asyncio
import contextlib
import logging
import subprocess
from collections.abc import Coroutine
from typing import Any

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.fixtures import asyncio_only, needs
from contract_tests.helpers.processes import running
from contract_tests.helpers.tasks import cancel
from contract_tests.helpers.threads import in_thread
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.PUBSUB, Capability.PATTERNS, Capability.STREAM)

MOMENTS: list[float] = [*range(12), 0.0003, 0.001, 0.003]
"""When to cancel: after a number of event loop steps (int) or seconds (float)."""


async def cancelled(world: World, moment: float, call: "Coroutine[Any, Any, Any] | asyncio.Future[Any]") -> Any:
    """Start a call, cancel it at this moment, and return its outcome: a result or an exception."""
    task = asyncio.ensure_future(call)
    if isinstance(moment, int):
        for _ in range(moment):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep(moment)
    task.cancel()
    return (await world.within_patience(asyncio.gather(task, return_exceptions=True)))[0]


async def cancelled_at_each_step(world: World, block: Coroutine[Any, Any, Any], entered: asyncio.Event) -> None:
    """Cancel a block that was entered at each step of the event loop until it has ended, as anyio's scopes do."""
    task = asyncio.ensure_future(block)
    await world.within_patience(entered.wait())
    await cancel(task, at_each_step=True)
    assert task.cancelled()


@asyncio_only("a thread can't be cancelled")
async def test_cancelled_adds(world: World) -> None:
    """B8: a cancelled add happens once or not at all; calls beside it and after it get their own replies."""
    backend = await world.connect()
    stream = backend.stream("s")
    kept = []
    for moment in MOMENTS:
        beside = asyncio.ensure_future(backend.stream("empty").read())
        outcome = await cancelled(world, moment, stream.add(["cancelled", moment]))
        entry_id = await stream.add(["kept", moment])
        assert await world.within_patience(beside) == []
        assert [entry.data for entry in await stream.read(entry_id, entry_id)] == [["kept", moment]]
        kept.append(["kept", moment])
        if isinstance(outcome, str):
            assert [entry.data for entry in await stream.read(outcome, outcome)] == [["cancelled", moment]]
    stored = [entry.data for entry in await stream.read(limit=1000)]
    assert [data for data in stored if data[0] == "kept"] == kept
    assert all(stored.count(data) == 1 for data in stored)


@asyncio_only("a thread can't be cancelled")
async def test_cancelled_publishes(world: World) -> None:
    """B8: a cancelled publish arrives once or not at all, and those after it arrive in order."""
    backend = await world.connect()
    pubsub = backend.pubsub()
    async with pubsub.listen("c") as subscription:
        for moment in MOMENTS:
            await cancelled(world, moment, pubsub.publish("c", ["cancelled", moment]))
            await pubsub.publish("c", ["kept", moment])
        await pubsub.publish("c", "end")
        arrived = []
        while (data := (await world.take(subscription)).data) != "end":
            arrived.append(data)
    assert [data for data in arrived if data[0] == "kept"] == [["kept", moment] for moment in MOMENTS]
    assert all(arrived.count(data) == 1 for data in arrived)


@asyncio_only("a thread can't be cancelled")
async def test_cancelled_subscribing(world: World) -> None:
    """B8, P2: a cancelled listen or subscribe leaves nothing behind, and its names can be subscribed to at once."""
    backend = await world.connect()
    pubsub = backend.pubsub()
    called: list[Any] = []
    async with pubsub.listen("c", "other") as standing:
        for moment in MOMENTS:
            await cancelled(world, moment, pubsub.listen("c", "d", pattern="d*").__aenter__())
            handling = backend.pubsub()
            outcome = await cancelled(world, moment, handling.subscribe("d", called.append))
            async with pubsub.listen("c", pattern="d*") as again:
                await pubsub.publish_many([("d", moment), ("c", moment)])
                assert [(await world.take(again)).channel for _ in range(2)] == ["d", "c"]
                assert (await world.take(standing)).data == moment
            if isinstance(outcome, asyncio.CancelledError):
                with pytest.raises(ailf.InvalidArgumentError):  # there is nothing to run
                    await world.within_patience(handling.run())
            await handling.aclose()
    assert called == []


@asyncio_only("a thread can't be cancelled")
async def test_cancelled_waits_lose_nothing(world: World) -> None:
    """S6: a wait that is cancelled at any await loses no message: it stays receivable at once."""
    backend = await world.connect()
    stream = backend.stream("s")
    got = []
    async with stream.group("g", lease=60).consumer() as consumer:
        for number, moment in enumerate(MOMENTS * 2):
            waiting = asyncio.ensure_future(consumer.get(world.patience))
            if number % 2:
                await asyncio.sleep(0.01)  # until it waits on the backend
            adding = asyncio.ensure_future(stream.add(number))
            outcome = await cancelled(world, moment, waiting)
            await adding
            delivery = await world.take(consumer) if isinstance(outcome, BaseException) else outcome
            got.append((delivery.data, delivery.attempt))
            await delivery.ack()
    assert got == [(number, 1) for number in range(len(got))]


@asyncio_only("a thread can't be cancelled")
async def test_cancelled_settles(world: World) -> None:
    """B8, S4: a cancelled ack happens or not; after a second ack the message is settled, and the next one comes."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", lease=60)
    async with group.consumer() as consumer:
        for moment in MOMENTS:
            await stream.add(moment)
            delivery = await world.take(consumer)
            assert (delivery.data, delivery.attempt) == (moment, 1)
            await cancelled(world, moment, delivery.ack())
            with contextlib.suppress(ailf.LeaseLostError):  # the cancelled ack was carried out without a reply
                await delivery.ack()
            await world.expect_none(consumer)
    async with group.consumer() as consumer:
        await world.expect_none(consumer)
    assert await group.dead_letters.list() == []


@asyncio_only("a thread can't be cancelled")
async def test_cancelled_opening(world: World) -> None:
    """B8: opening a backend, a group or a consumer can be cancelled and repeated."""
    for moment in MOMENTS:
        backend = world.harness.connect_async()
        outcome = await cancelled(world, moment, backend.__aenter__())
        if isinstance(outcome, BaseException):
            assert backend.closed or moment == 0  # cancelled before it began
            backend = await world.connect()
        stream = backend.stream(f"s{moment}")
        await cancelled(world, moment, stream.group("g").open())
        await cancelled(world, moment, stream.group("g").consumer().__aenter__())
        await stream.add(moment)
        async with stream.group("g").consumer() as consumer:
            assert (await world.take(consumer)).data == moment
        await backend.aclose()


HOLDS: dict[str, Any] = {
    "lock": lambda backend: backend.lock("l", ttl=60),
    "lock.hold": lambda backend: backend.lock("l", ttl=60).hold(),
    "limiter.hold": lambda backend: backend.rate_limiter("r", ailf.Concurrency(1, ttl=60)).hold(),
    "semaphore": lambda backend: backend.semaphore("s", 1, ttl=60),
}


@needs(Capability.LOCK, Capability.RATE_LIMITER)
@asyncio_only("a thread can't be cancelled")
@pytest.mark.parametrize("hold", HOLDS)
async def test_holds_cancelled_at_each_step(world: World, hold: str) -> None:
    """B8: a block that is cancelled again while it is left releases nevertheless what it holds."""
    backend, other = await world.connect(), await world.connect()
    entered = asyncio.Event()

    async def block() -> None:
        async with HOLDS[hold](backend):
            entered.set()
            await asyncio.Event().wait()

    await cancelled_at_each_step(world, block(), entered)

    async def pass_through() -> None:
        async with HOLDS[hold](other):
            pass

    await world.within_patience(pass_through())


@asyncio_only("a thread can't be cancelled")
async def test_a_consumer_cancelled_at_each_step(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """B8, S6: a consumer that is cancelled again while it ends settles its delivery first, and leaves the group."""
    backend, other = await world.connect(), await world.connect()
    await backend.stream("s").add_many([1, 2])
    entered = asyncio.Event()

    async def block() -> None:
        group = backend.stream("s").group("g", lease=60)
        async with group.consumer(prefetch=2) as consumer, await world.take(consumer):
            entered.set()
            await asyncio.Event().wait()

    await cancelled_at_each_step(world, block(), entered)
    async with other.stream("s").group("g", lease=60).consumer() as consumer:
        back = [await world.take(consumer) for _ in range(2)]
        assert sorted((delivery.data, delivery.attempt) for delivery in back) == [(1, 1), (2, 1)]
        for each in back:
            await each.ack()
    assert (await other.stream("s").group("g").info()).consumers == {}
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING] == []


async def cancel_process(world: World, *, at_each_step: bool) -> None:
    """Cancel process while its handlers run; see that all messages come again."""
    backend = await world.connect()
    stream = backend.stream("s")
    group = stream.group("g", lease=60)
    await stream.add_many(range(6))
    begun = []

    async def handler(delivery: Any) -> None:
        begun.append(delivery.data)
        await asyncio.Event().wait()

    working = asyncio.ensure_future(group.process(handler, concurrency=2, prefetch=4))
    await world.until(lambda: len(begun) == 2)
    await cancel(working, at_each_step=at_each_step)
    with pytest.raises(asyncio.CancelledError):
        await world.within_patience(working)
    async with group.consumer() as other:
        back = [await world.take(other) for _ in range(6)]
        assert sorted((delivery.data, delivery.attempt) for delivery in back) == [(number, 1) for number in range(6)]


@asyncio_only("a thread can't be cancelled")
async def test_cancelled_process(world: World) -> None:
    """S6, S14: cancelling process gives back all messages, also those in a handler."""
    await cancel_process(world, at_each_step=False)


@asyncio_only("a thread can't be cancelled")
async def test_a_process_cancelled_at_each_step(world: World) -> None:
    """B8, S6, S14: cancelling process again while it ends gives back all messages, too."""
    await cancel_process(world, at_each_step=True)


@needs("url")
@asyncio_only("the test runs a blocking program in another process")
async def test_ctrl_c(world: World) -> None:
    """B8: Ctrl-C in any blocked call raises KeyboardInterrupt there, and the backend stays usable."""
    program = """if True:
        import os, signal, sys, threading, ailf

        with ailf.connect(sys.argv[1]) as backend:
            stream, pubsub = backend.stream("s"), backend.pubsub()
            heard = []
            pubsub.subscribe("h", lambda message: (heard.append(message.data), pubsub.stop()))
            with stream.group("g").consumer() as consumer, pubsub.listen("c") as subscription:
                run = lambda: pubsub.run(signals=False)
                for blocked in (consumer.get, subscription.get, lambda: next(stream.tail()), run) * 2:
                    threading.Timer(0.15, os.kill, (os.getpid(), signal.SIGINT)).start()
                    try:
                        blocked()
                    except KeyboardInterrupt:
                        continue
                    sys.exit(f"{blocked} was not interrupted")
                stream.add(1)
                delivery = consumer.get(5)
                assert (delivery.data, delivery.attempt) == (1, 1)
                delivery.ack()
                pubsub.publish_many([("c", 2), ("h", 3)])
                assert subscription.get(5).data == 2
                pubsub.run()
                assert heard == [3]
    """
    with running("-c", program, str(world.harness.url), stderr=subprocess.PIPE) as child:
        _, errors = await world.within_patience(in_thread(child.communicate), 4 * world.patience)
    assert (child.returncode, errors) == (0, "")
