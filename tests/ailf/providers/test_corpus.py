"""What providers really send, with the page or thread that shows it: usage, headers, rejections, streams."""

import json
from email.utils import formatdate
from typing import Any

import pytest

from ailf.providers import AnswerReader, observed, pause, usage
from ailf.providers.answers import reported_in

NOW = 1_700_000_000.0

# Each: the provider, the source, the response or its last event, the costs.
ANSWERS: list[tuple[str, str, dict[str, Any], dict[str, int]]] = [
    (
        *("openrouter", "openrouter.ai/docs/use-cases/usage-accounting"),
        {
            "object": "chat.completion.chunk",
            "usage": {
                "completion_tokens": 2,
                "completion_tokens_details": {"reasoning_tokens": 0},
                "cost": 0.95,
                "cost_details": {"upstream_inference_cost": 19},
                "prompt_tokens": 194,
                "total_tokens": 196,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            },
        },
        {"tokens": 196, "input_tokens": 194, "output_tokens": 2},
    ),
    (
        *("bedrock", "docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_TokenUsage.html"),
        {
            "usage": {
                "inputTokens": 5,
                "outputTokens": 6,
                "totalTokens": 11,
                "cacheReadInputTokens": 3,
                "cacheDetails": [],
            }
        },
        {"tokens": 11, "input_tokens": 5, "output_tokens": 6},
    ),
    (
        *("bedrock InvokeModel, streamed", "amazon-bedrock-invocationMetrics in AWS's examples"),
        {"type": "message_stop", "amazon-bedrock-invocationMetrics": {"inputTokenCount": 9, "outputTokenCount": 4}},
        {"tokens": 13, "input_tokens": 9, "output_tokens": 4},
    ),
    (
        *("openai chat", "platform.openai.com/docs/api-reference/chat/object"),
        {
            "usage": {
                "prompt_tokens": 19,
                "completion_tokens": 10,
                "total_tokens": 29,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0, "accepted_prediction_tokens": 0},
            },
            "choices": [{"finish_reason": "stop"}],
        },
        {"tokens": 29, "input_tokens": 19, "output_tokens": 10},
    ),
    (
        *("anthropic", "docs.anthropic.com/en/api/messages: usage"),
        {
            "type": "message",
            "usage": {
                "cache_creation_input_tokens": 2051,
                "cache_read_input_tokens": 2051,
                "input_tokens": 2095,
                "output_tokens": 503,
            },
        },
        {"tokens": 4649, "input_tokens": 4146, "output_tokens": 503},
    ),
    (
        *("groq", "console.groq.com/docs/batch"),
        {
            "usage": {
                "queue_time": 1.0087,
                "prompt_tokens": 55,
                "prompt_time": 0.0099,
                "completion_tokens": 55,
                "completion_time": 0.0733,
                "total_tokens": 110,
                "total_time": 0.0832,
            },
            "x_groq": {"id": "req_01"},
        },
        {"tokens": 110, "input_tokens": 55, "output_tokens": 55},
    ),
    (
        *("groq, streamed", "the last chunk of Groq, in parsers of its streams"),
        {"choices": [], "x_groq": {"id": "req_1", "usage": {"prompt_tokens": 4, "total_tokens": 10}}},
        {"tokens": 10, "input_tokens": 4},
    ),
    (
        *("cohere v2, streamed", "docs.cohere.com/v2/docs/streaming: message-end"),
        {
            "type": "message-end",
            "delta": {
                "finish_reason": "COMPLETE",
                "usage": {
                    "billed_units": {"input_tokens": 18, "output_tokens": 55},
                    "tokens": {"input_tokens": 27, "output_tokens": 55},
                },
            },
        },
        {"tokens": 82, "input_tokens": 27, "output_tokens": 55},
    ),
    (
        *("cohere v1", "docs.cohere.com/v1/reference/chat: meta; numbers may be 4.0"),
        {"meta": {"api_version": {"version": "1"}, "billed_units": {"input_tokens": 4.0, "output_tokens": 191.0}}},
        {"tokens": 195, "input_tokens": 4, "output_tokens": 191},
    ),
    (
        *("azure", "clemenssiebler.com: x-ratelimit headers of Azure OpenAI"),
        {"usage": {"completion_tokens": 25, "prompt_tokens": 100, "total_tokens": 125}},
        {"tokens": 125, "input_tokens": 100, "output_tokens": 25},
    ),
    (
        *("openai responses, streamed", "platform.openai.com/docs/api-reference/responses-streaming"),
        {
            "type": "response.completed",
            "response": {
                "usage": {
                    "input_tokens": 36,
                    "input_tokens_details": {"cached_tokens": 0},
                    "output_tokens": 87,
                    "output_tokens_details": {"reasoning_tokens": 0},
                    "total_tokens": 123,
                }
            },
        },
        {"tokens": 123, "input_tokens": 36, "output_tokens": 87},
    ),
    (
        *("gemini, streamed", "ai.google.dev/api/generate-content: UsageMetadata"),
        {
            "candidates": [{"finishReason": "STOP"}],
            "usageMetadata": {
                "promptTokenCount": 5,
                "candidatesTokenCount": 3,
                "thoughtsTokenCount": 20,
                "totalTokenCount": 28,
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 5}],
            },
        },
        {"tokens": 28, "input_tokens": 5, "output_tokens": 23},
    ),
    (
        *("vllm", "docs.vllm.ai: stream_options.include_usage"),
        {"choices": [], "usage": {"prompt_tokens": 7, "total_tokens": 17, "completion_tokens": 10}},
        {"tokens": 17, "input_tokens": 7, "output_tokens": 10},
    ),
    (
        *("mistral", "docs.mistral.ai/api: UsageInfo"),
        {"usage": {"prompt_tokens": 16, "total_tokens": 50, "completion_tokens": 34, "prompt_audio_seconds": None}},
        {"tokens": 50, "input_tokens": 16, "output_tokens": 34},
    ),
    (
        *("litellm proxy", "docs.litellm.ai: responses in OpenAI's format, with a provider's own fields"),
        {
            "usage": {
                "prompt_tokens": 110,
                "completion_tokens": 20,
                "total_tokens": 130,
                "cache_creation_input_tokens": 100,
                "cache_read_input_tokens": 0,
            }
        },
        {"tokens": 130, "input_tokens": 110, "output_tokens": 20},
    ),
]


