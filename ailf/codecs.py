r"""Encode payloads as bytes and decode them: JSON by msgspec or pydantic, or bytes unchanged. Nothing in here waits.

The format of a body is declared, never guessed: by the object's ``type``; or, if an object without a ``type`` sends
``bytes``, by the ``content-type`` header. Pickle is never used. Every failure to decode is a `DecodeError`, whose
message names the field and the expected type, and shows nothing else of the body.

Envelope: most brokers have no headers in pub/sub, so a message with headers is published as
``\0AILF\1`` + header length (4 bytes, big-endian) + headers as JSON + body. A message without headers is published as
its body alone, which any client can read. A received body without an envelope has no headers.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeVar

import msgspec

from ailf.checks import check_headers, check_mapping, too_large
from ailf.errors import DecodeError, EncodeError, InvalidArgumentError
from ailf.payload_types import classes_of
from ailf.pydantic_models import ModelError, PydanticCodec, dump, is_model, load, uses_pydantic
from ailf.safe_text import text_of
from ailf.tracing import stamped
from ailf.user_errors import interrupts

__all__ = ["Codec", "Payloads", "codec_for", "open_envelope", "seal_envelope"]

CONTENT_TYPE: Final = "content-type"
BYTES: Final = "application/octet-stream"

_MAGIC: Final = b"\0AILF\1"
_HEADERS: Final = msgspec.json.Decoder(dict[str, str])
_SAFE: Final = re.compile(
    r"(Expected `[\w .|]*`(?: (?:of length )?[<>=]* ?\d+)?(?:, got `\w*`)?|Object missing required field `[^`]*`)"
)
"""The beginning of the errors of msgspec that quote nothing of a body."""

_PATH: Final = re.compile(r" - at (`\$[^`]*`|`key` in `\$[^`]*`)$")

T = TypeVar("T")


def _encoded_by_hook(value: Any) -> Any:
    if is_model(type(value)):
        return dump(value)
    raise NotImplementedError


def _decoded_by_hook(kind: Any, value: Any) -> Any:
    if is_model(kind):
        return load(kind, value)
    if isinstance(value, kind):
        return value
    raise msgspec.ValidationError(f"Expected `{kind.__name__}`, got `{type(value).__name__}`")


_json = msgspec.json.Encoder(enc_hook=_encoded_by_hook)


class Codec(Protocol[T]):
    """Encodes and decodes payloads. For another format, pass an object of your own class as ``type=``.

    >>> import ailf
    >>> class Text:
    ...     def encode(self, data: str) -> bytes:
    ...         return data.encode()
    ...     def decode(self, body: bytes, *, foreign: bool) -> str:
    ...         return body.decode()
    >>> with ailf.connect("memory://") as backend:
    ...     notes: ailf.Stream[str] = backend.stream("notes", type=Text())
    ...     first = notes.add("two teas")
    """

    def encode(self, data: T) -> bytes:
        """Return the body of a payload; raise any exception for a payload that can't be encoded."""

    def decode(self, body: bytes, *, foreign: bool) -> T:
        """Return the payload of a body; raise any exception for a body that can't be decoded.

        Arguments:
            body: The bytes received.
            foreign: True for a foreign entry, whose body is a JSON object of its fields, with text values.
        """


class JsonCodec:
    """JSON, validated and converted to a type if one is given."""

    def __init__(self, type_: Any = Any) -> None:
        self._type = type_
        try:
            self._decoder = msgspec.json.Decoder(type_, dec_hook=_decoded_by_hook)
            self._lenient = msgspec.json.Decoder(type_, strict=False, dec_hook=_decoded_by_hook)
        except TypeError as error:
            raise InvalidArgumentError(f"type={type_!r} can't be decoded from JSON: {error}") from error

    def encode(self, data: Any) -> bytes:
        body = _json.encode(data)
        if b"null" in body:  # the encoder writes NaN and infinity as null, too
            _refuse_unwritable(msgspec.to_builtins(data, str_keys=True, enc_hook=_encoded_by_hook))
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
    """Bytes unchanged."""

    def encode(self, data: Any) -> bytes:
        if isinstance(data, bytes):
            return data
        if not isinstance(data, bytearray | memoryview):
            raise TypeError("an object with type=bytes carries bytes only")
        return bytes(data)

    def decode(self, body: bytes, *, foreign: bool) -> bytes:  # noqa: ARG002 - foreign bytes are bytes too
        return body


class ModelCodec(PydanticCodec):
    """JSON by pydantic, without the null that it writes for NaN and infinity."""

    def encode(self, data: Any) -> bytes:
        body = super().encode(data)
        if b"null" in body:
            _refuse_unwritable(self.plain(data))
        return body


def codec_for(type_: Any) -> Codec[Any]:
    """Return the codec for a ``type``: ``bytes``, a user's `Codec`, or any type that msgspec or pydantic decodes."""
    if type_ is bytes:
        return BytesCodec()
    if is_codec(type_):
        own: Codec[Any] = type_
        return own
    return ModelCodec(type_) if uses_pydantic(type_) else JsonCodec(type_)


def is_codec(type_: Any) -> bool:
    """Tell whether a ``type`` is an object of a user's own class that encodes and decodes."""
    return not isinstance(type_, type) and hasattr(type_, "encode") and hasattr(type_, "decode")


