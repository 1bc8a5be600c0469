"""P9: requests and replies over pub/sub."""

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
    """Run a handler that replies to the requests of a channel while the context lasts."""
    server = backend.pubsub(**options)
    await server.subscribe(channel, handler)
    running = asyncio.ensure_future(server.run())
    try:
        yield server
    finally:
        server.stop()
        await world.within_patience(running)
        await server.aclose()


async def reply_to(message: Any, data: Any, **options: Any) -> None:
    """Reply to a message of either flavour."""
    if isinstance(message, ailf.AsyncMessage):
        await message.reply(data, **options)
    else:
        await in_thread(message.reply, data, **options)


async def test_a_return_value_is_the_reply(world: World) -> None:
    """P9: a handler's return value is the reply; it sees the headers of the request, without the reserved ones."""
    backend = await world.connect()
    seen: list[Any] = []

    async def handler(message: Any) -> Any:
        seen.append((message.data, dict(message.headers)))
        return {"doubled": message.data * 2}

    async with serving(world, backend, "c", handler):
        for number in range(5):
            reply = await world.within_patience(backend.pubsub().request("c", number, headers={"h": "v"}))
            assert reply == ailf.Message("c", {"doubled": 2 * number})
    assert seen == [(number, {"h": "v"}) for number in range(5)]


async def test_each_request_gets_its_own_reply(world: World) -> None:
    """P9: many requests at once, whose replies come in another order, each get exactly their own reply."""
    backend, other = await world.connect(), await world.connect()
    chance = random.Random(3)
    async with other.pubsub().listen("c", buffer=1000) as requests:
        asking = [asyncio.ensure_future(backend.pubsub().request("c", number, timeout=4)) for number in range(60)]
        arrived = [await world.take(requests) for _ in asking]
        chance.shuffle(arrived)
        for message in arrived:
            await reply_to(message, message.data + 1000)
        replies = [await world.within_patience(each) for each in asking]
    assert [reply.data for reply in replies] == [number + 1000 for number in range(60)]
    assert not pending_replies(backend)


def pending_replies(backend: Any) -> dict[str, Any]:
    """Return the requests of a backend that still wait for a reply."""
    pending: dict[str, Any] = getattr(backend, "_inner", backend).engine.reply_inbox._buffer.pending
    return pending


async def test_no_responder(world: World) -> None:
    """P9: a request without a listener ends at once where the backend can know that, and else at its timeout."""
    backend = await world.connect()
    begin = time.monotonic()
    with pytest.raises((ailf.NoResponderError, ailf.RequestTimeoutError)):
        await world.within_patience(backend.pubsub().request("nowhere", 1, timeout=1))
    assert time.monotonic() - begin < 1.5
    async with backend.pubsub().listen("other"):
        with pytest.raises((ailf.NoResponderError, ailf.RequestTimeoutError)):
            await world.within_patience(backend.pubsub().request_many("nowhere", 1, timeout=0.3))


async def test_late_replies_are_dropped(world: World) -> None:
    """P9: a request without a reply ends at its timeout; its late reply is dropped and reaches no other request."""
    backend = await world.connect()
    pubsub = backend.pubsub()
    async with pubsub.listen("c") as requests:
        begin = time.monotonic()
        with pytest.raises(ailf.RequestTimeoutError):
            await world.within_patience(pubsub.request("c", "first", timeout=0.2))
        assert 0.15 <= time.monotonic() - begin < 1.5
        late = await world.take(requests)
        assert not pending_replies(backend)
        asking = asyncio.ensure_future(pubsub.request("c", "second", timeout=world.patience))
        prompt = await world.take(requests)
        await reply_to(late, "late")
        await reply_to(prompt, "prompt")
        assert (await world.within_patience(asking)).data == "prompt"


