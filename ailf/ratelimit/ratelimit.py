"""Quotas that processes share: `RateLimiter` and `AsyncRateLimiter`, both over `ailf.ratelimit.flow.LimiterFlow`."""

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, TypeVar

from ailf.engine import Engine
from ailf.engine.standalone import StandaloneObject
from ailf.errors import InvalidArgumentError
from ailf.limits import Limit
from ailf.ratelimit.flow import LimiterFlow
from ailf.ratelimit.options import LimiterOptions, OnBackendError
from ailf.ratelimit.permit import AsyncPermit, Permit
from ailf.runtime import run
from ailf.runtime.decorating import Step, within, within_async
from ailf.values import Decision

__all__ = ["AsyncPermitContext", "AsyncRateLimiter", "PermitContext", "RateLimiter"]

F = TypeVar("F", bound=Callable[..., Any])
AsyncF = TypeVar("AsyncF", bound=Callable[..., Awaitable[Any] | AsyncIterator[Any]])


class _RateLimiterBase(StandaloneObject):
    """The base of `RateLimiter` and `AsyncRateLimiter`: the options."""

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
        """The limits by name; an unnamed limit has the name ""."""
        return self._options.limits

    def __repr__(self) -> str:
        limits = ", ".join(f"{name or 'limit'} {limit}" for name, limit in self.limits.items())
        return f"<{type(self).__name__} {self.name!r}: {limits}>"


def _call(step: Callable[..., Awaitable[Any]], *args: Any) -> Awaitable[Any]:
    """Run a step of an async generator: a permit that is lost doesn't end it."""
    return step(*args)


def _check_limited(flow: LimiterFlow[Any], key: object, costs: Mapping[str, int], timeout: float | None) -> None:
    """Raise the errors of every later call already when the function is decorated."""
    if not isinstance(key, str) and not callable(key):
        raise InvalidArgumentError(f"key must be text, or a function of the call's arguments, not {key!r}")
    flow.checked(key if isinstance(key, str) else "", costs, timeout)


class PermitContext:
    """A context manager that acquires a permit on entry and releases its concurrency slots at the end."""

    def __init__(self, flow: LimiterFlow[Permit], key: str, timeout: float | None, costs: Mapping[str, int]) -> None:
        self._flow = flow
        self._arguments = flow.checked(key, costs, timeout)
        self._permit: Permit | None = None

    def __enter__(self) -> Permit:
        """Acquire the permit and return it.

        Raises:
            RateLimitedError: The call was not allowed in time.
        """
        if self._permit is not None:
            raise self._flow.entered_already(self._arguments[0])
        try:
            self._permit = permit = run(self._flow.acquire(*self._arguments))
            return permit  # noqa: TRY300 - Ctrl-C may come up to here
        except BaseException:
            self._permit = None
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Release the concurrency slots."""
        permit, self._permit = self._permit, None
        if permit is not None:
            permit.__exit__(kind, error, at)


class AsyncPermitContext:
    """A context manager that acquires a permit on entry and releases its concurrency slots at the end."""

    def __init__(
        self, flow: LimiterFlow[AsyncPermit], key: str, timeout: float | None, costs: Mapping[str, int]
    ) -> None:
        self._flow = flow
        self._arguments = flow.checked(key, costs, timeout)
        self._permit: AsyncPermit | None = None

    async def __aenter__(self) -> AsyncPermit:
        """Acquire the permit and return it.

        Raises:
            RateLimitedError: The call was not allowed in time.
        """
        if self._permit is not None:
            raise self._flow.entered_already(self._arguments[0])
        self._permit = await self._flow.acquire(*self._arguments)
        return self._permit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Release the concurrency slots."""
        permit, self._permit = self._permit, None
        if permit is not None:
            await permit.__aexit__(kind, error, at)


