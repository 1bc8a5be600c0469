"""Both executors over TCP, TLS and unix sockets: replies of all sizes, and what is said when a connection breaks."""

import asyncio
import select
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import attrs
import pytest
import uvloop

from ailf.errors import BackendTimeoutError
from ailf.runtime import run
from ailf_redis.pool import BlockingExecutor
from ailf_redis.settings import Settings
from ailf_redis.wire import AsyncioExecutor, _Wire
from tests.servers import NewServer, Server
from tests.tls import HOST, Certificates, Terminator

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
        if executor._wire is not None:
            await asyncio.wait_for(asyncio.shield(executor._wire.gone), 5)
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
    asked = _Wire.MOST + 1000

    async def main() -> None:
        executor = AsyncioExecutor(attrs.evolve(Settings.from_url(server.url), timeout=20.0))
        assert await executor.call("PING") == b"PONG"
        wire = executor._wire
        assert wire is not None
        server.pause()
        try:
            calls = [asyncio.ensure_future(executor.call("ECHO", str(number))) for number in range(asked)]
            for _ in range(10):
                await asyncio.sleep(0)
            assert len(wire._queue) == _Wire.MOST
        finally:
            server.resume()
        async with asyncio.timeout(20):
            assert await asyncio.gather(*calls) == [str(number).encode() for number in range(asked)]
        await executor.close()

    asyncio.run(main())
