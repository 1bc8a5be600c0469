"""Quotas of LLM providers: turn limits per minute, reported usage and response headers into a limiter's arguments.

All functions are pure; nothing in here waits. No provider's library is needed: usage and headers are read by name.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypedDict, TypeVar, cast

from ailf.checks import check_count
from ailf.errors import InvalidArgumentError
from ailf.limits import Concurrency, Limit, TokenBucket, as_limit
from ailf.logs import Log

__all__ = ["LlmLimits", "llm_limits", "observed", "usage"]

log = Log("ailf.rate_limiter")

T = TypeVar("T")

QUOTAS: Final = ("requests", "tokens", "input_tokens", "output_tokens")
COUNTS: Final = ("tokens", "input_tokens", "output_tokens")
SENT: Final = (  # for each provider, names whose values are added up if the first one is reported
    ("input_tokens", "cache_creation_input_tokens"),
    ("prompt_tokens",),
    ("inputTokens", "cacheWriteInputTokens"),
    ("promptTokenCount", "toolUsePromptTokenCount"),
    ("prompt_token_count", "tool_use_prompt_token_count"),
)
GENERATED: Final = (
    ("output_tokens",),
    ("completion_tokens",),
    ("outputTokens",),
    ("candidatesTokenCount", "thoughtsTokenCount"),
    ("thoughtsTokenCount",),  # the answer was cut off during the thoughts
    ("candidates_token_count", "thoughts_token_count"),
    ("thoughts_token_count",),
)
TOTAL: Final = (("total_tokens",), ("totalTokens",), ("totalTokenCount",), ("total_token_count",))
PROXY: Final = "llm_provider-"
"""The prefix that LiteLLM adds to the names of a provider's headers."""
HEADERS: Final = ("x-ratelimit-{part}-{quota}", "anthropic-ratelimit-{quota}-{part}")
LONGEST_PERIOD: Final = 120.0  # a quota per minute is full again after a minute; doubled, because providers round
LONGEST_PAUSE: Final = 3600.0  # a longer ``retry-after`` is shortened to this

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ms|[hms])")


class LlmLimits(TypedDict, total=False):
    """Limits by name, for ``backend.rate_limiter``; a plain dict."""

    requests: Limit
    tokens: Limit
    input_tokens: Limit
    output_tokens: Limit
    parallel: Limit


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


def usage(reported: object, names: Iterable[str] = COUNTS) -> dict[str, int]:
    """Return the reported usage of a call as costs, for ``permit.settle(**usage(response.usage, permit.limits))``.

    It reads OpenAI's ``prompt_tokens``, ``completion_tokens`` and ``total_tokens``; the ``input_tokens`` and
    ``output_tokens`` of Anthropic and of OpenAI's Responses API; Bedrock's ``inputTokens``, ``outputTokens`` and
    ``totalTokens``; and the ``usageMetadata`` of Gemini and Vertex AI: ``promptTokenCount``, ``candidatesTokenCount``,
    ``thoughtsTokenCount`` and ``totalTokenCount``, or ``prompt_token_count``, … as in their Python library.

    Tokens that are written to a cache count as input (``cache_creation_input_tokens``, ``cacheWriteInputTokens``).
    Tokens that are read from a cache and reported separately don't count, since most models don't count them towards a
    limit. Thoughts count as output. If no total is reported, ``tokens`` is the sum of input and output.

    Arguments:
        reported: The usage in a provider's response: an object with these attributes, or a mapping. None if the
            provider reported none: then there is nothing to settle, and the estimates stay.
        names: Which of the costs ``tokens``, ``input_tokens`` and ``output_tokens`` to return. Other names are ignored,
            so a permit's ``limits`` can be passed; they are empty if the call was allowed without the backend.

    Returns:
        The costs in ``names`` that the provider reported.

    Raises:
        InvalidArgumentError: ``reported`` has none of these counts, or a count isn't a whole number.
    """
    if not reported:
        return {}
    sent, out, total = (_sum(reported, kinds) for kinds in (SENT, GENERATED, TOTAL))
    if (sent, out, total) == (None, None, None):
        fields = ", ".join(names[0] for names in (*SENT, *GENERATED, *TOTAL))
        raise InvalidArgumentError(
            f"{type(reported).__name__} has none of {fields}; give the usage of a provider's response, such as "
            "response.usage or response.usage_metadata"
        )
    costs = dict(zip(COUNTS, ((sent or 0) + (out or 0) if total is None else total, sent, out), strict=True))
    wanted = _names(names)
    return {name: count for name, count in costs.items() if count is not None and name in wanted}


