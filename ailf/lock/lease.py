"""The lease of a granted lock: `Lease` and `AsyncLease`, both over one state (`LeaseFlow`).

The renewal thread (`ailf.engine.renewal`) extends the lease until it is released or lost.
"""

import contextlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Self

import msgspec

from ailf.driver import BackendDriver, LockDriver, LockRequest
from ailf.engine import Engine
from ailf.engine.renewed_lease import RenewedLease, enumerated
from ailf.errors import AilfError, BackendError, LeaseLostError, OutcomeUnknownError
from ailf.lock.owner import OwnedGrants, grants_of
from ailf.logs import Fields
from ailf.runtime import run
from ailf.runtime.clock import SystemClock

__all__ = ["AsyncLease", "Lease", "LeaseFlow", "LockGrantLease"]


class LockGrantLease(RenewedLease):
    """The lease of a lock's grant, as the renewal thread renews it.

    Attributes:
        request: The request that was granted.
    """

    __slots__ = ("__weakref__", "request")

    def __init__(self, request: LockRequest, since: float, now: Callable[[], float] = SystemClock.lease_time) -> None:
        self.request = request
        super().__init__(request.ttl, since, now=now)

    @property
    def batch(self) -> Hashable:
        """The key of what one request can renew together: None, as all locks form one batch."""
        return None

    def find_server(self, driver: BackendDriver) -> Hashable:
        """Return what identifies the server of the lock."""
        return driver.lock().server_of(self.request.names[0])

    @classmethod
    async def renew(cls, driver: BackendDriver, holds: Sequence[Any]) -> list[bool]:
        """Renew the leases in one round trip; return for each whether it still existed."""
        return await driver.lock().extend([hold.request for hold in holds])

    @classmethod
    def describe(cls, leases: Sequence["LockGrantLease"], count: int) -> str:
        """Return a description for the log of `count` leases, of which these are the first."""
        names = [" + ".join(map(repr, each.request.names)) for each in leases]
        return f"the lease{'s' * (count > 1)} on lock{'s' * (count > 1)} {enumerated(names, count)}"

    def log_fields(self) -> Fields:
        """Return the fields of a record of the log that is about it, but for the backend."""
        return {"lock": " + ".join(self.request.names)}


class LeaseFlow(msgspec.Struct, eq=False, weakref=True):
    """The state of a grant until it is released or lost, for both flavours.

    Attributes:
        engine: The backend's engine.
        request: The request that was granted.
        fence: The fence of the grant.
        lease: The lease of the grant, for the renewal thread.
        renewed: Whether the lease is renewed.
        home: The process, or event loop, in which it was made: a forked child owns none of its parent's grants.
        released: Whether the grant was released.
        owned: The grants of its owner (`ailf.lock.owner`); None without one.
    """

    engine: Engine
    request: LockRequest
    fence: int
    lease: LockGrantLease
    _driver: LockDriver
    renewed: bool
    home: object
    released: bool = False
    _releases: int = 0  # how many calls of `release` were made
    owned: OwnedGrants | None = None

    def __del__(self) -> None:
        """Stop renewing a grant that no code refers to any more, so that it ends by itself."""
        self.engine.renewer.discard(self.lease)
        self.hand_over()

    # --- the owner -----------------------------------------------------------------------------------------------

    def hand_over(self) -> None:
        """Let it have no owner."""
        if self.owned is not None:
            self.owned.pop(self.request.token, None)

    @staticmethod
    def find_blocking(engine: Engine, names: Sequence[str], until: float) -> "LeaseFlow | None":
        """Return a grant of the calling thread or task that blocks a wait for these names, if any."""
        return next((grant for grant in grants_of(engine.runtime.caller()) if grant.blocks(engine, names, until)), None)

    def blocks(self, engine: Engine, names: Sequence[str], until: float) -> bool:
        """Tell whether its owner gets none of these names before it releases this grant, or until the deadline."""
        if self.engine is not engine or self.home != engine.here() or self.lost:
            return False
        if set(names).isdisjoint(self.request.names):
            return False
        return self.renewed or self.remaining() >= until - engine.runtime.now()

    # --- the lease -----------------------------------------------------------------------------------------------

    @property
    def lost(self) -> bool:
        """Whether the grant has ended by anything but `release` (L8)."""
        return not self.released and self.lease.lost

    def remaining(self) -> float:
        """Return the seconds for which the grant lasts at least (L7)."""
        if self.released or self.lease.revoked:
            return 0.0
        return max(0.0, self.lease.ends - self.lease.now())

    async def extend(self) -> None:
        """Extend the grant to its full `ttl` from now."""
        if self.released:
            raise LeaseLostError(f"extend {self}: it was released")
        if self.lease.revoked:
            raise self.give_up("extend")
        since, kept = await self.engine.call_timed(f"extend {self}", self._driver.extend, [self.request])
        if not all(kept) or self.lease.revoked:  # even if it was marked lost during the request
            raise self.give_up("extend")
        self.lease.confirm(since, self.request.ttl)

    async def release(self) -> None:
        """Release the lock; a repetition changes nothing."""
        if self.released:
            return
        self.engine.check_home()
        self.engine.renewer.discard(self.lease)
        self.hand_over()  # from now on it ends by itself, whatever comes of this
        self._releases += 1
        try:
            kept = await self._release()
        except BackendError as error:
            if self.lease.lost:  # the lease ended while the backend was unavailable
                raise self.give_up("release") from error
            raise
        if not kept and self._releases > 1:  # another call, concurrent or cancelled, may have released it
            kept = not self.lease.lost
        if not kept or self.lease.revoked:
            raise self.give_up("release")
        self.released = True

    async def _release(self) -> bool:
        """End the grant; return whether it still existed. After a lost reply, return whether it has time left.

        While the backend is unavailable the request is repeated, for `retry_for` seconds from the first one, and until
        the lease ends at the latest.
        """
        release, request = self._driver.release, self.request
        until = self.engine.runtime.now() + self.engine.retry_for
        try:
            return await self.engine.call(self._releasing, release, request, again=False, until=self._deadline())
        except OutcomeUnknownError:
            until = min(until, self._deadline())
            await self.engine.call(self._releasing, release, request, again=True, until=until)
            return not self.lease.lost

    def _deadline(self) -> float:
        """Return the end of the lease on the runtime's clock for waits."""
        left = self.remaining()
        return self.engine.runtime.now() + left  # the clock is read last, so the result is never too early

    def _releasing(self, _: LockRequest) -> str:
        return f"release {self}"

    def abandon(self) -> None:
        """Release, without waiting, what may be left of a lost grant: some of its names, or an unconfirmed grant."""

        async def release() -> None:
            with contextlib.suppress(AilfError):
                await self._driver.release(self.request)

        self.engine.runtime.spawn(release, name="ailf-abandon")

    def give_up(self, verb: str) -> LeaseLostError:
        """Mark the grant as lost and return the error to raise. `verb` says what was to be done with it."""
        self.lease.revoked = True
        self.engine.renewer.discard(self.lease)
        self.lease.observe_lost(self.engine.instruments, f"it was found lost: {verb}")
        return LeaseLostError(
            f"{verb} {self}: it is lost, so another holder may have the lock; nothing was changed. Let the resource "
            "that the lock protects reject a fence lower than the highest it has seen"
        )

    def __str__(self) -> str:
        return f"{self.lease} (fence {self.fence})"

    def log_fields(self) -> Fields:
        """Return the fields of a record of the log that is about it."""
        return {"backend": self.engine.driver.url, **self.lease.log_fields()}


