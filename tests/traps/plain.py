"""A queue on a Redis stream that a careful programmer would write with redis-py; `tests.traps.naive` is less careful.

It does everything that ailf does and that the commands of streams allow, so that each naive queue differs from it in
one respect only.
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Iterable
from typing import Any

from redis import asyncio as aredis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from tests.traps.queues import Handler, Member, Message, Options, Queue, end

__all__ = ["Plain", "PlainMember", "PlainMessage"]

SETTLE = """
local stream, group, id, consumer, times, lease, action, age = KEYS[1], unpack(ARGV)
local row = redis.call('XPENDING', stream, group, id, id, 1)[1]
if not row or row[2] ~= consumer or row[4] ~= tonumber(times) or row[3] >= tonumber(lease) then return 0 end
if action == 'ack' then redis.call('XACK', stream, group, id) end
if action == 'renew' then redis.call('XCLAIM', stream, group, consumer, 0, id, 'JUSTID') end
if action == 'nack' then redis.call('XCLAIM', stream, group, consumer, 0, id, 'IDLE', age, 'JUSTID') end
if action == 'release' then
  redis.call('XCLAIM', stream, group, consumer, 0, id, 'IDLE', age, 'RETRYCOUNT', times - 1, 'JUSTID')
end
return 1
"""

LEAVE = """
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then return 0 end
return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
"""


class PlainMessage(Message):
    """A pending entry."""

    def __init__(self, member: "PlainMember", entry: str, data: Any, attempt: int) -> None:
        self.id = entry
        self.data = data
        self.attempt = attempt
        self._member = member

    async def ack(self) -> bool:
        self._member.held.discard(self)
        return await self._member.ack(self)

    async def nack(self, delay: float = 0.0) -> bool:
        self._member.held.discard(self)
        return await self._member.nack(self, delay)

    async def release(self) -> bool:
        self._member.held.discard(self)
        return await self._member.release(self)

    async def renew(self) -> bool:
        return await self._member.renew(self)


class PlainMember(Member):
    """A consumer of the stream's group.

    Attributes:
        queue: Its queue.
        name: Its name.
        held: The messages whose leases it renews.
    """

    def __init__(self, queue: "Plain", name: str, prefetch: int, *, renews: bool) -> None:
        self.queue = queue
        self.name = name
        self.redis = queue.redis
        self.stream, self.group = queue.options.stream, queue.options.group
        self.lease_ms = int(queue.options.lease * 1000)
        self.prefetch = prefetch
        self.held: set[PlainMessage] = set()
        self.buffer: deque[PlainMessage] = deque()
        self.cursor: Any = "0-0"
        self._renews = renews
        self._renewal: asyncio.Task[None] | None = None
        self._fetching: asyncio.Task[None] | None = None

    # --- taking

    async def get(self, timeout: float) -> PlainMessage | None:
        await self.begin()
        until = asyncio.get_running_loop().time() + timeout
        while not self.buffer:
            left = until - asyncio.get_running_loop().time()
            if left <= 0:
                return None
            await self.wait(min(left, self.queue.block))
        return self.buffer.popleft()

    async def begin(self) -> None:
        """Start the renewal of leases."""
        if self._renewal is None and self._renews:
            self._renewal = asyncio.create_task(self.renew_all())

    async def wait(self, patience: float) -> None:
        """Wait for one fetch, which goes on if the caller is cancelled."""
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self.fetch(patience))
        await asyncio.shield(self._fetching)

    async def fetch(self, patience: float) -> None:
        """Take over stale entries, or else read new ones."""
        try:
            entries = await self.sweep() or await self.read(patience)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            await self.queue.open()
            return
        for entry, fields, attempt in entries:
            await self.unpack(entry, fields, attempt)

    async def sweep(self) -> list[Any]:
        """Return a few entries that were pending for longer than a lease: id, fields, attempt."""
        reply = await self.redis.xautoclaim(
            self.stream, self.group, self.name, self.lease_ms, self.cursor, count=self.prefetch
        )
        self.cursor = reply[0]
        return [(entry, fields, await self.times(entry)) for entry, fields in reply[1] if entry is not None]

    async def times(self, entry: bytes) -> int:
        """Return the number of an entry's deliveries."""
        (row,) = await self.redis.xpending_range(self.stream, self.group, entry, entry, 1)
        return int(row["times_delivered"])

    async def read(self, patience: float) -> list[Any]:
        """Return new entries in the form of `sweep`."""
        block = max(1, int(patience * 1000))
        reply = await self.redis.xreadgroup(self.group, self.name, {self.stream: ">"}, count=self.prefetch, block=block)
        return [(entry, fields, 1) for _, entries in reply for entry, fields in entries]

    async def unpack(self, entry: bytes, fields: dict[bytes, bytes], attempt: int) -> None:
        """Buffer a message; ack an entry that can't be parsed."""
        try:
            data = self.parse(fields)
        except (KeyError, ValueError):
            await self.redis.xack(self.stream, self.group, entry)
            return
        message = PlainMessage(self, entry.decode(), data, attempt)
        self.held.add(message)
        self.buffer.append(message)

    def parse(self, fields: dict[bytes, bytes]) -> Any:
        """Return an entry's data."""
        return json.loads(fields[self.queue.field.encode()])

    # --- settling

    async def settle(self, message: PlainMessage, action: str, age: int = 0) -> bool:
        """Settle a message if its lease is still that of its delivery."""
        arguments = (self.group, message.id, self.name, message.attempt, self.lease_ms, action, age)
        return bool(await self.redis.eval(SETTLE, 1, self.stream, *arguments))

    async def ack(self, message: PlainMessage) -> bool:
        """Ack a message."""
        return await self.settle(message, "ack")

    async def nack(self, message: PlainMessage, delay: float) -> bool:
        """Set the idle time of a message to a lease, so that it is taken over at once: Redis has no delays."""
        return await self.settle(message, "nack", self.lease_ms)

    async def release(self, message: PlainMessage) -> bool:
        """Do the same without counting the delivery."""
        return await self.settle(message, "release", self.lease_ms)

    async def renew(self, message: PlainMessage) -> bool:
        """Restart the lease of a message."""
        return await self.settle(message, "renew")

    async def renew_all(self) -> None:
        """Renew the held messages, until cancelled."""
        while True:
            await asyncio.sleep(self.lease_ms / 3000)
            for message in self.renewed():
                with contextlib.suppress(RedisError):
                    await self.renew(message)

    def renewed(self) -> Iterable[PlainMessage]:
        """Return the messages to renew."""
        return tuple(self.held)

    # --- leaving

    async def close(self) -> None:
        await self.end_tasks()
        for message in tuple(self.held):
            await message.release()
        await self.redis.eval(LEAVE, 1, self.stream, self.group, self.name)

    async def end_tasks(self) -> None:
        """End the renewal and the fetch."""
        await end([task for task in (self._renewal, self._fetching) if task is not None])