@pytest.mark.parametrize(("provider", "source", "answer", "costs"), ANSWERS, ids=[each[0] for each in ANSWERS])
def test_usage(provider: str, source: str, answer: dict[str, Any], costs: dict[str, int]) -> None:
    """The usage is found in a response or in its last event, and becomes costs."""
    reported, complete = reported_in(answer)
    assert complete
    assert usage(reported) == costs
    reader = AnswerReader({"content-type": "text/event-stream"})
    reader.feed(b"data: " + json.dumps(answer).encode())
    reader.end()
    assert reader.usage == reported


def test_usage_in_headers() -> None:
    """Bedrock's InvokeModel reports usage in headers, and in the body of some models only."""
    headers = {
        "content-type": "application/json",
        "x-amzn-bedrock-input-token-count": "14",
        "x-amzn-bedrock-output-token-count": "36",
        "x-amzn-bedrock-invocation-latency": "926",
    }
    reader = AnswerReader(headers)
    reader.feed(b'{"generation": "Hi", "stop_reason": "stop"}')
    reader.end()
    assert reader.complete
    assert usage(reader.usage) == {"tokens": 50, "input_tokens": 14, "output_tokens": 36}
    both = AnswerReader(headers)
    both.feed(b'{"usage": {"input_tokens": 15, "output_tokens": 37}}')
    both.end()
    assert usage(both.usage) == {"tokens": 52, "input_tokens": 15, "output_tokens": 37}
    assert AnswerReader({"x-amzn-bedrock-input-token-count": "²" * 99}).usage == {}