class Payloads:
    """Encodes and decodes the payloads of one object, limits their size, and marks bytes by a header.

    Arguments:
        what: The object, for errors, such as ``stream 'tasks'``.
        type_: The object's ``type``.
        limit: The largest body in bytes, ``max_payload``.
        validate: Whether a producer's payload is decoded before it is sent.

    Attributes:
        kinds: The classes of which a producer's payload must be an instance; () if no class says whether it fits. The
            producer asks ``isinstance`` itself: a method here would cost each message a call.
        validate: As given.
    """

    def __init__(self, what: str, type_: Any, limit: int, *, validate: bool = False) -> None:
        self.what = what
        self.validate = validate
        self.kinds = () if is_codec(type_) else classes_of(type_)
        self._type = type_
        codec = codec_for(type_)
        self._encode, self._decode = codec.encode, codec.decode
        self._marks_bytes = type_ is Any
        self._limit = limit

    def __reduce__(self) -> tuple[type["Payloads"], tuple[str, Any, int]]:
        """Make it anew from its arguments: a decoder can't be pickled, and a `DeadLetter` has one."""
        return Payloads, (self.what, self._type, self._limit)

    def pack(self, data: Any, headers: Mapping[str, str] | None) -> tuple[bytes, dict[str, str]]:
        """Return the body and headers to send.

        Raises:
            EncodeError: The codec can't write this payload.
            InvalidArgumentError: The payload or its headers are too large, or headers aren't text.
        """
        if headers is not None:
            check_mapping("headers", headers)
        traced = stamped(headers)
        try:
            sent = check_headers(traced) if traced else {}
        except InvalidArgumentError:
            if traced is headers:
                raise
            sent = check_headers(headers)  # the trace may not fit: it must not make a send fail
        if sent and sent.get(CONTENT_TYPE) == BYTES:
            raise InvalidArgumentError(
                f"{self.what} marks bytes with the header {CONTENT_TYPE}: {BYTES}; leave it out and send bytes"
            )
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

    def wrong_kind(self, data: Any) -> EncodeError:
        """Return the error for a payload that is not an instance of `kinds`."""
        expected = " or ".join(each.__name__ for each in self.kinds)
        return EncodeError(
            f"{self.what}: a payload must be of its type ({expected}), not {type(data).__name__}. Nothing was sent"
        )

    def check(self, body: bytes, headers: Mapping[str, str]) -> None:
        """Check that receivers can decode a body.

        Raises:
            EncodeError: They can't.
        """
        try:
            self.unpack(body, headers)
        except DecodeError as error:
            raise EncodeError(f"nothing was sent, as receivers could not decode it: {error}") from error

    def unpack(
        self, body: bytes, headers: Mapping[str, str], *, foreign: bool = False, problem: str = ""
    ) -> tuple[Any, dict[str, str]]:
        """Return the payload and the headers that the sender gave.

        Raises:
            DecodeError: The body is not what the object's ``type`` expects, or its backend reported a ``problem``.
        """
        if problem:
            raise DecodeError(f"{self.what}: {problem}")
        public_headers = dict(headers)
        if len(body) > self._limit:
            raise DecodeError(
                f"{self.what}: a body of {len(body)} bytes is larger than max_payload, {self._limit} bytes; open the "
                "backend with a larger max_payload"
            )
        if self._marks_bytes and public_headers.get(CONTENT_TYPE) == BYTES:
            del public_headers[CONTENT_TYPE]
            return body, public_headers
        try:
            return self._decode(body, foreign=foreign), public_headers
        except BaseException as error:  # a user's codec may raise anything; only this message fails
            if interrupts(error):
                raise
            raise DecodeError(
                f"{self.what}: a body of {len(body)} bytes can't be decoded ({type(error).__name__}){_mismatch(error)}"
            ) from error


def _mismatch(error: BaseException) -> str:
    """Return the field and the expected type that a decoder's error names, without what it quotes of the body."""
    if isinstance(error, ModelError):
        return f": {error}"
    if not isinstance(error, msgspec.ValidationError):
        return ""
    text = str(error)
    path = _PATH.search(text)
    if isinstance(error.__cause__, ModelError):  # a model in a field
        shown: str | None = str(error.__cause__)
    else:
        safe = None if error.__cause__ else _SAFE.match(text)  # with a cause, it is the text of the user's own code
        shown = safe[0] if safe else "a value is refused"
    return f": {shown}{f' at {path[1]}' if path else ''}"


def seal_envelope(body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return the bytes to publish: the body, or an envelope if there are headers or the body looks like an envelope."""
    if not headers and not body.startswith(_MAGIC):
        return body
    packed = _json.encode(headers)
    return b"".join((_MAGIC, len(packed).to_bytes(4, "big"), packed, body))


def open_envelope(sealed: bytes) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of published bytes.

    Raises:
        DecodeError: The bytes start like an envelope and are none.
    """
    if not sealed.startswith(_MAGIC):
        return sealed, {}
    start = len(_MAGIC) + 4
    end = start + int.from_bytes(sealed[len(_MAGIC) : start], "big")
    if end > len(sealed):
        raise DecodeError(f"an envelope of {len(sealed)} bytes is cut off")
    try:
        return sealed[end:], _HEADERS.decode(sealed[start:end])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DecodeError(f"the headers in an envelope of {len(sealed)} bytes aren't a JSON object of text") from error
