"""Both executors over TCP, TLS and unix sockets: replies of all sizes, and errors of broken connections."""

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
MAX = PipelinedConnection.MAX_IN_FLIGHT
LARGE = b"x" * 1_000_000
"""It takes many records of TLS, and is larger than any buffer on the way."""


@attrs.frozen
class Target:
    """A server, and the settings with which executors connect to it.

    Attributes:
        server: The server; the test itself uses its plain port.
        settings: The settings.
    """

    server: Server
    settings: Settings


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """The certificates of this module's servers."""
    return Certificates.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["tcp", "tls", "unix"])
def target(request: pytest.FixtureRequest, new_server: NewServer, certificates: Certificates) -> Iterator[Target]:
    """A server of the test's own, over each kind of socket."""
    server = new_server(unixsocket=request.param == "unix")
    if request.param == "tls":
        with Terminator(certificates, server.port) as tls:
            yield Target(server, Settings(HOST, tls.port, tls=True, tls_ca=str(certificates.ca), timeout=1.0))
        return
    url = server.unix_url if request.param == "unix" else server.url
    yield Target(server, attrs.evolve(Settings.from_url(url), timeout=1.0))


@pytest.fixture(params=["blocking", *LOOPS])
def play(request: pytest.FixtureRequest, target: Target) -> Callable[[Flow], None]:
    """Run a flow with an executor, blocking or on each kind of loop, within a deadline."""

    def on_threads(flow: Flow) -> None:
        executor = BlockingExecutor(target.settings)
        try:
            run(flow(executor))
        finally:
            run(executor.close())

    async def within(flow: Flow) -> None:
        executor = AsyncioExecutor(target.settings)
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
    """Small and large replies, alone and together, are complete and in order, and leave nothing for the next call."""

    async def flow(executor: Either) -> None:
        for _ in range(20):
            assert await executor.call("ECHO", "a") == b"a"
            assert await executor.call("ECHO", LARGE) == LARGE
            replies = await executor.call_many([("ECHO", LARGE), ("NO-SUCH",), ("ECHO", "b")])
            assert replies[0] == LARGE
            assert isinstance(replies[1], Exception)
            assert replies[2] == b"b"

    play(flow)


def test_a_connection_closed_while_idle_costs_no_call(target: Target, play: Callable[[Flow], None]) -> None:
    """A call notices a connection that the server has closed before it sends, and works over another one."""

    async def flow(executor: Either) -> None:
        with target.server.client() as admin:
            for number in range(10):
                assert await executor.call("INCR", "n") == number + 1
                admin.client_kill_filter(_type="normal", skipme=True)
                await _wait_until_closed(executor)

    play(flow)


async def _wait_until_closed(executor: Either) -> None:
    """Wait until the end of the connection has arrived here; before that nothing can notice it."""
    if isinstance(executor, AsyncioExecutor):
        if executor._connection is not None:
            await asyncio.wait_for(asyncio.shield(executor._connection.closed_event), 5)
    else:
        readable, _, _ = select.select([executor._idle[-1]._socket], [], [], 5)
        assert readable


def test_a_silent_server_ends_in_a_deadline(target: Target, play: Callable[[Flow], None]) -> None:
    """A call to a frozen server ends after `timeout`; its late reply reaches no other call."""

    async def flow(executor: Either) -> None:
        assert await executor.call("ECHO", "before") == b"before"
        target.server.pause()
        try:
            with pytest.raises(BackendTimeoutError) as raised:
                await executor.call("ECHO", "lost")
        finally:
            target.server.resume()
        assert raised.value.maybe_applied
        assert [await executor.call("ECHO", str(number)) for number in range(5)] == [b"0", b"1", b"2", b"3", b"4"]

    play(flow)


