"""The permits of a rate limiter: `Permit` and `AsyncPermit`, both over one state (`PermitFlow`).

A permit records the charge of an allowed call. The renewal thread (`ailf.engine.renewal`) extends its slots.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec.structs import replace

from ailf.checks import check_count
from ailf.driver import BackendDriver, Charge, LimiterKey, LimitRequest, LimitResult, Limits, SlotLease
from ailf.engine import Engine
from ailf.engine.renewed_lease import RenewedLease, enumerated
from ailf.errors import AilfError, BackendError, InvalidArgumentError, SettledError, UnsupportedError
from ailf.limits import Concurrency
from ailf.logs import Fields, Log
from ailf.ratelimit.keys import describe, label
from ailf.runtime import run
from ailf.runtime.base import finish
from ailf.values import LimitState

__all__ = ["AsyncPermit", "Iteration", "LeasedPermitFlow", "Permit", "PermitFlow"]

log = Log("ailf.rate_limiter")


class PermitLease(RenewedLease):
    """The lease of a call's concurrency slots, as the renewal thread renews it.

    Attributes:
        slots: The slots, as the driver identifies them.
    """

    __slots__ = ("slots",)

    def __init__(self, slots: SlotLease, since: float, now: Callable[[], float]) -> None:
        self.slots = slots
        super().__init__(min(limit.ttl for _, limit in slots.limits), since, now=now)

    @property
    def batch(self) -> Hashable:
        """The key of what one request can renew together: None, as all slots form one batch."""
        return None

    def find_server(self, driver: BackendDriver) -> Hashable:
        """Return what identifies the server of the slots."""
        return driver.rate_limiter().server_of(self.slots.limiter_key)

    @classmethod
    async def renew(cls, driver: BackendDriver, holds: Sequence[Any]) -> list[bool]:
        """Renew the leases in one round trip; return for each whether it still existed."""
        return await driver.rate_limiter().extend([hold.slots for hold in holds])

    @classmethod
    def describe(cls, leases: Sequence["PermitLease"], count: int) -> str:
        """Return a description for the log of `count` leases, of which these are the first."""
        keys = [each.slots.limiter_key for each in leases]
        calls = enumerated([f"rate limiter {each.limiter!r}, {describe(each)}" for each in keys], count)
        return f"the lease{'s' * (count > 1)} on concurrency slots of {calls}"

    def log_fields(self) -> Fields:
        return {"key": label(self.slots.limiter_key)}


class PermitFlow(msgspec.Struct, eq=False):
    """The state of a permit, for both flavours: the charge of a call until it is settled.

    Attributes:
        engine: The backend's engine.
        limits: The limits of the limiter, by name.
        request: The request that was allowed.
        result: The result of the request.
        ready_at: When the call may begin, on the local clock; 0 if it may begin at once.
    """

    engine: Engine
    limits: Limits
    request: LimitRequest
    result: LimitResult
    ready_at: float = 0.0
    _settled: dict[str, int] | None = None
    _lease: PermitLease | None = None

    def __str__(self) -> str:
        return f"a call of rate limiter {self.limiter_key.limiter!r}, {describe(self.limiter_key)}"

    def log_fields(self) -> Fields:
        """Return the fields of a record of the log that is about it."""
        return {"backend": self.engine.driver.url, "key": label(self.limiter_key)}

    @property
    def limiter_key(self) -> LimiterKey:
        """The limiter and the key that were charged."""
        return self.request.limiter_key

    @property
    def lost(self) -> bool:
        """Whether a concurrency slot ended before it was released."""
        return self._lease is not None and self._lease.lost

    async def settle(self, actual: Mapping[str, int]) -> None:
        """Replace the charges with the actual costs, once."""
        costs = {name: check_count(f"the actual cost of {name!r}", cost, least=0) for name, cost in actual.items()}
        charges = self._settleable()
        if self.limiter_key.root is not None and "" in costs and "" not in charges:
            cost = costs.pop("")
            costs = dict.fromkeys(charges, cost) | costs
        if unknown := set(costs) - set(charges):
            names = ", ".join(map(repr, charges)) or "none"
            raise InvalidArgumentError(
                f"settle {self}: there is no cost {min(unknown)!r} to settle; the costs to settle are {names}"
            )
        if self._settled is None or self._settled != costs:
            await self._adjust("settle", charges, costs)

    async def cancel(self) -> None:
        """Refund all charges and release the slots."""
        charges = self._settleable()
        try:
            await self._adjust("cancel", charges, dict.fromkeys(charges, 0))
        finally:
            await self.release()

    def _settleable(self) -> dict[str, Charge]:
        """Return the charges that can be settled, by limit; concurrency slots are released instead."""
        receipts = self.result.receipts or ((),) * len(self.limits)
        charged = zip(self.limits, self.request.costs, receipts, strict=True)
        return {
            name: Charge(name, limit, cost, receipt) for (name, limit), cost, receipt in charged if not limit.leased
        }

    async def _adjust(self, what: str, charges: Mapping[str, Charge], actual: dict[str, int]) -> None:
        if self._settled is not None:
            raise SettledError(f"{what} {self}: it was settled before, as {self._settled}; a call is settled once")
        settled = [replace(charges[name], actual=cost) for name, cost in actual.items()]
        changed = [charge for charge in settled if charge.actual != charge.cost]
        # A refund that may have been applied is not repeated; an additional charge is, at the risk of counting twice.
        again = all(charge.actual > charge.cost for charge in changed)
        if self.limiter_key.no_refunds and not again:
            raise UnsupportedError(
                f"{what} {self}: a limiter with cache_denials gives no refunds, as they would invalidate the denials "
                "that it remembers"
            )
        self.engine.check_home()
        self._settled = actual
        if not changed or not self.result.receipts:  # the same costs, or allowed without the backend
            return
        settle = self.engine.driver.rate_limiter().settle
        try:
            await self.engine.call(f"{what} {self}", settle, self.limiter_key, self.request.token, changed, again=again)
        except BackendError as error:
            if not error.maybe_applied:
                self._settled = None
            raise

    async def release(self) -> None:
        """Release the concurrency slots, once."""
        if self._lease is not None:
            self.engine.check_home()
            self.engine.renewer.discard(self._lease)  # first, as Ctrl-C may come in between
        lease, self._lease = self._lease, None
        if lease is not None:
            settle = self.engine.driver.rate_limiter().settle
            arguments = (self.limiter_key, self.request.token, self._slots())
            try:
                await self.engine.call(f"release {self}", settle, *arguments, again=True)
            except BaseException:  # a cancellation too
                self._lease = lease  # so that `release` can be repeated; it is not renewed any more
                raise

    def _slots(self) -> list[Charge]:
        charged = zip(self.limits, self.request.costs, strict=True)
        return [Charge(name, limit, cost) for (name, limit), cost in charged if cost and limit.leased]

    async def give_back(self) -> None:
        """Release the concurrency slots while the backend closes, once."""
        lease, self._lease = self._lease, None
        if lease is not None:
            self.engine.renewer.discard(lease)
            await self.engine.driver.rate_limiter().settle(self.limiter_key, self.request.token, self._slots())

    async def leave(self) -> None:
        """Release the concurrency slots at the end of a block. Only log an error of that: they expire by themselves."""
        try:
            await self.release()
        except AilfError as error:
            if not self.engine.closed:  # else the backend gives them back
                log.warning(self, "not released, so its concurrency slots are free again after their ttl: %s", error)

    async def ready(self) -> None:
        """Wait until a reservation may begin."""
        self.engine.check_open()
        while (left := self.ready_at - self.engine.runtime.now()) > 0:
            if await self.engine.pause(left):
                self.engine.check_open()


class LeasedPermitFlow(PermitFlow, eq=False):
    """The state of a permit that may have concurrency slots."""

    def renew_slots(self, since: float) -> None:
        """Renew the slots from now on; `since` is the time before they were requested."""
        charged = zip(self.limits, self.request.costs, strict=True)
        limits = tuple((name, limit) for (name, limit), cost in charged if cost and isinstance(limit, Concurrency))
        if limits:
            slots = SlotLease(self.limiter_key, self.request.token, limits)
            self._lease = PermitLease(slots, since, self.engine.runtime.lease_now)
            self.engine.renewer.add([self._lease])

    def __del__(self) -> None:
        """Stop renewing the slots of a permit that no code refers to any more, so that they end by themselves."""
        if self._lease is not None:
            self.engine.renewer.discard(self._lease)


class Iteration:
    """A generator that holds a permit until it ends. If the backend closes first, it releases the slots (B3)."""

    def __init__(self) -> None:
        self._permit: PermitFlow | None = None

    def holds(self, permit: "Permit | AsyncPermit") -> None:
        """Note the permit that the generator has acquired."""
        self._permit = permit._flow  # noqa: SLF001 - the state of both classes

    def stop(self) -> None:
        """Do nothing: no call waits in it."""

    async def close(self) -> None:
        """Release the concurrency slots."""
        if self._permit is not None:
            try:
                await self._permit.give_back()
            except AilfError as error:
                log.warning(
                    self._permit,
                    "not released, so its concurrency slots are free again after their ttl: %s",
                    error,
                )


class _PermitBase(msgspec.Struct, eq=False, weakref=True):
    """The base of `Permit` and `AsyncPermit`: the attributes."""

    _flow: PermitFlow

    @property
    def key(self) -> str:
        """The key that was charged; "" if the call gave a key for each limit (`keys`)."""
        return self._flow.limiter_key.key

    @property
    def keys(self) -> Mapping[str, str]:
        """The key under which each limit was charged, by name."""
        charged = self._flow.limiter_key
        return dict(charged.keys) if charged.keys else {name: charged.key for name, _ in self._flow.limits}

    @property
    def limits(self) -> Mapping[str, LimitState]:
        """The state of each limit right after this charge, by name."""
        return {name: level for (name, _), level in zip(self._flow.limits, self._flow.result.levels, strict=False)}

    @property
    def at(self) -> float:
        """The backend's time of the decision, in seconds since 1970; 0 if the backend couldn't answer."""
        return self._flow.result.at

    @property
    def ready_at(self) -> float:
        """When the call may begin, in `time.monotonic` seconds plus the advance of a `ManualClock`; 0 for at once."""
        return self._flow.ready_at

    @property
    def lost(self) -> bool:
        """Whether a concurrency slot ended before it was released, so that another call may have it."""
        return self._flow.lost

    def __repr__(self) -> str:
        charged = zip(self._flow.limits, self._flow.request.costs, strict=True)
        costs = ", ".join(f"{name or 'cost'}={cost}" for (name, _), cost in charged if cost)
        return f"<{type(self).__name__} {label(self._flow.limiter_key)!r} {costs}>"


class Permit(_PermitBase):
    """The permit of an allowed call. As a context manager it releases its concurrency slots at the end.

    Example:
        >>> import ailf
        >>> with ailf.connect("memory://") as backend:
        ...     with backend.rate_limiter("llm", "8 parallel").acquire("gpt", timeout=5) as permit:
        ...         permit.key, permit.limits[""].remaining
        ('gpt', 7)
    """

    def settle(self, **actual: int) -> None:
        """Replace the charged costs with the actual ones, as though these had been charged at once.

        A limit that is not named keeps its charge. A refund is never more than the charge. A shortfall is charged even
        if it exceeds the limit, and later calls wait for it. A call that was allowed without the backend
        (``on_backend_error="allow"``) was not charged, so settling it changes nothing.

        Arguments:
            actual: The actual costs by limit; ``cost`` for an unnamed limit, and in a budget tree for each rate that is
                not named.

        Raises:
            InvalidArgumentError: The limiter has no such limit, or it is a `Concurrency`.
            SettledError: The call was settled before, with other costs.
            UnsupportedError: A cost is lower than its charge, and the limiter has ``cache_denials``.
            OutcomeUnknownError: A refund got no reply. It is not repeated, as it might count twice.
            BackendError: The backend couldn't do it.
        """
        run(self._flow.settle(_unnamed(actual)))

    def cancel(self) -> None:
        """Refund all charges and release the concurrency slots, for a call that was not made.

        Raises:
            SettledError: The call was settled or cancelled before.
            UnsupportedError: The limiter has ``cache_denials``.
        """
        run(self._flow.cancel())

    def release(self) -> None:
        """Release the concurrency slots; a repetition changes nothing."""
        run(self._flow.release())

    def wait(self) -> None:
        """Wait until a reserved call may begin."""
        run(self._flow.ready())

    def __enter__(self) -> Self:
        """Return the permit itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Release the concurrency slots."""
        run(self._flow.leave())


class AsyncPermit(_PermitBase):
    """The permit of an allowed call. As a context manager it releases its concurrency slots at the end.

    Example:
        >>> import asyncio, ailf
        >>> async def main() -> None:
        ...     async with ailf.connect_async("memory://") as backend:
        ...         async with await backend.rate_limiter("llm", "8 parallel").acquire("gpt", timeout=5) as permit:
        ...             print(permit.key, permit.limits[""].remaining)
        >>> asyncio.run(main())
        gpt 7
    """

    async def settle(self, **actual: int) -> None:
        """Replace the charged costs with the actual ones, as though these had been charged at once.

        A limit that is not named keeps its charge. A refund is never more than the charge. A shortfall is charged even
        if it exceeds the limit, and later calls wait for it. A call that was allowed without the backend
        (``on_backend_error="allow"``) was not charged, so settling it changes nothing.

        Arguments:
            actual: The actual costs by limit; ``cost`` for an unnamed limit, and in a budget tree for each rate that is
                not named.

        Raises:
            InvalidArgumentError: The limiter has no such limit, or it is a `Concurrency`.
            SettledError: The call was settled before, with other costs.
            UnsupportedError: A cost is lower than its charge, and the limiter has ``cache_denials``.
            OutcomeUnknownError: A refund got no reply. It is not repeated, as it might count twice.
            BackendError: The backend couldn't do it.
        """
        await self._flow.settle(_unnamed(actual))

    async def cancel(self) -> None:
        """Refund all charges and release the concurrency slots, for a call that was not made.

        Raises:
            SettledError: The call was settled or cancelled before.
            UnsupportedError: The limiter has ``cache_denials``.
        """
        await self._flow.cancel()

    async def release(self) -> None:
        """Release the concurrency slots; a repetition changes nothing."""
        await self._flow.release()

    async def wait(self) -> None:
        """Wait until a reserved call may begin."""
        await self._flow.ready()

    async def __aenter__(self) -> Self:
        """Return the permit itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Release the concurrency slots."""
        await finish(self._flow.leave, self._flow.engine.runtime.single_flight())


def _unnamed(costs: Mapping[str, int]) -> dict[str, int]:
    """Return costs by the names of the limits: an unnamed limit is "" there, and ``cost`` as an argument."""
    return {"" if name == "cost" else name: cost for name, cost in costs.items()}
