"""Namespaces that a command makes for itself and removes again."""

import re

import attrs

from ailf.backend import Backend
from ailf.errors import AilfError
from ailf.registry import plugin_for
from ailf.runtime import run
from ailf.safe_text import text_of

__all__ = ["OwnNamespace", "own_namespace", "remove_namespaces"]


@attrs.frozen
class OwnNamespace:
    """A namespace that a command has for itself.

    Attributes:
        name: Its name.
        url: The URL that opens it.
        separate: Whether the backend's URLs name namespaces; else the command only uses names of its own.
    """

    name: str
    url: str
    separate: bool


def own_namespace(url: str, name: str) -> OwnNamespace:
    """Return a new namespace of the backend of a URL; nothing is sent."""
    base, _, query = url.partition("?")
    options = [each for each in query.split("&") if each and not re.match("namespace=", each)]
    own = f"{base}?{'&'.join([*options, f'namespace={name}'])}"
    try:
        plugin_for(own, "ailf_connect", "blocking")(url=own).close()
    except AilfError:
        return OwnNamespace(name, url, separate=False)
    return OwnNamespace(name, own, separate=True)


def remove_namespaces(backend: Backend, own: OwnNamespace) -> str:
    """Remove what is left in namespaces that begin with the own one's name; return what couldn't be removed, or ""."""
    if not own.separate:
        return f"what a removed stream or lock leaves behind under the name {own.name!r} was not removed"
    try:
        run(backend.engine.driver.remove_namespaces(own.name))
    except AilfError as error:
        return f"the namespace {own.name!r} was not removed entirely: {text_of(error)}"
    return ""