class Plain(Queue):
    """A stream and one of its groups.

    Attributes:
        redis: redis-py's client.
    """

    field = "data"
    Member: type[PlainMember] = PlainMember
    start = "0"
    block = 0.05

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.redis = self.client()
        self._members: list[PlainMember] = []

    def client(self) -> Any:
        """Return a client without retries."""
        return aredis.Redis(
            port=self.options.port, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=self.options.timeout
        )

    async def open(self) -> None:
        with contextlib.suppress(ResponseError):  # BUSYGROUP
            await self.redis.xgroup_create(self.options.stream, self.options.group, self.start, mkstream=True)

    async def add(self, *data: Any) -> bool:
        for each in data:
            await self.redis.xadd(self.options.stream, {self.field: json.dumps(each)})
        return True

    def member(self, name: str, *, prefetch: int = 1, renews: bool = True) -> PlainMember:
        member = self.Member(self, name, prefetch, renews=renews)
        self._members.append(member)
        return member

    async def work(self, handler: Handler) -> None:
        member = self.member(f"worker {len(self._members)}")
        while True:
            message = await member.get(1.0)
            if message is not None:
                await self.handle(handler, message)

    async def handle(self, handler: Handler, message: PlainMessage) -> None:
        """Settle a message by how its handler ends."""
        try:
            await handler(message.data)
        except Exception:  # noqa: BLE001 - a handler may raise anything
            await message.nack()
        else:
            await message.ack()

    async def lag(self) -> int | None:
        entries = await self.redis.xrange(self.options.stream)
        groups = await self.redis.xinfo_groups(self.options.stream)
        (read,) = (each["last-delivered-id"] for each in groups if each["name"].decode() == self.options.group)
        return sum(sort_key(entry) > sort_key(read) for entry, _ in entries)

    async def close(self) -> None:
        for member in self._members:
            await member.end_tasks()
        await self.redis.aclose()


def sort_key(entry: bytes) -> tuple[int, ...]:
    """Return the sort key of an entry's id."""
    return tuple(int(part) for part in entry.split(b"-"))
