"""What a rate limiter allowed: `Permit` and `AsyncPermit`, two thin faces of one state, settled when all is known."""

import weakref
from collections.abc import Hashable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import attrs

from ailf.checks import check_count
from ailf.driver import Account, BackendDriver, Charge, SlotLease
from ailf.engine import Engine
from ailf.errors import InvalidArgumentError, OutcomeUnknownError, SettledError, UnsupportedError
from ailf.limits import Concurrency
from ailf.renewal import Hold
from ailf.runtime import run
from ailf.values import LimitState

__all__ = ["AsyncPermit", "Permit", "PermitFlow"]


class SlotHold(Hold):
    """The places that a call has of limits of concurrency, as the renewal thread keeps them.

    Attributes:
        slots: The places.
    """

    __slots__ = ("slots",)

    def __init__(self, slots: SlotLease, since: float) -> None:
        self.slots = slots
        super().__init__(lease=min(limit.ttl for _, limit in slots.limits), since=since)

    @property
    def batch(self) -> Hashable:
        """What one request can renew: all of them."""
        return None

    @classmethod
    async def renew(cls, driver: BackendDriver, holds: Sequence[Any]) -> list[bool]:
        """Renew them all in one round trip."""
        return await driver.rate_limiter().extend([hold.slots for hold in holds])

    def __str__(self) -> str:
        account = self.slots.account
        return f"the place of a call in rate limiter {account.limiter!r}, key {account.key!r}"


class PermitFlow:
    """The one text of both flavours: what a call was charged, until that is settled."""

    def __init__(
        self,
        engine: Engine,
        account: Account,
        token: str,
        charges: Sequence[Charge],
        since: float,
        ready_at: float,
        limits: Mapping[str, LimitState],
    ) -> None:
        self.engine = engine
        self.account = account
        self.token = token
        self.charges = {each.name: each for each in charges if each.cost}
        self.ready_at = ready_at
        self.limits = limits
        self._driver = engine.driver.rate_limiter()
        self._settled: dict[str, int] | None = None
        self._held = [each for each in self.charges.values() if isinstance(each.limit, Concurrency)]
        self._hold: SlotHold | None = None
        if self._held:
            limited = tuple((each.name, each.limit) for each in self._held if isinstance(each.limit, Concurrency))
            self._hold = SlotHold(SlotLease(account, token, limited), since)
            engine.renewer.add([self._hold])
            weakref.finalize(self, engine.renewer.discard, self._hold).atexit = False  # dropped: it ends by itself

    def __str__(self) -> str:
        return f"a call of rate limiter {self.account.limiter!r}, key {self.account.key!r}"

    @property
    def lost(self) -> bool:
        """Whether its place has ended before it was given back."""
        return self._hold is not None and self._hold.lost

    async def settle(self, actual: Mapping[str, int]) -> None:
        """True it up, once."""
        told = {name: check_count(f"the actual cost of {name!r}", cost, least=0) for name, cost in actual.items()}
        for name in told:
            if name not in self.charges or isinstance(self.charges[name].limit, Concurrency):
                known = ", ".join(repr(each) for each in self.charges if self.charges[each] not in self._held) or "none"
                raise InvalidArgumentError(f"settle {self}: it was not charged {name!r}; what can be settled: {known}")
        if self._settled is not None:
            if self._settled != told:
                raise SettledError(f"settle {self}: it was settled already, as {self._settled}")
            return
        self._check_final("settle", told)
        self._settled = told
        await self._adjust("settle", told)

    async def cancel(self) -> None:
        """Give back everything."""
        if self._settled is not None:
            raise SettledError(f"cancel {self}: it was settled already, as {self._settled}")
        nothing = {name: 0 for name, each in self.charges.items() if not isinstance(each.limit, Concurrency)}
        self._check_final("cancel", nothing)
        self._settled = nothing
        try:
            await self._adjust("cancel", nothing)
        finally:
            await self.release()

    def _check_final(self, what: str, actual: Mapping[str, int]) -> None:
        if self.account.final and any(cost < self.charges[name].cost for name, cost in actual.items()):
            raise UnsupportedError(
                f"{what} {self}: nothing is given back by a limiter that remembers denials (cache_denials), as they "
                "would then be wrong"
            )

    async def _adjust(self, what: str, actual: Mapping[str, int]) -> None:
        charges = [attrs.evolve(self.charges[name], actual=cost) for name, cost in actual.items()]
        changed = [each for each in charges if each.actual != each.cost]
        if changed:
            # What may have been given back is not given back again; what was charged in addition may be charged twice.
            again = all(each.actual > each.cost for each in changed)
            call = self.engine.call
            await call(f"{what} {self}", self._driver.settle, self.account, self.token, changed, again=again)

    async def release(self) -> None:
        """Give back its places, once."""
        held, self._held = self._held, []
        if held and self._hold is not None:
            self.engine.renewer.discard(self._hold)
            self._hold = None
            what = f"release {self}"
            await self.engine.call(what, self._driver.settle, self.account, self.token, held, again=True)

    async def leave(self, error: BaseException | None) -> None:
        """Give back its places at the end of a block; what goes wrong with that doesn't hide the block's own error."""
        try:
            await self.release()
        except OutcomeUnknownError:
            if error is None:
                raise

    async def ready(self) -> None:
        """Wait until a reservation may begin."""
        self.engine.check_open()
        while (left := self.ready_at - self.engine.runtime.now()) > 0:
            if await self.engine.pause(left):
                self.engine.check_open()


