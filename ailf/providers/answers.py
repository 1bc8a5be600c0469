"""The usage that a response reports, read from its bytes as they pass by: a document, or a stream of events.

Memory is bounded, and an answer that can't be understood reports nothing.
"""

import base64
import binascii
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

__all__ = ["AnswerReader", "EventLines", "Frames", "reported_in"]

LARGEST_DOCUMENT: Final = 8 * 2**20
"""The bytes of a document that are kept. Of a longer one only the end is searched, where providers put the usage."""
TAIL: Final = 64 * 2**10
LARGEST_EVENT: Final = 2**20
CONTAINERS: Final = ("response", "message", "delta", "x_groq", "metadata")
REPORTS: Final = ("usage", "usageMetadata", "usage_metadata", "amazon-bedrock-invocationMetrics", "meta")
TELLING: Final = (b"sage", b"Metrics", b'"meta"')
"""One of these is in each event that may report usage; the others aren't decoded."""
COUNTED: Final = {  # Bedrock's InvokeModel, whose bodies are those of the models: some of them report nothing
    "inputTokenCount": "x-amzn-bedrock-input-token-count",
    "outputTokenCount": "x-amzn-bedrock-output-token-count",
    "cacheWriteInputTokenCount": "x-amzn-bedrock-cache-write-input-token-count",
}
"""The headers that report usage, by the names of the counts."""
_USAGE = re.compile(rb'(?<!\\)"(?:usage|usageMetadata)"\s*:\s*(?=\{)')
_LINE = re.compile(rb"\r\n|\n|\r")
_COUNT = re.compile("[0-9]{1,15}")


class EventLines:
    """The data of server-sent events, or the lines of JSON lines, from bytes in any portions."""

    def __init__(self, *, events: bool) -> None:
        self._events = events
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0
        self._skipping = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the data of each event that this portion completes."""
        text = self._rest + chunk
        self._rest = b""
        if text.endswith(b"\r"):  # the first half of a line's end, perhaps
            text, self._rest = text[:-1], b"\r"
        *lines, rest = _LINE.split(text)
        for line in lines:
            if self._skipping:  # the end of a line that was too long
                self._skipping = False
            else:
                yield from self._line(line)
        if self._skipping or len(rest) > LARGEST_EVENT:
            self._skipping, rest = True, b""
        self._rest = rest + self._rest

    def end(self) -> Iterator[bytes]:
        """Yield the data of an event that the end of the stream completes."""
        if not self._skipping:
            yield from self._line(self._rest.removesuffix(b"\r"))
        if self._events:
            yield from self._line(b"")
        self._rest = b""

    def _line(self, line: bytes) -> Iterator[bytes]:
        if not self._events:
            if line:
                yield line
        elif not line:
            if self._data:
                yield b"\n".join(self._data)
            self._data, self._size = [], 0
        elif line.startswith(b"data:") and self._size <= LARGEST_EVENT:
            data = line[5:].removeprefix(b" ")
            self._data.append(data)
            self._size += len(data)


class Frames:
    """The payloads of an AWS event stream (``application/vnd.amazon.eventstream``), from bytes in any portions."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the payload of each frame that this portion completes."""
        self._rest += chunk
        while len(self._rest) >= 12:  # noqa: PLR2004 - the prelude: two lengths and a checksum
            total, headers = (int.from_bytes(self._rest[at : at + 4], "big") for at in (0, 4))
            if not 16 + headers <= total <= 16 * LARGEST_EVENT:  # no event stream
                self._rest = b""
                return
            if len(self._rest) < total:
                return
            payload, self._rest = self._rest[12 + headers : total - 4], self._rest[total:]
            yield _unwrapped(payload)

    def end(self) -> Iterator[bytes]:
        """Yield nothing: a frame tells its own length."""
        yield from ()


def _unwrapped(payload: bytes) -> bytes:
    """Return the model's own event, which Bedrock's InvokeModel encodes."""
    told = _json(payload) if b'"bytes"' in payload else None
    if isinstance(told, dict) and isinstance(told.get("bytes"), str):
        try:
            return base64.b64decode(told["bytes"])
        except (binascii.Error, ValueError):
            return b""
    return payload


