"""Both executors over TCP, TLS and unix sockets: replies of all sizes, and what is said when a connection breaks."""

import asyncio
import select
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import attrs
import pytest
import uvloop

from ailf.errors import BackendError, BackendTimeoutError, ConnectionLostError, ProtocolError
from ailf.runtime import run
from ailf_redis.connection.aio import AsyncioExecutor, PipelinedConnection
from ailf_redis.connection.blocking import BlockingExecutor
from ailf_redis.connection.resp import CommandPrefix
from ailf_redis.settings import Settings
from tests.support.servers import NewServer, Server
from tests.support.tls import HOST, Certificates, Terminator

Either = BlockingExecutor | AsyncioExecutor
Flow = Callable[[Either], Coroutine[Any, Any, None]]

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
LARGE = b"x" * 1_000_000
"""Many records of TLS, and more than any buffer on the way."""


@attrs.frozen
class Place:
    """A server, and how it is reached.

    Attributes:
        server: The server; its plain port is for the test itself.
        settings: The way to it.
    """

    server: Server
    settings: Settings


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Of this module's servers."""
    return Certificates.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["tcp", "tls", "unix"])
def place(request: pytest.FixtureRequest, new_server: NewServer, certificates: Certificates) -> Iterator[Place]:
    """A server of its own behind each kind of socket."""
    server = new_server(unixsocket=request.param == "unix")
    if request.param == "tls":
        with Terminator(certificates, server.port) as tls:
            yield Place(server, Settings(HOST, tls.port, tls=True, tls_ca=str(certificates.ca), timeout=1.0))
        return
    url = server.unix_url if request.param == "unix" else server.url
    yield Place(server, attrs.evolve(Settings.from_url(url), timeout=1.0))


@pytest.fixture(params=["blocking", *LOOPS])
def play(request: pytest.FixtureRequest, place: Place) -> Callable[[Flow], None]:
    """Run a flow with an executor, blocking or on each kind of loop, within a deadline."""

    def on_threads(flow: Flow) -> None:
        executor = BlockingExecutor(place.settings)
        try:
            run(flow(executor))
        finally:
            run(executor.close())

    async def within(flow: Flow) -> None:
        executor = AsyncioExecutor(place.settings)
        try:
            async with asyncio.timeout(20):
                await flow(executor)
        finally:
            await executor.close()

    def on_loop(flow: Flow) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(within(flow))

    return on_threads if request.param == "blocking" else on_loop


def test_calls_of_all_sizes(play: Callable[[Flow], None]) -> None:
    """A small reply, a large one and several of each come whole, in order, and leave nothing for the next call."""

    async def flow(executor: Either) -> None:
        for _ in range(20):
            assert await executor.call("ECHO", "a") == b"a"
            assert await executor.call("ECHO", LARGE) == LARGE
            replies = await executor.call_many([("ECHO", LARGE), ("NO-SUCH",), ("ECHO", "b")])
            assert replies[0] == LARGE
            assert isinstance(replies[1], Exception)
            assert replies[2] == b"b"

    play(flow)


def test_a_connection_closed_while_idle_costs_no_call(place: Place, play: Callable[[Flow], None]) -> None:
    """What the server closed before a call is seen before it is used, so the call is certain, and works."""

    async def flow(executor: Either) -> None:
        with place.server.client() as admin:
            for number in range(10):
                assert await executor.call("INCR", "n") == number + 1
                admin.client_kill_filter(_type="normal", skipme=True)
                await _seen(executor)

    play(flow)


async def _seen(executor: Either) -> None:
    """Wait until the end of the connection has come to this side; what is still under way nobody can see."""
    if isinstance(executor, AsyncioExecutor):
        if executor._connection is not None:
            await asyncio.wait_for(asyncio.shield(executor._connection.closed_event), 5)
    else:
        readable, _, _ = select.select([executor._idle[-1]._socket], [], [], 5)
        assert readable


def test_a_silent_server_ends_in_a_deadline(place: Place, play: Callable[[Flow], None]) -> None:
    """A server that stops answering costs the timeout; what it says later reaches nobody else."""

    async def flow(executor: Either) -> None:
        assert await executor.call("ECHO", "before") == b"before"
        place.server.pause()
        try:
            with pytest.raises(BackendTimeoutError) as told:
                await executor.call("ECHO", "lost")
        finally:
            place.server.resume()
        assert told.value.maybe_applied
        assert [await executor.call("ECHO", str(number)) for number in range(5)] == [b"0", b"1", b"2", b"3", b"4"]

    play(flow)


def test_a_link_sends_and_receives(play: Callable[[Flow], None]) -> None:
    """What blocks or subscribes has a connection of its own, on every transport."""

    async def flow(executor: Either) -> None:
        link = await executor.link()
        await link.send([("SUBSCRIBE", "c")])
        assert await link.receive(5) == [[b"subscribe", b"c", 1]]
        assert await executor.call("PUBLISH", "c", LARGE) == 1
        received = await link.receive(5)
        assert received == [[b"message", b"c", LARGE]]
        assert await link.receive(0.01) == []
        await link.close()

    play(flow)


