"""``memory://[NAME][?namespace=…&max_payload=…]``: backends on one URL share a store while one of them is open."""

import threading
import weakref
from typing import Any

from ailf.errors import InvalidArgumentError
from ailf.hookspecs import hookimpl
from ailf.urls import check_options, split_url
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
    def ailf_connect(self, url: str) -> MemoryBackend:
        """Return the blocking backend of this URL."""
        return MemoryBackend(**self._options(url))

    @hookimpl
    def ailf_connect_async(self, url: str) -> AsyncMemoryBackend:
        """Return the asyncio backend of this URL."""
        return AsyncMemoryBackend(**self._options(url))

    def _options(self, url: str) -> dict[str, Any]:
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