# Each: the provider, the source, the headers of a success, what is observed of requests and tokens.
HEADERS: list[tuple[str, str, dict[str, str], list[dict[str, Any]]]] = [
    (
        *("openai", "platform.openai.com/docs/guides/rate-limits: headers"),
        {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-limit-tokens": "150000",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-remaining-tokens": "149984",
            "x-ratelimit-reset-requests": "1s",
            "x-ratelimit-reset-tokens": "6m0s",
        },
        [{"limit": "requests", "remaining": 59, "reset_after": 1.0}, {"limit": "tokens", "remaining": 149984}],
    ),
    (
        *("bedrock", "docs.aws.amazon.com/bedrock: it has no headers of its quotas"),
        {"x-amzn-requestid": "1", "x-amzn-bedrock-input-token-count": "14"},
        [],
    ),
    (
        *("gemini and openrouter", "neither sends its quotas with an answer"),
        {"content-type": "application/json; charset=UTF-8", "server-timing": "gfet4t7; dur=801"},
        [],
    ),
    (
        *("azure responses", "learn.microsoft.com/en-us/answers/questions/5625878"),
        {"x-ratelimit-limit-tokens": "-1", "x-ratelimit-remaining-tokens": "-1", "x-ratelimit-reset-tokens": "0"},
        [],
    ),
    (
        *("azure chat", "clemenssiebler.com: a limit of requests in 10 s"),
        {"x-ratelimit-remaining-tokens": "19913", "x-ratelimit-remaining-requests": "19"},
        [{"limit": "requests", "remaining": 19}, {"limit": "tokens", "remaining": 19913}],
    ),
    (
        *("anthropic", "rdrr.io/cran/tidyllm: a recorded response; its resets are over"),
        {
            "date": "Thu, 21 Aug 2025 12:41:00 GMT",
            "anthropic-ratelimit-requests-limit": "1000",
            "anthropic-ratelimit-requests-remaining": "999",
            "anthropic-ratelimit-requests-reset": "2025-08-21T12:40:59Z",
            "anthropic-ratelimit-tokens-limit": "96000",
            "anthropic-ratelimit-tokens-remaining": "96000",
            "anthropic-ratelimit-tokens-reset": "2025-08-21T12:40:59Z",
        },
        [
            {"limit": "requests", "remaining": 999, "reset_after": 0.0},
            {"limit": "tokens", "remaining": 96000, "reset_after": 0.0},
        ],
    ),
    (
        *("anthropic subscription", "gist.github.com/andrew-kramer-inno: unified limits"),
        {"anthropic-ratelimit-unified-5h-status": "allowed", "anthropic-ratelimit-unified-5h-utilization": "0.04"},
        [],
    ),
    (
        *("groq", "console.groq.com/docs/rate-limits: requests are per day"),
        {
            "x-ratelimit-limit-requests": "14400",
            "x-ratelimit-remaining-requests": "14370",
            "x-ratelimit-reset-requests": "2m59.56s",
            "x-ratelimit-limit-tokens": "18000",
            "x-ratelimit-remaining-tokens": "17997",
            "x-ratelimit-reset-tokens": "7.66ms",
        },
        [
            {"limit": "requests", "remaining": 14370},
            {"limit": "tokens", "remaining": 17997, "reset_after": 0.00766},
        ],
    ),
    (
        *("mistral", "headers recorded from its API in 2026"),
        {
            "x-ratelimit-limit-req-minute": "60",
            "x-ratelimit-remaining-req-minute": "59",
            "x-ratelimit-limit-tokens-minute": "50000",
            "x-ratelimit-remaining-tokens-minute": "47196",
            "x-ratelimit-remaining-tokens-month": "3950246",
            "x-ratelimit-tokens-query-cost": "2804",
        },
        [{"limit": "requests", "remaining": 59}, {"limit": "tokens", "remaining": 47196}],
    ),
    (
        *("mistral, formerly", "rdrr.io/cran/tidyllm/src/R/api_mistral.R"),
        {"x-ratelimitbysize-remaining-minute": "1900", "x-ratelimitbysize-limit-minute": "2000"},
        [{"limit": "tokens", "remaining": 1900}],
    ),
    (
        *("litellm proxy", "docs.litellm.ai/docs/proxy/response_headers"),
        {"x-ratelimit-remaining-requests": "9", "llm_provider-x-ratelimit-remaining-tokens": "500"},
        [{"limit": "requests", "remaining": 9}, {"limit": "tokens", "remaining": 500}],
    ),
    (
        *("cohere and vllm", "neither documents headers of its limits"),
        {"content-type": "application/json", "num_chars": "12"},
        [],
    ),
]


