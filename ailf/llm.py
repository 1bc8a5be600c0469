"""Quotas of LLM providers: limits per minute, reported usage, and response headers, as a rate limiter takes them.

Pure functions that make arguments. Nothing in here waits, and no provider's library is needed: what a provider says is
read by its names.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypedDict, TypeVar, cast

from ailf.checks import check_count
from ailf.errors import InvalidArgumentError
from ailf.limits import Concurrency, Limit, TokenBucket, as_limit

__all__ = ["LlmLimits", "llm_limits", "observed", "usage"]

log = logging.getLogger("ailf.rate_limiter")

T = TypeVar("T")

QUOTAS: Final = ("requests", "tokens", "input_tokens", "output_tokens")
COUNTS: Final = ("tokens", "input_tokens", "output_tokens")
SENT: Final = (  # of each provider: the names whose sum is meant, where the first is reported
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
    ("thoughtsTokenCount",),  # where it was cut off while it was thinking
    ("candidates_token_count", "thoughts_token_count"),
    ("thoughts_token_count",),
)
TOTAL: Final = (("total_tokens",), ("totalTokens",), ("totalTokenCount",), ("total_token_count",))
PROXY: Final = "llm_provider-"
"""What LiteLLM puts before the names of a provider's headers."""
HEADERS: Final = ("x-ratelimit-{part}-{quota}", "anthropic-ratelimit-{quota}-{part}")
LONGEST_PERIOD: Final = 120.0  # a quota per minute is whole again after a minute; twice that, as providers round
LONGEST_PAUSE: Final = 3600.0  # then a provider is asked again, whatever it said

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ms|[hms])")


