"""The pluggy hooks of a backend package.

An entry point in the group ``ailf`` has the URL scheme as its name, and names the module or object with the hook
implementations::

    [project.entry-points.ailf]
    nats = "ailf_nats.plugin"

    # ailf_nats/plugin.py
    @ailf.hookimpl
    def ailf_connect(url): return NatsBackend(url)

It is loaded when its scheme is first used. A package with one flavour implements only that hook.
"""

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from ailf.backend import AsyncBackend, Backend

__all__ = ["PROJECT", "ailf_connect", "ailf_connect_async", "hookimpl"]

PROJECT = "ailf"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def ailf_connect(url: str) -> "Backend | None":
    """Return the blocking backend of this URL, without network access; raise an error for an unknown option."""


@hookspec(firstresult=True)
def ailf_connect_async(url: str) -> "AsyncBackend | None":
    """Return the asyncio backend of this URL, without network access; raise an error for an unknown option."""
