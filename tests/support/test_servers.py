"""The servers of the tests do what they document."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.support import binaries
from tests.support.servers import PORTS, NewServer, Server, ServerStartError, free_port


def eventually(condition: Callable[[], bool], within: float = 5.0) -> bool:
    """Tell whether a condition holds within `within` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def gone(pid: int) -> bool:
    """Tell whether a process has ended, or soon does; its new parent may be slow to reap it (a zombie)."""

    def ended() -> bool:
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], stdout=subprocess.PIPE, check=False).stdout
        return not state.strip() or state.startswith(b"Z")

    return eventually(ended)


def test_shared_server_is_the_version_it_says(server: Server) -> None:
    """The binary of each version has that version."""
    with server.client() as client:
        info = client.info("server")
    key, number = ("valkey_version", "8.1") if server.version == "valkey-8.1" else ("redis_version", server.version)
    assert info[key].startswith(f"{number}.")


def test_any_server_is_the_newest_of_the_shared_ones(any_server: Server, redis_versions: list[str]) -> None:
    """Tests that need any server run on the newest one."""
    assert any_server.version == redis_versions[-1]
    assert any_server.running


def test_server_starts_in_every_version(server: Server, new_server: NewServer) -> None:
    """Password, unix socket and append-only file work together in every version."""
    private = new_server(version=server.version, password="a b/c", appendonly=True, unixsocket=True)
    for url in (private.url, private.unix_url):
        with redis.Redis.from_url(url, protocol=2) as client:
            assert client.ping()
            assert client.info("persistence")["aof_enabled"] == 1
    with private.dial() as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(64) == b"+PONG\r\n"


def test_url_without_password_is_refused(new_server: NewServer) -> None:
    """A server with a password refuses a client without one."""
    private = new_server(password="secret")
    with (
        redis.Redis.from_url(private.url.replace(":secret@", ""), protocol=2) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()


def test_restart_keeps_port_and_data(new_server: NewServer) -> None:
    """After a crash and a restart the server has the same port, and the data of its append-only file."""
    private = new_server("--appendfsync", "always", appendonly=True)
    port, pid = private.port, private.pid
    with private.client() as client:
        client.set("key", "value")
    private.kill()
    assert not private.running
    private.restart()
    assert (private.port, private.running) == (port, True)
    assert private.pid != pid
    with private.client() as client:
        assert client.get("key") == b"value"


def test_paused_server_keeps_connections_and_answers_later(new_server: NewServer) -> None:
    """A paused server answers nothing; once it goes on it answers everything."""
    private = new_server()
    with private.dial(timeout=0.2) as connection:
        private.pause()
        connection.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(64)
        private.resume()
        connection.settimeout(5.0)
        assert connection.recv(64) == b"+PONG\r\n"


def test_close_ends_even_a_paused_server(new_server: NewServer) -> None:
    """`close` leaves no process and no directory."""
    private = new_server()
    pid, directory = private.pid, private.directory
    private.pause()
    private.close()
    assert gone(pid)
    assert not directory.exists()


def test_start_failure_shows_the_servers_log() -> None:
    """The error of a failed start has the server's log."""
    binary = list(binaries.found().values())[-1]
    with pytest.raises(ServerStartError, match="no-such-option"):
        Server.start(binary, "--no-such-option", "1")


def test_server_dies_with_the_process_that_started_it() -> None:
    """A test run that is killed leaves no server behind."""
    binary = list(binaries.found().values())[-1]
    program = (
        "import os, signal, pathlib; from tests.support.servers import Server;"
        f"server = Server.start(pathlib.Path({str(binary)!r})); print(server.pid, server.directory, flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1], check=False
    )
    assert done.returncode == -signal.SIGKILL
    pid, directory = done.stdout.decode().split()
    assert gone(int(pid))
    assert eventually(lambda: not Path(directory).exists())


def test_free_ports_are_out_of_the_way_of_clients() -> None:
    """Server ports are outside the range of local client ports."""
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range")
    lowest = int(ephemeral.read_text().split()[0]) if ephemeral.exists() else 49152
    assert free_port() in PORTS
    assert PORTS.stop + 10_000 <= lowest


def test_selection_refuses_unknown_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown version in AILF_TEST_SERVERS is an error."""
    monkeypatch.setenv(binaries.SELECTION, "6.2,9.9")
    with pytest.raises(LookupError, match=r"not 9\.9"):
        binaries.found()


def test_selection_refuses_missing_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A version in AILF_TEST_SERVERS that is missing is an error, which says what was found instead."""
    fake = tmp_path / "redis-server"
    fake.write_text("#!/bin/sh\necho Redis server v=5.0.1 sha=0\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/nonexistent")
    monkeypatch.setenv(binaries.SELECTION, "7.0")
    monkeypatch.setattr(binaries, "locate", binaries.locate.__wrapped__)
    with pytest.raises(LookupError, match=r"7\.0 .*only Redis server v=5\.0\.1"):
        binaries.found()