def observed(
    headers: Mapping[str, str], names: Iterable[str] = QUOTAS, *, now: float | None = None
) -> list[dict[str, Any]]:
    """Return the arguments of ``limiter.observe(key, **each)`` for each limit that a response's headers report on.

    It reads ``x-ratelimit-remaining-requests`` and ``-tokens``, of OpenAI and compatible providers (Azure, Groq, …);
    and Anthropic's ``anthropic-ratelimit-requests-remaining``, ``-tokens-``, ``-input-tokens-`` and
    ``-output-tokens-``.

    - ``…-reset…`` is used only if, compared with ``…-limit…``, it belongs to a quota per minute. For some accounts the
      headers report requests per day, and such a reset would stop a limit per minute for hours.
    - ``retry-after``, which comes with the status 429 as seconds or as a date, is returned for the first of the names,
      usually requests; as an hour at most. Azure's ``retry-after-ms`` and ``x-ms-retry-after-ms`` have more precision
      and take precedence.
    - LiteLLM's prefix ``llm_provider-`` is removed.

    It never raises: a header that can't be parsed is ignored and logged at level DEBUG.

    Arguments:
        headers: A response's headers, in upper or lower case.
        names: The names of the limits. Names that aren't among these four are ignored, so a limiter's ``limits`` can
            be passed.
        now: When the response was sent, in seconds since 1970, for values that are points in time. None: the ``date``
            in the headers, or else the time of this process.
    """
    plain = {str(name).lower(): str(text).strip() for name, text in headers.items()}
    unprefixed = {name.removeprefix(PROXY): text for name, text in plain.items() if name.startswith(PROXY)} | plain
    dated = _read(unprefixed, "date", _date)
    sent = (time.time() if dated is None else dated) if now is None else now
    wanted = _names(names)
    quotas = [quota for quota in QUOTAS if quota in wanted]
    reports = [each for quota in quotas for pattern in HEADERS if (each := _quota(unprefixed, pattern, quota, sent))]
    pause = _pause(unprefixed, sent)
    if pause and quotas:
        reports.append({"limit": quotas[0], "retry_after": min(pause, LONGEST_PAUSE)})
    return reports


def _names(names: Iterable[str]) -> set[str]:
    return {names} if isinstance(names, str) else set(names)


def _count(reported: object, name: str) -> int | None:
    count = reported.get(name) if isinstance(reported, Mapping) else getattr(reported, name, None)
    return None if count is None else check_count(f"the reported {name}", count, least=0)


def _sum(reported: object, kinds: Iterable[tuple[str, ...]]) -> int | None:
    """Return the sum of the counts under the names of the first provider that matches; None if none does."""
    for first, *others in kinds:
        count = _count(reported, first)
        if count is not None:
            return count + sum(_count(reported, name) or 0 for name in others)
    return None


def _quota(headers: Mapping[str, str], pattern: str, quota: str, sent: float) -> dict[str, Any]:
    """Return the arguments of `observe` for one quota; an empty dict if the headers don't report what remains."""
    parts = ("limit", "remaining", "reset")
    limit, left, reset = (pattern.format(part=part, quota=quota.replace("_", "-")) for part in parts)
    remaining, most = _read(headers, left, _whole), _read(headers, limit, _whole)
    reset_after = _read(headers, reset, lambda text: _wait(text, sent))
    if remaining is None:
        return {}
    # `reset_after` is the time until the missing part is back. Scaled by limit / missing part it is the quota's period.
    if most is not None and reset_after is not None and reset_after * most <= LONGEST_PERIOD * (most - remaining):
        return {"limit": quota, "remaining": remaining, "reset_after": reset_after}
    return {"limit": quota, "remaining": remaining}


def _read(headers: Mapping[str, str], name: str, parse: Callable[[str], T]) -> T | None:
    """Return the parsed value of a header; None if the header is missing or can't be parsed."""
    text = headers.get(name)
    try:
        return None if text is None else parse(text)
    except (ValueError, OverflowError) as error:
        log.debug(None, "ignored the header %s, %r: %s", name, text, error)
        return None


def _pause(headers: Mapping[str, str], sent: float) -> float | None:
    """Return the seconds for which to send nothing, from the most precise header that is there."""
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        pause = _read(headers, name, lambda text: _duration(text + "ms"))
        if pause is not None:
            return pause
    return _read(headers, "retry-after", lambda text: _pause_of(text, sent))


def _pause_of(text: str, sent: float) -> float:
    """Return the seconds of a duration, or the seconds until a date (RFC 9110)."""
    return max(0.0, _date(text) - sent) if "," in text else _duration(text)


def _date(text: str) -> float:
    """Return an HTTP date, which is in GMT, in seconds since 1970."""
    at = parsedate_to_datetime(text)
    return (at.replace(tzinfo=UTC) if at.tzinfo is None else at).timestamp()


def _whole(text: str) -> int:
    if not re.fullmatch("[0-9]{1,15}", text):
        raise ValueError("no whole number")
    return int(text)


def _duration(text: str) -> float:
    """Return the seconds of ``6m0s``, ``120ms`` or ``8.64s``; a plain number is seconds."""
    parts = text if re.search("[a-z]", text) else text + "s"
    if not re.fullmatch(f"(?:{_PART.pattern})+", parts):
        raise ValueError("no duration")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(parts))


def _wait(text: str, sent: float) -> float:
    """Return the seconds of a duration, or the seconds until a time (RFC 3339)."""
    if not re.match("[0-9]{4}-", text):
        return _duration(text)
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("a time without its zone")
    return max(0.0, at.timestamp() - sent)
