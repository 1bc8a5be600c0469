"""Deciding on calls: one try, a reservation, or waiting in a queue (`ailf.engine.wait_queue`), for both flavours."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from msgspec.structs import asdict, replace

from ailf.cache import KeyedCache
from ailf.checks import check_count, check_name, check_seconds
from ailf.driver import (
    Capability,
    Charge,
    Denied,
    LimiterKey,
    LimitRequest,
    LimitResult,
    Limits,
    Observation,
    WaiterInfo,
)
from ailf.engine import AWAY, Engine
from ailf.engine.wait_queue import WITHDRAW, Outage, wait_in_queue
from ailf.errors import AilfError, BackendError, InvalidArgumentError, RateLimitedError, UnsupportedError
from ailf.limits import ChargeReceipt, Limit
from ailf.ratelimit.denial_cache import DenialCache
from ailf.ratelimit.options import LimiterOptions
from ailf.ratelimit.permit import Iteration, LeasedPermitFlow, PermitFlow
from ailf.runtime.batching import Batcher, batcher
from ailf.values import Decision, LimitState

__all__ = ["LimiterFlow"]

log = logging.getLogger("ailf.rate_limiter")

P = TypeVar("P")

DECIDED_AT_ONCE = 25
"""How many calls one request asks for at most: the backend decides on them while the next ones are put together."""


class _Timed(LimitResult, frozen=True):
    """A decision, and since when what it granted is had, on this process's clock: since it was asked for."""

    since: float


