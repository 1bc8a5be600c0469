"""P9: asking over pub/sub, and answering."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.fixtures import asyncio_only, needs
from contract_tests.helpers.threads import in_thread
from contract_tests.stream.test_worker import ODD_ERRORS
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.PUBSUB,)

MIXED = [("blocking", "asyncio"), ("asyncio", "blocking")]


@contextlib.asynccontextmanager
async def serving(world: World, backend: Any, channel: str, handler: Any, **options: Any) -> AsyncIterator[Any]:
    """Let a handler answer on a channel for as long as the context lasts."""
    server = backend.pubsub(**options)
    await server.subscribe(channel, handler)
    running = asyncio.ensure_future(server.run())
    try:
        yield server
    finally:
        server.stop()
        await world.soon(running)
        await server.aclose()


async def reply_to(message: Any, data: Any, **options: Any) -> None:
    """Answer a message of either flavour."""
    if isinstance(message, ailf.AsyncMessage):
        await message.reply(data, **options)
    else:
        await in_thread(message.reply, data, **options)


async def test_a_return_value_answers(world: World) -> None:
    """P9: what a handler returns is the reply; headers travel with the request, and none of ours are shown."""
    backend = await world.connect()
    seen: list[Any] = []

    async def handler(message: Any) -> Any:
        seen.append((message.data, dict(message.headers)))
        return {"doubled": message.data * 2}

    async with serving(world, backend, "c", handler):
        for number in range(5):
            reply = await world.soon(backend.pubsub().request("c", number, headers={"h": "v"}))
            assert reply == ailf.Message("c", {"doubled": 2 * number})
    assert seen == [(number, {"h": "v"}) for number in range(5)]


async def test_everybody_gets_his_own_reply(world: World) -> None:
    """P9: of many requests at once, answered in another order, each gets exactly its own reply."""
    backend, other = await world.connect(), await world.connect()
    chance = random.Random(3)
    async with other.pubsub().listen("c", buffer=1000) as requests:
        asking = [asyncio.ensure_future(backend.pubsub().request("c", number, timeout=4)) for number in range(60)]
        arrived = [await world.take(requests) for _ in asking]
        chance.shuffle(arrived)
        for message in arrived:
            await reply_to(message, message.data + 1000)
        replies = [await world.soon(each) for each in asking]
    assert [reply.data for reply in replies] == [number + 1000 for number in range(60)]
    assert not backend_tickets(backend)


def backend_tickets(backend: Any) -> dict[str, Any]:
    """Return who of a backend still waits for something."""
    tickets: dict[str, Any] = getattr(backend, "_inner", backend).engine.reply_inbox._buffer.pending
    return tickets


async def test_nobody_listens(world: World) -> None:
    """P9: a request that nobody hears ends at once where the backend can know it, and in time where it can't."""
    backend = await world.connect()
    begin = time.monotonic()
    with pytest.raises((ailf.NoResponderError, ailf.RequestTimeoutError)):
        await world.soon(backend.pubsub().request("nowhere", 1, timeout=1))
    assert time.monotonic() - begin < 1.5
    async with backend.pubsub().listen("elsewhere"):
        with pytest.raises((ailf.NoResponderError, ailf.RequestTimeoutError)):
            await world.soon(backend.pubsub().request_many("nowhere", 1, timeout=0.3))


async def test_late_replies_are_dropped(world: World) -> None:
    """P9: a request without a reply ends in time; its late reply is dropped and confuses no other request."""
    backend = await world.connect()
    pubsub = backend.pubsub()
    async with pubsub.listen("c") as requests:
        begin = time.monotonic()
        with pytest.raises(ailf.RequestTimeoutError):
            await world.soon(pubsub.request("c", "first", timeout=0.2))
        assert 0.15 <= time.monotonic() - begin < 1.5
        late = await world.take(requests)
        assert not backend_tickets(backend)
        asking = asyncio.ensure_future(pubsub.request("c", "second", timeout=world.patience))
        prompt = await world.take(requests)
        await reply_to(late, "late")
        await reply_to(prompt, "prompt")
        assert (await world.soon(asking)).data == "prompt"


@pytest.mark.parametrize("answer", [None, False, 0, "", [], b"\0raw"], ids=repr)
async def test_any_payload_answers(world: World, answer: Any) -> None:
    """P9: message.reply answers with any payload, also an empty one; what wasn't requested can't be replied to."""
    backend = await world.connect()
    pubsub = backend.pubsub()
    async with pubsub.listen("c") as requests:
        asking = asyncio.ensure_future(pubsub.request("c", 1, timeout=world.patience))
        await reply_to(await world.take(requests), answer, headers={"x": "y"})
        reply = await world.soon(asking)
        assert (reply.data, reply.headers) == (answer, {"x": "y"})
        await pubsub.publish("c", "published")
        published = await world.take(requests)
        with pytest.raises(ailf.InvalidArgumentError, match="not requested"):
            await reply_to(published, 1)


