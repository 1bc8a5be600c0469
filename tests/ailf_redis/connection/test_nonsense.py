"""A server that sends nonsense: each call ends with an error of ailf, and takes no more memory than a reply may."""

import asyncio
import resource
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import pytest
import redis
from redis import asyncio as aredis
from redis._parsers import BaseParser
from redis.connection import parse_url

import ailf
from ailf.runtime import run
from ailf_redis import AsyncRedisBackend, RedisBackend, Settings
from ailf_redis.connection.aio import AsyncioExecutor
from ailf_redis.connection.blocking import BlockingExecutor
from ailf_redis.connection.resp import READ_SIZE, Replies
from ailf_redis.keys import Keys
from ailf_redis.scripts import OPEN_GROUP
from ailf_redis.versions import SILENT
from tests.support.interruption import Interruption
from tests.support.scripted import Scripted, trickled
from tests.support.servers import Server

BROKEN = [
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"*4294967295\r\n",
    b"*-7\r\n",
    b"$-9\r\n",
    b"\xff\xfe\r\n",
    b"%1\r\n*0\r\n:1\r\n",
    b"*2\r\n:1\r\n%1\r\n*0\r\n:1\r\n",
]
"""Malformed replies. The last two are maps with a list as a key, which Python can't hold."""

WRONG = [
    b"+OK\r\n",
    b":7\r\n",
    b":-7\r\n",
    b"$-1\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"$3\r\n\xff\xfe\xfd\r\n",
    b"*1\r\n:1\r\n",
    b"*2\r\n:1\r\n$1\r\nx\r\n",
    b"*3\r\n*0\r\n*0\r\n$-1\r\n",
    b"*2\r\n*1\r\n:1\r\n*2\r\n:1\r\n:2\r\n",
    b"*8\r\n" + b":1\r\n" * 8,
    b"*8\r\n" + b"*1\r\n:1\r\n" * 8,
    b"*10\r\n" + b"$1\r\nx\r\n" * 10,
]
"""Replies of other shapes than the calls expect."""

CALLS: dict[str, Callable[[Any], Any]] = {
    "add": lambda b: b.stream("s").add(1),
    "add with headers": lambda b: b.stream("s").add(1, headers={"a": "b"}),
    "add_many": lambda b: b.stream("s").add_many([1, 2]),
    "add_once": lambda b: b.stream("s").add_once("id", 1, window=60),
    "cancel": lambda b: b.stream("s").cancel("1-1"),
    "trim": lambda b: b.stream("s").trim(ailf.Retention(max_len=1)),
    "read": lambda b: b.stream("s").read(),
    "delete": lambda b: b.stream("s").delete(),
    "open": lambda b: b.stream("s").group("g").open(),
    "info": lambda b: b.stream("s").group("g").info(),
    "seek": lambda b: b.stream("s").group("g").seek(ailf.EARLIEST),
    "pause": lambda b: b.stream("s").group("g").pause(),
    "get": lambda b: b.stream("s").group("g").consumer().get(timeout=0),
    "letters": lambda b: b.stream("s").group("g").dead_letters.list(),
    "lock": lambda b: b.lock("l").try_acquire(),
    "inspect": lambda b: b.lock("l").inspect(),
    "break": lambda b: b.lock("l").break_(1),
    "decide": lambda b: b.rate_limiter("r", "5/minute").try_acquire("k"),
    "reset": lambda b: b.rate_limiter("r", "5/minute").reset("k"),
    "publish": lambda b: b.pubsub().publish("c", 1),
    "publish_many": lambda b: b.pubsub().publish_many([("c", 1), ("d", 2)]),
    "ping": lambda b: b.ping(),
}


REFUSALS = [
    b"-\r\n",
    b"-MOVED\r\n",
    b"-MOVED 1\r\n",
    b"-MOVED x y:z\r\n",
    b"-ASK 1 :\r\n",
    b"-ERR \xff\xfe\r\n",
    b"*1\r\n-MOVED\r\n",
    b"*3\r\n-MOVED\r\n-ASK 1\r\n%1\r\n+a\r\n:1\r\n",
]
"""Error replies for which redis-py raises instead of making an error, alone and within lists."""


