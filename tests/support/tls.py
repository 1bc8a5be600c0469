"""TLS for any server: certificates of a test's own, and what stands before a server that has no TLS built in."""

import asyncio
import contextlib
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Self

import attrs
import trustme

__all__ = ["Certificates", "Terminator"]

HOST = "localhost"
"""What the certificates are for; 127.0.0.1 is another name, which they don't have."""


@attrs.frozen
class Certificates:
    """Files of a certificate authority, and of a server that it vouches for.

    Attributes:
        ca: Whom clients are to trust.
        cert: The server's chain.
        key: The server's key.
    """

    ca: Path
    cert: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Write them into a folder."""
        made = cls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
        authority = trustme.CA()
        server = authority.issue_cert(HOST)
        authority.cert_pem.write_to_path(str(made.ca))
        server.cert_chain_pems[0].write_to_path(str(made.cert))
        server.private_key_pem.write_to_path(str(made.key))
        return made

    def options(self) -> list[str]:
        """Return what a Redis server is to be started with."""
        files = {"cert": self.cert, "key": self.key, "ca-cert": self.ca}
        return [part for name, path in files.items() for part in (f"--tls-{name}-file", str(path))]


class Terminator:
    """Speaks TLS with clients and plain TCP with a port of this machine, from `with` to the end of it.

    It is a process of its own, so that what it holds is not mistaken for a client's.

    Attributes:
        port: Where clients connect to.
    """

    def __init__(self, certificates: Certificates, target_port: int) -> None:
        command = (sys.executable, "-m", "tests.support.tls", certificates.cert, certificates.key, str(target_port))
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=5.0)


async def _terminate(cert: str, key: str, target_port: str) -> None:
    """Serve until standard input ends."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", int(target_port))
        pumps = [asyncio.create_task(_pump(reader, outer)), asyncio.create_task(_pump(inner, writer))]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        outer.close()
        writer.transport.abort()  # a polite end waits for the client's

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    server = await asyncio.start_server(connected, HOST, 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - what the parent reads
    await asyncio.to_thread(sys.stdin.read)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()


if __name__ == "__main__":
    asyncio.run(_terminate(*sys.argv[1:]))
