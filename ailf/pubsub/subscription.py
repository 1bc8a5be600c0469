"""Subscriptions as iterators: `Subscription` and `AsyncSubscription`, both over a `MessageBuffer`."""

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Generic, Self

from ailf.checks import check_count, check_member
from ailf.driver import Filter
from ailf.engine.subscriptions import MessageBuffer
from ailf.errors import InvalidArgumentError
from ailf.payload_types import T
from ailf.pubsub.flow import PubSubFlow
from ailf.pubsub.message import AsyncMessage, Message
from ailf.runtime import run
from ailf.values import Gap, Overflow

__all__ = ["AsyncSubscription", "Subscription"]


class _SubscriptionBase:
    """The base of `Subscription` and `AsyncSubscription`: the buffer, once it is open."""

    def __init__(self, flow: PubSubFlow, filters: list[Filter], size: int, overflow: Overflow) -> None:
        self._flow = flow
        self._filters = filters
        self._size = check_count("buffer", size)
        self._overflow = check_member("overflow", overflow, Overflow)
        self._buffer: MessageBuffer | None = None

    @property
    def dropped(self) -> int:
        """The number of messages that were dropped because the buffer was full."""
        return self._entered.dropped

    @property
    def dropped_bytes(self) -> int:
        """The total size of the dropped messages in bytes."""
        return self._entered.dropped_bytes

    @property
    def _entered(self) -> MessageBuffer:
        if self._buffer is None:
            raise InvalidArgumentError("enter the subscription first: `with pubsub.listen(…) as subscription`")
        return self._buffer

    async def _enter(self) -> None:
        if self._buffer is None:
            self._buffer = await self._flow.open(self._filters, self._size, self._overflow)

    async def _leave(self) -> None:
        if self._buffer is not None:
            self._flow.engine.check_home()
            self._buffer.end()
            if not self._flow.engine.closed:
                await self._flow.engine.subscriptions.remove(self._buffer)


class Subscription(_SubscriptionBase, Generic[T]):
    """A subscription of `PubSub.listen`: a context manager, and an iterator of `Message` and `Gap`.

    It is confirmed on entry: a message that is published later arrives, or is counted as dropped, or lies in a `Gap`.

    Example:
        >>> import ailf
        >>> with ailf.connect("memory://") as backend:
        ...     pubsub = backend.pubsub()
        ...     with pubsub.listen("news", pattern="agents.*") as subscription:
        ...         pubsub.publish("agents.ann", 1)
        ...         for item in subscription:
        ...             if isinstance(item, ailf.Message):
        ...                 print(item.channel, item.data)
        ...                 break
        agents.ann 1
    """

    def __enter__(self) -> Self:
        """Subscribe, and return when the backend has confirmed the subscription."""
        run(self._enter())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the subscription."""
        self.close()

    def __iter__(self) -> Iterator[Message[T] | Gap]:
        """Iterate until the subscription is closed."""
        return self

    def __next__(self) -> Message[T] | Gap:
        """Wait for the next message or gap.

        Raises:
            ClosedError: The backend was closed, or the buffer was full with ``Overflow.CLOSE``.
        """
        item: Message[T] | Gap | None = run(self._flow.next(self._entered))
        if item is None:
            raise StopIteration
        return item

    def get(self, timeout: float | None = None) -> Message[T] | Gap | None:
        """Return the next message or gap; None after `timeout` seconds, or once the subscription is closed.

        Arguments:
            timeout: Seconds to wait; None waits for ever.

        Raises:
            ClosedError: The backend was closed, or the buffer was full with ``Overflow.CLOSE``.
        """
        item: Message[T] | Gap | None = run(self._flow.next(self._entered, timeout))
        return item

    def close(self) -> None:
        """End the subscription and its iterators, from any thread."""
        run(self._leave())


class AsyncSubscription(_SubscriptionBase, Generic[T]):
    """A subscription of `AsyncPubSub.listen`: a context manager, and an iterator of `AsyncMessage` and `Gap`.

    It is confirmed on entry: a message that is published later arrives, or is counted as dropped, or lies in a `Gap`.

    Example:
        >>> import asyncio, ailf
        >>> async def main() -> None:
        ...     async with ailf.connect_async("memory://") as backend:
        ...         pubsub = backend.pubsub()
        ...         async with pubsub.listen("news", pattern="agents.*") as subscription:
        ...             await pubsub.publish("agents.ann", 1)
        ...             async for item in subscription:
        ...                 if isinstance(item, ailf.AsyncMessage):
        ...                     print(item.channel, item.data)
        ...                     break
        >>> asyncio.run(main())
        agents.ann 1
    """

    async def __aenter__(self) -> Self:
        """Subscribe, and return when the backend has confirmed the subscription."""
        await self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Close the subscription."""
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[AsyncMessage[T] | Gap]:
        """Iterate until the subscription is closed."""
        return self

    async def __anext__(self) -> AsyncMessage[T] | Gap:
        """Wait for the next message or gap.

        Raises:
            ClosedError: The backend was closed, or the buffer was full with ``Overflow.CLOSE``.
        """
        item: AsyncMessage[T] | Gap | None = await self._flow.next(self._entered)
        if item is None:
            raise StopAsyncIteration
        return item

    async def get(self, timeout: float | None = None) -> AsyncMessage[T] | Gap | None:
        """Return the next message or gap; None after `timeout` seconds, or once the subscription is closed.

        Arguments:
            timeout: Seconds to wait; None waits for ever.

        Raises:
            ClosedError: The backend was closed, or the buffer was full with ``Overflow.CLOSE``.
        """
        item: AsyncMessage[T] | Gap | None = await self._flow.next(self._entered, timeout)
        return item

    async def aclose(self) -> None:
        """End the subscription and its iterators."""
        await self._leave()
