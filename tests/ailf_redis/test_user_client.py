"""A client that the user brings: it stays his, what he set for himself does no harm, and errors say what is known."""

import asyncio
import os
import signal
import threading
import time

import fakeredis
import pytest
import redis
from redis import asyncio as aredis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

import ailf
from ailf.runtime import AsyncioRuntime, Runtime, ThreadRuntime, run
from ailf_redis import AsyncRedisBackend, RedisBackend, Settings
from ailf_redis.connection.endpoint import ServerEndpoint, clean
from ailf_redis.pooled.executor import PooledExecutor
from tests.support.proxy import Proxy
from tests.support.servers import NewServer, Server


def clients(server: Server) -> int:
    """Return how many clients a server has, the asking one left out."""
    with server.client() as admin:
        return len(admin.client_list()) - 1


def executor(server: Server, runtime: Runtime, **options: object) -> PooledExecutor:
    """Return a plain executor on a server."""
    kind = aredis.Connection if runtime.flavour == "asyncio" else redis.Connection
    settings = Settings(**options)  # type: ignore[arg-type]  # a test's shorthand
    told = clean({"host": "127.0.0.1", "port": server.port}, settings.timeout)
    return PooledExecutor(settings, ServerEndpoint(kind, told, server.url), runtime)


def test_the_client_stays_the_users(new_server: NewServer) -> None:
    """His connections are not used, and closing the backend closes every one of ours and none of his."""
    server = new_server()
    with redis.Redis(port=server.port, single_connection_client=True) as client:
        client.set("mine", 1)
        with RedisBackend.from_client(client) as backend, backend.pubsub().listen("c") as events:
            backend.stream("s").add(1)
            backend.pubsub().publish("c", 1)
            assert events.get(5) is not None
            assert backend.unwrap(redis.Redis) is client
            assert clients(server) > 1
        assert client.get("mine") == b"1"
        assert clients(server) == 1


def test_an_asyncio_client_stays_the_users(new_server: NewServer) -> None:
    """The same for asyncio, with the thread that renews leases."""
    server = new_server()

    async def main() -> None:
        async with aredis.Redis(port=server.port, single_connection_client=True) as client:
            await client.set("mine", 1)
            async with AsyncRedisBackend.from_client(client) as backend, backend.pubsub().listen("c") as events:
                async with backend.lock("l", ttl=0.3).hold() as lease:
                    await backend.pubsub().publish("c", 1)
                    assert await events.get(5) is not None
                    await asyncio.sleep(0.5)
                    assert not lease.lost
                assert backend.unwrap(aredis.Redis) is client
            assert await client.get("mine") == b"1"
            assert await asyncio.to_thread(clients, server) == 1

    asyncio.run(main())


def test_nothing_is_repeated_behind_our_back(any_server: Server, namespace: str) -> None:
    """A client with retries and without a timeout: an add whose reply is lost ends in time, and was done once."""
    with Proxy(any_server.port) as proxy:
        retry = Retry(ConstantBackoff(0.01), 10)
        client = redis.Redis(port=proxy.port, retry=retry, socket_timeout=None)
        with RedisBackend.from_client(client, namespace=namespace, timeout=0.3) as backend:
            stream = backend.stream("s")
            stream.add("before")
            proxy.drop_replies()
            begin = time.monotonic()
            with pytest.raises(ailf.OutcomeUnknownError, match="add a message"):
                stream.add("lost")
            assert time.monotonic() - begin < 2
            proxy.cut()
            proxy.resume()
            assert [entry.data for entry in stream.read()] == ["before", "lost"]


def test_a_silent_server_ends_in_a_deadline(new_server: NewServer) -> None:
    """The timeout is the client's own where none is told; a server that says nothing costs that and no more."""
    server = new_server()

    async def main() -> None:
        client = aredis.Redis(port=server.port, socket_timeout=0.3)
        async with AsyncRedisBackend.from_client(client, retry_for=0) as backend:
            await backend.stream("s").add(1)
            server.pause()
            begin = time.monotonic()
            with pytest.raises(ailf.OutcomeUnknownError):
                await backend.stream("s").add(2)
            assert 0.2 < time.monotonic() - begin < 2
            server.resume()
            await backend.stream("s").add(3)

    asyncio.run(main())


def test_asyncio_calls_never_get_anothers_reply(any_server: Server) -> None:
    """B8: who comes after a call that was cancelled at any moment gets his own reply, and a connection for it."""

    async def main() -> None:
        plain = executor(any_server, AsyncioRuntime(), max_connections=1)
        for moment in range(300):
            task = asyncio.create_task(plain.call("ECHO", f"cancelled {moment}"))
            for _ in range(moment % 10):
                await asyncio.sleep(0)
            task.cancel()
            others = (plain.call("ECHO", f"{moment} {number}") for number in range(3))
            assert await asyncio.gather(*others) == [f"{moment} {number}".encode() for number in range(3)]
            await asyncio.wait([task])
        await plain.close()

    asyncio.run(main())


def test_a_cancellation_is_never_swallowed(any_server: Server) -> None:
    """B8: a call that is cancelled at any moment, while its connection is made too, ends cancelled."""

    async def main() -> None:
        for moment in range(150):
            plain = executor(any_server, AsyncioRuntime())
            task = asyncio.create_task(plain.call("PING"))
            for _ in range(moment % 50):
                await asyncio.sleep(0)
            assert task.done() or task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or task.result() == b"PONG"
            assert task.cancelled() or not task.cancelling()
            await plain.close()

    asyncio.run(main())


