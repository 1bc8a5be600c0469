"""Holding a lock for the length of a block: `LockContext` and `AsyncLockContext`, what `Lock.hold` returns.

On asyncio the block is cancelled when the lease is lost, by our own deadline at the latest, in the way of
`asyncio.timeout`: only a cancellation of ours becomes `LeaseLostError`, one of somebody else's passes through.
"""

import asyncio
import contextlib
import logging
from types import TracebackType

from ailf.checks import check_member, check_seconds
from ailf.errors import AilfError, InvalidArgumentError
from ailf.lock.flow import LockFlow
from ailf.lock.lease import AsyncLease, Lease, LeaseFlow
from ailf.runtime import run
from ailf.values import OnLost

__all__ = ["AsyncLockContext", "LockContext"]

log = logging.getLogger("ailf.lock")


class _Held:
    """What both faces share."""

    def __init__(self, flow: LockFlow, timeout: float | None, on_lost: OnLost) -> None:
        self._flow = flow
        self._timeout = None if timeout is None else check_seconds("timeout", timeout)
        self._on_lost = check_member("on_lost", on_lost, OnLost)
        self._grant: LeaseFlow | None = None

    async def _acquire(self) -> LeaseFlow:
        if self._grant is not None:
            raise InvalidArgumentError(f"hold {self._flow}: it is entered already; each `with` needs a hold of its own")
        self._grant = await self._flow.acquire(self._timeout)
        return self._grant

    async def _release(self, error: BaseException | None) -> None:
        """Give it back; what goes wrong with that doesn't hide the body's own error."""
        grant, self._grant = self._grant, None
        if grant is None:
            return
        try:
            await grant.release()
        except AilfError as failed:
            if error is None and self._on_lost is OnLost.CANCEL:
                raise
            log.warning("%s", failed)


class LockContext(_Held):
    """A context manager: the lock is acquired on entry and released on leaving."""

    def __enter__(self) -> Lease:
        """Acquire it.

        Raises:
            LockTimeoutError: It was not to be had in time.
        """
        try:
            return Lease(run(self._acquire()))
        except BaseException:  # Ctrl-C: nobody leaves what was not entered
            self._grant = None
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Release it.

        Raises:
            LeaseLostError: It was lost meanwhile, and the body has no error of its own (`OnLost.CANCEL`).
        """
        run(self._release(error))


class AsyncLockContext(_Held):
    """A context manager: the lock is acquired on entry and released on leaving."""

    async def __aenter__(self) -> AsyncLease:
        """Acquire it.

        Raises:
            LockTimeoutError: It was not to be had in time.
        """
        grant = await self._acquire()
        self._watch = _Watch(grant) if self._on_lost is OnLost.CANCEL else None
        return AsyncLease(grant)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Release it.

        Raises:
            LeaseLostError: It was lost meanwhile, and the body has no error of its own (`OnLost.CANCEL`).
        """
        if self._watch is not None and self._grant is not None and await self._watch.end(error):
            self._grant.abandon()
            raise self._grant.give_up("hold") from error
        if isinstance(error, asyncio.CancelledError):
            await asyncio.shield(self._release(error))
        else:
            await self._release(error)


class _Watch:
    """Cancels the task that holds a lock when the lease is lost."""

    def __init__(self, grant: LeaseFlow) -> None:
        task = asyncio.current_task()
        assert task is not None, "a coroutine that is awaited has a task"  # noqa: S101 - asyncio says so
        self._grant = grant
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._cancelling = task.cancelling()
        self._struck = False
        self._clock = grant.engine.runtime.clock
        self._clock.on_move(self._told)
        grant.hold.on_lost = self._told
        self._timer = self._loop.call_soon(self._look)

    def _told(self) -> None:
        """Somebody found out that it is lost, or the clock was moved."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be cancelled
            self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        if self._struck or self._grant.released:
            return
        if self._grant.lost:
            self._struck = True
            self._task.cancel()
        elif not self._clock.by_hand:
            self._timer.cancel()
            left = self._grant.hold.ends - self._grant.hold.now()
            self._timer = self._loop.call_later(max(left, 0.001), self._look)

    async def end(self, error: BaseException | None) -> bool:
        """Watch no more; return whether the body is left because the lease was lost, and for no other reason."""
        self._timer.cancel()
        self._clock.off_move(self._told)
        self._grant.hold.on_lost = None
        struck, self._struck = self._struck, True
        if not struck:
            return False
        if error is None:  # the body was through before the cancellation could reach it
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        others = self._task.uncancel() > self._cancelling
        return not others and (error is None or isinstance(error, asyncio.CancelledError))
