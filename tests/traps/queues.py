"""One small interface over a consumer group, so that the same test can be put to ours and to a naive one."""

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
    """What a queue is made with.

    Attributes:
        port: Where the server is, or what stands before it.
        stream: The stream's key.
        group: The group's name.
        lease: Seconds that a message stays with a member that says nothing.
        takeover: Seconds after which a member that gives no sign of life is dead.
        max_len: How many entries are kept, or None for all.
        timeout: Seconds for one answer of the server.
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
        data: What was added.
        attempt: 1 for the first.
    """

    data: Any
    attempt: int

    @abstractmethod
    async def ack(self) -> bool:
        """It is done; return False where that was refused because its lease has ended."""

    @abstractmethod
    async def nack(self, delay: float = 0.0) -> bool:
        """It failed: deliver it again after so many seconds; return as `ack`."""

    @abstractmethod
    async def release(self) -> bool:
        """Give it back as though it had not been delivered; return as `ack`."""

    @abstractmethod
    async def renew(self) -> bool:
        """Begin its lease anew; return as `ack`."""


class Member(ABC):
    """Somebody in the group who takes messages."""

    @abstractmethod
    async def get(self, timeout: float) -> Message | None:
        """Return the next message, or None after so many seconds."""

    @abstractmethod
    async def close(self) -> None:
        """Leave the group."""


class Queue(ABC):
    """A stream and one group of it, as one process sees them.

    Attributes:
        options: What it was made with.
        field: The field of an entry in which its data is, as JSON.
    """

    field: str

    def __init__(self, options: Options) -> None:
        self.options = options

    @abstractmethod
    async def open(self) -> None:
        """Make the group where it doesn't exist."""

    @abstractmethod
    async def add(self, *data: Any) -> bool:
        """Add messages; return False where there is no room."""

    @abstractmethod
    def member(self, name: str, *, prefetch: int = 1, renews: bool = True) -> Member:
        """Return a new member of the group; one that doesn't renew its leases is as good as dead."""

    @abstractmethod
    async def work(self, handler: Handler) -> None:
        """Call the handler with each message's data, one after another, for ever; one that raises is to be retried."""

    @abstractmethod
    async def lag(self) -> int | None:
        """Return how many messages the group has not been handed, or None where that can't be told."""

    @abstractmethod
    async def close(self) -> None:
        """Give everything back."""


async def end(tasks: "Collection[asyncio.Future[Any]]") -> None:
    """Cancel tasks, again and again: redis-py can take a cancellation for its own timeout, and go on."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.1)
    await asyncio.gather(*tasks, return_exceptions=True)  # what they failed with is nobody's business now


# --- ours --------------------------------------------------------------------------------------------------------


class Ours(Queue):
    """`ailf` over Redis, by its public interface."""

    field = "ailf.body"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._backends: list[Any] = []
        self._members: list[OurMember] = []  # one that is dropped is as good as dead
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
    """The renewer of a process that stands still: it renews no lease and gives no sign of life."""

    def add(self, holds: Any) -> None:
        """Do nothing."""

    def discard(self, hold: Any) -> None:
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
    """A delivery whose process trusts it for ever, so that it is the server which must refuse."""

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
