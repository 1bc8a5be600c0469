"""Deciding on calls: one try, a reservation, or waiting in line (`ailf.waiting`). What both flavours share."""

import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, TypeVar

import attrs

from ailf.algorithms import algorithm
from ailf.checks import check_count, check_name, check_seconds
from ailf.driver import Account, Capability, Charge, Demand, Denied, Observation, Place, Ruling
from ailf.engine import Engine
from ailf.errors import AilfError, BackendError, InvalidArgumentError, RateLimitedError, UnsupportedError
from ailf.limits import LARGEST, Concurrency, Limit, TokenBucket, as_limit
from ailf.permits import PermitFlow
from ailf.values import Decision, LimitState
from ailf.waiting import WITHDRAW, wait_in_line

__all__ = ["LimiterFlow", "LimiterOptions", "OnBackendError"]

log = logging.getLogger("ailf.rate_limiter")

P = TypeVar("P")
OnBackendError = Literal["raise", "allow", "deny"]

RESERVED = {"key", "timeout", "within", "cost", "limit"}
"""What limits can't be called: the arguments of the methods that take costs by name."""

MAX_LIMITS = 16

REMEMBERED = 4096
"""How many keys' denials are remembered."""

DRIFT = 0.001
"""The share of a remembered denial that is left out, as this process's clock may run faster than the backend's."""


@attrs.frozen(kw_only=True)
class LimiterOptions:
    """What a limiter is; see `RateLimiter`."""

    name: str
    limits: Mapping[str, Limit]
    on_backend_error: OnBackendError
    count_denied: bool
    cache_denials: bool

    @classmethod
    def of(
        cls,
        name: str,
        limit: Limit | str | None,
        limits: Mapping[str, Limit | str],
        *,
        on_backend_error: OnBackendError,
        count_denied: bool,
        cache_denials: bool,
    ) -> "LimiterOptions":
        """Check them."""
        check_name("rate limiter", name)
        what = f"rate limiter {name!r}"
        if (limit is None) is (not limits):
            raise InvalidArgumentError(
                f"{what} needs one limit, as in rate_limiter(name, TokenBucket(10)), or several by name, as in "
                "rate_limiter(name, requests='60/minute', tokens='100000/minute')"
            )
        if taken := RESERVED & set(limits):
            raise InvalidArgumentError(f"{what}: a limit can't be called {min(taken)!r}, which is an argument's name")
        if len(limits) > MAX_LIMITS:
            raise InvalidArgumentError(f"{what} has {len(limits)} limits; at most {MAX_LIMITS} are possible")
        if on_backend_error not in ("raise", "allow", "deny"):
            raise InvalidArgumentError(f"on_backend_error must be 'raise', 'allow' or 'deny', not {on_backend_error!r}")
        known = {each: as_limit(f"the limit {each!r}", limits[each]) for each in limits}
        if limit is not None:
            known = {"": as_limit("the limit", limit)}
        if cache_denials and any(isinstance(each, Concurrency) for each in known.values()):
            raise InvalidArgumentError(
                f"{what}: cache_denials doesn't go with Concurrency, whose places are given back at any time"
            )
        return cls(
            name=name,
            limits=known,
            on_backend_error=on_backend_error,
            count_denied=count_denied,
            cache_denials=cache_denials,
        )


