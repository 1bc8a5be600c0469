"""Quotas of LLM providers: the arguments made of limits, reported usage and headers."""

import logging
import types
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import ailf
from ailf import Concurrency, SlidingWindow, TokenBucket
from ailf.llm import llm_limits, observed, usage
from ailf.testing import ManualClock
from ailf_memory import MemoryBackend
from tests.support.effort import examples

NOW = 1_700_000_000.0
EVERYTHING = {"tokens", "input_tokens", "output_tokens"}


def later(seconds: float) -> str:
    """Return a time in the format of Anthropic."""
    return (datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def date(seconds: float) -> str:
    """Return a time in the format of HTTP."""
    return format_datetime(datetime.fromtimestamp(NOW + seconds, UTC), usegmt=True)


# --- limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ({"requests": 500}, {"requests": TokenBucket(500, per=60)}),
        ({"tokens": "30000/minute burst 10000"}, {"tokens": TokenBucket(30_000, per=60, burst=10_000)}),
        ({"tokens": SlidingWindow(9, per=60)}, {"tokens": SlidingWindow(9, per=60)}),
        ({"parallel": 8}, {"parallel": Concurrency(8, ttl=120)}),
        ({"parallel": 8, "ttl": 5}, {"parallel": Concurrency(8, ttl=5)}),
        ({"parallel": "8 parallel ttl 7s", "ttl": 5}, {"parallel": Concurrency(8, ttl=7)}),
        (
            {"requests": 50, "input_tokens": 20_000, "output_tokens": 8_000, "parallel": None},
            {
                "requests": TokenBucket(50, per=60),
                "input_tokens": TokenBucket(20_000, per=60),
                "output_tokens": TokenBucket(8_000, per=60),
            },
        ),
    ],
)
def test_limits(given: dict[str, Any], limits: dict[str, Any]) -> None:
    """Numbers are quotas per minute, texts and limits are used as they are, and None is no limit."""
    assert llm_limits(**given) == limits
    with MemoryBackend() as backend:
        assert backend.rate_limiter("provider", **llm_limits(**given)).limits == limits


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "at least one limit"),
        ({"tokens": None}, "at least one limit"),
        ({"requests": 0}, "rate"),
        ({"requests": True}, "rate"),
        ({"requests": 1.5}, "'requests'"),
        ({"requests": "many"}, "many"),
        ({"tokens": object()}, "'tokens'"),
        ({"parallel": 0}, "limit"),
        ({"parallel": 8.0}, "'parallel'"),
        ({"parallel": 8, "ttl": 0}, "ttl"),
    ],
)
def test_bad_limits(given: dict[str, Any], words: str) -> None:
    """A wrong limit is an error that names it or its mistake."""
    with pytest.raises(ailf.InvalidArgumentError, match=words):
        llm_limits(**given)


# --- usage -------------------------------------------------------------------------------------------------------

