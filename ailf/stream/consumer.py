"""Members of a group that take messages one by one: `Consumer` and `AsyncConsumer`."""

import logging
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

from ailf.runtime import run
from ailf.stream.consumer_flow import ConsumerFlow
from ailf.stream.delivery import AsyncDelivery, Delivery
from ailf.stream.group_flow import GroupFlow

__all__ = ["AsyncConsumer", "Consumer"]

T = TypeVar("T")

log = logging.getLogger("ailf.stream")


class _ConsumerBase:
    """What both faces share."""

    def __init__(self, group: GroupFlow, name: str | None, prefetch: int) -> None:
        self._flow = ConsumerFlow(group, name, prefetch)

    @property
    def name(self) -> str:
        """The consumer's name, unique per opened consumer."""
        return self._flow.name

    def stop(self) -> None:
        """Come to the end of the iteration, from any thread or a signal; what was handed out can still be settled."""
        self._flow.stop()


class Consumer(_ConsumerBase, Generic[T]):
    """A member of a group: a context manager, and an iterator of `Delivery`.

    Leaving the context gives back, at once, whatever was not settled.
    """

    def __enter__(self) -> Self:
        """Make the group where it doesn't exist."""
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
            BackendError: The backend is away; the next call tries again.
        """
        state = run(self._flow.next())
        if state is None:
            raise StopIteration
        return Delivery(state)

    def get(self, timeout: float | None = None) -> Delivery[T] | None:
        """Return the next message; None after so many seconds (0: without waiting), or when stopped."""
        state = run(self._flow.next(timeout))
        return None if state is None else Delivery(state)

    def close(self) -> None:
        """Stop, and give back what was not settled. Its deliveries can't be settled any more."""
        run(self._flow.close())


class AsyncConsumer(_ConsumerBase, Generic[T]):
    """A member of a group: a context manager, and an iterator of `AsyncDelivery`.

    Leaving the context gives back, at once, whatever was not settled.
    """

    async def __aenter__(self) -> Self:
        """Make the group where it doesn't exist."""
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
            BackendError: The backend is away; the next call tries again.
        """
        state = await self._flow.next()
        if state is None:
            raise StopAsyncIteration
        return AsyncDelivery(state)

    async def get(self, timeout: float | None = None) -> AsyncDelivery[T] | None:
        """Return the next message; None after so many seconds (0: without waiting), or when stopped."""
        state = await self._flow.next(timeout)
        return None if state is None else AsyncDelivery(state)

    async def aclose(self) -> None:
        """Stop, and give back what was not settled. Its deliveries can't be settled any more."""
        await self._flow.close()
