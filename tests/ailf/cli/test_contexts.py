"""Which backend a command opens."""

from pathlib import Path

import pytest

from ailf.cli.contexts import Places, url_of
from ailf.cli.exits import CommandError
from tests.support.commands import run


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A project with two contexts, a folder in it, and a user with two contexts."""
    (tmp_path / "pyproject.toml").write_text(
        '[tool.ailf.contexts.staging]\nurl = "memory://staging"\n[tool.ailf.contexts.both]\nurl = "memory://project"\n'
    )
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    config = tmp_path / "config" / "ailf"
    config.mkdir(parents=True)
    (config / "config.toml").write_text(
        '[contexts.live]\nurl = "memory://live"\n[contexts.both]\nurl = "memory://user"\n'
    )
    environment = {"AILF_URL": "memory://environment", "XDG_CONFIG_HOME": str(tmp_path / "config")}
    return Places(environment, tmp_path / "deep" / "deeper", tmp_path / "home")


@pytest.mark.parametrize(
    ("url", "context", "chosen"),
    [
        ("memory://given", None, "memory://given"),
        (None, None, "memory://environment"),
        (None, "staging", "memory://staging"),
        (None, "live", "memory://live"),
        (None, "both", "memory://project"),
    ],
)
def test_a_url_is_chosen(places: Places, url: str | None, context: str | None, chosen: str) -> None:
    """The argument goes before the environment, and a project's context before the user's."""
    assert url_of(url, context, places) == chosen


@pytest.mark.parametrize(
    ("url", "context", "words"),
    [("memory://", "live", "exclude each other"), (None, "nope", "known are: 'both', 'live', 'staging'")],
)
def test_a_choice_is_refused(places: Places, url: str | None, context: str | None, words: str) -> None:
    """Two choices, and a context that doesn't exist, are wrong usage."""
    with pytest.raises(CommandError, match=words) as caught:
        url_of(url, context, places)
    assert caught.value.code == 2


@pytest.mark.parametrize("environment", [{}, {"AILF_URL": " "}])
def test_no_choice_is_refused(tmp_path: Path, environment: dict[str, str]) -> None:
    """Without any URL, or with an empty variable, the error says how to give one."""
    with pytest.raises(CommandError, match="AILF_URL"):
        url_of(None, None, Places(environment, tmp_path, tmp_path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[tool.ailf.contexts.a]\nport = 1\n", "'a' needs a url"),
        ("[tool.ailf.contexts]\na = 'memory://'\n", "'a' needs a url"),
        ("[tool.ailf]\ncontexts = 3\n", "must be a table"),
        ("[tool", "can't read"),
        ("[tool.other]\n", "known are: none"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str, words: str) -> None:
    """A file that can't be read, or a context without a URL, is wrong usage, and the error names the file."""
    (tmp_path / "pyproject.toml").write_text(content)
    with pytest.raises(CommandError, match=words) as caught:
        url_of(None, "a", Places({}, tmp_path, tmp_path))
    assert "toml" in str(caught.value)


def test_a_user_without_xdg_has_a_file_in_its_home(tmp_path: Path) -> None:
    """Without XDG_CONFIG_HOME, or with one that isn't absolute, the file is ~/.config/ailf/config.toml."""
    for environment in ({}, {"XDG_CONFIG_HOME": "relative"}):
        assert Places(environment, tmp_path, tmp_path / "home").user_file == tmp_path / "home/.config/ailf/config.toml"


def test_a_command_takes_a_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command opens the backend of its context."""
    (tmp_path / "pyproject.toml").write_text('[tool.ailf.contexts.here]\nurl = "memory://here"\n')
    monkeypatch.chdir(tmp_path)
    assert "memory://here answered" in run("ping", "--context", "here").out
    assert run("ping", "--context", "there").code == 2
    assert run("ping", "--context", "here", "--url", "memory://").code == 2
    assert run("ping").code == 2


def test_credentials_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL of a context may have a password, which no message shows."""
    (tmp_path / "pyproject.toml").write_text('[tool.ailf.contexts.here]\nurl = "redis://u:hunter2@127.0.0.1:1/0"\n')
    monkeypatch.chdir(tmp_path)
    ended = run("ping", "--context", "here")
    assert ended.code == 3
    assert "hunter2" not in ended.out + ended.err
