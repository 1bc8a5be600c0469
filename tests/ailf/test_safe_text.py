"""Users' texts become short texts that can be encoded; logs show as much of an error as they can."""

import json
import logging

import pytest

from ailf.errors import InvalidArgumentError
from ailf.safe_text import LONGEST, describe, log_failure, safe_reason, safe_text

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


def raised(error: Exception, *, chained: bool) -> Exception:
    """Return an error with a traceback, alone or as the cause of another one."""
    try:
        raise error  # noqa: TRY301 - for its traceback
    except Exception as cause:  # noqa: BLE001 - any
        if not chained:
            return cause
        outer = RuntimeError("outer")
        outer.__cause__ = cause
        return raised(outer, chained=False)


@pytest.mark.parametrize(
    "error",
    [
        OddError("x"),
        ExitsError("x"),
        ValueError(HALF),
        ValueError("x" * 50_000_000),
        ExceptionGroup("g", [OddError("x")]),
    ],
)
@pytest.mark.parametrize("chained", [False, True])
def test_a_log_line_is_written_whatever_the_error(
    error: Exception, chained: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The log line has the frames and the description, can be encoded, and is not large."""
    log_failure(logging.getLogger("ailf.test"), logging.ERROR, "%s failed", "it", error=raised(error, chained=chained))
    (record,) = caplog.records
    line = logging.Formatter().format(record)
    assert line.startswith("it failed\nTraceback (most recent call last):")
    assert "in raised" in line
    assert len(line.encode()) < 50_000


def test_an_ordinary_error_is_logged_with_itself(caplog: pytest.LogCaptureFixture) -> None:
    """The record of an ordinary error has the exception, for handlers such as error trackers."""
    error = ValueError("no")
    log_failure(logging.getLogger("ailf.test"), logging.ERROR, "it failed", error=error)
    (record,) = caplog.records
    assert record.exc_info
    assert record.exc_info[1] is error
