"""Acquiring a lock: one attempt, or a wait in the backend's wait queue (`ailf.engine.wait_queue`).

Of the callers in one process that wait for the same names, only the first waits at the backend. The callers of a fair
lock all wait there, as their order counts.
"""

import asyncio
from collections.abc import Iterable

import attrs

from ailf.checks import check_count, check_name, check_seconds, valid_count, valid_flag, valid_seconds
from ailf.driver import Capability, Denied, Granted, LockRequest, WaiterInfo
from ailf.engine import AWAY, Engine
from ailf.engine.wait_queue import WITHDRAW, Outage, wait_in_queue
from ailf.errors import AilfError, DeadlockError, InvalidArgumentError, LockTimeoutError
from ailf.lock.lease import LeaseFlow, LockGrantLease
from ailf.lock.owner import own
from ailf.logs import Fields, Log
from ailf.values import LockInfo

__all__ = ["LockFlow", "LockOptions", "require_locks"]

log = Log("ailf.lock")

_PASSES = 3
"""Passes of the event loop in which a generator that was dropped has ended, if it awaits nothing meanwhile."""

_HELD = "another holder kept it. Raise the timeout, or call inspect() for the fences of its holders"


def _names(names: Iterable[object]) -> tuple[str, ...]:
    checked = tuple(sorted({check_name("lock", name) for name in names}))
    if not checked:
        raise InvalidArgumentError("a lock needs a name, or several names to lock at once")
    return checked


@attrs.frozen(kw_only=True)
class LockOptions:
    """The options of a lock, checked; see `Lock`."""

    names: tuple[str, ...] = attrs.field(converter=_names, kw_only=False)
    ttl: float = attrs.field(validator=valid_seconds)
    permits: int | None = attrs.field(validator=attrs.validators.optional(valid_count))
    fair: bool = attrs.field(validator=valid_flag)
    renew: bool = attrs.field(validator=valid_flag)


def require_locks(engine: Engine, names: Iterable[object]) -> None:
    """Raise `UnsupportedError` if the backend has no locks, or no locks of several names (B2)."""
    engine.require(Capability.LOCK, "locks")
    if len(_names(names)) > 1:
        engine.require(Capability.SEVERAL_LOCKS, "locks of several names")


