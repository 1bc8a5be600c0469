"""A granted lock: `Lease` and `AsyncLease`, two thin faces of one state, kept alive by the renewal thread."""

import contextlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import msgspec

from ailf.driver import BackendDriver, LockDriver, LockRequest
from ailf.engine import Engine
from ailf.engine.renewal import RenewedLease
from ailf.errors import AilfError, BackendError, LeaseLostError, OutcomeUnknownError
from ailf.runtime import run
from ailf.runtime.clock import SystemClock

__all__ = ["AsyncLease", "Lease", "LeaseFlow", "LockGrantLease"]


class LockGrantLease(RenewedLease):
    """The grant of a lock, as the renewal thread keeps it.

    Attributes:
        bid: What was granted.
    """

    __slots__ = ("__weakref__", "request")

    def __init__(self, request: LockRequest, since: float, now: Callable[[], float] = SystemClock.lease_time) -> None:
        self.request = request
        super().__init__(request.ttl, since, now=now)

    @property
    def batch(self) -> Hashable:
        """What one request can renew: all of them."""
        return None

    @classmethod
    async def renew(cls, driver: BackendDriver, holds: Sequence[Any]) -> list[bool]:
        """Renew them all in one round trip."""
        return await driver.lock().extend([hold.request for hold in holds])

    def __str__(self) -> str:
        return f"the lease on lock {' + '.join(map(repr, self.request.names))}"


class LeaseFlow(msgspec.Struct, eq=False):
    """The one text of both flavours: a grant, until it is released or lost.

    Attributes:
        engine: The backend's.
        bid: What was granted.
        fence: Its fence.
        hold: Its lease.
        released: Whether it was given back.
    """

    engine: Engine
    request: LockRequest
    fence: int
    hold: LockGrantLease
    _driver: LockDriver
    released: bool = False
    _asked: int = 0  # how often to release it

    def __del__(self) -> None:
        """Renew it no more: nobody has it any longer, so it ends by itself."""
        self.engine.renewer.discard(self.hold)

    @property
    def lost(self) -> bool:
        """Whether it has ended by anything but `release` (L8)."""
        return not self.released and self.hold.lost

    def remaining(self) -> float:
        """Return the seconds for which it certainly lasts (L7)."""
        if self.released or self.hold.revoked:
            return 0.0
        return max(0.0, self.hold.ends - self.hold.now())

    async def extend(self) -> None:
        """Begin its time anew."""
        if self.released:
            raise LeaseLostError(f"extend {self}: it was released")
        if self.hold.revoked:
            raise self.give_up("extend")
        since, kept = await self.engine.call_timed(f"extend {self}", self._driver.extend, [self.request])
        if not all(kept) or self.hold.revoked:  # called lost while the request was under way: it stays that
            raise self.give_up("extend")
        self.hold.confirm(since, self.request.ttl)

    async def release(self) -> None:
        """Give the lock back; again changes nothing."""
        if self.released:
            return
        self.engine.check_home()
        self.engine.renewer.discard(self.hold)
        self._asked += 1
        try:
            kept = await self._release()
        except BackendError as error:
            if self.hold.lost:  # it ended while the backend was away
                raise self.give_up("release") from error
            raise
        if not kept and self._asked > 1:  # another call, at the same time or cancelled, may have been the one
            kept = not self.hold.lost
        if not kept or self.hold.revoked:
            raise self.give_up("release")
        self.released = True

    async def _release(self) -> bool:
        """End the grant; return whether it was still there. After a lost answer nobody can tell, and it has ended.

        While the backend is away it is tried again for as long as the lease lasts, and no longer.
        """
        release, request = self._driver.release, self.request
        try:
            return await self.engine.call(self._releasing, release, request, again=False, until=self._deadline())
        except OutcomeUnknownError:
            await self.engine.call(self._releasing, release, request, again=True, until=self._deadline())
            return not self.hold.lost

    def _deadline(self) -> float:
        """Return when it is lost, on the runtime's clock for waits."""
        left = self.remaining()
        return self.engine.runtime.now() + left  # in this order, so that it is not before the lease's own end

    def _releasing(self, _: LockRequest) -> str:
        return f"release {self}"

    def abandon(self) -> None:
        """Give back what may be left of a lost grant, without waiting: some of its names, or what nobody confirmed."""

        async def release() -> None:
            with contextlib.suppress(AilfError):
                await self._driver.release(self.request)

        self.engine.runtime.spawn(release, name="ailf-abandon")

    def give_up(self, asked: str) -> LeaseLostError:
        """Take note that it is lost, and return what to raise."""
        self.hold.revoked = True
        self.engine.renewer.discard(self.hold)
        return LeaseLostError(
            f"{asked} {self}: it is lost, and somebody else may have the lock; nothing was changed. Let what the lock "
            "protects refuse a fence that is lower than one it has seen"
        )

    def __str__(self) -> str:
        return f"{self.hold} (fence {self.fence})"


class _Shown(msgspec.Struct, eq=False, weakref=True):
    """What both faces show."""

    _flow: LeaseFlow

    @property
    def name(self) -> str:
        """The name of the lock; of several, all, with ``+`` between."""
        return " + ".join(self._flow.request.names)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that it holds, sorted."""
        return self._flow.request.names

    @property
    def token(self) -> str:
        """What proves to the backend that it is ours; random, of this lease alone."""
        return self._flow.request.token

    @property
    def fence(self) -> int:
        """The fencing token: higher than that of every earlier lease (L2). Pass it to what the lock protects."""
        return self._flow.fence

    @property
    def lost(self) -> bool:
        """Whether it has ended by anything but `release`: true by our own deadline at the latest (L8)."""
        return self._flow.lost

    def remaining(self) -> float:
        """Return the seconds for which it certainly lasts, counted from before it was asked for (L7)."""
        return self._flow.remaining()

    def __repr__(self) -> str:
        state = "released" if self._flow.released else "lost" if self.lost else f"{self.remaining():.1f} s left"
        return f"<{type(self).__name__} {self.name!r} fence {self.fence}, {state}>"


class Lease(_Shown):
    """A lock that is yours for a while, renewed until you release it."""

    def extend(self) -> None:
        """Begin its time anew: exactly ``ttl`` seconds from now (L6).

        Raises:
            LeaseLostError: It has ended; nothing was changed.
        """
        run(self._flow.extend())

    def release(self) -> None:
        """Give the lock back; again changes nothing (L4).

        Raises:
            LeaseLostError: It had ended before; nothing was changed.
        """
        run(self._flow.release())


class AsyncLease(_Shown):
    """A lock that is yours for a while, renewed until you release it."""

    async def extend(self) -> None:
        """Begin its time anew: exactly ``ttl`` seconds from now (L6).

        Raises:
            LeaseLostError: It has ended; nothing was changed.
        """
        await self._flow.extend()

    async def release(self) -> None:
        """Give the lock back; again changes nothing (L4).

        Raises:
            LeaseLostError: It had ended before; nothing was changed.
        """
        await self._flow.release()
