"""Quotas of LLM providers: limits, estimates, reported usage and response headers as a limiter's arguments.

`quota` makes a limiter and the transport that applies it to every request of a provider's client. All other functions
are pure, and no provider's library is needed.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import attrs

from ailf.backend import AsyncBackend, Backend
from ailf.errors import InvalidArgumentError
from ailf.limits import Limit
from ailf.providers import LlmLimits, Provider, estimated, llm_limits, model_of, observed, usage
from ailf.providers.estimate import check_provider
from ailf.ratelimit import AsyncRateLimiter, OnBackendError, RateLimiter

if TYPE_CHECKING:
    from ailf.bridges.httpx import AsyncQuotaTransport, QuotaTransport

__all__ = ["LlmLimits", "Provider", "Quota", "estimated", "llm_limits", "model_of", "observed", "quota", "usage"]

L = TypeVar("L")
T = TypeVar("T")


@attrs.frozen
class Quota(Generic[L, T]):
    """A provider's quota, shared by all processes: its limiter, and the transport that applies it.

    >>> import ailf
    >>> from ailf.llm import quota
    >>> with ailf.connect("memory://") as backend:
    ...     account = quota("openai", backend, requests=500, tokens=30_000)
    ...     account.limiter.peek("gpt-mini").limits["tokens"].remaining
    30000

    Attributes:
        limiter: The `RateLimiter` or `AsyncRateLimiter`; its keys are the models.
        transport: The `ailf.bridges.httpx.QuotaTransport` or `AsyncQuotaTransport` for the client of the provider.
    """

    limiter: L
    transport: T


@overload
def quota(
    provider: Provider,
    backend: Backend,
    *,
    requests: int | str | Limit | None = None,
    tokens: int | str | Limit | None = None,
    input_tokens: int | str | Limit | None = None,
    output_tokens: int | str | Limit | None = None,
    parallel: int | str | Limit | None = None,
    ttl: float = 120.0,
    name: str = "",
    key: "str | Callable[[Any], str] | None" = None,
    count: Callable[[str], int] | None = None,
    max_wait: float = 600.0,
    wrapped: Any = None,
    on_backend_error: OnBackendError = "raise",
) -> "Quota[RateLimiter, QuotaTransport]": ...


@overload
def quota(
    provider: Provider,
    backend: AsyncBackend,
    *,
    requests: int | str | Limit | None = None,
    tokens: int | str | Limit | None = None,
    input_tokens: int | str | Limit | None = None,
    output_tokens: int | str | Limit | None = None,
    parallel: int | str | Limit | None = None,
    ttl: float = 120.0,
    name: str = "",
    key: "str | Callable[[Any], str] | None" = None,
    count: Callable[[str], int] | None = None,
    max_wait: float = 600.0,
    wrapped: Any = None,
    on_backend_error: OnBackendError = "raise",
) -> "Quota[AsyncRateLimiter, AsyncQuotaTransport]": ...


def quota(
    provider: Provider,
    backend: Backend | AsyncBackend,
    *,
    requests: int | str | Limit | None = None,
    tokens: int | str | Limit | None = None,
    input_tokens: int | str | Limit | None = None,
    output_tokens: int | str | Limit | None = None,
    parallel: int | str | Limit | None = None,
    ttl: float = 120.0,
    name: str = "",
    key: "str | Callable[[Any], str] | None" = None,
    count: Callable[[str], int] | None = None,
    max_wait: float = 600.0,
    wrapped: Any = None,
    on_backend_error: OnBackendError = "raise",
) -> "Quota[Any, Any]":
    """Return the limiter and the httpx transport for an account at a provider.

    ``openai.AsyncOpenAI(http_client=httpx2.AsyncClient(transport=quota("openai", backend, requests=500).transport))``
    stays within the quota, together with every other process that uses the same backend and name.

    Arguments:
        provider: The provider, such as ``"openai"`` or ``"anthropic"``: how its requests are estimated.
        backend: The backend whose processes share the quota; a blocking one gives blocking objects.
        requests: As for `llm_limits`, as are all limits and ``ttl``.
        tokens: As for `llm_limits`.
        input_tokens: As for `llm_limits`.
        output_tokens: As for `llm_limits`.
        parallel: As for `llm_limits`.
        ttl: As for `llm_limits`.
        name: The limiter's name, if it isn't the provider's: give each account one.
        key: As for `ailf.bridges.httpx.QuotaTransport`, as are the following. By default each model has a quota.
        count: Returns the number of tokens of a text.
        max_wait: Seconds that a call waits at most.
        wrapped: The transport that sends the requests.
        on_backend_error: As for `Backend.rate_limiter`.

    Raises:
        InvalidArgumentError: There is no such provider, no limit, or an argument can't be used.
        ImportError: Neither httpx2 nor httpx is installed.
    """
    check_provider(provider)
    limits = llm_limits(
        requests=requests,
        tokens=tokens,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        parallel=parallel,
        ttl=ttl,
    )
    if not isinstance(backend, Backend | AsyncBackend):
        raise InvalidArgumentError(f"quota needs an opened backend, not {type(backend).__name__}")
    from ailf.bridges import httpx as bridge  # noqa: PLC0415 - only here: the other functions need no HTTP library

    limiter: Any = backend.rate_limiter(name or provider, on_backend_error=on_backend_error, **limits)
    transport_class = bridge.QuotaTransport if isinstance(backend, Backend) else bridge.AsyncQuotaTransport
    estimate = bridge.Estimate(provider, count)
    options: dict[str, Any] = {"key": key, "estimate": estimate, "max_wait": max_wait, "wrapped": wrapped}
    return Quota(limiter, transport_class(limiter, refunds=provider != "azure", **options))
