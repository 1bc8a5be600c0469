r"""How payloads become bytes and come back: JSON by msgspec, or bytes as they are. Nothing in here waits.

What a body is, is declared and never guessed: by the object's ``type``, or, where an object without one sends
``bytes``, by the ``content-type`` header. There is no pickle. Every failure to decode is a `DecodeError` that names
lengths only.

Envelope: pub/sub has no headers of its own on most brokers, so a message with headers travels as
``\0AILF\1`` + header length (4 bytes, big-endian) + headers as JSON + body. A message without headers travels as its
body alone, which any client can read; and a body without an envelope is read as a body.
"""

import math
from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec

from ailf.checks import check_headers, check_mapping, too_large
from ailf.errors import DecodeError, EncodeError, InvalidArgumentError
from ailf.safe_text import text_of
from ailf.tracing import stamped
from ailf.user_errors import interrupts

__all__ = ["Codec", "Payloads", "codec_for", "open_envelope", "seal_envelope"]

CONTENT_TYPE: Final = "content-type"
BYTES: Final = "application/octet-stream"

_MAGIC: Final = b"\0AILF\1"
_HEADERS: Final = msgspec.json.Decoder(dict[str, str])
_json = msgspec.json.Encoder()


class Codec(Protocol):
    """Turns payloads into bytes and back. Write your own for another format; hand it over as ``type=``."""

    def encode(self, data: Any) -> bytes:
        """Return the body of a payload; raise any exception for what it can't write."""

    def decode(self, body: bytes, *, foreign: bool) -> Any:
        """Return the payload of a body; raise any exception for what it can't read.

        Arguments:
            body: The bytes received.
            foreign: True for the fields of an entry that another program wrote, as a JSON object of text values.
        """


class JsonCodec:
    """JSON, validated into a type where one is given."""

    def __init__(self, type_: Any = Any) -> None:
        self._type = type_
        try:
            self._decoder = msgspec.json.Decoder(type_)
            self._lenient = msgspec.json.Decoder(type_, strict=False)
        except TypeError as error:
            raise InvalidArgumentError(f"type={type_!r} can't be decoded from JSON: {error}") from error

    def encode(self, data: Any) -> bytes:
        body = _json.encode(data)
        if b"null" in body:  # what the encoder writes for NaN and infinity, too, without a word
            _refuse_unwritable(msgspec.to_builtins(data, str_keys=True))
        return body

    def decode(self, body: bytes, *, foreign: bool) -> Any:
        return (self._lenient if foreign else self._decoder).decode(body)


def _refuse_unwritable(data: Any) -> None:
    if isinstance(data, float) and not math.isfinite(data):
        raise ValueError("JSON has no NaN and no infinity")
    if isinstance(data, dict | list | tuple | set | frozenset):
        for each in data.values() if isinstance(data, dict) else data:
            _refuse_unwritable(each)


class BytesCodec:
    """Bytes as they are."""

    def encode(self, data: Any) -> bytes:
        if isinstance(data, bytes):
            return data
        if not isinstance(data, bytearray | memoryview):
            raise TypeError("this object carries bytes")
        return bytes(data)

    def decode(self, body: bytes, *, foreign: bool) -> bytes:  # noqa: ARG002 - bytes are bytes, whoever wrote them
        return body


def codec_for(type_: Any) -> Codec:
    """Return the codec for an object's ``type``: ``bytes``, a codec of the user's own, or anything msgspec decodes."""
    if type_ is bytes:
        return BytesCodec()
    if not isinstance(type_, type) and hasattr(type_, "encode") and hasattr(type_, "decode"):
        own: Codec = type_
        return own
    return JsonCodec(type_)


class Payloads:
    """What one object does to its payloads: encode, mark, limit; decode, unmark, limit."""

    def __init__(self, what: str, type_: Any, limit: int) -> None:
        self.what = what
        codec = codec_for(type_)
        self._encode, self._decode = codec.encode, codec.decode
        self._marks_bytes = type_ is Any
        self._limit = limit

    def pack(self, data: Any, headers: Mapping[str, str] | None) -> tuple[bytes, dict[str, str]]:
        """Return the body and headers to send.

        Raises:
            EncodeError: The codec can't write this payload.
            InvalidArgumentError: The payload or its headers are too large, or headers aren't text.
        """
        if headers is not None:
            check_mapping("headers", headers)
        given = stamped(headers)
        try:
            sent = check_headers(given) if given else {}
        except InvalidArgumentError:
            if given is headers:
                raise
            sent = check_headers(headers)  # there is no room for the trace: it must not make a send fail
        if sent and sent.get(CONTENT_TYPE) == BYTES:
            raise InvalidArgumentError(f"the header {CONTENT_TYPE}: {BYTES} is how {self.what} marks bytes; send bytes")
        if self._marks_bytes and isinstance(data, bytes | bytearray | memoryview):
            body = bytes(data)
            sent[CONTENT_TYPE] = BYTES
        else:
            try:
                body = self._encode(data)
            except BaseException as error:
                if interrupts(error):
                    raise
                raise EncodeError(
                    f"{self.what}: a payload of type {type(data).__name__} can't be encoded: {text_of(error)}"
                ) from error
        if len(body) > self._limit:
            raise too_large(self.what, body, self._limit)
        return body, sent

    def unpack(
        self, body: bytes, headers: Mapping[str, str], *, foreign: bool = False, problem: str = ""
    ) -> tuple[Any, dict[str, str]]:
        """Return the payload and the headers as they were sent.

        Raises:
            DecodeError: The body is not what this object expects, or its backend has found a problem.
        """
        if problem:
            raise DecodeError(f"{self.what}: {problem}")
        shown = dict(headers)
        if len(body) > self._limit:
            raise DecodeError(f"{self.what}: a body of {len(body)} bytes is over max_payload ({self._limit})")
        if self._marks_bytes and shown.get(CONTENT_TYPE) == BYTES:
            del shown[CONTENT_TYPE]
            return body, shown
        try:
            return self._decode(body, foreign=foreign), shown
        except BaseException as error:  # a codec may raise anything, and it costs its own message only
            if interrupts(error):
                raise
            raise DecodeError(
                f"{self.what}: a body of {len(body)} bytes can't be decoded ({type(error).__name__})"
            ) from error


def seal_envelope(body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return what travels: the body alone, or an envelope where there are headers or the body looks like one."""
    if not headers and not body.startswith(_MAGIC):
        return body
    packed = _json.encode(headers)
    return b"".join((_MAGIC, len(packed).to_bytes(4, "big"), packed, body))


def open_envelope(sealed: bytes) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of what travelled.

    Raises:
        DecodeError: It starts as an envelope and isn't one.
    """
    if not sealed.startswith(_MAGIC):
        return sealed, {}
    start = len(_MAGIC) + 4
    end = start + int.from_bytes(sealed[len(_MAGIC) : start], "big")
    if end > len(sealed):
        raise DecodeError(f"an envelope of {len(sealed)} bytes is cut short")
    try:
        return sealed[end:], _HEADERS.decode(sealed[start:end])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DecodeError(f"an envelope of {len(sealed)} bytes can't be opened") from error
