"""Getting a lock: one try, or waiting in line (`ailf.engine.wait_queue`).

Of those in one process that wait for the same lock only the first stands in line, unless the lock is fair and
everybody's place counts.
"""

import logging
from collections.abc import Iterable

import attrs

from ailf.checks import check_count, check_name, check_seconds, valid_count, valid_flag, valid_seconds
from ailf.driver import Capability, Denied, Granted, LockRequest, WaiterInfo
from ailf.engine import AWAY, Engine
from ailf.engine.wait_queue import WITHDRAW, Outage, wait_in_queue
from ailf.errors import AilfError, InvalidArgumentError, LockTimeoutError
from ailf.lock.lease import LeaseFlow, LockGrantLease
from ailf.values import LockInfo

__all__ = ["LockFlow", "LockOptions", "require_locks"]

log = logging.getLogger("ailf.lock")


def _names(names: Iterable[object]) -> tuple[str, ...]:
    found = tuple(sorted({check_name("lock", name) for name in names}))
    if not found:
        raise InvalidArgumentError("name the lock, or several to have at once")
    return found


@attrs.frozen(kw_only=True)
class LockOptions:
    """What a lock is; see `Lock`."""

    names: tuple[str, ...] = attrs.field(converter=_names, kw_only=False)
    ttl: float = attrs.field(validator=valid_seconds)
    permits: int = attrs.field(validator=valid_count)
    fair: bool = attrs.field(validator=valid_flag)
    renew: bool = attrs.field(validator=valid_flag)


def require_locks(engine: Engine, names: Iterable[object]) -> None:
    """Raise `UnsupportedError` where the backend has no locks, or none of several names (B2)."""
    engine.require(Capability.LOCK, "locks")
    if len(_names(names)) > 1:
        engine.require(Capability.SEVERAL_LOCKS, "locks of several names")


class LockFlow:
    """The one text of both flavours."""

    def __init__(self, engine: Engine, options: LockOptions) -> None:
        require_locks(engine, options.names)
        self.engine = engine
        self.names = options.names
        self._options = options
        self._driver = engine.driver.lock()
        self._acquiring = f"acquire {self}"

    def __str__(self) -> str:
        return f"lock {' + '.join(map(repr, self.names))}"

    def _request_for(self, token: str, waiter: WaiterInfo | None = None) -> LockRequest:
        options = self._options
        return LockRequest(self.names, token, options.ttl, options.permits, options.fair, waiter)

    async def _try(self, request: LockRequest, until: float | None = None) -> LeaseFlow | Denied:
        """Bid once; sent again after a lost answer it is the same bid (L4)."""
        since, reply = await self.engine.call_timed(self._acquiring, self._driver.acquire, request, until=until)
        if not isinstance(reply, Granted):
            return reply
        hold = LockGrantLease(request, since, self.engine.runtime.lease_now)
        grant = LeaseFlow(self.engine, request, reply.fence, hold, self._driver)
        self.engine.driver.watch(request.token, hold)
        if self._options.renew:  # from here on only: where Ctrl-C comes before, or drops the grant, nothing is renewed
            self.engine.renewer.add([hold])
        return grant

    async def try_acquire(self, until: float | None = None) -> LeaseFlow | None:
        request = self._request_for(self.engine.token())
        try:
            found = await self._try(request, until)
        except AWAY:
            self.engine.runtime.spawn(
                lambda: self._withdraw(request), name="ailf-withdraw"
            )  # the caller's time is over
            raise
        except BaseException:
            await self._withdraw(request)
            raise
        return found if isinstance(found, LeaseFlow) else None

    async def _try_first(self, until: float) -> LeaseFlow | None:
        """Bid without a place in line, until the backend answers: that costs one round trip where the lock is free."""
        request = self._request_for(self.engine.token())
        try:
            try:
                found = await self._try(request, until)
            except AWAY as error:
                found = await Outage(self.engine, self._acquiring, until).ask(lambda: self._try(request, until), error)
        except AWAY:
            self.engine.runtime.spawn(
                lambda: self._withdraw(request), name="ailf-withdraw"
            )  # the caller's time is over
            raise
        except BaseException:
            await self._withdraw(request)
            raise
        return found if isinstance(found, LeaseFlow) else None

    async def acquire(self, timeout: float | None) -> LeaseFlow:
        if timeout is not None:
            check_seconds("timeout", timeout)
        if timeout == 0:
            found = await self.try_acquire(until=0.0)
            if found is None:
                raise self._too_late(timeout)
            return found
        until = float("inf") if timeout is None else self.engine.runtime.now() + timeout
        try:
            found = await self._acquire(until)
        except AWAY as error:
            raise self._too_late(timeout, f"the backend is away ({error})") from error
        if found is None:
            raise self._too_late(timeout)
        return found

    async def _acquire(self, until: float) -> LeaseFlow | None:
        """Try once, then wait in the queue; return None when the time is over.

        Of the callers in this process that want the same names, one at a time waits at the backend.
        """
        local = self.engine.local_queue(self.names)
        if local.free() and not (self._options.fair and self.engine.reply_inbox.ready):
            found = await self._try_first(until)
            if found is not None:
                return found
        if self._options.fair:
            return await self._wait(until)
        slot = await local.take(until - self.engine.runtime.now())
        if slot is None:
            return None
        try:
            return await self._wait(until)
        finally:
            local.release(slot)

    async def _wait(self, until: float) -> LeaseFlow | None:
        """Stand in line."""
        return await wait_in_queue(
            self.engine,
            self._acquiring,
            lambda token, waiter: self._try(self._request_for(token, waiter), until),
            lambda token: self._withdraw(self._request_for(token)),
            until,
        )

    async def _withdraw(self, request: LockRequest) -> None:
        """Leave the line, and give back what may have been granted meanwhile (L10)."""

        async def release() -> None:
            try:
                await self._driver.release(request)
            except AWAY as error:
                self.engine.outages.failed(f"withdraw from {self}", error)
            except AilfError as error:
                log.warning("%s: could not be withdrawn from; what was granted ends by itself: %s", self, error)

        await self.engine.runtime.single_flight().run(release, WITHDRAW)

    def _too_late(self, timeout: float | None, why: str = "another holder kept it") -> LockTimeoutError:
        return LockTimeoutError(f"acquire {self}: not within {timeout:g} s; {why}")

    async def inspect(self) -> LockInfo:
        return await self.engine.call(f"inspect {self}", self._driver.inspect, self._only(), again=True)

    async def break_(self, fence: int) -> bool:
        check_count("fence", fence)
        return await self.engine.call(f"break {self}", self._driver.break_, self._only(), fence, again=True)

    def _only(self) -> str:
        if len(self.names) > 1:
            raise InvalidArgumentError(f"{self} has several names; look at each on its own")
        return self.names[0]
