"""B: the behaviour of every opened backend."""

import asyncio
import contextlib
import subprocess
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import ailf
from ailf.checks import MAX_HEADER_BYTES, MAX_HEADERS, MAX_NAME
from ailf.driver import Capability
from contract_tests.fixtures import asyncio_only, needs
from contract_tests.helpers.names import NAMES
from contract_tests.helpers.processes import running
from contract_tests.helpers.threads import in_thread
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.PUBSUB, Capability.STREAM)
WAITS = (*NEEDS, Capability.LOCK, Capability.RATE_LIMITER)
BODIES = [b"", b"\0", bytes(range(256)), b"\0AILF\1", b"\0AILF\1\xff\xff\xff\xff", b"{", b"\r\n+OK\r\n"]


async def test_one_backend_for_many_callers(world: World) -> None:
    """B4: many threads or tasks use one backend at once, and each gets its own replies."""
    backend = await world.connect()

    async def user(number: int) -> None:
        stream = backend.stream(f"s{number}")
        for repeat in range(5):
            await stream.add([number, repeat])
        assert [entry.data for entry in await stream.read()] == [[number, repeat] for repeat in range(5)]

    await world.within_patience(asyncio.gather(*(user(number) for number in range(16))))


async def test_one_consumer_for_many_callers(world: World) -> None:
    """B4: many threads or tasks wait on one consumer and one subscription, and each item goes to one of them."""
    backend = await world.connect()
    stream, pubsub = backend.stream("s"), backend.pubsub()
    async with stream.group("g").consumer(prefetch=3) as consumer, pubsub.listen("c") as subscription:
        getting = [asyncio.ensure_future(consumer.get(world.patience)) for _ in range(8)]
        hearing = [asyncio.ensure_future(subscription.get(world.patience)) for _ in range(8)]
        await asyncio.sleep(0.05)
        await stream.add_many(range(8))
        await pubsub.publish_many([("c", number) for number in range(8)])
        for waiting in (getting, hearing):
            items = await world.within_patience(asyncio.gather(*waiting))
            assert sorted(item.data for item in items) == list(range(8))


@needs("url", Capability.PROCESSES)
@asyncio_only("the test runs a blocking program in another process")
async def test_fork(world: World) -> None:
    """B4: after a fork, parent and child can both use the same objects, over connections of their own."""
    program = """if True:
        import os, sys, warnings, ailf

        warnings.simplefilter("ignore")  # Python warns of a fork with threads, which is the case under test
        backend = ailf.connect(sys.argv[1])
        stream, pubsub = backend.stream("s"), backend.pubsub()
        with stream.group("g").consumer() as consumer, pubsub.listen("c") as subscription:
            stream.add("before")
            delivery = consumer.get(5)
            child = os.fork()
            for number in range(50):
                entry = stream.add([child == 0, number])
                assert stream.read(entry, entry)[0].data == [child == 0, number]
            if child == 0:
                with stream.group("h").consumer() as own, backend.pubsub().listen("d") as hearing:
                    backend.pubsub().publish("d", 1)
                    assert hearing.get(5).data == 1
                    assert own.get(5).data == "before"
                backend.close()
                os._exit(0)
            delivery.ack()
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            pubsub.publish("c", 2)
            assert subscription.get(5) == ailf.Message("c", 2)
            assert len(stream.read(limit=1000)) == 101
        backend.close()
    """
    with running("-c", program, str(world.harness.url), stderr=subprocess.PIPE) as child:
        _, errors = await world.within_patience(in_thread(child.communicate), 4 * world.patience)
    assert child.returncode == 0, errors


async def in_loops(world: World, flow: Callable[[ailf.AsyncBackend, int], Coroutine[Any, Any, None]]) -> None:
    """Run a flow on one backend in three event loops, one after another; the last one closes it."""
    backend = world.harness.connect_async()

    async def main(number: int) -> None:
        try:
            await world.within_patience(flow(backend, number), 3 * world.patience)
        finally:
            if number == 2:
                await backend.aclose()

    for number in range(3):
        await in_thread(asyncio.run, main(number))


