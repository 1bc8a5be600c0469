"""What a rate limiter allowed: `Permit` and `AsyncPermit`, two thin faces of one state, settled when all is known."""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec.structs import replace

from ailf.checks import check_count
from ailf.driver import BackendDriver, Charge, LimiterKey, LimitRequest, LimitResult, Limits, SlotLease
from ailf.engine import Engine
from ailf.engine.renewal import RenewedLease
from ailf.errors import AilfError, BackendError, InvalidArgumentError, SettledError, UnsupportedError
from ailf.limits import Concurrency
from ailf.runtime import run
from ailf.values import LimitState

__all__ = ["AsyncPermit", "Iteration", "LeasedPermitFlow", "Permit", "PermitFlow"]

log = logging.getLogger("ailf.rate_limiter")


class PermitLease(RenewedLease):
    """The places that a call has of limits of concurrency, as the renewal thread keeps them.

    Attributes:
        slots: The places.
    """

    __slots__ = ("slots",)

    def __init__(self, slots: SlotLease, since: float, now: Callable[[], float]) -> None:
        self.slots = slots
        super().__init__(min(limit.ttl for _, limit in slots.limits), since, now=now)

    @property
    def batch(self) -> Hashable:
        """What one request can renew: all of them."""
        return None

    @classmethod
    async def renew(cls, driver: BackendDriver, holds: Sequence[Any]) -> list[bool]:
        """Renew them all in one round trip."""
        return await driver.rate_limiter().extend([hold.slots for hold in holds])

    def __str__(self) -> str:
        limiter_key = self.slots.limiter_key
        return f"the place of a call in rate limiter {limiter_key.limiter!r}, key {limiter_key.key!r}"


