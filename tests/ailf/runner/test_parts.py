"""The parts of the runner that need no workers: its pages, the merged metrics, watched files, finding the app."""

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

import ailf
from ailf.runner import RunnerOptions, server
from ailf.runner.channel import Channel
from ailf.runner.files import changed, snapshot
from ailf.runner.loading import load_app
from ailf.runner.metrics import merge
from ailf.runner.server import MOST, Page, PageServer
from ailf.runner.show_log import shown_log


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[PageServer]:
    """A server with one page, and a short deadline."""
    monkeypatch.setattr(server, "DEADLINE", 1.0)
    served = PageServer("127.0.0.1", 0, {"/page": lambda: Page.of(200, status="fine")})
    served.start()
    yield served
    served.close()


def ask(port: int, request: bytes) -> bytes:
    """Send bytes, and return everything that comes back."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(4096), b""))


def test_pages(pages: PageServer) -> None:
    """A page is sent, also without its body, and a path that doesn't exist is 404."""
    assert ask(pages.port, b"GET /page?x HTTP/1.1\r\n\r\n").endswith(b'\r\n\r\n{"status": "fine"}\n')
    assert ask(pages.port, b"HEAD /page HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")
    assert ask(pages.port, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.0 404 ")
    assert ask(pages.port, b"POST /page HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.0 501 ")


def test_a_slow_client_is_cut_off(pages: PageServer) -> None:
    """A client that sends byte by byte is cut off at the deadline, and others are served meanwhile."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", pages.port), 10) as slow, pytest.raises(ConnectionError):
        while True:
            slow.sendall(b"G")
            assert time.monotonic() - began < 5, "it is never cut off"
            with urlopen(f"http://127.0.0.1:{pages.port}/page") as response:
                assert response.status == 200
            time.sleep(0.1)
    assert time.monotonic() - began >= 0.9


def test_many_clients(pages: PageServer) -> None:
    """More clients than are served at once are refused, and afterwards it serves again."""
    idle = [socket.create_connection(("127.0.0.1", pages.port), 10) for _ in range(MOST)]
    time.sleep(0.2)
    assert ask(pages.port, b"") == b"", "closed at once"
    for each in idle:
        each.settimeout(5)
        assert each.recv(100) == b"", "cut off at the deadline"
        each.close()
    assert b"fine" in ask(pages.port, b"GET /page HTTP/1.1\r\n\r\n")


def test_a_page_that_fails(pages: PageServer) -> None:
    """An error of a page ends its request alone."""
    pages._pages["/bad"] = lambda: Page.of(1 // 0)  # type: ignore[index]
    assert ask(pages.port, b"GET /bad HTTP/1.1\r\n\r\n") == b""
    assert b"fine" in ask(pages.port, b"GET /page HTTP/1.1\r\n\r\n")


def test_metrics_are_merged() -> None:
    """Each sample gets its worker as a label, and the samples of one metric stand together, under one comment."""
    text = (
        '# HELP calls Calls.\n# TYPE calls counter\ncalls_total{kind="a}b"} 3\ncalls_total 4 1700000000\n'
        '# TYPE size histogram\nsize_bucket{le="+Inf"} 1\nsize_sum 2.5\nsize_count 1\n'
        "# EOF\nlonely NaN\nnot a sample {\n"
    )
    assert merge({"1": text, "2": text}) == (
        "# HELP calls Calls.\n# TYPE calls counter\n"
        'calls_total{worker="1",kind="a}b"} 3\ncalls_total{worker="1"} 4 1700000000\n'
        'calls_total{worker="2",kind="a}b"} 3\ncalls_total{worker="2"} 4 1700000000\n'
        "# TYPE size histogram\n"
        'size_bucket{worker="1",le="+Inf"} 1\nsize_sum{worker="1"} 2.5\nsize_count{worker="1"} 1\n'
        'size_bucket{worker="2",le="+Inf"} 1\nsize_sum{worker="2"} 2.5\nsize_count{worker="2"} 1\n'
        'lonely{worker="1"} NaN\nlonely{worker="2"} NaN\n'
    )
    assert merge({}) == merge({"1": ""}) == ""


def test_files(tmp_path: Path) -> None:
    """Changed, new and removed Python files are found; hidden folders and environments are not searched."""
    (tmp_path / "package").mkdir()
    for skipped in (".hidden", "venv", "__pycache__"):
        (tmp_path / skipped).mkdir()
        (tmp_path / skipped / "x.py").touch()
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    one, two, other = tmp_path / "one.py", tmp_path / "package" / "two.py", tmp_path / "text.txt"
    for each in (one, two, other):
        each.touch()
    before = snapshot(tmp_path)
    assert set(before) == {one, two}
    os.utime(one, ns=(1, 1))
    two.unlink()
    other.write_text("x")
    (tmp_path / "new.py").touch()
    assert changed(before, snapshot(tmp_path)) == [tmp_path / "new.py", one, two]


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("", "must be named like module:app"),
        ("a b:app", "must be named like module:app"),
        ("nowhere_at_all:app", "there is no module 'nowhere_at_all'"),
        ("json.nowhere:app", "there is no module 'json.nowhere'"),
        ("json:app", "the module 'json' has no 'app'"),
        ("json:dumps", "is not an ailf.App but a function; pass the App itself"),
    ],
)
def test_apps_that_are_not_found(target: str, why: str) -> None:
    """The error says what is missing."""
    with pytest.raises(ailf.InvalidArgumentError, match=why):
        load_app(target)


def test_finding_an_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An app is found in the current directory, by the name "app" or another one; a missing import shows itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"jobs_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text("import ailf\nclass inner:\n    jobs = ailf.App()\napp = ailf.App()\n")
    (tmp_path / f"{name}_bad.py").write_text("import nowhere_at_all\n")
    assert isinstance(load_app(name), ailf.App)
    assert isinstance(load_app(f"{name}:inner.jobs"), ailf.App)
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
        load_app(f"{name}_bad")


def test_channels() -> None:
    """Messages arrive whole, however they are cut; the end of one process is the end of the channel."""
    ours, theirs = (Channel(end) for end in socket.socketpair())
    assert theirs.send("one", text="ä\n")
    assert theirs.send("two", size="x" * 100_000)
    received = list(ours.receive() or ())
    while len(received) < 2:
        received += ours.receive() or ()
    assert received[0] == {"kind": "one", "text": "ä\n"}
    assert len(received[1]["size"]) == 100_000
    theirs.close()
    assert ours.receive() is None
    assert not ours.send("late")
    ours.close()


@pytest.mark.parametrize(
    "options",
    [
        {"target": ""},
        {"workers": 0},
        {"workers": True},
        {"grace": 0},
        {"grace": float("nan")},
        {"wait": -1},
        {"health_port": 65_536},
        {"metrics_port": "http"},
        {"log_level": "loud"},
        {"host": ""},
        {"reload": "yes"},
    ],
    ids=str,
)
def test_options(options: dict[str, object]) -> None:
    """An invalid option is refused."""
    with pytest.raises(ailf.InvalidArgumentError):
        RunnerOptions(**{"target": "jobs:app", **options})  # type: ignore[arg-type]


def test_the_log_has_no_control_characters(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A record reaches a terminal with its escapes; the lines of a traceback stay lines."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def fail() -> None:
        raise ValueError("no \x1b[31m\udcff")

    with shown_log("info"):
        try:
            fail()
        except ValueError:
            logging.getLogger("ailf.runner").exception("[/]\x07 %s", "\u202e")
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.endswith(r"ailf.runner: [/]\x07 \u202e")
    assert len(rest) > 2
    assert rest[-1] == r"ValueError: no \x1b[31m\udcff"
