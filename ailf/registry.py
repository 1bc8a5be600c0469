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
from ailf.urls import scheme_of

__all__ = ["Installed", "installed", "plugin_for"]

_KNOWN_EXTRAS = {"redis": "redis", "rediss": "redis", "unix": "redis"}
"""Schemes whose package comes with ailf but needs an extra."""

_OWN = frozenset({"memory", "redis", "rediss", "unix"})
"""Schemes that belong to ailf's own distribution: an entry point of another one is ignored."""

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
        InvalidArgumentError: It is no URL, or no installed plugin has this scheme; the message lists those that are.
        UnsupportedError: The plugin can't be loaded, or doesn't have this flavour, or several have the scheme.
    """
    scheme = scheme_of(url)
    entry = _entry_point(scheme)
    _load(entry)
    others = [plugin for name, plugin in _manager.list_name_plugin() if name != scheme]
    caller = _manager.subset_hook_caller(hook, remove_plugins=others)
    if not caller.get_hookimpls():
        raise UnsupportedError(f"the backend for {scheme}:// ({entry.value}) has no {flavour} flavour")
    return caller


def _entry_points() -> list[EntryPoint]:
    return list(entry_points(group=hookspecs.PROJECT))


def _entry_point(scheme: str) -> EntryPoint:
    """Return the one entry point that may serve a scheme."""
    everything = _entry_points()
    found = [each for each in everything if each.name == scheme and not _intrudes(each)]
    if not found:
        known = ", ".join(sorted({each.name for each in everything})) or "none"
        raise InvalidArgumentError(
            f"no backend for {scheme}:// is installed; installed are: {known}. "
            f"A third party's backend is a package of its own, say `pip install ailf-{scheme}`"
        )
    if len(found) > 1:
        claims = " and ".join(sorted(f"{_package(each)} ({each.value})" for each in found))
        raise UnsupportedError(f"several packages have a backend for {scheme}://: {claims}; uninstall all but one")
    return found[0]


def _intrudes(entry: EntryPoint) -> bool:
    """Tell whether an entry point has a scheme that belongs to ailf and comes from elsewhere."""
    return entry.name in _OWN and _package(entry) != "ailf"


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unknown distribution"


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
    what = f"the backend for {entry.name}:// ({entry.value}, from {_package(entry)})"
    return f"{what} can't be loaded: {type(error).__name__}: {error}"


def _pip() -> str:
    return "pip" if sys.prefix != sys.base_prefix else "python -m pip"


def _describe(entry: EntryPoint) -> Installed:
    problem = f"{entry.name}:// belongs to ailf; this entry point is ignored" if _intrudes(entry) else ""
    try:
        if not problem:
            _load(_entry_point(entry.name))
    except UnsupportedError as error:
        problem = str(error)
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown"
    return Installed(entry.name, package, entry.value, problem)
