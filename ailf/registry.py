"""The backends that are installed, by URL scheme: the only global state of ailf.

A broken plugin breaks only itself: the others are found as before, and the error names it.
"""

import sys
import threading
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import attrs
import pluggy

from ailf import hookspecs
from ailf.errors import InvalidArgumentError, UnsupportedError

__all__ = ["Installed", "installed", "plugin_for"]

_KNOWN_EXTRAS = {"redis": "redis", "rediss": "redis", "unix": "redis"}
"""Schemes whose package comes with ailf but needs an extra."""

_manager = pluggy.PluginManager(hookspecs.PROJECT)
_manager.add_hookspecs(hookspecs)
_loading = threading.Lock()


@attrs.frozen
class Installed:
    """One installed backend.

    Attributes:
        scheme: Its URL scheme.
        package: The distribution it comes from, with the version.
        target: Where its plugin is.
        problem: Why it can't be used, or "".
    """

    scheme: str
    package: str
    target: str
    problem: str


def installed() -> list[Installed]:
    """Return every installed backend, sorted by scheme, each loaded to see whether it can be used."""
    return [_describe(each) for each in sorted(_entry_points(), key=lambda each: each.name)]


def plugin_for(url: str, hook: str, flavour: str) -> Callable[..., Any]:
    """Return the hook of the plugin that a URL's scheme names.

    Raises:
        InvalidArgumentError: No installed plugin has this scheme; the message lists those that are.
        UnsupportedError: The plugin can't be loaded, or doesn't have this flavour.
    """
    scheme = url.partition("://")[0].lower()
    found = [each for each in _entry_points() if each.name == scheme]
    if not found:
        known = ", ".join(sorted(each.name for each in _entry_points())) or "none"
        raise InvalidArgumentError(
            f"no backend for {scheme}:// is installed; installed are: {known}. "
            f"A third party's backend is a package of its own, say `pip install ailf-{scheme}`"
        )
    _load(found[0])
    others = [plugin for name, plugin in _manager.list_name_plugin() if name != scheme]
    caller = _manager.subset_hook_caller(hook, remove_plugins=others)
    if not caller.get_hookimpls():
        raise UnsupportedError(f"the backend for {scheme}:// ({found[0].value}) has no {flavour} flavour")
    return caller


def _entry_points() -> list[EntryPoint]:
    return list(entry_points(group=hookspecs.PROJECT))


def _load(entry: EntryPoint) -> None:
    with _loading:
        if _manager.has_plugin(entry.name):
            return
        try:
            _manager.register(entry.load(), name=entry.name)
        except Exception as error:
            if _manager.has_plugin(entry.name):  # pluggy 1.5 keeps a plugin whose hooks it refused
                _manager.unregister(name=entry.name)
            raise UnsupportedError(_load_problem(entry, error)) from error


def _load_problem(entry: EntryPoint, error: Exception) -> str:
    extra = _KNOWN_EXTRAS.get(entry.name)
    missing = isinstance(error, ImportError) and extra is not None and (error.name or "").split(".")[0] == extra
    if missing:
        return f"{entry.name}:// needs a package that is not installed; run: {_pip()} install 'ailf[{extra}]'"
    package = entry.dist.name if entry.dist else "an unknown distribution"
    what = f"the backend for {entry.name}:// ({entry.value}, from {package})"
    return f"{what} can't be loaded: {type(error).__name__}: {error}"


def _pip() -> str:
    return "pip" if sys.prefix != sys.base_prefix else "python -m pip"


def _describe(entry: EntryPoint) -> Installed:
    problem = ""
    try:
        _load(entry)
    except UnsupportedError as error:
        problem = str(error)
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown"
    return Installed(entry.name, package, entry.value, problem)
