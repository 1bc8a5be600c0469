"""Taking turns: `Lock` and `AsyncLock`, two thin faces of one flow. A lock with several permits is a semaphore.

A grant is a `Lease`: it ends by itself when its process dies, and says so when it is lost. As a context manager a lock
is acquired and released; each thread or task has entries of its own.
"""

import asyncio
import functools
import threading
import weakref
from abc import abstractmethod
from types import TracebackType
from typing import Any

from ailf.engine import Engine
from ailf.engine.standalone import StandaloneObject
from ailf.errors import InvalidArgumentError
from ailf.lock.flow import LockFlow, LockOptions
from ailf.lock.hold import AsyncLockContext, LockContext
from ailf.lock.lease import AsyncLease, Lease
from ailf.runtime import run
from ailf.values import LockInfo, OnLost

__all__ = ["AsyncLock", "Lock"]


class _LockBase(StandaloneObject):
    """What both faces share: the names, and how the flow is made."""

    def __init__(
        self,
        *names: str,
        ttl: float = 30.0,
        permits: int = 1,
        fair: bool = False,
        renew: bool = True,
        engine: Engine | None = None,
    ) -> None:
        super().__init__(engine)
        self._options = LockOptions(names, ttl=ttl, permits=permits, fair=fair, renew=renew)
        self._entered: Any = self._nothing_entered()
        self._inside: LockFlow | None = None  # what `with` blocks use where the lock was made alone
        self._entries = 0  # how many of these there are

    @staticmethod
    @abstractmethod
    def _nothing_entered() -> object:
        """Return what keeps the `with` blocks of each thread or task."""

    @functools.cached_property
    def _flow(self) -> LockFlow:
        return LockFlow(self._engine, self._options)

    def _begin(self) -> LockFlow:
        """Return the flow for one more `with` block; a lock that was made alone opens a backend for the first one."""
        if self._given is not None:
            return self._flow
        with self._opening:
            if self._inside is None:
                if self._own is None:
                    self._own = self._open_engine()
                self._inside = self.__dict__.get("_flow") or LockFlow(self._own, self._options)
            self._entries += 1
            return self._inside

    async def _end(self) -> None:
        """Take note of the end of a `with` block; with the last one the backend goes that was opened for them alone."""
        if self._given is not None:
            return
        with self._opening:
            self._entries -= 1
            if self._entries:
                return
            self._inside = None
            if "_flow" in self.__dict__:  # leases of `acquire` may be left: it stays open until `close`
                return
            own, self._own = self._own, None
        if own is not None:
            await own.close()

    def _strange(self, where: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"leave {self!r}: this {where} has not entered it. A `with` block ends in the {where} in which it began; "
            "where that can't be, keep what hold() returns, and enter and leave that"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names that it locks, sorted."""
        return self._options.names

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {' + '.join(map(repr, self.names))}>"


class _Entered(threading.local):
    """The `with` blocks of one thread, the innermost last."""

    def __init__(self) -> None:
        self.holdings: list[LockContext] = []


class Lock(_LockBase):
    """Something that one agent does at a time. Get one from `Backend.lock`; annotate with this class.

    As a context manager it is acquired on entry and released on leaving: ``with lock as lease:``. Each entry is a hold
    of its own, so one object may be shared by any number of threads. It is not re-entrant: a second try by anybody, the
    holder included, is denied (L14), and an entry within an entry waits for ever.

    A lock that was made alone opens a backend at its first use. Where that is a `with` block, the last one closes it.

    A lease alone is not mutual exclusion against a holder that was paused longer than it lasts. Pass ``lease.fence`` to
    what the lock protects, and let that refuse a lower one than it has seen.

    Arguments:
        names: What to lock; several are had all at once or not at all (L15).
        ttl: Seconds that a grant lasts when its process has died; a living one renews it.
        permits: How many may have it at once (`Backend.semaphore`).
        fair: Whether those who wait get it in the order in which they came, and nobody overtakes them (L12).
        renew: Whether leases are renewed until they are released; else they end after ``ttl`` unless you extend them.
    """

    @staticmethod
    def _nothing_entered() -> _Entered:
        return _Entered()

    def try_acquire(self) -> Lease | None:
        """Return a lease if the lock is free now, else None; one round trip."""
        grant = run(self._flow.try_acquire())
        return None if grant is None else Lease(grant)

    def acquire(self, timeout: float | None = None) -> Lease:
        """Wait for the lock and return a lease; whoever frees the lock wakes who waits (L11).

        Arguments:
            timeout: Seconds to wait; 0: one round trip; None: for ever.

        Raises:
            LockTimeoutError: Another holder kept it, or the backend was away.
            ClosedError: The backend was closed.
            BackendError: The backend refused it. While it is away the wait goes on. No grant is left behind (L10).
        """
        return Lease(run(self._flow.acquire(timeout)))

    def hold(self, timeout: float | None = None, *, on_lost: OnLost = OnLost.CANCEL) -> LockContext:
        """Return a context manager that acquires the lock, gives its body the lease, and releases it.

        Arguments:
            timeout: Seconds to wait for the lock; None: for ever.
            on_lost: What happens to the body when the lease is lost (L9).
        """
        return LockContext(self._flow, timeout, on_lost)

    def inspect(self) -> LockInfo:
        """Return who has the lock, by fence, and how many wait; changes nothing."""
        return run((self._inside or self._flow).inspect())

    def break_(self, fence: int) -> bool:
        """Take the lock away from the holder with this fence, whose lease is lost; return whether there was one."""
        return run((self._inside or self._flow).break_(fence))

    def close(self) -> None:
        """Close what this object opened itself."""
        run(self._close())

    def __enter__(self) -> Lease:
        """Acquire the lock, however long that takes, and return the lease; as `hold` does without a timeout."""
        holding: LockContext | None = None
        try:
            holding = LockContext(self._begin(), None, OnLost.CANCEL)
            lease = holding.__enter__()
            self._entered.holdings.append(holding)
            return lease  # noqa: TRY300 - Ctrl-C may come up to here
        except BaseException:
            self._entered.holdings[:] = [each for each in self._entered.holdings if each is not holding]
            if holding is not None:
                run(self._end())
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Release it.

        Raises:
            LeaseLostError: It was lost meanwhile, and the body has no error of its own.
            InvalidArgumentError: Another thread entered it.
        """
        if not self._entered.holdings:
            raise self._strange("thread")
        holding = self._entered.holdings.pop()
        try:
            holding.__exit__(kind, error, at)
        finally:
            run(self._end())


class AsyncLock(_LockBase):
    """Something that one agent does at a time. Get one from `AsyncBackend.lock`; annotate with this class.

    As a context manager it is acquired on entry and released on leaving: ``async with lock as lease:``. Each entry is a
    hold of its own, so one object may be shared by any number of tasks. It is not re-entrant: a second try by anybody,
    the holder included, is denied (L14), and an entry within an entry waits for ever.

    A lock that was made alone opens a backend at its first use. Where that is a `with` block, the last one closes it.

    A lease alone is not mutual exclusion against a holder that was paused longer than it lasts. Pass ``lease.fence`` to
    what the lock protects, and let that refuse a lower one than it has seen.

    Arguments:
        names: What to lock; several are had all at once or not at all (L15).
        ttl: Seconds that a grant lasts when its process has died; a living one renews it.
        permits: How many may have it at once (`AsyncBackend.semaphore`).
        fair: Whether those who wait get it in the order in which they came, and nobody overtakes them (L12).
        renew: Whether leases are renewed until they are released; else they end after ``ttl`` unless you extend them.
    """

    @staticmethod
    def _nothing_entered() -> "weakref.WeakKeyDictionary[asyncio.Task[Any], list[AsyncLockContext]]":
        return weakref.WeakKeyDictionary()

    async def try_acquire(self) -> AsyncLease | None:
        """Return a lease if the lock is free now, else None; one round trip."""
        grant = await self._flow.try_acquire()
        return None if grant is None else AsyncLease(grant)

    async def acquire(self, timeout: float | None = None) -> AsyncLease:
        """Wait for the lock and return a lease; whoever frees the lock wakes who waits (L11).

        Arguments:
            timeout: Seconds to wait; 0: one round trip; None: for ever.

        Raises:
            LockTimeoutError: Another holder kept it, or the backend was away.
            ClosedError: The backend was closed.
            BackendError: The backend refused it. While it is away the wait goes on. No grant is left behind (L10).
        """
        return AsyncLease(await self._flow.acquire(timeout))

    def hold(self, timeout: float | None = None, *, on_lost: OnLost = OnLost.CANCEL) -> AsyncLockContext:
        """Return a context manager that acquires the lock, gives its body the lease, and releases it.

        Arguments:
            timeout: Seconds to wait for the lock; None: for ever.
            on_lost: What happens to the body when the lease is lost (L9).
        """
        return AsyncLockContext(self._flow, timeout, on_lost)

    async def inspect(self) -> LockInfo:
        """Return who has the lock, by fence, and how many wait; changes nothing."""
        return await (self._inside or self._flow).inspect()

    async def break_(self, fence: int) -> bool:
        """Take the lock away from the holder with this fence, whose lease is lost; return whether there was one."""
        return await (self._inside or self._flow).break_(fence)

    async def aclose(self) -> None:
        """Close what this object opened itself."""
        await self._close()

    async def __aenter__(self) -> AsyncLease:
        """Acquire the lock, however long that takes, and return the lease; as `hold` does without a timeout."""
        holding: AsyncLockContext | None = None
        try:
            holding = AsyncLockContext(self._begin(), None, OnLost.CANCEL)
            lease = await holding.__aenter__()
            self._entered.setdefault(asyncio.current_task(), []).append(holding)
            return lease  # noqa: TRY300 - as on threads
        except BaseException:
            if holding is not None:
                await self._end()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Release it.

        Raises:
            LeaseLostError: It was lost meanwhile, and the body has no error of its own.
            InvalidArgumentError: Another task entered it.
        """
        holdings = self._entered.get(asyncio.current_task())
        if not holdings:
            raise self._strange("task")
        holding = holdings.pop()
        try:
            await holding.__aexit__(kind, error, at)
        finally:
            await self._end()
