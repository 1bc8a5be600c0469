"""Real servers for the tests: on free ports of this machine, to be stopped and killed at will, never left behind.

Nothing here depends on how `ailf` talks to a server: readiness is checked over a plain socket.
"""

import contextlib
import logging
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Protocol, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

log = logging.getLogger("tests")

HOST = "127.0.0.1"
START_DEADLINE = 10.0
STOP_DEADLINE = 5.0

# Below the range from which systems pick the local port of a connection (32768 and up). Within that range a client that
# retries the port of a stopped server can get that very port, connect to itself, and block the restart.
# A cluster node also listens on its port + 10000, which stays below it too.
PORTS = range(11_000, 22_000)


class ServerStartError(RuntimeError):
    """The server ended, or did not answer in time; the message has its log."""


class Server:
    """One server process, and the ways to start, stop, freeze and reach it.

    Attributes:
        version: The name of its version, as in `tests.support.binaries.VERSIONS`.
        port: The TCP port, the same after every restart.
        password: The value of `--requirepass`, or None.
        socket_path: The unix socket, or None if the server was started without one.
    """

    def __init__(
        self,
        binary: Path,
        *options: str,
        version: str,
        password: str | None,
        appendonly: bool,
        unixsocket: bool,
        port: int | None,
    ) -> None:
        self.version = version
        self.password = password
        self.port = port or free_port()
        # Short on purpose: the path of a unix socket has a limit of about 100 bytes, and pytest's tmp_path is long.
        self.directory = Path(tempfile.mkdtemp(prefix="ailf-"))
        self.socket_path = self.directory / "s" if unixsocket else None
        self._binary = binary
        self._options = [
            *(("--requirepass", password) if password else ()),
            *(("--unixsocket", str(self.socket_path)) if unixsocket else ()),
            *("--appendonly", "yes" if appendonly else "no"),
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(
        cls,
        binary: Path,
        *options: str,
        version: str = "",
        password: str | None = None,
        appendonly: bool = False,
        unixsocket: bool = False,
        port: int | None = None,
    ) -> Self:
        """Start a server and return it when it answers.

        Raises:
            ServerStartError: The server ended, or did not answer within 10 s.
        """
        for attempts_left in (2, 1, 0):
            server = cls(
                binary,
                *options,
                version=version,
                password=password,
                appendonly=appendonly,
                unixsocket=unixsocket,
                port=port,
            )
            try:
                server._launch()
            except ServerStartError as error:
                server.close()
                # Another process took the port between our choice and the server's bind.
                if not attempts_left or "already in use" not in str(error):
                    raise
            else:
                return server
        raise AssertionError  # the last attempt returns or raises

    @property
    def url(self) -> str:
        """The URL of database 0, with the password if there is one."""
        return f"redis://{self._userinfo}{HOST}:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """The URL of its unix socket."""
        return f"unix://{self._userinfo}{self.socket_path}?db=0"

    @property
    def _userinfo(self) -> str:
        return f":{quote(self.password, safe='')}@" if self.password else ""

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._running().pid

    @property
    def running(self) -> bool:
        """Whether the process exists (it may be paused)."""
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """Return everything that the server has printed, over all restarts."""
        return (self.directory / "log").read_text(errors="replace")

    def client(self) -> redis.Redis:
        """Return a redis-py client that never retries and decodes nothing; close it, or use it with `with`."""
        return redis.Redis(
            host=HOST,
            port=self.port,
            password=self.password,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
        )

    def dial(self, timeout: float = 5.0) -> socket.socket:
        """Return a plain authenticated connection, for a test that speaks RESP itself."""
        connection = socket.create_connection((HOST, self.port), timeout)
        if self.password:
            secret = self.password.encode()
            try:
                connection.sendall(b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n" % (len(secret), secret))
                connection.recv(64)
            except OSError:
                connection.close()
                raise
        return connection

    def pause(self) -> None:
        """Freeze the process (SIGSTOP): its connections stay open and nothing answers."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        self._running().send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the process as a crash would (SIGKILL); its directory stays for `restart`."""
        if self._process is not None:
            self._process.kill()
        self._reap(STOP_DEADLINE)

    def stop(self) -> None:
        """End the process with SIGTERM, or with SIGKILL after 5 s; its directory stays for `restart`."""
        if self._process is not None and not self.running:
            log.warning("port %d ended by itself: %s\n%s", self.port, self._process.returncode, self.log())
        if self._process is not None:
            self._process.terminate()
            self._process.send_signal(signal.SIGCONT)  # a paused process receives SIGTERM only when it goes on
        try:
            self._reap(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            self.kill()

    def restart(self, *options: str) -> None:
        """Start again on the same port and directory, after `stop` if it still runs; `options` are added."""
        self.stop()
        self._options += options
        self._launch()

    def close(self) -> None:
        """Stop the process and delete its directory."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _launch(self) -> None:
        """Start the process and its watchdog, and wait for the first answer."""
        config = self.directory / "conf"  # empty; only CONFIG REWRITE and `--sentinel` need it
        config.touch()
        with (self.directory / "log").open("ab") as output:
            self._process = self._spawn(config, output)
        self._watchdog = watchdog(self._process.pid, self.directory)
        deadline = time.monotonic() + START_DEADLINE
        while not self._answers():
            if not self.running or time.monotonic() > deadline:
                self.kill()
                raise ServerStartError(f"{self._binary} did not start on port {self.port}; its log:\n{self.log()}")
            time.sleep(0.01)

    def _spawn(self, config: Path, output: IO[bytes]) -> subprocess.Popen[bytes]:
        listen = ("--bind", HOST, "--port", str(self.port))
        return subprocess.Popen(
            [self._binary, config, *listen, "--dir", self.directory, "--save", "", *self._options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only pytest, which then stops its servers in order
        )

    def _answers(self) -> bool:
        """Tell whether this process answers, and not another one that had the port."""
        with contextlib.suppress(OSError), self.dial(timeout=1.0) as connection:
            connection.sendall(b"PING\r\n")  # refused while the server loads its data, unlike INFO
            if connection.recv(100) != b"+PONG\r\n":
                return False
            connection.sendall(b"INFO server\r\n")
            return f"process_id:{self.pid}\r\n".encode() in connection.recv(4096)
        return False

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"the server on port {self.port} is stopped")
        return self._process

    def _reap(self, timeout: float) -> None:
        if self._process is not None:
            self._process.wait(timeout)
            self._process = None
        if self._watchdog is not None:
            self._watchdog.communicate(b"\n")
            self._watchdog = None


def watchdog(pid: int, directory: Path) -> subprocess.Popen[bytes]:
    """Kill `pid` and delete its directory when this process dies in any way; a line on its standard input calls it off.

    The watchdog reads a pipe whose other end only this process holds; the pipe ends when this process dies.
    (Linux's PR_SET_PDEATHSIG looks simpler, but it fires when the *thread* that started the server ends.)
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _ || { kill -9 "$0"; rm -rf "$1"; }', str(pid), directory],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def free_port() -> int:
    """Return a free port from `PORTS`."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise OSError(f"no free port: 100 tried between {PORTS.start} and {PORTS.stop}, all taken")


class NewServer(Protocol):
    """The type of the fixture `new_server`: start a private server; without a version, of the newest."""

    def __call__(
        self,
        *options: str,
        version: str | None = None,
        password: str | None = None,
        appendonly: bool = False,
        unixsocket: bool = False,
        port: int | None = None,
    ) -> Server:
        """Start a server; the fixture stops it after the test."""


class SharedServers:
    """One server per version, started at its first use, shared by all tests of a session."""

    def __init__(self) -> None:
        self._servers: dict[str, Server] = {}

    def get(self, version: str, binary: Path) -> Server:
        """Return the server of this version, running."""
        server = self._servers.get(version)
        if server is None:
            server = self._servers[version] = Server.start(binary, version=version)
        elif not server.running:
            raise RuntimeError(f"a test ended the shared {version} server; use new_server to do that\n{server.log()}")
        return server

    def close(self) -> None:
        """Stop all servers."""
        while self._servers:
            self._servers.popitem()[1].close()
