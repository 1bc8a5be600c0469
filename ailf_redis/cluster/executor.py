"""A cluster: every command goes to the node that has its key, over a plain executor for each node.

A node's redirection is certain not to have done anything, so it is followed at once. After a broken connection the
cluster is asked anew who serves what; the core repeats the call where that does no harm.
"""

from collections.abc import Sequence
from typing import Any, Final

from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError

from ailf.errors import BackendError, BackendTimeoutError, ConnectionLostError
from ailf.runtime import Runtime
from ailf_redis.cluster.slots import SlotMap, key_of, slot_of
from ailf_redis.connection.endpoint import Address, ClusterEndpoints
from ailf_redis.connection.executor import Executor, Link, LinkAround
from ailf_redis.connection.resp import Command
from ailf_redis.errors import MISREAD, mapped, misread
from ailf_redis.pooled.executor import PooledExecutor
from ailf_redis.settings import Settings

__all__ = ["ClusterExecutor"]

_HOPS: Final = 5
"""How often a command is sent on before it is an error."""

_MOVES: Final = 64
"""How many slots may have moved one by one before the whole map is asked for anew."""

_UNSETTLED: Final = (AskError, ClusterDownError, TryAgainError)
"""What a node says when the slots are not where it was asked, MOVED included."""


class ClusterExecutor(Executor):
    """Executors of all nodes, made when they are needed.

    Attributes:
        meeting: The key whose node carries the plain channels of this namespace.
    """

    def __init__(self, settings: Settings, nodes: ClusterEndpoints, runtime: Runtime) -> None:
        super().__init__(settings)
        self.where = nodes.where
        self.runtime = runtime
        self.meeting = settings.namespace
        self._nodes = nodes
        self._asking = runtime.single_flight()
        self._map: SlotMap | None = None
        self._known: list[Address] = list(nodes.seeds)
        self._executors: dict[Address, PooledExecutor] = {}
        self._guard = runtime.guard()

    # --- who serves what -----------------------------------------------------------------------------------------

    def apart(self, keys: Sequence[str]) -> list[list[int]]:
        groups: dict[int, list[int]] = {}
        for at, key in enumerate(keys):
            groups.setdefault(slot_of(key), []).append(at)
        return list(groups.values())

    async def owner(self, slot: int | None, until: float | None = None) -> Address:
        """Return the master that serves a slot, or any of no slot; within the time of a call, where that is told."""
        self.check_open()
        slots = self._map
        if slots is None:
            now = self.runtime.now()
            await self._asking.run(self._ask_around, None if until is None else max(0.0, until - now))
            slots = self._map
            if slots is None and until is not None and self.runtime.now() >= until:
                raise self.lost(TimeoutError(), sent=False)
        found = slots.owner(slot) if slots is not None else None
        if found is None:
            self.doubt()
            raise ConnectionLostError(f"{self.where}: no node says that it serves slot {slot}")
        return found

    def doubt(self, suspect: Address | None = None) -> None:
        """Ask anew who serves what before the next command, and the suspect last."""
        self._map = None
        if suspect is not None:
            self._known = [*(each for each in self._known if each != suspect), suspect]

    async def _ask_around(self) -> None:
        """Ask one node after another until one answers, within the time of one request.

        Each node has half of what is left, so that the first one may be silent.
        """
        if self._map is not None:
            return
        errors: list[Exception] = []
        until = self.runtime.now() + self.settings.timeout
        known = tuple(self._known)
        for address in known:
            now = self.runtime.now()
            mine = until if address is known[-1] else now + (until - now) / 2
            try:
                (reply,) = await self._at(address).call_many([("CLUSTER", "SLOTS")], until=mine)
            except (ConnectionLostError, BackendTimeoutError) as error:
                errors.append(error)
                continue
            if isinstance(reply, Exception):
                raise mapped(reply, self.where, sent=True) from reply
            try:
                self._map = SlotMap.told(reply, address, self._nodes.remap)
            except MISREAD as error:
                raise misread(error, self.where) from error
            self._known = list(dict.fromkeys([*self._map.everybody(), *self._known]))
            return
        raise ConnectionLostError(f"can't reach any node of {self.where}: {errors[0]}") from errors[0]

    def _at(self, address: Address) -> PooledExecutor:
        with self._guard:
            found = self._executors.get(address)
            if found is None:
                found = PooledExecutor(self.settings, self._nodes.node.at(address), self.runtime)
                self._executors[address] = found
        if self.closed:  # closed while it was being made
            found.interrupt()
        return found

    # --- calls ---------------------------------------------------------------------------------------------------

    async def call_many(self, commands: Sequence[Command], entries: int = 0) -> list[Any]:
        until = self.runtime.now() + self.settings.timeout
        shares: dict[Address, list[int]] = {}
        for at, command in enumerate(commands):
            key = key_of(command, self.meeting)
            owner = await self.owner(None if key is None else slot_of(key), until)
            shares.setdefault(owner, []).append(at)
        replies: list[Any] = [None] * len(commands)
        begun = False
        for address, share in shares.items():
            try:
                told = await self._ask_node(address, [commands[at] for at in share], entries, until)
                begun = True
                for at, reply in zip(share, told, strict=True):
                    replies[at] = await self._followed(commands[at], address, reply, entries, until)
            except BackendError as error:
                error.maybe_applied = error.maybe_applied or begun
                raise
        return replies

    async def _ask_node(self, address: Address, commands: Sequence[Command], entries: int, until: float) -> list[Any]:
        try:
            return await self._at(address).call_many(commands, entries, until)
        except (ConnectionLostError, BackendTimeoutError):
            self.doubt(address)
            raise

    async def _followed(self, command: Command, address: Address, reply: Any, entries: int, until: float) -> Any:
        """Return the reply of the node that has the key."""
        for _ in range(_HOPS):
            if not isinstance(reply, AskError):
                break
            address = self._told_address(reply, address)
            if isinstance(reply, MovedError):
                self._moved(reply.slot_id, address)
                (reply,) = await self._ask_node(address, [command], entries, until)
            else:
                _, reply = await self._ask_node(address, [("ASKING",), command], entries, until)
        if isinstance(reply, _UNSETTLED):
            self.doubt()
        return reply

    def _told_address(self, told: AskError, teller: Address) -> Address:
        return self._nodes.remap((told.host or teller[0], told.port))

    def _moved(self, slot: int, owner: Address) -> None:
        slots = self._map
        if slots is not None and len(slots.moved) < _MOVES:
            self._map = slots.after(slot, owner)
        else:
            self.doubt()

    # --- links ---------------------------------------------------------------------------------------------------

    async def link(self, near: str | None = None) -> Link:
        return await self.link_to(await self.owner(None if near is None else slot_of(near)))

    async def link_to(self, address: Address) -> Link:
        """Return a connection of its own to a node."""
        try:
            return _NodeLink(await self._at(address).link(), self, address)
        except (ConnectionLostError, BackendTimeoutError):
            self.doubt(address)
            raise

    # --- the end -------------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        self.closed = True
        for each in tuple(self._executors.values()):
            each.interrupt()

    def abandon(self) -> bool:
        self.closed = True
        return sum(each.abandon() for each in tuple(self._executors.values())) > 0

    async def close(self) -> None:
        self.interrupt()
        for each in tuple(self._executors.values()):
            await each.close()


class _NodeLink(LinkAround):
    """A link that is lost when its node no longer has what it is for: the next one leads to the right node."""

    def __init__(self, link: Link, executor: ClusterExecutor, address: Address) -> None:
        super().__init__(link)
        self._executor = executor
        self._address = address

    async def receive(self, timeout: float) -> list[Any]:
        try:
            replies = await super().receive(timeout)
        except (ConnectionLostError, BackendTimeoutError):
            self._executor.doubt(self._address)
            raise
        for reply in replies:
            if isinstance(reply, _UNSETTLED):
                self._executor.doubt()
                raise mapped(reply, self._executor.where, sent=True)
        return replies
