"""A user's own client: it stays the user's, its options do no harm, and errors are right."""

import asyncio
import os
import signal
import threading
import time
from typing import Any

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
    """Return how many clients a server has, without this request's own."""
    with server.client() as admin:
        return len(admin.client_list()) - 1


def executor(server: Server, runtime: Runtime, **options: object) -> PooledExecutor:
    """Return a pooled executor on a server."""
    kind = aredis.Connection if runtime.flavour == "asyncio" else redis.Connection
    settings = Settings(**options)  # type: ignore[arg-type]  # a test's shorthand
    connection_options = clean({"host": "127.0.0.1", "port": server.port}, settings.timeout)
    return PooledExecutor(settings, ServerEndpoint(kind, connection_options, server.url), runtime)


def test_the_client_stays_the_users(new_server: NewServer) -> None:
    """The backend doesn't use the client's connections; closing it closes all of its own, and none of the client's."""
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
    """The same on asyncio, with the thread that renews leases."""
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


def test_the_clients_retries_are_not_used(any_server: Server, namespace: str) -> None:
    """With a client that retries and has no timeout, an add whose reply is lost ends in time and is not repeated."""
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
    """A call to a frozen server ends after the client's own timeout, if from_client gets none."""
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
    """B8: after a call that was cancelled at any moment, the next calls get a connection and their own replies."""

    async def main() -> None:
        pooled = executor(any_server, AsyncioRuntime(), max_connections=1)
        for moment in range(300):
            task = asyncio.create_task(pooled.call("ECHO", f"cancelled {moment}"))
            for _ in range(moment % 10):
                await asyncio.sleep(0)
            task.cancel()
            others = (pooled.call("ECHO", f"{moment} {number}") for number in range(3))
            assert await asyncio.gather(*others) == [f"{moment} {number}".encode() for number in range(3)]
            await asyncio.wait([task])
        await pooled.close()

    asyncio.run(main())


def test_a_cancellation_is_never_swallowed(any_server: Server) -> None:
    """B8: a call that is cancelled at any moment, even while its connection is made, ends cancelled."""

    async def main() -> None:
        for moment in range(150):
            pooled = executor(any_server, AsyncioRuntime())
            task = asyncio.create_task(pooled.call("PING"))
            for _ in range(moment % 50):
                await asyncio.sleep(0)
            assert task.done() or task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or task.result() == b"PONG"
            assert task.cancelled() or not task.cancelling()
            await pooled.close()

    asyncio.run(main())


def test_threads_wait_for_a_permit(any_server: Server) -> None:
    """More threads than connections get their own replies over `max_connections`, which are the permits."""
    pooled = executor(any_server, ThreadRuntime(), max_connections=2, timeout=5.0)
    wrong: list[object] = []

    def caller(number: int) -> None:
        wrong.extend(
            turn for turn in range(50) if run(pooled.call("ECHO", f"{number}-{turn}")) != b"%d-%d" % (number, turn)
        )

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert wrong == []
    assert len(pooled._idle) <= 2
    taken = [run(pooled._permits.take(0.01)) for _ in range(3)]
    assert [each is None for each in taken] == [False, False, True]
    run(pooled.close())


def test_error_replies_keep_their_places(any_server: Server) -> None:
    """An error reply is returned at its command's position, and the replies behind it are right."""
    pooled = executor(any_server, ThreadRuntime())
    replies = run(pooled.call_many([("ECHO", "a"), ("NOSUCHCOMMAND",), ("ECHO", "b")]))
    assert replies[::2] == [b"a", b"b"]
    assert isinstance(replies[1], redis.ResponseError)
    run(pooled.close())


