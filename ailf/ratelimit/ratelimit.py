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
from ailf.ratelimit.keys import Keys, KeysOf
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
        root: str | None = None,
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
            root=root,
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

    @property
    def root(self) -> str | None:
        """The root of a budget tree; None for a limiter whose limits share one key."""
        return self._options.root

    def __repr__(self) -> str:
        limits = ", ".join(f"{name or 'limit'} {limit}" for name, limit in self.limits.items())
        return f"<{type(self).__name__} {self.name!r}: {limits}>"


def _call(step: Callable[..., Awaitable[Any]], *args: Any) -> Awaitable[Any]:
    """Run a step of an async generator: a permit that is lost doesn't end it."""
    return step(*args)


class _Limited:
    """The arguments of `limited`: where the keys of each call come from."""

    def __init__(
        self,
        flow: LimiterFlow[Any],
        key: str | Callable[..., str],
        keys: KeysOf | None,
        costs: Mapping[str, int],
        timeout: float | None,
    ) -> None:
        """Raise the errors of every later call already when the function is decorated."""
        if not isinstance(key, str) and not callable(key):
            raise InvalidArgumentError(f"key must be text, or a function of the call's arguments, not {key!r}")
        if callable(key) and keys is not None:
            raise InvalidArgumentError("give key or keys, but not both")
        if callable(key) or callable(keys):
            flow.check_call(costs, timeout)
        else:
            flow.checked(key, keys, costs, timeout)
        self._key, self._keys = key, keys

    def keys_of(self, *args: Any, **options: Any) -> tuple[str, Keys | None]:
        """Return the key and the keys of a call with these arguments."""
        key, keys = self._key, self._keys
        return (
            key(*args, **options) if callable(key) else key,
            keys(*args, **options) if callable(keys) else keys,
        )