def opened(server: Scripted, kind: str, timeout: float = 1.0) -> Any:
    """Return a backend on the server, opened by URL or over a user's client."""
    options = {"timeout": timeout, "retry_for": 0.0, "max_payload": 1000}
    if not kind.startswith("user_client"):
        url = f"{server.url}?" + "&".join(f"{name}={value}" for name, value in options.items())
        return RedisBackend(url) if kind == "blocking" else AsyncRedisBackend(url)
    quiet: dict[str, Any] = {**options_of(server.url), **SILENT}
    if kind == "user_client-blocking":
        return RedisBackend.from_client(redis.Redis(**quiet), **options)  # type: ignore[arg-type]  # all are numbers
    return AsyncRedisBackend.from_client(aredis.Redis(**quiet), **options)  # type: ignore[arg-type]  # as above


def options_of(url: str) -> dict[str, Any]:
    """Return the options of a client for a URL."""
    return {name: value for name, value in parse_url(url).items() if value}


async def error_of(server: Scripted, kind: str, call: Callable[[Any], Any], timeout: float = 1.0) -> Exception | None:
    """Make one call on a backend of its own; return the error of ailf that it raises, or None."""
    backend = opened(server, kind, timeout)
    try:
        await waited(call(backend))
    except ailf.AilfError as error:
        return error
    finally:
        await waited(backend.close() if isinstance(backend, RedisBackend) else backend.aclose())
    return None


async def waited(result: Any) -> Any:
    """Return a result, awaited if it is awaitable."""
    return await result if hasattr(result, "__await__") else result


def play(kind: str, flow: Coroutine[Any, Any, None]) -> None:
    """Run a flow on asyncio, or on this thread."""
    if kind.endswith("asyncio"):
        asyncio.run(flow)
    else:
        run(flow)


kinds = pytest.mark.parametrize("kind", ["blocking", "asyncio", "user_client-blocking", "user_client-asyncio"])


@kinds
def test_malformed_replies(kind: str) -> None:
    """After a malformed reply each call raises a ProtocolError, and may have been carried out."""

    async def flow() -> None:
        for reply in BROKEN:
            with Scripted(lambda _, reply=reply: [reply], greets=False) as server:  # type: ignore[misc]  # reply is bytes
                for name, call in CALLS.items():
                    error = await error_of(server, kind, call)
                    assert isinstance(error, ailf.ProtocolError), (reply, name, error)
                    assert error.maybe_applied
                    assert "Is it a Redis server" in str(error)

    play(kind, flow())


@kinds
@pytest.mark.parametrize("piecewise", [False, True])
def test_a_list_that_announces_too_much(kind: str, piecewise: bool) -> None:
    """Twelve bytes that announce hundreds of millions of elements are refused before memory is allocated for them."""

    async def flow() -> None:
        for reply in (b">200000000\r\n", b"*200000000\r\n", b"~200000000\r\n", b"%200000000\r\n"):
            pieces = trickled(reply, 0.01) if piecewise else [reply]
            with Scripted(lambda _, pieces=pieces: pieces, greets=False) as server:  # type: ignore[misc]  # as above
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                error = await error_of(server, kind, CALLS["publish"])
                assert isinstance(error, ailf.ProtocolError), reply
                assert "begins with" in str(error) or "a list that is longer" in str(error)
                assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"

    play(kind, flow())


@kinds
def test_error_replies_of_nonsense(kind: str) -> None:
    """An error reply with any text is an error of ailf; hiredis crashed the process if redis-py raised for it."""

    async def flow() -> None:
        for reply in REFUSALS:
            with Scripted(lambda _, reply=reply: [reply], greets=False) as server:  # type: ignore[misc]  # as above
                for name, call in CALLS.items():
                    error = await error_of(server, kind, call)
                    assert reply.startswith(b"*") or isinstance(error, ailf.BackendError), (reply, name)

    play(kind, flow())


@kinds
def test_nonsense_in_the_handshake(kind: str) -> None:
    """Nonsense in the handshake ends the call with an error of ailf."""

    async def flow() -> None:
        for reply in (*BROKEN, *WRONG, *REFUSALS):
            with Scripted(lambda _, reply=reply: [reply], greets=False) as server:  # type: ignore[misc]  # as above
                server.url = server.url.replace("redis://", "redis://user:word@").replace("/0", "/1")
                error = await error_of(server, kind, CALLS["ping"])
                assert error is not None, reply

    play(kind, flow())


