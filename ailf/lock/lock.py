"""Locks and semaphores held by leases: the classes `Lock` and `AsyncLock`, both over `ailf.lock.flow.LockFlow`.

The rule of this file: a `with` block on a lock belongs to the thread or task that entered it, so one lock object may be
entered by many of them.
"""

import asyncio
import functools
import threading
import weakref
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, TypeVar

from ailf.engine import Engine
from ailf.engine.standalone import StandaloneObject
from ailf.errors import InvalidArgumentError
from ailf.lock.flow import LockFlow, LockOptions
from ailf.lock.hold import AsyncLockContext, AsyncLockIteration, LockContext, check_hold
from ailf.lock.lease import AsyncLease, Lease
from ailf.runtime import run
from ailf.runtime.decorating import within, within_async
from ailf.values import LockInfo, OnLost

__all__ = ["AsyncLock", "Lock"]

F = TypeVar("F", bound=Callable[..., Any])
AsyncF = TypeVar("AsyncF", bound=Callable[..., Awaitable[Any] | AsyncIterator[Any]])


class _LockBase(StandaloneObject):
    """The base of `Lock` and `AsyncLock`: options, the flow, and the `with` blocks under way."""

    def __init__(
        self,
        *names: str,
        ttl: float = 30.0,
        permits: int | None = None,
        fair: bool = False,
        renew: bool = True,
        engine: Engine | None = None,
    ) -> None:
        super().__init__(engine)
        self._options = LockOptions(names, ttl=ttl, permits=permits, fair=fair, renew=renew)
        self._entered: Any = self._nothing_entered()
        self._blocks_flow: LockFlow | None = None  # the flow of `with` blocks, if the lock was made without a backend
        self._blocks = 0  # the number of these blocks under way

    @staticmethod
    @abstractmethod
    def _nothing_entered() -> object:
        """Return a container for the `with` blocks under way of each thread or task."""

    @functools.cached_property
    def _flow(self) -> LockFlow:
        return LockFlow(self._engine, self._options)

    def _begin_block(self) -> LockFlow:
        """Return the flow for one more `with` block. A lock made without a backend opens one for the first block."""
        if self._given is not None:
            return self._flow
        with self._opening:
            if self._blocks_flow is None:
                if self._own is None:
                    self._own = self._open_engine()
                self._blocks_flow = self.__dict__.get("_flow") or LockFlow(self._own, self._options)
            self._blocks += 1
            return self._blocks_flow

    async def _end_block(self) -> None:
        """Count down at the end of a `with` block. The last one closes the backend that was opened for the blocks."""
        if self._given is not None:
            return
        with self._opening:
            self._blocks -= 1
            if self._blocks:
                return
            self._blocks_flow = None
            if "_flow" in self.__dict__:  # leases from `acquire` may be left: the backend stays open until `close`
                return
            own, self._own = self._own, None
        if own is not None:
            await own.close()

    def _not_entered(self, where: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"leave {self!r}: this {where} has not entered it. A `with` block must end in the {where} in which it "
            "began. If it can't, keep the context manager that hold() returns, and enter and leave that one"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The locked names, sorted."""
        return self._options.names

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {' + '.join(map(repr, self.names))}>"


def _check_held(timeout: float | None, on_lost: OnLost) -> None:
    """Raise the errors of every later call already when the function is decorated."""
    if callable(timeout):
        raise InvalidArgumentError(
            "held() takes a timeout and returns the decorator: write @lock.held(), with parentheses"
        )
    check_hold(timeout, on_lost)


class _Entered(threading.local):
    """The `with` blocks under way of one thread, the innermost last."""

    def __init__(self) -> None:
        self.contexts: list[LockContext] = []


class Lock(_LockBase):
    """A lock or semaphore, held by leases. Get one from `Backend.lock`; annotate with this class.

    As a context manager it is acquired on entry and released at the end: ``with lock as lease:``. Each entry
    acquires the lock anew, so any number of threads may share the object. The lock is not re-entrant: a second attempt
    by its holder is denied like any other. A thread that would wait for a lock that it holds itself, such as by a block
    within a block, gets `DeadlockError`; a semaphore has no such owner.

    A lock that was made without a backend opens one at its first use. If that is a `with` block, the backend is closed
    when the last block ends.

    A lease alone can't exclude a holder that was paused for longer than the lease lasts. Pass ``lease.fence`` to the
    resource that the lock protects, and let it reject a fence lower than the highest it has seen.

    Arguments:
        names: The names to lock: all of them at once, or none.
        ttl: Seconds after which a grant ends if it is not renewed, for example because its process has died.
        permits: The number of grants of a semaphore that may exist at once (`Backend.semaphore`); None for a lock.
        fair: Whether waiters get the lock in the order in which they came, and no other caller overtakes them.
        renew: Whether leases are renewed until they are released. If not, a lease ends after ``ttl`` seconds unless
            `Lease.extend` is called.

    Example:
        >>> import ailf
        >>> with ailf.connect("memory://") as backend:
        ...     with backend.lock("report", ttl=30) as lease:
        ...         lease.lost
        False
    """

    @staticmethod
    def _nothing_entered() -> _Entered:
        return _Entered()

    def try_acquire(self) -> Lease | None:
        """Return a lease if the lock is free now, else None. It takes one round trip.

        Raises:
            ClosedError: The backend was closed.
            BackendError: The backend refused the request, or was unavailable for longer than its `retry_for`.
        """
        grant = run(self._flow.try_acquire())
        return None if grant is None else Lease(grant)

    def acquire(self, timeout: float | None = None) -> Lease:
        """Wait for the lock and return a lease. The release by another holder wakes the next waiter.

        Arguments:
            timeout: Seconds to wait. 0 tries once, in one round trip; None waits for ever.

        Raises:
            LockTimeoutError: The lock was not granted in time. If the backend was unavailable, its error is the cause.
            DeadlockError: This thread holds the lock, or one of its names, so it would wait in vain
                (see `Lease.hand_over`).
            ClosedError: The backend was closed.
            BackendError: The backend refused the request, or is unavailable and `timeout` is 0. No grant is left.
        """
        return Lease(run(self._flow.acquire(timeout)))

    def hold(self, timeout: float | None = None, *, on_lost: OnLost = OnLost.CANCEL) -> LockContext:
        """Return a context manager that acquires the lock, passes the lease to its block, and releases it.

        Arguments:
            timeout: Seconds to wait for the lock; None waits for ever.
            on_lost: What happens to the block when the lease is lost.
        """
        return LockContext(self._flow, timeout, on_lost)

    def held(self, timeout: float | None = None, *, on_lost: OnLost = OnLost.CANCEL) -> Callable[[F], F]:
        """Return a decorator: each call of the function acquires the lock, and releases it at the end.

        For a generator function the lock is acquired with the first item, and released when the iteration ends:
        exhausted, closed, garbage-collected, or by an error. A function that only returns an iterator releases the lock
        when it returns. A function that needs the fence uses `hold` instead.

        Arguments:
            timeout: As for `hold`; a call that doesn't get the lock in time raises `LockTimeoutError`.
            on_lost: As for `hold`.

        Raises:
            InvalidArgumentError: The decorated object is not callable, or is a function for asyncio.

        Example:
            >>> import ailf
            >>> with ailf.connect("memory://") as backend:
            ...     @backend.lock("report").held(timeout=5)
            ...     def write(title: str) -> str:
            ...         return f"the report {title!r} is written"
            ...     write("May")
            "the report 'May' is written"
        """
        _check_held(timeout, on_lost)

        def hold(*_: object, **__: object) -> LockContext:
            return self.hold(timeout, on_lost=on_lost)

        def decorate(function: F) -> F:
            return within("the function that holds a lock", hold, function, hold)

        return decorate

    def locked(self) -> bool:
        """Return whether the lock is taken now, by any holder in any process, in one round trip.

        For a semaphore: whether all permits are taken. With several names: whether any of them is. The answer may be
        outdated when it arrives, so acquire by `try_acquire` and not by what this returns.

        Raises:
            ClosedError: The backend was closed.
            BackendError: The backend couldn't answer.
        """
        return run((self._blocks_flow or self._flow).locked())

    def inspect(self) -> LockInfo:
        """Return the holders, by fence, and the number of waiters; change nothing.

        Raises:
            InvalidArgumentError: The lock has several names.
        """
        return run((self._blocks_flow or self._flow).inspect())

    def break_(self, fence: int) -> bool:
        """Revoke the grant with this fence, so that its lease is lost; return whether there was one.

        Raises:
            InvalidArgumentError: The lock has several names.
        """
        return run((self._blocks_flow or self._flow).break_(fence))

    def close(self) -> None:
        """Close the backend that this object opened itself, if any."""
        run(self._close())

    def __enter__(self) -> Lease:
        """Acquire the lock and return the lease, waiting without a timeout; see `acquire`."""
        context: LockContext | None = None
        try:
            context = LockContext(self._begin_block(), None, OnLost.CANCEL)
            lease = context.__enter__()
            self._entered.contexts.append(context)
            return lease  # noqa: TRY300 - Ctrl-C may come up to here
        except BaseException:
            self._entered.contexts[:] = [held for held in self._entered.contexts if held is not context]
            if context is not None:
                run(self._end_block())
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Release the lock.

        Raises:
            LeaseLostError: The lease was lost, and the block raised no error of its own.
            InvalidArgumentError: This thread has not entered the lock.
        """
        if not self._entered.contexts:
            raise self._not_entered("thread")
        context = self._entered.contexts.pop()
        try:
            context.__exit__(kind, error, at)
        finally:
            run(self._end_block())


class AsyncLock(_LockBase):
    """A lock or semaphore, held by leases. Get one from `AsyncBackend.lock`; annotate with this class.

    As a context manager it is acquired on entry and released at the end: ``async with lock as lease:``. Each entry
    acquires the lock anew, so any number of tasks may share the object. The lock is not re-entrant: a second attempt
    by its holder is denied like any other. A task that would wait for a lock that it holds itself, such as by a block
    within a block, gets `DeadlockError`; a semaphore has no such owner.

    A lock that was made without a backend opens one at its first use. If that is a `with` block, the backend is closed
    when the last block ends.

    A lease alone can't exclude a holder that was paused for longer than the lease lasts. Pass ``lease.fence`` to the
    resource that the lock protects, and let it reject a fence lower than the highest it has seen.

    Arguments:
        names: The names to lock: all of them at once, or none.
        ttl: Seconds after which a grant ends if it is not renewed, for example because its process has died.
        permits: The number of grants of a semaphore that may exist at once (`AsyncBackend.semaphore`); None for a lock.
        fair: Whether waiters get the lock in the order in which they came, and no other caller overtakes them.
        renew: Whether leases are renewed until they are released. If not, a lease ends after ``ttl`` seconds unless
            `AsyncLease.extend` is called.

    Example:
        >>> import asyncio, ailf
        >>> async def main() -> None:
        ...     async with ailf.connect_async("memory://") as backend:
        ...         async with backend.lock("report", ttl=30) as lease:
        ...             print(lease.lost)
        >>> asyncio.run(main())
        False
    """

    @staticmethod
    def _nothing_entered() -> "weakref.WeakKeyDictionary[asyncio.Task[Any], list[AsyncLockContext]]":
        return weakref.WeakKeyDictionary()

    async def try_acquire(self) -> AsyncLease | None:
        """Return a lease if the lock is free now, else None. It takes one round trip.

        Raises:
            ClosedError: The backend was closed.
            BackendError: The backend refused the request, or was unavailable for longer than its `retry_for`.
        """
        grant = await self._flow.try_acquire()
        return None if grant is None else AsyncLease(grant)

    async def acquire(self, timeout: float | None = None) -> AsyncLease:
        """Wait for the lock and return a lease. The release by another holder wakes the next waiter.

        Arguments:
            timeout: Seconds to wait. 0 tries once, in one round trip; None waits for ever.

        Raises:
            LockTimeoutError: The lock was not granted in time. If the backend was unavailable, its error is the cause.
            DeadlockError: This task holds the lock, or one of its names, so it would wait in vain
                (see `AsyncLease.hand_over`).
            ClosedError: The backend was closed.
            BackendError: The backend refused the request, or is unavailable and `timeout` is 0. No grant is left.
        """
        return AsyncLease(await self._flow.acquire(timeout))

    def hold(self, timeout: float | None = None, *, on_lost: OnLost = OnLost.CANCEL) -> AsyncLockContext:
        """Return a context manager that acquires the lock, passes the lease to its block, and releases it.

        Arguments:
            timeout: Seconds to wait for the lock; None waits for ever.
            on_lost: What happens to the block when the lease is lost.
        """
        return AsyncLockContext(self._flow, timeout, on_lost)

    def held(self, timeout: float | None = None, *, on_lost: OnLost = OnLost.CANCEL) -> Callable[[AsyncF], AsyncF]:
        """Return a decorator: each call of the function acquires the lock, and releases it at the end.

        For an async generator function the lock is acquired with the first item, and released when the iteration ends:
        exhausted, closed, garbage-collected, or by an error. A loss of the lease ends the generator's code, never that
        of its caller between two items. A function that only returns an iterator releases the lock when it returns. A
        function that needs the fence uses `hold` instead.

        Arguments:
            timeout: As for `hold`; a call that doesn't get the lock in time raises `LockTimeoutError`.
            on_lost: As for `hold`.

        Raises:
            InvalidArgumentError: The decorated object is not callable, or is a blocking generator function.

        Example:
            >>> import asyncio, ailf
            >>> async def main() -> None:
            ...     async with ailf.connect_async("memory://") as backend:
            ...         @backend.lock("report").held(timeout=5)
            ...         async def write(title: str) -> str:
            ...             return f"the report {title!r} is written"
            ...         print(await write("May"))
            >>> asyncio.run(main())
            the report 'May' is written
        """
        _check_held(timeout, on_lost)

        def hold(*_: object, **__: object) -> AsyncLockContext:
            return self.hold(timeout, on_lost=on_lost)

        def iterate(*_: object, **__: object) -> AsyncLockIteration:
            return AsyncLockIteration(self._flow, timeout, on_lost)

        def decorate(function: AsyncF) -> AsyncF:
            return within_async("the function that holds a lock", hold, function, iterate)

        return decorate

    async def locked(self) -> bool:
        """Return whether the lock is taken now, by any holder in any process, in one round trip.

        For a semaphore: whether all permits are taken. With several names: whether any of them is. The answer may be
        outdated when it arrives, so acquire by `try_acquire` and not by what this returns.

        Raises:
            ClosedError: The backend was closed.
            BackendError: The backend couldn't answer.
        """
        return await (self._blocks_flow or self._flow).locked()

    async def inspect(self) -> LockInfo:
        """Return the holders, by fence, and the number of waiters; change nothing.

        Raises:
            InvalidArgumentError: The lock has several names.
        """
        return await (self._blocks_flow or self._flow).inspect()

    async def break_(self, fence: int) -> bool:
        """Revoke the grant with this fence, so that its lease is lost; return whether there was one.

        Raises:
            InvalidArgumentError: The lock has several names.
        """
        return await (self._blocks_flow or self._flow).break_(fence)

    async def aclose(self) -> None:
        """Close the backend that this object opened itself, if any."""
        await self._close()

    async def __aenter__(self) -> AsyncLease:
        """Acquire the lock and return the lease, waiting without a timeout; see `acquire`."""
        context: AsyncLockContext | None = None
        try:
            context = AsyncLockContext(self._begin_block(), None, OnLost.CANCEL)
            lease = await context.__aenter__()
            self._entered.setdefault(asyncio.current_task(), []).append(context)
            return lease  # noqa: TRY300 - as in `Lock`
        except BaseException:
            if context is not None:
                await self._end_block()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Release the lock.

        Raises:
            LeaseLostError: The lease was lost, and the block raised no error of its own.
            InvalidArgumentError: This task has not entered the lock.
        """
        contexts = self._entered.get(asyncio.current_task())
        if not contexts:
            raise self._not_entered("task")
        context = contexts.pop()
        try:
            await context.__aexit__(kind, error, at)
        finally:
            await self._end_block()
