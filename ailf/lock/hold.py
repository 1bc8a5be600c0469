"""The context managers that `Lock.hold` returns: `LockContext` and `AsyncLockContext`.

On asyncio a watchdog cancels the block's task when the lease is lost, by the lease's local deadline at the latest. As
in `asyncio.timeout`, only that cancellation becomes `LeaseLostError`; any other cancellation passes through.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

from ailf.checks import check_member, check_seconds
from ailf.errors import AilfError, ClosedError, InvalidArgumentError, LeaseLostError
from ailf.lock.flow import LockFlow
from ailf.lock.lease import AsyncLease, Lease, LeaseFlow
from ailf.logs import Log
from ailf.runtime import run
from ailf.runtime.decorating import Step
from ailf.values import OnLost

__all__ = ["AsyncLockContext", "AsyncLockIteration", "LockContext", "check_hold"]

log = Log("ailf.lock")


def check_hold(timeout: float | None, on_lost: OnLost) -> tuple[float | None, OnLost]:
    """Return the arguments of `Lock.hold`, checked."""
    seconds = None if timeout is None else check_seconds("timeout", timeout)
    return seconds, check_member("on_lost", on_lost, OnLost)


class _LockContextBase:
    """The base of `LockContext` and `AsyncLockContext`: acquire and release, for both flavours."""

    def __init__(self, flow: LockFlow, timeout: float | None, on_lost: OnLost) -> None:
        self._flow = flow
        self._timeout, self._on_lost = check_hold(timeout, on_lost)
        self._grant: LeaseFlow | None = None

    async def _acquire(self) -> LeaseFlow:
        if self._grant is not None:
            raise InvalidArgumentError(f"hold {self._flow}: already entered; each `with` needs a hold() of its own")
        self._grant = await self._flow.acquire(self._timeout)
        return self._grant

    async def _release(self, error: BaseException | None) -> None:
        """Release the lock. If the block raised an error, or `on_lost` is SIGNAL, only log an error of the release."""
        grant, self._grant = self._grant, None
        if grant is None:
            return
        try:
            await grant.release()
        except AilfError as failure:
            if error is None and self._on_lost is OnLost.CANCEL:
                raise
            if isinstance(failure, ClosedError) and isinstance(error, asyncio.CancelledError):
                return  # the backend gives it back
            log.warning(grant, "not released at the end of its block: %s", failure)


class LockContext(_LockContextBase):
    """A context manager that acquires a lock on entry and releases it at the end of the block."""

    def __enter__(self) -> Lease:
        """Acquire the lock and return its lease.

        Raises:
            LockTimeoutError: The lock was not granted in time.
            DeadlockError: The caller holds the lock itself.
        """
        try:
            return Lease(run(self._acquire()))
        except BaseException:  # Ctrl-C: Python calls no `__exit__` for a failed `__enter__`
            self._grant = None
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Release the lock.

        Raises:
            LeaseLostError: The lease was lost, and the block raised no error of its own (`OnLost.CANCEL` only).
        """
        run(self._release(error))


class _AsyncLockContextBase(_LockContextBase):
    """The base of `AsyncLockContext` and `AsyncLockIteration`."""

    async def _leave(self, error: BaseException | None) -> None:
        grant = self._grant
        try:
            await self._release(error)
        except asyncio.CancelledError as cancelled:  # it may come again at each await, as anyio's do
            self._grant, error = grant, cancelled
            await self._flow.engine.runtime.single_flight().run(lambda: self._release(error))
            raise


class AsyncLockContext(_AsyncLockContextBase):
    """A context manager that acquires a lock on entry and releases it at the end of the block."""

    async def __aenter__(self) -> AsyncLease:
        """Acquire the lock and return its lease.

        Raises:
            LockTimeoutError: The lock was not granted in time.
            DeadlockError: The caller holds the lock itself.
        """
        grant = await self._acquire()
        self._watchdog = _LeaseWatchdog(grant) if self._on_lost is OnLost.CANCEL else None
        return AsyncLease(grant)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Release the lock.

        Raises:
            LeaseLostError: The lease was lost, and the block raised no error of its own (`OnLost.CANCEL` only).
        """
        if self._watchdog is not None and self._grant is not None:
            await self._watchdog.end(error)
        await self._leave(error)


class AsyncLockIteration(_AsyncLockContextBase):
    """A context manager that holds a lock while an async generator is iterated.

    The lease is watched while the generator's code runs, and not between two steps: then the code that iterates runs
    in this task, and a cancellation would end that code instead.
    """

    async def __aenter__(self) -> Step:
        """Acquire the lock, and return what runs a step of the generator."""
        (await self._acquire()).hand_over()  # a generator that is dropped is closed by another task
        return self._step if self._on_lost is OnLost.CANCEL else _call

    async def _step(self, step: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        grant = self._grant
        assert grant is not None, "no step is made outside of the iteration"  # noqa: S101 - for mypy
        if grant.lost:
            raise _lose(grant)
        watchdog = _LeaseWatchdog(grant)
        try:
            item = await step(*args)
        except BaseException as error:
            await watchdog.end(error)
            raise
        await watchdog.end(None)
        return item

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Release the lock, unless a step has found it lost."""
        if isinstance(error, LeaseLostError) and self._grant is not None and self._grant.lost:
            self._grant = None
        await self._leave(error)


def _call(step: Callable[..., Awaitable[Any]], *args: Any) -> Awaitable[Any]:
    """Run a step of a generator that learns from its lease whether it is lost."""
    return step(*args)


def _lose(grant: LeaseFlow) -> LeaseLostError:
    """Give a lost grant up and return the error to raise."""
    grant.abandon()
    return grant.give_up("hold")


class _LeaseWatchdog:
    """Cancels the task that holds a lock when the lease is lost."""

    def __init__(self, grant: LeaseFlow) -> None:
        task = asyncio.current_task()
        assert task is not None, "a coroutine that is awaited has a task"  # noqa: S101 - asyncio says so
        self._grant = grant
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._cancelling = task.cancelling()
        self._fired = False
        self._clock = grant.engine.runtime.clock
        self._clock.on_move(self._wake)
        grant.lease.on_lost = self._wake
        self._timer = self._loop.call_soon(self._check)

    def _wake(self) -> None:
        """Check the lease soon: it may be lost, or a test moved the clock. May be called from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: there is no task left to cancel
            self._loop.call_soon_threadsafe(self._check)

    def _check(self) -> None:
        if self._fired or self._grant.released:
            return
        if self._grant.lost:
            self._fired = True
            self._task.cancel()
        elif not self._clock.by_hand:
            self._timer.cancel()
            left = self._grant.lease.ends - self._grant.lease.now()
            self._timer = self._loop.call_later(max(left, 0.001), self._check)

    async def end(self, error: BaseException | None) -> None:
        """Stop watching.

        Raises:
            LeaseLostError: The loss of the lease is the only reason why the block ends.
        """
        if await self._ended_by_loss(error):
            raise _lose(self._grant) from error

    async def _ended_by_loss(self, error: BaseException | None) -> bool:
        self._timer.cancel()
        self._clock.off_move(self._wake)
        self._grant.lease.on_lost = None
        fired, self._fired = self._fired, True
        if not fired:
            return False
        if error is None:  # the block ended before the cancellation could reach it
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        others = self._task.uncancel() > self._cancelling
        return not others and (error is None or isinstance(error, asyncio.CancelledError))
