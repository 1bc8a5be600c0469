"""Staying inside quotas: `RateLimiter` and `AsyncRateLimiter`, two thin faces of one flow."""

import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, TypeVar

from ailf.engine import Engine
from ailf.engine.standalone import StandaloneObject
from ailf.errors import InvalidArgumentError
from ailf.limits import Limit
from ailf.ratelimit.decorating import called, within, within_async
from ailf.ratelimit.flow import LimiterFlow
from ailf.ratelimit.options import LimiterOptions, OnBackendError
from ailf.ratelimit.permit import AsyncPermit, Permit
from ailf.runtime import run
from ailf.values import Decision

__all__ = ["AsyncPermitContext", "AsyncRateLimiter", "PermitContext", "RateLimiter"]

F = TypeVar("F", bound=Callable[..., Any])


class _RateLimiterBase(StandaloneObject):
    """What both faces share: the limits, and how the flow is made."""

    def __init__(
        self,
        name: str,
        limit: Limit | str | None = None,
        /,
        *,
        on_backend_error: OnBackendError = "raise",
        count_denied: bool = False,
        cache_denials: bool = False,
        engine: Engine | None = None,
        **limits: Limit | str,
    ) -> None:
        super().__init__(engine)
        self._options = LimiterOptions.of(
            name,
            limit,
            limits,
            on_backend_error=on_backend_error,
            count_denied=count_denied,
            cache_denials=cache_denials,
        )

    @property
    def name(self) -> str:
        """The limiter's name."""
        return self._options.name

    @property
    def limits(self) -> Mapping[str, Limit]:
        """The limits by name; an only one is called ""."""
        return self._options.limits

    def __repr__(self) -> str:
        limits = ", ".join(f"{name or 'limit'} {limit}" for name, limit in self.limits.items())
        return f"<{type(self).__name__} {self.name!r}: {limits}>"


def _check_limited(flow: LimiterFlow[Any], key: object, costs: Mapping[str, int], timeout: float | None) -> None:
    """Refuse, when a function is decorated, what each of its calls would meet."""
    if not isinstance(key, str) and not callable(key):
        raise InvalidArgumentError(f"the key must be text, or a function of the call's arguments, not {key!r}")
    flow.checked(key if isinstance(key, str) else "", costs, timeout)


class PermitContext:
    """A context manager: a permit is acquired on entry, and its places are given back on leaving."""

    def __init__(self, flow: LimiterFlow[Permit], key: str, timeout: float | None, costs: Mapping[str, int]) -> None:
        self._flow = flow
        self._asked = flow.checked(key, costs, timeout)
        self._permit: Permit | None = None

    def __enter__(self) -> Permit:
        """Acquire it.

        Raises:
            RateLimitedError: It was not allowed in time.
        """
        if self._permit is not None:
            raise InvalidArgumentError("this hold is entered already; each `with` needs one of its own")
        try:
            self._permit = permit = run(self._flow.acquire(*self._asked))
            return permit  # noqa: TRY300 - Ctrl-C may come up to here
        except BaseException:
            self._permit = None
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Give back its places."""
        permit, self._permit = self._permit, None
        if permit is not None:
            permit.__exit__(kind, error, at)


class AsyncPermitContext:
    """A context manager: a permit is acquired on entry, and its places are given back on leaving."""

    def __init__(
        self, flow: LimiterFlow[AsyncPermit], key: str, timeout: float | None, costs: Mapping[str, int]
    ) -> None:
        self._flow = flow
        self._asked = flow.checked(key, costs, timeout)
        self._permit: AsyncPermit | None = None

    async def __aenter__(self) -> AsyncPermit:
        """Acquire it.

        Raises:
            RateLimitedError: It was not allowed in time.
        """
        if self._permit is not None:
            raise InvalidArgumentError("this hold is entered already; each `with` needs one of its own")
        self._permit = await self._flow.acquire(*self._asked)
        return self._permit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Give back its places."""
        permit, self._permit = self._permit, None
        if permit is not None:
            await permit.__aexit__(kind, error, at)


