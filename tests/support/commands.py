"""Run the command line within the test process, and compare whole sessions with files.

A session is a text file: each line that begins with ``$ ailf`` is a command, and what follows is what it wrote: its
stdout, its stderr with ``! `` before each line, and its exit code unless that is 0. ``<<<`` gives it a text as stdin.
``AILF_WRITE_SESSIONS=1`` writes the files anew.
"""

import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import pytest

from ailf.cli import main

MASKS = (
    (r"\b(redis|memory)://[\w.:/-]*", "URL"),
    (r"\b\d{13}-\d+\b", "ID"),
    (r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", "TIME"),
    (r"\b\d{15,}\b", "FENCE"),
    (r"\b[\w.-]+-\d+:[0-9a-z]{8}\b", "CONSUMER"),
    (r"-?\b\d[\d.,]* (?:µs|ms|s|min|h|d)\b", "SECONDS"),
    (r"\b\d+\.\d{4,}(?:e-\d+)?\b", "SECONDS"),
    (r"\b[\d.]+ (?:KiB|MiB|days)\b", "SOME"),
    (r"\b(Redis|Valkey) \d+\.[\d.]+", "Redis VERSION"),
    (r" {2,}", "  "),
    (r" +$", ""),
)
"""What differs from run to run, and what is compared instead; the first one that matches counts."""


@attrs.frozen
class Ended:
    """A command that has ended.

    Attributes:
        code: Its exit code.
        out: What it wrote to stdout.
        err: What it wrote to stderr.
    """

    code: int
    out: str
    err: str


class _Pipe(io.TextIOWrapper):
    """A stream that remembers what was written to it."""

    def __init__(self, content: bytes = b"") -> None:
        self.bytes = io.BytesIO(content)
        super().__init__(self.bytes, encoding="utf-8", newline="")

    def text(self) -> str:
        self.flush()
        return self.bytes.getvalue().decode()


def run(*arguments: str, stdin: bytes = b"", width: int = 100) -> Ended:
    """Run the command in this process, without a terminal.

    Arguments:
        arguments: The arguments.
        stdin: What it can read.
        width: The width of the output in columns.
    """
    out, err = _Pipe(), _Pipe()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr("sys.stdin", _Pipe(stdin))
        patch.setenv("COLUMNS", str(width))
        patch.setenv("TERM", "dumb")
        for name in ("AILF_URL", "FORCE_COLOR", "XDG_CONFIG_HOME"):
            patch.delenv(name, raising=False)
        code = main(arguments)
    return Ended(code, out.text(), err.text())


def masked(text: str) -> str:
    """Return a text without what differs from run to run."""
    for pattern, instead in MASKS:
        text = re.sub(pattern, instead, text, flags=re.MULTILINE)
    return text


def check_session(path: Path, url: str, names: Mapping[str, str]) -> None:
    """Run the commands of a file and compare what they write with what the file says.

    Arguments:
        path: The file.
        url: The URL of the backend on which they work.
        names: The values of the words that begin with a dollar.
    """
    expected = path.read_text()
    found = "".join(_played(expected, url, names))
    if os.environ.get("AILF_WRITE_SESSIONS"):
        path.write_text(found)
    else:
        assert found == expected


def _played(session: str, url: str, names: Mapping[str, str]) -> Iterator[str]:
    for line in session.splitlines():
        if line.startswith("#"):
            yield f"{line}\n"
        if not line.startswith("$ ailf"):
            continue
        words = shlex.split(line)[2:]
        given, _, text = " ".join(map(shlex.quote, words)).partition(" '<<<' ")
        stdin = "".join(shlex.split(text)).encode().decode("unicode_escape").encode("latin-1") if text else b""
        ended = run(*(names.get(each, each) for each in shlex.split(given)), "--url", url, stdin=stdin)
        yield f"{line}\n{masked(ended.out)}"
        yield "".join(f"! {each}\n" for each in masked(ended.err).splitlines())
        yield f"exit {ended.code}\n\n" if ended.code else "\n"
