"""What a terminal gets of users' texts, and how numbers are written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ailf.cli.text import as_json, counted, cut, duration, message_value, payload_text, size, visible

ANY_TEXT = st.text(st.characters())


@given(ANY_TEXT)
def test_a_visible_text_has_nothing_to_interpret(text: str) -> None:
    """Whatever a name has, its visible text is printable, in one line, and can be encoded."""
    assert visible(text).isprintable()
    assert visible(text).encode().decode() == visible(text)


@given(st.binary())
def test_a_payload_has_nothing_to_interpret(body: bytes) -> None:
    """Whatever bytes a body has, what is shown of it is printable."""
    assert payload_text(body).isprintable()
    assert payload_text(body, full=True).isprintable()


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**63) | ANY_TEXT, st.lists, max_leaves=5))
def test_json_is_ascii(value: object) -> None:
    """JSON has no character that a terminal interprets, and says the same."""
    line = as_json(value)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü", "plain ü"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("\u202eevil", r"\u202eevil"),
        ("\udcff", r"\udcff"),
        ("[red]", "[red]"),
    ],
)
def test_control_characters_are_escapes(text: str, shown: str) -> None:
    """Escape sequences, line ends, marks of direction and lone surrogates are written as escapes."""
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": [1]}', {"data": {"a": [1]}, "headers": {}}),
        (b"not JSON", {"data": "not JSON", "headers": {}}),
        (b"\xff", {"base64": "/w==", "headers": {}}),
        (b"[" * 100_000, {"data": "[" * 100_000, "headers": {}}),
    ],
)
def test_a_message_has_a_json_value(body: bytes, value: object) -> None:
    """The value of a body is its JSON, else its text, else base64."""
    assert message_value(body, {}) == value


def test_a_long_payload_is_cut() -> None:
    """Only the beginning of a long payload is shown, and how much is missing; all of it with `full`."""
    assert payload_text(b"x" * 300).endswith("… (100 more)")
    assert payload_text(b"\xff" * 3000).endswith("… (2.9 KiB in all)")
    assert payload_text(b"x" * 300, full=True) == "x" * 300
    assert cut("abc", 3) == "abc"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0 µs"),
        (0.000_04, "40 µs"),
        (0.0042, "4.2 ms"),
        (1.0, "1.0 s"),
        (-90.0, "-1.5 min"),
        (7200.0, "2.0 h"),
        (864_000.0, "10.0 d"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    """A duration has its unit."""
    assert duration(seconds) == text


def test_numbers_of_things() -> None:
    """One thing is singular."""
    assert [counted(number, "entry") for number in (0, 1, 2000)] == ["0 entries", "1 entry", "2,000 entries"]
    assert [size(number) for number in (1, 2048, 3 * 1024 * 1024)] == ["1 bytes", "2.0 KiB", "3.0 MiB"]