def reported_in(event: object) -> tuple[dict[str, Any], bool]:
    """Return the usage that an event or a document reports, and whether it is that of the whole answer.

    Usage at the beginning of a stream (Anthropic's ``message_start``), or beside a part of the answer that isn't the
    last one (Gemini, vLLM), is not yet the whole.
    """
    if not isinstance(event, dict):
        return {}, False
    found: dict[str, Any] = {}
    for container in (event, *(event.get(name) for name in CONTAINERS)):
        if isinstance(container, dict):
            for name in REPORTS:
                report = container.get(name)
                if isinstance(report, dict):
                    found |= {field: count for field, count in report.items() if count is not None}
    parts = [each for name in ("choices", "candidates") for each in event.get(name) or () if isinstance(each, dict)]
    partly = parts and not any(each.get("finish_reason") or each.get("finishReason") for each in parts)
    return found, bool(found) and not partly and event.get("type") != "message_start"


class AnswerReader:
    r"""Reads the usage from a response while its bytes pass by. It keeps what it needs for that, and never raises.

    Arguments:
        headers: The response's headers, in lower case. Those of Bedrock report usage themselves.
        decode: Decodes a whole body by the response's ``content-encoding``, for encodings other than gzip and deflate.

    Example:
        >>> from ailf.providers import AnswerReader
        >>> reader = AnswerReader({"content-type": "text/event-stream"})
        >>> reader.feed(b'data: {"choices": [], "usage": {"total_tokens": 7}}\n\n')
        >>> reader.end()
        >>> reader.usage, reader.complete
        ({'total_tokens': 7}, True)
    """

    def __init__(self, headers: Mapping[str, str], decode: Callable[[bytes], bytes] | None = None) -> None:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        encoding = headers.get("content-encoding", "identity").strip().lower()
        told = ((field, headers.get(name, "")) for field, name in COUNTED.items())
        self.usage: dict[str, Any] = {field: int(text) for field, text in told if _COUNT.fullmatch(text)}
        """The usage that was reported up to now."""
        self.complete = bool(self.usage)
        """Whether it is the usage of the whole answer."""
        self._events: EventLines | Frames | None = None
        if kind == "text/event-stream":
            self._events = EventLines(events=True)
        elif kind in {"application/x-ndjson", "application/stream+json", "application/jsonl"}:
            self._events = EventLines(events=False)
        elif kind == "application/vnd.amazon.eventstream":
            self._events = Frames()
        self._plain = kind.endswith("json") or not kind
        self._inflate = zlib.decompressobj(47) if encoding in {"gzip", "deflate", "x-gzip"} else None
        self._decode = None if self._inflate or encoding in {"", "identity"} else decode or (lambda _: b"")
        self._kept: list[bytes] = []
        self._size = 0
        self._cut = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body, as they were received."""
        if self._decode is not None:
            self._keep(chunk)
            return
        if self._inflate is not None:
            try:
                chunk = self._inflate.decompress(chunk)
            except zlib.error:
                self._inflate, self._decode = None, lambda _: b""  # it isn't what the header says
                return
        self._take(chunk)

    def end(self) -> None:
        """Take the end of the body: read what was kept."""
        kept = b"".join(self._kept)
        self._kept = []
        if self._decode is not None:
            kept = b"" if self._cut else self._decode(kept)
            if self._events is not None:
                self._take(kept)
        if self._events is not None:
            for data in self._events.end():
                self._event(data)
        elif self._cut:
            self._search(kept)
        elif self._plain and kept:
            told = _json(kept)
            for each in told if isinstance(told, list) else (told,):
                self._found(each)

    def _take(self, chunk: bytes) -> None:
        if self._events is None:
            self._keep(chunk)
        else:
            for data in self._events.feed(chunk):
                self._event(data)

    def _keep(self, chunk: bytes) -> None:
        if not (self._plain or self._events is not None):
            return
        self._kept.append(chunk)
        self._size += len(chunk)
        if self._size > (LARGEST_DOCUMENT if not self._cut else 2 * TAIL):
            tail = b"".join(self._kept)[-TAIL:]
            self._kept, self._size, self._cut = [tail], len(tail), True

    def _event(self, data: bytes) -> None:
        if any(each in data for each in TELLING):
            self._found(_json(data))

    def _found(self, told: object) -> None:
        usage, complete = reported_in(told)
        self.usage |= usage
        self.complete = complete or (self.complete and not usage)

    def _search(self, tail: bytes) -> None:
        """Find the last usage in the end of a long document."""
        places = list(_USAGE.finditer(tail))
        if places:
            try:
                usage, _ = json.JSONDecoder().raw_decode(tail[places[-1].end() :].decode(errors="replace"))
            except (ValueError, RecursionError):
                return
            self._found({"usage": usage})


def _json(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