def test_requests_in_flight_are_bounded(new_server: NewServer) -> None:
    """B8: while a server is silent, so many requests wait for it, the others for their turn."""
    server = new_server()
    asked = PipelinedConnection.MAX_IN_FLIGHT + 1000

    async def main() -> None:
        executor = AsyncioExecutor(attrs.evolve(Settings.from_url(server.url), timeout=20.0))
        assert await executor.call("PING") == b"PONG"
        connection = executor._connection
        assert connection is not None
        server.pause()
        try:
            calls = [asyncio.ensure_future(executor.call("ECHO", str(number))) for number in range(asked)]
            for _ in range(10):
                await asyncio.sleep(0)
            assert len(connection._queue) == PipelinedConnection.MAX_IN_FLIGHT
        finally:
            server.resume()
        async with asyncio.timeout(20):
            assert await asyncio.gather(*calls) == [str(number).encode() for number in range(asked)]
        await executor.close()

    asyncio.run(main())


def test_who_waits_for_his_turn_has_a_deadline(new_server: NewServer) -> None:
    """While a server stays silent, those who wait for a request's place end as those do who have one: nothing hangs."""
    server = new_server()

    async def main() -> None:
        executor = AsyncioExecutor(attrs.evolve(Settings.from_url(server.url), timeout=0.3))
        assert await executor.call("PING") == b"PONG"
        server.pause()
        try:
            calls = [asyncio.ensure_future(executor.call("PING")) for _ in range(PipelinedConnection.MAX_IN_FLIGHT + 100)]
            async with asyncio.timeout(10):
                ends = await asyncio.gather(*calls, return_exceptions=True)
        finally:
            server.resume()
        assert all(isinstance(each, BackendTimeoutError) and each.maybe_applied for each in ends[: PipelinedConnection.MAX_IN_FLIGHT])
        turned_away = ends[PipelinedConnection.MAX_IN_FLIGHT :]
        assert all(isinstance(each, BackendError) and not each.maybe_applied for each in turned_away), turned_away
        assert await executor.call("PING") == b"PONG"
        await executor.close()

    asyncio.run(main())


@pytest.fixture
def on_loop(server: Server) -> Iterator[tuple[asyncio.AbstractEventLoop, AsyncioExecutor]]:
    """An event loop that the test runs as it likes, and an executor with a short deadline."""
    loop = asyncio.new_event_loop()
    executor = AsyncioExecutor(attrs.evolve(Settings.from_url(server.url), timeout=0.5))
    assert loop.run_until_complete(_call(executor, "PING")) == b"PONG"
    yield loop, executor
    loop.run_until_complete(executor.close())
    loop.close()


async def _call(executor: AsyncioExecutor, *command: Any) -> Any:
    return await executor.call(*command)


def test_a_requests_time_begins_when_it_is_sent(on_loop: tuple[asyncio.AbstractEventLoop, AsyncioExecutor]) -> None:
    """A loop that was blocked for longer than the deadline sends late, and the server has its time all the same."""
    loop, executor = on_loop

    async def scenario() -> None:
        first = executor.call("ECHO", "first")
        time.sleep(0.6)  # noqa: ASYNC251 - this is what is tested
        second = executor.call("ECHO", "second")
        assert [await first, await second] == [b"first", b"second"]

    loop.run_until_complete(scenario())


def test_what_is_interrupted_while_replies_are_taken_reaches_nobody_else(
    on_loop: tuple[asyncio.AbstractEventLoop, AsyncioExecutor],
) -> None:
    """B8: Ctrl-C among replies that have come together ends the connection; the next calls get their own."""
    loop, executor = on_loop

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    async def several() -> list[Any]:
        ask = [
            executor.call_prefixed(CommandPrefix.of("ECHO"), b"1", interrupted),
            *(executor.call("ECHO", each) for each in range(9)),
        ]
        return await asyncio.gather(*ask, return_exceptions=True)

    calls = loop.create_task(several())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(calls)
    ends = loop.run_until_complete(asyncio.wait_for(calls, 5))
    assert all(isinstance(each, ConnectionLostError) and each.maybe_applied for each in ends), ends
    for number in range(100):
        assert loop.run_until_complete(_call(executor, "ECHO", number)) == b"%d" % number


def test_what_is_no_reply_ends_the_connection(on_loop: tuple[asyncio.AbstractEventLoop, AsyncioExecutor]) -> None:
    """What a server can't have meant is an error that says so, and it isn't known what was carried out."""
    loop, executor = on_loop

    async def scenario() -> None:
        call = executor.call("BLPOP", "nothing", 5)
        connection = executor._connection
        assert connection is not None
        garbage = b"what is this?\r\n"
        connection.get_buffer(-1)[: len(garbage)] = garbage
        connection.buffer_updated(len(garbage))
        with pytest.raises(ProtocolError, match="Is it a Redis server") as caught:
            await call
        assert caught.value.maybe_applied
        assert await executor.call("PING") == b"PONG"

    loop.run_until_complete(scenario())


def test_nothing_is_asked_for_no_commands(place: Place, play: Callable[[Flow], None]) -> None:
    """No commands have no replies, and take nobody else's."""

    async def flow(executor: Either) -> None:
        assert await executor.call_many([]) == []
        assert await executor.call("ECHO", "mine") == b"mine"

    play(flow)
