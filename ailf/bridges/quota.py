"""The flow of a call under a quota, written once for the blocking and the asyncio transport.

Wait in turn, send, hand over the response, and settle by what it reports. `QuotaFlow.send` is awaited on asyncio, and
run by `ailf.runtime.run` on threads, where its awaitables block and never suspend.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final

import attrs

from ailf.checks import check_flag, check_seconds
from ailf.errors import AilfError, InvalidArgumentError, RateLimitedError, UnsupportedError
from ailf.limits import Limit, TokenBucket
from ailf.logs import About, Log
from ailf.providers import AnswerReader, observed, pause, usage

__all__ = ["Call", "Costs", "QuotaFlow", "lessons", "settlement"]

log = Log("ailf.rate_limiter")

Costs = Mapping[str, int]

REJECTED: Final = frozenset({429, 529})
"""The statuses of a call that the provider did not accept because there are too many: 529 is Anthropic's overload."""
MIN_ERROR: Final = 400
MIN_REDIRECT: Final = 300
NOT_SENT: Final = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol")
"""The exceptions after which the request certainly did not reach the provider, by name: in httpx and in httpx2."""


def settlement(reported: Mapping[str, Any], names: Costs, *, complete: bool) -> dict[str, int]:
    """Return the costs to settle; of an answer that was not read to its end, only those above the estimate.

    Arguments:
        reported: The usage that was reported.
        names: The estimated costs, by the names of the limits that can be settled.
        complete: Whether it is the usage of the whole answer.
    """
    try:
        costs = usage(reported, names)
    except InvalidArgumentError as error:
        log.debug(None, "a response reported a usage without tokens: %s", error)
        return {}
    return costs if complete else {name: cost for name, cost in costs.items() if cost > names[name]}


def lessons(
    reports: list[dict[str, Any]], limits: Mapping[str, Limit], left: Mapping[str, int], elapsed: float
) -> list[dict[str, Any]]:
    """Return those reports of a response that teach the limiter something, as they are now.

    A provider decides when a call arrives, and reports that with the response, perhaps a minute later: the quota that
    came back meanwhile is added. A report that leaves at least what the limiter itself left teaches nothing.

    Arguments:
        reports: The reports of `observed`.
        limits: The limiter's limits.
        left: What the limiter left after this call, by limit.
        elapsed: Seconds since the call was sent.
    """
    taught = []
    for report in reports:
        name, remaining = report["limit"], report.get("remaining")
        limit = limits[name]
        if remaining is None or remaining >= min(left.get(name, limit.capacity), limit.capacity):
            continue
        if isinstance(limit, TokenBucket):
            lesson = {"limit": name, "remaining": remaining + int(elapsed * limit.rate / limit.per)}
            reset_after = report.get("reset_after", 0.0) - elapsed
            if reset_after > 0:
                lesson["reset_after"] = min(reset_after, limit.longest_wait)
            taught.append(lesson)
        elif elapsed < 1:  # a window may be another one by now
            taught.append({"limit": name, "remaining": remaining})
    return taught


@attrs.define(eq=False)
class Call:
    """A call that was sent: its permit, its estimate, and what is known of its answer.

    Attributes:
        key: The key that was charged.
        permit: The permit.
        costs: The estimated costs, by limit.
        sent_at: When it was sent, on the clock of `time.monotonic`.
        headers: The headers of the response, which are read when the call is settled.
        heard_at: When they arrived, in seconds since 1970.
        actual: The costs to settle, as far as they are known without the body.
        refund: Whether to give everything back.
        reader: Reads the usage from the body.
        ended: Whether the body was read to its end.
        settled: Whether its settling has begun.
    """

    key: str
    permit: Any
    costs: dict[str, int]
    sent_at: float
    headers: Mapping[str, str] = attrs.field(factory=dict)
    heard_at: float = 0.0
    actual: dict[str, int] = attrs.field(factory=dict)
    refund: bool = False
    reader: AnswerReader | None = None
    ended: bool = False
    settled: bool = False


