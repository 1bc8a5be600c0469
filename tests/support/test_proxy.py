"""The proxy of the fault tests fails in exactly the ways that it documents."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.support.proxy import HOST, Proxy


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that echoes each connection, one thread each."""
    listener = socket.create_server((HOST, 0))
    threads: list[threading.Thread] = []

    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(ConnectionError), connection:
            while data := connection.recv(65536):
                connection.sendall(data)

    def accept() -> None:
        while True:
            connection, peer = listener.accept()
            if peer == ender.getsockname():
                connection.close()
                return
            threads.append(threading.Thread(target=answer, args=(connection,), daemon=True))
            threads[-1].start()

    with socket.socket() as ender, listener:
        ender.bind((HOST, 0))
        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        yield listener.getsockname()[1]
        ender.connect(listener.getsockname())
        for thread in (acceptor, *threads):
            thread.join()


def dial(proxy: Proxy) -> socket.socket:
    """Return a client with a short timeout whose connection works."""
    client = socket.create_connection((HOST, proxy.port), timeout=5.0)
    assert echo(client, b"hello") == b"hello"
    client.settimeout(0.2)
    return client


def echo(client: socket.socket, data: bytes) -> bytes:
    """Send data, and read as many bytes."""
    client.sendall(data)
    return read(client, len(data))


def read(client: socket.socket, size: int) -> bytes:
    """Read `size` bytes, or fewer if the connection ends."""
    parts = bytearray()
    while len(parts) < size and (data := client.recv(size - len(parts))):
        parts += data
    return bytes(parts)


def test_passes_bytes_both_ways(echo_port: int) -> None:
    """By default the proxy passes all bytes, of large messages and many connections too."""
    with Proxy(echo_port) as proxy, dial(proxy) as one, dial(proxy) as two:
        assert proxy.connections == 2
        assert echo(one, b"x" * 100_000) == b"x" * 100_000
        assert echo(two, b"y") == b"y"


def test_cut_ends_connections_and_accepts_new_ones(echo_port: int) -> None:
    """After a cut the old connection is closed, and a new one works."""
    with Proxy(echo_port) as proxy:
        with dial(proxy) as old:
            proxy.cut()
            assert proxy.connections == 0
            assert old.recv(1) == b""
        with dial(proxy) as new:
            assert echo(new, b"again") == b"again"


def test_stall_holds_bytes_until_resume(echo_port: int) -> None:
    """Bytes that are sent during a stall arrive after it."""
    with Proxy(echo_port) as proxy, dial(proxy) as client:
        proxy.stall()
        client.sendall(b"late")
        with pytest.raises(TimeoutError):
            client.recv(4)
        proxy.resume()
        assert read(client, 4) == b"late"


def test_stalled_connection_can_be_cut(echo_port: int) -> None:
    """A cut needs no resume."""
    with Proxy(echo_port) as proxy, dial(proxy) as client:
        proxy.stall()
        client.sendall(b"lost")
        proxy.cut()
        assert client.recv(4) == b""


def test_drop_replies_lets_requests_through(echo_port: int) -> None:
    """The target gets the request, the client never gets its reply, and later replies arrive again."""
    with Proxy(echo_port) as proxy, dial(proxy) as client:
        proxy.drop_replies()
        client.sendall(b"lost")
        with pytest.raises(TimeoutError):
            client.recv(4)
        proxy.resume()
        assert echo(client, b"kept") == b"kept"


def test_forget_silences_what_there_is(echo_port: int) -> None:
    """A forgotten connection stays silent for ever and isn't closed; a new one works."""
    with Proxy(echo_port) as proxy, dial(proxy) as old:
        proxy.forget()
        old.sendall(b"lost")
        with pytest.raises(TimeoutError):
            old.recv(4)
        with dial(proxy) as new:
            assert echo(new, b"again") == b"again"


def test_hang_up_is_passed_on(echo_port: int) -> None:
    """A client that disconnects no longer counts as a connection."""
    with Proxy(echo_port) as proxy:
        dial(proxy).close()
        with dial(proxy):
            assert proxy.connections == 1


def test_target_that_is_away_ends_the_connection() -> None:
    """If the target is down the client's connection is closed at once."""
    with socket.socket() as unused:
        unused.bind((HOST, 0))  # bound and not listening: connections are refused, and no other process has it
        with (
            Proxy(unused.getsockname()[1]) as proxy,
            socket.create_connection((HOST, proxy.port), timeout=5.0) as client,
        ):
            assert client.recv(1) == b""


def test_no_thread_is_left(echo_port: int) -> None:
    """Leaving the proxy ends its threads, in any state and with open connections."""
    proxy = Proxy(echo_port)
    with proxy, dial(proxy) as client, dial(proxy):
        proxy.stall()
        client.sendall(b"held")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("proxy-")]
