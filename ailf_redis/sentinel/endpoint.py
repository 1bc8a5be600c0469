"""Sentinels: what they say of a master, asked or published. `ailf_redis.sentinel.master` decides what follows."""

from collections.abc import Sequence
from typing import Any, Final

import attrs

from ailf.runtime.clock import SystemClock
from ailf_redis.connection.endpoint import Address, ServerEndpoint, hang_up
from ailf_redis.connection.exchange import Port, port_of
from ailf_redis.connection.resp import READ_SIZE, Command, packed
from ailf_redis.errors import MISREAD

__all__ = ["SWITCHES", "MasterState", "SentinelEndpoint", "ask", "is_master", "new_master", "questions"]

SWITCHES: Final = "+switch-master"
"""The channel on which a Sentinel publishes that another server has become a master."""


# --- what Sentinels say -------------------------------------------------------------------------------------------


@attrs.frozen
class MasterState:
    """What one Sentinel says of a master.

    Attributes:
        address: Where it is.
        epoch: The version of the Sentinel's configuration; a failover raises it.
        peers: How many other Sentinels this one knows.
        healthy: Whether the Sentinel reaches it, or has just made it the master.
    """

    address: Address
    epoch: int
    peers: int
    healthy: bool

    @classmethod
    def of(cls, master: Any, address: Any) -> "MasterState | None":
        """Read the replies to `questions`; None: they are errors, as of a Sentinel that doesn't know the master.

        The Sentinel that leads a failover tells the new epoch, but the former master, until all replicas follow the new
        one. Only the address on its own is the new one already: the server there has said that it is a master.
        """
        try:
            fields = dict(zip(master[::2], master[1::2], strict=True))
            flags = set(fields[b"flags"].split(b","))
            host, port = address
            return cls(
                address=(host.decode(), int(port)),
                epoch=int(fields[b"config-epoch"]),
                peers=int(fields[b"num-other-sentinels"]),
                healthy=[host, port] != [fields[b"ip"], fields[b"port"]]
                or (b"master" in flags and not flags & {b"s_down", b"o_down", b"disconnected"}),
            )
        except MISREAD:
            return None


def new_master(reply: Any, service: str) -> Address | None:
    """Return the address that a message of ``+switch-master`` names; None: it is no such message, or not of `service`.

    The message is ``<service> <old host> <old port> <new host> <new port>``.
    """
    match reply:
        case [b"message", channel, bytes(body)] if channel == SWITCHES.encode():
            match body.decode("utf-8", "replace").rsplit(" ", 4):
                case [name, _, _, host, port] if name == service and port.isdecimal():
                    return host, int(port)
    return None


@attrs.frozen
class SentinelEndpoint:
    """The master that Sentinels know; each executor connects to it through a `MasterTracker`.

    Attributes:
        master: How to connect to it; the address is what the Sentinels say.
        sentinels: The Sentinels.
        service: The master's name.
        peers: How many other Sentinels one must know to be believed.
        forced_host: The master's host whatever they say; None: believe them.
        where: The Sentinels and the master's name, for messages.
    """

    master: ServerEndpoint
    sentinels: Sequence[ServerEndpoint]
    service: str
    peers: int
    forced_host: str | None
    where: str


# --- asking -------------------------------------------------------------------------------------------------------


def questions(service: str) -> list[Command]:
    """Return the commands whose replies make a `MasterState`."""
    return [("SENTINEL", "MASTER", service), ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)]


async def ask(sentinel: ServerEndpoint, service: str) -> MasterState | None:
    """Return what a Sentinel says of a master; None: it doesn't know it.

    Raises:
        RedisError, OSError, hiredis.HiredisError: It doesn't say.
    """
    connection = await sentinel.connect()
    try:
        master, address = await _exchange(port_of(connection), questions(service), sentinel.options["socket_timeout"])
    finally:
        await hang_up(connection)
    return MasterState.of(master, address)


async def is_master(port: Port, timeout: float) -> bool:
    """Ask a server whether it is a master.

    Raises:
        RedisError, OSError, hiredis.HiredisError: It doesn't say.
    """
    (role,) = await _exchange(port, [("ROLE",)], timeout)
    if isinstance(role, Exception):
        raise role
    return isinstance(role, list) and role[:1] == [b"master"]


async def _exchange(port: Port, commands: Sequence[Command], timeout: float) -> list[Any]:
    until = SystemClock.wait_time() + timeout
    await port.send(packed(commands), until)
    return await port.receive(len(commands), until, READ_SIZE)
