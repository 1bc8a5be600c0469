"""Users' texts become short texts that can be encoded."""

import json

import pytest

from ailf.errors import InvalidArgumentError
from ailf.safe_text import LONGEST, describe, safe_reason, safe_text

HALF = json.loads('"\\ud83d"')
"""Half of a surrogate pair, as of a cut-off emoji."""


class OddError(Exception):
    """An exception whose `__str__` raises."""

    def __str__(self) -> str:
        return self.args[5]  # type: ignore[no-any-return]


class ExitsError(Exception):
    """An exception whose `__str__` raises `SystemExit`."""

    def __str__(self) -> str:
        raise SystemExit


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain, ümläut, 😀", "plain, ümläut, 😀"),
        (f"cut {HALF} off", r"cut \ud83d off"),
        ("a\0b", "a\0b"),
        ("x" * 50_000, "x" * LONGEST),
        (HALF * 50_000, (r"\ud83d" * LONGEST)[:LONGEST]),
        ("", ""),
    ],
)
def test_text_is_short_and_can_be_encoded(text: str, safe: str) -> None:
    """A lone surrogate becomes its escape, a long text is cut, and any other text is unchanged."""
    assert safe_text(text) == safe
    safe_text(text).encode()


@pytest.mark.parametrize(
    ("error", "described"),
    [
        (ValueError("no"), "ValueError: no"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (OddError("x"), "OddError: <no text: OddError.__str__ raised IndexError>"),
        (ExitsError("x"), "ExitsError: <no text: ExitsError.__str__ raised SystemExit>"),
        (ValueError(f"bad {HALF}"), r"ValueError: bad \ud83d"),
        (
            ExceptionGroup("several", [KeyError("a"), ExceptionGroup("inner", [OddError("b")])]),
            (
                "ExceptionGroup: several (2 sub-exceptions): KeyError: 'a'; "
                "OddError: <no text: OddError.__str__ raised IndexError>"
            ),
        ),
    ],
)
def test_errors_are_described(error: BaseException, described: str) -> None:
    """An error is described by type and text, a group also by the errors in it."""
    assert describe(error) == described


def test_a_large_error_is_described_shortly() -> None:
    """Neither a long text nor a large group makes a description long."""
    assert len(describe(ValueError("x" * 50_000_000))) <= LONGEST
    group = ExceptionGroup("many", [ValueError("y" * 1000) for _ in range(1000)])
    assert len(describe(group)) <= LONGEST


@pytest.mark.parametrize("reason", [None, 3, b"bytes", ValueError("x")])
def test_a_reason_must_be_text(reason: object) -> None:
    """A reason that is no text is refused."""
    with pytest.raises(InvalidArgumentError, match="reason must be text, not"):
        safe_reason("reason", reason)
