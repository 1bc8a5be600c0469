"""Handling several messages of one buffer at once: loops that share the buffer, each in a thread or task of its own.

The idle loops are leader/followers (`ailf.runtime.leader`): one waits for the next message, and a message wakes two of
them at most. While none is idle, messages stay in the buffer, whose size and overflow policy bound them.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeAlias

from ailf.driver import Frame
from ailf.engine.subscriptions import MessageBuffer
from ailf.errors import AilfError
from ailf.logs import Log, Subject
from ailf.runtime import Runtime, Task
from ailf.runtime.leader import LeaderFollowers
from ailf.user_errors import interrupts
from ailf.values import Gap

__all__ = ["HandlerLoops", "Take"]

log = Log("ailf.pubsub")

Take: TypeAlias = Callable[[], Awaitable[Frame | Gap | None]]
"""Returns the next item to handle; None at the end."""

_DRAIN = 30.0
"""Seconds that the other handlers have to end when one of them ends `run` with its error."""

_CANCELLED_WITHIN = 1.0
"""Seconds that cancelled handlers have for their cleanup."""


class HandlerLoops:
    """One call of `PubSub.run` with a concurrency above 1.

    Arguments:
        runtime: The runtime of the loops.
        buffer: The buffer that they share.
        handle_all: Runs one loop: it takes and handles items until there is none.
        concurrency: The number of loops.
        subject: What records of the log are about.
    """

    def __init__(
        self,
        runtime: Runtime,
        buffer: MessageBuffer,
        handle_all: Callable[[Take], Coroutine[Any, Any, None]],
        concurrency: int,
        subject: Subject,
    ) -> None:
        self._runtime = runtime
        self._buffer = buffer
        self._handle_all = handle_all
        self._concurrency = concurrency
        self._subject = subject
        self._idle = LeaderFollowers(runtime, buffer)
        self._over = runtime.event()  # a loop has ended, because the buffer has, or by an error
        self._failure: BaseException | None = None

    async def run(self) -> None:
        """Run the loops until the buffer has ended and all its messages are handled, or until one fails."""
        own = 1 if self._runtime.uses_caller else 0  # the caller's thread is the first loop
        loops: list[Task] = []
        try:
            loops.extend(  # one by one: those that were started end, whatever happens to the next one
                self._runtime.spawn(self._run_loop, name=f"ailf-subscriber-{number}")
                for number in range(own, self._concurrency)
            )
            if own:
                await self._run_loop()
            await self._over.wait()
            await self._join(loops)
        finally:
            self._end()
            for loop in loops:
                loop.cancel()
            until = self._runtime.now() + _CANCELLED_WITHIN
            for loop in loops:
                if not await loop.join(max(0.0, until - self._runtime.now())):
                    log.warning(self._subject, "a handler is abandoned: it still runs, and `run` ends")
        if self._failure is not None:
            raise self._failure

    async def _join(self, loops: Iterable[Task]) -> None:
        """Wait for the handlers under way: after a stop until they end, after an error of one of them within a time."""
        if self._failure is None:
            for loop in loops:
                await loop.join()
        elif not interrupts(self._failure):
            until = self._runtime.now() + _DRAIN
            for loop in loops:
                await loop.join(max(0.0, until - self._runtime.now()))

    def _end(self) -> None:
        self._over.set()
        self._buffer.wake()

    async def _run_loop(self) -> None:
        try:
            await self._handle_all(self._take)
        except asyncio.CancelledError:
            if not self._over.is_set():
                self._fail(AilfError("other code has cancelled a task in which `run` handles messages"))
            raise
        except BaseException as error:  # noqa: BLE001 - the caller of `run` gets it
            self._fail(error)
        finally:
            self._end()
            self._idle.wake()  # the next idle loop, which ends too, and wakes the one after it

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        elif error is not self._failure:
            log.failure(logging.ERROR, self._subject, "another handler has failed, too", error=error)

    async def _take(self) -> Frame | Gap | None:
        """Return the next item; None once another loop has failed, or the buffer has ended and is empty."""
        while self._failure is None:
            item = self._buffer.take()
            if item is not None or self._buffer.ended:
                return item or await self._buffer.get()
            if self._over.is_set():  # `run` was cancelled, or interrupted
                return None
            await self._idle.wait_for_item(self._wait, None)
        return None

    async def _wait(self) -> None:
        """Wait for the next item, as the leader of the idle loops."""
        await self._buffer.wait(self._over.is_set)
        self._idle.wake()
