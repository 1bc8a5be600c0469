"""Reading the usage from the bytes of a response, and the costs from those of a request."""

import base64
import gzip
import itertools
import json
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ailf.bridges.quota import lessons, settlement
from ailf.limits import FixedWindow, TokenBucket
from ailf.llm import estimated, model_of
from ailf.providers import AnswerReader

JSON = {"content-type": "application/json"}
SSE = {"content-type": "text/event-stream; charset=utf-8"}
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
STREAM = (
    b": OPENROUTER PROCESSING\r\n\r\n"
    b"event: message_start\rdata: "
    b'{"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 1}}}\r\r'
    b'data: {"type": "message_delta",\n'
    b'data: "usage": {"output_tokens": 7}}\n\n'
    b"data: [DONE]\n\n"
)


def read(headers: dict[str, str], *chunks: bytes, **options: Any) -> AnswerReader:
    """Return the reader of a whole body."""
    reader = AnswerReader(headers, **options)
    for chunk in chunks:
        reader.feed(chunk)
    reader.end()
    return reader


@given(st.lists(st.integers(0, len(STREAM)), max_size=8).map(sorted))
def test_a_stream_in_any_portions(cuts: list[int]) -> None:
    """The events of a stream are found however it is cut, with each kind of line end."""
    edges = [0, *cuts, len(STREAM)]
    chunks = [STREAM[since:until] for since, until in itertools.pairwise(edges)]
    reader = read(SSE, *chunks)
    assert (reader.usage, reader.complete) == ({"input_tokens": 9, "output_tokens": 7}, True)


@given(st.lists(st.binary(max_size=50), max_size=9), st.sampled_from(["gzip", "deflate", "br", "identity"]))
def test_any_bytes(chunks: list[bytes], encoding: str) -> None:
    """No bytes raise."""
    for kind in ("application/json", "text/event-stream", "application/x-ndjson", "application/vnd.amazon.eventstream"):
        read({"content-type": kind, "content-encoding": encoding}, *chunks)


def test_an_unfinished_stream() -> None:
    """Usage at the beginning, or beside a part of the answer, isn't that of the whole answer."""
    assert not read(SSE, STREAM[:180]).complete
    part = {"candidates": [{"content": {}}], "usageMetadata": {"promptTokenCount": 3}}
    assert not read(SSE, b"data: %s\n\n" % json.dumps(part).encode()).complete


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("br", lambda body: body[::-1])]
)
def test_encodings(encoding: str, pack: Any) -> None:
    """A compressed document is read, with a decoder of the library for those that Python hasn't."""
    packed = pack(json.dumps({"usage": USAGE}).encode())
    headers = {**JSON, "content-encoding": encoding}
    assert read(headers, packed[:5], packed[5:], decode=lambda body: body[::-1]).usage == USAGE


def test_gemini_without_events() -> None:
    """A stream of Gemini without server-sent events is one array; JSON lines are read too."""
    parts = [{"usageMetadata": {"promptTokenCount": 1}}, {"usageMetadata": {"totalTokenCount": 9}}]
    assert read(JSON, json.dumps(parts).encode()).usage == {"promptTokenCount": 1, "totalTokenCount": 9}
    lines = b"".join(json.dumps(each).encode() + b"\n" for each in parts)
    assert read({"content-type": "application/x-ndjson"}, lines).usage["totalTokenCount"] == 9


def test_an_event_stream_of_aws() -> None:
    """The frames of Bedrock's streams are read, of ConverseStream and of InvokeModelWithResponseStream."""

    def frame(payload: bytes) -> bytes:
        size = 16 + len(payload)
        return size.to_bytes(4, "big") + bytes(8) + payload + bytes(4)

    inner = base64.b64encode(json.dumps({"type": "message_delta", "usage": {"output_tokens": 3}}).encode()).decode()
    frames = frame(b'{"usage": {"inputTokens": 4}}') + frame(json.dumps({"bytes": inner, "p": "ab"}).encode())
    kind = {"content-type": "application/vnd.amazon.eventstream"}
    assert read(kind, frames[:7], frames[7:50], frames[50:]).usage == {"inputTokens": 4, "output_tokens": 3}


def test_a_document_of_50_mb() -> None:
    """Of a long document the end is searched, with little memory."""
    chunk = b'{"embedding": "' + b"0" * 2**20 + b'"},'
    tracemalloc.start()
    reader = AnswerReader(JSON)
    reader.feed(b'{"data": [')
    for _ in range(50):
        reader.feed(bytes(chunk))
    reader.feed(b'{}], "text": "\\"usage\\": {", "usage": ' + json.dumps(USAGE).encode() + b"}")
    reader.end()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reader.usage == USAGE
    assert peak < 20 * 2**20


