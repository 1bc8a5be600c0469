"""Connections that break or stall, and calls that are given up: no call gets another's reply, and errors are right."""

import asyncio
import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import redis

import ailf
from ailf.errors import BackendTimeoutError, ConnectionLostError, OutcomeUnknownError
from ailf.runtime import run
from ailf_redis.connection import blocking as blocking_calls
from ailf_redis.connection.aio import AsyncioExecutor
from ailf_redis.connection.blocking import BlockingExecutor
from ailf_redis.settings import Settings
from tests.support.proxy import Proxy
from tests.support.scripted import Scripted
from tests.support.servers import NewServer, Server


def settings(server: Server, **options: object) -> Settings:
    """Return settings for a server."""
    return Settings(host="127.0.0.1", port=server.port, **options)  # type: ignore[arg-type]  # a test's shorthand


def test_asyncio_calls_never_get_anothers_reply(any_server: Server) -> None:
    """B8: with tasks cancelled and connections killed at random, each call gets its own reply or none."""
    chance = random.Random(7)
    outcomes = {"ok": 0, "cancelled": 0, "lost": 0}

    async def caller(executor: AsyncioExecutor, number: int) -> None:
        for attempt in range(100):
            task = asyncio.ensure_future(executor.call("ECHO", f"{number}-{attempt}"))
            if chance.random() < 0.3:
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                task.cancel()
            try:
                assert await task == f"{number}-{attempt}".encode()
                outcomes["ok"] += 1
            except asyncio.CancelledError:
                outcomes["cancelled"] += 1
            except ConnectionLostError:
                outcomes["lost"] += 1

    async def main() -> None:
        executor = AsyncioExecutor(settings(any_server))
        with any_server.client() as admin:
            callers = asyncio.gather(*(caller(executor, number) for number in range(50)))
            for _ in range(10):
                await asyncio.sleep(0.01)
                admin.client_kill_filter(_type="normal", skipme=True)
            await callers
        await executor.close()

    asyncio.run(main())
    assert outcomes["ok"] > 1000
    assert outcomes["cancelled"] > 100


def test_threads_never_get_anothers_reply(any_server: Server) -> None:
    """B4: threads that share an executor get their own replies while connections are killed at random."""
    executor = BlockingExecutor(settings(any_server, max_connections=8))
    wrong: list[object] = []
    answered = [0]

    def caller(number: int) -> None:
        for attempt in range(200):
            try:
                reply = run(executor.call("ECHO", f"{number}-{attempt}"))
            except ConnectionLostError:
                continue
            answered[0] += 1
            if reply != f"{number}-{attempt}".encode():
                wrong.append((number, attempt, reply))

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    with any_server.client() as admin:
        for _ in range(10):
            time.sleep(0.01)
            admin.client_kill_filter(_type="normal", skipme=True)
    for thread in threads:
        thread.join(30)
    run(executor.close())
    assert not wrong
    assert answered[0] > 1000


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_a_silent_server_ends_in_a_deadline(new_server: NewServer, flavour: str) -> None:
    """A call to a frozen server ends after `timeout`, and later calls work again."""
    server = new_server()
    url = f"{server.url}?timeout=0.3&retry_for=0"

    async def on_asyncio() -> float:
        async with ailf.connect_async(url) as backend:
            stream = backend.stream("s")
            await stream.add(0)
            server.pause()
            begun = time.monotonic()
            with pytest.raises(OutcomeUnknownError):
                await stream.add(1)
            took = time.monotonic() - begun
            server.resume()
            await stream.add(2)
            return took

    def on_threads() -> float:
        with ailf.connect(url) as backend:
            stream = backend.stream("s")
            stream.add(0)
            server.pause()
            begun = time.monotonic()
            with pytest.raises(OutcomeUnknownError):
                stream.add(1)
            took = time.monotonic() - begun
            server.resume()
            stream.add(2)
            return took

    took = asyncio.run(on_asyncio()) if flavour == "asyncio" else on_threads()
    assert 0.2 < took < 2.0