async def test_no_return_value_is_no_reply(world: World) -> None:
    """P9: a handler that returns nothing leaves the answer to another."""
    backend = await world.connect()

    async def quiet(message: Any) -> None:
        return None

    async def talker(message: Any) -> str:
        return "it is me"

    async with serving(world, backend, "c", quiet), serving(world, backend, "c", talker):
        assert (await world.soon(backend.pubsub().request("c", 1))).data == "it is me"


async def test_a_handler_that_fails(world: World) -> None:
    """P9, P8: who asked is told that the handler raised or couldn't read, and doesn't wait for nothing."""
    backend = await world.connect()

    async def handler(message: Any) -> Any:
        raise ValueError("no such order")

    async with serving(world, backend, "c", handler, type=int):
        begin = time.monotonic()
        with pytest.raises(ailf.RequestFailedError, match="ValueError: no such order"):
            await world.soon(backend.pubsub().request("c", 1, timeout=4))
        with pytest.raises(ailf.RequestFailedError, match="DecodeError"):
            await world.soon(backend.pubsub().request("c", "not a number", timeout=4))
        assert time.monotonic() - begin < 3


async def test_a_handler_that_fails_oddly(world: World) -> None:
    """P9, P8: whatever it raises, the asker is told in a text that can be read, and the responder goes on."""
    backend = await world.connect()

    def handler(message: Any) -> Any:
        if message.data == len(ODD_ERRORS):
            return "well"
        raise ODD_ERRORS[message.data]

    async with serving(world, backend, "c", handler) as server:
        asking = backend.pubsub()
        for number in range(len(ODD_ERRORS)):
            with pytest.raises(ailf.RequestFailedError, match="the responder failed: ") as caught:
                await world.soon(asking.request("c", number, timeout=4))
            str(caught.value).encode()
            assert len(str(caught.value)) < 3000
        assert (await world.soon(asking.request("c", len(ODD_ERRORS)))).data == "well"
        assert server.errors == len(ODD_ERRORS)


async def test_a_fatal_error_ends_run(world: World) -> None:
    """P8: an error that is no Exception is told to the asker too, and then `run` ends with it."""
    backend = await world.connect()

    class PanicError(BaseException):
        pass

    def handler(message: Any) -> Any:
        raise PanicError

    server = backend.pubsub()
    await server.subscribe("c", handler)
    running = asyncio.ensure_future(server.run())
    with pytest.raises(ailf.RequestFailedError, match="PanicError"):
        await world.soon(backend.pubsub().request("c", 1, timeout=4))
    with pytest.raises(PanicError):
        await world.soon(running)
    await server.aclose()


async def test_several_responders(world: World) -> None:
    """P9: request takes the first reply; request_many takes so many, or all that come in time."""
    backends = [await world.connect() for _ in range(3)]
    asker = await world.connect()

    def answering(name: int) -> Any:
        async def handler(message: Any) -> int:
            return name

        return handler

    async with contextlib.AsyncExitStack() as stack:
        for number, backend in enumerate(backends):
            await stack.enter_async_context(serving(world, backend, "c", answering(number)))
        pubsub = asker.pubsub()
        assert (await world.soon(pubsub.request("c", 1))).data in {0, 1, 2}
        everybody = await world.soon(pubsub.request_many("c", 1, timeout=0.4))
        assert sorted(reply.data for reply in everybody) == [0, 1, 2]
        begin = time.monotonic()
        assert len(await world.soon(pubsub.request_many("c", 1, count=2, timeout=4))) == 2
        assert time.monotonic() - begin < 2


async def test_replies_that_cannot_be_decoded(world: World) -> None:
    """P9: a reply that can't be decoded is an error where it is the only one, and is left out among several."""
    backend = await world.connect()
    good = backend.pubsub()
    async with serving(world, backend, "c", lambda message: b"{", type=bytes):
        with pytest.raises(ailf.DecodeError):
            await world.soon(good.request("c", 1, timeout=4))
        async with serving(world, backend, "c", lambda message: "well"):
            replies = await world.soon(good.request_many("c", 1, timeout=0.3))
    assert [each.data for each in replies] == ["well"]