class RateLimiter(_RateLimiterBase):
    """Quotas that hold for all processes together. Get one from `Backend.rate_limiter`; annotate with this class.

    A limiter has one limit, or several with names; a call passes if all of them allow it, and is charged by all or by
    none, in one round trip. What a call costs is named: ``cost=3`` for an only limit, else by the limits' names; what
    is not named costs 1. Each key has a state of its own, which takes constant space and goes by itself.

    It has no state: the permit that allows a call has. So one object may be shared by any number of threads.

    Arguments:
        name: Any non-empty text. Limiters with the same name, limits' names and periods share what was charged.
        limit: The limit, or a text that stands for one (`parse_limit`).
        limits: Or several, by name.
        on_backend_error: What becomes of a call while the backend can't be asked: an error, or allowed, or denied.
        count_denied: Whether a denied call is charged too, as far as there is room: who retries at once waits longer.
        cache_denials: Whether a denial is remembered here until the call may pass, without asking the backend. Such
            a limiter gives nothing back, as that would make what is remembered wrong: `settle` can't lower a charge
            (R11). It shares nothing with limiters that don't remember.
    """

    @functools.cached_property
    def _flow(self) -> LimiterFlow[Permit]:
        return LimiterFlow(self._engine, self._options, Permit)

    def try_acquire(self, key: str = "", **costs: int) -> Decision[Permit]:
        """Return whether a call may be made now; if so it is charged. One round trip.

        While somebody waits in line for the same key, a call that doesn't wait is denied.

        Arguments:
            key: Whose quota: a user, a model, …; any text.
            costs: What it costs, by limit.
        """
        return run(self._flow.try_acquire(key, costs))

    def acquire(self, key: str = "", *, timeout: float | None = None, **costs: int) -> Permit:
        """Wait until a call may be made, in turn, and return the permit (R10).

        Arguments:
            key: Whose quota.
            timeout: Seconds to wait; 0: one round trip; None: for ever.
            costs: What it costs, by limit.

        Raises:
            RateLimitedError: It was not allowed in time, the backend was away, or the cost is above a limit's capacity.
            ClosedError: The backend was closed.
            BackendError: The backend refused it. While it is away the wait goes on. Nothing stays charged.
        """
        return run(self._flow.acquire(key, costs, timeout))

    def hold(self, key: str = "", *, timeout: float | None = None, **costs: int) -> PermitContext:
        """Return a context manager that acquires on entry, and on leaving gives back places in limits of concurrency.

        Arguments:
            key: As for `acquire`.
            timeout: As for `acquire`.
            costs: As for `acquire`.
        """
        return PermitContext(self._flow, key, timeout, costs)

    def limited(
        self, key: str | Callable[..., str] = "", *, timeout: float | None = None, **costs: int
    ) -> Callable[[F], F]:
        """Return a decorator: each call of the function waits for its permit, and gives back its places at its end.

        Of a generator function the permit is acquired with the first item and kept until the iteration ends: exhausted,
        closed, dropped, or by an error. A function that only returns an iterator ends when it returns.

        Arguments:
            key: Whose quota; or what returns that, given the arguments of the call.
            timeout: Seconds to wait, after which `RateLimitedError` is raised instead of calling; None: for ever.
            costs: What a call costs, by limit.

        Raises:
            InvalidArgumentError: What is decorated can't be called, or is a function for asyncio.
        """
        _check_limited(self._flow, key, costs, timeout)

        def whose(*args: Any, **options: Any) -> str:
            return key if isinstance(key, str) else key(*args, **options)

        def hold(*args: Any, **options: Any) -> PermitContext:
            return self.hold(whose(*args, **options), timeout=timeout, **costs)

        @contextlib.contextmanager
        def iterate(*args: Any, **options: Any) -> Iterator[None]:
            with self._flow.iterating(whose(*args, **options), costs, timeout) as it, hold(*args, **options) as permit:
                it.holds(permit)
                yield

        def limit(function: F) -> F:
            self._flow.engine.runtime.check_callable("what is limited", called(function), may_yield=True)
            return within(hold, function, iterate)

        return limit

    def reserve(self, key: str = "", *, within: float | None = None, **costs: int) -> Permit:
        """Charge a call in advance and return its permit at once; the call may begin at ``permit.ready_at``.

        Only token buckets can be charged in advance.

        Arguments:
            key: Whose quota.
            within: Seconds that it may have to wait at most; a day unless told.
            costs: What it costs, by limit.

        Raises:
            RateLimitedError: It would have to wait for longer; nothing was charged.
            UnsupportedError: One of the limits is no token bucket.
        """
        return run(self._flow.reserve(key, costs, within))

    def peek(self, key: str = "") -> Decision[Permit]:
        """Return how the limits stand, without charging anything."""
        return run(self._flow.peek(key))

    def observe(
        self,
        key: str = "",
        *,
        limit: str = "",
        remaining: int | None = None,
        reset_after: float | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Take into account what a provider said: from now on no more passes than that. It never lets more pass.

        Arguments:
            key: Whose quota.
            limit: The name of the limit that it spoke of; "" for an only one.
            remaining: What it would still admit.
            reset_after: Seconds until its quota is whole again; a token bucket is then full no earlier.
            retry_after: Seconds for which it admits nothing; for a window: nothing as long as this window lasts.
        """
        run(self._flow.observe(key, limit, remaining, reset_after, retry_after))

    def reset(self, key: str = "") -> None:
        """Forget everything that was charged."""
        run(self._flow.reset(key))

    def close(self) -> None:
        """Close what this object opened itself."""
        run(self._close())


class AsyncRateLimiter(_RateLimiterBase):
    """Quotas that hold for all processes together. Get one from `AsyncBackend.rate_limiter`; annotate with this class.

    A limiter has one limit, or several with names; a call passes if all of them allow it, and is charged by all or by
    none, in one round trip. What a call costs is named: ``cost=3`` for an only limit, else by the limits' names; what
    is not named costs 1. Each key has a state of its own, which takes constant space and goes by itself.

    It has no state: the permit that allows a call has. So one object may be shared by any number of tasks.

    Arguments:
        name: Any non-empty text. Limiters with the same name, limits' names and periods share what was charged.
        limit: The limit, or a text that stands for one (`parse_limit`).
        limits: Or several, by name.
        on_backend_error: What becomes of a call while the backend can't be asked: an error, or allowed, or denied.
        count_denied: Whether a denied call is charged too, as far as there is room: who retries at once waits longer.
        cache_denials: Whether a denial is remembered here until the call may pass, without asking the backend. Such
            a limiter gives nothing back, as that would make what is remembered wrong: `settle` can't lower a charge
            (R11). It shares nothing with limiters that don't remember.
    """

    @functools.cached_property
    def _flow(self) -> LimiterFlow[AsyncPermit]:
        return LimiterFlow(self._engine, self._options, AsyncPermit)

    async def try_acquire(self, key: str = "", **costs: int) -> Decision[AsyncPermit]:
        """Return whether a call may be made now; if so it is charged. One round trip.

        While somebody waits in line for the same key, a call that doesn't wait is denied.

        Arguments:
            key: Whose quota: a user, a model, …; any text.
            costs: What it costs, by limit.
        """
        return await self._flow.try_acquire(key, costs)

    async def acquire(self, key: str = "", *, timeout: float | None = None, **costs: int) -> AsyncPermit:
        """Wait until a call may be made, in turn, and return the permit (R10).

        Arguments:
            key: Whose quota.
            timeout: Seconds to wait; 0: one round trip; None: for ever.
            costs: What it costs, by limit.

        Raises:
            RateLimitedError: It was not allowed in time, the backend was away, or the cost is above a limit's capacity.
            ClosedError: The backend was closed.
            BackendError: The backend refused it. While it is away the wait goes on. Nothing stays charged.
        """
        return await self._flow.acquire(key, costs, timeout)

    def hold(self, key: str = "", *, timeout: float | None = None, **costs: int) -> AsyncPermitContext:
        """Return a context manager that acquires on entry, and on leaving gives back places in limits of concurrency.

        Arguments:
            key: As for `acquire`.
            timeout: As for `acquire`.
            costs: As for `acquire`.
        """
        return AsyncPermitContext(self._flow, key, timeout, costs)

    def limited(
        self, key: str | Callable[..., str] = "", *, timeout: float | None = None, **costs: int
    ) -> Callable[[F], F]:
        """Return a decorator: each call of the function waits for its permit, and gives back its places at its end.

        Of an async generator function the permit is acquired with the first item and kept until the iteration ends:
        exhausted, closed, dropped, or by an error. A function that only returns an iterator ends when it returns.

        Arguments:
            key: Whose quota; or what returns that, given the arguments of the call.
            timeout: Seconds to wait, after which `RateLimitedError` is raised instead of calling; None: for ever.
            costs: What a call costs, by limit.

        Raises:
            InvalidArgumentError: What is decorated can't be called, or is a generator function for threads.
        """
        _check_limited(self._flow, key, costs, timeout)

        def whose(*args: Any, **options: Any) -> str:
            return key if isinstance(key, str) else key(*args, **options)

        def hold(*args: Any, **options: Any) -> AsyncPermitContext:
            return self.hold(whose(*args, **options), timeout=timeout, **costs)

        @contextlib.asynccontextmanager
        async def iterate(*args: Any, **options: Any) -> AsyncIterator[None]:
            with self._flow.iterating(whose(*args, **options), costs, timeout) as it:
                async with hold(*args, **options) as permit:
                    it.holds(permit)
                    yield

        def limit(function: F) -> F:
            self._flow.engine.runtime.check_callable("what is limited", called(function), may_yield=True)
            return within_async(hold, function, iterate)

        return limit

    async def reserve(self, key: str = "", *, within: float | None = None, **costs: int) -> AsyncPermit:
        """Charge a call in advance and return its permit at once; the call may begin at ``permit.ready_at``.

        Only token buckets can be charged in advance.

        Arguments:
            key: Whose quota.
            within: Seconds that it may have to wait at most; a day unless told.
            costs: What it costs, by limit.

        Raises:
            RateLimitedError: It would have to wait for longer; nothing was charged.
            UnsupportedError: One of the limits is no token bucket.
        """
        return await self._flow.reserve(key, costs, within)

    async def peek(self, key: str = "") -> Decision[AsyncPermit]:
        """Return how the limits stand, without charging anything."""
        return await self._flow.peek(key)

    async def observe(
        self,
        key: str = "",
        *,
        limit: str = "",
        remaining: int | None = None,
        reset_after: float | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Take into account what a provider said: from now on no more passes than that. It never lets more pass.

        Arguments:
            key: Whose quota.
            limit: The name of the limit that it spoke of; "" for an only one.
            remaining: What it would still admit.
            reset_after: Seconds until its quota is whole again; a token bucket is then full no earlier.
            retry_after: Seconds for which it admits nothing; for a window: nothing as long as this window lasts.
        """
        await self._flow.observe(key, limit, remaining, reset_after, retry_after)

    async def reset(self, key: str = "") -> None:
        """Forget everything that was charged."""
        await self._flow.reset(key)

    async def aclose(self) -> None:
        """Close what this object opened itself."""
        await self._close()