class LimiterFlow(Generic[P]):
    """The one text of both flavours."""

    def __init__(self, engine: Engine, options: LimiterOptions, face: Callable[[PermitFlow], P]) -> None:
        engine.require(Capability.RATE_LIMITER, "rate limiters")
        self.engine = engine
        self._options = options
        self._face = face
        self._driver = engine.driver.rate_limiter()
        self._algorithms = {name: algorithm(limit) for name, limit in options.limits.items()}
        self._slots = any(isinstance(limit, Concurrency) for limit in options.limits.values())
        # In this process the backend's answer is as near as a remembered one.
        self._remembers = options.cache_denials and Capability.PROCESSES in engine.driver.capabilities
        self._denials: dict[str, tuple[tuple[Charge, ...], float, Ruling]] = {}

    def _what(self, verb: str, key: str) -> str:
        return f"{verb} rate limiter {self._options.name!r}, key {key!r}"

    # --- what is asked for ---------------------------------------------------------------------------------------

    def _account(self, key: object) -> Account:
        if key != "":
            check_name("rate limiter's key", key)
        return Account(self._options.name, str(key), self._options.cache_denials)

    def _charges(self, costs: Mapping[str, int]) -> tuple[Charge, ...]:
        """Return what a call costs of every limit: 1 of each that is not named."""
        limits = self._options.limits
        named = {"" if name == "cost" and "" in limits else name: cost for name, cost in costs.items()}
        if unknown := set(named) - set(limits):
            known = "cost" if "" in limits else ", ".join(limits)
            name = self._options.name
            raise InvalidArgumentError(
                f"rate limiter {name!r} has no limit {min(unknown)!r}; what a call costs is named: {known}"
            )
        for name, cost in named.items():
            check_count(f"the cost {name!r}" if name else "the cost", cost, least=0)
        return tuple(Charge(name, limit, named.get(name, 1)) for name, limit in limits.items())

    def _demand(
        self,
        account: Account,
        charges: tuple[Charge, ...],
        token: str,
        place: Place | None = None,
        *,
        patience: float = 0.0,
    ) -> Demand:
        return Demand(account, charges, token, patience, self._options.count_denied, place)

    # --- asking --------------------------------------------------------------------------------------------------

    async def _ask(self, what: str, demand: Demand, within: float | None = None) -> tuple[Ruling, float]:
        """Ask the backend; return what it said, and when it was asked.

        It is asked again where no answer came: at worst a call is then charged twice, and never let through twice.
        """
        now = self.engine.runtime.now
        since = 0.0

        async def decide() -> Ruling:
            nonlocal since
            since = now()  # of the request that is answered
            return await self._driver.decide(demand)

        if self._options.on_backend_error != "raise":
            within = 0.0
        return await self.engine.call(what, decide, again=True, within=within), since

    async def _ask_safely(self, what: str, demand: Demand, until: float) -> tuple[Ruling, float]:
        """Ask; where the caller is cancelled meanwhile, what was charged is given back (R10)."""
        asked: list[tuple[Ruling, float]] = []

        async def ask() -> None:
            asked.append(await self._ask(what, demand, max(0.0, until - self.engine.runtime.now())))

        async def give_back() -> None:
            if await flight.landed(WITHDRAW) and asked and asked[0][0].allowed and not demand.account.final:
                await self._settle_quietly(demand.account, demand.token, _marked(demand.charges, asked[0][0]))

        flight = self.engine.runtime.flight()
        try:
            await flight.join(ask)
        except BaseException:
            await self.engine.runtime.flight().join(give_back, WITHDRAW)
            raise
        return asked[0]

    async def _settle_quietly(self, account: Account, token: str, charges: tuple[Charge, ...]) -> None:
        try:
            await self._driver.settle(account, token, charges)
        except AilfError as error:
            log.warning("rate limiter %r: a call that was given up stays charged: %s", self._options.name, error)

    def _decision(self, ruling: Ruling, since: float, demand: Demand) -> Decision[P]:
        """Return what a user sees of a ruling."""
        limits = {
            charge.name: LimitState(level.remaining, level.retry_after, level.reset_after)
            for charge, level in zip(demand.charges, ruling.levels, strict=True)
        }
        permit = None
        if ruling.allowed and not demand.looks:
            charges = _marked(demand.charges, ruling)
            now = self.engine.runtime.now()
            ready_at = now + (ruling.retry_after or 0.0)
            flow = PermitFlow(self.engine, demand.account, demand.token, charges, since, ready_at, limits)
            permit = self._face(flow)
        late = {name: _never(state.retry_after) for name, state in limits.items()}
        bound = None if ruling.allowed else max(late, key=lambda name: late[name])
        return Decision(
            allowed=ruling.allowed,
            remaining=min(state.remaining for state in limits.values()),
            retry_after=ruling.retry_after,
            reset_after=max(state.reset_after for state in limits.values()),
            limits=limits,
            bound=bound if bound is not None and late[bound] else None,
            at=ruling.at,
            permit=permit,
        )

    def _without_backend(self, demand: Demand, error: BackendError) -> Decision[P]:
        """Return what is decided where the backend can't be asked."""
        if self._options.on_backend_error == "raise":
            raise error
        allowed = self._options.on_backend_error == "allow"
        log.warning("%s without the backend: %s", "allowed" if allowed else "denied", error)
        now = self.engine.runtime.now()
        flow = PermitFlow(self.engine, demand.account, demand.token, (), now, now, {})
        retry_after = 0.0 if allowed else 1.0
        limits = {each.name: LimitState(0, retry_after, 0.0) for each in demand.charges}
        permit = self._face(flow) if allowed else None
        return Decision(allowed, 0, retry_after, 0.0, limits, None, 0.0, permit, error)

    # --- remembered denials --------------------------------------------------------------------------------------

    def _remembered(self, demand: Demand) -> Ruling | None:
        """Return a denial that certainly still holds for this call: nothing is given back, and it isn't time (R11)."""
        known = self._denials.get(demand.account.key)
        if known is None or demand.looks:
            return None
        charges, until, ruling = known
        left = until - self.engine.runtime.now()
        if left <= 0:
            del self._denials[demand.account.key]
            return None
        if any(mine.cost < denied.cost for mine, denied in zip(demand.charges, charges, strict=True)):
            return None
        return attrs.evolve(ruling, retry_after=left)

    def _remember(self, demand: Demand, ruling: Ruling, since: float) -> None:
        waits = [level.retry_after for level in ruling.levels if level.retry_after is not None]
        if ruling.allowed or ruling.retry_after is None or not any(waits):
            return
        if len(self._denials) >= REMEMBERED:
            self._denials.pop(next(iter(self._denials)))
        self._denials[demand.account.key] = (demand.charges, since + max(waits) * (1 - DRIFT), ruling)

    # --- the methods ---------------------------------------------------------------------------------------------

    async def try_acquire(self, key: str, costs: Mapping[str, int]) -> Decision[P]:
        account = self._account(key)
        demand = self._demand(account, self._charges(costs), secrets.token_hex(8))
        if self._remembers and (denied := self._remembered(demand)) is not None:
            self.engine.check_open()
            return self._decision(denied, 0.0, demand)
        try:
            ruling, since = await self._ask(self._what("try", key), demand)
        except BackendError as error:
            return self._without_backend(demand, error)
        except BaseException:
            if self._slots:
                await self._withdraw(account, demand.charges, demand.token)
            raise
        if self._remembers:
            self._remember(demand, ruling, since)
        return self._decision(ruling, since, demand)

    async def acquire(self, key: str, costs: Mapping[str, int], timeout: float | None) -> P:
        if timeout is not None:
            check_seconds("timeout", timeout)
        until = float("inf") if timeout is None else self.engine.runtime.now() + timeout
        account, charges = self._account(key), self._charges(costs)
        what = self._what("acquire", key)
        self._check_possible(what, charges)
        latest: Decision[P] | None = None

        async def attempt(token: str, place: Place | None) -> P | Denied:
            nonlocal latest
            demand = self._demand(account, charges, token, place)
            try:
                latest = self._decision(*await self._ask_safely(what, demand, until), demand)
            except BackendError as error:
                latest = self._without_backend(demand, error)
            return self._granted(latest, demand) if latest.allowed else Denied(latest.retry_after or 0.0)

        found: P | Denied | None = Denied(0.0)
        if timeout == 0 or not self.engine.desk.ready:
            found = await attempt(secrets.token_hex(8), None)
        if timeout != 0 and isinstance(found, Denied):
            found = await wait_in_line(
                self.engine, attempt, lambda token: self._withdraw(account, charges, token), until
            )
        if found is None or isinstance(found, Denied):
            raise self._too_late(what, timeout, latest)
        return found

    def _granted(self, decision: Decision[P], demand: Demand) -> P:
        """Return the permit of a call that was allowed, also where it costs nothing."""
        if decision.permit is not None:
            return decision.permit
        now = self.engine.runtime.now()
        return self._face(PermitFlow(self.engine, demand.account, demand.token, (), now, now, decision.limits))

    def _check_possible(self, what: str, charges: tuple[Charge, ...]) -> None:
        """Refuse at once what can never pass (R3)."""
        for charge in charges:
            if charge.cost > charge.limit.capacity:
                limit = f"limit {charge.name!r} ({charge.limit})" if charge.name else f"its limit ({charge.limit})"
                raise RateLimitedError(
                    f"{what}: a cost of {charge.cost} can never pass {limit}, which holds {charge.limit.capacity}",
                    retry_after=None,
                    bound=charge.name,
                )

    async def reserve(self, key: str, costs: Mapping[str, int], within: float | None) -> P:
        account, charges = self._account(key), self._charges(costs)
        what = self._what("reserve", key)
        for charge in charges:
            if not isinstance(charge.limit, TokenBucket) and charge.cost:
                raise UnsupportedError(
                    f"{what}: only token buckets can be charged in advance, not {charge.limit}; use acquire"
                )
        self._check_possible(what, charges)
        patience = 86_400.0 if within is None else check_seconds("within", within)
        demand = self._demand(account, charges, secrets.token_hex(8), patience=patience)
        try:
            decision = self._decision(*await self._ask(what, demand), demand)
        except BackendError as error:
            decision = self._without_backend(demand, error)
        if not decision.allowed:
            raise self._too_late(what, patience, decision)
        return self._granted(decision, demand)

    async def peek(self, key: str) -> Decision[P]:
        charges = tuple(attrs.evolve(each, cost=0) for each in self._charges({}))
        demand = self._demand(self._account(key), charges, "peek")
        try:
            return self._decision(*await self._ask(self._what("peek", key), demand), demand)
        except BackendError as error:
            return self._without_backend(demand, error)

    async def observe(
        self, key: str, limit: str, remaining: int | None, reset_after: float | None, retry_after: float | None
    ) -> None:
        limits = self._options.limits
        if limit not in limits:
            known = ", ".join(map(repr, limits))
            raise InvalidArgumentError(f"rate limiter {self._options.name!r} has no limit {limit!r}; it has: {known}")
        seen = Observation(
            limit,
            limits[limit],
            None if remaining is None else check_count("remaining", remaining, least=0),
            0.0 if reset_after is None else check_seconds("reset_after", reset_after),
            0.0 if retry_after is None else check_seconds("retry_after", retry_after),
        )
        if isinstance(limits[limit], Concurrency):
            raise InvalidArgumentError(f"observe {limit!r}: a provider's numbers say nothing of calls under way")
        bucket, longest = limits[limit], max(seen.reset_after, seen.pause)
        if isinstance(bucket, TokenBucket) and bucket.rate * longest * 1000 > LARGEST / 2:
            raise InvalidArgumentError(f"observe {limit!r}: a wait of {longest:g} s is too long")
        await self.engine.call(self._what("observe", key), self._driver.observe, self._account(key), seen, again=True)

    async def reset(self, key: str) -> None:
        what = self._what("reset", key)
        if self._options.cache_denials:
            raise UnsupportedError(f"{what}: nothing is given back by a limiter that remembers denials (cache_denials)")
        limits = tuple(self._options.limits.items())
        await self.engine.call(what, self._driver.reset, self._account(key), limits, again=True)

    # --- bad ends ------------------------------------------------------------------------------------------------

    async def _withdraw(self, account: Account, charges: tuple[Charge, ...], token: str) -> None:
        """Leave the line, and give back places that may have been granted meanwhile."""
        held = tuple(each for each in charges if isinstance(each.limit, Concurrency))

        async def settle() -> None:
            await self._settle_quietly(account, token, held)

        await self.engine.runtime.flight().join(settle, WITHDRAW)

    def _too_late(self, what: str, timeout: float | None, latest: "Decision[Any] | None") -> RateLimitedError:
        within = "" if not timeout else f" within {timeout:g} s"
        if latest is None:
            return RateLimitedError(f"{what}: not allowed{within}", retry_after=0.0)
        if latest.error is not None:
            why = f"the backend can't be asked ({latest.error})"
        elif latest.bound is None:
            why = "others wait in line before it"
        else:
            limit = self._options.limits[latest.bound]
            name = f"limit {latest.bound!r} ({limit})" if latest.bound else f"its limit ({limit})"
            why = f"{name} allows it in {latest.retry_after or 0.0:g} s"
        return RateLimitedError(
            f"{what}: not allowed{within}; {why}", retry_after=latest.retry_after, bound=latest.bound or ""
        )


def _marked(charges: tuple[Charge, ...], ruling: Ruling) -> tuple[Charge, ...]:
    """Return what was charged, by what settles it."""
    both = zip(charges, ruling.levels, strict=True)
    return tuple(attrs.evolve(charge, mark=level.mark) for charge, level in both if charge.cost)


def _never(retry_after: float | None) -> float:
    return float("inf") if retry_after is None else retry_after
