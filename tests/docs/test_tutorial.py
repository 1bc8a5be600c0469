"""The tutorial, followed as a reader does: the files that it says, the commands that it says, and what they write."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.programs import environment, output_of, run_pytest
from tests.support.servers import NewServer

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r"(?<!-->\n)```python\n(.*?)```", re.DOTALL)
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
ON_THIS_MACHINE = "redis://localhost:6379/0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the reader's folder, with both files."""
    first, *rest = BLOCK.findall(PAGE.read_text())
    (tmp_path / "first.py").write_text(first)
    (tmp_path / "crew.py").write_text("\n\n".join(rest))
    return tmp_path


def written(command: str) -> list[str]:
    """Return the lines that the page says the command writes."""
    (block,) = [each for each in CONSOLE.findall(PAGE.read_text()) if each.startswith(f"$ {command}\nM")]
    return block.splitlines()[1:]


def run(folder: Path, *command: str, **variables: str) -> str:
    """Run a command of the page to its end; return what it has written."""
    return output_of(sys.executable, *command, cwd=folder, **variables)


def on_redis(folder: Path, url: str) -> None:
    """Change the one line, to a server of the test."""
    (line,) = re.findall(r"<!-- not run[^>]*-->\n```python\n(.*)\n```", PAGE.read_text())
    file = folder / "crew.py"
    text, count = re.subn(r"^URL = .*$", line.replace(ON_THIS_MACHINE, url), file.read_text(), flags=re.MULTILINE)
    assert count == 1
    file.write_text(text)


def test_the_first_message(folder: Path) -> None:
    """The first program writes what the page says."""
    assert run(folder, "first.py").splitlines() == written("python first.py")


def test_the_crew_in_memory_and_on_redis(folder: Path, new_server: NewServer) -> None:
    """The crew writes what the page says, and the same on Redis; two chapters may change places."""
    chapters = [re.sub(r"chapter \d", "chapter", each) for each in written("python crew.py")]
    for url in ("memory://", new_server().url):
        if url != "memory://":
            on_redis(folder, url)
        lines = run(folder, "crew.py").splitlines()
        assert sorted(re.sub(r"chapter \d", "chapter", each) for each in lines) == sorted(chapters)
        assert "future" in lines[2]


def test_the_tests(folder: Path, new_server: NewServer) -> None:
    """The tests of the page pass in memory and on Redis."""
    urls = ("--ailf-url", "memory://", "--ailf-url", new_server().url)
    done = run_pytest("-W", "error", "-p", "ailf.testing.plugin", "crew.py", *urls, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout


def test_the_crew_in_processes(folder: Path, new_server: NewServer) -> None:
    """Two worker processes handle what the command line adds, and a listener gets the news."""
    server = new_server()
    on_redis(folder, server.url)
    commands = [
        re.sub(r"\s+#.*", "", each)
        for block in CONSOLE.findall(PAGE.read_text())
        for each in re.findall(r"^\$ ailf (.*)$", block, re.MULTILINE)
    ]
    assert commands == [
        "sub news",
        "run crew:app --workers 2",
        """add topics '"coffee"' '""'""",
        "groups tasks",
        "dead ls topics planners",
    ]
    ailf = [sys.executable, "-m", "ailf"]
    variables = environment(AILF_URL=server.url)
    news, log = folder / "news.log", folder / "run.log"
    with (
        news.open("w") as out,
        log.open("w") as err,
        subprocess.Popen([*ailf, "sub", "news", "--limit", "3"], env=variables, stdout=out, stderr=out) as sub,
        subprocess.Popen([*ailf, "run", "crew:app", "--workers", "2"], cwd=folder, env=variables, stderr=err) as runner,
    ):
        try:
            wait_for(news, "listening", 1)
            wait_for(log, "is ready", 2)
            run(folder, "-m", "ailf", "add", "topics", '"coffee"', '""', AILF_URL=server.url)
            sub.wait(30)
            assert sorted(re.findall(r"The (\w+) of coffee", news.read_text())) == ["future", "past", "present"]
            assert "writers" in run(folder, "-m", "ailf", "groups", "tasks", AILF_URL=server.url)
            letters = run(folder, "-m", "ailf", "dead", "ls", "topics", "planners", AILF_URL=server.url)
            assert "rejected" in letters
        finally:
            sub.kill()
            runner.terminate()
        assert runner.wait(30) == 0, log.read_text()


def wait_for(file: Path, text: str, times: int) -> None:
    """Wait until a text is in a file `times` times."""
    until = time.monotonic() + 30
    while file.read_text().count(text) < times:
        assert time.monotonic() < until, file.read_text()
        time.sleep(0.05)
