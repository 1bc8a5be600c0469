"""The registry of installed backends, by URL scheme, and instruments: the only global state of ailf.

A broken plugin breaks only itself: the others are found as before, and the error names the broken one.
"""

import difflib
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any

import attrs
import pluggy

from ailf import hookspecs
from ailf.checks import check_kind
from ailf.errors import InvalidArgumentError, UnsupportedError
from ailf.instruments import Instrument
from ailf.logs import About, Log
from ailf.urls import scheme_of, with_options

__all__ = ["Installed", "installed", "open_plugin", "plugin_for"]

log = Log("ailf")

_REDIS = (
    *("redis", "rediss", "valkey", "valkeys", "unix"),
    *("redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"),
)

_KNOWN_EXTRAS = dict.fromkeys(_REDIS, "redis")
"""Schemes whose backend comes with ailf and needs an extra, with the name of the extra."""

_OWN = frozenset({"memory", *_REDIS})
"""Schemes that belong to ailf: an entry point of any other distribution is ignored."""

_manager = pluggy.PluginManager(hookspecs.PROJECT)
_manager.add_hookspecs(hookspecs)
_loading = threading.Lock()
_broken: set[str] = set()
"""The names of the entry points of instruments whose failure was logged."""


@attrs.frozen
class Installed:
    """One installed backend.

    Attributes:
        scheme: The URL scheme.
        package: The name and version of its distribution.
        target: The module or object of its plugin.
        problem: The reason why it can't be used, or "".
    """

    scheme: str
    package: str
    target: str
    problem: str


def installed() -> list[Installed]:
    """Return every installed backend, sorted by scheme. Each plugin is loaded, to find out whether it can be used."""
    found = entry_points(group=hookspecs.PROJECT)
    return [_describe(each, found) for each in sorted(found, key=lambda each: each.name)]


def open_plugin(url: str, hook: str, flavour: str, options: Mapping[str, Any]) -> tuple[Any, list[Instrument]]:
    """Return the backend of a URL, without network access, and the instruments of installed packages for it.

    What is installed is read once for both, as that takes most of the time.

    Arguments:
        url: The URL.
        hook: As for `plugin_for`.
        flavour: As for `plugin_for`.
        options: Options besides those of the URL.

    Raises:
        InvalidArgumentError: As for `plugin_for`; or the backend doesn't know an option.
        UnsupportedError: As for `plugin_for`.
    """
    found = entry_points()
    backend = _opener(url, hook, flavour, found.select(group=hookspecs.PROJECT))(url=url, options=options)
    return backend, _instruments(backend.url, found.select(group=hookspecs.INSTRUMENTS))


def plugin_for(url: str, hook: str, flavour: str) -> Callable[..., Any]:
    """Return the function that opens a URL, by the hook of the plugin for its scheme; it takes ``url`` and ``options``.

    Arguments:
        url: The URL.
        hook: The hook's name, such as ``ailf_connect``.
        flavour: The hook's flavour, for errors.

    Raises:
        InvalidArgumentError: The text isn't a URL, or no plugin has its scheme. The message lists the schemes.
        UnsupportedError: The plugin can't be loaded or doesn't have this flavour, or several packages have the scheme.
    """
    return _opener(url, hook, flavour, entry_points(group=hookspecs.PROJECT))


def _opener(url: str, hook: str, flavour: str, found: EntryPoints) -> Callable[..., Any]:
    """Return what `plugin_for` returns, by these entry points."""
    scheme = scheme_of(url)
    entry = _entry_point(scheme, found)
    _load(entry)
    others = [plugin for name, plugin in _manager.list_name_plugin() if name != scheme]
    caller = _manager.subset_hook_caller(hook, remove_plugins=others)
    if not caller.get_hookimpls():
        other = "ailf.connect" if flavour == "asyncio" else "ailf.connect_async"
        raise UnsupportedError(
            f"the backend for {scheme}:// ({entry.value}) has no {flavour} flavour; open it with {other}"
        )
    (implementation,) = caller.get_hookimpls()

    def opened(url: str, options: Mapping[str, Any] | None = None) -> Any:
        if "options" in implementation.argnames:
            return caller(url=url, options=options or {})
        return caller(url=with_options(url, options or {}), options={})

    return opened