@pytest.mark.parametrize(("provider", "source", "headers", "seen"), HEADERS, ids=[each[0] for each in HEADERS])
def test_headers(provider: str, source: str, headers: dict[str, str], seen: list[dict[str, Any]]) -> None:
    """The quota that is left is read from the headers."""
    reports = observed(headers, ["requests", "tokens"])
    assert reports == [
        {name: pytest.approx(value) if name == "reset_after" else value for name, value in each.items()}
        for each in seen
    ]


GEMINI = {
    "error": {
        "code": 429,
        "status": "RESOURCE_EXHAUSTED",
        "message": "You exceeded your current quota",
        "details": [
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaValue": "10"}]},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "31s"},
        ],
    }
}
OPENROUTER = {
    "error": {
        "code": 429,
        "message": "Rate limit exceeded: free-models-per-min.",
        "metadata": {
            "headers": {
                "X-RateLimit-Limit": "20",
                "X-RateLimit-Remaining": "0",
                "X-RateLimit-Reset": str(int((NOW + 30) * 1000)),
            }
        },
    }
}
OPENAI = {"error": {"message": "Rate limit reached … try again in 5.289s.", "code": "rate_limit_exceeded"}}

# Each: the provider, the headers and body of a rejection, the seconds to wait.
REJECTIONS: list[tuple[str, dict[str, str], Any, float | None]] = [
    ("openai", {"retry-after": "6", "retry-after-ms": "5289"}, OPENAI, 5.289),
    ("openai, no quota at all", {}, {"error": {"code": "insufficient_quota"}}, None),
    ("anthropic", {"retry-after": "12"}, {"type": "error", "error": {"type": "rate_limit_error"}}, 12.0),
    ("azure", {"retry-after-ms": "900"}, {"error": {"code": "429"}}, 0.9),
    ("gemini", {}, GEMINI, 31.0),
    ("gemini, streamed", {}, [GEMINI], 31.0),
    ("gemini, per day", {}, {"error": {"details": [{"retryDelay": "37025.7s"}]}}, 3600.0),
    ("vertex", {"retry-after": formatdate(NOW + 20, usegmt=True)}, {}, 20.0),
    ("openrouter", {}, OPENROUTER, 30.0),
    ("anthropic, overloaded: 529", {}, {"type": "error", "error": {"type": "overloaded_error"}}, None),
    ("vllm, which has no limits", {}, {"object": "error", "type": "TooManyRequests", "code": 429}, None),
    ("litellm proxy", {"llm_provider-retry-after": "2"}, {}, 2.0),
    ("bedrock", {"x-amzn-errortype": "ThrottlingException"}, {"message": "Too many tokens"}, None),
    ("cohere", {}, {"message": "You are using a Trial key"}, None),
    ("mistral", {"x-ratelimit-remaining-req-minute": "0"}, {"message": "Rate limit exceeded", "code": "1300"}, None),
    ("groq", {"retry-after": "2"}, {"error": {"type": "tokens"}}, 2.0),
    ("a window of a day", {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(NOW + 9_000))}, {}, None),
    ("seconds", {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "7"}, {}, 7.0),
]


@pytest.mark.parametrize(("provider", "headers", "body", "seconds"), REJECTIONS, ids=[each[0] for each in REJECTIONS])
def test_rejections(provider: str, headers: dict[str, str], body: Any, seconds: float | None) -> None:
    """The time to wait is read from the headers, or else from the body."""
    assert pause(headers, json.dumps(body).encode(), now=NOW) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"\xff", b"[]", b"[1]", b"null", b'{"error": 1}', b'{"error": {"details": 1, "metadata": []}}'),
        *(b"[" * 9999, b'{"error": {"details": [1, {"retryDelay": 3}, {"retryDelay": "soon"}]}}'),
    ],
    ids=lambda body: repr(body[:20]),
)
def test_malformed_rejections(body: bytes) -> None:
    """A body that isn't understood says nothing."""
    assert pause({}, body) is None
