"""What a backend package offers, as pluggy hooks.

An entry point in the group ``ailf``, whose name is the URL scheme, names a module or object with hook implementations::

    [project.entry-points.ailf]
    nats = "ailf_nats.plugin"

    # ailf_nats/plugin.py
    @ailf.hookimpl
    def ailf_connect(url): return NatsBackend(url)

It is loaded when its scheme is first used. A package with one flavour implements one hook.
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
    """Return the blocking backend of this URL, without touching the network; refuse options it doesn't know."""


@hookspec(firstresult=True)
def ailf_connect_async(url: str) -> "AsyncBackend | None":
    """Return the asyncio backend of this URL, without touching the network; refuse options it doesn't know."""