USAGES = [
    # OpenAI, chat
    (
        {
            "prompt_tokens": 13,
            "completion_tokens": 5,
            "total_tokens": 18,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
        {"tokens": 18, "input_tokens": 13, "output_tokens": 5},
    ),
    # OpenAI, embeddings
    ({"prompt_tokens": 8, "total_tokens": 8}, {"tokens": 8, "input_tokens": 8}),
    # OpenAI, responses
    (
        {"input_tokens": 36, "output_tokens": 87, "total_tokens": 123},
        {"tokens": 123, "input_tokens": 36, "output_tokens": 87},
    ),
    # Anthropic, without and with its cache
    ({"input_tokens": 10, "output_tokens": 20}, {"tokens": 30, "input_tokens": 10, "output_tokens": 20}),
    (
        {
            "input_tokens": 10,
            "output_tokens": 20,
            "cache_creation_input_tokens": 100,
            "cache_read_input_tokens": 5_000,
        },
        {"tokens": 130, "input_tokens": 110, "output_tokens": 20},
    ),
    (
        {"input_tokens": 10, "output_tokens": 0, "cache_creation_input_tokens": None},
        {"tokens": 10, "input_tokens": 10, "output_tokens": 0},
    ),
    # prompt tokens that include the cache already
    (
        {"prompt_tokens": 110, "completion_tokens": 20, "cache_creation_input_tokens": 100},
        {"tokens": 130, "input_tokens": 110, "output_tokens": 20},
    ),
    # Bedrock's Converse
    (
        {"inputTokens": 5, "outputTokens": 6, "totalTokens": 11},
        {"tokens": 11, "input_tokens": 5, "output_tokens": 6},
    ),
    (
        {"inputTokens": 5, "outputTokens": 6, "cacheReadInputTokens": 900, "cacheWriteInputTokens": 100},
        {"tokens": 111, "input_tokens": 105, "output_tokens": 6},
    ),
    # Gemini and Vertex AI, as JSON and as the Python library's object
    (
        {"promptTokenCount": 5, "candidatesTokenCount": 3, "thoughtsTokenCount": 20, "totalTokenCount": 28},
        {"tokens": 28, "input_tokens": 5, "output_tokens": 23},
    ),
    (
        {"promptTokenCount": 5, "thoughtsTokenCount": 20, "toolUsePromptTokenCount": 2},
        {"tokens": 27, "input_tokens": 7, "output_tokens": 20},
    ),
    (
        {
            "prompt_token_count": 10,
            "candidates_token_count": 20,
            "thoughts_token_count": None,
            "cached_content_token_count": 4,
            "total_token_count": 30,
        },
        {"tokens": 30, "input_tokens": 10, "output_tokens": 20},
    ),
    ({"prompt_token_count": 10, "total_token_count": 10}, {"tokens": 10, "input_tokens": 10}),
    # parts only
    ({"total_tokens": 7}, {"tokens": 7}),
    ({"output_tokens": 7}, {"tokens": 7, "output_tokens": 7}),
    ({"prompt_tokens": 7, "completion_tokens": None, "total_tokens": None}, {"tokens": 7, "input_tokens": 7}),
    # nothing
    (None, {}),
    ({}, {}),
]


@pytest.mark.parametrize(("reported", "costs"), USAGES)
def test_usage(reported: dict[str, Any] | None, costs: dict[str, int]) -> None:
    """Reported usage, as a mapping or an object, becomes costs by the names of the limits."""
    assert usage(reported) == costs
    if reported:
        assert usage(types.SimpleNamespace(**reported)) == costs
    for name in EVERYTHING:
        assert usage(reported, [name, "requests"]) == {each: cost for each, cost in costs.items() if each == name}
        assert usage(reported, name) == usage(reported, [name])
    assert usage(reported, ()) == {}


@pytest.mark.parametrize(
    ("reported", "words"),
    [
        ({"id": "chatcmpl-1"}, "give the usage"),
        (types.SimpleNamespace(usage={"total_tokens": 1}), "SimpleNamespace"),
        ({"total_tokens": "18"}, "total_tokens"),
        ({"total_tokens": -1}, "total_tokens"),
        ({"input_tokens": 1.5}, "input_tokens"),
    ],
)
def test_bad_usage(reported: object, words: str) -> None:
    """A value that is no usage is refused, as wrong estimates would go unnoticed."""
    with pytest.raises(ailf.InvalidArgumentError, match=words):
        usage(reported)


# --- headers -----------------------------------------------------------------------------------------------------

OPENAI = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-limit-tokens": "150000",
    "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-remaining-tokens": "149984",
    "x-ratelimit-reset-requests": "1s",
    "x-ratelimit-reset-tokens": "6ms",
}
ANTHROPIC = {
    f"anthropic-ratelimit-{quota}-{part}": text
    for quota, texts in {
        "requests": ("50", "49", later(2)),
        "tokens": ("48000", "24000", later(30)),
        "input-tokens": ("40000", "20000", later(30)),
        "output-tokens": ("8000", "0", later(60)),
    }.items()
    for part, text in zip(("limit", "remaining", "reset"), texts, strict=True)
}


