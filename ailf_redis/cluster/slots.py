"""The slot map of a cluster, and the slots of keys and commands. Nothing in here waits."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import attrs
from redis.crc import key_slot

from ailf_redis.connection.endpoint import Address
from ailf_redis.connection.resp import Command

__all__ = ["SlotMap", "key_of", "slot_of"]

_ANYWHERE: Final = {"HELLO", "PING", "SCAN"}
_SCRIPTS: Final = {"EVAL", "EVALSHA"}
_FIRST_KEY: Final = 3


def key_of(command: Command, pubsub_key: str) -> str | bytes | None:
    """Return the key that decides which node a command goes to; None: any node.

    Arguments:
        command: A command.
        pubsub_key: The key of all plain channels. Publishers and listeners use its node, so that messages stay in order
            across channels.
    """
    if command[0] in _ANYWHERE:
        return None
    if command[0] == "PUBLISH":
        return pubsub_key
    key: str | bytes = command[_FIRST_KEY] if command[0] in _SCRIPTS else command[1]
    return key


def slot_of(key: str | bytes) -> int:
    """Return the hash slot of a key."""
    return key_slot(key if isinstance(key, bytes) else key.encode())


@attrs.frozen
class SlotMap:
    """The slot map: which master serves which slots.

    Attributes:
        ranges: First slot, last slot, and their master.
        moved: The masters of slots that have moved since, as MOVED replies say.
        replicas: Further nodes that know the slot map.
    """

    ranges: Sequence[tuple[int, int, Address]]
    replicas: Sequence[Address] = ()
    moved: dict[int, Address] = attrs.field(factory=dict)

    @classmethod
    def parse(cls, reply: Sequence[Any], sender: Address, remap: Callable[[Address], Address]) -> "SlotMap":
        """Read the reply to CLUSTER SLOTS; a node without a host is at the host of the reply's sender."""

        def address(node: Sequence[Any]) -> Address:
            host = node[0].decode() if node[0] not in (None, b"", b"?") else sender[0]
            return remap((host, int(node[1])))

        ranges = [(int(first), int(last), address(master)) for first, last, master, *_ in reply]
        return cls(ranges, [address(each) for _, _, _, *replicas in reply for each in replicas])

    def masters(self) -> set[Address]:
        """Return the nodes that serve slots."""
        return {*(master for _, _, master in self.ranges), *self.moved.values()}

    def node_for_slot(self, slot: int | None) -> Address | None:
        """Return the master that serves a slot, or None if none does; any master if `slot` is None."""
        if slot is None:
            return self.ranges[0][2] if self.ranges else None
        node = self.moved.get(slot)
        if node is None:
            node = next((master for first, last, master in self.ranges if first <= slot <= last), None)
        return node

    def with_moved(self, slot: int, node: Address) -> "SlotMap":
        """Return the map after a slot has moved to a node."""
        return attrs.evolve(self, moved={**self.moved, slot: node})

    def addresses(self) -> Iterator[Address]:
        """Yield every node once, masters first."""
        yield from dict.fromkeys([*(master for _, _, master in self.ranges), *self.moved.values(), *self.replicas])