class LlmLimits(TypedDict, total=False):
    """Limits by name, as ``backend.rate_limiter`` takes them; a plain dict."""

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

    A number is a quota per minute, of which all may be used at once after a pause: a token bucket, which is how OpenAI
    and Anthropic count. Where a provider allows less at once, or counts any minute, a text says so:
    ``"60/minute burst 1"``, ``"500/minute sliding"``.

    Arguments:
        requests: Requests per minute; or a text, or a limit.
        tokens: Tokens per minute, in and out together, as OpenAI counts them; or a text, or a limit.
        input_tokens: Tokens per minute that are sent, as Anthropic counts them; or a text, or a limit.
        output_tokens: Tokens per minute that are generated; or a text, or a limit.
        parallel: How many calls may be under way at the same time; or a text, or a limit.
        ttl: Seconds after which the place of a process that has died is free again, where ``parallel`` is a number.

    Raises:
        InvalidArgumentError: There is no limit at all, or one that can't be.
    """
    given = dict(zip(QUOTAS, (requests, tokens, input_tokens, output_tokens), strict=True))
    limits: Any = {
        name: TokenBucket(quota, per=60.0) if isinstance(quota, int) else as_limit(f"the limit {name!r}", quota)
        for name, quota in given.items()
        if quota is not None
    }
    if parallel is not None:
        slots = Concurrency(parallel, ttl) if isinstance(parallel, int) else parallel
        limits["parallel"] = as_limit("the limit 'parallel'", slots)
    if not limits:
        raise InvalidArgumentError("llm_limits needs at least one limit, as in llm_limits(requests=500, tokens=30_000)")
    return cast(LlmLimits, limits)


def usage(reported: object, names: Iterable[str] = COUNTS) -> dict[str, int]:
    """Return what a provider reported as costs, for ``permit.settle(**usage(response.usage, permit.limits))``.

    Known are OpenAI's ``prompt_tokens``, ``completion_tokens`` and ``total_tokens``; the ``input_tokens`` and
    ``output_tokens`` of Anthropic and of OpenAI's responses; Bedrock's ``inputTokens``, ``outputTokens`` and
    ``totalTokens``; and the ``usageMetadata`` of Gemini and Vertex AI: ``promptTokenCount``, ``candidatesTokenCount``,
    ``thoughtsTokenCount`` and ``totalTokenCount``, or ``prompt_token_count``, … as its Python library calls them.

    Tokens that are written to a cache are input too (``cache_creation_input_tokens``, ``cacheWriteInputTokens``); those
    that are read from one and reported apart are not counted, as most models don't count them towards a limit. Thoughts
    are output. Where no total is reported, ``tokens`` is the sum.

    Arguments:
        reported: The usage in a provider's answer: an object with these attributes, or a mapping. None: none was
            reported, so there is nothing to settle and estimates stay.
        names: Which of ``tokens``, ``input_tokens`` and ``output_tokens`` are wanted; others are ignored. So a permit's
            ``limits`` may be given, whichever it has: it has none where it was allowed without the backend.

    Returns:
        The wanted costs that are known.

    Raises:
        InvalidArgumentError: It has no such counts, or some that are no whole numbers.
    """
    if not reported:
        return {}
    sent, out, total = (_sum(reported, kinds) for kinds in (SENT, GENERATED, TOTAL))
    if (sent, out, total) == (None, None, None):
        known = ", ".join(names[0] for names in (*SENT, *GENERATED, *TOTAL))
        raise InvalidArgumentError(
            f"{type(reported).__name__} has none of {known}; give the usage of a provider's answer, such as "
            "response.usage or response.usage_metadata"
        )
    told = dict(zip(COUNTS, ((sent or 0) + (out or 0) if total is None else total, sent, out), strict=True))
    wanted = _names(names)
    return {name: count for name, count in told.items() if count is not None and name in wanted}


def observed(
    headers: Mapping[str, str], names: Iterable[str] = QUOTAS, *, now: float | None = None
) -> list[dict[str, Any]]:
    """Return what a response's headers say: the arguments of ``limiter.observe(key, **each)``, for each limit.

    Known are ``x-ratelimit-remaining-requests`` and ``-tokens``, of OpenAI and of those who do as it does (Azure, Groq,
    …), and Anthropic's ``anthropic-ratelimit-requests-remaining``, ``-tokens-``, ``-input-tokens-`` and
    ``-output-tokens-``. The ``…-reset…`` beside them counts where, taken with ``…-limit…``, it is that of a quota per
    minute: to some accounts these headers tell requests per day, whose reset would stop a limit per minute for hours.
    ``retry-after``, which comes with the status 429 as seconds or as a date, is passed on for the first of the names,
    usually requests; of an hour at most. Azure's ``retry-after-ms`` and ``x-ms-retry-after-ms`` are finer and come
    before it. LiteLLM's prefix ``llm_provider-`` is left out.

    What can't be understood is left out and logged at level DEBUG; it never raises.

    Arguments:
        headers: A response's headers, in upper or lower case.
        names: Which limits there are; others than these four are ignored, so a limiter's ``limits`` may be given.
        now: When the response was sent, in seconds since 1970, for what is told as a point in time; unless told the
            ``date`` in the headers, or else the time of this process.
    """
    plain = {str(name).lower(): str(text).strip() for name, text in headers.items()}
    known = {name.removeprefix(PROXY): text for name, text in plain.items() if name.startswith(PROXY)} | plain
    dated = _read(known, "date", _date)
    sent = (time.time() if dated is None else dated) if now is None else now
    wanted = _names(names)
    quotas = [quota for quota in QUOTAS if quota in wanted]
    seen = [each for quota in quotas for pattern in HEADERS if (each := _quota(known, pattern, quota, sent))]
    pause = _pause(known, sent)
    if pause and quotas:
        seen.append({"limit": quotas[0], "retry_after": min(pause, LONGEST_PAUSE)})
    return seen


def _names(names: Iterable[str]) -> set[str]:
    return {names} if isinstance(names, str) else set(names)


def _count(reported: object, name: str) -> int | None:
    count = reported.get(name) if isinstance(reported, Mapping) else getattr(reported, name, None)
    return None if count is None else check_count(f"the reported {name}", count, least=0)


def _sum(reported: object, kinds: Iterable[tuple[str, ...]]) -> int | None:
    """Return what is reported under the names of one provider; None where there is none."""
    for first, *others in kinds:
        count = _count(reported, first)
        if count is not None:
            return count + sum(_count(reported, name) or 0 for name in others)
    return None


def _quota(headers: Mapping[str, str], pattern: str, quota: str, sent: float) -> dict[str, Any]:
    """Return what is said of one quota; nothing unless it is said how much remains."""
    parts = ("limit", "remaining", "reset")
    limit, left, reset = (pattern.format(part=part, quota=quota.replace("_", "-")) for part in parts)
    remaining, most = _read(headers, left, _whole), _read(headers, limit, _whole)
    after = _read(headers, reset, lambda text: _wait(text, sent))
    if remaining is None:
        return {}
    # What is missing comes back in so long; all of it would in as much longer as it is more.
    if most is not None and after is not None and after * most <= LONGEST_PERIOD * (most - remaining):
        return {"limit": quota, "remaining": remaining, "reset_after": after}
    return {"limit": quota, "remaining": remaining}


def _read(headers: Mapping[str, str], name: str, parse: Callable[[str], T]) -> T | None:
    """Return what a header says; None where it is missing or can't be understood."""
    text = headers.get(name)
    try:
        return None if text is None else parse(text)
    except (ValueError, OverflowError) as error:
        log.debug("ignored the header %s, %r: %s", name, text, error)
        return None


def _pause(headers: Mapping[str, str], sent: float) -> float | None:
    """Return the seconds for which nothing is to be sent, from the finest header that says so."""
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        pause = _read(headers, name, lambda text: _duration(text + "ms"))
        if pause is not None:
            return pause
    return _read(headers, "retry-after", lambda text: _pause_of(text, sent))


def _pause_of(text: str, sent: float) -> float:
    """Return the seconds of a duration, or those until a date (RFC 9110)."""
    return max(0.0, _date(text) - sent) if "," in text else _duration(text)


def _date(text: str) -> float:
    """Return a date of HTTP, which is in GMT, in seconds since 1970."""
    at = parsedate_to_datetime(text)
    return (at.replace(tzinfo=UTC) if at.tzinfo is None else at).timestamp()


def _whole(text: str) -> int:
    if not re.fullmatch("[0-9]{1,15}", text):
        raise ValueError("no whole number")
    return int(text)


def _duration(text: str) -> float:
    """Return the seconds of ``6m0s``, ``120ms``, ``8.64s``, or of a number of them."""
    parts = text if re.search("[a-z]", text) else text + "s"
    if not re.fullmatch(f"(?:{_PART.pattern})+", parts):
        raise ValueError("no duration")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(parts))


def _wait(text: str, sent: float) -> float:
    """Return the seconds of a duration, or those until a time (RFC 3339)."""
    if not re.match("[0-9]{4}-", text):
        return _duration(text)
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("a time without its zone")
    return max(0.0, at.timestamp() - sent)
