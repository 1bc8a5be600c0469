"""Exit codes, and the line on stderr."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ailf
from ailf.cli import exits
from ailf.cli.app import APPS
from ailf.cli.exits import CommandError, code_for, line_for
from tests.support.commands import run
from tests.support.servers import NewServer

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ailf.InvalidArgumentError("x"), 2),
        (ailf.ConnectionLostError("x"), 3),
        (ailf.BackendTimeoutError("x"), 3),
        (ailf.PermissionDeniedError("x"), 4),
        (ailf.UnsupportedError("x"), 5),
        (ailf.NotFoundError("x"), 6),
        (ailf.OutcomeUnknownError("x"), 7),
        (ailf.StreamFullError("x"), 1),
        (ailf.RequestTimeoutError("x"), 1),
        (CommandError("x", 6), 6),
        (RuntimeError("x"), 1),
    ],
)
def test_an_error_has_an_exit_code(error: Exception, code: int) -> None:
    """Each kind of error has its exit code."""
    assert code_for(error) == code


def test_the_codes_are_documented() -> None:
    """The page lists each exit code."""
    listed = {int(each) for each in re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)}
    assert listed == {value for name, value in vars(exits).items() if name.isupper() and type(value) is int} - {
        exits.LONGEST
    }


def test_a_line_is_one_line() -> None:
    """Whatever text an error has, its line is printable and not long."""
    line = line_for(ailf.InvalidArgumentError("a\nb \x1b[31m" + "x" * 10_000))
    assert line.startswith(r"a b \x1b[31mx")
    assert len(line) < 1100
    assert line_for(RuntimeError("boom")) == "RuntimeError: boom"


def test_a_server_that_is_down(new_server: NewServer) -> None:
    """A server that can't be reached is exit code 3, with one line; doctor says what to do."""
    server = new_server()
    server.stop()
    for command in (["ping"], ["read", "orders"], ["bench"]):
        ended = run(*command, url=server.url)
        assert ended.code == 3
        assert ended.err.count("\n") == 1
        assert ended.out == ""
    ended = run("doctor", url=server.url)
    assert ended.code == 3
    assert "-> check the host" in ended.out


def test_a_server_that_is_frozen(new_server: NewServer) -> None:
    """A server that doesn't answer is exit code 3, after the timeout of the URL."""
    server = new_server()
    server.pause()
    ended = run("ping", url=f"{server.url}?timeout=0.3&connect_timeout=0.3")
    assert ended.code == 3
    assert ended.err.count("\n") == 1


def test_a_wrong_password(new_server: NewServer) -> None:
    """A refused password is exit code 4."""
    server = new_server(password="secret")
    ended = run("ping", url=f"redis://:wrong@127.0.0.1:{server.port}/0")
    assert ended.code == 4
    assert "wrong@" not in ended.err


@pytest.mark.parametrize("url", ["nonsense", "nats://here", "redis://localhost:port", "redis://h/0?nonsense=1", ""])
def test_a_wrong_url(url: str) -> None:
    """A URL that can't be used is exit code 2, with one line."""
    ended = run("ping", "--url", url)
    assert ended.code == 2
    assert ended.err.count("\n") == 1


def test_a_bug_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error of our own is one line too."""
    monkeypatch.setattr("ailf.backend.Backend.ping", lambda self: 1 / 0)
    ended = run("ping", url="memory://")
    assert (ended.code, ended.err) == (1, "ailf: ZeroDivisionError: division by zero\n")


def test_without_typer_the_command_says_how_to_install_it() -> None:
    """Without the extra the command writes one line, and ends with exit code 2."""
    program = "import sys; sys.modules['typer'] = None; from ailf.cli import main; sys.exit(main())"
    ended = subprocess.run([sys.executable, "-c", program, "ping"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "ailf: the command line needs typer and rich; run: pip install 'ailf[cli]'\n"


def test_the_library_doesnt_load_typer() -> None:
    """Importing the packages, and opening a backend, loads neither typer nor rich."""
    program = (
        "import sys, ailf, ailf.cli, ailf_redis, ailf_memory; ailf.connect('memory://').close(); "
        "sys.exit(bool({'typer', 'rich', 'click'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("module", ["ailf", "ailf.cli"])
def test_it_is_a_module(module: str) -> None:
    """`python -m ailf --version` shows the version."""
    ended = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"ailf \d+\.\d+\.\d+\S*\n", ended.stdout)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shell can have a script that completes commands."""
    monkeypatch.setenv("_AILF_COMPLETE", f"source_{shell}")
    with pytest.raises(SystemExit) as caught:
        run()
    assert not caught.value.code


def test_no_command_shows_the_help() -> None:
    """Without a command the help is shown, and the exit code is that of wrong usage."""
    ended = run()
    assert ended.code == 2
    assert "Exit codes: 0 done" in ended.out
    assert run("--help").code == 0
    assert run("dead", "ls", "-h").out.startswith("Usage: ailf dead ls [OPTIONS]")


def commands() -> Iterator[tuple[str, str]]:
    """Yield the group, or "", and the name of each command."""
    for app in APPS:
        for each in app.registered_commands:
            yield app.info.name if isinstance(app.info.name, str) else "", str(each.name)


@pytest.mark.parametrize(("group", "name"), list(commands()), ids=" ".join)
def test_each_command_is_documented(group: str, name: str) -> None:
    """A page has a heading with each command, and each command has the options of all; `run` has its own."""
    pages = PAGE.parent.rglob("*.md")
    headings = [line for page in pages for line in page.read_text().splitlines() if line.startswith("#")]
    pattern = rf"`ailf {group} (\w+\|)*{name}[|`]|`ailf {group} {name} " if group else rf"`ailf {name}[ `]"
    assert [line for line in headings if re.search(pattern, line)]
    shown = run(*group.split(), name, "--help").out
    assert "--json" in shown or name == "run", "the runner writes nothing but its log"
    assert "--url" in shown


@pytest.mark.parametrize("name", ["purge", "redrive", "trim", "seek", "pause", "break", "reset", "delete"])
def test_what_takes_something_away_asks(name: str) -> None:
    """Each command that takes something away has --yes, and no other has."""
    (group,) = [group for group, each in commands() if each == name]
    assert "--yes" in run(*group.split(), name, "--help").out
