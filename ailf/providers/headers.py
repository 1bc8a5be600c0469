"""The quota that a response reports, in its headers or, for a rejected call, in its body."""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar

import msgspec

from ailf.logs import Log
from ailf.providers.limits import QUOTAS

__all__ = ["observed", "pause"]

log = Log("ailf.rate_limiter")

T = TypeVar("T")

PROXY: Final = "llm_provider-"
"""The prefix that LiteLLM adds to the names of a provider's headers."""
HEADERS: Final = (
    "x-ratelimit-{part}-{quota}",
    "anthropic-ratelimit-{quota}-{part}",
    "x-ratelimit-{part}-{quota}-minute",  # Cerebras; and Mistral, for tokens
)
OTHER_HEADERS: Final = {  # Mistral
    "requests": ("x-ratelimit-{part}-req-minute",),
    "tokens": ("x-ratelimitbysize-{part}-minute",),
}


def _fields(pattern: str, quota: str) -> tuple[str, str, str]:
    limit, remaining, reset = (
        pattern.format(part=part, quota=quota.replace("_", "-")) for part in ("limit", "remaining", "reset")
    )
    return limit, remaining, reset


FIELDS: Final = tuple(
    (quota, *_fields(pattern, quota)) for quota in QUOTAS for pattern in (*HEADERS, *OTHER_HEADERS.get(quota, ()))
)
"""Each quota with the headers of its limit, of what remains of it, and of its reset."""
LONGEST_PERIOD: Final = 120.0  # a quota per minute is full again after a minute; doubled, because providers round
LONGEST_PAUSE: Final = 3600.0  # a longer ``retry-after`` is shortened to this

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ms|[hms])")


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
    plain = _plain(headers)
    sent = _Sent(plain, now)
    wanted = _names(names)
    quotas = [quota for quota in QUOTAS if quota in wanted]
    reports = [
        report
        for quota, limit, remaining, reset in FIELDS
        if remaining in plain and quota in wanted and (report := _quota(plain, quota, limit, remaining, reset, sent))
    ]
    seconds = _pause(plain, sent)
    if seconds and quotas:
        reports.append({"limit": quotas[0], "retry_after": min(seconds, LONGEST_PAUSE)})
    return reports


def pause(headers: Mapping[str, str], body: bytes = b"", *, now: float | None = None) -> float | None:
    """Return the seconds for which a provider that rejected a call wants no other one; None if it doesn't say.

    It reads ``retry-after``, Azure's ``retry-after-ms`` and ``x-ms-retry-after-ms``, and, where there is none of them:
    ``x-ratelimit-reset`` with nothing left, as OpenRouter sends it in a header or in the body's ``error.metadata``; and
    the ``retryDelay`` of Google's ``RetryInfo`` in the body. It never raises.

    Arguments:
        headers: The response's headers, in upper or lower case.
        body: The response's body.
        now: As for `observed`.
    """
    plain = _plain(headers)
    sent = _Sent(plain, now)
    seconds = _pause(plain, sent)
    if seconds is not None:
        return min(seconds, LONGEST_PAUSE)
    details, more = _error(body)
    for each in (plain, more):
        seconds = _window_reset(each, sent)
        if seconds is not None:
            return seconds
    for detail in details:
        delay = detail.get("retryDelay")
        if isinstance(delay, str):
            seconds = _read({"retryDelay": delay}, "retryDelay", _duration)
            if seconds is not None:
                return min(seconds, LONGEST_PAUSE)
    return None


def _plain(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers in lower case, without LiteLLM's prefix."""
    lower = {str(name).lower(): str(text).strip() for name, text in headers.items()}
    return {name.removeprefix(PROXY): text for name, text in lower.items() if name.startswith(PROXY)} | lower


class _Sent:
    """When headers were sent, in seconds since 1970, for values that are points in time: most responses have none.

    Arguments:
        headers: The headers, whose date counts if no time is given.
        now: The time, or None.
    """

    def __init__(self, headers: Mapping[str, str], now: float | None) -> None:
        self._headers = headers
        self._now = now

    def __call__(self) -> float:
        if self._now is None:
            dated = _read(self._headers, "date", _date)
            self._now = time.time() if dated is None else dated
        return self._now


def _error(body: bytes) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the details of the error in a body, and the headers in its metadata."""
    try:
        told = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return [], {}
    if isinstance(told, list) and told:  # Gemini, where a stream was asked for
        told = told[0]
    error = told.get("error") if isinstance(told, dict) else None
    if not isinstance(error, dict):
        return [], {}
    details, metadata = error.get("details"), error.get("metadata")
    headers = metadata.get("headers") if isinstance(metadata, dict) else None
    found = [each for each in details if isinstance(each, dict)] if isinstance(details, list) else []
    plain = {str(name).lower(): str(text) for name, text in headers.items()} if isinstance(headers, dict) else {}
    return found, plain


def _window_reset(headers: Mapping[str, str], sent: _Sent) -> float | None:
    """Return the seconds until a window is over of which nothing is left; None for a window of more than a minute."""
    if headers.get("x-ratelimit-remaining") != "0":
        return None
    reset = _read(headers, "x-ratelimit-reset", _whole)
    if reset is None:
        return None
    at = reset / 1000 if reset > 10**11 else float(reset)  # since 1970, in milliseconds or in seconds
    seconds = at - sent() if at > 10**9 else at
    return seconds if 0 < seconds <= LONGEST_PERIOD else None


def _names(names: Iterable[str]) -> set[str]:
    return {names} if isinstance(names, str) else set(names)


def _quota(
    headers: Mapping[str, str], quota: str, limit: str, remaining: str, reset: str, sent: _Sent
) -> dict[str, Any]:
    """Return the arguments of `observe` for one quota; an empty dict if what remains of it can't be read."""
    left, most = _read(headers, remaining, _whole), _read(headers, limit, _whole)
    reset_after = _read(headers, reset, lambda text: _wait(text, sent))
    if left is None:
        return {}
    # `reset_after` is the time until the missing part is back. Scaled by limit / missing part it is the quota's period.
    if most is not None and reset_after is not None and reset_after * most <= LONGEST_PERIOD * (most - left):
        return {"limit": quota, "remaining": left, "reset_after": reset_after}
    return {"limit": quota, "remaining": left}


def _read(headers: Mapping[str, str], name: str, parse: Callable[[str], T]) -> T | None:
    """Return the parsed value of a header; None if the header is missing or can't be parsed."""
    text = headers.get(name)
    try:
        return None if text is None else parse(text)
    except (ValueError, OverflowError) as error:
        log.debug(None, "ignored the header %s, %r: %s", name, text, error)
        return None


def _pause(headers: Mapping[str, str], sent: _Sent) -> float | None:
    """Return the seconds for which to send nothing, from the most precise header that is there."""
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        pause = _read(headers, name, lambda text: _duration(text + "ms"))
        if pause is not None:
            return pause
    return _read(headers, "retry-after", lambda text: _pause_of(text, sent))


def _pause_of(text: str, sent: _Sent) -> float:
    """Return the seconds of a duration, or the seconds until a date (RFC 9110)."""
    return max(0.0, _date(text) - sent()) if "," in text else _duration(text)


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


def _wait(text: str, sent: _Sent) -> float:
    """Return the seconds of a duration, or the seconds until a time (RFC 3339)."""
    if not re.match("[0-9]{4}-", text):
        return _duration(text)
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("a time without its zone")
    return max(0.0, at.timestamp() - sent())
