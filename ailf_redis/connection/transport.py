"""Find out why a connection can't be made: the server expects TLS, or expects none.

A server without TLS takes the beginning of a TLS handshake for an unfinished command, and waits for the rest; a server
with TLS closes a connection that begins with a command. Neither says why, so another connection, of the other kind,
asks. It is made only after a failure.
"""

import asyncio
import contextlib
import socket
import ssl
from typing import Final

from ailf_redis.settings import Address

__all__ = ["expects_tls", "speaks_plain"]

BEGINNINGS: Final = (b"+", b"-")
"""The beginnings of a reply to PING: PONG, or an error."""


async def expects_tls(address: Address, seconds: float, *, on_asyncio: bool) -> bool:
    """Return whether a server completes a TLS handshake, or ends it with an alert of TLS, within `seconds`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent over the connection
    try:
        if on_asyncio:
            async with asyncio.timeout(seconds):
                _, writer = await asyncio.open_connection(*address, ssl=context)
            writer.transport.abort()
        else:
            with socket.create_connection(address, seconds) as plain, context.wrap_socket(plain):
                pass
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except (OSError, ValueError):
        return False
    return True


async def speaks_plain(address: Address, seconds: float, *, on_asyncio: bool) -> bool:
    """Return whether a server replies to PING without TLS, within `seconds`."""
    try:
        reply = await (_asyncio_reply(address, seconds) if on_asyncio else _blocking_reply(address, seconds))
    except (OSError, ValueError):
        return False
    return reply.startswith(BEGINNINGS)


async def _asyncio_reply(address: Address, seconds: float) -> bytes:
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection(*address)
        with contextlib.closing(writer.transport):
            writer.write(b"PING\r\n")
            return await reader.read(16)


async def _blocking_reply(address: Address, seconds: float) -> bytes:
    with socket.create_connection(address, seconds) as plain:
        plain.sendall(b"PING\r\n")
        return plain.recv(16)
