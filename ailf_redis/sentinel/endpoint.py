"""The requests to Sentinels, and their replies and messages read. `ailf_redis.sentinel.master` decides what follows."""

from collections.abc import Sequence
from typing import Any, Final

import attrs

from ailf.runtime.clock import SystemClock
from ailf_redis.connection.endpoint import PendingConnections, ServerEndpoint, disconnect, server_of
from ailf_redis.connection.exchange import Port, port_of
from ailf_redis.connection.resp import READ_SIZE, Command, packed
from ailf_redis.errors import MISREAD
from ailf_redis.settings import Address, Settings

__all__ = [
    "SWITCHES",
    "MasterState",
    "SentinelEndpoint",
    "ask",
    "is_master",
    "new_master",
    "sentinels_of",
    "state_requests",
]

SWITCHES: Final = "+switch-master"
"""The channel on which a Sentinel publishes that another server has become a master."""


# --- replies and messages -----------------------------------------------------------------------------------------


@attrs.frozen
class MasterState:
    """The state of a master, as one Sentinel reports it.

    Attributes:
        address: The master's address.
        epoch: The version of the Sentinel's configuration; a failover raises it.
        peers: How many other Sentinels this one knows.
        healthy: Whether the Sentinel reaches the master, or has just promoted it.
    """

    address: Address
    epoch: int
    peers: int
    healthy: bool

    @classmethod
    def of(cls, master: Any, address: Any) -> "MasterState | None":
        """Read the replies to `state_requests`; None if they are errors, for example if the master is unknown.

        The Sentinel that leads a failover reports the new epoch with the former master until all replicas follow the
        new one. GET-MASTER-ADDR-BY-NAME returns the new address at once: the server there has confirmed its role.
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
    """Return the new address in a message of ``+switch-master``; None: any other message, or one of another service.

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
    """The master that Sentinels name; each executor connects to it through a `MasterTracker`.

    Attributes:
        master: An endpoint with the master's options; its address is replaced by the one that the Sentinels name.
        sentinels: The Sentinels.
        service: The master's name.
        peers: How many other Sentinels a Sentinel must know to be believed.
        forced_host: A host to use instead of the one that the Sentinels name; None: use theirs.
        where: The Sentinels and the master's name, for messages.
    """

    master: ServerEndpoint
    sentinels: Sequence[ServerEndpoint]
    service: str
    peers: int
    forced_host: str | None
    where: str

    def with_pending(self, pending: PendingConnections) -> "SentinelEndpoint":
        """Return this endpoint for one executor, with its own `PendingConnections`."""
        sentinels = [attrs.evolve(each, pending=pending) for each in self.sentinels]
        return attrs.evolve(self, master=attrs.evolve(self.master, pending=pending), sentinels=sentinels)


def sentinels_of(settings: Settings, flavour: str) -> SentinelEndpoint:
    """Return the endpoint of the master of the Sentinels that `settings` name."""
    master = server_of(settings, flavour)
    sentinel = attrs.evolve(master, options=settings.sentinel_options())
    return SentinelEndpoint(
        master=master,
        sentinels=[sentinel.at(each) for each in settings.sentinels],
        service=settings.master or "",
        peers=0,
        forced_host=None,
        where=settings.url,
    )


# --- requests -----------------------------------------------------------------------------------------------------


def state_requests(service: str) -> list[Command]:
    """Return the commands whose replies make a `MasterState`."""
    return [("SENTINEL", "MASTER", service), ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)]


async def ask(sentinel: ServerEndpoint, service: str, seconds: float) -> MasterState | None:
    """Connect to a Sentinel and ask for the state of a master, within `seconds`; None: the master is unknown to it.

    Raises:
        RedisError, OSError, hiredis.HiredisError: The Sentinel can't be reached, or doesn't reply in time.
    """
    until = SystemClock.wait_time() + seconds
    connection = await sentinel.within(seconds).connect()
    try:
        with sentinel.pending.track(connection):
            master, address = await _exchange(port_of(connection), state_requests(service), until)
    finally:
        await disconnect(connection)
    return MasterState.of(master, address)


async def is_master(port: Port, until: float) -> bool:
    """Ask a server by ROLE whether it is a master; `until` is on the system's clock.

    Raises:
        RedisError, OSError, hiredis.HiredisError: The server doesn't reply in time, or refuses.
    """
    (role,) = await _exchange(port, [("ROLE",)], until)
    if isinstance(role, Exception):
        raise role
    return isinstance(role, list) and role[:1] == [b"master"]


async def _exchange(port: Port, commands: Sequence[Command], until: float) -> list[Any]:
    await port.send(packed(commands), until)
    return await port.receive(len(commands), until, READ_SIZE)
