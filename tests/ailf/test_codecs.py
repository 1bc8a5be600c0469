"""Payloads survive encoding and decoding, and a body that can't be decoded is one error that shows no content."""

import math
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ailf.codecs import Payloads, open_envelope, seal_envelope
from ailf.errors import DecodeError, EncodeError, InvalidArgumentError

MAGIC = b"\0AILF\1"
LIMIT = 1 << 20
SECRET = "xyzzy-plugh"  # a word that must not appear in error messages

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
HEADERS = st.dictionaries(TEXT.filter(bool).filter(lambda key: key != "content-type"), TEXT.filter(bool), max_size=4)
BODIES = st.binary(max_size=40) | st.binary(max_size=40).map(lambda rest: MAGIC + rest)


@attrs.frozen
class Task:
    """A payload with a type of its own."""

    name: str
    priority: int = 0
    tags: list[str] = attrs.field(factory=list)
    score: float | None = None


class Struct(msgspec.Struct):
    """A payload as a msgspec struct."""

    name: str
    secret: int = 0


TASKS = st.builds(
    Task,
    TEXT,
    st.integers(-(2**63), 2**63 - 1),
    st.lists(TEXT, max_size=3),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
)


def payloads(type_: Any = Any, limit: int = LIMIT) -> Payloads:
    """Return the payloads of an object of this type."""
    return Payloads("stream 'tasks'", type_, limit)


# --- round trips -------------------------------------------------------------------------------------------------


@given(JSON, HEADERS)
def test_json_comes_back_as_it_was_sent(data: Any, headers: dict[str, str]) -> None:
    """Any JSON value comes back equal, with its headers."""
    assert payloads().unpack(*payloads().pack(data, headers)) == (data, headers)


@given(st.binary(), HEADERS)
def test_bytes_come_back_as_they_were_sent(data: bytes, headers: dict[str, str]) -> None:
    """Bytes are never taken for JSON, with and without a declared type, and the header that marks them is hidden."""
    assert payloads(bytes).unpack(*payloads(bytes).pack(data, headers)) == (data, headers)
    assert payloads().unpack(*payloads().pack(data, headers)) == (data, headers)


@given(TASKS)
def test_a_typed_payload_comes_back_as_its_type(task: Task) -> None:
    """An object with a type returns instances of the type."""
    assert payloads(Task).unpack(*payloads(Task).pack(task, None)) == (task, {})


@given(BODIES, HEADERS)
def test_an_envelope_gives_back_what_was_sealed(body: bytes, headers: dict[str, str]) -> None:
    """Body and headers come back unchanged, even of a body that looks like an envelope."""
    assert open_envelope(seal_envelope(body, headers)) == (body, headers)


@given(st.binary().filter(lambda body: not body.startswith(MAGIC)))
def test_a_body_without_headers_travels_alone(body: bytes) -> None:
    """Any client can read a message without headers."""
    assert seal_envelope(body, {}) == body


def test_a_codec_of_the_users_own_is_used() -> None:
    """An object with `encode` and `decode` replaces JSON."""

    class Reversed:
        def encode(self, data: str) -> bytes:
            return data[::-1].encode()

        def decode(self, body: bytes, *, foreign: bool) -> str:
            return body.decode()[::-1]

    body, headers = payloads(Reversed()).pack("abc", None)
    assert body == b"cba"
    assert payloads(Reversed()).unpack(body, headers) == ("abc", {})


def test_fields_that_another_program_wrote_are_read_leniently() -> None:
    """Text fields of a foreign entry become the numbers that the type requires; other bodies are read strictly."""
    body = b'{"name": "a", "priority": "7"}'
    assert payloads(Task).unpack(body, {}, foreign=True)[0] == Task("a", 7)
    with pytest.raises(DecodeError):
        payloads(Task).unpack(body, {})


# --- refusals ----------------------------------------------------------------------------------------------------


@given(st.binary() | JSON.map(msgspec.json.encode), st.sampled_from([Any, Task, Struct, int, list[Task]]))
def test_what_cannot_be_decoded_is_a_decode_error(body: bytes, type_: Any) -> None:
    """Decoding any body returns a payload or raises a `DecodeError`, never any other error."""
    prefix = f"stream 'tasks': a body of {len(body)} bytes can't be decoded ("
    try:
        payloads(type_).unpack(body, {})
    except DecodeError as error:
        text = str(error)
    else:
        text = prefix
    assert text.startswith(prefix)


