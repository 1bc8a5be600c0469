"""Adapts blocking objects to the asyncio API, so that each test is written once for both flavours."""

import asyncio
import contextlib
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any

from msgspec.structs import replace

import ailf
from ailf.lock.hold import LockContext
from ailf.ratelimit.ratelimit import PermitContext
from ailf.stream.group import DeadLetters
from contract_tests.helpers.threads import OneThread, in_thread

__all__ = ["BLOCKING", "BlockingAdapter"]

BLOCKING = (
    ailf.Backend, ailf.PubSub, ailf.Subscription, ailf.Stream, ailf.Group, ailf.Consumer, ailf.Delivery, DeadLetters,
    ailf.Lock, ailf.Lease, LockContext, ailf.RateLimiter, ailf.Permit, PermitContext, ailf.Listing,
)  # fmt: skip
IMMEDIATE = {
    "pubsub", "stream", "group", "consumer", "listen", "stop", "tail", "unwrap", "instrument", "to_async",
    "lock", "semaphore", "hold", "held", "hand_over", "remaining", "rate_limiter",
    "streams", "groups", "consumers", "locks", "limiters",
}  # fmt: skip
"""Methods that don't wait: they are plain functions on asyncio too."""

END = object()


class BlockingAdapter:
    """A blocking object with the API of its asyncio class: each blocking call runs in a thread.

    Arguments:
        adapt_handler: Turns coroutine functions among the arguments of a call into blocking ones.
        inner: The blocking object.
    """

    def __init__(self, adapt_handler: Callable[[Any], Any], inner: Any) -> None:
        self._adapt_handler = adapt_handler
        self._inner = inner
        self._set: list[tuple[ContextVar[Any], Token[Any]]] = []
        self._threads: dict[asyncio.Task[Any] | None, list[OneThread]] = {}

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, "close" if name == "aclose" else name)
        if not callable(value):
            return self._adapt(value)
        if name in IMMEDIATE:
            return lambda *args, **options: self._adapt(value(*args, **self._adapted(options)))

        async def call(*args: Any, **options: Any) -> Any:
            args = tuple(self._adapt_handler(each) for each in args)
            return self._adapt(await in_thread(value, *args, **self._adapted(options)))

        return call

    def _adapted(self, options: dict[str, Any]) -> dict[str, Any]:
        return {name: self._adapt_handler(each) for name, each in options.items()}

    def _adapt(self, value: Any) -> Any:
        if isinstance(value, ailf.Decision) and value.permit is not None:
            return replace(value, permit=self._adapt(value.permit))
        if isinstance(value, BLOCKING) or hasattr(value, "send"):
            return BlockingAdapter(self._adapt_handler, value)
        if isinstance(value, list):  # of deliveries, or of values that stay as they are
            return [self._adapt(each) for each in value]
        return value

    async def __aenter__(self) -> Any:
        """Enter the inner object, and copy the context variables that this sets from the thread to this task.

        Each task uses one thread for a block: it leaves the block in the thread in which it entered it.
        """
        thread = OneThread()
        try:
            entered = await thread.run(self._inner.__enter__)
        except Exception:
            thread.close()
            raise
        self._threads.setdefault(asyncio.current_task(), []).append(thread)
        self._set = [(each, each.set(value)) for each, value in thread.context.items() if each.get(END) is not value]
        return self if entered is self._inner else self._adapt(entered)

    async def __aexit__(self, *error: object) -> Any:
        while self._set:
            each, token = self._set.pop()
            with contextlib.suppress(ValueError):  # the task that leaves is not the one that entered
                each.reset(token)
        threads = self._threads.get(asyncio.current_task())
        if not threads:  # another task entered it
            return await in_thread(self._inner.__exit__, *error)
        thread = threads.pop()
        outcome = await asyncio.gather(thread.run(self._inner.__exit__, *error), return_exceptions=True)
        thread.close()  # not reached when the test is cancelled, as the call may still block the thread
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def __aiter__(self) -> "BlockingAdapter":
        return (
            BlockingAdapter(self._adapt_handler, iter(self._inner)) if isinstance(self._inner, ailf.Listing) else self
        )

    async def __anext__(self) -> Any:
        value = await in_thread(next, self._inner, END)
        if value is END:
            raise StopAsyncIteration
        return self._adapt(value)
