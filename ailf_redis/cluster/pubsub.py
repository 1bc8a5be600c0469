"""Pub/sub in a cluster: every node carries a plain channel, and only the node of its slot carries a sharded one.

All plain channels of a namespace use one node, that of `ClusterExecutor.pubsub_key`, so that messages arrive in the
order in which they were published. A listener has one connection to it, and one to each node whose sharded channels it
listens to. When one of them breaks, the core closes the listener and makes a new one, behind one gap.
"""

from collections import deque
from collections.abc import Iterator, Sequence

from ailf.driver import Confirmed, Filter, Frame, Listener, Refused
from ailf.errors import ClosedError, ConnectionLostError
from ailf.runtime import Task
from ailf_redis.cluster.executor import ClusterExecutor
from ailf_redis.cluster.slots import slot_of
from ailf_redis.connection.endpoint import Address
from ailf_redis.keys import Keys
from ailf_redis.pubsub import RedisListener, RedisPubSubDriver

__all__ = ["ClusterListener", "ClusterPubSubDriver"]

_SLICE = 1.0
_Event = Frame | Confirmed | Refused


class ClusterPubSubDriver(RedisPubSubDriver):
    """Publishing and listening in a cluster."""

    def __init__(self, executor: ClusterExecutor, keys: Keys) -> None:
        super().__init__(executor, keys)
        self._cluster = executor

    async def publish(self, messages: Sequence[tuple[str, bytes]], *, sharded: bool = False) -> None:
        # No counts are returned: a node counts its own listeners only.
        await super().publish(messages, sharded=sharded)

    async def listen(self) -> Listener:
        listener = ClusterListener(self, self._cluster)
        try:
            await listener.open()
        except BaseException:
            await listener.close()
            raise
        return listener

    async def listen_at(self, address: Address) -> RedisListener:
        """Return a listener on one node."""
        return RedisListener(await self._cluster.link_to(address), self._executor, self._keys)

    def slot(self, channel: str) -> int:
        """Return the slot of a sharded channel."""
        return slot_of(self._keys.channel(channel))


class ClusterListener(Listener):
    """A listener on several nodes: one listener on each, which a task or thread of its own reads."""

    def __init__(self, driver: ClusterPubSubDriver, executor: ClusterExecutor) -> None:
        self._driver = driver
        self._executor = executor
        self._runtime = executor.runtime
        self._opening = self._runtime.single_flight()
        self._listeners: dict[Address, RedisListener] = {}
        self._readers: list[Task] = []
        self._nodes: dict[Filter, Address] = {}
        self._plain_node: Address | None = None
        self._events: deque[_Event] = deque()
        self._arrived = self._runtime.event()
        self._error: Exception | None = None
        self._closed = self._runtime.event()

    async def open(self) -> None:
        """Connect to the node that carries the plain channels."""
        self._plain_node = await self._executor.node_for_slot(slot_of(self._executor.pubsub_key))
        await self._listener_at(self._plain_node)

    async def _listener_at(self, address: Address) -> RedisListener:
        """Return the listener on a node; it is made for the node's first filter."""
        while address not in self._listeners:
            if self._closed.is_set():
                raise ClosedError("the listener is closed")
            await self._opening.run(lambda: self._open_listener(address))
        return self._listeners[address]

    async def _open_listener(self, address: Address) -> None:
        if address in self._listeners:
            return
        listener = await self._driver.listen_at(address)
        if self._closed.is_set():  # closed while it was being made
            await listener.close()
            return
        self._listeners[address] = listener
        self._readers.append(self._runtime.spawn(lambda: self._read(listener), name="ailf-shard"))

    async def _read(self, listener: RedisListener) -> None:
        while not self._closed.is_set() and self._error is None:
            try:
                self._events += await listener.receive(_SLICE)
            except Exception as error:  # noqa: BLE001 - `receive` raises it
                self._error = error
            except BaseException as error:  # else `receive` would wait for messages that nothing reads any more
                self._error = ConnectionLostError(f"a reader of {self._executor.where} was ended: {error!r}")
                self._arrived.set()
                raise
            if self._events or self._error is not None:
                self._arrived.set()

    async def change(self, add: Sequence[Filter], drop: Sequence[Filter]) -> None:
        for address, filters in await self._group_by_slot(add):
            self._nodes.update(dict.fromkeys(filters, address))
            await (await self._listener_at(address)).change(filters, ())
        for each in drop:
            node = self._nodes.pop(each, None)
            if node in self._listeners:
                await self._listeners[node].change((), [each])

    async def _group_by_slot(self, filters: Sequence[Filter]) -> Iterator[tuple[Address, list[Filter]]]:
        """Return nodes and their filters, grouped by slot: one SSUBSCRIBE takes channels of one slot only."""
        groups: dict[int | None, list[Filter]] = {}
        for each in filters:
            groups.setdefault(self._driver.slot(each.text) if each.is_sharded else None, []).append(each)
        plain = self._plain_node or await self._executor.node_for_slot(slot_of(self._executor.pubsub_key))
        nodes = {slot: plain if slot is None else await self._executor.node_for_slot(slot) for slot in groups}
        return ((nodes[slot], group) for slot, group in groups.items())

    async def receive(self, timeout: float) -> Sequence[_Event]:
        if not self._events and self._error is None:
            self._arrived.clear()
            if not self._events and self._error is None:  # else something came between the check and the clear
                await self._arrived.wait(timeout)
        events = [self._events.popleft() for _ in range(len(self._events))]
        for each in events:
            if isinstance(each, Refused) and isinstance(each.error, ConnectionLostError):
                raise each.error  # no refusal: the slot has moved, and the next listener goes to its new node
        if not events and self._error is not None:
            raise self._error
        if not events and not self._closed.is_set() and any(each.done() for each in self._readers):
            raise ConnectionLostError(f"a reader of {self._executor.where} was cancelled before its first step")
        return events

    def interrupt(self) -> None:
        self._closed.set()
        self._arrived.set()
        for listener in tuple(self._listeners.values()):
            listener.interrupt()

    async def close(self) -> None:
        self.interrupt()
        for reader in self._readers:
            if not await reader.join(2 * _SLICE):
                reader.cancel()
        for listener in self._listeners.values():
            await listener.close()