def test_a_lost_reply_is_unknown_and_not_repeated(any_server: Server, namespace: str) -> None:
    """An add whose reply is lost raises OutcomeUnknownError, and is not repeated."""
    with Proxy(any_server.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0?namespace={namespace}&timeout=0.3"
        with ailf.connect(url) as backend:
            stream = backend.stream("s")
            stream.add("before")
            proxy.drop_replies()
            with pytest.raises(OutcomeUnknownError, match="add a message"):
                stream.add("lost")
            proxy.cut()
            proxy.resume()
            assert [entry.data for entry in stream.read()] == ["before", "lost"]


def test_a_restart_is_waited_out(new_server: NewServer) -> None:
    """A request that was certainly not sent is repeated until the server is back."""
    server = new_server(appendonly=True)
    with ailf.connect(server.url) as backend:
        stream = backend.stream("s")
        stream.add(1)
        server.stop()
        back = threading.Timer(0.5, server.restart)
        back.start()
        stream.add(2)
        back.join()
        assert [entry.data for entry in stream.read()] == [1, 2]


def test_a_server_that_stays_away_is_an_error(new_server: NewServer) -> None:
    """A call gives up after `retry_for`, with an error that names the server and says what to do."""
    server = new_server()
    with ailf.connect(f"{server.url}?retry_for=0.2") as backend:
        stream = backend.stream("s")
        server.stop()
        with pytest.raises(ConnectionLostError, match="Is the server running"):
            stream.add(1)


def test_scripts_survive_a_flush(any_server: Server, namespace: str) -> None:
    """A server that forgets its scripts gets them again, and the calls go on."""
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend, any_server.client() as admin:
        stream = backend.stream("s")
        stream.add_many(range(50))
        with stream.group("g").consumer() as consumer:
            for number in range(50):
                admin.script_flush()
                delivery = consumer.get(5)
                assert delivery is not None
                assert delivery.data == number
                admin.script_flush()
                delivery.ack()


def test_pool_is_bounded_and_waits(any_server: Server) -> None:
    """Threads wait for a connection while all are busy; no more than `max_connections` are opened."""
    executor = BlockingExecutor(settings(any_server, max_connections=2, timeout=5.0))
    done: list[object] = []

    def caller() -> None:
        done.extend(run(executor.call("PING")) for _ in range(50))

    threads = [threading.Thread(target=caller) for _ in range(10)]
    for thread in threads:
        thread.start()
    with any_server.client() as admin:
        seen = max(len(admin.client_list()) for _ in range(20))
    for thread in threads:
        thread.join(20)
    run(executor.close())
    assert len(done) == 500
    assert seen <= 2 + 1 + 2, "two of the pool, the admin's, and those that other tests keep open on a shared server"


def test_busy_pool_says_so(new_server: NewServer) -> None:
    """A call that waits too long for a connection raises an error that names the limit."""
    server = new_server()
    executor = BlockingExecutor(settings(server, max_connections=1, timeout=0.5))
    run(executor.call("PING"))

    def hold() -> None:
        with contextlib.suppress(BackendTimeoutError):
            run(executor.call("PING"))

    holder = threading.Thread(target=hold)
    server.pause()
    holder.start()
    time.sleep(0.2)
    with pytest.raises(BackendTimeoutError):
        run(executor.call("PING"))
    server.resume()
    holder.join(5)
    run(executor.close())


class CountingSocket:
    """Replaces the socket of an executor's one idle connection, and counts the polls for a reply that don't sleep."""

    def __init__(self, executor: BlockingExecutor) -> None:
        run(executor.call("PING"))
        (connection,) = executor._idle
        connection._spin_backoff = connection._spins_to_skip = 0  # whether its first call was quick or not
        self._executor = executor
        self._socket, connection._socket = connection._socket, self  # type: ignore[assignment]  # as calls need it
        self.send, self.shutdown = self._socket.send, self._socket.shutdown
        self._count = 0

    def recv_into(self, buffer: bytearray, size: int = 0, flags: int = 0) -> int:
        """Receive."""
        self._count += flags == socket.MSG_DONTWAIT
        return self._socket.recv_into(buffer, size, flags)

    def polls_of(self, *command: object) -> int:
        """Send a command; return how often its reply was polled for."""
        self._count = 0
        run(self._executor.call(*command))
        return self._count


@pytest.fixture
def blocking(any_server: Server) -> Iterator[BlockingExecutor]:
    """A blocking executor, closed at the end."""
    executor = BlockingExecutor(settings(any_server))
    yield executor
    run(executor.close())


def test_spinning_in_vain_backs_off(
    blocking: BlockingExecutor, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call busy-polls before it sleeps; after slow replies fewer and fewer calls do."""
    counting, slow = CountingSocket(blocking), ("BLPOP", namespace, 0.01)
    spun = [counting.polls_of(*slow) > 0 for _ in range(12)]
    assert spun == [each in {0, 2, 6} for each in range(12)], "none, then one, three and seven calls sleep at once"
    monkeypatch.setattr(blocking_calls, "SPIN", 10.0)
    assert [counting.polls_of("PING") > 0 for _ in range(4)] == [False, False, True, True], "a quick reply ends it"


def test_several_threads_do_not_spin(blocking: BlockingExecutor, namespace: str) -> None:
    """While other threads make calls, no call busy-polls, which would keep the CPU from them."""
    counting = CountingSocket(blocking)
    other = threading.Thread(target=run, args=(blocking.call("BLPOP", namespace, 5),))
    connection = blocking._idle.pop()
    other.start()
    while not blocking._busy:
        time.sleep(0.001)
    blocking._idle.append(connection)
    assert counting.polls_of("BLPOP", f"{namespace}:none", 0.01) == 0
    run(blocking.call("RPUSH", namespace, "wake up"))
    other.join(10)


def test_a_forked_child_has_connections_of_its_own(any_server: Server, namespace: str) -> None:
    """B4: parent and child use the same backend object after a fork and never share a socket."""
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend:
        stream = backend.stream("s")
        stream.add("parent")
        child = os.fork()
        if child == 0:
            try:
                for number in range(50):
                    stream.add(number)
                os._exit(0)
            except BaseException:  # noqa: BLE001 - a forked child must not come back into pytest
                os._exit(1)
        for number in range(50):
            stream.add(1000 + number)
        assert os.waitpid(child, 0)[1] == 0
        data = [entry.data for entry in stream.read(limit=200)]
        assert sorted(each for each in data if isinstance(each, int)) == [*range(50), *range(1000, 1050)]


def test_a_forked_child_that_closes_leaves_its_parents_calls_alone(blocking: BlockingExecutor, namespace: str) -> None:
    """B4: a child that closes the executor doesn't end a call that the parent makes in another thread."""
    replies: list[object] = []
    waiting = threading.Thread(target=lambda: replies.append(run(blocking.call("BLPOP", namespace, 5))))
    waiting.start()
    while not blocking._busy:
        time.sleep(0.001)
    time.sleep(0.05)  # until it waits for the reply
    child = os.fork()
    if child == 0:
        try:
            run(blocking.close())
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a forked child must not come back into pytest
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    run(blocking.call("RPUSH", namespace, "x"))
    waiting.join(10)
    assert replies == [[namespace.encode(), b"x"]]


def test_redis_pys_private_parts_are_where_versions_takes_them(any_server: Server) -> None:
    """A connection's socket, streams and parser are private in redis-py; this test fails when they move."""
    connection = redis.Connection(**settings(any_server).connection_options())
    connection.connect()
    assert connection._sock.fileno() > 0
    assert callable(connection._parser.parse_error)
    connection.disconnect()

    async def on_asyncio() -> None:
        other = redis.asyncio.Connection(**settings(any_server).connection_options())
        await other.connect()
        assert isinstance(other._reader, asyncio.StreamReader)
        assert isinstance(other._writer, asyncio.StreamWriter)
        await other.disconnect()

    asyncio.run(on_asyncio())


def test_unix_socket(new_server: NewServer) -> None:
    """A backend works over a unix socket, in both flavours."""
    server = new_server(unixsocket=True)
    with ailf.connect(server.unix_url) as backend:
        assert isinstance(backend.stream("s").add(1), str)

    async def main() -> None:
        async with ailf.connect_async(server.unix_url) as backend:
            assert [entry.data for entry in await backend.stream("s").read()] == [1]

    asyncio.run(main())


def test_get_without_waiting_returns_what_was_added(any_server: Server, namespace: str) -> None:
    """On asyncio get(0) waits for its own fetch, so the first call returns a message that was added before."""

    async def main() -> None:
        async with ailf.connect_async(f"{any_server.url}?namespace={namespace}") as backend:
            stream = backend.stream("s")
            async with stream.group("g").consumer() as consumer:
                assert await consumer.get(0) is None
                await stream.add(1)
                delivery = await consumer.get(0)
                assert delivery is not None
                await delivery.ack()
            await stream.delete()

    asyncio.run(main())


def test_get_without_waiting_while_another_thread_waits(any_server: Server, namespace: str) -> None:
    """While another thread waits in get(), get(0) returns at once."""
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend:
        stream = backend.stream("s")
        with stream.group("g").consumer() as consumer:
            waiting = threading.Thread(target=consumer.get, args=(5,))
            waiting.start()
            time.sleep(0.1)
            assert consumer.get(0) is None
            stream.add(1)
            waiting.join(5)
        stream.delete()


def test_a_forked_child_releases_nothing_of_its_parents(any_server: Server, namespace: str) -> None:
    """B4: a child that closes the parent's objects neither releases its messages nor ends its subscription."""
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend:
        stream, pubsub = backend.stream("s"), backend.pubsub()
        stream.add(1)
        with pubsub.listen("c") as subscription, stream.group("g").consumer() as consumer:
            delivery = consumer.get(5)
            assert delivery is not None
            child = os.fork()
            if child == 0:
                try:
                    consumer.close()
                    subscription.close()
                    os._exit(0)
                except BaseException:  # noqa: BLE001 - a forked child must not come back into pytest
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
            delivery.ack()
            pubsub.publish("c", 1)
            assert subscription.get(5) == ailf.Message("c", 1)
        stream.delete()


def test_a_cancelled_close_is_finished(any_server: Server, namespace: str) -> None:
    """B3, B8: a cancelled aclose goes on to its end, and a second one waits for it."""

    async def main(steps: int) -> None:
        backend = ailf.connect_async(f"{any_server.url}?namespace={namespace}")
        stream = backend.stream("s")
        await stream.add(1)
        consumer = stream.group(f"g{steps}").consumer()
        assert await consumer.get(5) is not None
        async with backend.pubsub().listen("c"):
            closing = asyncio.ensure_future(backend.aclose())
            for _ in range(steps):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)
            await backend.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not [each for each in threading.enumerate() if each.name == "ailf-renewal"]

    for steps in range(6):
        asyncio.run(main(steps))


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_a_server_that_is_full(new_server: NewServer, flavour: str, caplog: pytest.LogCaptureFixture) -> None:
    """A server that refuses clients is quoted in the error, nothing was carried out, and asyncio logs nothing."""
    server = new_server("--maxclients", "1")
    with server.client() as only:
        only.ping()

        async def flow() -> None:
            short = settings(server, timeout=1.0)
            executor = BlockingExecutor(short) if flavour == "blocking" else AsyncioExecutor(short)
            for _ in range(20):
                with pytest.raises(ConnectionLostError, match=r"max number of clients|closed|reset|pipe") as lost:
                    await executor.call("PING")
                messages.append(str(lost.value))
                assert "max number of clients" not in messages[-1] or not lost.value.maybe_applied
            await executor.close()

        messages: list[str] = []
        asyncio.run(flow()) if flavour == "asyncio" else run(flow())
        assert any("max number of clients" in each for each in messages)
    assert caplog.records == []


def test_an_unsolicited_reply_closes_a_connection(caplog: pytest.LogCaptureFixture) -> None:
    """An unsolicited reply closes the connection, whose cause quotes it; nothing is logged."""

    async def main() -> None:
        with Scripted(lambda _: [b":1\r\n"]) as server:
            executor = AsyncioExecutor(Settings.from_url(server.url))
            for reply, cause in ((b"-ERR go away\r\n", "go away"), (b":2\r\n", "unsolicited")):
                assert await executor.call("PING") == 1
                connection = executor._connection
                assert connection is not None
                server.say(reply)
                await asyncio.wait_for(connection.closed_event, 5)
                assert cause in str(connection.cause)
                assert executor._connection is None
            assert await executor.call("PING") == 1
            await executor.close()

    asyncio.run(main())
    assert caplog.records == []