async def test_asking_within_a_handler(world: World) -> None:
    """P9: a handler may ask another agent before it answers."""
    backend = await world.connect()
    inner = backend.pubsub()

    async def add_one(message: Any) -> int:
        return int(message.data) + 1

    async def add_two(message: Any) -> int:
        once = await inner.request("one", message.data)
        return int((await inner.request("one", once.data)).data)

    async with serving(world, backend, "one", add_one), serving(world, backend, "two", add_two):
        assert (await world.soon(backend.pubsub().request("two", 40))).data == 42


@pytest.mark.parametrize("pair", MIXED, ids="-to-".join)
@asyncio_only("the pair names both flavours")
async def test_mixed_flavours(world: World, pair: tuple[str, str]) -> None:
    """P9, B6: an agent of one flavour asks one of the other."""
    asker, responder = await world.connect(pair[0]), await world.connect(pair[1])

    async def handler(message: Any) -> str:
        return f"hello {message.data}"

    async with serving(world, responder, "c", handler):
        assert (await world.soon(asker.pubsub(type=str).request("c", "ann"))).data == "hello ann"


@asyncio_only("a thread can't be cancelled")
async def test_cancelled_requests(world: World) -> None:
    """P9, B8: a request that is cancelled anywhere leaves nothing behind, and the next one gets its own reply."""
    backend = await world.connect()

    async def handler(message: Any) -> Any:
        return message.data

    async with serving(world, backend, "c", handler):
        for turns in range(25):
            asking = asyncio.ensure_future(backend.pubsub().request("c", f"cancelled {turns}"))
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
            assert (await world.soon(backend.pubsub().request("c", turns))).data == turns
    assert not backend_tickets(backend)


async def test_closing_ends_a_request(world: World) -> None:
    """P9, B3: a request under way ends with ClosedError when its backend is closed."""
    backend, other = await world.connect(), await world.connect()
    async with other.pubsub().listen("c") as requests:
        asking = asyncio.ensure_future(backend.pubsub().request("c", 1, timeout=world.patience))
        await world.take(requests)
        await backend.aclose()
        with pytest.raises(ailf.ClosedError):
            await world.soon(asking, 2)


@needs("interrupt_subscriptions")
async def test_requests_after_an_interruption(world: World) -> None:
    """P9, P5: requests work again when the subscription to replies has come back."""
    backend = await world.connect()

    async def handler(message: Any) -> Any:
        return message.data

    async with serving(world, backend, "c", handler):
        assert (await world.soon(backend.pubsub().request("c", 1))).data == 1
        await world.harness.interrupt_subscriptions()
        until = time.monotonic() + world.patience
        while True:
            try:
                reply = await world.soon(backend.pubsub().request("c", 2, timeout=0.5))
                break
            except (ailf.NoResponderError, ailf.RequestTimeoutError):  # the responder is not back yet
                assert time.monotonic() < until
        assert reply.data == 2


@pytest.mark.parametrize("header", ["ailf-reply-to", "ailf-request", "ailf-failed"])
async def test_reserved_headers(world: World, header: str) -> None:
    """P9, B5: headers by which requests travel can't be a user's."""
    backend = await world.connect()
    pubsub = backend.pubsub()
    for call in (pubsub.publish, pubsub.request, pubsub.request_many):
        with pytest.raises(ailf.InvalidArgumentError, match=header):
            await call("c", 1, headers={header: "x"})
    with pytest.raises(ailf.InvalidArgumentError):
        await pubsub.request("c", 1, timeout=0)
    with pytest.raises(ailf.InvalidArgumentError):
        await pubsub.request_many("c", 1, count=0)


async def test_sharded_channels(world: World) -> None:
    """P2, P9: sharded channels are apart from ordinary ones of that name, and can be asked on; or unsupported."""
    backend = await world.connect()
    if Capability.SHARDED not in backend.capabilities:
        with pytest.raises(ailf.UnsupportedError, match="sharded"):
            backend.pubsub(sharded=True)
        return
    ordinary, sharded = backend.pubsub(), backend.pubsub(sharded=True)

    async def handler(message: Any) -> str:
        return "from the shard"

    async with ordinary.listen("c") as one, sharded.listen("c") as two:
        await ordinary.publish("c", "ordinary")
        await sharded.publish("c", "sharded")
        assert (await world.take(one)).data == "ordinary"
        assert (await world.take(two)).data == "sharded"
        await world.nothing(one)
        await world.nothing(two)
    async with serving(world, backend, "asked", handler, sharded=True):
        assert (await world.soon(sharded.request("asked", 1))).data == "from the shard"
    with pytest.raises(ailf.UnsupportedError):
        sharded.listen("c", pattern="c*")
