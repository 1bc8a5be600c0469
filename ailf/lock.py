"""Taking turns: `Lock` and `AsyncLock`, two thin faces of one flow. A lock with several permits is a semaphore.

A grant is a `Lease`: it ends by itself when its process dies, and says so when it is lost.
"""

import functools
from types import TracebackType
from typing import Self

from ailf.attached import Attached
from ailf.engine import Engine
from ailf.holding import AsyncHolding, Holding
from ailf.leases import AsyncLease, Lease
from ailf.locking import LockFlow, LockOptions
from ailf.runtime import run
from ailf.values import LockInfo, OnLost

__all__ = ["AsyncLock", "Lock"]


class _LockBase(Attached):
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

    @functools.cached_property
    def _flow(self) -> LockFlow:
        return LockFlow(self._engine, self._options)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that it locks, sorted."""
        return self._options.names

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {' + '.join(map(repr, self.names))}>"


class Lock(_LockBase):
    """Something that one agent does at a time. Get one from `Backend.lock`; annotate with this class.

    It has no state: the lease that a grant returns has. So one object may be shared by any number of threads. It is
    not re-entrant: a second try by anybody, the holder included, is denied (L14).

    A lease alone is not mutual exclusion against a holder that was paused longer than it lasts. Pass ``lease.fence`` to
    what the lock protects, and let that refuse a lower one than it has seen.

    Arguments:
        names: What to lock; several are had all at once or not at all (L15).
        ttl: Seconds that a grant lasts when its process has died; a living one renews it.
        permits: How many may have it at once (`Backend.semaphore`).
        fair: Whether those who wait get it in the order in which they came, and nobody overtakes them (L12).
        renew: Whether leases are renewed until they are released; else they end after ``ttl`` unless you extend them.
    """

    def try_acquire(self) -> Lease | None:
        """Return a lease if the lock is free now, else None; one round trip."""
        grant = run(self._flow.try_acquire())
        return None if grant is None else Lease(grant)

    def acquire(self, timeout: float | None = None) -> Lease:
        """Wait for the lock and return a lease; whoever frees the lock wakes who waits (L11).

        Arguments:
            timeout: Seconds to wait; 0: one round trip; None: for ever.

        Raises:
            LockTimeoutError: Somebody else kept it.
            ClosedError: The backend was closed.
            BackendError: The backend couldn't do it. No grant is left behind (L10).
        """
        return Lease(run(self._flow.acquire(timeout)))

    def hold(self, timeout: float | None = None, *, on_lost: OnLost = OnLost.CANCEL) -> Holding:
        """Return a context manager that acquires the lock, gives its body the lease, and releases it.

        Arguments:
            timeout: Seconds to wait for the lock; None: for ever.
            on_lost: What happens to the body when the lease is lost (L9).
        """
        return Holding(self._flow, timeout, on_lost)

    def inspect(self) -> LockInfo:
        """Return who has the lock, by fence, and how many wait; changes nothing."""
        return run(self._flow.inspect())

    def break_(self, fence: int) -> bool:
        """Take the lock away from the holder with this fence, whose lease is lost; return whether there was one."""
        return run(self._flow.break_(fence))

    def close(self) -> None:
        """Close what this object opened itself."""
        run(self._close())

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()


class AsyncLock(_LockBase):
    """Something that one agent does at a time. Get one from `AsyncBackend.lock`; annotate with this class.

    It has no state: the lease that a grant returns has. So one object may be shared by any number of tasks. It is
    not re-entrant: a second try by anybody, the holder included, is denied (L14).

    A lease alone is not mutual exclusion against a holder that was paused longer than it lasts. Pass ``lease.fence`` to
    what the lock protects, and let that refuse a lower one than it has seen.

    Arguments:
        names: What to lock; several are had all at once or not at all (L15).
        ttl: Seconds that a grant lasts when its process has died; a living one renews it.
        permits: How many may have it at once (`AsyncBackend.semaphore`).
        fair: Whether those who wait get it in the order in which they came, and nobody overtakes them (L12).
        renew: Whether leases are renewed until they are released; else they end after ``ttl`` unless you extend them.
    """

    async def try_acquire(self) -> AsyncLease | None:
        """Return a lease if the lock is free now, else None; one round trip."""
        grant = await self._flow.try_acquire()
        return None if grant is None else AsyncLease(grant)

    async def acquire(self, timeout: float | None = None) -> AsyncLease:
        """Wait for the lock and return a lease; whoever frees the lock wakes who waits (L11).

        Arguments:
            timeout: Seconds to wait; 0: one round trip; None: for ever.

        Raises:
            LockTimeoutError: Somebody else kept it.
            ClosedError: The backend was closed.
            BackendError: The backend couldn't do it. No grant is left behind (L10).
        """
        return AsyncLease(await self._flow.acquire(timeout))

    def hold(self, timeout: float | None = None, *, on_lost: OnLost = OnLost.CANCEL) -> AsyncHolding:
        """Return a context manager that acquires the lock, gives its body the lease, and releases it.

        Arguments:
            timeout: Seconds to wait for the lock; None: for ever.
            on_lost: What happens to the body when the lease is lost (L9).
        """
        return AsyncHolding(self._flow, timeout, on_lost)

    async def inspect(self) -> LockInfo:
        """Return who has the lock, by fence, and how many wait; changes nothing."""
        return await self._flow.inspect()

    async def break_(self, fence: int) -> bool:
        """Take the lock away from the holder with this fence, whose lease is lost; return whether there was one."""
        return await self._flow.break_(fence)

    async def aclose(self) -> None:
        """Close what this object opened itself."""
        await self._close()

    async def __aenter__(self) -> Self:
        """Return the object itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()
