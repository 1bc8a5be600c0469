"""``memory://[NAME][?namespace=…&max_payload=…]``: backends on one URL share a store while one of them is open."""

import threading
import weakref
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from ailf.errors import InvalidArgumentError
from ailf.hookspecs import hookimpl
from ailf_memory.backend import MAX_PAYLOAD, AsyncMemoryBackend, MemoryBackend
from ailf_memory.store import MemoryStore

__all__ = ["memory"]


class _MemoryPlugin:
    """Holds the stores that have a URL, for as long as a backend uses them."""

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
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        namespace = options.pop("namespace", "")
        limit = options.pop("max_payload", str(MAX_PAYLOAD))
        if options:
            raise InvalidArgumentError(
                f"{url}: unknown option(s) {', '.join(options)}; known are namespace, max_payload"
            )
        if not limit.isdecimal():
            raise InvalidArgumentError(f"{url}: max_payload must be a number of bytes, not {limit!r}")
        name = parts.netloc + parts.path
        with self._lock:
            store = self._stores.get((name, namespace))
            if store is None:
                store = self._stores[name, namespace] = MemoryStore()
        return {"store": store, "max_payload": int(limit), "url": url}


memory = _MemoryPlugin()