class _LeaseBase(msgspec.Struct, eq=False, weakref=True):
    """The base of `Lease` and `AsyncLease`: the attributes."""

    _flow: LeaseFlow

    @property
    def name(self) -> str:
        """The name of the lock; several names are joined by ``+``."""
        return " + ".join(self._flow.request.names)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that are locked, sorted."""
        return self._flow.request.names

    @property
    def token(self) -> str:
        """The random text that proves to the backend whose grant it is; each lease has its own."""
        return self._flow.request.token

    @property
    def fence(self) -> int:
        """The fencing token: higher than that of every earlier lease. Pass it to the protected resource."""
        return self._flow.fence

    @property
    def lost(self) -> bool:
        """Whether the lease has ended by anything but `release`; True at its local deadline at the latest."""
        return self._flow.lost

    def remaining(self) -> float:
        """Return the seconds for which the lease lasts at least, counted from before the request was sent."""
        return self._flow.remaining()

    def hand_over(self) -> Self:
        """Return the lease, to be released by another thread or task than the one that acquired it.

        Until then the lock belongs to the one that acquired it: if that waits for the lock again, it gets
        `DeadlockError`, as nobody else would release it. After this it waits for the other one.
        """
        self._flow.hand_over()
        return self

    def __repr__(self) -> str:
        state = "released" if self._flow.released else "lost" if self.lost else f"{self.remaining():.1f} s left"
        return f"<{type(self).__name__} {self.name!r} fence {self.fence}, {state}>"


class Lease(_LeaseBase):
    """The lease of an acquired lock: renewed until it is released, unless the lock has ``renew=False``.

    Example:
        >>> import ailf
        >>> with ailf.connect("memory://") as backend:
        ...     lease = backend.lock("report").acquire(timeout=5)
        ...     lease.extend()
        ...     lease.release()
    """

    def extend(self) -> None:
        """Let the lease end ``ttl`` seconds from now.

        Raises:
            LeaseLostError: The lease had ended or was released; nothing was changed.
            BackendError: The backend couldn't do it.
        """
        run(self._flow.extend())

    def release(self) -> None:
        """Release the lock; a repetition changes nothing.

        Raises:
            LeaseLostError: The lease had ended before; nothing was changed.
            BackendError: The backend couldn't do it. The lease ends by itself after ``ttl`` seconds at the latest.
        """
        run(self._flow.release())


class AsyncLease(_LeaseBase):
    """The lease of an acquired lock: renewed until it is released, unless the lock has ``renew=False``.

    Example:
        >>> import asyncio, ailf
        >>> async def main() -> None:
        ...     async with ailf.connect_async("memory://") as backend:
        ...         lease = await backend.lock("report").acquire(timeout=5)
        ...         await lease.extend()
        ...         await lease.release()
        >>> asyncio.run(main())
    """

    async def extend(self) -> None:
        """Let the lease end ``ttl`` seconds from now.

        Raises:
            LeaseLostError: The lease had ended or was released; nothing was changed.
            BackendError: The backend couldn't do it.
        """
        await self._flow.extend()

    async def release(self) -> None:
        """Release the lock; a repetition changes nothing.

        Raises:
            LeaseLostError: The lease had ended before; nothing was changed.
            BackendError: The backend couldn't do it. The lease ends by itself after ``ttl`` seconds at the latest.
        """
        await self._flow.release()
