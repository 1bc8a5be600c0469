"""The pluggy hooks of a backend package.

An entry point in the group ``ailf`` has the URL scheme as its name, and names the module or object with the hook
implementations::

    [project.entry-points.ailf]
    nats = "ailf_nats.plugin"

    # ailf_nats/plugin.py
    @ailf.hookimpl
    def ailf_connect(url): return NatsBackend(url)

Keyword options of `ailf.connect` reach a hook that has a parameter ``options``, as a mapping; for a hook without it
they are added to the URL.

It is loaded when its scheme is first used. A package with one flavour implements only that hook.

A package with an instrument has an entry point in the group ``ailf.instruments``, of any name::

    [project.entry-points."ailf.instruments"]
    audit = "audit_log.plugin"

    # audit_log/plugin.py
    @ailf.hookimpl
    def ailf_instrument(url): return AuditLog()

Each backend that `ailf.connect` opens gets it. If it can't be loaded, or raises, an error is logged, and the backend is
opened without it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from ailf.backend import AsyncBackend, Backend
    from ailf.instruments import Instrument

__all__ = ["INSTRUMENTS", "PROJECT", "ailf_connect", "ailf_connect_async", "ailf_instrument", "hookimpl"]

PROJECT = "ailf"
"""The group of the entry points of backends, and the name of the pluggy project."""

INSTRUMENTS = "ailf.instruments"
"""The group of the entry points of instruments."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def ailf_connect(url: str, options: Mapping[str, Any]) -> "Backend | None":
    """Return the blocking backend of this URL, without network access; raise an error for an unknown option."""


@hookspec(firstresult=True)
def ailf_connect_async(url: str, options: Mapping[str, Any]) -> "AsyncBackend | None":
    """Return the asyncio backend of this URL, without network access; raise an error for an unknown option."""


@hookspec
def ailf_instrument(url: str) -> "Instrument | None":
    """Return the instrument for a backend that is opened; None for none. The URL has no credentials."""
