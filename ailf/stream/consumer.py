"""`Consumer` and `AsyncConsumer`: members of a group that take its messages. `ConsumerFlow` has what both do."""

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Generic, Self

from ailf.payload_types import T
from ailf.runtime import run
from ailf.stream.consumer_flow import ConsumerFlow
from ailf.stream.delivery import AsyncDelivery, Delivery
from ailf.stream.group_flow import GroupFlow

__all__ = ["AsyncConsumer", "Consumer"]


class _ConsumerBase:
    """The name and `stop` of `Consumer` and `AsyncConsumer`."""

    def __init__(self, group: GroupFlow, name: str | None, prefetch: int) -> None:
        self._flow = ConsumerFlow(group, name, prefetch)

    @property
    def name(self) -> str:
        """The consumer's name, unique per opened consumer."""
        return self._flow.name

    def stop(self) -> None:
        """End the iteration, from any thread or a signal handler; messages already returned can still be settled."""
        self._flow.stop()


class Consumer(_ConsumerBase, Generic[T]):
    """A member of a group: a context manager, and an iterator of `Delivery`. `Group.consumer` returns one.

    Leaving the context gives the unsettled messages back at once. Example:

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     orders = backend.stream("orders")
    ...     ids = orders.add_many(["tea", "cake"])
    ...     with orders.group("kitchen").consumer() as consumer:
    ...         for delivery in consumer:
    ...             delivery.ack()
    ...             if delivery.data == "cake":
    ...                 consumer.stop()
    """

    def __enter__(self) -> Self:
        """Make the group unless it exists."""
        run(self._flow.open())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()

    def __iter__(self) -> Iterator[Delivery[T]]:
        """Iterate until it is stopped."""
        return self

    def __next__(self) -> Delivery[T]:
        """Wait for the next message.

        Raises:
            ClosedError: The backend was closed.
            BackendError: The backend is unavailable. The next call tries again.
        """
        state = run(self._flow.next())
        if state is None:
            raise StopIteration
        return Delivery(state)

    def take(self, timeout: float | None = None) -> Delivery[T]:
        """Return the next message; it is always a delivery, so ``with`` can enter it.

        Arguments:
            timeout: Seconds to wait; 0: don't wait; None: wait for ever.

        Raises:
            EmptyError: No message came within ``timeout`` seconds, or the consumer was stopped. Where that is nothing
                special, use `get`.
            ClosedError: The backend was closed.
            BackendError: The backend is unavailable. The next call tries again.
        """
        return Delivery(run(self._flow.take(timeout)))

    def get(self, timeout: float | None = None) -> Delivery[T] | None:
        """Return the next message; None after ``timeout`` seconds, or when stopped.

        Arguments:
            timeout: Seconds to wait; 0: don't wait; None: wait for ever.

        Raises:
            ClosedError: The backend was closed.
            BackendError: The backend is unavailable. The next call tries again.
        """
        state = run(self._flow.next(timeout))
        return None if state is None else Delivery(state)

    def get_many(self, n: int, timeout: float | None = None) -> list[Delivery[T]]:
        """Return the next message and those available behind it; [] after ``timeout`` seconds, or when stopped.

        Only the first one is waited for. Each is settled by itself.

        Arguments:
            n: The most messages to return. It may be higher than ``prefetch``: a fetch takes as many as are wanted.
                Fewer come where a backend limits a fetch: Redis to 500 messages, and to 32 MiB.
            timeout: Seconds to wait; 0: don't wait; None: wait for ever.

        Raises:
            ClosedError: The backend was closed.
            BackendError: The backend is unavailable, and there is no message. The next call tries again.
        """
        return [Delivery(state) for state in run(self._flow.next_many(n, timeout))]

    def close(self) -> None:
        """Stop, and give back the unsettled messages. Their deliveries can't be settled any more."""
        run(self._flow.leave())


class AsyncConsumer(_ConsumerBase, Generic[T]):
    """A member of a group: a context manager, and an iterator of `AsyncDelivery`. `AsyncGroup.consumer` returns one.

    Leaving the context gives the unsettled messages back at once. Example:

    >>> import asyncio, ailf
    >>> async def main() -> None:
    ...     async with ailf.connect_async("memory://") as backend:
    ...         orders = backend.stream("orders")
    ...         await orders.add_many(["tea", "cake"])
    ...         async with orders.group("kitchen").consumer() as consumer:
    ...             async for delivery in consumer:
    ...                 await delivery.ack()
    ...                 if delivery.data == "cake":
    ...                     consumer.stop()
    >>> asyncio.run(main())
    """

    async def __aenter__(self) -> Self:
        """Make the group unless it exists."""
        await self._flow.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[AsyncDelivery[T]]:
        """Iterate until it is stopped."""
        return self

    async def __anext__(self) -> AsyncDelivery[T]:
        """Wait for the next message.

        Raises:
            ClosedError: The backend was closed.
            BackendError: The backend is unavailable. The next call tries again.
        """
        state = await self._flow.next()
        if state is None:
            raise StopAsyncIteration
        return AsyncDelivery(state)

    async def take(self, timeout: float | None = None) -> AsyncDelivery[T]:
        """Return the next message; it is always a delivery, so ``async with`` can enter it.

        Arguments:
            timeout: Seconds to wait; 0: don't wait; None: wait for ever.

        Raises:
            EmptyError: No message came within ``timeout`` seconds, or the consumer was stopped. Where that is nothing
                special, use `get`.
            ClosedError: The backend was closed.
            BackendError: The backend is unavailable. The next call tries again.
        """
        return AsyncDelivery(await self._flow.take(timeout))

    async def get(self, timeout: float | None = None) -> AsyncDelivery[T] | None:
        """Return the next message; None after ``timeout`` seconds, or when stopped.

        Arguments:
            timeout: Seconds to wait; 0: don't wait; None: wait for ever.

        Raises:
            ClosedError: The backend was closed.
            BackendError: The backend is unavailable. The next call tries again.
        """
        state = await self._flow.next(timeout)
        return None if state is None else AsyncDelivery(state)

    async def get_many(self, n: int, timeout: float | None = None) -> list[AsyncDelivery[T]]:
        """Return the next message and those available behind it; [] after ``timeout`` seconds, or when stopped.

        Only the first one is waited for. Each is settled by itself.

        Arguments:
            n: The most messages to return. It may be higher than ``prefetch``: a fetch takes as many as are wanted.
                Fewer come where a backend limits a fetch: Redis to 500 messages, and to 32 MiB.
            timeout: Seconds to wait; 0: don't wait; None: wait for ever.

        Raises:
            ClosedError: The backend was closed.
            BackendError: The backend is unavailable, and there is no message. The next call tries again.
        """
        return [AsyncDelivery(state) for state in await self._flow.next_many(n, timeout)]

    async def aclose(self) -> None:
        """Stop, and give back the unsettled messages. Their deliveries can't be settled any more."""
        await self._flow.leave()