@asyncio_only("a blocking backend belongs to no event loop")
async def test_one_loop_after_another(world: World) -> None:
    """B4: an asyncio backend works in the next event loop, whatever was left open in the one that ended."""
    left: list[Any] = []

    async def consume(backend: ailf.AsyncBackend) -> None:
        async with backend.stream("idle").group("g").consumer() as consumer:
            with contextlib.suppress(ailf.ClosedError):  # the last run closes the backend
                await consumer.get()

    async def read(subscription: ailf.AsyncSubscription[Any]) -> None:
        with contextlib.suppress(ailf.ClosedError):
            await subscription.get()

    async def flow(backend: ailf.AsyncBackend, number: int) -> None:
        stream, pubsub = backend.stream(f"s{number}"), backend.pubsub()
        async with pubsub.listen("c") as subscription, stream.group("g").consumer() as consumer:
            getting = asyncio.create_task(world.take(consumer))
            await asyncio.sleep(0.05)
            await stream.add(number)
            assert (await getting).data == number
            await pubsub.publish("c", number)
            assert (await world.take(subscription)).data == number
        await pubsub.subscribe("double", lambda message: 2 * message.data)
        running = asyncio.create_task(pubsub.run())
        assert (await pubsub.request("double", number, timeout=world.patience)).data == 2 * number
        pubsub.stop()
        await running
        for earlier in left:
            with pytest.raises(ailf.ClosedError):
                await earlier.get(world.patience)
        left.append(await pubsub.listen("left").__aenter__())
        waiting = [asyncio.create_task(read(left[-1])), asyncio.create_task(consume(backend))]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waiting), "a wait ended before its loop did"

    await in_loops(world, flow)


@asyncio_only("a blocking backend belongs to no event loop")
@needs(Capability.LOCK)
async def test_locks_in_one_loop_after_another(world: World) -> None:
    """B4: waiting for a lock works in the next event loop, and a lease outlives the loop in which it was granted."""
    leases: list[ailf.AsyncLease] = []

    async def flow(backend: ailf.AsyncBackend, number: int) -> None:
        lock = backend.lock("l", ttl=60)
        for lease in leases:
            assert not lease.lost
            waiting = asyncio.create_task(lock.acquire(timeout=world.patience))
            await asyncio.sleep(0.05)
            await lease.release()
            await (await waiting).release()
        leases[:] = [await lock.acquire(timeout=0)]

        async def wait() -> None:
            with contextlib.suppress(ailf.ClosedError):  # the last run closes the backend
                await lock.acquire()

        stays = asyncio.create_task(wait())
        await asyncio.sleep(0.05)
        assert not stays.done(), "the wait ended before its loop did"

    await in_loops(world, flow)


@asyncio_only("a blocking backend belongs to no event loop")
@needs(Capability.RATE_LIMITER)
async def test_limiters_in_one_loop_after_another(world: World) -> None:
    """B4: waiting for a permit works in the next event loop."""

    async def flow(backend: ailf.AsyncBackend, number: int) -> None:
        limiter = backend.rate_limiter("r", calls="1000/second", parallel=ailf.Concurrency(1, ttl=60))
        permit = await limiter.acquire("k", timeout=world.patience)
        waiting = asyncio.create_task(limiter.acquire("k", timeout=world.patience))
        await asyncio.sleep(0.05)
        await permit.release()
        await (await waiting).release()
        async with limiter.hold("other", timeout=world.patience):
            waiting = asyncio.create_task(limiter.acquire("other"))
            await asyncio.sleep(0.05)
        await (await waiting).release()

    await in_loops(world, flow)


@asyncio_only("a blocking backend belongs to no event loop")
async def test_two_loops_at_once(world: World) -> None:
    """B4: calls from a second event loop, while the first runs, raise at once and disturb no call of the first."""
    backend = await world.connect()
    stream, pubsub = backend.stream("s"), backend.pubsub()
    async with stream.group("g").consumer() as consumer, pubsub.listen("c") as subscription:
        calls = [
            backend.ping, backend.aclose, stream.read, stream.group("g").info, consumer.get, subscription.get,
            lambda: stream.add(1), lambda: pubsub.publish("c", 1), lambda: pubsub.request("c", 1),
            lambda: pubsub.subscribe("c", print), pubsub.listen("d").__aenter__, lambda: anext(aiter(stream.tail())),
        ]  # fmt: skip

        async def refused(call: Callable[[], Any]) -> None:
            with pytest.raises(ailf.InvalidArgumentError, match="event loop"):
                await asyncio.wait_for(call(), world.patience)

        waiting = [asyncio.create_task(consumer.get(world.patience)), asyncio.create_task(subscription.get())]
        await asyncio.sleep(0.05)
        for call in calls:
            await in_thread(asyncio.run, refused(call))
        await asyncio.gather(stream.add(1), pubsub.publish("c", 2))
        assert [(await world.expect_item(each)).data for each in waiting] == [1, 2]


