"""One text for both flavours: a blocking object is adapted to the asyncio API that tests are written against."""

import asyncio
import contextlib
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, TypeVar

from msgspec.structs import replace

import ailf
from ailf.lock.hold import LockContext
from ailf.ratelimit.ratelimit import PermitContext
from ailf.stream.group import DeadLetters
from contract_tests.helpers.threads import OneThread, in_thread

__all__ = ["BLOCKING", "BlockingAdapter"]

BLOCKING = (
    ailf.Backend, ailf.PubSub, ailf.Subscription, ailf.Stream, ailf.Group, ailf.Consumer, ailf.Delivery, DeadLetters,
    ailf.Lock, ailf.Lease, LockContext, ailf.RateLimiter, ailf.Permit, PermitContext,
)  # fmt: skip
IMMEDIATE = {
    "pubsub", "stream", "group", "consumer", "listen", "stop", "tail", "unwrap",
    "lock", "semaphore", "hold", "remaining", "rate_limiter",
}  # fmt: skip
"""Methods that don't wait, and are plain functions on asyncio too."""

END = object()

T = TypeVar("T")


class BlockingAdapter:
    """A blocking object that looks like its asyncio twin."""

    def __init__(self, undress: Callable[[Any], Any], inner: Any) -> None:
        self._undress = undress
        self._inner = inner
        self._set: list[tuple[ContextVar[Any], Token[Any]]] = []
        self._threads: dict[asyncio.Task[Any] | None, list[OneThread]] = {}

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, "close" if name == "aclose" else name)
        if not callable(value):
            return self._dress(value)
        if name in IMMEDIATE:
            return lambda *args, **options: self._dress(value(*args, **self._undressed(options)))

        async def call(*args: Any, **options: Any) -> Any:
            args = tuple(self._undress(each) for each in args)
            return self._dress(await in_thread(value, *args, **self._undressed(options)))

        return call

    def _undressed(self, options: dict[str, Any]) -> dict[str, Any]:
        return {name: self._undress(each) for name, each in options.items()}

    def _dress(self, value: Any) -> Any:
        if isinstance(value, ailf.Decision) and value.permit is not None:
            return replace(value, permit=self._dress(value.permit))
        return BlockingAdapter(self._undress, value) if isinstance(value, BLOCKING) or hasattr(value, "send") else value

    async def __aenter__(self) -> Any:
        """Enter it; what that sets in its thread's context is set here too, as it would be on asyncio.

        A task stands for a thread: what it enters it leaves in the same thread, and no other task does.
        """
        thread = OneThread()
        try:
            entered = await thread.run(self._inner.__enter__)
        except Exception:
            thread.close()
            raise
        self._threads.setdefault(asyncio.current_task(), []).append(thread)
        self._set = [(each, each.set(value)) for each, value in thread.context.items() if each.get(END) is not value]
        return self if entered is self._inner else self._dress(entered)

    async def __aexit__(self, *error: object) -> Any:
        while self._set:
            each, token = self._set.pop()
            with contextlib.suppress(ValueError):  # left in another task than it was entered in
                each.reset(token)
        mine = self._threads.get(asyncio.current_task())
        if not mine:  # another task entered it
            return await in_thread(self._inner.__exit__, *error)
        thread = mine.pop()
        left = await asyncio.gather(thread.run(self._inner.__exit__, *error), return_exceptions=True)
        thread.close()  # not where the test gives up on a call that still blocks it
        if isinstance(left[0], BaseException):
            raise left[0]
        return left[0]

    def __aiter__(self) -> "BlockingAdapter":
        return self

    async def __anext__(self) -> Any:
        value = await in_thread(next, self._inner, END)
        if value is END:
            raise StopAsyncIteration
        return self._dress(value)
