"""Pub/sub in a cluster: any node carries a plain channel, only the node of its slot a sharded one.

All plain channels of a namespace go through one node (`ClusterExecutor.meeting`), so that messages come in the order in
which they were published. A listener is one connection to it, and one to each node whose sharded channels are listened
to. They are one to the core: when one breaks, all begin anew, behind one gap.
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
    """PUBLISH, and listeners, as a cluster needs them."""

    def __init__(self, executor: ClusterExecutor, keys: Keys) -> None:
        super().__init__(executor, keys)
        self._cluster = executor

    async def publish(self, messages: Sequence[tuple[str, bytes]], *, sharded: bool = False) -> None:
        await super().publish(messages, sharded=sharded)  # a node counts its own listeners only: nobody knows how many

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
    """Listeners on several nodes, each read by a flow of its own."""

    def __init__(self, driver: ClusterPubSubDriver, executor: ClusterExecutor) -> None:
        self._driver = driver
        self._executor = executor
        self._runtime = executor.runtime
        self._opening = self._runtime.single_flight()
        self._parts: dict[Address, RedisListener] = {}
        self._readers: list[Task] = []
        self._places: dict[Filter, Address] = {}
        self._home: Address | None = None
        self._events: deque[_Event] = deque()
        self._came = self._runtime.event()
        self._error: Exception | None = None
        self._over = self._runtime.event()

    async def open(self) -> None:
        """Connect to the node that carries the plain channels."""
        self._home = await self._executor.owner(slot_of(self._executor.meeting))
        await self._part(self._home)

    async def _part(self, address: Address) -> RedisListener:
        """Return the listener on a node, which is made for its first filter."""
        while address not in self._parts:
            if self._over.is_set():
                raise ClosedError("the listener is closed")
            await self._opening.run(lambda: self._make(address))
        return self._parts[address]

    async def _make(self, address: Address) -> None:
        if address in self._parts:
            return
        part = await self._driver.listen_at(address)
        if self._over.is_set():  # closed while it was being made
            await part.close()
            return
        self._parts[address] = part
        self._readers.append(self._runtime.spawn(lambda: self._read(part), name="ailf-shard"))

    async def _read(self, part: RedisListener) -> None:
        while not self._over.is_set() and self._error is None:
            try:
                self._events += await part.receive(_SLICE)
            except Exception as error:  # noqa: BLE001 - it is the receiver's, whatever it is
                self._error = error
            except BaseException as error:  # else the receiver would wait on for what this would have brought
                self._error = ConnectionLostError(f"a reader of {self._executor.where} was ended: {error!r}")
                self._came.set()
                raise
            if self._events or self._error is not None:
                self._came.set()

    async def change(self, add: Sequence[Filter], drop: Sequence[Filter]) -> None:
        for address, filters in await self._grouped(add):
            self._places.update(dict.fromkeys(filters, address))
            await (await self._part(address)).change(filters, ())
        for each in drop:
            place = self._places.pop(each, None)
            if place in self._parts:
                await self._parts[place].change((), [each])

    async def _grouped(self, filters: Sequence[Filter]) -> Iterator[tuple[Address, list[Filter]]]:
        """Return filters by the node to ask; sharded channels that are asked for together have to be of one slot."""
        groups: dict[int | None, list[Filter]] = {}
        for each in filters:
            groups.setdefault(self._driver.slot(each.text) if each.is_sharded else None, []).append(each)
        home = self._home or await self._executor.owner(slot_of(self._executor.meeting))
        places = {slot: home if slot is None else await self._executor.owner(slot) for slot in groups}
        return ((places[slot], found) for slot, found in groups.items())

    async def receive(self, timeout: float) -> Sequence[_Event]:
        if not self._events and self._error is None:
            self._came.clear()
            if not self._events and self._error is None:  # come between the look and the clear
                await self._came.wait(timeout)
        events = [self._events.popleft() for _ in range(len(self._events))]
        for each in events:
            if isinstance(each, Refused) and isinstance(each.error, ConnectionLostError):
                raise each.error  # not refused: the slot has moved, and the next listener finds it
        if not events and self._error is not None:
            raise self._error
        return events

    def interrupt(self) -> None:
        self._over.set()
        self._came.set()
        for part in tuple(self._parts.values()):
            part.interrupt()

    async def close(self) -> None:
        self.interrupt()
        for reader in self._readers:
            if not await reader.join(2 * _SLICE):
                reader.cancel()
        for part in self._parts.values():
            await part.close()
