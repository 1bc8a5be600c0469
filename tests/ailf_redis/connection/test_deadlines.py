"""A call's time is counted once: it ends in time if a reply trickles, or if a server is frozen or refuses."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import attrs
import fakeredis
import pytest
import redis
from redis import asyncio as aredis
from redis.asyncio import sentinel as asentinel
from redis.sentinel import Sentinel

import ailf
from ailf.engine import engine
from ailf.errors import BackendTimeoutError
from ailf.runtime import AsyncioRuntime, ThreadRuntime, run
from ailf.stream import consumer_flow
from ailf_redis import AsyncRedisBackend, RedisBackend, Settings
from ailf_redis.cluster.executor import ClusterExecutor
from ailf_redis.connection.aio import AsyncioExecutor
from ailf_redis.connection.blocking import BlockingExecutor
from ailf_redis.connection.endpoint import ClusterEndpoints, ServerEndpoint, clean
from ailf_redis.connection.executor import Executor
from ailf_redis.pooled.executor import PooledExecutor
from ailf_redis.versions import SILENT
from tests.support.blackhole import black_hole
from tests.support.scripted import Scripted, trickled
from tests.support.servers import NewServer, Server
from tests.support.tls import HOST, Certificates, Terminator

BULK = b"$40\r\n" + b"x" * 40 + b"\r\n"
TIMEOUT = 0.3
KINDS = ("blocking", "asyncio", "user_client-blocking", "user_client-asyncio")


def executor(kind: str, settings: Settings) -> Executor:
    """Return an executor: one that a URL opens, or one for a user's client."""
    if not kind.startswith("user_client"):
        return BlockingExecutor(settings) if kind == "blocking" else AsyncioExecutor(settings)
    connection, runtime = {
        "user_client-blocking": (redis.Connection, ThreadRuntime()),
        "user_client-asyncio": (aredis.Connection, AsyncioRuntime()),
    }[kind]
    options = clean({"host": settings.host, "port": settings.port, "password": settings.password}, settings.timeout)
    options |= {**SILENT, "socket_connect_timeout": settings.connect_timeout}
    return PooledExecutor(settings, ServerEndpoint(connection, options, settings.url), runtime)


def play(kind: str, settings: Settings, flow: Callable[[Executor], Coroutine[Any, Any, None]]) -> None:
    """Run a flow with an executor, within a deadline."""

    async def within() -> None:
        opened = executor(kind, settings)
        try:
            await flow(opened)
        finally:
            await opened.close()

    async def on_asyncio() -> None:
        async with asyncio.timeout(20):
            await within()

    if kind.endswith("asyncio"):
        asyncio.run(on_asyncio())
    else:
        run(within())


async def late(call: Awaitable[Any], *, applied: bool = True) -> None:
    """Expect that a call raises BackendTimeoutError."""
    with pytest.raises(BackendTimeoutError) as raised:
        await call
    assert raised.value.maybe_applied is applied