class QuotaFlow:
    """What both transports do.

    Arguments:
        limiter: The limiter, blocking or asyncio.
        key: The key of a request, or a function that returns it.
        estimate: Returns the costs of a request; None: it isn't limited.
        max_wait: Seconds that one request waits at most.
        result: Returns the result of a limiter's method: itself on threads, awaited on asyncio.
        later: Runs a coroutine function without delaying the caller.
        refunds: Whether an estimate is lowered to the usage.
    """

    def __init__(
        self,
        limiter: Any,
        key: str | Callable[[Any], str],
        estimate: Callable[[Any], Costs | None],
        max_wait: float,
        result: Callable[[Any], Awaitable[Any]],
        later: Callable[[Callable[[], Coroutine[Any, Any, None]]], None],
        *,
        refunds: bool,
    ) -> None:
        self.limiter = limiter
        self._key = key
        self._estimate = estimate
        self._max_wait = check_seconds("max_wait", max_wait)
        self._result = result
        self._later = later
        self._refunds = check_flag("refunds", refunds)
        self._observable = [name for name, limit in limiter.limits.items() if not limit.leased]

    def _costs(self, estimate: Costs) -> dict[str, int]:
        """Return the costs by the limiter's names. A cost above a limit's capacity could never pass: it is cut."""
        limits = self.limiter.limits
        known = {name: limits[name].capacity for name in estimate if name in limits}
        return {name: min(estimate[name], capacity) for name, capacity in known.items()}

    async def send(
        self,
        request: Any,
        forward: Callable[[Any], Awaitable[Any]],
        hand_over: Callable[[Any, Call], Any],
        read: Callable[[Any], Awaitable[bytes]],
        *,
        repeatable: Callable[[Any], bool],
    ) -> Any:
        """Send a request in its turn, and return the response.

        Arguments:
            request: The request.
            forward: Sends it, by the wrapped transport.
            hand_over: Returns the response with a body that settles the call at its end.
            read: Reads the body of a response that was rejected.
            repeatable: Returns whether the request can be sent again.

        Raises:
            RateLimitedError: The wait in line is longer than `max_wait`.
        """
        estimate = self._estimate(request)
        if estimate is None:
            return await forward(request)
        key = self._key if isinstance(self._key, str) else self._key(request)
        costs = self._costs(estimate)
        until = time.monotonic() + self._max_wait
        rejected: Any = None
        while True:
            left = max(0.0, until - time.monotonic())
            try:
                permit = await self._result(self.limiter.acquire(key, timeout=left, **costs))
            except RateLimitedError:
                if rejected is None:
                    raise
                return rejected
            call = Call(key, permit, costs, time.monotonic())
            try:
                response = await forward(request)
            except BaseException as error:
                call.refund = type(error).__name__ in NOT_SENT
                self.settle(call)
                raise
            try:
                closed_for = await self._learn(call, response, read)
                if closed_for is None or time.monotonic() + closed_for >= until or not repeatable(request):
                    return hand_over(response, call)
            except BaseException:
                self.settle(call)
                raise
            self.settle(call)
            rejected = response

    async def _learn(self, call: Call, response: Any, read: Callable[[Any], Awaitable[bytes]]) -> float | None:
        """Note what the head of a response says. Of a rejected call, close the key; return for how many seconds."""
        status, headers = response.status_code, response.headers
        call.headers, call.heard_at = headers, time.time()
        if status < MIN_ERROR:
            call.refund = status >= MIN_REDIRECT  # the request is sent again, to another place
            return None
        # No tokens were used. The request counts: providers count those that they reject.
        call.actual = {name: 0 for name in call.costs if name != "requests"}
        if status not in REJECTED or headers.get("x-should-retry") == "false":
            return None
        seconds = pause(headers)
        if seconds is None:
            seconds = pause(headers, await read(response))
        if not seconds:
            return None
        await self._close(call.key, seconds)
        if self._observable:
            await read(response)  # so that its connection can be used again
            return seconds
        return None

    async def _close(self, key: str, seconds: float) -> None:
        """Close a key for all processes."""
        for name in self._observable[:1]:
            longest = self.limiter.limits[name].longest_wait
            try:
                await self._result(self.limiter.observe(key, limit=name, retry_after=min(seconds, longest)))
            except AilfError as error:
                log.failure(logging.WARNING, self._about(key), "the key was not closed", error=error)

    def settle(self, call: Call) -> None:
        """Settle a call, once, without a delay for the caller."""
        if not call.settled:
            call.settled = True
            self._later(lambda: self._settle(call))

    async def _settle(self, call: Call) -> None:
        """Settle the costs, release the slots, and learn from the headers. An error is only logged."""
        permit, limits = call.permit, self.limiter.limits
        try:
            if call.refund:
                await self._result(permit.cancel())
                return
            actual = call.actual or self._reported(call)
            charged = set(permit.limits)  # empty if the call was allowed without the backend
            actual = {name: cost for name, cost in actual.items() if name in charged}
            if actual:
                await self._result(permit.settle(**actual))
        except UnsupportedError as error:  # with cache_denials nothing is given back
            log.debug(self._about(call.key), "%s", error)
        except AilfError as error:
            log.failure(logging.WARNING, self._about(call.key), "a call was not settled", error=error)
        finally:
            await self._release(call)
        left = {name: state.remaining for name, state in permit.limits.items()}
        # Where a header is a point in time, that of the provider counts, and else that of the answer's beginning.
        reports = observed(call.headers, self._observable, now=None if "date" in call.headers else call.heard_at)
        for lesson in lessons(reports, limits, left, time.monotonic() - call.sent_at):
            try:
                await self._result(self.limiter.observe(call.key, **lesson))
            except AilfError as error:
                log.failure(logging.WARNING, self._about(call.key), "a report was not observed", error=error)
                return

    def _about(self, key: str) -> About:
        """Return the subject of a record of the log."""
        return About(f"{self.limiter}, key {key!r}", {"key": key})

    async def _release(self, call: Call) -> None:
        try:
            await self._result(call.permit.release())
        except AilfError as error:
            log.failure(logging.WARNING, self._about(call.key), "its slots are free again after their ttl", error=error)

    def _reported(self, call: Call) -> dict[str, int]:
        """Return the costs that the body reports."""
        if call.reader is None:
            return {}
        call.reader.end()
        return settlement(
            call.reader.usage, call.costs, complete=self._refunds and (call.ended or call.reader.complete)
        )