class LockFlow:
    """The implementation of `Lock` and `AsyncLock`."""

    def __init__(self, engine: Engine, options: LockOptions) -> None:
        require_locks(engine, options.names)
        self.engine = engine
        self.names = options.names
        self._options = options
        self._permits = 1 if options.permits is None else options.permits
        self._driver = engine.driver.lock()
        self._acquiring = f"acquire {self}"

    def __str__(self) -> str:
        return f"lock {' + '.join(map(repr, self.names))}"

    def log_fields(self) -> Fields:
        """Return the fields of a record of the log that is about it."""
        return {"backend": self.engine.driver.url, "lock": " + ".join(self.names)}

    def _request_for(self, token: str, waiter: WaiterInfo | None = None) -> LockRequest:
        options = self._options
        return LockRequest(self.names, token, options.ttl, self._permits, options.fair, waiter)

    async def _try(self, request: LockRequest, until: float | None = None) -> LeaseFlow | Denied:
        """Make one attempt. The token makes it repeatable: after a lost reply the request is sent again (L4)."""
        since, reply = await self.engine.call_timed(self._acquiring, self._driver.acquire, request, until=until)
        if not isinstance(reply, Granted):
            return reply
        lease = LockGrantLease(request, since, self.engine.runtime.lease_now)
        engine, renewed = self.engine, self._options.renew
        grant = LeaseFlow(engine, request, reply.fence, lease, self._driver, renewed, engine.home)
        engine.driver.watch(request.token, lease)
        if self._options.permits is None:
            grant.owned = own(engine.runtime.caller(), request.token, grant)
        if renewed:  # last: if Ctrl-C comes before, no code has the grant, and nothing may renew it
            engine.renewer.add([lease])
        return grant

    async def try_acquire(self, until: float | None = None) -> LeaseFlow | None:
        """Make one attempt without a place in the queue; with a deadline it waits out an outage.

        A free lock takes one round trip.
        """
        request = self._request_for(self.engine.token())
        try:
            try:
                reply = await self._try(request, until)
            except AWAY as error:
                if until is None:
                    raise
                reply = await Outage(self.engine, self._acquiring, until).ask(lambda: self._try(request, until), error)
        except AWAY:
            self._spawn_withdraw(request)
            raise
        except BaseException:
            await self._withdraw(request)
            raise
        return reply if isinstance(reply, LeaseFlow) else None

    async def acquire(self, timeout: float | None) -> LeaseFlow:
        if timeout is not None:
            check_seconds("timeout", timeout)
        acquiring, instruments = self._acquire_within(timeout), self.engine.instruments
        if not instruments.waited:
            return await acquiring
        return await instruments.observe_waiting("lock", " + ".join(self.names), "", acquiring, self.engine.runtime.now)

    async def _acquire_within(self, timeout: float | None) -> LeaseFlow:
        """Acquire within `timeout` seconds.

        Raises:
            LockTimeoutError: The time has passed.
        """
        if timeout == 0:
            grant = await self.try_acquire(until=0.0)
            if grant is None:
                raise self._too_late(timeout)
            return grant
        until = float("inf") if timeout is None else self.engine.runtime.now() + timeout
        try:
            grant = await self._acquire(until)
        except AWAY as error:
            raise self._too_late(timeout, f"the backend is unavailable ({error})") from error
        if grant is None:
            raise self._too_late(timeout)
        return grant

    async def _acquire(self, until: float) -> LeaseFlow | None:
        """Try once, then wait in the queue; return None when the time has passed.

        Of the callers in this process that want the same names, one at a time waits at the backend.

        Raises:
            DeadlockError: The caller would wait for itself.
        """
        local = self.engine.local_queue(self.names)
        if local.free() and not (self._options.fair and self.engine.reply_inbox.ready):
            grant = await self.try_acquire(until)
            if grant is not None:
                return grant
        if self._options.permits is None:
            await self._check_owner(until)
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
        """Wait in the queue at the backend."""
        return await wait_in_queue(
            self.engine,
            self._acquiring,
            lambda token, waiter: self._try(self._request_for(token, waiter), until),
            lambda token: self._withdraw(self._request_for(token)),
            until,
        )

    def _spawn_withdraw(self, request: LockRequest) -> None:
        """Withdraw without waiting for it: the caller's time is over."""
        self.engine.runtime.spawn(lambda: self._withdraw(request), name="ailf-withdraw")

    async def _withdraw(self, request: LockRequest) -> None:
        """Leave the wait queue, and release what may have been granted in the meantime (L10)."""

        async def release() -> None:
            try:
                await self._driver.release(request)
            except AWAY as error:
                self.engine.outages.failed(f"withdraw from {self}", error)
            except AilfError as error:
                log.warning(self, "a withdrawn request may stay granted until its ttl is over: %s", error)

        await self.engine.runtime.single_flight().run(release, WITHDRAW)

    async def _find_own(self, until: float) -> LeaseFlow | None:
        """Return a grant of the caller that blocks its wait, if any.

        On asyncio a generator that held the lock and was dropped may release it first, in a task of the loop's own.
        """
        owned = LeaseFlow.find_blocking(self.engine, self.names, until)
        for _ in range(_PASSES if self.engine.runtime.flavour == "asyncio" else 0):
            if owned is None:
                break
            await asyncio.sleep(0)
            owned = LeaseFlow.find_blocking(self.engine, self.names, until)
        return owned

    async def _check_owner(self, until: float) -> None:
        """Raise `DeadlockError` if the caller would wait for itself.

        Before that it asks whether the grant still stands: it may have been broken, or the backend may have lost it.
        """
        owned = await self._find_own(until)
        if owned is None or not await self._stands(owned):
            return
        caller = "thread" if self.engine.runtime.flavour == "blocking" else "task"
        held = " and ".join(repr(name) for name in owned.request.names if name in self.names)
        raise DeadlockError(
            f"can't wait for {self}: this {caller} holds {held} itself (fence {owned.fence}), so it would wait in "
            f"vain. A lock is not re-entrant: release it first. If another {caller} releases it, pass it "
            "lease.hand_over(). To ask without waiting, use try_acquire()"
        )

    async def _stands(self, owned: LeaseFlow) -> bool:
        """Tell whether the backend knows a grant for a name of this lock; while it is away, that is assumed."""
        shared = next(name for name in owned.request.names if name in self.names)
        try:
            info = await self.engine.call(f"acquire {self}", self._driver.inspect, shared, again=True)
        except AWAY:
            return True
        return any(holder.fence == owned.fence for holder in info.holders)

    def _too_late(self, timeout: float | None, why: str = _HELD) -> LockTimeoutError:
        return LockTimeoutError(f"could not acquire {self} within {timeout:g} s; {why}")

    async def inspect(self) -> LockInfo:
        return await self.engine.call(f"inspect {self}", self._driver.inspect, self._only(), again=True)

    async def locked(self) -> bool:
        asking, driver = f"inspect {self}", self._driver
        if len(self.names) == 1:
            infos = [await self.engine.call(asking, driver.inspect, self.names[0], again=True)]
        else:
            infos = await self.engine.call(asking, driver.inspect_many, self.names, again=True)
        return any(len(info.holders) >= self._permits for info in infos)

    async def break_(self, fence: int) -> bool:
        check_count("fence", fence)
        return await self.engine.call(f"break {self}", self._driver.break_, self._only(), fence, again=True)

    def _only(self) -> str:
        if len(self.names) > 1:
            raise InvalidArgumentError(f"{self} has several names: inspect or break a lock of each name alone")
        return self.names[0]