# --- one call -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_that_trickles(kind: str) -> None:
    """B10: the bytes of a reply that trickles, be it the first or a later one, don't restart the call's time."""
    replies = {b"ECHO": trickled, b"PING": lambda reply: [reply]}
    with Scripted(lambda command: replies[command[0]](BULK)) as server:

        async def flow(opened: Executor) -> None:
            assert await opened.call("PING") == b"x" * 40
            await late(opened.call("ECHO"))
            await late(opened.call_many([("PING",), ("ECHO",)]))
            assert await opened.call("PING") == b"x" * 40

        play(kind, Settings(HOST, server.port, timeout=TIMEOUT), flow)
    assert server.finished == 3, "each call ended before its reply was complete"


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_reply_that_trickles_over_tls(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """B10: the same over TLS."""
    certificates = Certificates.make(tmp_path_factory.mktemp("tls"))
    with Scripted(lambda command: trickled(BULK, 0.1)) as server, Terminator(certificates, server.port) as tls:

        async def flow(opened: Executor) -> None:
            await late(opened.call("ECHO"))
            await late(opened.call("ECHO"))

        settings = Settings(HOST, tls.port, tls=True, tls_ca=str(certificates.ca), timeout=1.5, connect_timeout=5.0)
        play(kind, settings, flow)
    assert server.finished == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_reply_in_time(kind: str, any_server: Server) -> None:
    """A reply that arrives quickly in many pieces is complete, and the next call works over the same socket."""
    large = b"x" * 3_000_000

    async def flow(opened: Executor) -> None:
        for _ in range(3):
            assert await opened.call_page(4, "ECHO", large) == large
            assert await opened.call_many([("ECHO", b"1"), ("ECHO", large), ("ECHO", b"2")], 4) == [b"1", large, b"2"]
            assert await opened.call("PING") == b"PONG"

    play(kind, attrs.evolve(Settings.from_url(any_server.url), timeout=10.0), flow)


@pytest.mark.parametrize("kind", KINDS)
def test_a_handshake_that_trickles(kind: str) -> None:
    """B10: connecting ends after `connect_timeout` in all, and the request is not sent."""
    with Scripted(lambda command: trickled(b"+OK\r\n" if command[0] != b"AUTH" else b"+" + b"O" * 99, 0.05)) as server:

        async def flow(opened: Executor) -> None:
            await late(opened.call("ECHO"), applied=False)

        settings = Settings(HOST, server.port, timeout=TIMEOUT, connect_timeout=TIMEOUT, password="secret")
        begin = time.monotonic()
        play(kind, settings, flow)
        assert time.monotonic() - begin < 3, "the reply takes five seconds"
        assert [command[0] for received in server.commands for command in received] == [b"AUTH"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_that_is_late_is_kept(kind: str) -> None:
    """A call ends if connecting takes longer than its time; a later call uses that connection."""
    with Scripted(lambda command: trickled(b"+OK\r\n", 0.1) if command[0] == b"AUTH" else [b"+PONG\r\n"]) as server:

        async def flow(opened: Executor) -> None:
            await late(opened.call("PING"), applied=False)
            for _ in range(10):
                with contextlib.suppress(BackendTimeoutError):
                    assert await opened.call("PING") == b"PONG"
                    break

        settings = Settings(HOST, server.port, timeout=TIMEOUT, connect_timeout=5.0, password="secret")
        play(kind, settings, flow)
        assert len(server.commands) == 1


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_a_fake_keeps_deadlines(flavour: str) -> None:
    """B10: a call to a fake, which sends no reply, ends after its time."""
    backend: Any
    if flavour == "blocking":
        backend = RedisBackend.from_client(fakeredis.FakeRedis())
    else:
        backend = AsyncRedisBackend.from_client(fakeredis.FakeAsyncRedis())
    opened: PooledExecutor = backend.engine.driver.executor

    async def flow() -> None:
        assert await opened.call("PING") == b"PONG"
        (port,) = opened._idle
        begin = opened.runtime.now()
        with pytest.raises(TimeoutError):
            await port.receive(1, begin + TIMEOUT, 99)
        assert TIMEOUT <= opened.runtime.now() - begin < TIMEOUT + 1
        await opened.close()

    if flavour == "blocking":
        run(flow())
    else:
        asyncio.run(flow())


@pytest.mark.parametrize("kind", ["asyncio", "user_client-asyncio"])
def test_many_tasks_wait_for_one_connection(kind: str) -> None:
    """B10: while a server accepts no handshake, many tasks end after `timeout` together, not one after another."""
    with Scripted(lambda command: trickled(b"+" + b"O" * 999)) as server:

        async def flow(opened: Executor) -> None:
            calls = [asyncio.ensure_future(late(opened.call("PING"), applied=False)) for _ in range(50)]
            await asyncio.wait_for(asyncio.gather(*calls), 10 * TIMEOUT)

        play(kind, Settings(HOST, server.port, timeout=TIMEOUT, connect_timeout=TIMEOUT, password="secret"), flow)


# --- what users call ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["frozen", "refusing"])
def away(request: pytest.FixtureRequest, new_server: NewServer) -> Iterator[tuple[Server, Callable[[], None]]]:
    """A server, and the function that makes it go away; a frozen one resumes at the end."""
    server = new_server()
    leave = server.pause if request.param == "frozen" else server.kill
    yield server, leave
    if server.running:
        server.resume()


WAIT, REQUEST, REPEAT = 0.2, 1.0, 0.2
SLACK = 0.6
"""The most seconds that a loaded machine adds."""

CALLS: dict[str, tuple[float, Callable[[Any], Any]]] = {
    "limiter.acquire": (WAIT, lambda b: b.rate_limiter("r", "9/day").acquire("k", timeout=WAIT)),
    "limiter.acquire 0": (0.0, lambda b: b.rate_limiter("r", "9/day").acquire("k", timeout=0)),
    "lock.acquire": (WAIT, lambda b: b.lock("l").acquire(timeout=WAIT)),
    "lock.acquire 0": (0.0, lambda b: b.lock("l").acquire(timeout=0)),
    "consumer.get": (WAIT, lambda b: b.stream("s").group("g").consumer().get(timeout=WAIT)),
    "consumer.get 0": (REPEAT, lambda b: b.stream("s").group("g").consumer().get(timeout=0)),
    "request": (WAIT, lambda b: b.pubsub().request("c", 1, timeout=WAIT)),
    "request_many": (WAIT, lambda b: b.pubsub().request_many("c", 1, timeout=WAIT)),
    "limiter.try_acquire": (REPEAT, lambda b: b.rate_limiter("r", "9/day").try_acquire("k")),
    "lock.try_acquire": (REPEAT, lambda b: b.lock("l").try_acquire()),
    "stream.add": (REPEAT, lambda b: b.stream("s").add(1)),
    "stream.read": (REPEAT, lambda b: b.stream("s").read()),
    "publish": (REPEAT, lambda b: b.pubsub().publish("c", 1)),
    "listen": (2 * REQUEST, lambda b: b.pubsub().listen("c")),
}
"""Calls, and how many seconds each may take beyond one request's."""


@pytest.mark.parametrize("user_client", [False, True], ids=["url", "user_client"])
@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_calls_end_in_time(away: tuple[Server, Callable[[], None]], flavour: str, user_client: bool) -> None:
    """B10: a call with a timeout ends within it plus one request's time; any other within `retry_for` plus that."""
    server, leave = away
    open_one = partial(_opened, server, flavour, user_client)
    took = _on_threads(open_one, leave) if flavour == "blocking" else asyncio.run(_on_asyncio(open_one, leave))
    assert took.keys() == CALLS.keys()
    assert not {name: took[name] for name, (most, _) in CALLS.items() if took[name] > most + REQUEST + SLACK}


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_calls_end_in_time_where_all_sentinels_are_silent(flavour: str) -> None:
    """B10: silent Sentinels cost a call one request's time, however many they are."""
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_server((HOST, 0))).getsockname() for _ in range(5)]
        options: dict[str, Any] = {"socket_timeout": REQUEST, "socket_connect_timeout": REQUEST}

        def open_one() -> Any:
            if flavour == "blocking":
                client = Sentinel(silent, **options).master_for("watched")
                return RedisBackend.from_client(client, retry_for=REPEAT)
            return AsyncRedisBackend.from_client(
                asentinel.Sentinel(silent, **options).master_for("watched"), retry_for=REPEAT
            )

        took = _on_threads(open_one) if flavour == "blocking" else asyncio.run(_on_asyncio(open_one))
    assert took.keys() == CALLS.keys()
    assert not {name: took[name] for name, (most, _) in CALLS.items() if took[name] > most + REQUEST + SLACK}


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_the_timeout_of_a_backend_bounds_connecting(flavour: str) -> None:
    """B10: with `timeout` a call over a user's client ends in time, though redis-py has 5 s to connect by itself."""
    with black_hole() as (host, port):

        def open_one() -> Any:
            if flavour == "blocking":
                return RedisBackend.from_client(redis.Redis(host, port), timeout=REQUEST, retry_for=REPEAT)
            return AsyncRedisBackend.from_client(aredis.Redis(host=host, port=port), timeout=REQUEST, retry_for=REPEAT)

        took = _on_threads(open_one) if flavour == "blocking" else asyncio.run(_on_asyncio(open_one))
    assert took.keys() == CALLS.keys()
    assert not {name: took[name] for name, (most, _) in CALLS.items() if took[name] > most + REQUEST + SLACK}