async def test_names(world: World) -> None:
    """B5: the name of a stream, group or channel may be any non-empty text, and no two names share state."""
    backend = await world.connect()
    pubsub = backend.pubsub()
    async with pubsub.listen(*NAMES) as subscription:
        await pubsub.publish_many([(name, name) for name in NAMES])
        for name in NAMES:
            assert await world.take(subscription) == ailf.Message(name, name)
    await asyncio.gather(*(backend.stream(name).add(name) for name in NAMES))
    for name in NAMES:
        assert [entry.data for entry in await backend.stream(name).read()] == [name]
    stream = backend.stream("groups")
    await stream.add(1)
    for name in NAMES:
        async with stream.group(name).consumer(name[:200]) as consumer:
            delivery = await world.take(consumer)
            assert delivery.attempt == 1
            await delivery.reject(name)
    for name in NAMES:
        assert [letter.error for letter in await stream.group(name).dead_letters.list()] == [name]


async def test_pairs_of_names(world: World) -> None:
    """B5: a group belongs to its stream, also where joined names are alike; deleting one stream spares the others."""
    backend = await world.connect()
    pairs = [("a", "b:c"), ("a:b", "c"), ("a:b:c", "c"), ("a", "b"), ("{a}", "b"), ("a}", "{b"), ("a%3ab", "c")]
    for stream, group in pairs:
        await backend.stream(stream).add([stream, group])
        async with backend.stream(stream).group(group).consumer() as consumer:
            while (delivery := await consumer.get(0)) is not None:
                await delivery.reject(f"{stream} {group}")
    for stream, group in pairs:
        letters = await backend.stream(stream).group(group).dead_letters.list()
        assert {letter.error for letter in letters} == {f"{stream} {group}"}
    await backend.stream("a").delete()
    for stream, group in pairs:
        deleted = stream == "a"
        assert (await backend.stream(stream).read() == []) is deleted
        assert (await backend.stream(stream).group(group).dead_letters.list() == []) is deleted


async def test_largest(world: World) -> None:
    """B5: headers of any text and bodies of any bytes arrive unchanged, up to the largest sizes."""
    backend = await world.connect()
    stream, pubsub = backend.stream("s", type=bytes), backend.pubsub(type=bytes)
    odd = {name: name for name in NAMES}
    many = {f"{number:02}": "x" for number in range(MAX_HEADERS)}
    long = {"k": "v" * (MAX_HEADER_BYTES - 1)}
    cases = [(body, headers) for body in BODIES for headers in ({}, {"h": "v"})]
    cases += [(b"x", odd), (b"x", many), (b"x", long), (b"x" * limit(backend), {})]
    async with pubsub.listen("c") as subscription, stream.group("g").consumer() as consumer:
        for body, headers in cases:
            await pubsub.publish("c", body, headers=headers)
            assert await world.take(subscription) == ailf.Message("c", body, headers)
            await stream.add(body, headers=headers)
            delivery = await world.take(consumer)
            assert (delivery.data, delivery.headers) == (body, headers)
            await delivery.ack()


