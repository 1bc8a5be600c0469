"""Which backend a command opens: ``--url``, ``--context`` or ``$AILF_URL``. Contexts are named URLs in two files.

A project's are in the nearest ``pyproject.toml``, as ``[tool.ailf.contexts.NAME]``. A user's are in
``$XDG_CONFIG_HOME/ailf/config.toml`` (``~/.config/ailf/config.toml``), as ``[contexts.NAME]``. Each has a ``url``. A
project's context hides a user's of the same name.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from ailf.cli.exits import USAGE, CommandError
from ailf.urls import EXAMPLE, VARIABLE

__all__ = ["Places", "url_of"]


@attrs.frozen
class Places:
    """Where contexts are looked up.

    Attributes:
        environment: The environment variables.
        folder: The working directory; ``pyproject.toml`` is looked up from here to the root.
        home: The user's home directory.
    """

    environment: Mapping[str, str]
    folder: Path
    home: Path

    def contexts(self) -> dict[str, str]:
        """Return the URLs of all contexts by name.

        Raises:
            CommandError: A file can't be read, or a context has no URL.
        """
        project = next((each for each in self._pyprojects() if each.is_file()), None)
        own = {} if project is None else _contexts(project, "tool", "ailf", "contexts")
        return _contexts(self.user_file, "contexts") | own

    @property
    def user_file(self) -> Path:
        """The user's configuration file."""
        configured = Path(self.environment.get("XDG_CONFIG_HOME", ""))
        return (configured if configured.is_absolute() else self.home / ".config") / "ailf" / "config.toml"

    def _pyprojects(self) -> list[Path]:
        return [each / "pyproject.toml" for each in (self.folder, *self.folder.parents)]


def url_of(url: str | None, context: str | None, places: Places) -> str:
    """Return the URL to open: the given one, or that of the context, or that of the environment.

    Raises:
        CommandError: Both or none of them are given, or there is no such context.
    """
    if url is not None and context is not None:
        raise CommandError("--url and --context exclude each other; give one of them", USAGE)
    if context is not None:
        return _url_of_context(context, places)
    if url is None:
        url = places.environment.get(VARIABLE)
        if url is None:
            raise CommandError(
                f"no backend was named; give --url {EXAMPLE} or --context NAME, or set {VARIABLE}", USAGE
            )
        if not url.strip():
            raise CommandError(f"{VARIABLE} is set but empty; set it to a URL like {EXAMPLE}, or unset it", USAGE)
    return url


def _url_of_context(name: str, places: Places) -> str:
    if not name:
        raise CommandError("--context needs the name of a context", USAGE)
    contexts = places.contexts()
    if name not in contexts:
        known = ", ".join(map(repr, sorted(contexts))) or "none"
        raise CommandError(
            f"there is no context {name!r}; known are: {known}. Add [tool.ailf.contexts.{name}] with a url to "
            f"pyproject.toml, or [contexts.{name}] to {places.user_file}",
            USAGE,
        )
    return contexts[name]


def _contexts(file: Path, *path: str) -> dict[str, str]:
    try:
        table: Any = tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CommandError(f"can't read {file}: {error}", USAGE) from error
    for each in path:
        table = table.get(each, {}) if isinstance(table, dict) else {}
    if not isinstance(table, dict):
        raise CommandError(f"{file}: [{'.'.join(path)}] must be a table of contexts", USAGE)
    return {name: _url(file, name, entry) for name, entry in table.items()}


def _url(file: Path, name: str, entry: object) -> str:
    url = entry.get("url") if isinstance(entry, dict) else None
    if not isinstance(url, str):
        raise CommandError(f'{file}: the context {name!r} needs a url, such as url = "{EXAMPLE}"', USAGE)
    return url