@pytest.mark.parametrize("data", [None, False, 0, "", [], b"\0raw"], ids=repr)
async def test_replies_with_any_payload(world: World, data: Any) -> None:
    """P9: message.reply sends any payload, also an empty one; on a message that isn't a request it raises."""
    backend = await world.connect()
    pubsub = backend.pubsub()
    async with pubsub.listen("c") as requests:
        asking = asyncio.ensure_future(pubsub.request("c", 1, timeout=world.patience))
        await reply_to(await world.take(requests), data, headers={"x": "y"})
        reply = await world.within_patience(asking)
        assert (reply.data, reply.headers) == (data, {"x": "y"})
        await pubsub.publish("c", "published")
        published = await world.take(requests)
        with pytest.raises(ailf.InvalidArgumentError, match="not requested"):
            await reply_to(published, 1)


async def test_no_return_value_is_no_reply(world: World) -> None:
    """P9: a handler that returns None sends no reply, so another handler can reply."""
    backend = await world.connect()

    async def quiet(message: Any) -> None:
        return None

    async def talker(message: Any) -> str:
        return "it is me"

    async with serving(world, backend, "c", quiet), serving(world, backend, "c", talker):
        assert (await world.within_patience(backend.pubsub().request("c", 1))).data == "it is me"


async def test_a_handler_that_fails(world: World) -> None:
    """P9, P8: when the handler raises, or the body can't be decoded, the request fails at once with that error."""
    backend = await world.connect()

    async def handler(message: Any) -> Any:
        raise ValueError("no such order")

    async with serving(world, backend, "c", handler, type=int):
        begin = time.monotonic()
        with pytest.raises(ailf.RequestFailedError, match="ValueError: no such order"):
            await world.within_patience(backend.pubsub().request("c", 1, timeout=4))
        with pytest.raises(ailf.RequestFailedError, match="DecodeError"):
            await world.within_patience(backend.pubsub().request("c", "not a number", timeout=4))
        assert time.monotonic() - begin < 3


async def test_a_handler_that_fails_oddly(world: World) -> None:
    """P9, P8: whatever the handler raises, the request fails with a readable text, and the responder goes on."""
    backend = await world.connect()

    def handler(message: Any) -> Any:
        if message.data == len(ODD_ERRORS):
            return "well"
        raise ODD_ERRORS[message.data]

    async with serving(world, backend, "c", handler) as server:
        asking = backend.pubsub()
        for number in range(len(ODD_ERRORS)):
            with pytest.raises(ailf.RequestFailedError, match="the responder failed: ") as caught:
                await world.within_patience(asking.request("c", number, timeout=4))
            str(caught.value).encode()
            assert len(str(caught.value)) < 3000
        assert (await world.within_patience(asking.request("c", len(ODD_ERRORS)))).data == "well"
        assert server.errors == len(ODD_ERRORS)


async def test_a_fatal_error_ends_run(world: World) -> None:
    """P8: an error that is no Exception also fails the request, and then `run` ends with it."""
    backend = await world.connect()

    class PanicError(BaseException):
        pass

    def handler(message: Any) -> Any:
        raise PanicError

    server = backend.pubsub()
    await server.subscribe("c", handler)
    running = asyncio.ensure_future(server.run())
    with pytest.raises(ailf.RequestFailedError, match="PanicError"):
        await world.within_patience(backend.pubsub().request("c", 1, timeout=4))
    with pytest.raises(PanicError):
        await world.within_patience(running)
    await server.aclose()


async def test_several_responders(world: World) -> None:
    """P9: request takes the first reply; request_many takes `count` replies, or all that come within its timeout."""
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
        assert (await world.within_patience(pubsub.request("c", 1))).data in {0, 1, 2}
        replies = await world.within_patience(pubsub.request_many("c", 1, timeout=0.4))
        assert sorted(reply.data for reply in replies) == [0, 1, 2]
        begin = time.monotonic()
        assert len(await world.within_patience(pubsub.request_many("c", 1, count=2, timeout=4))) == 2
        assert time.monotonic() - begin < 2