@pytest.mark.parametrize(
    ("headers", "names", "seen"),
    [
        (
            OPENAI,
            ["requests", "tokens", "parallel"],
            [
                {"limit": "requests", "remaining": 59, "reset_after": 1.0},
                {"limit": "tokens", "remaining": 149_984, "reset_after": 0.006},
            ],
        ),
        (OPENAI, ["tokens"], [{"limit": "tokens", "remaining": 149_984, "reset_after": 0.006}]),
        (OPENAI, ["input_tokens", "images"], []),
        (
            ANTHROPIC,
            ["output_tokens", "requests", "input_tokens", "tokens"],
            [
                {"limit": "requests", "remaining": 49, "reset_after": 2.0},
                {"limit": "tokens", "remaining": 24_000, "reset_after": 30.0},
                {"limit": "input_tokens", "remaining": 20_000, "reset_after": 30.0},
                {"limit": "output_tokens", "remaining": 0, "reset_after": 60.0},
            ],
        ),
        ({"retry-after": "20"}, ["requests", "tokens"], [{"limit": "requests", "retry_after": 20.0}]),
        ({"retry-after": "1.5"}, ["tokens"], [{"limit": "tokens", "retry_after": 1.5}]),
        ({"retry-after": "999999999999"}, ["requests"], [{"limit": "requests", "retry_after": 3600.0}]),
        ({"retry-after": "0"}, ["requests"], []),
        ({"retry-after": "20"}, ["images"], []),
        ({"retry-after": date(20)}, ["requests"], [{"limit": "requests", "retry_after": 20.0}]),
        ({"retry-after": date(20).replace("GMT", "-0000")}, ["requests"], [{"limit": "requests", "retry_after": 20.0}]),
        ({"retry-after": date(86_400)}, ["requests"], [{"limit": "requests", "retry_after": 3600.0}]),
        ({"retry-after": date(-5)}, ["requests"], []),
        ({"retry-after-ms": "1500"}, ["requests"], [{"limit": "requests", "retry_after": 1.5}]),
        ({"retry-after-ms": "1500", "retry-after": "2"}, ["requests"], [{"limit": "requests", "retry_after": 1.5}]),
        ({"x-ms-retry-after-ms": "900.5"}, ["requests"], [{"limit": "requests", "retry_after": 0.9005}]),
        ({"retry-after-ms": "soon", "retry-after": "2"}, ["requests"], [{"limit": "requests", "retry_after": 2.0}]),
        (
            {"llm_provider-x-ratelimit-remaining-requests": "3", "llm_provider-retry-after": "2"},
            ["requests"],
            [{"limit": "requests", "remaining": 3}, {"limit": "requests", "retry_after": 2.0}],
        ),
        (
            {"x-ratelimit-remaining-requests": "4", "llm_provider-x-ratelimit-remaining-requests": "3"},
            ["requests"],
            [{"limit": "requests", "remaining": 4}],
        ),
        ({"x-ratelimit-remaining-requests": "0"}, ["requests"], [{"limit": "requests", "remaining": 0}]),
        ({"content-type": "application/json"}, ["requests"], []),
        ({}, ["requests"], []),
    ],
)
def test_observed(headers: dict[str, str], names: list[str], seen: list[dict[str, Any]]) -> None:
    """Headers become arguments of `observe` for the given limits, in upper or lower case."""
    assert observed(headers, names, now=NOW) == seen
    assert observed({name.title(): f" {text} " for name, text in headers.items()}, names, now=NOW) == seen


@pytest.mark.parametrize(
    ("limit", "remaining", "reset", "kept"),
    [
        ("60", "0", "60s", True),
        ("60", "30", "30", True),
        ("60", "60", "0s", True),
        ("50", "49", "2s", True),  # rounded to seconds
        ("10000", "9999", "8.64s", False),  # of a day
        ("10000", "5000", "12h0m0s", False),
        ("14400", "14370", "2m59.56s", False),
        ("60", "0", "24h0m0s", False),
        ("60", "61", "0s", False),
    ],
)
def test_resets_of_days(limit: str, remaining: str, reset: str, kept: bool) -> None:
    """The reset of a quota per day is ignored: it would stop a limit per minute until then."""
    headers = dict(zip(OPENAI, (limit, "1", remaining, "1", reset, "1s"), strict=True))
    [seen] = observed(headers, "requests")
    assert seen["remaining"] == int(remaining)
    assert ("reset_after" in seen) is kept


