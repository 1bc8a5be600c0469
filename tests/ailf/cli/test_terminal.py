"""The command in a process of its own: pipes, terminals, signals, and closed outputs."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

import ailf
from tests.support.servers import Server

AILF = (sys.executable, "-m", "ailf")


def environment(**more: str) -> dict[str, str]:
    """Return an environment without settings that change the output."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "AILF_URL")}
    return kept | {"TERM": "xterm-256color", **more}


@pytest.fixture
def url(any_server: Server, namespace: str) -> Iterator[str]:
    """The URL of a namespace of the test's own."""
    url = f"{any_server.url}?namespace={namespace}"
    with ailf.connect(url) as backend:
        backend.stream("odd\x1b[31m [bold]name[/bold]").add(1)
        backend.stream("orders").add({"dish": "x" * 300})
        backend.stream("orders").group("kitchen").open()
    return url


@attrs.define
class Terminal:
    """A command on a terminal.

    Attributes:
        process: Its process.
        side: Our side of the terminal.
    """

    process: subprocess.Popen[bytes]
    side: int

    def type(self, text: str) -> None:
        """Type a text."""
        os.write(self.side, text.encode())

    def until(self, text: str) -> str:
        """Return what is written until a text comes."""
        written = ""
        while text not in written:
            assert self.writes(), f"{text!r} didn't come, only {written!r}"
            written += os.read(self.side, 4096).decode()
        return written

    def writes(self, within: float = 30) -> bool:
        """Tell whether something is written, or the command ends, within these seconds."""
        return bool(select.select([self.side], [], [], within)[0])

    def end(self) -> tuple[int, str]:
        """Return the exit code and what is still written."""
        written = b""
        while True:
            assert self.writes(), f"the command doesn't end: {written!r}"
            try:
                piece = os.read(self.side, 65_536)
            except OSError:  # Linux's way to say that the other side is closed
                piece = b""
            if not piece:
                return self.process.wait(10), written.decode()
            written += piece


@contextmanager
def terminal(*arguments: str, url: str, width: int = 80, **variables: str) -> Iterator[Terminal]:
    """Start a command on a terminal of its own."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [*AILF, *arguments],
        stdin=its,
        stdout=its,
        stderr=its,
        env=environment(AILF_URL=url, COLUMNS=str(width), **variables),
        start_new_session=True,
    )
    os.close(its)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("\x04", 1)])
def test_a_terminal_is_asked(url: str, answer: str, code: int) -> None:
    """What can't be taken back is asked about on a terminal; anything but yes, and an end of input, changes nothing."""
    with terminal("pause", "orders", "kitchen", url=url) as asked:
        assert "Pause group 'kitchen' of stream 'orders'? [y/N]" in asked.until("[y/N]")
        asked.type(answer)
        assert asked.end()[0] == code
    with ailf.connect(url) as backend:
        assert backend.stream("orders").group("kitchen").info().paused == (code == 0)


def test_ctrl_c_at_a_question(url: str) -> None:
    """Ctrl-C at a question ends with 130, without a traceback."""
    with terminal("pause", "orders", "kitchen", url=url) as asked:
        asked.until("[y/N]")
        asked.process.send_signal(signal.SIGINT)
        # Python looks for signals before it waits for a line, but not between that look and the wait.
        while not asked.writes(within=5):
            asked.process.send_signal(signal.SIGINT)
        code, written = asked.end()
    assert code == 130
    assert "Traceback" not in written


def test_colours_are_for_terminals_that_want_them(url: str) -> None:
    """A terminal gets colours, unless NO_COLOR is set."""
    with terminal("doctor", "--interval", "0", url=url) as coloured:
        assert "\x1b[32mok" in coloured.end()[1]
    with terminal("doctor", "--interval", "0", url=url, NO_COLOR="1") as plain:
        assert "\x1b[3" not in plain.end()[1]


def test_names_reach_no_terminal_raw(url: str) -> None:
    """Escape sequences and markup in names are shown as they are written, on a terminal too."""
    with terminal("streams", url=url, NO_COLOR="1", width=120) as listed:
        written = listed.end()[1]
    assert "\x1b[31m" not in written
    assert r"odd\x1b[31m [bold]name[/bold]" in written


def test_a_narrow_terminal(url: str) -> None:
    """At 40 columns no line is longer, and nothing is cut off."""
    with terminal("streams", url=url, NO_COLOR="1", TERM="dumb", width=40) as listed:
        code, written = listed.end()
    assert code == 0
    assert max(map(len, written.splitlines())) <= 40
    assert "orders" in "".join(written.split())