class RateLimiter(_RateLimiterBase):
    """Quotas that all processes share. Get one from `Backend.rate_limiter`; annotate with this class.

    A limiter has one limit, or several with names. A call passes if every limit allows it, and then every limit charges
    it, all in one round trip. Keyword arguments give the costs of a call by the names of the limits, or ``cost=3`` for
    an unnamed limit; a limit that is not mentioned costs 1. Each key has a state of its own, which takes constant space
    and expires. The object may be shared by any number of threads.

    Arguments:
        name: Any non-empty text. Limiters share their charges if their name and their limits' names and periods match.
        limit: The limit, or a text such as ``"60/minute"`` (`parse_limit`).
        limits: Several limits by name, instead of `limit`.
        on_backend_error: What happens to a call if the backend can't answer: ``"raise"``, ``"allow"`` or ``"deny"``.
        count_denied: Whether a denied call is charged as far as there is room, so that a quick retry waits longer.
        cache_denials: Whether denials are remembered in this process until the call may pass, without a request to the
            backend. Such a limiter gives no refunds, as they would invalidate remembered denials: `settle` can't lower
            a charge. It shares no charges with limiters that don't remember denials.

    Example:
        >>> import ailf
        >>> with ailf.connect("memory://") as backend:
        ...     api = backend.rate_limiter("api", requests="60/minute", tokens="10000/day")
        ...     with api.hold("user-1", tokens=900, timeout=5) as permit:
        ...         permit.settle(tokens=850)
        ...     api.peek("user-1").limits["tokens"].remaining
        9150
    """

    @functools.cached_property
    def _flow(self) -> LimiterFlow[Permit]:
        return LimiterFlow(self._engine, self._options, Permit)

    def try_acquire(self, key: str = "", **costs: int) -> Decision[Permit]:
        """Decide whether a call passes now, and charge it if it does. It takes one round trip.

        While another call waits for the same key, a call that doesn't wait is denied.

        Arguments:
            key: The key whose quota counts, such as a user or a model; any text.
            costs: The costs of the call by limit.

        Raises:
            ClosedError: The backend was closed.
            BackendError: The backend couldn't answer (with ``on_backend_error="raise"``).
        """
        return run(self._flow.try_acquire(key, costs))

    def acquire(self, key: str = "", *, timeout: float | None = None, **costs: int) -> Permit:
        """Wait in the key's queue until a call passes, and return its permit.

        Arguments:
            key: The key whose quota counts.
            timeout: Seconds to wait. 0 tries once, in one round trip; None waits for ever.
            costs: The costs of the call by limit.

        Raises:
            RateLimitedError: The call was not allowed in time, or a cost is above the capacity of its limit. If the
                backend was unavailable, its error is the cause.
            ClosedError: The backend was closed.
            BackendError: The backend refused the request, or is unavailable and `timeout` is 0. Nothing stays charged.
        """
        return run(self._flow.acquire(key, costs, timeout))

    def hold(self, key: str = "", *, timeout: float | None = None, **costs: int) -> PermitContext:
        """Return a context manager that acquires a permit, and releases its concurrency slots at the end.

        Arguments:
            key: As for `acquire`.
            timeout: As for `acquire`.
            costs: As for `acquire`.
        """
        return PermitContext(self._flow, key, timeout, costs)

    def limited(
        self, key: str | Callable[..., str] = "", *, timeout: float | None = None, **costs: int
    ) -> Callable[[F], F]:
        """Return a decorator: each call of the function waits for a permit, and releases its concurrency slots.

        For a generator function the permit is acquired with the first item, and its slots are released when the
        iteration ends: exhausted, closed, garbage-collected, or by an error. A function that only returns an iterator
        releases them when it returns.

        Arguments:
            key: The key whose quota counts, or a function that returns it for the arguments of the call.
            timeout: Seconds that a call waits before it raises `RateLimitedError`; None waits for ever.
            costs: The costs of a call by limit.

        Raises:
            InvalidArgumentError: The decorated object is not callable, or is a function for asyncio.
        """
        _check_limited(self._flow, key, costs, timeout)

        def key_of(*args: Any, **options: Any) -> str:
            return key if isinstance(key, str) else key(*args, **options)

        def hold(*args: Any, **options: Any) -> PermitContext:
            return self.hold(key_of(*args, **options), timeout=timeout, **costs)

        @contextlib.contextmanager
        def iterate(*args: Any, **options: Any) -> Iterator[None]:
            with (
                self._flow.iterating(key_of(*args, **options), costs, timeout) as iteration,
                hold(*args, **options) as permit,
            ):
                iteration.holds(permit)
                yield

        def limit(function: F) -> F:
            return within("the limited function", hold, function, iterate)

        return limit

    def reserve(self, key: str = "", *, within: float | None = None, **costs: int) -> Permit:
        """Charge a call in advance and return its permit at once; the call may begin at ``permit.ready_at``.

        Only token buckets can be charged in advance.

        Arguments:
            key: The key whose quota counts.
            within: The longest wait, in seconds; None for a day.
            costs: The costs of the call by limit.

        Raises:
            RateLimitedError: The call would wait for longer, or can never pass; nothing was charged.
            UnsupportedError: A limit with a cost above 0 is not a token bucket.
            BackendError: The backend couldn't answer (with ``on_backend_error="raise"``).
        """
        return run(self._flow.reserve(key, costs, within))

    def peek(self, key: str = "") -> Decision[Permit]:
        """Return the state of the limits, as a decision that charges nothing."""
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
        """Take a provider's report into account. It lowers what may pass, and never raises it.

        Arguments:
            key: The key whose quota counts.
            limit: The name of the reported limit; "" for an unnamed one.
            remaining: The cost that the provider would still admit.
            reset_after: Seconds until the provider's quota is whole again; a token bucket is full no earlier than that.
            retry_after: Seconds for which the provider admits nothing; a window admits nothing until it is over.

        Raises:
            InvalidArgumentError: There is no such limit, it is a `Concurrency`, or a number can't be used.
            BackendError: The backend couldn't do it.
        """
        run(self._flow.observe(key, limit, remaining, reset_after, retry_after))

    def reset(self, key: str = "") -> None:
        """Forget all charges of a key.

        Raises:
            UnsupportedError: The limiter has ``cache_denials``.
            BackendError: The backend couldn't do it.
        """
        run(self._flow.reset(key))

    def close(self) -> None:
        """Close the backend that this object opened itself, if any."""
        run(self._close())