async def test_bad_input(world: World) -> None:
    """B5: a name or header that is not text, empty or too long, and a body over max_payload, raise before the send."""
    backend = await world.connect()
    stream, pubsub = backend.stream("s"), backend.pubsub()
    for name in ("", "x" * (MAX_NAME + 1), "é" * (MAX_NAME // 2 + 1), "\ud800", 7, b"bytes", None):
        with pytest.raises(ailf.InvalidArgumentError):
            backend.stream(name)
        with pytest.raises(ailf.InvalidArgumentError):
            stream.group(name)
        with pytest.raises(ailf.InvalidArgumentError):
            await pubsub.publish(name, 1)
        with pytest.raises(ailf.InvalidArgumentError):
            await pubsub.subscribe(name, print)
    too_many = {f"{number}": "x" for number in range(MAX_HEADERS + 1)}
    for headers in ({"": "x"}, {"x": ""}, {"x": 1}, {1: "x"}, {"x": "y" * MAX_HEADER_BYTES}, too_many, {"\ud800": "x"}):
        for call in (stream.add(1, headers=headers), pubsub.publish("c", 1, headers=headers)):
            with pytest.raises(ailf.InvalidArgumentError):
                await call
    for data, error in ((object(), ailf.EncodeError), ("x" * (limit(backend) - 1), ailf.InvalidArgumentError)):
        for call in (stream.add(data), pubsub.publish("c", data)):
            with pytest.raises(error):
                await call
    assert await stream.read() == []


def limit(backend: Any) -> int:
    """Return the max_payload of a backend of either flavour."""
    inner = getattr(backend, "_inner", backend)
    most: int = inner.engine.driver.max_payload
    return most


@needs(Capability.PATTERNS)
async def test_same_url_same_state(world: World) -> None:
    """B6: two backends on one namespace see the same state; one on another namespace sees none of it."""
    one, two = await world.connect(), await world.connect()
    other = await world.connect(harness=world.harness.other_namespace())
    async with two.pubsub().listen("c", pattern="*") as here, other.pubsub().listen("c", pattern="*") as there:
        await one.stream("s").add(1)
        await one.pubsub().publish("c", 1)
        assert await world.take(here) == ailf.Message("c", 1)
        await world.expect_none(there)
    assert [entry.data for entry in await two.stream("s").read()] == [1]
    assert await other.stream("s").read() == []


async def test_payloads_are_copies(world: World) -> None:
    """B7: changing an object after publish or add changes nothing received, and receivers share no object."""
    backend = await world.connect()
    stream, pubsub = backend.stream("s"), backend.pubsub()
    data, headers = {"list": [1]}, {"h": "1"}
    async with pubsub.listen("c") as first, pubsub.listen("c") as second:
        await pubsub.publish("c", data, headers=headers)
        await stream.add(data, headers=headers)
        data["list"].append(2)
        headers["h"] = "2"
        received = await world.take(first)
        assert (received.data, received.headers) == ({"list": [1]}, {"h": "1"})
        received.data["list"].append(3)
        received.headers["h"] = "3"
        assert await world.take(second) == ailf.Message("c", {"list": [1]}, {"h": "1"})
    (entry,) = await stream.read()
    assert (entry.data, entry.headers) == ({"list": [1]}, {"h": "1"})
    entry.data["list"].append(4)
    entry.headers["h"] = "4"
    assert [(each.data, each.headers) for each in await stream.read()] == [({"list": [1]}, {"h": "1"})]
    for _ in range(2):
        async with stream.group("g").consumer() as consumer:
            delivery = await world.take(consumer)
            assert (delivery.data, delivery.headers) == ({"list": [1]}, {"h": "1"})
            delivery.data["list"].append(5)
            delivery.headers["h"] = "5"


@needs("url", Capability.PROCESSES)
async def test_two_processes(world: World) -> None:
    """B6: another process that opens the same URL sees the same state: it takes a task and publishes the result."""
    backend = await world.connect()
    async with backend.pubsub().listen("answers") as answers:
        await backend.stream("tasks").add({"question": 6})
        program = """if True:
            import sys, ailf

            with ailf.connect(sys.argv[1]) as backend:
                with backend.stream("tasks").group("g").consumer() as consumer:
                    delivery = consumer.get(10)
                    backend.pubsub().publish("answers", delivery.data["question"] * 7)
                    delivery.ack()
        """
        with running("-c", program, str(world.harness.url)) as child:
            assert await answers.get(4 * world.patience) == ailf.Message("answers", 42)
            assert await world.within_patience(in_thread(child.wait), 2 * world.patience) == 0
    async with backend.stream("tasks").group("g").consumer() as consumer:
        await world.expect_none(consumer)


@needs("freezable", *WAITS)
async def test_a_silent_backend(world: World) -> None:
    """B10: while the backend is silent, each call ends within its own timeout plus the driver's, with an ailf error."""
    with world.harness.freezable(0.4) as harness:
        backend = await world.connect(harness=harness)
        stream, limiter = backend.stream("s"), backend.rate_limiter("r", "9/day")
        async with stream.group("g").consumer() as consumer:
            assert await consumer.get(0) is None
            await limiter.acquire("k", timeout=0.1)
            waits: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
                "limiter.acquire": lambda: limiter.acquire("k", timeout=0.1),
                "lock.acquire": lambda: backend.lock("l").acquire(timeout=0.1),
                "consumer.get": lambda: consumer.get(timeout=0.1),
                "request": lambda: backend.pubsub().request("c", 1, timeout=0.1),
            }
            harness.freeze(frozen=True)
            # This call goes alone to get the open connection: a call that was sent is not retried, connecting would be.
            calls = {"stream.add": asyncio.ensure_future(stream.add(1))}
            _, unended = await asyncio.wait(calls.values(), timeout=2.0)
            calls |= {name: asyncio.ensure_future(call()) for name, call in waits.items()}
            _, others = await asyncio.wait([calls[name] for name in waits], timeout=2.0)
            unended |= others
            late = sorted(name for name, call in calls.items() if call in unended)
            harness.freeze(frozen=False)
            ends = await world.within_patience(asyncio.gather(*calls.values(), return_exceptions=True))
            assert not late
            assert all(each is None or isinstance(each, ailf.AilfError) for each in ends), ends
        await world.within_patience(limiter.acquire("k", timeout=world.patience))
