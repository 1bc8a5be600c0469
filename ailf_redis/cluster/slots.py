"""Who serves what in a cluster: the pure part. Nothing in here waits."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import attrs
from redis.crc import key_slot

from ailf_redis.connection.endpoint import Address
from ailf_redis.connection.resp import Command

__all__ = ["SlotMap", "key_of", "slot_of"]

_ANYWHERE: Final = {"HELLO", "PING"}
_SCRIPTS: Final = {"EVAL", "EVALSHA"}
_FIRST_KEY: Final = 3


def key_of(command: Command, meeting: str) -> str | None:
    """Return the key that says which node a command is for; None: any will do.

    Arguments:
        command: A command.
        meeting: Stands for all plain channels: who publishes and who listens meet at one node, so that messages stay in
            order whatever their channels.
    """
    if command[0] in _ANYWHERE:
        return None
    if command[0] == "PUBLISH":
        return meeting
    key: str = command[_FIRST_KEY] if command[0] in _SCRIPTS else command[1]
    return key


def slot_of(key: str) -> int:
    """Return the slot of a key."""
    return key_slot(key.encode())


@attrs.frozen
class SlotMap:
    """Which master serves which slots.

    Attributes:
        ranges: First slot, last slot, master.
        moved: Slots that a node said are elsewhere since.
        replicas: Who else can be asked who serves what.
    """

    ranges: Sequence[tuple[int, int, Address]]
    replicas: Sequence[Address] = ()
    moved: dict[int, Address] = attrs.field(factory=dict)

    @classmethod
    def told(cls, reply: Sequence[Any], teller: Address, remap: Callable[[Address], Address]) -> "SlotMap":
        """Read what CLUSTER SLOTS says; a node without a name is the one that was asked."""

        def address(node: Sequence[Any]) -> Address:
            host = node[0].decode() if node[0] not in (None, b"", b"?") else teller[0]
            return remap((host, int(node[1])))

        ranges = [(int(first), int(last), address(master)) for first, last, master, *_ in reply]
        return cls(ranges, [address(each) for _, _, _, *replicas in reply for each in replicas])

    def owner(self, slot: int | None) -> Address | None:
        """Return who serves a slot, or None where nobody does; of no slot, any master."""
        if slot is None:
            return self.ranges[0][2] if self.ranges else None
        found = self.moved.get(slot)
        if found is None:
            found = next((master for first, last, master in self.ranges if first <= slot <= last), None)
        return found

    def after(self, slot: int, owner: Address) -> "SlotMap":
        """Return the map after a slot has moved."""
        return attrs.evolve(self, moved={**self.moved, slot: owner})

    def everybody(self) -> Iterator[Address]:
        """Yield every node once, masters first."""
        yield from dict.fromkeys([*(master for _, _, master in self.ranges), *self.moved.values(), *self.replicas])
