"""The limits of an account at a provider, from numbers per minute."""

from typing import TYPE_CHECKING, Any, Final, cast

from ailf.errors import InvalidArgumentError
from ailf.limits import Concurrency, Limit, TokenBucket, as_limit

if TYPE_CHECKING:
    from typing_extensions import TypedDict

__all__ = ["QUOTAS", "LlmLimits", "llm_limits"]

QUOTAS: Final = ("requests", "tokens", "input_tokens", "output_tokens")


if TYPE_CHECKING:

    class LlmLimits(TypedDict, total=False, closed=True):  # else ``**`` might pass any object by any name
        """Limits by name, for ``backend.rate_limiter``; a plain dict."""

        requests: Limit
        tokens: Limit
        input_tokens: Limit
        output_tokens: Limit
        parallel: Limit

else:
    LlmLimits = dict[str, Limit]


def llm_limits(
    *,
    requests: int | str | Limit | None = None,
    tokens: int | str | Limit | None = None,
    input_tokens: int | str | Limit | None = None,
    output_tokens: int | str | Limit | None = None,
    parallel: int | str | Limit | None = None,
    ttl: float = 120.0,
) -> LlmLimits:
    """Return the limits of an account at a provider, for ``backend.rate_limiter("openai", **llm_limits(…))``.

    A number is a quota per minute, as a token bucket: all of it may be used at once after a pause. OpenAI and Anthropic
    count like this. If a provider allows smaller bursts, or counts in a sliding window, give a text:
    ``"60/minute burst 1"``, ``"500/minute sliding"``.

    Arguments:
        requests: Requests per minute; or a text, or a limit.
        tokens: Tokens per minute, input and output together, as OpenAI counts them; or a text, or a limit.
        input_tokens: Input tokens per minute, as Anthropic counts them; or a text, or a limit.
        output_tokens: Output tokens per minute; or a text, or a limit.
        parallel: Calls at the same time; or a text, or a limit.
        ttl: Seconds after which the slot of a process that has died is free again, if ``parallel`` is a number.

    Raises:
        InvalidArgumentError: There is no limit, or an argument isn't a limit.
    """
    quotas = dict(zip(QUOTAS, (requests, tokens, input_tokens, output_tokens), strict=True))
    limits: Any = {
        name: TokenBucket(quota, per=60.0) if isinstance(quota, int) else as_limit(f"the limit {name!r}", quota)
        for name, quota in quotas.items()
        if quota is not None
    }
    if parallel is not None:
        slots = Concurrency(parallel, ttl) if isinstance(parallel, int) else parallel
        limits["parallel"] = as_limit("the limit 'parallel'", slots)
    if not limits:
        raise InvalidArgumentError("llm_limits needs at least one limit, as in llm_limits(requests=500, tokens=30_000)")
    return cast(LlmLimits, limits)