@given(
    st.binary()
    | st.binary(max_size=3)
    | st.tuples(st.integers(0, 40), st.binary(max_size=40) | HEADERS.map(msgspec.json.encode)).map(
        lambda pair: pair[0].to_bytes(4, "big") + pair[1]
    )
)
def test_what_only_starts_as_an_envelope_is_a_decode_error(rest: bytes) -> None:
    """A cut or forged envelope is opened or raises a `DecodeError`."""
    try:
        body, headers = open_envelope(MAGIC + rest)
    except DecodeError:
        return
    assert len(body) <= len(rest)
    assert all(isinstance(text, str) for pair in headers.items() for text in pair)


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(b"\0\0\0\x09" + b'{"a":"\xff"}', id="not UTF-8"),
        pytest.param(b"\0\0\1\0" + b'{"a":"b"}', id="cut short"),
        pytest.param(b"\0\0\0\x07" + b'{"a":1}', id="not text"),
        pytest.param(b"\0", id="no length"),
    ],
)
def test_a_broken_envelope_is_a_decode_error(rest: bytes) -> None:
    """Every kind of broken envelope raises a `DecodeError`."""
    with pytest.raises(DecodeError):
        open_envelope(MAGIC + rest)


@pytest.mark.parametrize(
    ("body", "type_"),
    [
        (f'{{"name": 1, "{SECRET}": 1}}'.encode(), Task),
        (f'{{"{SECRET}": 1}}'.encode(), Struct),
        (f'"{SECRET}"'.encode(), int),
        (SECRET.encode(), Any),
        (f'"{SECRET}\xff"'.encode("latin-1"), Any),
    ],
)
def test_an_error_tells_lengths_and_never_content(body: bytes, type_: Any) -> None:
    """The content of a message doesn't leak into the text of an error."""
    with pytest.raises(DecodeError) as caught:
        payloads(type_).unpack(body, {})
    assert SECRET not in str(caught.value)
    assert str(len(body)) in str(caught.value)


def test_deep_nesting_is_a_decode_error() -> None:
    """A body that nests too deeply for the decoder is refused like any other."""
    with pytest.raises(DecodeError):
        payloads().unpack(b"[" * 100_000, {})


def test_a_body_over_the_limit_is_refused_both_ways() -> None:
    """`max_payload` holds for what is sent and for what is received."""
    small = payloads(bytes, limit=3)
    with pytest.raises(InvalidArgumentError, match="max_payload is 3"):
        small.pack(b"four", None)
    with pytest.raises(DecodeError, match="4 bytes"):
        small.unpack(b"four", {})
    assert small.unpack(b"tri", {}) == (b"tri", {})


@pytest.mark.parametrize(
    "data", [object(), {1j: 2}, {"a": {"b": object()}}, "\ud800"], ids=["object", "key", "inside", "surrogate"]
)
def test_what_has_no_form_is_an_encode_error(data: object) -> None:
    """A payload that the codec can't write is refused before anything is sent."""
    with pytest.raises(EncodeError, match="stream 'tasks': a payload of type"):
        payloads().pack(data, None)


def test_an_object_of_bytes_carries_nothing_else() -> None:
    """`type=bytes` refuses text instead of guessing an encoding."""
    with pytest.raises(EncodeError, match="type str"):
        payloads(bytes).pack("text", None)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: [1, (x,)], lambda x: {"a": {"b": x}}, lambda x: Task("a", score=x)],
    ids=["bare", "list", "dict", "attrs"],
)
def test_numbers_that_json_lacks_are_refused(number: float, wrap: Any) -> None:
    """NaN and infinity would arrive as null, so they are refused."""
    with pytest.raises(EncodeError, match="no NaN"):
        payloads().pack(wrap(number), None)


def test_null_and_the_word_null_are_fine() -> None:
    """Null, and a text that says null, are sent."""
    data = {"a": None, "b": "null", "c": [1.5, None]}
    assert payloads().unpack(*payloads().pack(data, None))[0] == data


def test_a_type_that_no_body_can_have_is_refused_when_the_object_is_made() -> None:
    """A type that msgspec can't decode is refused when the object is made."""
    with pytest.raises(InvalidArgumentError, match="can't be decoded from JSON"):
        payloads(type("Plain", (), {"__slots__": ()}) | int | str | Task | Struct)
