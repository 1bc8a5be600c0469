"""One small interface of a consumer group, so that the same test runs on ailf and on naive queues."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import attrs

import ailf

__all__ = ["Member", "Message", "Options", "Ours", "Queue", "end"]

Handler = Callable[[Any], Awaitable[None]]


@attrs.frozen(kw_only=True)
class Options:
    """The options of a queue.

    Attributes:
        port: The port of the server, or of the proxy in front of it.
        stream: The stream's key.
        group: The group's name.
        lease: Seconds of a lease that isn't renewed.
        takeover: Seconds without a heartbeat after which a member counts as dead.
        max_len: The number of entries to keep, or None for all.
        timeout: Seconds to wait for one reply of the server.
    """

    port: int
    stream: str
    group: str = "g"
    lease: float = 0.3
    takeover: float = 60.0
    max_len: int | None = None
    timeout: float = 5.0


class Message(ABC):
    """One delivery.

    Attributes:
        data: The data of the entry.
        attempt: The number of the delivery, from 1.
    """

    data: Any
    attempt: int

    @abstractmethod
    async def ack(self) -> bool:
        """Ack the message; return False if that was refused because its lease has ended."""

    @abstractmethod
    async def nack(self, delay: float = 0.0) -> bool:
        """Let the message be delivered again after `delay` seconds; return as `ack`."""

    @abstractmethod
    async def release(self) -> bool:
        """Give the message back without counting its delivery; return as `ack`."""

    @abstractmethod
    async def renew(self) -> bool:
        """Restart the lease of the message; return as `ack`."""


class Member(ABC):
    """A consumer of the group."""

    @abstractmethod
    async def get(self, timeout: float) -> Message | None:
        """Return the next message, or None after `timeout` seconds."""

    @abstractmethod
    async def close(self) -> None:
        """Leave the group."""


class Queue(ABC):
    """A stream and one of its groups, as one process sees them.

    Attributes:
        options: Its options.
        field: The field of an entry that has the data as JSON.
    """

    field: str

    def __init__(self, options: Options) -> None:
        self.options = options

    @abstractmethod
    async def open(self) -> None:
        """Create the group if it doesn't exist."""

    @abstractmethod
    async def add(self, *data: Any) -> bool:
        """Add messages; return False if there is no room."""

    @abstractmethod
    def member(self, name: str, *, prefetch: int = 1, renews: bool = True) -> Member:
        """Return a new member of the group; one that doesn't renew its leases counts as dead."""

    @abstractmethod
    async def work(self, handler: Handler) -> None:
        """Call the handler with the data of each message, until cancelled; retry a message whose handler raises."""

    @abstractmethod
    async def lag(self) -> int | None:
        """Return how many messages the group has not read, or None if that is not known."""

    @abstractmethod
    async def close(self) -> None:
        """Close all connections."""


async def end(tasks: "Collection[asyncio.Future[Any]]") -> None:
    """Cancel tasks repeatedly until they end: redis-py can mistake a cancellation for its own timeout, and go on."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.1)
    await asyncio.gather(*tasks, return_exceptions=True)  # their errors no longer matter


# --- ailf --------------------------------------------------------------------------------------------------------


class Ours(Queue):
    """`ailf` on Redis, through its public interface."""

    field = "ailf.body"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._backends: list[Any] = []
        self._members: list[OurMember] = []  # so that no member is garbage-collected
        self._stream = self._open_stream()

    def _open_stream(self) -> Any:
        options = self.options
        url = f"redis://127.0.0.1:{options.port}/0?namespace=&timeout={options.timeout}&retry_for={options.timeout}"
        self._backends.append(ailf.connect_async(url))
        retention = None if options.max_len is None else ailf.Retention(max_len=options.max_len)
        return self._backends[-1].stream(options.stream, retention=retention)

    def _group(self, stream: Any = None, **more: Any) -> Any:
        options = self.options
        return (stream or self._stream).group(
            options.group, lease=options.lease, takeover=options.takeover, max_deliveries=100, **more
        )

    async def open(self) -> None:
        await self._group().open()

    async def add(self, *data: Any) -> bool:
        try:
            await self._stream.add_many(data)
        except ailf.StreamFullError:
            return False
        return True

    def member(self, name: str, *, prefetch: int = 1, renews: bool = True) -> "OurMember":
        if renews:
            group = self._group()
        else:
            group = self._group(self._open_stream())
            self._backends[-1].engine.renewer = Silent()
        self._members.append(OurMember(group.consumer(name, prefetch=prefetch), self.options.lease))
        return self._members[-1]

    async def work(self, handler: Handler) -> None:
        await self._group(backoff=ailf.Backoff(initial=0.01, maximum=0.01)).process(
            lambda delivery: handler(delivery.data)
        )

    async def lag(self) -> int | None:
        lag: int | None = (await self._group().info()).lag
        return lag

    async def close(self) -> None:
        for backend in self._backends:
            await backend.aclose()


class Silent:
    """The renewer of a stopped process: it renews no lease and sends no heartbeat."""

    def add(self, holds: Any) -> None:
        """Do nothing."""

    def discard(self, hold: Any) -> None:
        """Do nothing."""

    def retire(self, holder: Any) -> None:
        """Do nothing."""

    async def close(self, until: float | None = None) -> None:
        """Do nothing."""


class OurMember(Member):
    """A consumer."""

    def __init__(self, consumer: ailf.AsyncConsumer[Any], lease: float) -> None:
        self._consumer = consumer
        self._lease = lease

    async def get(self, timeout: float) -> "OurMessage | None":
        delivery = await self._consumer.get(timeout)
        return None if delivery is None else OurMessage(delivery, self._lease)

    async def close(self) -> None:
        await self._consumer.aclose()


class OurMessage(Message):
    """A delivery that its process never takes for lost, so that the server must refuse it."""

    def __init__(self, delivery: ailf.AsyncDelivery[Any], lease: float) -> None:
        self.data = delivery.data
        self.attempt = delivery.attempt
        self._delivery = delivery
        self._lease = lease

    async def ack(self) -> bool:
        return await self._accepted(self._delivery.ack)

    async def nack(self, delay: float = 0.0) -> bool:
        return await self._accepted(self._delivery.nack, delay)

    async def release(self) -> bool:
        return await self._accepted(self._delivery.release)

    async def renew(self) -> bool:
        return await self._accepted(self._delivery.extend, self._lease)

    async def _accepted(self, request: Callable[..., Awaitable[None]], *args: float) -> bool:
        self._delivery._state.lease.revoked = False
        try:
            await request(*args)
        except ailf.LeaseLostError:
            return False
        return True