def test_output_that_is_no_terminal_is_not_wrapped(url: str) -> None:
    """A pipe gets a line for each entry, however long it is, and no escape sequence."""
    ended = run_process("read", "orders", "--full", url=url)
    assert len(ended.stdout.splitlines()) == 1
    assert len(ended.stdout) > 300
    assert "\x1b" not in ended.stdout


def run_process(*arguments: str, url: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*AILF, *arguments],
        stdout=options.pop("stdout", subprocess.PIPE),  # type: ignore[call-overload]
        stderr=subprocess.PIPE,
        text=True,
        env=environment(AILF_URL=url, **options.pop("env", {})),  # type: ignore[arg-type]
        check=False,
        **options,
    )


def test_a_broken_pipe(url: str) -> None:
    """A reader that has seen enough ends the command with 141, without a word."""
    with ailf.connect(url) as backend:
        backend.stream("many").add_many(range(10_000))
    process = subprocess.Popen(
        [*AILF, "read", "many", "--limit", "10000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(AILF_URL=url),
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (141, b"")


def test_a_closed_stdout(url: str) -> None:
    """Where stdout is closed, the command says so."""
    ended = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" "$@" >&-', *AILF, "streams"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(AILF_URL=url),
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (1, "ailf: can't write the output: stdout is closed\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_disk(url: str) -> None:
    """Where the output can't be written, the command says why."""
    with Path("/dev/full").open("w") as full:
        ended = run_process("read", "orders", url=url, stdout=full)
    assert (ended.returncode, ended.stderr) == (1, "ailf: can't write the output: No space left on device\n")


@pytest.mark.parametrize("command", ["tail orders --start earliest", "sub news", "info orders kitchen --watch"])
def test_ctrl_c(url: str, command: str) -> None:
    """Ctrl-C ends a command that waits with 130, without a traceback."""
    process = subprocess.Popen(
        [*AILF, *command.split(), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(AILF_URL=url),
    )
    assert process.stdout is not None
    process.stdout.readline()  # it has begun
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in out


def test_a_tail_shows_what_is_added(url: str) -> None:
    """Each entry is written as soon as it arrives, into a pipe too."""
    process = subprocess.Popen(
        [*AILF, "tail", "orders", "--start", "earliest"],
        stdout=subprocess.PIPE,
        env=environment(AILF_URL=url),
        text=True,
    )
    assert process.stdout is not None
    assert "dish" in process.stdout.readline()
    with ailf.connect(url) as backend:
        backend.stream("orders").add("second")
    assert "second" in process.stdout.readline()
    process.kill()
    process.communicate()


def test_many_lines_of_stdin(url: str) -> None:
    """Lines of stdin are added in order; a line that is too large is refused, and those before it are added."""
    lines = "".join(f"{number}\n" for number in range(1050))
    ended = run_process("add", "many", url=url, input=lines + "9" * 1_100_000 + "\n")
    assert ended.returncode == 2
    assert len(ended.stdout.splitlines()) == 1050
    assert "line 1051 is larger than the backend's max_payload, 1.0 MiB" in ended.stderr
    with ailf.connect(url) as backend:
        assert [entry.data for entry in backend.stream("many").read(limit=2000)] == list(range(1050))


def test_an_output_that_cant_encode(url: str) -> None:
    """An output in ASCII gets escapes for what it can't encode."""
    with ailf.connect(url) as backend:
        backend.stream("tea").add("grün")
    ended = run_process("read", "tea", url=url, env={"PYTHONIOENCODING": "ascii"})
    assert (ended.returncode, ended.stderr) == (0, "")
    assert r"gr\xfcn" in ended.stdout


def test_top_on_a_terminal(url: str) -> None:
    """On a terminal top draws its table again and again, and leaves the last one behind."""
    with terminal("top", "--count", "2", "--interval", "0.1", url=url, width=120) as shown:
        code, written = shown.end()
    assert code == 0
    assert written.count("kitchen") >= 3
    assert "\x1b[?1049h" in written


def test_top_says_that_there_are_more_streams(url: str) -> None:
    """A live table has a line that says that not all streams are in it, and so has what is left behind."""
    with terminal(
        "top", "--count", "1", "--interval", "0.1", "--limit", "1", url=url, width=120, NO_COLOR="1"
    ) as shown:
        code, written = shown.end()
    assert code == 0
    live, _, left = written.partition("\x1b[?1049l")
    for each in (live, left):
        assert "there are more than 1 stream, and only that many are looked at" in each


def test_a_line_without_an_end(url: str) -> None:
    """A line is refused as soon as it is too large, before its end has come."""
    process = subprocess.Popen(
        [*AILF, "add", "many"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(AILF_URL=url)
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(b"9" * 1_200_000)
        process.stdin.flush()
    assert process.wait(20) == 2
    assert process.stderr is not None
    assert b"line 1 is larger than" in process.stderr.read()
    process.stderr.close()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
