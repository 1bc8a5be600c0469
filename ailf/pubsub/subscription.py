"""Subscriptions that are iterated: `Subscription` and `AsyncSubscription`."""

import logging
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

from ailf.checks import check_count, check_member
from ailf.driver import Filter
from ailf.engine.subscriptions import MessageBuffer
from ailf.errors import (
    InvalidArgumentError,
)
from ailf.pubsub.flow import PubSubFlow
from ailf.pubsub.message import AsyncMessage, Message
from ailf.runtime import run
from ailf.values import Gap, Overflow

__all__ = ["AsyncSubscription", "Subscription"]

T = TypeVar("T")

log = logging.getLogger("ailf.pubsub")


class _Subscribed:
    """What both faces of a subscription share: the inbox, once it is open."""

    def __init__(self, flow: PubSubFlow, filters: list[Filter], size: int, overflow: Overflow) -> None:
        self._flow = flow
        self._filters = filters
        self._size = check_count("buffer", size)
        self._overflow = check_member("overflow", overflow, Overflow)
        self._inbox: MessageBuffer | None = None

    @property
    def dropped(self) -> int:
        """How many messages were dropped because the buffer was full."""
        return self._opened.dropped

    @property
    def dropped_bytes(self) -> int:
        """The size of the dropped messages, in bytes."""
        return self._opened.dropped_bytes

    @property
    def _opened(self) -> MessageBuffer:
        if self._inbox is None:
            raise InvalidArgumentError("a subscription must be entered first: `with pubsub.listen(…) as subscription`")
        return self._inbox

    async def _enter(self) -> None:
        if self._inbox is None:
            self._inbox = await self._flow.open(self._filters, self._size, self._overflow)

    async def _leave(self) -> None:
        if self._inbox is not None:
            self._flow.engine.check_home()
            self._inbox.end()
            if not self._flow.engine.closed:
                await self._flow.engine.subscriptions.remove(self._inbox)


class Subscription(_Subscribed, Generic[T]):
    """What `PubSub.listen` returns: a context manager, and an iterator of `Message` and `Gap`.

    On entry it is confirmed: what is published afterwards arrives, or is counted as dropped, or lies in a `Gap`.
    """

    def __enter__(self) -> Self:
        """Subscribe, and return when the backend has confirmed it."""
        run(self._enter())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()

    def __iter__(self) -> Iterator[Message[T] | Gap]:
        """Iterate until it is closed."""
        return self

    def __next__(self) -> Message[T] | Gap:
        """Wait for the next message or gap.

        Raises:
            ClosedError: The backend was closed, or the buffer was full and the policy is CLOSE.
        """
        item: Message[T] | Gap | None = run(self._flow.next(self._opened))
        if item is None:
            raise StopIteration
        return item

    def get(self, timeout: float | None = None) -> Message[T] | Gap | None:
        """Return the next message or gap; None after so many seconds, or when it is closed."""
        item: Message[T] | Gap | None = run(self._flow.next(self._opened, timeout))
        return item

    def close(self) -> None:
        """End it, from any thread; who iterates over it comes to the end."""
        run(self._leave())


class AsyncSubscription(_Subscribed, Generic[T]):
    """What `AsyncPubSub.listen` returns: a context manager, and an iterator of `AsyncMessage` and `Gap`.

    On entry it is confirmed: what is published afterwards arrives, or is counted as dropped, or lies in a `Gap`.
    """

    async def __aenter__(self) -> Self:
        """Subscribe, and return when the backend has confirmed it."""
        await self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[AsyncMessage[T] | Gap]:
        """Iterate until it is closed."""
        return self

    async def __anext__(self) -> AsyncMessage[T] | Gap:
        """Wait for the next message or gap.

        Raises:
            ClosedError: The backend was closed, or the buffer was full and the policy is CLOSE.
        """
        item: AsyncMessage[T] | Gap | None = await self._flow.next(self._opened)
        if item is None:
            raise StopAsyncIteration
        return item

    async def get(self, timeout: float | None = None) -> AsyncMessage[T] | Gap | None:
        """Return the next message or gap; None after so many seconds, or when it is closed."""
        item: AsyncMessage[T] | Gap | None = await self._flow.next(self._opened, timeout)
        return item

    async def aclose(self) -> None:
        """End it; who iterates over it comes to the end."""
        await self._leave()