class PermitFlow(msgspec.Struct, eq=False):
    """The one text of both flavours: what a call was charged, until that is settled.

    Attributes:
        engine: The backend's.
        limits: The limits that were asked.
        demand: What was asked for.
        ruling: What the backend said.
        ready_at: When the call may begin, on this process's clock; 0 where it needn't wait.
    """

    engine: Engine
    limits: Limits
    request: LimitRequest
    result: LimitResult
    ready_at: float = 0.0
    _settled: dict[str, int] | None = None
    _hold: PermitLease | None = None

    def __str__(self) -> str:
        return f"a call of rate limiter {self.limiter_key.limiter!r}, key {self.limiter_key.key!r}"

    @property
    def limiter_key(self) -> LimiterKey:
        """What was charged."""
        return self.request.limiter_key

    @property
    def lost(self) -> bool:
        """Whether its place has ended before it was given back."""
        return self._hold is not None and self._hold.lost

    async def settle(self, actual: Mapping[str, int]) -> None:
        """True it up, once."""
        told = {name: check_count(f"the actual cost of {name!r}", cost, least=0) for name, cost in actual.items()}
        rates = self._rates()
        if unknown := set(told) - set(rates):
            known = ", ".join(map(repr, rates)) or "nothing"
            raise InvalidArgumentError(
                f"settle {self}: there is no cost {min(unknown)!r}; what can be settled is {known}"
            )
        if self._settled is None or self._settled != told:
            await self._adjust("settle", rates, told)

    async def cancel(self) -> None:
        """Give back everything."""
        rates = self._rates()
        try:
            await self._adjust("cancel", rates, dict.fromkeys(rates, 0))
        finally:
            await self.release()

    def _rates(self) -> dict[str, Charge]:
        """Return what can be settled, by name; places are given back."""
        receipts = self.result.receipts or ((),) * len(self.limits)
        told = zip(self.limits, self.request.costs, receipts, strict=True)
        charges = [Charge(name, limit, cost, receipt) for (name, limit), cost, receipt in told]
        return {each.name: each for each in charges if not each.limit.leased}

    async def _adjust(self, what: str, charges: Mapping[str, Charge], actual: dict[str, int]) -> None:
        if self._settled is not None:
            raise SettledError(f"{what} {self}: it was settled already, as {self._settled}")
        told = [replace(charges[name], actual=cost) for name, cost in actual.items()]
        changed = [each for each in told if each.actual != each.cost]
        # What may have been given back is not given back again; what was charged in addition may be charged twice.
        again = all(each.actual > each.cost for each in changed)
        if self.limiter_key.no_refunds and not again:
            raise UnsupportedError(
                f"{what} {self}: nothing is given back by a limiter that remembers denials (cache_denials), as they "
                "would then be wrong"
            )
        self.engine.check_home()
        self._settled = actual
        if not changed or not self.result.receipts:  # it was not charged: the backend could not be asked
            return
        settle = self.engine.driver.rate_limiter().settle
        try:
            await self.engine.call(f"{what} {self}", settle, self.limiter_key, self.request.token, changed, again=again)
        except BackendError as error:
            if not error.maybe_applied:
                self._settled = None
            raise

    async def release(self) -> None:
        """Give back its places, once."""
        if self._hold is not None:
            self.engine.check_home()
            self.engine.renewer.discard(self._hold)  # before it is forgotten: Ctrl-C may come in between
        hold, self._hold = self._hold, None
        if hold is not None:
            settle = self.engine.driver.rate_limiter().settle
            told = (self.limiter_key, self.request.token, self._places())
            try:
                await self.engine.call(f"release {self}", settle, *told, again=True)
            except BackendError:
                self._hold = hold  # it may be tried again; renewed it is no more
                raise

    def _places(self) -> list[Charge]:
        told = zip(self.limits, self.request.costs, strict=True)
        return [Charge(*limit, cost) for limit, cost in told if cost and limit[1].leased]

    async def give_back(self) -> None:
        """Give back its places while the backend is being closed, once."""
        hold, self._hold = self._hold, None
        if hold is not None:
            self.engine.renewer.discard(hold)
            await self.engine.driver.rate_limiter().settle(self.limiter_key, self.request.token, self._places())

    async def leave(self) -> None:
        """Give back its places at the end of a block; if that fails they end by themselves, and nobody is disturbed."""
        try:
            await self.release()
        except AilfError as error:
            log.warning("%s; its place is free again after its ttl", error)

    async def ready(self) -> None:
        """Wait until a reservation may begin."""
        self.engine.check_open()
        while (left := self.ready_at - self.engine.runtime.now()) > 0:
            if await self.engine.pause(left):
                self.engine.check_open()


class LeasedPermitFlow(PermitFlow, eq=False):
    """A permit that may have places in limits of concurrency."""

    def renew_slots(self, since: float) -> None:
        """Renew the places that it has, since the time when they were asked for."""
        told = zip(self.limits, self.request.costs, strict=True)
        slots = tuple((name, limit) for (name, limit), cost in told if cost and isinstance(limit, Concurrency))
        if slots:
            lease = SlotLease(self.limiter_key, self.request.token, slots)
            self._hold = PermitLease(lease, since, self.engine.runtime.lease_now)
            self.engine.renewer.add([self._hold])

    def __del__(self) -> None:
        """Renew its places no more: nobody has it any longer, so they end by themselves."""
        if self._hold is not None:
            self.engine.renewer.discard(self._hold)


class Iteration:
    """A generator that holds a permit until it ends: a backend that is closed before gives its places back (B3)."""

    def __init__(self) -> None:
        self._permit: PermitFlow | None = None

    def holds(self, permit: "Permit | AsyncPermit") -> None:
        """It has its permit now."""
        self._permit = permit._flow  # noqa: SLF001 - the state under both faces

    def stop(self) -> None:
        """Nothing waits in it."""

    async def close(self) -> None:
        """Give back its places."""
        if self._permit is not None:
            try:
                await self._permit.give_back()
            except AilfError as error:
                log.warning("%s; its place is free again after its ttl", error)