def test_a_link_sends_and_receives(play: Callable[[Flow], None]) -> None:
    """A link subscribes and receives beside the executor's calls, over every transport."""

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
    """B8: at most `MAX_IN_FLIGHT` requests are in flight to a silent server; further calls wait."""
    server = new_server()
    count = MAX + 1000

    async def main() -> None:
        executor = AsyncioExecutor(attrs.evolve(Settings.from_url(server.url), timeout=20.0))
        assert await executor.call("PING") == b"PONG"
        connection = executor._connection
        assert connection is not None
        server.pause()
        try:
            calls = [asyncio.ensure_future(executor.call("ECHO", str(number))) for number in range(count)]
            for _ in range(10):
                await asyncio.sleep(0)
            assert len(connection._queue) == MAX
        finally:
            server.resume()
        async with asyncio.timeout(20):
            assert await asyncio.gather(*calls) == [str(number).encode() for number in range(count)]
        await executor.close()

    asyncio.run(main())


def test_calls_that_wait_for_capacity_have_a_deadline(new_server: NewServer) -> None:
    """Calls that wait for capacity while a server is silent end in time, like the requests in flight."""
    server = new_server()

    async def main() -> None:
        executor = AsyncioExecutor(attrs.evolve(Settings.from_url(server.url), timeout=0.3))
        assert await executor.call("PING") == b"PONG"
        server.pause()
        try:
            calls = [asyncio.ensure_future(executor.call("PING")) for _ in range(MAX + 100)]
            async with asyncio.timeout(10):
                ends = await asyncio.gather(*calls, return_exceptions=True)
        finally:
            server.resume()
        assert all(isinstance(each, BackendTimeoutError) and each.maybe_applied for each in ends[:MAX])
        turned_away = ends[MAX:]
        assert all(isinstance(each, BackendError) and not each.maybe_applied for each in turned_away), turned_away
        assert await executor.call("PING") == b"PONG"
        await executor.close()

    asyncio.run(main())


@pytest.fixture
def on_loop(server: Server) -> Iterator[tuple[asyncio.AbstractEventLoop, AsyncioExecutor]]:
    """An event loop that the test runs step by step, and an executor with a short deadline."""
    loop = asyncio.new_event_loop()
    executor = AsyncioExecutor(attrs.evolve(Settings.from_url(server.url), timeout=0.5))
    assert loop.run_until_complete(_call(executor, "PING")) == b"PONG"
    yield loop, executor
    loop.run_until_complete(executor.close())
    loop.close()


async def _call(executor: AsyncioExecutor, *command: Any) -> Any:
    return await executor.call(*command)


def test_a_requests_time_begins_when_it_is_sent(on_loop: tuple[asyncio.AbstractEventLoop, AsyncioExecutor]) -> None:
    """A request's time begins when it is written, not when a blocked loop was asked to send it."""
    loop, executor = on_loop

    async def scenario() -> None:
        first = executor.call("ECHO", "first")
        time.sleep(0.6)  # noqa: ASYNC251 - the test blocks the loop on purpose
        second = executor.call("ECHO", "second")
        assert [await first, await second] == [b"first", b"second"]

    loop.run_until_complete(scenario())


def test_ctrl_c_among_replies_closes_the_connection(
    on_loop: tuple[asyncio.AbstractEventLoop, AsyncioExecutor],
) -> None:
    """B8: Ctrl-C among replies that arrive together closes the connection; later calls get their own replies."""
    loop, executor = on_loop

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    async def several() -> list[Any]:
        calls = [
            executor.call_prefixed(CommandPrefix.of("ECHO"), b"1", interrupted),
            *(executor.call("ECHO", each) for each in range(9)),
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    calls = loop.create_task(several())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(calls)
    ends = loop.run_until_complete(asyncio.wait_for(calls, 5))
    assert all(isinstance(each, ConnectionLostError) and each.maybe_applied for each in ends), ends
    for number in range(100):
        assert loop.run_until_complete(_call(executor, "ECHO", number)) == b"%d" % number


def test_a_malformed_reply_closes_the_connection(on_loop: tuple[asyncio.AbstractEventLoop, AsyncioExecutor]) -> None:
    """A malformed reply is a ProtocolError, and the request may have been carried out."""
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


def test_an_empty_list_of_commands(play: Callable[[Flow], None]) -> None:
    """No commands get no replies, and the next call gets its own."""

    async def flow(executor: Either) -> None:
        assert await executor.call_many([]) == []
        assert await executor.call("ECHO", "mine") == b"mine"

    play(flow)
