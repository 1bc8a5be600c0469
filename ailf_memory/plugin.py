"""``memory://[NAME][?namespace=…&max_payload=…]``: backends on one URL share a store while one of them is open.

The keyword ``timeout`` is checked and has no effect, since no call waits for a server.
"""

import threading
import weakref
from collections.abc import Mapping
from typing import Any

from ailf.checks import check_count, check_seconds, check_text
from ailf.errors import InvalidArgumentError
from ailf.hookspecs import hookimpl
from ailf.urls import check_options, split_url, with_options
from ailf_memory.backend import AsyncMemoryBackend, MemoryBackend
from ailf_memory.driver import MAX_PAYLOAD
from ailf_memory.store import MemoryStore

__all__ = ["memory"]

MAX_DIGITS = 18


class _MemoryPlugin:
    """The hooks of the scheme ``memory``. It keeps the store of each URL as long as a backend uses it."""

    def __init__(self) -> None:
        self._stores: weakref.WeakValueDictionary[tuple[str, str], MemoryStore] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    @hookimpl
    def ailf_connect(self, url: str, options: Mapping[str, Any]) -> MemoryBackend:
        """Return the blocking backend of this URL."""
        return MemoryBackend(**self._arguments(url, options))

    @hookimpl
    def ailf_connect_async(self, url: str, options: Mapping[str, Any]) -> AsyncMemoryBackend:
        """Return the asyncio backend of this URL."""
        return AsyncMemoryBackend(**self._arguments(url, options))

    def _arguments(self, url: str, options: Mapping[str, Any]) -> dict[str, Any]:
        given = dict(options)
        if "timeout" in given:
            check_seconds("timeout", given.pop("timeout"), least=0.001)
        if "namespace" in given and given["namespace"] != "":
            check_text("namespace", given["namespace"])
        if "max_payload" in given:
            check_count("max_payload", given["max_payload"])
        url = with_options(url, given)
        parts = split_url(url)
        check_options(parts, ("max_payload", "namespace"))
        if parts.username is not None or parts.password is not None:
            raise InvalidArgumentError(f"{parts.shown}: memory:// takes no user and no password; leave them out")
        namespace = parts.options.get("namespace", "")
        limit = parts.options.get("max_payload", str(MAX_PAYLOAD))
        if not limit.isdecimal() or len(limit) > MAX_DIGITS:
            raise InvalidArgumentError(f"{parts.shown}: max_payload must be a number of bytes, not {limit!r}")
        name = parts.shown
        with self._lock:
            store = self._stores.get((name, namespace))
            if store is None:
                store = self._stores[name, namespace] = MemoryStore()
        return {"store": store, "max_payload": int(limit), "url": name}


memory = _MemoryPlugin()
