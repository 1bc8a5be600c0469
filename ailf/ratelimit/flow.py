"""Deciding on calls: one attempt, a reservation, or a wait in the backend's queue (`ailf.engine.wait_queue`).

A repeated request may charge a call twice, but never admits two calls for one charge.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from msgspec.structs import asdict, replace

from ailf.cache import KeyedCache
from ailf.checks import check_count, check_seconds
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
from ailf.logs import About, Log
from ailf.ratelimit.denial_cache import DenialCache
from ailf.ratelimit.keys import Keys, describe, label, limiter_key, subset, tree_key, values_of
from ailf.ratelimit.options import LimiterOptions
from ailf.ratelimit.permit import Iteration, LeasedPermitFlow, PermitFlow
from ailf.runtime.batching import Batcher, batcher
from ailf.values import Decision, LimitState

__all__ = ["LimiterFlow"]

log = Log("ailf.rate_limiter")

P = TypeVar("P")

MAX_BATCH = 25
"""The largest number of calls in one request. The backend decides on one batch while the next one is built."""


class _TimedResult(LimitResult, frozen=True):
    """A result with the local time before its request was sent, from which the leases of its slots count.

    Attributes:
        since: That time, on the clock of leases.
    """

    since: float


class LimiterFlow(Generic[P]):
    """The implementation of `RateLimiter` and `AsyncRateLimiter`."""

    def __init__(self, engine: Engine, options: LimiterOptions, permit_class: Callable[[PermitFlow], P]) -> None:
        engine.require(Capability.RATE_LIMITER, "rate limiters")
        if options.root is not None:
            engine.require(Capability.BUDGET_TREES, "rate limiters with a root")
        self.engine = engine
        self._options = options
        self._permit_class = permit_class
        self._driver = engine.driver.rate_limiter()
        self._limits: Limits = tuple(options.limits.items())
        self._default_costs = (1,) * len(self._limits)
        self._has_slots = any(limit.leased for _, limit in self._limits)
        self._default_requests = KeyedCache(self._new_default_request)
        self._tree_requests = KeyedCache(self._new_tree_request)
        self._backend_failed = False  # whether the last decision was made without the backend
        self._iterating: dict[tuple[object, LimiterKey, str], int] = {}
        # A backend in this process decides at once: batches and remembered denials would save nothing.
        remote = Capability.PROCESSES in engine.driver.capabilities
        raises = options.on_backend_error == "raise"
        self._until = None if raises else 0.0
        self._decide = self._batching(self._until) if remote or self._has_slots else self._decide_in_process
        self._decide_once = self._batching(0.0) if raises and (remote or self._has_slots) else self._decide
        self._denials = DenialCache(engine.runtime.now) if remote and options.cache_denials else None

    def _batching(self, until: float | None) -> Callable[[LimitRequest], Awaitable[LimitResult]]:
        """Return a function that decides on one call, batched with others; `until` is that of `Engine.call`.

        The request is repeated after a lost reply: at worst a call is charged twice, and it never passes twice.
        """
        decide = self._decide_timed if self._has_slots else self._driver.decide
        call = partial(self.engine.call, self._describe_batch, decide, self._limits, again=True, until=until)
        batched = Capability.PROCESSES in self.engine.driver.capabilities and self.engine.runtime.flavour == "asyncio"
        batches: Batcher[LimitRequest, LimitResult] = batcher(
            call,
            MAX_BATCH,
            batched=batched,
            check_loop=self.engine.check_open,
            unclaimed=self._release_unclaimed if self._has_slots else None,
        )
        return batches.do

    async def _release_unclaimed(self, request: LimitRequest, result: LimitResult) -> None:
        """Release the slots of a call that was cancelled: its `_withdraw` may have come before them."""
        if result.allowed:
            await self._settle_quietly(request)

    def _describe_batch(self, _: Limits, requests: Sequence[LimitRequest]) -> str:
        return self.describe("ask", requests[0].limiter_key)

    def describe(self, verb: str, charged: LimiterKey) -> str:
        """Return what is to be done, for errors and logs."""
        return f"{verb} rate limiter {self._options.name!r}, {describe(charged)}"

    # --- requests ------------------------------------------------------------------------------------------------

    def _default_request(self, key: str, keys: Keys | None) -> LimitRequest:
        """Return the request of a call with the default costs, from the cache."""
        values = None if keys is None else values_of(self._options, key, keys)
        try:
            return self._default_requests[key] if values is None else self._tree_requests[values]
        except TypeError:  # a key is not hashable
            if values is not None:
                return self._new_tree_request(values)  # raises the error
            raise InvalidArgumentError(
                f"rate limiter {self._options.name!r}: a key must be text, not {type(key).__name__}"
            ) from None

    def _limiter_key(self, key: str, keys: Keys | None) -> LimiterKey:
        return self._default_request(key, keys).limiter_key

    def _new_default_request(self, key: str) -> LimitRequest:
        """Return the request of a call that costs 1 of every limit."""
        charged = limiter_key(self._options, key)
        return LimitRequest(charged, self._default_costs, count_denied=self._options.count_denied)

    def _new_tree_request(self, values: tuple[str, ...]) -> LimitRequest:
        """Return the request of a call with a key for each limit that costs 1 of every limit."""
        return LimitRequest(tree_key(self._options, values), self._default_costs)

    def _part(self, key: str, keys: Keys | None) -> tuple[LimiterKey, Limits]:
        """Return what concerns some keys of a budget tree, and their limits; else the key and all limits."""
        if keys is None:
            return self._limiter_key(key, None), self._limits
        charged = subset(self._options, key, keys)
        return charged, tuple((name, self._options.limits[name]) for name, _ in charged.keys)

    def _costs(self, costs: Mapping[str, int]) -> tuple[int, ...]:
        """Return the cost of a call for each limit: 1 where it is not named."""
        if not costs:
            return self._default_costs
        limits = self._options.limits
        named = {"" if name == "cost" and "" in limits else name: cost for name, cost in costs.items()}
        if self._options.root is not None and "cost" in named:
            check_count("the cost", cost := named.pop("cost"), least=0)
            named = {name: cost for name, limit in self._limits if not limit.leased} | named
        if not named.keys() <= limits.keys():
            unknown = min(named.keys() - limits.keys())
            names = "cost" if "" in limits else ", ".join(limits)
            raise InvalidArgumentError(
                f"rate limiter {self._options.name!r} has no limit {unknown!r}; the costs of a call are named {names}"
            )
        for name, cost in named.items():
            check_count(f"the cost {name!r}" if name else "the cost", cost, least=0)
        return tuple([named.get(name, 1) for name in limits])

    def checked(
        self, key: str, keys: Keys | None, costs: Mapping[str, int], timeout: float | None
    ) -> tuple[str, Keys | None, Mapping[str, int], float | None]:
        """Return the arguments for a later `acquire`, checked."""
        self._limiter_key(key, keys)
        self.check_call(costs, timeout)
        return key, None if keys is None else dict(keys), costs, timeout

    def check_call(self, costs: Mapping[str, int], timeout: float | None) -> None:
        """Raise for costs or a timeout that can't be used."""
        self._costs(costs)
        if timeout is not None:
            check_seconds("timeout", timeout)

    def _token(self) -> str:
        return self.engine.token() if self._has_slots else ""

    # --- requests to the backend ---------------------------------------------------------------------------------

    async def _decide_in_process(self, request: LimitRequest) -> LimitResult:
        """Let a backend in this process decide. No reply can be lost on the way, so nothing is repeated."""
        engine = self.engine
        if engine.home != engine.here():
            engine.check_open()
        (result,) = await self._driver.decide(self._limits, (request,))
        if isinstance(result, Exception):
            raise result
        return result

    async def _decide_timed(
        self, limits: Limits, requests: Sequence[LimitRequest]
    ) -> Sequence[LimitResult | Exception]:
        """Let the backend decide, and note the time before the request: leases of granted slots count from it."""
        since = self.engine.runtime.lease_now()
        results = await self._driver.decide(limits, requests)
        return [
            result if isinstance(result, Exception) else _TimedResult(since=since, **asdict(result))
            for result in results
        ]

    async def _decided(self, request: LimitRequest) -> Decision[P]:
        try:
            return self._decision(await self._decide(request), request)
        except BackendError as error:
            return self._without_backend(request, error)

    async def _decide_or_refund(self, request: LimitRequest) -> LimitResult:
        """Let the backend decide. If the caller is cancelled meanwhile, refund what was charged (R10)."""
        results: list[LimitResult] = []

        async def decide() -> None:
            results.append(await self._decide_once(request))

        async def refund() -> None:
            done = await flight.wait_idle(WITHDRAW)
            if done and results and results[0].allowed and not request.limiter_key.no_refunds:
                await self._settle_quietly(request, results[0].receipts)

        flight = self.engine.runtime.single_flight()
        try:
            await flight.run(decide)
        except BaseException:
            await self.engine.runtime.single_flight().run(refund, WITHDRAW)
            raise
        return results[0]

    async def _settle_quietly(self, request: LimitRequest, receipts: Sequence[ChargeReceipt] = ()) -> None:
        """Refund an abandoned call by its receipts, or, without them, only release its slots; leave the wait queue.

        An error is only logged.
        """
        charged = zip(self._limits, request.costs, receipts or ((),) * len(self._limits), strict=True)
        charges = [
            Charge(name, limit, cost, receipt)
            for (name, limit), cost, receipt in charged
            if cost and (receipts or limit.leased)
        ]
        try:
            await self._driver.settle(request.limiter_key, request.token, charges)
        except AWAY as error:
            self.engine.outages.failed(self.describe("withdraw from", request.limiter_key), error)
        except AilfError as error:
            key = label(request.limiter_key)
            about = About(f"rate limiter {self._options.name!r}", {"backend": self.engine.driver.url, "key": key})
            log.warning(about, "the charge of an abandoned call was not refunded: %s", error)

    async def _withdraw(self, request: LimitRequest) -> None:
        """Leave the wait queue, and release slots that may have been granted in the meantime."""

        async def settle() -> None:
            await self._settle_quietly(request)

        await self.engine.runtime.single_flight().run(settle, WITHDRAW)

    # --- decisions -----------------------------------------------------------------------------------------------

    def _decision(self, result: LimitResult, request: LimitRequest, limits_of: Limits | None = None) -> Decision[P]:
        """Return a result as the decision that users get; of a look at some limits, these are given."""
        if self._backend_failed:
            self._backend_failed = False
            self.engine.outages.worked()
        levels = result.levels
        names = self._limits if limits_of is None else limits_of
        if len(levels) == 1:
            limits = {names[0][0]: levels[0]}
            remaining, reset_after = levels[0].remaining, levels[0].reset_after
        else:
            limits = {name: level for (name, _), level in zip(names, levels, strict=True)}
            remaining = min([each.remaining for each in levels])
            reset_after = max([each.reset_after for each in levels])
        if not result.allowed:
            return Decision(False, remaining, result.retry_after, reset_after, limits, _longest_wait(limits), result.at)  # noqa: FBT003 - its first field
        permit = self._permit(request, result) if request.costs is self._default_costs or any(request.costs) else None
        return Decision(True, remaining, result.retry_after, reset_after, limits, None, result.at, permit)  # noqa: FBT003 - as above

    def _permit(self, request: LimitRequest, result: LimitResult) -> P:
        if isinstance(result, _TimedResult):
            leased = LeasedPermitFlow(self.engine, self._limits, request, result)
            leased.renew_slots(result.since)
            return self._permit_class(leased)
        flow = PermitFlow(self.engine, self._limits, request, result)
        if result.retry_after:
            flow.ready_at = self.engine.runtime.now() + result.retry_after
        return self._permit_class(flow)

    def _without_backend(
        self, request: LimitRequest, error: BackendError, limits_of: Limits | None = None
    ) -> Decision[P]:
        """Return the decision of `on_backend_error`, or raise the error."""
        if self._options.on_backend_error == "raise":
            raise error
        allowed = self._options.on_backend_error == "allow"
        what = f"rate limiter {self._options.name!r}, which {'allows' if allowed else 'denies'} every call meanwhile"
        self.engine.outages.failed(what, error)
        self._backend_failed = True
        retry_after = 0.0 if allowed else 1.0
        limits = {name: LimitState(0, retry_after, 0.0) for name, _ in limits_of or self._limits}
        permit = self._free_permit(request) if allowed else None
        return Decision(allowed, 0, retry_after, 0.0, limits, None, 0.0, permit, error)

    def _free_permit(self, request: LimitRequest) -> P:
        """Return the permit of a call without a charge."""
        free = replace(request, costs=(0,) * len(self._limits))
        result = LimitResult(allowed=True, retry_after=0.0, at=0.0, levels=(), receipts=())
        return self._permit(free, result)

    # --- the methods ---------------------------------------------------------------------------------------------

    async def try_acquire(self, key: str, keys: Keys | None, costs: Mapping[str, int]) -> Decision[P]:
        try:
            request = self._default_requests[key] if keys is None else self._default_request(key, keys)
        except TypeError:  # the key is not hashable: raise the right error
            request = self._default_request(key, keys)
        if costs or self._has_slots:
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
            if self._has_slots:
                await self._withdraw(request)
            raise
        if denials is not None:
            denials.note(request, result, since)
        return self._decision(result, request)

    async def acquire(self, key: str, keys: Keys | None, costs: Mapping[str, int], timeout: float | None) -> P:
        if timeout is not None:
            check_seconds("timeout", timeout)
        charged = self._limiter_key(key, keys)
        acquiring, instruments = self._acquire(charged, costs, timeout), self.engine.instruments
        if not instruments.waited:
            return await acquiring
        now = self.engine.runtime.now
        return await instruments.observe_waiting("rate_limiter", self._options.name, label(charged), acquiring, now)

    async def _acquire(self, charged: LimiterKey, costs: Mapping[str, int], timeout: float | None) -> P:
        """Try once, then wait in the queue.

        Raises:
            RateLimitedError: The time has passed, or the call can never be allowed.
        """
        until = float("inf") if timeout is None else self.engine.runtime.now() + timeout
        call = LimitRequest(charged, self._costs(costs))  # a waiting call isn't charged for denials
        what = self.describe("acquire", charged)
        self._check_possible(what, call.costs)
        latest: list[Decision[P]] = []

        async def attempt(token: str, waiter: WaiterInfo | None) -> P | Denied:
            request = replace(call, token=token, waiter=waiter)
            try:
                decision = self._decision(await self._decide_or_refund(request), request)
            except BackendError as error:
                decision = self._without_backend(request, error)
            latest[:] = [decision]
            if decision.error is not None and not decision.allowed:  # by `on_backend_error`
                raise self._too_late(what, timeout, decision) from decision.error
            return self._granted(decision, request) if decision.allowed else Denied(decision.retry_after or 0.0)

        outcome: P | Denied | None = Denied(0.0)
        unanswered: tuple[str, Exception] | None = None  # token and error of an attempt: it may have been granted
        if timeout == 0 or not self.engine.reply_inbox.ready:
            token = self._token()
            try:
                outcome = await attempt(token, None)
            except AWAY as error:
                if timeout == 0:
                    raise
                unanswered = token, error
        if timeout != 0 and isinstance(outcome, Denied):
            try:
                outcome = await self._wait(what, call, attempt, unanswered, until)
            except AWAY as error:
                why = f"{what}: not allowed within {timeout:g} s; the backend is unavailable ({error})"
                raise RateLimitedError(why, retry_after=1.0) from error
        if outcome is None or isinstance(outcome, Denied):
            raise self._too_late(what, timeout, latest[0])
        return outcome

    async def _wait(
        self,
        what: str,
        call: LimitRequest,
        attempt: Callable[[str, WaiterInfo | None], Awaitable[P | Denied]],
        unanswered: tuple[str, Exception] | None,
        until: float,
    ) -> P | Denied | None:
        """Repeat an attempt without a reply, then wait in the queue; return None when the time has passed."""

        def withdraw(token: str) -> Coroutine[Any, Any, None]:
            return self._withdraw(replace(call, token=token))

        if unanswered is not None:
            token, error = unanswered
            try:
                outcome = await Outage(self.engine, what, until).ask(lambda: attempt(token, None), error)
            except AWAY:
                self.engine.runtime.spawn(lambda: withdraw(token), name="ailf-withdraw")  # the caller's time is over
                raise
            if not isinstance(outcome, Denied):
                return outcome
        return await wait_in_queue(self.engine, what, attempt, withdraw, until)

    def _granted(self, decision: Decision[P], request: LimitRequest) -> P:
        """Return the permit of an allowed call, even if it costs nothing."""
        return decision.permit if decision.permit is not None else self._free_permit(request)

    def _check_possible(self, what: str, costs: tuple[int, ...]) -> None:
        """Raise at once for a cost that can never pass (R3)."""
        for (name, limit), cost in zip(self._limits, costs, strict=True):
            if cost > limit.capacity:
                raise RateLimitedError(
                    f"{what}: a cost of {cost} can never pass {_label(name, limit)}, whose capacity is "
                    f"{limit.capacity}; split the call, or raise the limit",
                    retry_after=None,
                    bound=name,
                )

    @contextlib.contextmanager
    def iterating(
        self, key: str, keys: Keys | None, costs: Mapping[str, int], timeout: float | None
    ) -> Iterator[Iteration]:
        """Note that a generator holds the slots of this call while it is iterated; see `RateLimiter.limited`.

        A thread or task that waits without a timeout for slots of its own unfinished generators would wait for ever.

        Raises:
            RateLimitedError: This call would wait for itself.
        """
        charged, needed = self._limiter_key(key, keys), self._costs(costs)
        asynchronous = self.engine.runtime.flavour == "asyncio"
        caller: object = asyncio.current_task() if asynchronous else threading.get_ident()
        slots: dict[tuple[object, LimiterKey, str], int] = {}
        for (name, limit), cost in zip(self._limits, needed, strict=True):
            if limit.leased and cost:
                place = caller, charged.branch_of(name), name
                slots[place], own = cost, self._iterating.get(place, 0)
                if timeout is None and own and own + cost > limit.capacity:
                    raise RateLimitedError(
                        f"{self.describe('acquire', charged)}: generators that this thread or task has not finished "
                        f"hold {own} of {_label(name, limit)}, so it would wait for itself for ever. Finish or close "
                        "them first, or give limited(…) a timeout",
                        retry_after=None,
                        bound=name,
                    )
        for place, cost in slots.items():
            self._iterating[place] = self._iterating.get(place, 0) + cost
        iteration = Iteration()
        self.engine.track(iteration)
        try:
            yield iteration
        finally:
            self.engine.untrack(iteration)
            for place, cost in slots.items():
                left = self._iterating.pop(place) - cost
                if left:
                    self._iterating[place] = left

    async def reserve(self, key: str, keys: Keys | None, costs: Mapping[str, int], within: float | None) -> P:
        charged = self._limiter_key(key, keys)
        what = self.describe("reserve", charged)
        max_wait = 86_400.0 if within is None else check_seconds("within", within)
        request = LimitRequest(charged, self._costs(costs), "", max_wait, self._options.count_denied)
        for (_, limit), cost in zip(self._limits, request.costs, strict=True):
            if cost and not limit.reservable:
                raise UnsupportedError(f"{what}: only token buckets can be charged in advance, not the limit {limit}")
        self._check_possible(what, request.costs)
        decision = await self._decided(request)
        if not decision.allowed:
            raise self._too_late(what, max_wait, decision) from decision.error
        return self._granted(decision, request)

    async def peek(self, key: str, keys: Keys | None) -> Decision[P]:
        if keys is None:
            return await self._decided(LimitRequest(self._limiter_key(key, None), (0,) * len(self._limits)))
        charged, limits = self._part(key, keys)
        request = LimitRequest(charged, (0,) * len(limits))
        what, decide = self.describe("peek", charged), self._driver.decide
        try:
            (result,) = await self.engine.call(what, decide, limits, (request,), again=True, until=self._until)
            if isinstance(result, BackendError):
                raise result
        except BackendError as error:
            return self._without_backend(request, error, limits)
        return self._decision(result, request, limits)

    async def observe(
        self,
        key: str,
        keys: Keys | None,
        limit: str,
        remaining: int | None,
        reset_after: float | None,
        retry_after: float | None,
    ) -> None:
        limits = self._options.limits
        if limit not in tuple(limits):
            names = ", ".join(map(repr, limits))
            raise InvalidArgumentError(f"rate limiter {self._options.name!r} has no limit {limit!r}; it has: {names}")
        charged, of = self._part(key, keys)
        if (limit, limits[limit]) not in of:
            raise InvalidArgumentError(
                f"rate limiter {self._options.name!r}: observe(limit={limit!r}) needs the key of that limit in keys"
            )
        observation = Observation(
            limit,
            limits[limit],
            None if remaining is None else check_count("remaining", remaining, least=0),
            0.0 if reset_after is None else check_seconds("reset_after", reset_after),
            0.0 if retry_after is None else check_seconds("retry_after", retry_after),
        )
        what = self.describe("observe", charged)
        if limits[limit].leased:
            raise InvalidArgumentError(f"{what}: limit {limit!r} is a Concurrency, which can't be observed")
        wait, longest = max(observation.reset_after, observation.pause), limits[limit].longest_wait
        if wait > longest:
            raise InvalidArgumentError(f"{what}: limit {limit!r} can't count a wait of {wait:g} s, only {longest:g} s")
        await self.engine.call(what, self._driver.observe, charged, observation, again=True)

    async def reset(self, key: str, keys: Keys | None) -> None:
        charged, limits = self._part(key, keys)
        what = self.describe("reset", charged)
        if self._options.cache_denials:
            raise UnsupportedError(f"{what}: a limiter with cache_denials can't be reset, as it remembers denials")
        await self.engine.call(what, self._driver.reset, charged, limits, again=True)

    # --- errors --------------------------------------------------------------------------------------------------

    def entered_already(self, key: str, keys: Keys | None) -> InvalidArgumentError:
        what = self.describe("hold", self._limiter_key(key, keys))
        return InvalidArgumentError(f"{what}: already entered; each `with` needs a hold() of its own")

    def _too_late(self, what: str, timeout: float | None, latest: Decision[Any]) -> RateLimitedError:
        within = "" if not timeout else f" within {timeout:g} s"
        if latest.error is not None:
            why = f"the backend can't answer ({latest.error})"
        elif latest.bound is None:
            why = "other calls wait before it in the queue of a key"
        else:
            name = _label(latest.bound, self._options.limits[latest.bound])
            why = f"{name} allows it in {latest.retry_after or 0.0:g} s"
        return RateLimitedError(
            f"{what}: not allowed{within}; {why}", retry_after=latest.retry_after, bound=latest.bound or ""
        )


def _label(name: str, limit: Limit) -> str:
    return f"limit {name!r} ({limit})" if name else f"its limit ({limit})"


def _longest_wait(limits: Mapping[str, LimitState]) -> str | None:
    """Return the name of the limit with the longest wait; None if no limit has one."""
    waits = {name: float("inf") if each.retry_after is None else each.retry_after for name, each in limits.items()}
    name = max(waits, key=waits.__getitem__)
    return name if waits[name] else None
