"""Run the command line within the test process, and compare whole sessions with files.

A session is a text file: each line that begins with ``$ ailf`` is a command, and what follows is what it wrote: its
stdout, its stderr with ``! `` before each line, and its exit code unless that is 0. ``<<<`` gives it a text as stdin.
``^C 2`` at the end is Ctrl-C after two lines of stdout or of stderr. With ``(process)`` at the end it runs as a process
of its own, and of the log on its stderr only the lines of the runner are compared. ``AILF_WRITE_SESSIONS=1`` writes the
files anew.
"""

import contextlib
import difflib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import pytest

from ailf.cli import main

VARIABLE = "AILF_WRITE_SESSIONS"

MASKS = (
    (r'("(?:added|died|oldest|remaining|reset_after|seconds|settled|median|p99|per_second)"): [\d.e-]+', r"\1: NUMBER"),
    (r"\b(redis|memory)://[\w.:/-]*", "URL"),
    (r"\b\d{13}-\d+\b", "ID"),
    (r"_\d{13}_\d+\b", "_ID"),
    (r"(?:ahead of|behind) this machine's", "from this machine's"),
    (r"\b\d+ of [\d,]+ connections", "SOME connections"),
    (r"\(process \d+\)", "(process PID)"),
    (r"there is no module '(\w+)' in \S+ or", r"there is no module '\1' in FOLDER or"),
    (r"or \[contexts\.(\w+)\] to \S+", r"or [contexts.\1] to FILE"),
    (r"\b\d+:ID\b", "PARTITION:ID"),
    (r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", "TIME"),
    (r"\b\d{15,}\b", "FENCE"),
    (r"\b[\w.-]+-\d+:[0-9a-z]{8}\b", "CONSUMER"),
    (r"-?\b\d[\d.,]* (?:µs|ms|s|min|h|d)\b", "SECONDS"),
    (r"\b[\d.]+ (?:KiB|MiB|days)\b", "SOME"),
    (r"\b(Redis|Valkey) \d+\.[\d.]+", "Redis VERSION"),
    (r"(is not the id of (?:an entry|a dead letter)), which .*", r"\1; REASON"),
    (r"(Invalid value for [^:]+:) .* (Try:)", r"\1 REASON. \2"),
    (r"(?<=\S) {2,}", "  "),
    (r" +$", ""),
    (r"[\d,]+(?=  SECONDS  SECONDS$)", "NUMBER"),
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
    """A stream that remembers what was written to it.

    Arguments:
        content: What can be read.
        lines: The number of lines after which a flush is Ctrl-C; None: it never is.
    """

    def __init__(self, content: bytes = b"", lines: int | None = None) -> None:
        self.bytes = io.BytesIO(content)
        self._lines = lines
        super().__init__(self.bytes, encoding="utf-8", newline="")

    def flush(self) -> None:
        super().flush()
        if self._lines is not None and self.bytes.getvalue().count(b"\n") >= self._lines:
            self._lines = None
            signal.raise_signal(signal.SIGINT)

    def text(self) -> str:
        self.flush()
        return self.bytes.getvalue().decode()


def run(
    *arguments: str, url: str | None = None, stdin: bytes = b"", width: int = 140, ctrl_c: int | None = None
) -> Ended:
    """Run the command in this process, without a terminal.

    Arguments:
        arguments: The arguments.
        url: The value of AILF_URL; None for none.
        stdin: What it can read.
        width: The width of the output in columns.
        ctrl_c: The number of lines of stdout, or of stderr, after which Ctrl-C comes; None: it never does.
    """
    out, err = _Pipe(lines=ctrl_c), _Pipe(lines=ctrl_c)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr("sys.stdin", _Pipe(stdin))
        patch.setenv("COLUMNS", str(width))
        patch.setenv("TERM", "dumb")
        patch.setenv("XDG_CONFIG_HOME", os.devnull)
        patch.delenv("FORCE_COLOR", raising=False)
        if url is None:
            patch.delenv("AILF_URL", raising=False)
        else:
            patch.setenv("AILF_URL", url)
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
    if os.environ.get(VARIABLE):
        path.write_text(found)
    else:
        lines = difflib.unified_diff(expected.splitlines(), found.splitlines(), str(path), "found", lineterm="", n=1)
        assert not (diff := "\n".join(lines)), f"{path.name} differs; if that is intended: {VARIABLE}=1\n{diff}"


def _played(session: str, url: str, names: Mapping[str, str]) -> Iterator[str]:
    for line in session.splitlines():
        if line.startswith("#"):
            yield f"{line}\n"
        if not line.startswith("$ ailf"):
            continue
        words = shlex.split(line)[2:]
        given, _, text = " ".join(map(shlex.quote, words)).partition(" '<<<' ")
        stdin = "".join(shlex.split(text)).encode().decode("unicode_escape").encode("latin-1") if text else b""
        given, _, lines = given.partition(" '^C' ")
        arguments = [names.get(each, each) for each in shlex.split(given)]
        if arguments[-1:] == ["(process)"]:
            ended = _run_process(*arguments[:-1], url=url)
        else:
            ended = run(*arguments, url=url, stdin=stdin, ctrl_c=int(lines) if lines else None)
        yield f"{line}\n{masked(ended.out)}"
        yield "".join(f"! {each}\n" for each in masked(ended.err).splitlines())
        yield f"exit {ended.code}\n\n" if ended.code else "\n"


def _run_process(*arguments: str, url: str) -> Ended:
    """Run a command in a process of its own, where the runner handles signals."""
    command = [sys.executable, "-m", "ailf", *arguments]
    ended = subprocess.run(
        command, env=os.environ | {"AILF_URL": url}, capture_output=True, text=True, check=False, timeout=60
    )
    logged = (line.partition("] ailf.runner: ") for line in ended.stderr.splitlines())
    return Ended(ended.returncode, ended.stdout, "".join(f"{text}\n" for _, by_runner, text in logged if by_runner))