def test_a_line_without_end() -> None:
    """A line of a stream that is too long is skipped, and the events after it are read."""
    reader = read(SSE, b"data: ", *[b"x" * 2**20] * 4, b"\n\n" + STREAM)
    assert reader.usage["output_tokens"] == 7


def test_settlement() -> None:
    """Of an unfinished answer only a count above the estimate says something."""
    estimate = {"tokens": 12, "requests": 1}
    assert settlement(USAGE, estimate, complete=True) == {"tokens": 15}
    assert settlement({"total_tokens": 3}, estimate, complete=True) == {"tokens": 3}
    assert settlement({"total_tokens": 3}, estimate, complete=False) == {}
    assert settlement(USAGE, estimate, complete=False) == {"tokens": 15}
    assert settlement({"seconds": 3}, estimate, complete=True) == {}
    assert settlement({"total_tokens": -3}, estimate, complete=True) == {}


def test_lessons() -> None:
    """A report teaches the limiter only what it didn't know, and is older than the response."""
    limits = {"requests": TokenBucket(60, per=60), "tokens": FixedWindow(1_000, per=60)}
    seen = [{"limit": "requests", "remaining": 20, "reset_after": 40.0}, {"limit": "tokens", "remaining": 100}]
    assert lessons(seen, limits, {"requests": 20, "tokens": 100}, 0.0) == []
    known = {"requests": 50, "tokens": 900}
    assert lessons(seen, limits, known, 0.0) == seen
    assert lessons(seen, limits, known, 10.0) == [{"limit": "requests", "remaining": 30, "reset_after": 30.0}]
    assert lessons([{"limit": "requests", "remaining": 9_999}], limits, {}, 0.0) == []


# --- estimates ---------------------------------------------------------------------------------------------------

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 90_000}}


@pytest.mark.parametrize(
    ("body", "path", "costs"),
    [
        ({"messages": [{"role": "user", "content": "a" * 400}]}, "", (104, 500)),
        ({"messages": [{"role": "user", "content": "a" * 400}], "max_tokens": 9, "n": 2}, "", (104, 18)),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a" * 8}, IMAGE]}]}, "", (1_111, 500)),
        ({"messages": [{"role": "user", "content": "日本語"}]}, "", (7, 500)),
        ({"input": "a" * 40, "max_output_tokens": 7}, "/v1/responses", (10, 7)),
        ({"input": [[1, 2, 3], [4, 5]]}, "/v1/embeddings", (5, 0)),
        ({"input": ["a" * 40, "b" * 40]}, "/v1/embeddings", (20, 0)),
        ({"contents": [{"parts": [{"text": "a" * 40}]}], "generationConfig": {"maxOutputTokens": 3}}, "", (10, 3)),
        (
            {"messages": [{"role": "user", "content": [{"text": "a" * 40}]}], "inferenceConfig": {"maxTokens": 3}},
            "",
            (14, 3),
        ),
        ({"messages": []}, "/v1/messages/count_tokens", (0, 0)),
        (b"not JSON", "", (0, 0)),
        (b"[1]", "", (0, 0)),
        (b"\xff\xfe", "", (0, 0)),
        ({"messages": None, "max_tokens": "many"}, "", (0, 500)),
    ],
)
def test_estimates(body: Any, path: str, costs: tuple[int, int]) -> None:
    """The input is estimated by its texts and media, the output by its limit."""
    given = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent, out = costs
    assert estimated(given, path=path) == {"tokens": sent + out, "input_tokens": sent, "output_tokens": out}


def test_estimates_of_tools() -> None:
    """The schemas of tools are read by the model; a parameter called `image` or `file` is no medium."""
    schema = {"type": "object", "properties": {"image": {"type": "string", "description": "a" * 400}}}
    tools = [{"type": "function", "function": {"name": "show", "parameters": schema}}]
    assert 100 < estimated({"tools": tools, "max_tokens": 0})["tokens"] < 160


def test_a_request_of_50_mb() -> None:
    """Media are counted by their number and not by their bytes."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * (50 * 2**20)}}
    body = json.dumps({"messages": [{"role": "user", "content": [image]}], "max_tokens": 0}).encode()
    assert estimated(body, provider="anthropic")["tokens"] == 1_604


@pytest.mark.parametrize(
    ("body", "path", "model"),
    [
        (b'{"model": "gpt"}', "/v1/chat/completions", "gpt"),
        (b"{}", "/v1beta/models/gemini-pro:streamGenerateContent", "gemini-pro"),
        (b"{}", "/openai/deployments/mine/chat/completions", "mine"),
        (b"{}", "/model/anthropic.claude-v1%3A0/converse", "anthropic.claude-v1%3A0"),
        (b"\xff", "/v1/audio/transcriptions", ""),
        (b'{"model": 3}', "/", ""),
    ],
)
def test_models(body: bytes, path: str, model: str) -> None:
    """The model is named in the body or in the path."""
    assert model_of(body, path) == model
