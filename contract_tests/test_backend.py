"""B: what every opened backend does."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.flavours import World, in_thread

NAMES = ["plain", "two words", "a{b}c", "{}", "}", "star*", "[x]?", "new\nline", "🦊", "%7b", "a:b", "\x00"]


async def test_connect_fails_at_once(world: World) -> None:
    """B1: an unknown scheme and an unknown option are refused, and the error says what there is."""
    with pytest.raises(ailf.InvalidArgumentError, match="installed are"):
        ailf.connect("nosuchscheme://x")
    with pytest.raises(ailf.InvalidArgumentError, match="installed are"):
        ailf.connect_async("nosuchscheme://x")
    url = world.harness.url
    if url is not None:
        with pytest.raises(ailf.InvalidArgumentError, match="nosuchoption"):
            ailf.connect(f"{url}&nosuchoption=1")


async def test_undeclared_is_unsupported(world: World) -> None:
    """B2: an interface that is declared can be made, and one that is not raises when it is made."""
    backend = await world.connect()
    for capability, make in (
        (Capability.PUBSUB, backend.pubsub),
        (Capability.STREAM, lambda: backend.stream("s")),
        (Capability.PATTERNS, lambda: backend.pubsub().listen(pattern="*")),
    ):
        if capability in backend.capabilities:
            make()
        else:
            with pytest.raises(ailf.UnsupportedError):
                make()


async def test_one_backend_for_all(world: World) -> None:
    """B4: many threads, or tasks, use one backend at once, and each gets its own."""
    backend = await world.connect()

    async def user(number: int) -> None:
        stream = backend.stream(f"s{number}")
        for turn in range(10):
            await stream.add([number, turn])
        assert [entry.data for entry in await stream.read()] == [[number, turn] for turn in range(10)]

    await asyncio.gather(*(user(number) for number in range(16)))


async def test_names(world: World) -> None:
    """B5: streams, groups and channels have any non-empty text for a name, and no two share anything."""
    backend = await world.connect()
    pubsub = backend.pubsub()
    async with pubsub.listen(*NAMES) as subscription:
        for name in NAMES:
            await backend.stream(name).add(name, headers={name: name})
            await pubsub.publish(name, name, headers={name: name})
            assert await world.take(subscription) == ailf.Message(name, name, {name: name})
    for name in NAMES:
        stream = backend.stream(name)
        async with stream.group(name).consumer() as consumer:
            delivery = await world.take(consumer)
            assert (delivery.data, delivery.headers) == (name, {name: name})
            await delivery.ack()
        assert [entry.data for entry in await stream.read()] == [name]


async def test_bad_input(world: World) -> None:
    """B5: a name or header that is no text, empty or over-long, and a body over max_payload, raise before the send."""
    backend = await world.connect()
    stream, pubsub = backend.stream("s"), backend.pubsub()
    for name in ("", "x" * 10_000, "\ud800", 7):
        with pytest.raises(ailf.InvalidArgumentError):
            backend.stream(name)
        with pytest.raises(ailf.InvalidArgumentError):
            await pubsub.publish(name, 1)
        with pytest.raises(ailf.InvalidArgumentError):
            stream.group(name)
    for headers in ({"": "x"}, {"x": ""}, {"x": 1}, {"x": "y" * 100_000}):
        with pytest.raises(ailf.InvalidArgumentError):
            await stream.add(1, headers=headers)
    with pytest.raises(ailf.EncodeError):
        await stream.add(object())
    with pytest.raises(ailf.InvalidArgumentError):
        await stream.add("x" * (backend_limit(backend) + 1))
    assert await stream.read() == []


def backend_limit(backend: Any) -> int:
    """Return max_payload, from whichever face the backend shows."""
    inner = getattr(backend, "_inner", backend)
    limit: int = inner.engine.driver.max_payload
    return limit


async def test_same_url_same_things(world: World) -> None:
    """B6: two backends on one place see the same, and one elsewhere doesn't."""
    one, two = await world.connect(), await world.connect()
    other = await world.connect(harness=world.harness.elsewhere())
    async with two.pubsub().listen("c") as here, other.pubsub().listen("c") as there:
        await one.stream("s").add(1)
        await one.pubsub().publish("c", 1)
        assert await world.take(here) == ailf.Message("c", 1)
        assert await there.get(0.05) is None
    assert [entry.data for entry in await two.stream("s").read()] == [1]
    assert await other.stream("s").read() == []


async def test_payloads_are_copies(world: World) -> None:
    """B7: changing an object after publish or add changes nothing received, and receivers don't share one."""
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
        assert (await world.take(second)).data == {"list": [1]}
    (entry,) = await stream.read()
    assert (entry.data, entry.headers) == ({"list": [1]}, {"h": "1"})
    entry.data["list"].append(4)
    assert [each.data for each in await stream.read()] == [{"list": [1]}]


async def test_two_processes(world: World) -> None:
    """B6: a process of its own that opens the same URL takes part: it gets a task and a message, and answers."""
    backend = await world.connect()
    if Capability.PROCESSES not in backend.capabilities or world.harness.url is None:
        return  # declared by the backend: no other process can see its things
    async with backend.pubsub().listen("answers") as answers:
        await backend.stream("tasks").add({"question": 6})
        program = (
            "import sys, ailf\n"
            "with ailf.connect(sys.argv[1]) as backend:\n"
            "    with backend.stream('tasks').group('g').consumer() as consumer:\n"
            "        delivery = consumer.get(10)\n"
            "        backend.pubsub().publish('answers', delivery.data['question'] * 7)\n"
            "        delivery.ack()\n"
        )
        child = subprocess.Popen([sys.executable, "-c", program, world.harness.url])  # noqa: ASYNC220 - it is waited for below
        assert await answers.get(15) == ailf.Message("answers", 42)
        assert await in_thread(child.wait, 10) == 0
    async with backend.stream("tasks").group("g").consumer() as consumer:
        assert await consumer.get(0) is None