@pytest.mark.parametrize("words", ["MOVED", "MOVED 1 a:1", "NOSCRIPT"])
def test_an_interrupt_while_an_error_is_read(words: str) -> None:
    """Ctrl-C at any line between an error reply and its error is raised, and doesn't crash the process."""
    moment, interrupted = 0, True
    while interrupted:
        moment += 1
        replies = Replies(BaseParser.parse_error)
        reply = f"*3\r\n-{words}\r\n-{words}\r\n%1\r\n+a\r\n:1\r\n-{words}\r\n".encode()
        replies.buffer[: len(reply)] = reply
        interrupted = False
        try:
            with Interruption(moment, within=("/ailf_redis/connection/resp.py", "/redis/")):
                replies.feed(len(reply), lambda: READ_SIZE)
        except KeyboardInterrupt:
            interrupted = True
    assert moment > 10


@kinds
def test_replies_of_another_shape(kind: str) -> None:
    """A call accepts a reply of another shape if it has a meaning, or raises an error of ailf, never a TypeError."""

    async def flow() -> None:
        misread = 0
        for reply in WRONG:
            with Scripted(lambda _, reply=reply: [reply], greets=False) as server:  # type: ignore[misc]  # as above
                for call in CALLS.values():
                    misread += isinstance(await error_of(server, kind, call), ailf.ProtocolError)
        assert misread > 100

    play(kind, flow())


ELEMENTS = [b"*0\r\n", b"*-1\r\n", b"$-1\r\n", b"$0\r\n\r\n", b"-ERR\r\n", b"*1\r\n:1\r\n"]
"""Parts of replies that are neither numbers nor texts, except an empty text."""


def shaped(shape: str, part: bytes) -> bytes:
    """Return a reply: n is a number, t an id, b the body's field name, ? the part, a digit the length of a list."""
    return b"".join(
        {
            "n": b":1\r\n",
            "t": b"$3\r\n1-1\r\n",
            "b": b"$9\r\nailf.body\r\n",
            "?": part,
            "A": b"*10\r\n",
        }.get(each, b"*" + each.encode() + b"\r\n")
        for each in shape
    )


OPENS = OPEN_GROUP.sha.encode()


def _but(shape: str, at: int) -> str:
    return f"{shape[:at]}?{shape[at + 1 :]}"


SHAPES = {
    "publish": ["?"],
    "publish_many": ["?"],
    "cancel": ["?"],
    "seek": ["?"],
    "pause": ["?"],
    "break": ["?"],
    "trim": ["3?nt", "3n?t"],
    "read": ["12t2b?", "12?2bt"],
    "get": ["8012t2b?n0nttn", "8012t2bt?0nttn", "8012t2btn0?ttn", "8012t2btn0ntt?"],
    "lock": ["2?n", "2n?"],
    "inspect": ["212?nn", "212n?n", "20?"],
    "info": ["A" + _but("nnnnn0nnnn", at) for at in (0, 1, 2, 3, 4, 6, 7, 8, 9)],
    "decide": ["8" + _but("nnnnnnnn", at) for at in range(8)],
}
"""Calls, and replies to them that are right except for one part; A is a list of ten."""


@kinds
def test_replies_with_one_part_of_another_kind(kind: str) -> None:
    """A reply with one part of a wrong type is a ProtocolError, and never becomes a value."""

    async def flow() -> None:
        for name, shapes in SHAPES.items():
            for shape in shapes:
                for part in ELEMENTS:
                    reply = shaped(shape, part)
                    if name == "read" and part == b"$0\r\n\r\n":  # an empty text is a valid field
                        continue
                    with Scripted(lambda command, reply=reply: [b":1\r\n" if OPENS in command else reply]) as server:  # type: ignore[misc]  # as above
                        error = await error_of(server, kind, CALLS[name])
                        alone = shape == "?" and part.startswith(b"-")  # an error reply
                        expected = ailf.BackendError if alone else ailf.ProtocolError
                        assert isinstance(error, expected), (name, reply, error)

    play(kind, flow())