@contextlib.contextmanager
def timed(took: dict[str, float], name: str) -> Iterator[None]:
    """Measure how long a call takes, however it ends."""
    begin = time.monotonic()
    with contextlib.suppress(ailf.AilfError, TimeoutError):
        yield
    took[name] = time.monotonic() - begin


async def _on_asyncio(open_one: Callable[[], Any], leave: Callable[[], None] | None = None) -> dict[str, float]:
    """Make all calls at once, each on a backend of its own; `leave` makes the server go away first."""
    took: dict[str, float] = {}

    async def one(name: str, backend: Any) -> None:
        with timed(took, name):
            await entered_async(CALLS[name][1](backend))

    backends = {name: open_one() for name in CALLS}
    if leave is not None:
        for each in backends.values():
            await each.ping()
        leave()
    await asyncio.gather(*(one(name, each) for name, each in backends.items()))
    for each in backends.values():
        await each.aclose()
    return took


def _on_threads(open_one: Callable[[], Any], leave: Callable[[], None] | None = None) -> dict[str, float]:
    """Do the same on threads."""
    took: dict[str, float] = {}

    def one(name: str, backend: Any) -> None:
        with timed(took, name):
            entered(CALLS[name][1](backend))

    backends = {name: open_one() for name in CALLS}
    if leave is not None:
        for each in backends.values():
            each.ping()
        leave()
    threads = [threading.Thread(target=one, args=pair) for pair in backends.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for each in backends.values():
        each.close()
    return took


def _opened(server: Server, flavour: str, user_client: bool) -> Any:
    if not user_client:
        url = f"{server.url}?timeout={REQUEST}&connect_timeout={REQUEST}&retry_for={REPEAT}"
        return RedisBackend(url) if flavour == "blocking" else AsyncRedisBackend(url)
    options: dict[str, Any] = {"port": server.port, "socket_timeout": REQUEST, "socket_connect_timeout": REQUEST}
    if flavour == "blocking":
        return RedisBackend.from_client(redis.Redis(**options), retry_for=REPEAT)
    return AsyncRedisBackend.from_client(aredis.Redis(**options), retry_for=REPEAT)


def entered(result: Any) -> None:
    """Enter a result that is a context manager."""
    if hasattr(result, "__enter__"):
        with result:
            pass


async def entered_async(result: Any) -> None:
    """Await a result that is awaitable, and enter one that is a context manager."""
    if hasattr(result, "__await__"):
        result = await result
    if hasattr(result, "__aenter__"):
        async with result:
            pass


# --- closing ------------------------------------------------------------------------------------------------------

LEAVING = 0.4


@pytest.mark.parametrize("way", ["idle", "fetching", "one consumer"])
@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_closing_at_a_frozen_server(
    new_server: NewServer, monkeypatch: pytest.MonkeyPatch, flavour: str, way: str
) -> None:
    """B3: all consumers together have `LEAVING` seconds to release their messages and to end their fetches."""
    monkeypatch.setattr(engine, "LEAVING", LEAVING)
    monkeypatch.setattr(consumer_flow, "LEAVING", LEAVING)
    server = new_server()
    took = _closed_on_threads(server, way) if flavour == "blocking" else asyncio.run(_closed_on_asyncio(server, way))
    server.resume()
    assert took < LEAVING + 0.5, "one request alone may take a second"


def _closed_on_threads(server: Server, way: str) -> float:
    """Return how long closing takes with a frozen server; each consumer holds a message, and may be fetching one."""
    backend = _opened(server, "blocking", user_client=False)
    backend.stream("s").add_many(range(3))
    consumers = [backend.stream("s").group("g").consumer(prefetch=1) for _ in range(3)]
    held = [each.get(5) for each in consumers]
    server.pause()

    def fetch(consumer: Any) -> None:
        with contextlib.suppress(ailf.AilfError):
            consumer.get(20)

    fetching = [threading.Thread(target=fetch, args=(each,)) for each in consumers if way != "idle"]
    for thread in fetching:
        thread.start()
    time.sleep(0.05)
    begin = time.monotonic()
    if way == "one consumer":
        consumers[0].close()
    else:
        backend.close()
    took = time.monotonic() - begin
    backend.close()
    for thread in fetching:
        thread.join(5)
    assert len(held) == 3
    return took


async def _closed_on_asyncio(server: Server, way: str) -> float:
    """Do the same on asyncio."""
    backend = _opened(server, "asyncio", user_client=False)
    await backend.stream("s").add_many(range(3))
    consumers = [backend.stream("s").group("g").consumer(prefetch=1) for _ in range(3)]
    held = [await each.get(5) for each in consumers]
    server.pause()
    fetching = [asyncio.ensure_future(each.get(20)) for each in consumers if way != "idle"]
    await asyncio.sleep(0.05)
    begin = time.monotonic()
    await (consumers[0] if way == "one consumer" else backend).aclose()
    took = time.monotonic() - begin
    await backend.aclose()
    await asyncio.gather(*fetching, return_exceptions=True)
    assert len(held) == 3
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return took


@pytest.mark.parametrize(
    "call", [lambda b: b.ping(), lambda b: entered(b.pubsub().listen("c"))], ids=["ping", "listen"]
)
@pytest.mark.parametrize("kind", ["url", "user_client", "sentinels", "cluster"])
def test_closing_ends_connecting(kind: str, call: Callable[[Any], Any]) -> None:
    """B3: closing the backend ends a thread's wait for a handshake or for a Sentinel's reply."""
    with socket.create_server((HOST, 0)) as silent:
        host, port = silent.getsockname()
        options: dict[str, Any] = {"socket_timeout": 5.0, "socket_connect_timeout": 5.0}
        if kind == "url":
            backend = RedisBackend(f"redis://{host}:{port}/1?timeout=5&connect_timeout=5")
        elif kind == "user_client":
            backend = RedisBackend.from_client(redis.Redis(host, port, 1, **options))
        elif kind == "sentinels":
            backend = RedisBackend.from_client(Sentinel([(host, port)], **options).master_for("watched", **options))
        else:
            backend = RedisBackend.from_client(redis.Redis(host, port, 1, **options))
            node = ServerEndpoint(redis.Connection, clean({"host": host, "port": port, "db": 1}, 5.0), "")
            nodes = ClusterEndpoints(node, [(host, port)], lambda address: address, "cluster://test")
            backend.engine.driver.executor = ClusterExecutor(Settings(timeout=5.0), nodes, ThreadRuntime())
        errors: list[BaseException] = []

        def make() -> None:
            try:
                call(backend)
            except ailf.AilfError as error:
                errors.append(error)

        calling = threading.Thread(target=make)
        calling.start()
        time.sleep(0.1)
        begin = time.monotonic()
        backend.close()
        calling.join(20)
        assert time.monotonic() - begin < SLACK, "connecting has five seconds, and asking a Sentinel one"
    assert [type(each) for each in errors] == [ailf.ClosedError]


def test_closing_over_frozen_tls(any_server: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    """B3: closing on asyncio doesn't wait for the server to end the TLS session, and raises nothing."""
    certificates = Certificates.make(tmp_path_factory.mktemp("tls"))

    async def main(port: int, process: int) -> float:
        backend = AsyncRedisBackend(f"rediss://{HOST}:{port}/0?tls_ca={certificates.ca}&timeout=2&connect_timeout=2")
        async with backend.pubsub().listen("c"):
            os.kill(process, signal.SIGSTOP)
            begin = time.monotonic()
            await backend.aclose()
            return time.monotonic() - begin

    with Terminator(certificates, any_server.port) as tls:
        try:
            assert asyncio.run(main(tls.port, tls._process.pid)) < SLACK
        finally:
            os.kill(tls._process.pid, signal.SIGCONT)


def test_closing_in_a_forked_child_leaves_the_parent_connecting() -> None:
    """B4: a child that closes its copy of the backend doesn't end the connecting of a parent's thread."""
    with socket.create_server((HOST, 0)) as silent:
        host, port = silent.getsockname()
        backend = RedisBackend.from_client(redis.Redis(host, port, 1, socket_timeout=5.0))

        def ping() -> None:
            with contextlib.suppress(ailf.AilfError):
                backend.ping()

        calling = threading.Thread(target=ping)
        calling.start()
        time.sleep(0.1)
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # in case it hangs
            with contextlib.suppress(BaseException):
                backend.close()
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        calling.join(0.2)
        assert calling.is_alive()
        backend.close()
        calling.join(5)
        assert not calling.is_alive()


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_a_short_wait_beside_a_long_one(new_server: NewServer, flavour: str) -> None:
    """A short wait on a consumer ends in time; a longer one gets a message after the server is back."""
    server = new_server(appendonly=True)
    url = f"{server.url}?timeout=0.3&retry_for=10"

    def back() -> None:
        server.restart()
        with RedisBackend(url) as other:
            other.stream("s").add(1)

    def on_threads() -> list[Any]:
        with ailf.connect(url) as backend, backend.stream("s").group("g").consumer() as consumer:
            server.kill()
            got: list[Any] = []
            long = threading.Thread(target=lambda: got.append(consumer.get(timeout=20)))
            long.start()
            time.sleep(0.05)
            with pytest.raises(ailf.BackendError):
                consumer.get(timeout=0.2)
            back()
            long.join(20)
            return got

    async def on_asyncio() -> list[Any]:
        async with ailf.connect_async(url) as backend, backend.stream("s").group("g").consumer() as consumer:
            server.kill()
            long = asyncio.ensure_future(consumer.get(timeout=20))
            await asyncio.sleep(0.05)
            with pytest.raises(ailf.BackendError):
                await consumer.get(timeout=0.2)
            await asyncio.to_thread(back)
            return [await long]

    got = on_threads() if flavour == "blocking" else asyncio.run(on_asyncio())
    assert [each.data for each in got] == [1]


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
@pytest.mark.parametrize("silent", [3, 4])
def test_a_cluster_with_silent_nodes(flavour: str, silent: int) -> None:
    """B10: refreshing the slot map takes one request's time in all; a reply of one node is enough."""
    commands: list[bytes] = []

    def reply(number: int, command: list[bytes]) -> Iterator[bytes]:
        if number < silent:
            yield from trickled(BULK, 0.1)
        elif command[0] == b"CLUSTER":
            host = HOST.encode()
            yield b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$%d\r\n%b\r\n:%d\r\n" % (len(host), host, servers[number].port)
        else:
            commands.append(command[0])
            yield b"+PONG\r\n"

    servers = [Scripted(partial(reply, number)) for number in range(4)]
    runtime = AsyncioRuntime() if flavour == "asyncio" else ThreadRuntime()
    options = {**clean({}, 1.0), **SILENT}
    kind = aredis.Connection if flavour == "asyncio" else redis.Connection
    seeds = [(HOST, server.port) for server in servers]
    nodes = ClusterEndpoints(ServerEndpoint(kind, options, ""), seeds, lambda address: address, "cluster://test")

    async def flow() -> None:
        cluster = ClusterExecutor(Settings(timeout=1.0), nodes, runtime)
        begin = time.monotonic()
        if silent == 4:
            with pytest.raises(ailf.BackendError) as raised:
                await cluster.call("PING")
            assert not raised.value.maybe_applied
        else:
            assert await cluster.call("PING") == b"PONG"
        assert time.monotonic() - begin < 1.0 + SLACK
        await cluster.close()

    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
        if flavour == "asyncio":
            asyncio.run(flow())
        else:
            run(flow())


def test_a_release_whose_outcome_is_unknown_ends_in_time(new_server: NewServer) -> None:
    """Its repetition has what the first request left of `retry_for`: 1.1 s in all here, and not 1.5."""
    server = new_server()
    with RedisBackend(f"{server.url}?timeout=0.5&retry_for=0.6") as backend:
        lease = backend.lock("l").acquire(timeout=1.0)
        server.pause()
        begin = time.monotonic()
        with pytest.raises(ailf.BackendError):
            lease.release()
        assert time.monotonic() - begin < 1.3
        server.resume()