def test_threads_wait_for_their_turn(any_server: Server) -> None:
    """More threads than connections get their own replies over as many as are allowed; who waits too long is told."""
    plain = executor(any_server, ThreadRuntime(), max_connections=2, timeout=5.0)
    wrong: list[object] = []

    def caller(number: int) -> None:
        wrong.extend(
            turn for turn in range(50) if run(plain.call("ECHO", f"{number}-{turn}")) != b"%d-%d" % (number, turn)
        )

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert wrong == []
    assert len(plain._idle) <= 2
    taken = [run(plain._permits.take(0.01)) for _ in range(3)]
    assert [each is None for each in taken] == [False, False, True]
    run(plain.close())


def test_error_replies_keep_their_places(any_server: Server) -> None:
    """An error reply is returned where its command stood, and harms nothing behind it."""
    plain = executor(any_server, ThreadRuntime())
    replies = run(plain.call_many([("ECHO", "a"), ("NOSUCHCOMMAND",), ("ECHO", "b")]))
    assert replies[::2] == [b"a", b"b"]
    assert isinstance(replies[1], redis.ResponseError)
    run(plain.close())


def test_a_forked_child_leaves_its_parents_connections(any_server: Server) -> None:
    """B4: a child has connections of its own, and closing its copies ends nothing here, in mid-read too."""
    plain = executor(any_server, ThreadRuntime())
    assert run(plain.call("ECHO", "a")) == b"a"
    link = run(plain.link())
    reader = threading.Thread(target=lambda: run(link.receive(1.0)))
    reader.start()
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # whatever it hangs in
        try:
            run(link.close())
            for _ in range(50):
                assert run(plain.call("ECHO", "child")) == b"child"
            run(plain.close())
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a forked child must not come back into pytest
            os._exit(1)
    for _ in range(50):
        assert run(plain.call("ECHO", "parent")) == b"parent"
    assert os.waitpid(child, 0)[1] == 0
    reader.join(5)
    run(link.send([("PING",)]))
    assert run(link.receive(5)) == [b"PONG"]
    run(link.close())
    run(plain.close())


def test_who_is_refused(any_server: Server) -> None:
    """What can't be brought is refused at once, with what to do instead."""
    with pytest.raises(ailf.InvalidArgumentError, match="for asyncio programs: pass it to AsyncRedisBackend"):
        RedisBackend.from_client(aredis.Redis())  # type: ignore[arg-type]  # the mistake that is tested
    with pytest.raises(ailf.InvalidArgumentError, match="for blocking programs: pass it to RedisBackend"):
        AsyncRedisBackend.from_client(redis.Redis())  # type: ignore[arg-type]  # as above
    with pytest.raises(ailf.InvalidArgumentError, match="open the backend by URL"):
        RedisBackend.from_client("redis://localhost")  # type: ignore[arg-type]  # as above


def test_connections_of_a_class_of_ones_own(any_server: Server, namespace: str) -> None:
    """Their blocking twins can't be guessed: without one it is refused, with one it works."""

    class Mine(aredis.Connection):
        """A connection of the user's own."""

    pool = aredis.ConnectionPool(connection_class=Mine, host="127.0.0.1", port=any_server.port)
    client = aredis.Redis(connection_pool=pool)
    with pytest.raises(ailf.UnsupportedError, match="pass a blocking client"):
        AsyncRedisBackend.from_client(client)

    async def main() -> None:
        blocking = redis.Redis(port=any_server.port)
        backend = AsyncRedisBackend.from_client(client, blocking=blocking, namespace=namespace)
        async with backend, backend.lock("l", ttl=0.3).hold() as lease:
            await asyncio.sleep(0.4)
            assert not lease.lost

    asyncio.run(main())


def test_a_unix_socket_and_a_password(new_server: NewServer) -> None:
    """Whatever the client knows of the way to its server is used; no password is shown."""
    server = new_server(unixsocket=True, password="secret")
    client = redis.Redis(unix_socket_path=str(server.socket_path), password="secret")
    with RedisBackend.from_client(client) as backend:
        backend.ping()
        assert "secret" not in f"{backend!r}{backend.engine.driver.executor._endpoint!r}"
    wrong = redis.Redis(unix_socket_path=str(server.socket_path), password="wrong")
    with RedisBackend.from_client(wrong) as backend, pytest.raises(ailf.PermissionDeniedError):
        backend.ping()


def test_fakes_of_both_flavours_share_a_server() -> None:
    """In a unit test without a server, a blocking producer feeds an asyncio consumer."""
    server = fakeredis.FakeServer()
    with RedisBackend.from_client(fakeredis.FakeRedis(server=server)) as backend:
        backend.stream("s").add("from a thread")

    async def main() -> object:
        backend = AsyncRedisBackend.from_client(fakeredis.FakeAsyncRedis(server=server))
        async with backend, backend.stream("s").group("g").consumer() as consumer:
            delivery = await consumer.get(5)
            assert delivery is not None
            await delivery.ack()
            return delivery.data

    assert asyncio.run(main()) == "from a thread"