class _Shown:
    """What both faces show."""

    def __init__(self, flow: PermitFlow) -> None:
        self._flow = flow

    @property
    def key(self) -> str:
        """The key that was charged."""
        return self._flow.account.key

    @property
    def limits(self) -> Mapping[str, LimitState]:
        """How each limit stood right after this was charged."""
        return self._flow.limits

    @property
    def ready_at(self) -> float:
        """When the call may begin, on `time.monotonic`'s clock; only a reservation's is to come."""
        return self._flow.ready_at

    @property
    def lost(self) -> bool:
        """Whether its place in a limit of concurrency ended before it was given back; somebody else may have it."""
        return self._flow.lost

    def __repr__(self) -> str:
        costs = ", ".join(f"{name or 'cost'}={each.cost}" for name, each in self._flow.charges.items())
        return f"<{type(self).__name__} {self.key!r} {costs}>"


class Permit(_Shown):
    """Leave to make a call. A context manager: on leaving, places in limits of concurrency are given back."""

    def settle(self, **actual: int) -> None:
        """True up what was charged to what the call really cost, as though that had been charged at once (R7).

        What is not named stays as it is. What is given back is never more than was charged; what comes on top is
        charged even where it doesn't fit, and later calls wait for it.

        Arguments:
            actual: The cost by limit; ``cost`` for an only limit.

        Raises:
            InvalidArgumentError: The call was not charged for one of these.
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
        run(self._flow.leave(error))


class AsyncPermit(_Shown):
    """Leave to make a call. A context manager: on leaving, places in limits of concurrency are given back."""

    async def settle(self, **actual: int) -> None:
        """True up what was charged to what the call really cost, as though that had been charged at once (R7).

        What is not named stays as it is. What is given back is never more than was charged; what comes on top is
        charged even where it doesn't fit, and later calls wait for it.

        Arguments:
            actual: The cost by limit; ``cost`` for an only limit.

        Raises:
            InvalidArgumentError: The call was not charged for one of these.
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
        await self._flow.leave(error)


def _unnamed(costs: Mapping[str, int]) -> dict[str, int]:
    """Return costs by the names of the limits, where an only one is "" and called ``cost``."""
    return {"" if name == "cost" else name: cost for name, cost in costs.items()}