class PermitContext:
    """A context manager that acquires a permit on entry and releases its concurrency slots at the end."""

    def __init__(
        self,
        flow: LimiterFlow[Permit],
        key: str,
        keys: Keys | None,
        timeout: float | None,
        costs: Mapping[str, int],
    ) -> None:
        self._flow = flow
        self._arguments = flow.checked(key, keys, costs, timeout)
        self._permit: Permit | None = None

    def __enter__(self) -> Permit:
        """Acquire the permit and return it.

        Raises:
            RateLimitedError: The call was not allowed in time.
        """
        if self._permit is not None:
            raise self._flow.entered_already(*self._arguments[:2])
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
        self,
        flow: LimiterFlow[AsyncPermit],
        key: str,
        keys: Keys | None,
        timeout: float | None,
        costs: Mapping[str, int],
    ) -> None:
        self._flow = flow
        self._arguments = flow.checked(key, keys, costs, timeout)
        self._permit: AsyncPermit | None = None

    async def __aenter__(self) -> AsyncPermit:
        """Acquire the permit and return it.

        Raises:
            RateLimitedError: The call was not allowed in time.
        """
        if self._permit is not None:
            raise self._flow.entered_already(*self._arguments[:2])
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
    and expires.

    With a `root` the limiter is a budget tree: each limit is charged under a key of its own, which ``keys`` of the call
    names, such as that of a run, a team and an organisation. ``cost`` is then the cost by each rate that is not named.

    The object may be shared by any number of threads.

    Arguments:
        name: Any non-empty text. Limiters share their charges if their name and their limits' names and periods match.
        limit: The limit, or a text such as ``"60/minute"`` (`parse_limit`).
        limits: Several limits by name, instead of `limit`.
        root: Makes it a budget tree: a name under which all keys of the tree are stored together, in a cluster on one
            node. Trees with other roots, and limiters without a root, share no charges with it.
        on_backend_error: What happens to a call if the backend can't answer: ``"raise"``, ``"allow"`` or ``"deny"``.
        count_denied: Whether a denied call is charged as far as there is room, so that a quick retry waits longer; not
            in a budget tree.
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

    def try_acquire(self, key: str = "", *, keys: Keys | None = None, **costs: int) -> Decision[Permit]:
        """Decide whether a call passes now, and charge it if it does. It takes one round trip.

        While another call waits for the same key, a call that doesn't wait is denied; in a budget tree, while another
        one waits for a limit of this call, under the same key.

        Arguments:
            key: The key whose quota counts, such as a user or a model; any text.
            keys: In a budget tree the key of each limit, by the limit's name, in place of one `key`.
            costs: The costs of the call by limit.

        Raises:
            ClosedError: The backend was closed.
            BackendError: The backend couldn't answer (with ``on_backend_error="raise"``).
        """
        return run(self._flow.try_acquire(key, keys, costs))

    def acquire(self, key: str = "", *, keys: Keys | None = None, timeout: float | None = None, **costs: int) -> Permit:
        """Wait in the key's queue until a call passes, and return its permit.

        In a budget tree it waits in the queue of the limit that binds, under that limit's key.

        Arguments:
            key: The key whose quota counts.
            keys: As for `try_acquire`.
            timeout: Seconds to wait. 0 tries once, in one round trip; None waits for ever.
            costs: The costs of the call by limit.

        Raises:
            RateLimitedError: The call was not allowed in time, or a cost is above the capacity of its limit. If the
                backend was unavailable, its error is the cause.
            ClosedError: The backend was closed.
            BackendError: The backend refused the request, or is unavailable and `timeout` is 0. Nothing stays charged.
        """
        return run(self._flow.acquire(key, keys, costs, timeout))

    def hold(
        self, key: str = "", *, keys: Keys | None = None, timeout: float | None = None, **costs: int
    ) -> PermitContext:
        """Return a context manager that acquires a permit, and releases its concurrency slots at the end.

        Arguments:
            key: As for `acquire`.
            keys: As for `acquire`.
            timeout: As for `acquire`.
            costs: As for `acquire`.
        """
        return PermitContext(self._flow, key, keys, timeout, costs)

    def limited(
        self,
        key: str | Callable[..., str] = "",
        *,
        keys: KeysOf | None = None,
        timeout: float | None = None,
        **costs: int,
    ) -> Callable[[F], F]:
        """Return a decorator: each call of the function waits for a permit, and releases its concurrency slots.

        For a generator function the permit is acquired with the first item, and its slots are released when the
        iteration ends: exhausted, closed, garbage-collected, or by an error. A function that only returns an iterator
        releases them when it returns.

        Arguments:
            key: The key whose quota counts, or a function that returns it for the arguments of the call.
            keys: In a budget tree the key of each limit, or a function that returns them for the arguments of the call.
            timeout: Seconds that a call waits before it raises `RateLimitedError`; None waits for ever.
            costs: The costs of a call by limit.

        Raises:
            InvalidArgumentError: The decorated object is not callable, or is a function for asyncio.
        """
        call = _Limited(self._flow, key, keys, costs, timeout)

        def hold(*args: Any, **options: Any) -> PermitContext:
            own_key, own_keys = call.keys_of(*args, **options)
            return self.hold(own_key, keys=own_keys, timeout=timeout, **costs)

        @contextlib.contextmanager
        def iterate(*args: Any, **options: Any) -> Iterator[None]:
            with (
                self._flow.iterating(*call.keys_of(*args, **options), costs, timeout) as iteration,
                hold(*args, **options) as permit,
            ):
                iteration.holds(permit)
                yield

        def limit(function: F) -> F:
            return within("the limited function", hold, function, iterate)

        return limit

    def reserve(self, key: str = "", *, keys: Keys | None = None, within: float | None = None, **costs: int) -> Permit:
        """Charge a call in advance and return its permit at once; the call may begin at ``permit.ready_at``.

        Only token buckets can be charged in advance.

        Arguments:
            key: The key whose quota counts.
            keys: As for `try_acquire`.
            within: The longest wait, in seconds; None for a day.
            costs: The costs of the call by limit.

        Raises:
            RateLimitedError: The call would wait for longer, or can never pass; nothing was charged.
            UnsupportedError: A limit with a cost above 0 is not a token bucket.
            BackendError: The backend couldn't answer (with ``on_backend_error="raise"``).
        """
        return run(self._flow.reserve(key, keys, costs, within))

    def peek(self, key: str = "", *, keys: Keys | None = None) -> Decision[Permit]:
        """Return the state of the limits, as a decision that charges nothing.

        Arguments:
            key: The key whose quota counts.
            keys: In a budget tree the keys of the limits to look at; the decision has these limits only.
        """
        return run(self._flow.peek(key, keys))

    def observe(
        self,
        key: str = "",
        *,
        keys: Keys | None = None,
        limit: str = "",
        remaining: int | None = None,
        reset_after: float | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Take a provider's report into account. It lowers what may pass, and never raises it.

        Arguments:
            key: The key whose quota counts.
            keys: In a budget tree the key of the limit; others are ignored.
            limit: The name of the reported limit; "" for an unnamed one.
            remaining: The cost that the provider would still admit.
            reset_after: Seconds until the provider's quota is whole again; a token bucket is full no earlier than that.
            retry_after: Seconds for which the provider admits nothing; a window admits nothing until it is over.

        Raises:
            InvalidArgumentError: There is no such limit, it is a `Concurrency`, or a number can't be used.
            BackendError: The backend couldn't do it.
        """
        run(self._flow.observe(key, keys, limit, remaining, reset_after, retry_after))

    def reset(self, key: str = "", *, keys: Keys | None = None) -> None:
        """Forget all charges of a key.

        Arguments:
            key: The key; in a budget tree that of every limit.
            keys: In a budget tree the keys of the limits to reset: ``{"team": "search"}`` resets this team alone.

        Raises:
            UnsupportedError: The limiter has ``cache_denials``.
            BackendError: The backend couldn't do it.
        """
        run(self._flow.reset(key, keys))

    def close(self) -> None:
        """Close the backend that this object opened itself, if any."""
        run(self._close())


class AsyncRateLimiter(_RateLimiterBase):
    """Quotas that all processes share. Get one from `AsyncBackend.rate_limiter`; annotate with this class.

    A limiter has one limit, or several with names. A call passes if every limit allows it, and then every limit charges
    it, all in one round trip. Keyword arguments give the costs of a call by the names of the limits, or ``cost=3`` for
    an unnamed limit; a limit that is not mentioned costs 1. Each key has a state of its own, which takes constant space
    and expires.

    With a `root` the limiter is a budget tree: each limit is charged under a key of its own, which ``keys`` of the call
    names, such as that of a run, a team and an organisation. ``cost`` is then the cost by each rate that is not named.

    The object may be shared by any number of tasks.

    Arguments:
        name: Any non-empty text. Limiters share their charges if their name and their limits' names and periods match.
        limit: The limit, or a text such as ``"60/minute"`` (`parse_limit`).
        limits: Several limits by name, instead of `limit`.
        root: Makes it a budget tree: a name under which all keys of the tree are stored together, in a cluster on one
            node. Trees with other roots, and limiters without a root, share no charges with it.
        on_backend_error: What happens to a call if the backend can't answer: ``"raise"``, ``"allow"`` or ``"deny"``.
        count_denied: Whether a denied call is charged as far as there is room, so that a quick retry waits longer; not
            in a budget tree.
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

    async def try_acquire(self, key: str = "", *, keys: Keys | None = None, **costs: int) -> Decision[AsyncPermit]:
        """Decide whether a call passes now, and charge it if it does. It takes one round trip.

        While another call waits for the same key, a call that doesn't wait is denied; in a budget tree, while another
        one waits for a limit of this call, under the same key.

        Arguments:
            key: The key whose quota counts, such as a user or a model; any text.
            keys: In a budget tree the key of each limit, by the limit's name, in place of one `key`.
            costs: The costs of the call by limit.

        Raises:
            ClosedError: The backend was closed.
            BackendError: The backend couldn't answer (with ``on_backend_error="raise"``).
        """
        return await self._flow.try_acquire(key, keys, costs)

    async def acquire(
        self, key: str = "", *, keys: Keys | None = None, timeout: float | None = None, **costs: int
    ) -> AsyncPermit:
        """Wait in the key's queue until a call passes, and return its permit.

        In a budget tree it waits in the queue of the limit that binds, under that limit's key.

        Arguments:
            key: The key whose quota counts.
            keys: As for `try_acquire`.
            timeout: Seconds to wait. 0 tries once, in one round trip; None waits for ever.
            costs: The costs of the call by limit.

        Raises:
            RateLimitedError: The call was not allowed in time, or a cost is above the capacity of its limit. If the
                backend was unavailable, its error is the cause.
            ClosedError: The backend was closed.
            BackendError: The backend refused the request, or is unavailable and `timeout` is 0. Nothing stays charged.
        """
        return await self._flow.acquire(key, keys, costs, timeout)

    def hold(
        self, key: str = "", *, keys: Keys | None = None, timeout: float | None = None, **costs: int
    ) -> AsyncPermitContext:
        """Return a context manager that acquires a permit, and releases its concurrency slots at the end.

        Arguments:
            key: As for `acquire`.
            keys: As for `acquire`.
            timeout: As for `acquire`.
            costs: As for `acquire`.
        """
        return AsyncPermitContext(self._flow, key, keys, timeout, costs)

    def limited(
        self,
        key: str | Callable[..., str] = "",
        *,
        keys: KeysOf | None = None,
        timeout: float | None = None,
        **costs: int,
    ) -> Callable[[AsyncF], AsyncF]:
        """Return a decorator: each call of the function waits for a permit, and releases its concurrency slots.

        For an async generator function the permit is acquired with the first item, and its slots are released when the
        iteration ends: exhausted, closed, garbage-collected, or by an error. A function that only returns an iterator
        releases them when it returns.

        Arguments:
            key: The key whose quota counts, or a function that returns it for the arguments of the call.
            keys: In a budget tree the key of each limit, or a function that returns them for the arguments of the call.
            timeout: Seconds that a call waits before it raises `RateLimitedError`; None waits for ever.
            costs: The costs of a call by limit.

        Raises:
            InvalidArgumentError: The decorated object is not callable, or is a blocking generator function.
        """
        call = _Limited(self._flow, key, keys, costs, timeout)

        def hold(*args: Any, **options: Any) -> AsyncPermitContext:
            own_key, own_keys = call.keys_of(*args, **options)
            return self.hold(own_key, keys=own_keys, timeout=timeout, **costs)

        @contextlib.asynccontextmanager
        async def iterate(*args: Any, **options: Any) -> AsyncIterator[Step]:
            with self._flow.iterating(*call.keys_of(*args, **options), costs, timeout) as iteration:
                async with hold(*args, **options) as permit:
                    iteration.holds(permit)
                    yield _call

        def limit(function: AsyncF) -> AsyncF:
            return within_async("the limited function", hold, function, iterate)

        return limit

    async def reserve(
        self, key: str = "", *, keys: Keys | None = None, within: float | None = None, **costs: int
    ) -> AsyncPermit:
        """Charge a call in advance and return its permit at once; the call may begin at ``permit.ready_at``.

        Only token buckets can be charged in advance.

        Arguments:
            key: The key whose quota counts.
            keys: As for `try_acquire`.
            within: The longest wait, in seconds; None for a day.
            costs: The costs of the call by limit.

        Raises:
            RateLimitedError: The call would wait for longer, or can never pass; nothing was charged.
            UnsupportedError: A limit with a cost above 0 is not a token bucket.
            BackendError: The backend couldn't answer (with ``on_backend_error="raise"``).
        """
        return await self._flow.reserve(key, keys, costs, within)

    async def peek(self, key: str = "", *, keys: Keys | None = None) -> Decision[AsyncPermit]:
        """Return the state of the limits, as a decision that charges nothing.

        Arguments:
            key: The key whose quota counts.
            keys: In a budget tree the keys of the limits to look at; the decision has these limits only.
        """
        return await self._flow.peek(key, keys)

    async def observe(
        self,
        key: str = "",
        *,
        keys: Keys | None = None,
        limit: str = "",
        remaining: int | None = None,
        reset_after: float | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Take a provider's report into account. It lowers what may pass, and never raises it.

        Arguments:
            key: The key whose quota counts.
            keys: In a budget tree the key of the limit; others are ignored.
            limit: The name of the reported limit; "" for an unnamed one.
            remaining: The cost that the provider would still admit.
            reset_after: Seconds until the provider's quota is whole again; a token bucket is full no earlier than that.
            retry_after: Seconds for which the provider admits nothing; a window admits nothing until it is over.

        Raises:
            InvalidArgumentError: There is no such limit, it is a `Concurrency`, or a number can't be used.
            BackendError: The backend couldn't do it.
        """
        await self._flow.observe(key, keys, limit, remaining, reset_after, retry_after)

    async def reset(self, key: str = "", *, keys: Keys | None = None) -> None:
        """Forget all charges of a key.

        Arguments:
            key: The key; in a budget tree that of every limit.
            keys: In a budget tree the keys of the limits to reset: ``{"team": "search"}`` resets this team alone.

        Raises:
            UnsupportedError: The limiter has ``cache_denials``.
            BackendError: The backend couldn't do it.
        """
        await self._flow.reset(key, keys)

    async def aclose(self) -> None:
        """Close the backend that this object opened itself, if any."""
        await self._close()