def _instruments(url: str, found: EntryPoints) -> list[Instrument]:
    """Return the instruments of installed packages for a backend with this URL, which has no credentials.

    The failure of a plugin is logged once, and the others are returned.
    """
    instruments: list[Instrument] = []
    for entry in sorted(found, key=lambda each: each.name):
        name = f"{hookspecs.INSTRUMENTS}:{entry.name}"
        try:
            _register(entry, name)
            others = [plugin for other, plugin in _manager.list_name_plugin() if other != name]
            made = _manager.subset_hook_caller("ailf_instrument", remove_plugins=others)(url=url)
            instruments += [check_kind("an instrument", each, Instrument) for each in made]
        except Exception as error:  # noqa: BLE001 - a broken plugin breaks only itself
            if name not in _broken:
                _broken.add(name)
                about = About(f"instrument {entry.name} ({entry.value}, from {_package(entry)})", {"backend": url})
                log.failure(logging.ERROR, about, "it can't be used", error=error)
    return instruments


def _entry_point(scheme: str, found: EntryPoints) -> EntryPoint:
    """Return the only entry point for a scheme."""
    entries = [each for each in found if each.name == scheme and not _intrudes(each)]
    if not entries:
        raise InvalidArgumentError(_not_installed(scheme, sorted({each.name for each in found})))
    if len(entries) > 1:
        packages = " and ".join(sorted(f"{_package(each)} ({each.value})" for each in entries))
        raise UnsupportedError(f"several packages have a backend for {scheme}://: {packages}; uninstall all but one")
    return entries[0]


def _not_installed(scheme: str, schemes: list[str]) -> str:
    """Return the error for a scheme without a backend. It names no package that may not exist, or be anybody's."""
    text = f"no backend for {scheme}:// is installed; installed are: {', '.join(schemes) or 'none'}"
    if scheme in _KNOWN_EXTRAS:
        return f"{text}. Run: {_pip()} install --force-reinstall 'ailf[{_KNOWN_EXTRAS[scheme]}]'"
    close = difflib.get_close_matches(scheme, schemes, n=1)
    if close:
        return f"{text}. Did you mean {close[0]}://?"
    return f"{text}. Check the URL, or install the package that has this backend"


def _intrudes(entry: EntryPoint) -> bool:
    """Tell whether another distribution's entry point has a scheme that belongs to ailf."""
    return entry.name in _OWN and _package(entry) != "ailf"


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unknown distribution"


def _load(entry: EntryPoint) -> None:
    try:
        _register(entry, entry.name)
    except Exception as error:
        raise UnsupportedError(_load_problem(entry, error)) from error


def _register(entry: EntryPoint, name: str) -> None:
    """Load a plugin and register it under a name, unless it is registered."""
    with _loading:
        if _manager.has_plugin(name):
            return
        try:
            _manager.register(entry.load(), name=name)
        except Exception:
            if _manager.has_plugin(name):  # pluggy 1.5 keeps a plugin whose hooks it refused
                _manager.unregister(name=name)
            raise


def _load_problem(entry: EntryPoint, error: Exception) -> str:
    extra = _KNOWN_EXTRAS.get(entry.name)
    missing = isinstance(error, ImportError) and extra is not None and (error.name or "").split(".")[0] == extra
    if missing:
        return f"{entry.name}:// needs a package that is not installed; run: {_pip()} install 'ailf[{extra}]'"
    what = f"the backend for {entry.name}:// ({entry.value}, from {_package(entry)})"
    return f"{what} can't be loaded: {type(error).__name__}: {error}"


def _pip() -> str:
    return "pip" if sys.prefix != sys.base_prefix else "python -m pip"


def _describe(entry: EntryPoint, found: EntryPoints) -> Installed:
    problem = f"{entry.name}:// belongs to ailf; this entry point is ignored" if _intrudes(entry) else ""
    try:
        if not problem:
            _load(_entry_point(entry.name, found))
    except UnsupportedError as error:
        problem = str(error)
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown"
    return Installed(entry.name, package, entry.value, problem)