@pytest.mark.parametrize(
    "headers",
    [
        {"x-ratelimit-remaining-requests": "many"},
        {"x-ratelimit-remaining-requests": "-1"},
        {"x-ratelimit-remaining-requests": "٣"},
        {"x-ratelimit-remaining-requests": "9" * 5000},
        {"x-ratelimit-remaining-requests": ""},
        {"retry-after": "soon"},
        {"retry-after": "-5"},
        {"retry-after": "nan"},
        {"retry-after": "1e9"},
        {"retry-after": "Tue, 99 Nov 2023 22:13:20 GMT"},
        {"retry-after-ms": "1.5s"},
        {"x-ms-retry-after-ms": "-1"},
    ],
)
def test_malformed_headers(headers: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """A header that can't be parsed is ignored and logged, and nothing is raised."""
    caplog.set_level(logging.DEBUG, "ailf.rate_limiter")
    assert observed(headers) == []
    [record] = caplog.records
    assert record.levelno == logging.DEBUG
    assert next(iter(headers)) in record.getMessage()


@pytest.mark.parametrize("reset", ["", "s", "1s1", "6m 0s", "1w", "-1s", "2023-11-14", "2023-11-14T22:13:21"])
def test_malformed_resets(reset: str) -> None:
    """What remains is reported even if the reset can't be parsed."""
    headers = {**OPENAI, "x-ratelimit-reset-requests": reset}
    assert observed(headers, "requests", now=NOW) == [{"limit": "requests", "remaining": 59}]


PAUSES = ["retry-after", "retry-after-ms", "x-ms-retry-after-ms", "date"]


@examples(100, suppress_health_check=[HealthCheck.too_slow])  # hypothesis makes tables of characters for the first text
@given(
    st.dictionaries(
        st.sampled_from([*OPENAI, *ANTHROPIC, *PAUSES]),
        st.text() | st.integers(-3600, 10**9).map(date),
    )
)
def test_anything(headers: dict[str, str]) -> None:
    """No headers raise, and `observe` accepts all results."""
    with MemoryBackend() as backend:
        limiter = backend.rate_limiter("provider", **llm_limits(requests=30_000, tokens=150_000_000, parallel=8))
        for each in observed(headers, limiter.limits):
            limiter.observe(**each)


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_durations(hours: int, minutes: int, seconds: int, milliseconds: int) -> None:
    """A duration in Go's format is parsed."""
    total = hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
    fraction = f"{milliseconds / 1000:.3f}"[1:].rstrip("0").rstrip(".")
    if hours:
        text = f"{hours}h{minutes}m{seconds}{fraction}s"
    elif minutes:
        text = f"{minutes}m{seconds}{fraction}s"
    else:
        text = f"{seconds}{fraction}s" if seconds else f"{milliseconds}ms"
    headers = {
        "x-ratelimit-limit-requests": "1000000000000",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": text,
        "retry-after": text,
    }
    report, *pause = observed(headers, "requests")
    assert report.get("reset_after") == (pytest.approx(total) if total <= 120 else None)
    assert [each["retry_after"] for each in pause] == ([pytest.approx(min(total, 3600))] if total else [])


def test_the_time_of_a_response() -> None:
    """A reset that is a point in time counts from when the provider sent it, not from this process's time."""
    sent = format_datetime(datetime.fromtimestamp(NOW, UTC), usegmt=True)
    [seen] = observed({**ANTHROPIC, "Date": sent}, "output_tokens")
    assert seen["reset_after"] == 60.0
    [seen] = observed(ANTHROPIC, "output_tokens", now=NOW + 20)
    assert seen["reset_after"] == 40.0
    for date in ({}, {"date": "today"}):  # long ago, by the time of this process
        [seen] = observed({**ANTHROPIC, **date}, "output_tokens")
        assert seen["reset_after"] == 0.0


# --- together ----------------------------------------------------------------------------------------------------


def test_a_minute() -> None:
    """Limits, usage and headers work together: estimates are settled, and a provider's lower report counts."""
    clock = ManualClock()
    with MemoryBackend(clock=clock) as backend:
        llm = backend.rate_limiter("openai", **llm_limits(requests=60, tokens=6_000, parallel=1))
        with llm.hold("gpt", tokens=1_000) as permit:
            assert llm.try_acquire("gpt", tokens=1).bound == "parallel"
            permit.settle(**usage({"prompt_tokens": 300, "completion_tokens": 200, "total_tokens": 500}, permit.limits))
        assert llm.peek("gpt").limits["tokens"].remaining == 5_500
        assert llm.peek("gpt").limits["requests"].remaining == 59

        headers = {
            "x-ratelimit-limit-tokens": "6000",
            "x-ratelimit-remaining-tokens": "1000",
            "x-ratelimit-reset-tokens": "50s",
            "x-ratelimit-remaining-requests": "5000",
        }
        for each in observed(headers, llm.limits):
            llm.observe("gpt", **each)
        assert llm.peek("gpt").limits["tokens"].remaining == 1_000
        assert llm.peek("gpt").limits["requests"].remaining == 59
        assert llm.try_acquire("gpt", tokens=1_100).retry_after == 1.0

        for each in observed({"retry-after": "20"}, llm.limits):
            llm.observe("gpt", **each)
        denied = llm.try_acquire("gpt", tokens=0)
        assert (denied.bound, denied.retry_after) == ("requests", 20.0)
        clock.advance(20)
        assert llm.try_acquire("gpt", tokens=3_000)


def test_settling_whatever_was_charged() -> None:
    """A permit's limits select the costs to settle: without a limit of tokens, and for a call without the backend."""
    reported = {"total_tokens": 500}

    async def decide(*_: Any) -> Any:
        raise ailf.ConnectionLostError("can't reach it")

    with MemoryBackend() as backend:
        with backend.rate_limiter("few", **llm_limits(requests=60)).hold() as permit:
            permit.settle(**usage(reported, permit.limits))
        driver = backend.engine.driver.rate_limiter()
        driver.decide = decide  # type: ignore[assignment,method-assign]
        backend.engine.driver.rate_limiter = lambda: driver  # type: ignore[method-assign]
        away = backend.rate_limiter("away", on_backend_error="allow", **llm_limits(tokens=60))
        with away.hold(tokens=10) as permit:
            permit.settle(**usage(reported, permit.limits))