class AsyncRateLimiter(_RateLimiterBase):
    """Quotas that all processes share. Get one from `AsyncBackend.rate_limiter`; annotate with this class.

    A limiter has one limit, or several with names. A call passes if every limit allows it, and then every limit charges
    it, all in one round trip. Keyword arguments give the costs of a call by the names of the limits, or ``cost=3`` for
    an unnamed limit; a limit that is not mentioned costs 1. Each key has a state of its own, which takes constant space
    and expires. The object may be shared by any number of tasks.

    Arguments:
        name: Any non-empty text. Limiters share their charges if their name and their limits' names and periods match.
        limit: The limit, or a text such as ``"60/minute"`` (`parse_limit`).
        limits: Several limits by name, instead of `limit`.
        on_backend_error: What happens to a call if the backend can't answer: ``"raise"``, ``"allow"`` or ``"deny"``.
        count_denied: Whether a denied call is charged as far as there is room, so that a quick retry waits longer.
        cache_denials: Whether denials are remembered in this process until the call may pass, without a request to the
            backend. Such a limiter gives no refunds, as they would invalidate remembered denials: `settle` can't lower
            a charge. It shares no charges with limiters that don't remember denials.

    Example:
        >>> import asyncio, ailf
        >>> async def main() -> None:
        ...     async with ailf.connect_async("memory://") as backend:
        ...         api = backend.rate_limiter("api", requests="60/minute", tokens="10000/day")
        ...         async with api.hold("user-1", tokens=900, timeout=5) as permit:
        ...             await permit.settle(tokens=850)
        ...         print((await api.peek("user-1")).limits["tokens"].remaining)
        >>> asyncio.run(main())
        9150
    """

    @functools.cached_property
    def _flow(self) -> LimiterFlow[AsyncPermit]:
        return LimiterFlow(self._engine, self._options, AsyncPermit)

    async def try_acquire(self, key: str = "", **costs: int) -> Decision[AsyncPermit]:
        """Decide whether a call passes now, and charge it if it does. It takes one round trip.

        While another call waits for the same key, a call that doesn't wait is denied.

        Arguments:
            key: The key whose quota counts, such as a user or a model; any text.
            costs: The costs of the call by limit.

        Raises:
            ClosedError: The backend was closed.
            BackendError: The backend couldn't answer (with ``on_backend_error="raise"``).
        """
        return await self._flow.try_acquire(key, costs)

    async def acquire(self, key: str = "", *, timeout: float | None = None, **costs: int) -> AsyncPermit:
        """Wait in the key's queue until a call passes, and return its permit.

        Arguments:
            key: The key whose quota counts.
            timeout: Seconds to wait. 0 tries once, in one round trip; None waits for ever.
            costs: The costs of the call by limit.

        Raises:
            RateLimitedError: The call was not allowed in time, or a cost is above the capacity of its limit. If the
                backend was unavailable, its error is the cause.
            ClosedError: The backend was closed.
            BackendError: The backend refused the request, or is unavailable and `timeout` is 0. Nothing stays charged.
        """
        return await self._flow.acquire(key, costs, timeout)

    def hold(self, key: str = "", *, timeout: float | None = None, **costs: int) -> AsyncPermitContext:
        """Return a context manager that acquires a permit, and releases its concurrency slots at the end.

        Arguments:
            key: As for `acquire`.
            timeout: As for `acquire`.
            costs: As for `acquire`.
        """
        return AsyncPermitContext(self._flow, key, timeout, costs)

    def limited(
        self, key: str | Callable[..., str] = "", *, timeout: float | None = None, **costs: int
    ) -> Callable[[AsyncF], AsyncF]:
        """Return a decorator: each call of the function waits for a permit, and releases its concurrency slots.

        For an async generator function the permit is acquired with the first item, and its slots are released when the
        iteration ends: exhausted, closed, garbage-collected, or by an error. A function that only returns an iterator
        releases them when it returns.

        Arguments:
            key: The key whose quota counts, or a function that returns it for the arguments of the call.
            timeout: Seconds that a call waits before it raises `RateLimitedError`; None waits for ever.
            costs: The costs of a call by limit.

        Raises:
            InvalidArgumentError: The decorated object is not callable, or is a blocking generator function.
        """
        _check_limited(self._flow, key, costs, timeout)

        def key_of(*args: Any, **options: Any) -> str:
            return key if isinstance(key, str) else key(*args, **options)

        def hold(*args: Any, **options: Any) -> AsyncPermitContext:
            return self.hold(key_of(*args, **options), timeout=timeout, **costs)

        @contextlib.asynccontextmanager
        async def iterate(*args: Any, **options: Any) -> AsyncIterator[Step]:
            with self._flow.iterating(key_of(*args, **options), costs, timeout) as iteration:
                async with hold(*args, **options) as permit:
                    iteration.holds(permit)
                    yield _call

        def limit(function: AsyncF) -> AsyncF:
            return within_async("the limited function", hold, function, iterate)

        return limit

    async def reserve(self, key: str = "", *, within: float | None = None, **costs: int) -> AsyncPermit:
        """Charge a call in advance and return its permit at once; the call may begin at ``permit.ready_at``.

        Only token buckets can be charged in advance.

        Arguments:
            key: The key whose quota counts.
            within: The longest wait, in seconds; None for a day.
            costs: The costs of the call by limit.

        Raises:
            RateLimitedError: The call would wait for longer, or can never pass; nothing was charged.
            UnsupportedError: A limit with a cost above 0 is not a token bucket.
            BackendError: The backend couldn't answer (with ``on_backend_error="raise"``).
        """
        return await self._flow.reserve(key, costs, within)

    async def peek(self, key: str = "") -> Decision[AsyncPermit]:
        """Return the state of the limits, as a decision that charges nothing."""
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
        """Take a provider's report into account. It lowers what may pass, and never raises it.

        Arguments:
            key: The key whose quota counts.
            limit: The name of the reported limit; "" for an unnamed one.
            remaining: The cost that the provider would still admit.
            reset_after: Seconds until the provider's quota is whole again; a token bucket is full no earlier than that.
            retry_after: Seconds for which the provider admits nothing; a window admits nothing until it is over.

        Raises:
            InvalidArgumentError: There is no such limit, it is a `Concurrency`, or a number can't be used.
            BackendError: The backend couldn't do it.
        """
        await self._flow.observe(key, limit, remaining, reset_after, retry_after)

    async def reset(self, key: str = "") -> None:
        """Forget all charges of a key.

        Raises:
            UnsupportedError: The limiter has ``cache_denials``.
            BackendError: The backend couldn't do it.
        """
        await self._flow.reset(key)

    async def aclose(self) -> None:
        """Close the backend that this object opened itself, if any."""
        await self._close()