@kinds
def test_a_reply_without_end(kind: str) -> None:
    """A call gives up a reply that exceeds its limit; the limit of a page is higher than that of other replies."""
    sent: list[int] = []

    def flood(command: list[bytes]) -> Iterable[bytes]:
        if command[0] == b"HGET":  # the number of partitions
            yield b"$1\r\n1\r\n"
            return
        sent.append(0)
        yield b"$2000000000\r\n"
        for _ in range(2000):
            sent[-1] += 1
            yield b"x" * 1_000_000

    async def flow() -> None:
        with Scripted(flood) as server:
            assert isinstance(await error_of(server, kind, CALLS["add"], 20.0), ailf.ProtocolError)
            assert sent[-1] < 30, "megabytes: one is the limit, and the system buffers some"
            assert isinstance(await error_of(server, kind, CALLS["read"], 20.0), ailf.ProtocolError)
            assert 64 < sent[-1] < 200

    play(kind, flow())


@kinds
def test_a_subscription_to_nonsense(kind: str) -> None:
    """Nonsense in reply to a SUBSCRIBE is an error when the subscription is entered, and nothing hangs."""

    async def flow() -> None:
        with Scripted(lambda _: [b"*3\r\n:1\r\n:2\r\n:3\r\n"]) as server:
            backend = opened(server, kind)
            listening = backend.pubsub().listen("c")
            with pytest.raises(ailf.AilfError):
                await waited(listening.__enter__() if isinstance(backend, RedisBackend) else listening.__aenter__())
            await waited(backend.close() if isinstance(backend, RedisBackend) else backend.aclose())

    play(kind, flow())


def test_entries_of_others_may_be_large(any_server: Server, namespace: str) -> None:
    """A foreign entry that is larger than `max_payload` becomes a dead letter, and the next entry is delivered."""
    url = f"{any_server.url}?namespace={namespace}&max_payload=1000"
    with ailf.connect(url) as backend, any_server.client() as raw:
        stream = backend.stream("s")
        key = Keys(namespace).stream("s")
        raw.xadd(key, {"ailf.body": b"x" * 5_000_000})
        stream.add("next")
        group = stream.group("g")
        with group.consumer() as consumer:
            delivery = consumer.get(5)
            assert delivery is not None
            assert delivery.data == "next"
            delivery.ack()
        assert [len(letter.body) for letter in group.dead_letters.list()] == [5_000_000]
        stream.delete()


def test_requests_behind_nonsense() -> None:
    """Of the pending requests the oldest gets a ProtocolError for nonsense, and the others a ConnectionLostError."""

    async def main() -> None:
        with Scripted(lambda _: [b"what?\r\n"]) as server:
            executor = AsyncioExecutor(Settings.from_url(server.url))
            with pytest.raises(ailf.ProtocolError):
                await executor.call("PING")
            ends = await asyncio.gather(*(executor.call("PING") for _ in range(4)), return_exceptions=True)
            assert [type(each) for each in ends] == [ailf.ProtocolError, *[ailf.ConnectionLostError] * 3]
            await executor.close()

    asyncio.run(main())


def test_a_reply_before_nonsense() -> None:
    """A reply that arrives together with nonsense still reaches its call."""
    replies = iter([(), (b"+PONG\r\nwhat?\r\n",)])

    async def main() -> None:
        with Scripted(lambda _: next(replies)) as server:
            executor = AsyncioExecutor(Settings.from_url(server.url))
            ends = await asyncio.gather(*(executor.call("PING") for _ in range(2)), return_exceptions=True)
            assert ends[0] == b"PONG"
            assert isinstance(ends[1], ailf.ProtocolError)
            await executor.close()

    asyncio.run(main())


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_a_flood_on_a_link(flavour: str) -> None:
    """A link is closed when a reply is larger than a page may be."""
    sent = [0]

    def flood(_: list[bytes]) -> Iterable[bytes]:
        yield b"$2000000000\r\n"
        for _ in range(1000):
            sent[0] += 1
            yield b"x" * 1_000_000

    async def flow() -> None:
        with Scripted(flood) as server:
            settings = Settings.from_url(f"{server.url}?max_payload=1000")
            executor: Any = BlockingExecutor(settings) if flavour == "blocking" else AsyncioExecutor(settings)
            link = await executor.link()
            await link.send([("SUBSCRIBE", "c")])
            with pytest.raises(ailf.ProtocolError):
                await link.receive(20)
            assert 64 < sent[0] < 200
            await link.close()
            await executor.close()

    play(flavour, flow())