class LimiterFlow(Generic[P]):
    """The one text of both flavours."""

    def __init__(self, engine: Engine, options: LimiterOptions, face: Callable[[PermitFlow], P]) -> None:
        engine.require(Capability.RATE_LIMITER, "rate limiters")
        self.engine = engine
        self._options = options
        self._face = face
        self._driver = engine.driver.rate_limiter()
        self._limits: Limits = tuple(options.limits.items())
        self._names = tuple(options.limits)
        self._ones = (1,) * len(self._limits)
        self._slots = any(limit.leased for _, limit in self._limits)
        self._usual = KeyedCache(self._usual_call)
        self._alone = False  # whether the last decision was made without the backend
        self._iterating: dict[tuple[object, str], list[tuple[int, ...]]] = {}
        # A backend in this process is as near as the end of a turn of the loop, and its answer as a remembered one.
        far = Capability.PROCESSES in engine.driver.capabilities
        patient = options.on_backend_error == "raise"
        self._decide = self._asks(None if patient else 0.0) if far or self._slots else self._decide_here
        self._decide_once = self._asks(0.0) if patient and (far or self._slots) else self._decide
        self._denials = DenialCache(engine.runtime.now) if far and options.cache_denials else None

    def _asks(self, until: float | None) -> Callable[[LimitRequest], Awaitable[LimitResult]]:
        """Return what asks the backend; with 0 only once, with None again where no answer comes."""
        # It is asked again where no answer came: at worst a call is then charged twice, and never let through twice.
        decide = self._timed if self._slots else self._driver.decide
        ask = partial(self.engine.call, self._asking, decide, self._limits, again=True, until=until)
        batched = Capability.PROCESSES in self.engine.driver.capabilities and self.engine.runtime.flavour == "asyncio"
        deciding: Batcher[LimitRequest, LimitResult] = batcher(
            ask, DECIDED_AT_ONCE, batched=batched, check_loop=self.engine.check_open
        )
        return deciding.do

    def _asking(self, _: Limits, requests: Sequence[LimitRequest]) -> str:
        return self._what("ask", requests[0].limiter_key.key)

    def _what(self, verb: str, key: str) -> str:
        return f"{verb} rate limiter {self._options.name!r}, key {key!r}"

    # --- what is asked for ---------------------------------------------------------------------------------------

    def _usual_of(self, key: str) -> LimitRequest:
        """Return the usual call for a key."""
        try:
            return self._usual[key]
        except TypeError:  # it can't be looked up
            raise InvalidArgumentError(
                f"rate limiter {self._options.name!r}: a key must be text, not {type(key).__name__}"
            ) from None

    def _limiter_key(self, key: str) -> LimiterKey:
        return self._usual_of(key).limiter_key

    def _usual_call(self, key: str) -> LimitRequest:
        """Return the usual call for a key, which costs 1 of everything."""
        if key != "":
            check_name("rate limiter's key", key)
        limiter_key = LimiterKey(self._options.name, key, self._options.cache_denials)
        return LimitRequest(limiter_key, self._ones, count_denied=self._options.count_denied)

    def _costs(self, costs: Mapping[str, int]) -> tuple[int, ...]:
        """Return what a call costs of every limit: 1 of each that is not named."""
        if not costs:
            return self._ones
        limits = self._options.limits
        named = {"" if name == "cost" and "" in limits else name: cost for name, cost in costs.items()}
        if not named.keys() <= limits.keys():
            unknown = min(named.keys() - limits.keys())
            known = "cost" if "" in limits else ", ".join(limits)
            name = self._options.name
            raise InvalidArgumentError(
                f"rate limiter {name!r} has no limit {unknown!r}; what a call costs is named {known}"
            )
        for name, cost in named.items():
            check_count(f"the cost {name!r}" if name else "the cost", cost, least=0)
        return tuple([named.get(name, 1) for name in limits])

    def checked(
        self, key: str, costs: Mapping[str, int], timeout: float | None
    ) -> tuple[str, Mapping[str, int], float | None]:
        """Return what a later `acquire` is to be asked for, or say what is wrong with it."""
        self._limiter_key(key)
        self._costs(costs)
        if timeout is not None:
            check_seconds("timeout", timeout)
        return key, costs, timeout

    def _token(self) -> str:
        return self.engine.token() if self._slots else ""

    # --- asking --------------------------------------------------------------------------------------------------

    async def _decide_here(self, request: LimitRequest) -> LimitResult:
        """Ask a backend in this process: nothing is lost on the way there, so there is nothing to ask again."""
        engine = self.engine
        if engine.home != engine.here():
            engine.check_open()
        (result,) = await self._driver.decide(self._limits, (request,))
        if isinstance(result, Exception):
            raise result
        return result

    async def _timed(self, limits: Limits, requests: Sequence[LimitRequest]) -> Sequence[LimitResult | Exception]:
        """Ask, and note down when: from then on the places are had that are granted."""
        since = self.engine.runtime.lease_now()
        results = await self._driver.decide(limits, requests)
        return [each if isinstance(each, Exception) else _Timed(since=since, **asdict(each)) for each in results]

    async def _decided(self, request: LimitRequest) -> Decision[P]:
        try:
            return self._decision(await self._decide(request), request)
        except BackendError as error:
            return self._without_backend(request, error)

    async def _ask_safely(self, request: LimitRequest) -> LimitResult:
        """Ask; where the caller is cancelled meanwhile, what was charged is given back (R10)."""
        asked: list[LimitResult] = []

        async def ask() -> None:
            asked.append(await self._decide_once(request))

        async def give_back() -> None:
            if await flight.wait_idle(WITHDRAW) and asked and asked[0].allowed and not request.limiter_key.no_refunds:
                await self._settle_quietly(request, asked[0].receipts)

        flight = self.engine.runtime.single_flight()
        try:
            await flight.run(ask)
        except BaseException:
            await self.engine.runtime.single_flight().run(give_back, WITHDRAW)
            raise
        return asked[0]

    async def _settle_quietly(self, request: LimitRequest, receipts: Sequence[ChargeReceipt] = ()) -> None:
        """Give back what a call was charged, or may have been, that was given up, and its place in line."""
        told = zip(self._limits, request.costs, receipts or ((),) * len(self._limits), strict=True)
        charges = [
            Charge(name, limit, cost, receipt)
            for (name, limit), cost, receipt in told
            if cost and (receipts or limit.leased)
        ]
        try:
            await self._driver.settle(request.limiter_key, request.token, charges)
        except AWAY as error:
            self.engine.outages.failed(self._what("withdraw from", request.limiter_key.key), error)
        except AilfError as error:
            log.warning("rate limiter %r: a call that was given up stays charged: %s", self._options.name, error)

    async def _withdraw(self, request: LimitRequest) -> None:
        """Leave the line, and give back places that may have been granted meanwhile."""

        async def settle() -> None:
            await self._settle_quietly(request)

        await self.engine.runtime.single_flight().run(settle, WITHDRAW)

    # --- what is told --------------------------------------------------------------------------------------------

    def _decision(self, result: LimitResult, request: LimitRequest) -> Decision[P]:
        """Return what a user sees of a ruling."""
        if self._alone:
            self._alone = False
            self.engine.outages.worked()
        levels = result.levels
        if len(levels) == 1:
            limits = {self._names[0]: levels[0]}
            remaining, reset_after = levels[0].remaining, levels[0].reset_after
        else:
            limits = dict(zip(self._names, levels, strict=True))
            remaining = min([each.remaining for each in levels])
            reset_after = max([each.reset_after for each in levels])
        if not result.allowed:
            return Decision(False, remaining, result.retry_after, reset_after, limits, _latest(limits), result.at)  # noqa: FBT003 - its first field
        permit = self._permit(request, result) if request.costs is self._ones or any(request.costs) else None
        return Decision(True, remaining, result.retry_after, reset_after, limits, None, result.at, permit)  # noqa: FBT003 - as above

    def _permit(self, request: LimitRequest, result: LimitResult) -> P:
        if isinstance(result, _Timed):
            placed = LeasedPermitFlow(self.engine, self._limits, request, result)
            placed.renew_slots(result.since)
            return self._face(placed)
        flow = PermitFlow(self.engine, self._limits, request, result)
        if result.retry_after:
            flow.ready_at = self.engine.runtime.now() + result.retry_after
        return self._face(flow)

    def _without_backend(self, request: LimitRequest, error: BackendError) -> Decision[P]:
        """Return what is decided where the backend can't be asked."""
        if self._options.on_backend_error == "raise":
            raise error
        allowed = self._options.on_backend_error == "allow"
        what = f"rate limiter {self._options.name!r}, which {'allows' if allowed else 'denies'} every call meanwhile"
        self.engine.outages.failed(what, error)
        self._alone = True
        retry_after = 0.0 if allowed else 1.0
        limits = {name: LimitState(0, retry_after, 0.0) for name, _ in self._limits}
        permit = self._free(request) if allowed else None
        return Decision(allowed, 0, retry_after, 0.0, limits, None, 0.0, permit, error)

    def _free(self, request: LimitRequest) -> P:
        """Return the permit of a call that was charged nothing."""
        nothing = replace(request, costs=(0,) * len(self._limits))
        result = LimitResult(allowed=True, retry_after=0.0, at=0.0, levels=(), receipts=())
        return self._permit(nothing, result)

    # --- the methods ---------------------------------------------------------------------------------------------

    async def try_acquire(self, key: str, costs: Mapping[str, int]) -> Decision[P]:
        try:
            request = self._usual[key]
        except TypeError:  # it can't be looked up
            request = self._usual_of(key)
        if costs or self._slots:
            request = LimitRequest(request.limiter_key, self._costs(costs), self._token(), 0.0, request.count_denied)
        denials, since = self._denials, 0.0
        if denials is not None:
            if (denied := denials.of(request)) is not None:
                self.engine.check_open()
                return self._decision(denied, request)
            since = self.engine.runtime.now()
        try:
            result = await self._decide(request)
        except BackendError as error:
            return self._without_backend(request, error)
        except BaseException:
            if self._slots:
                await self._withdraw(request)
            raise
        if denials is not None:
            denials.note(request, result, since)
        return self._decision(result, request)

    async def acquire(self, key: str, costs: Mapping[str, int], timeout: float | None) -> P:
        if timeout is not None:
            check_seconds("timeout", timeout)
        until = float("inf") if timeout is None else self.engine.runtime.now() + timeout
        asked = LimitRequest(
            self._limiter_key(key), self._costs(costs)
        )  # who waits doesn't retry, and is not charged for it
        what = self._what("acquire", key)
        self._check_possible(what, asked.costs)
        latest: list[Decision[P]] = []

        async def attempt(token: str, waiter: WaiterInfo | None) -> P | Denied:
            request = replace(asked, token=token, waiter=waiter)
            try:
                decision = self._decision(await self._ask_safely(request), request)
            except BackendError as error:
                decision = self._without_backend(request, error)
            latest[:] = [decision]
            return self._granted(decision, request) if decision.allowed else Denied(decision.retry_after or 0.0)

        found: P | Denied | None = Denied(0.0)
        failed: tuple[str, Exception] | None = (
            None  # a try without an answer; a place may have been granted to its token
        )
        if timeout == 0 or not self.engine.reply_inbox.ready:
            token = self._token()
            try:
                found = await attempt(token, None)
            except AWAY as error:
                if timeout == 0:
                    raise
                failed = token, error
        if timeout != 0 and isinstance(found, Denied):
            try:
                found = await self._wait(what, asked, attempt, failed, until)
            except AWAY as error:
                why = f"{what}: not allowed within {timeout:g} s; the backend is away ({error})"
                raise RateLimitedError(why, retry_after=1.0) from error
        if found is None or isinstance(found, Denied):
            raise self._too_late(what, timeout, latest[0])
        return found

    async def _wait(
        self,
        what: str,
        asked: LimitRequest,
        attempt: Callable[[str, WaiterInfo | None], Awaitable[P | Denied]],
        failed: tuple[str, Exception] | None,
        until: float,
    ) -> P | Denied | None:
        """Stand in line, after a try without an answer has been repeated; return None when the time is over."""

        def withdraw(token: str) -> Coroutine[Any, Any, None]:
            return self._withdraw(replace(asked, token=token))

        if failed is not None:
            token, error = failed
            try:
                found = await Outage(self.engine, what, until).ask(lambda: attempt(token, None), error)
            except AWAY:
                self.engine.runtime.spawn(lambda: withdraw(token), name="ailf-withdraw")  # the caller's time is over
                raise
            if not isinstance(found, Denied):
                return found
        return await wait_in_queue(self.engine, what, attempt, withdraw, until)

    def _granted(self, decision: Decision[P], request: LimitRequest) -> P:
        """Return the permit of a call that was allowed, also where it costs nothing."""
        return decision.permit if decision.permit is not None else self._free(request)

    def _check_possible(self, what: str, costs: tuple[int, ...]) -> None:
        """Refuse at once what can never pass (R3)."""
        for (name, limit), cost in zip(self._limits, costs, strict=True):
            if cost > limit.capacity:
                raise RateLimitedError(
                    f"{what}: a cost of {cost} can never pass {_shown(name, limit)}, which holds {limit.capacity}",
                    retry_after=None,
                    bound=name,
                )

    @contextlib.contextmanager
    def iterating(self, key: str, costs: Mapping[str, int], timeout: float | None) -> Iterator[Iteration]:
        """Note that a generator, as long as it is iterated, holds what this call costs; see `RateLimiter.limited`.

        A thread or task that waits without a timeout for what its own unfinished generators hold would wait for ever.

        Raises:
            RateLimitedError: That is so.
        """
        asked = self._costs(costs)
        caller = asyncio.current_task() if self.engine.runtime.flavour == "asyncio" else threading.get_ident()
        held = self._iterating.get((caller, key), [])
        for index, (name, limit) in enumerate(self._limits):
            if limit.leased and timeout is None:
                mine = sum(each[index] for each in held)
                if mine and mine + asked[index] > limit.capacity:
                    raise RateLimitedError(
                        f"{self._what('acquire', key)}: generators that this thread or task has not finished hold "
                        f"{mine} of {_shown(name, limit)}, so it would wait for itself for ever. Finish or close "
                        "them first, or give limited(…) a timeout",
                        retry_after=None,
                        bound=name,
                    )
        self._iterating[caller, key] = [*held, asked]
        iteration = Iteration()
        self.engine.track(iteration)
        try:
            yield iteration
        finally:
            self.engine.untrack(iteration)
            left = self._iterating.pop((caller, key))
            left.remove(asked)
            if left:
                self._iterating[caller, key] = left

    async def reserve(self, key: str, costs: Mapping[str, int], within: float | None) -> P:
        what = self._what("reserve", key)
        max_wait = 86_400.0 if within is None else check_seconds("within", within)
        request = LimitRequest(self._limiter_key(key), self._costs(costs), "", max_wait, self._options.count_denied)
        for (_, limit), cost in zip(self._limits, request.costs, strict=True):
            if cost and not limit.reservable:
                raise UnsupportedError(f"{what}: only token buckets can be charged in advance, and not {limit}")
        self._check_possible(what, request.costs)
        decision = await self._decided(request)
        if not decision.allowed:
            raise self._too_late(what, max_wait, decision)
        return self._granted(decision, request)

    async def peek(self, key: str) -> Decision[P]:
        return await self._decided(LimitRequest(self._limiter_key(key), (0,) * len(self._limits)))

    async def observe(
        self, key: str, limit: str, remaining: int | None, reset_after: float | None, retry_after: float | None
    ) -> None:
        limits = self._options.limits
        if limit not in tuple(limits):
            known = ", ".join(map(repr, limits))
            raise InvalidArgumentError(f"rate limiter {self._options.name!r} has no limit {limit!r}; it has: {known}")
        seen = Observation(
            limit,
            limits[limit],
            None if remaining is None else check_count("remaining", remaining, least=0),
            0.0 if reset_after is None else check_seconds("reset_after", reset_after),
            0.0 if retry_after is None else check_seconds("retry_after", retry_after),
        )
        if limits[limit].leased:
            raise InvalidArgumentError(f"observe {limit!r}: a provider's numbers say nothing of calls under way")
        longest = max(seen.reset_after, seen.pause)
        if longest > limits[limit].longest_wait:
            raise InvalidArgumentError(f"observe {limit!r}: a wait of {longest:g} s is too long")
        await self.engine.call(
            self._what("observe", key), self._driver.observe, self._limiter_key(key), seen, again=True
        )

    async def reset(self, key: str) -> None:
        what = self._what("reset", key)
        if self._options.cache_denials:
            raise UnsupportedError(f"{what}: nothing is given back by a limiter that remembers denials (cache_denials)")
        await self.engine.call(what, self._driver.reset, self._limiter_key(key), self._limits, again=True)

    # --- bad ends -----------------------------------------------------------------------------------------------------

    def _too_late(self, what: str, timeout: float | None, latest: Decision[Any]) -> RateLimitedError:
        within = "" if not timeout else f" within {timeout:g} s"
        if latest.error is not None:
            why = f"the backend can't be asked ({latest.error})"
        elif latest.bound is None:
            why = "others wait in line before it"
        else:
            name = _shown(latest.bound, self._options.limits[latest.bound])
            why = f"{name} allows it in {latest.retry_after or 0.0:g} s"
        return RateLimitedError(
            f"{what}: not allowed{within}; {why}", retry_after=latest.retry_after, bound=latest.bound or ""
        )


def _shown(name: str, limit: Limit) -> str:
    return f"limit {name!r} ({limit})" if name else f"its limit ({limit})"


def _latest(limits: Mapping[str, LimitState]) -> str | None:
    """Return the limit that has to be waited for longest; None where none has to."""
    late = {name: float("inf") if each.retry_after is None else each.retry_after for name, each in limits.items()}
    name = max(late, key=late.__getitem__)
    return name if late[name] else None