async def test_replies_that_cannot_be_decoded(world: World) -> None:
    """P9: a reply that can't be decoded makes request raise; request_many leaves it out."""
    backend = await world.connect()
    good = backend.pubsub()
    async with serving(world, backend, "c", lambda message: b"{", type=bytes):
        with pytest.raises(ailf.DecodeError):
            await world.within_patience(good.request("c", 1, timeout=4))
        async with serving(world, backend, "c", lambda message: "well"):
            replies = await world.within_patience(good.request_many("c", 1, timeout=0.3))
    assert [each.data for each in replies] == ["well"]


async def test_requests_within_a_handler(world: World) -> None:
    """P9: a handler may send requests of its own before it replies."""
    backend = await world.connect()
    inner = backend.pubsub()

    async def add_one(message: Any) -> int:
        return int(message.data) + 1

    async def add_two(message: Any) -> int:
        once = await inner.request("one", message.data)
        return int((await inner.request("one", once.data)).data)

    async with serving(world, backend, "one", add_one), serving(world, backend, "two", add_two):
        assert (await world.within_patience(backend.pubsub().request("two", 40))).data == 42


@pytest.mark.parametrize("pair", MIXED, ids="-to-".join)
@asyncio_only("the pair names both flavours")
async def test_mixed_flavours(world: World, pair: tuple[str, str]) -> None:
    """P9, B6: a request of one flavour is served by a responder of the other."""
    asker, responder = await world.connect(pair[0]), await world.connect(pair[1])

    async def handler(message: Any) -> str:
        return f"hello {message.data}"

    async with serving(world, responder, "c", handler):
        assert (await world.within_patience(asker.pubsub(type=str).request("c", "ann"))).data == "hello ann"


@asyncio_only("a thread can't be cancelled")
async def test_cancelled_requests(world: World) -> None:
    """P9, B8: a request that is cancelled at any await leaves nothing behind, and the next one gets its own reply."""
    backend = await world.connect()

    async def handler(message: Any) -> Any:
        return message.data

    async with serving(world, backend, "c", handler):
        for steps in range(25):
            asking = asyncio.ensure_future(backend.pubsub().request("c", f"cancelled {steps}"))
            for _ in range(steps):
                await asyncio.sleep(0)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
            assert (await world.within_patience(backend.pubsub().request("c", steps))).data == steps
    assert not pending_replies(backend)


async def test_closing_ends_a_request(world: World) -> None:
    """P9, B3: a pending request ends with ClosedError when its backend is closed."""
    backend, other = await world.connect(), await world.connect()
    async with other.pubsub().listen("c") as requests:
        asking = asyncio.ensure_future(backend.pubsub().request("c", 1, timeout=world.patience))
        await world.take(requests)
        await backend.aclose()
        with pytest.raises(ailf.ClosedError):
            await world.within_patience(asking, 2)


@needs("interrupt_subscriptions")
async def test_requests_after_an_interruption(world: World) -> None:
    """P9, P5: requests work again once the subscription to replies has come back after an interruption."""
    backend = await world.connect()

    async def handler(message: Any) -> Any:
        return message.data

    async with serving(world, backend, "c", handler):
        assert (await world.within_patience(backend.pubsub().request("c", 1))).data == 1
        await world.harness.interrupt_subscriptions()
        until = time.monotonic() + world.patience
        while True:
            try:
                reply = await world.within_patience(backend.pubsub().request("c", 2, timeout=0.5))
                break
            except (ailf.NoResponderError, ailf.RequestTimeoutError):  # the responder is not back yet
                assert time.monotonic() < until
        assert reply.data == 2


@pytest.mark.parametrize("header", ["ailf-reply-to", "ailf-request", "ailf-failed"])
async def test_reserved_headers(world: World, header: str) -> None:
    """P9, B5: the headers that requests use themselves can't be set by a user."""
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
    """P2, P9: sharded channels share nothing with ordinary ones of the same name and carry requests, or raise."""
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
        await world.expect_none(one)
        await world.expect_none(two)
    async with serving(world, backend, "asked", handler, sharded=True):
        assert (await world.within_patience(sharded.request("asked", 1))).data == "from the shard"
    with pytest.raises(ailf.UnsupportedError):
        sharded.listen("c", pattern="c*")
