"""Commands in a cluster: each goes to the node of its key, over a pooled executor for each node.

A redirected command was not carried out, so the redirection is followed at once. A broken connection invalidates the
slot map; the core repeats the call where repeating it is safe.
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

_MAX_REDIRECTIONS: Final = 5
"""The most redirections that are followed for one command."""

_MAX_MOVED: Final = 64
"""The most slots that are moved one by one before the whole slot map is refreshed."""

_UNSETTLED: Final = (AskError, ClusterDownError, TryAgainError)
"""The error replies of a node that doesn't serve the slot now; MOVED is a subclass of `AskError`."""


class ClusterExecutor(Executor):
    """An executor for each node, made at its first command.

    Attributes:
        pubsub_key: The key whose node carries the plain channels of this namespace.
    """

    def __init__(self, settings: Settings, nodes: ClusterEndpoints, runtime: Runtime) -> None:
        super().__init__(settings)
        self.where = nodes.where
        self.runtime = runtime
        self.pubsub_key = settings.namespace
        self._nodes = nodes
        self._refreshing = runtime.single_flight()
        self._map: SlotMap | None = None
        self._addresses: list[Address] = list(nodes.seeds)
        self._executors: dict[Address, PooledExecutor] = {}
        self._guard = runtime.guard()

    # --- the slot map --------------------------------------------------------------------------------------------

    def group_by_slot(self, keys: Sequence[str]) -> list[list[int]]:
        groups: dict[int, list[int]] = {}
        for position, key in enumerate(keys):
            groups.setdefault(slot_of(key), []).append(position)
        return list(groups.values())

    async def node_for_slot(self, slot: int | None, until: float | None = None) -> Address:
        """Return the master that serves a slot, or any master if `slot` is None.

        Arguments:
            slot: The slot.
            until: The end of the call's time; None: the time of one request.
        """
        self.check_open()
        slots = self._map
        if slots is None:
            now = self.runtime.now()
            await self._refreshing.run(self._refresh_topology, None if until is None else max(0.0, until - now))
            slots = self._map
            if slots is None and until is not None and self.runtime.now() >= until:
                raise self.lost(TimeoutError(), sent=False)
        node = slots.node_for_slot(slot) if slots is not None else None
        if node is None:
            self.invalidate_topology()
            raise ConnectionLostError(f"{self.where}: no node serves slot {slot} now")
        return node

    def invalidate_topology(self, suspect: Address | None = None) -> None:
        """Invalidate the slot map: the next command refreshes it, and asks `suspect` last."""
        self._map = None
        if suspect is not None:
            self._addresses = [*(each for each in self._addresses if each != suspect), suspect]

    async def _refresh_topology(self) -> None:
        """Ask one node after another for the slot map until one replies, within the time of one request.

        Each node gets half of the time that is left, so a silent node leaves time for the others.
        """
        if self._map is not None:
            return
        errors: list[Exception] = []
        until = self.runtime.now() + self.settings.timeout
        addresses = tuple(self._addresses)
        for address in addresses:
            now = self.runtime.now()
            deadline = until if address is addresses[-1] else now + (until - now) / 2
            try:
                (reply,) = await self._executor_at(address).call_many([("CLUSTER", "SLOTS")], until=deadline)
            except (ConnectionLostError, BackendTimeoutError) as error:
                errors.append(error)
                continue
            if isinstance(reply, Exception):
                raise mapped(reply, self.where, sent=True) from reply
            try:
                self._map = SlotMap.parse(reply, address, self._nodes.remap)
            except MISREAD as error:
                raise misread(error, self.where) from error
            self._addresses = list(dict.fromkeys([*self._map.addresses(), *self._addresses]))
            return
        raise ConnectionLostError(f"can't reach any node of {self.where}: {errors[0]}") from errors[0]

    def _executor_at(self, address: Address) -> PooledExecutor:
        with self._guard:
            executor = self._executors.get(address)
            if executor is None:
                executor = PooledExecutor(self.settings, self._nodes.node.at(address), self.runtime)
                self._executors[address] = executor
        if self.closed:  # closed while it was being made
            executor.interrupt()
        return executor

    # --- calls ---------------------------------------------------------------------------------------------------

    async def call_many(self, commands: Sequence[Command], entries: int = 0) -> list[Any]:
        until = self.runtime.now() + self.settings.timeout
        shares: dict[Address, list[int]] = {}
        for position, command in enumerate(commands):
            key = key_of(command, self.pubsub_key)
            node = await self.node_for_slot(None if key is None else slot_of(key), until)
            shares.setdefault(node, []).append(position)
        replies: list[Any] = [None] * len(commands)
        begun = False
        for address, share in shares.items():
            try:
                node_replies = await self._call_node(address, [commands[each] for each in share], entries, until)
                begun = True
                for position, reply in zip(share, node_replies, strict=True):
                    replies[position] = await self._follow_redirections(
                        commands[position], address, reply, entries, until
                    )
            except BackendError as error:
                error.maybe_applied = error.maybe_applied or begun
                raise
        return replies

    async def nodes(self) -> list[str]:
        await self.node_for_slot(None, self.runtime.now() + self.settings.timeout)
        masters = set() if self._map is None else self._map.masters()
        return sorted(f"{host}:{port}" for host, port in masters)

    async def call_at(self, node: str, entries: int, *command: Any) -> Any:
        host, _, port = node.rpartition(":")
        until = self.runtime.now() + self.settings.timeout
        (reply,) = await self._call_node((host, int(port)), [command], entries, until)
        if isinstance(reply, Exception):
            raise mapped(reply, self.where, sent=True)
        return reply

    async def _call_node(self, address: Address, commands: Sequence[Command], entries: int, until: float) -> list[Any]:
        try:
            return await self._executor_at(address).call_many(commands, entries, until)
        except (ConnectionLostError, BackendTimeoutError):
            self.invalidate_topology(address)
            raise

    async def _follow_redirections(
        self, command: Command, address: Address, reply: Any, entries: int, until: float
    ) -> Any:
        """Return `reply`, or the reply of the node that it redirects the command to."""
        for _ in range(_MAX_REDIRECTIONS):
            if not isinstance(reply, AskError):
                break
            address = self._nodes.remap((reply.host or address[0], reply.port))
            if isinstance(reply, MovedError):
                self._record_move(reply.slot_id, address)
                (reply,) = await self._call_node(address, [command], entries, until)
            else:
                _, reply = await self._call_node(address, [("ASKING",), command], entries, until)
        if isinstance(reply, _UNSETTLED):
            self.invalidate_topology()
        return reply

    def _record_move(self, slot: int, node: Address) -> None:
        slots = self._map
        if slots is not None and len(slots.moved) < _MAX_MOVED:
            self._map = slots.with_moved(slot, node)
        else:
            self.invalidate_topology()

    # --- links ---------------------------------------------------------------------------------------------------

    async def link(self, near: str | None = None) -> Link:
        return await self.link_to(await self.node_for_slot(None if near is None else slot_of(near)))

    async def link_to(self, address: Address) -> Link:
        """Return a dedicated connection to a node."""
        try:
            return _NodeLink(await self._executor_at(address).link(), self, address)
        except (ConnectionLostError, BackendTimeoutError):
            self.invalidate_topology(address)
            raise

    # --- closing -------------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        self.closed = True
        for executor in tuple(self._executors.values()):
            executor.interrupt()

    def abandon(self) -> bool:
        self.closed = True
        return sum(executor.abandon() for executor in tuple(self._executors.values())) > 0

    async def close(self) -> None:
        self.interrupt()
        for executor in tuple(self._executors.values()):
            await executor.close()


class _NodeLink(LinkAround):
    """A link that is lost when its node no longer serves its key; the next link goes to the right node."""

    def __init__(self, link: Link, executor: ClusterExecutor, address: Address) -> None:
        super().__init__(link)
        self._executor = executor
        self._address = address

    async def receive(self, timeout: float) -> list[Any]:
        try:
            replies = await super().receive(timeout)
        except (ConnectionLostError, BackendTimeoutError):
            self._executor.invalidate_topology(self._address)
            raise
        for reply in replies:
            if isinstance(reply, _UNSETTLED):
                self._executor.invalidate_topology()
                raise mapped(reply, self._executor.where, sent=True)
        return replies
