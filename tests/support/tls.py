"""TLS for any server: certificates for a test, and a TLS terminator before a server without TLS."""

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
"""The host name of the certificates; they are not valid for 127.0.0.1."""


@attrs.frozen
class Certificates:
    """Files of a certificate authority, and of a server certificate that it has signed.

    Attributes:
        ca: The certificate of the authority, which clients trust.
        cert: The certificate chain of the server.
        key: The private key of the server.
        client_cert: The certificate chain of a client.
        client_key: The private key of the client.
    """

    ca: Path
    cert: Path
    key: Path
    client_cert: Path
    client_key: Path

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Write new certificates into a folder."""
        names = ("ca", "cert", "key", "client_cert", "client_key")
        certificates = cls(*(folder / f"{name}.pem" for name in names))
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(certificates.ca))
        for issued, cert, key in (
            (authority.issue_cert(HOST), certificates.cert, certificates.key),
            (authority.issue_cert("agent@example.org"), certificates.client_cert, certificates.client_key),
        ):
            issued.cert_chain_pems[0].write_to_path(str(cert))
            issued.private_key_pem.write_to_path(str(key))
        return certificates

    def options(self) -> list[str]:
        """Return the options of a Redis server for these files."""
        files = {"cert": self.cert, "key": self.key, "ca-cert": self.ca}
        return [part for name, path in files.items() for part in (f"--tls-{name}-file", str(path))]


class Terminator:
    """A TLS terminator before a port of this machine, for the length of a `with` block.

    It is a process of its own, so that its sockets aren't counted as a client's.

    Arguments:
        certificates: The certificates.
        target_port: The port of the server.
        asks: Whether it refuses clients without a certificate of the authority.

    Attributes:
        port: The port for clients.
    """

    def __init__(self, certificates: Certificates, target_port: int, *, asks: bool = False) -> None:
        files = (certificates.cert, certificates.key, *((certificates.ca,) if asks else ()))
        command = (sys.executable, "-m", "tests.support.tls", str(target_port), *files)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=5.0)


async def _terminate(target_port: str, cert: str, key: str, authority: str | None = None) -> None:
    """Serve until standard input ends."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", int(target_port))
        pumps = [asyncio.create_task(_pump(reader, outer)), asyncio.create_task(_pump(inner, writer))]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        outer.close()
        writer.transport.abort()  # a clean TLS shutdown would wait for the client

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    if authority is not None:
        context.load_verify_locations(authority)
        context.verify_mode = ssl.CERT_REQUIRED
    server = await asyncio.start_server(connected, HOST, 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - the parent reads it
    await asyncio.to_thread(sys.stdin.read)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()


if __name__ == "__main__":
    asyncio.run(_terminate(*sys.argv[1:]))