class _Shown(msgspec.Struct, eq=False, weakref=True):
    """What both faces show."""

    _flow: PermitFlow

    @property
    def key(self) -> str:
        """The key that was charged."""
        return self._flow.limiter_key.key

    @property
    def limits(self) -> Mapping[str, LimitState]:
        """How each limit stood right after this was charged."""
        return {name: level for (name, _), level in zip(self._flow.limits, self._flow.result.levels, strict=False)}

    @property
    def at(self) -> float:
        """The backend's time of the decision, in seconds since 1970; 0 where it was not asked."""
        return self._flow.result.at

    @property
    def ready_at(self) -> float:
        """When the call may begin, on `time.monotonic`'s clock, plus what a `ManualClock` was advanced; 0: at once."""
        return self._flow.ready_at

    @property
    def lost(self) -> bool:
        """Whether its place in a limit of concurrency ended before it was given back; somebody else may have it."""
        return self._flow.lost

    def __repr__(self) -> str:
        told = zip(self._flow.limits, self._flow.request.costs, strict=True)
        costs = ", ".join(f"{name or 'cost'}={cost}" for (name, _), cost in told if cost)
        return f"<{type(self).__name__} {self.key!r} {costs}>"


class Permit(_Shown):
    """Leave to make a call. A context manager: on leaving, places in limits of concurrency are given back."""

    def settle(self, **actual: int) -> None:
        """True up what was charged to what the call really cost, as though that had been charged at once (R7).

        What is not named stays as it is. What is given back is never more than was charged; what comes on top is
        charged even where it doesn't fit, and later calls wait for it. A call that was allowed without the backend
        (``on_backend_error``) was not charged, and settling it does nothing.

        Arguments:
            actual: The cost by limit; ``cost`` for an only limit.

        Raises:
            InvalidArgumentError: The limiter has no such limit, or it is one of concurrency.
            SettledError: It was settled already, in another way.
            OutcomeUnknownError: No answer came; it is not repeated, as a refund might count twice.
        """
        run(self._flow.settle(_unnamed(actual)))

    def cancel(self) -> None:
        """Give back everything: the call was not made.

        Raises:
            SettledError: It was settled already.
        """
        run(self._flow.cancel())

    def release(self) -> None:
        """Give back its places in limits of concurrency; again changes nothing."""
        run(self._flow.release())

    def wait(self) -> None:
        """Return when a reserved call may begin."""
        run(self._flow.ready())

    def __enter__(self) -> Self:
        """Return the permit itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Give back its places."""
        run(self._flow.leave())


class AsyncPermit(_Shown):
    """Leave to make a call. A context manager: on leaving, places in limits of concurrency are given back."""

    async def settle(self, **actual: int) -> None:
        """True up what was charged to what the call really cost, as though that had been charged at once (R7).

        What is not named stays as it is. What is given back is never more than was charged; what comes on top is
        charged even where it doesn't fit, and later calls wait for it. A call that was allowed without the backend
        (``on_backend_error``) was not charged, and settling it does nothing.

        Arguments:
            actual: The cost by limit; ``cost`` for an only limit.

        Raises:
            InvalidArgumentError: The limiter has no such limit, or it is one of concurrency.
            SettledError: It was settled already, in another way.
            OutcomeUnknownError: No answer came; it is not repeated, as a refund might count twice.
        """
        await self._flow.settle(_unnamed(actual))

    async def cancel(self) -> None:
        """Give back everything: the call was not made.

        Raises:
            SettledError: It was settled already.
        """
        await self._flow.cancel()

    async def release(self) -> None:
        """Give back its places in limits of concurrency; again changes nothing."""
        await self._flow.release()

    async def wait(self) -> None:
        """Return when a reserved call may begin."""
        await self._flow.ready()

    async def __aenter__(self) -> Self:
        """Return the permit itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Give back its places."""
        await self._flow.leave()


def _unnamed(costs: Mapping[str, int]) -> dict[str, int]:
    """Return costs by the names of the limits, where an only one is "" and called ``cost``."""
    return {"" if name == "cost" else name: cost for name, cost in costs.items()}