def test_a_forked_child_leaves_its_parents_connections(any_server: Server) -> None:
    """B4: a child has connections of its own, and closing its copies ends no call or read of the parent."""
    pooled = executor(any_server, ThreadRuntime())
    assert run(pooled.call("ECHO", "a")) == b"a"
    link = run(pooled.link())
    reader = threading.Thread(target=lambda: run(link.receive(1.0)))
    reader.start()
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # in case it hangs
        try:
            run(link.close())
            for _ in range(50):
                assert run(pooled.call("ECHO", "child")) == b"child"
            run(pooled.close())
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a forked child must not come back into pytest
            os._exit(1)
    for _ in range(50):
        assert run(pooled.call("ECHO", "parent")) == b"parent"
    assert os.waitpid(child, 0)[1] == 0
    reader.join(5)
    run(link.send([("PING",)]))
    assert run(link.receive(5)) == [b"PONG"]
    run(link.close())
    run(pooled.close())


def test_clients_that_are_refused() -> None:
    """from_client refuses an unusable client at once, and says what to do instead."""
    with pytest.raises(ailf.InvalidArgumentError, match="for asyncio programs: pass it to AsyncRedisBackend"):
        RedisBackend.from_client(aredis.Redis())  # type: ignore[arg-type]  # the mistake that this test makes
    with pytest.raises(ailf.InvalidArgumentError, match="for blocking programs: pass it to RedisBackend"):
        AsyncRedisBackend.from_client(redis.Redis())  # type: ignore[arg-type]  # as above
    with pytest.raises(ailf.InvalidArgumentError, match="open the backend by URL"):
        RedisBackend.from_client("redis://localhost")  # type: ignore[arg-type]  # as above


def test_connections_of_a_users_own_class(any_server: Server, namespace: str) -> None:
    """An asyncio client whose connections have another class is refused, unless a blocking client is passed too."""

    class OwnConnection(aredis.Connection):
        """A connection class of the user's own."""

    pool = aredis.ConnectionPool(connection_class=OwnConnection, host="127.0.0.1", port=any_server.port)
    client = aredis.Redis(connection_pool=pool)
    with pytest.raises(ailf.UnsupportedError, match="Pass a blocking client"):
        AsyncRedisBackend.from_client(client)

    async def main() -> None:
        blocking = redis.Redis(port=any_server.port)
        backend = AsyncRedisBackend.from_client(client, blocking=blocking, namespace=namespace)
        async with backend, backend.lock("l", ttl=0.3).hold() as lease:
            await asyncio.sleep(0.4)
            assert not lease.lost

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "why"),
    [({"connection_class": type("Own", (redis.Connection,), {})}, "no asyncio class"), ({"ssl": True}, "ssl_ocsp")],
    ids=["own class", "OCSP"],
)
def test_a_blocking_client_that_has_no_asyncio_flavour(options: dict[str, Any], why: str) -> None:
    """`to_async` refuses what asyncio connections can't do, instead of leaving it out."""
    if "ssl" in options:
        client = redis.Redis(ssl=True, ssl_ocsp_context=object())
    else:
        client = redis.Redis(connection_pool=redis.ConnectionPool(**options))
    with (
        RedisBackend.from_client(client) as backend,
        pytest.raises(ailf.UnsupportedError, match=rf"{why}.*AsyncRedisBackend\.from_client"),
    ):
        backend.to_async()


def test_the_other_flavour_of_a_unix_socket_with_a_password(new_server: NewServer) -> None:
    """The address and the credentials of a client are used in both flavours."""
    server = new_server(unixsocket=True, password="secret")
    client = redis.Redis(unix_socket_path=str(server.socket_path), password="secret", db=2)

    async def main(backend: RedisBackend) -> None:
        async with backend.to_async() as other:
            assert [each.data for each in await other.stream("s").read()] == [1]
            with other.to_blocking() as again:
                assert [each.data for each in again.stream("s").read()] == [1]

    with RedisBackend.from_client(client) as backend:
        backend.stream("s").add(1)
        asyncio.run(main(backend))
        assert backend.unwrap(redis.Redis) is client


def test_a_unix_socket_and_a_password(new_server: NewServer) -> None:
    """The client's socket path and password are used, and no password is shown."""
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
