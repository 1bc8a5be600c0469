"""Connections introduce themselves: `CLIENT LIST` tells whose they are, and nothing waits for it or depends on it."""

import asyncio
import contextlib
import os
import socket
import threading
from typing import Any, Self
from urllib.parse import quote

import pytest
import redis
from redis import asyncio as aredis

import ailf
from ailf.errors import InvalidArgumentError
from ailf_redis import AsyncRedisBackend, RedisBackend
from ailf_redis.settings import Settings
from tests.support.scripted import HELLO, Scripted
from tests.support.servers import NewServer, Server

NAME = f"ailf:{socket.gethostname()}:{os.getpid()}"


def listed(server: Server) -> list[tuple[str, str | None]]:
    """Return the names of the server's clients but for the one that asks, and of their libraries if it knows them."""
    with server.client() as admin:
        own = admin.client_id()
        return [(each["name"], each.get("lib-name")) for each in admin.client_list() if int(each["id"]) != own]


def use(backend: ailf.Backend) -> None:
    """Make a connection of each kind: for calls, for renewal, for a subscription, for a wait."""
    stream = backend.stream("s")
    group = stream.group("g", lease=0.3)
    with backend.pubsub().listen("c"), group.consumer() as consumer, backend.lock("l", ttl=0.3):
        waiting = threading.Thread(target=consumer.get, args=[0.7])
        waiting.start()
        waiting.join()


async def use_async(backend: ailf.AsyncBackend) -> None:
    """Do the same on asyncio."""
    consumer = backend.stream("s").group("g").consumer()
    async with backend.pubsub().listen("c"), backend.lock("l", ttl=0.3), consumer:
        await consumer.get(0.7)


class Watch(threading.Thread):
    """Collects the clients of a server while a test uses it."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._ended = threading.Event()
        self.most: list[tuple[str, str | None]] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Ask the server until the test has ended."""
        while not self._ended.wait(0.02):
            clients = listed(self._server)
            if len(clients) >= len(self.most):
                self.most = clients


def expected(version: str, name: str = NAME) -> set[tuple[str, str | None]]:
    """Return how the connections are listed by a version of the server."""
    return {(name, None if version == "6.2" else "ailf")}


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_every_connection_has_a_name(redis_versions: list[str], new_server: NewServer, flavour: str) -> None:
    """Each connection of a backend has the host and process in its name, and the library where the server knows it."""
    for version in redis_versions:
        server = new_server(version=version)

        async def main(url: str) -> None:
            async with ailf.connect_async(url) as backend:
                await use_async(backend)

        with Watch(server) as watch:
            if flavour == "asyncio":
                asyncio.run(main(server.url))
            else:
                with ailf.connect(server.url) as backend:
                    use(backend)
        assert len(watch.most) >= 3
        assert set(watch.most) == expected(version)


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_a_chosen_name(any_server: Server, namespace: str, flavour: str) -> None:
    """`client_name` of a URL, and that of the user's client, is the name instead; the client keeps its own library."""

    async def names(backend: ailf.AsyncBackend) -> set[str]:
        async with backend:
            await backend.stream("s").add(1)
            return {name for name, _ in listed(any_server)}

    def opened(backend: ailf.Backend) -> set[str]:
        with backend:
            backend.stream("s").add(1)
            return {name for name, _ in listed(any_server)}

    url = f"{any_server.url}?namespace={namespace}&client_name=billing-1"
    client: Any = (redis if flavour == "blocking" else aredis).Redis(port=any_server.port, client_name="theirs")
    if flavour == "blocking":
        assert "billing-1" in opened(ailf.connect(url))
        assert "theirs" in opened(RedisBackend.from_client(client))
        client.ping()
        assert ("theirs", "redis-py") in listed(any_server)
        client.close()
    else:
        assert "billing-1" in asyncio.run(names(ailf.connect_async(url)))
        assert "theirs" in asyncio.run(names(AsyncRedisBackend.from_client(client)))


@pytest.mark.parametrize("name", ["", "two words", "ümläut", "a\nb", "\0"])
def test_names_that_no_server_takes(name: str) -> None:
    """A name that the server would refuse is refused when it is given."""
    with pytest.raises(InvalidArgumentError, match="client_name"):
        Settings.from_url(f"redis://localhost/?client_name={quote(name)}")


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_without_the_right_to_introduce_itself(redis_versions: list[str], new_server: NewServer, flavour: str) -> None:
    """A user without the right to CLIENT gets connections without a name, and each reply reaches its own call."""
    for version in redis_versions:
        server = new_server(version=version)
        with server.client() as admin:
            admin.execute_command(
                "ACL", "SETUSER", "agent", "reset", "on", ">pw", "allkeys", "allchannels", "+@all", "-client"
            )
        url = f"redis://agent:pw@127.0.0.1:{server.port}/3"

        async def main(url: str) -> list[Any]:
            async with ailf.connect_async(url) as backend:
                await use_async(backend)
                await backend.stream("s").add_many(range(3))
                return [each.data for each in await backend.stream("s").read()]

        if flavour == "asyncio":
            assert asyncio.run(main(url)) == [0, 1, 2]
        else:
            with ailf.connect(url) as backend:
                use(backend)
                backend.stream("s").add_many(range(3))
                assert [each.data for each in backend.stream("s").read()] == [0, 1, 2]
        assert {name for name, _ in listed(server)} <= {""}


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_it_takes_no_round_trip(flavour: str) -> None:
    """The first request is sent before the server has replied to the introduction."""
    held: list[bytes] = []

    def answer(command: list[bytes]) -> list[bytes]:
        if command[0] == b"CLIENT":
            held.append(b"+OK\r\n" if command[1] == b"SETNAME" else b"-ERR unknown subcommand\r\n")
            return []
        reply = HELLO if command[0] == b"HELLO" else b":0\r\n"
        replies = [*held, reply]
        held.clear()
        return replies

    async def main(url: str) -> None:
        async with ailf.connect_async(url) as backend:
            await backend.pubsub().publish("c", 1)

    with Scripted(answer, greets=False, introduced=False) as server:
        if flavour == "asyncio":
            asyncio.run(main(server.url))
        else:
            with ailf.connect(server.url) as backend:
                backend.pubsub().publish("c", 1)
        assert [each[:2] for each in server.commands[0][:3]] == [
            [b"CLIENT", b"SETNAME"],
            [b"CLIENT", b"SETINFO"],
            [b"CLIENT", b"SETINFO"],
        ]


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
@pytest.mark.parametrize("refusal", ["ERR max number of clients reached", "DENIED Redis is running in protected mode"])
def test_a_refused_connection(flavour: str, refusal: str) -> None:
    """The error of a server that refuses a new connection without reading from it is not taken for a reply to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0?timeout=1&retry_for=0"

        def refuse() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.sendall(f"-{refusal}\r\n".encode())
                        client.shutdown(socket.SHUT_WR)
                        while client.recv(65536):
                            pass

        refusing = threading.Thread(target=refuse, daemon=True)
        refusing.start()

        async def main() -> None:
            async with ailf.connect_async(url):
                pass

        with pytest.raises(ailf.BackendError, match=refusal.partition(" ")[2]):
            asyncio.run(main()) if flavour == "asyncio" else ailf.connect(url)
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        refusing.join(5)
