"""The driver of pub/sub in memory: publishing puts a frame into the queue of every listener with a matching filter."""

from collections import Counter, deque
from collections.abc import Sequence

from ailf.driver import Confirmed, Filter, Frame, Listener, PubSubDriver, Refused
from ailf.driver.listing import MOST_LISTED, too_many
from ailf.errors import ConnectionLostError
from ailf.patterns import matches
from ailf.values import ChannelInfo
from ailf_memory.store import StoreHandle

__all__ = ["MemoryListener", "MemoryPubSubDriver"]


class MemoryPubSubDriver(PubSubDriver):
    """Pub/sub among the listeners of one store."""

    def __init__(self, handle: StoreHandle) -> None:
        self._handle = handle

    async def publish(self, messages: Sequence[tuple[str, bytes]], *, sharded: bool = False) -> Sequence[int]:
        self._handle.check_open()
        store = self._handle.store
        with store.lock:
            return [store.publish(channel, body, sharded=sharded) for channel, body in messages]

    async def listen(self) -> "MemoryListener":
        self._handle.check_open()
        listener = MemoryListener(self._handle)
        with self._handle.store.lock:
            self._handle.store.listeners.append(listener)
        return listener

    async def channels(self, prefix: str, *, sharded: bool = False) -> list[ChannelInfo]:
        self._handle.check_open()
        counts: Counter[str] = Counter()
        for listener in tuple(self._handle.store.listeners):  # without the lock: each copy is one step
            counts.update(name for name in listener.channels(sharded=sharded) if name.startswith(prefix))
        if len(counts) > MOST_LISTED:
            raise too_many(self._handle.url, "channels with subscribers; list them with a longer prefix")
        return [ChannelInfo(name, count) for name, count in counts.items()]


class MemoryListener(Listener):
    """One queue of items, with any number of filters."""

    def __init__(self, handle: StoreHandle) -> None:
        self._handle = handle
        self._channels: dict[str, Filter] = {}
        self._sharded: dict[str, Filter] = {}
        self._patterns: dict[str, Filter] = {}
        self._queue: deque[Frame | Confirmed | Refused] = deque()
        self._ready = handle.runtime.event()
        self._failure: str | None = None
        self._interrupted = False

    def is_of(self, handle: StoreHandle) -> bool:
        """Tell whether the listener belongs to this backend."""
        return self._handle is handle

    def offer(self, channel: str, body: bytes, *, sharded: bool = False) -> bool:
        """Queue a frame for each filter that matches, as a server sends one; return whether any matches."""
        exact = (self._sharded if sharded else self._channels).get(channel)
        matching = [] if exact is None else [exact]
        if self._patterns and not sharded:
            matching += [each for text, each in self._patterns.items() if matches(text, channel)]
        if matching:
            self._queue.extend(Frame(each, channel, body) for each in matching)
            self._ready.set()
        return bool(matching)

    def channels(self, *, sharded: bool) -> list[str]:
        """Return the names of the channels that it listens to."""
        return list(self._sharded if sharded else self._channels)

    def fail(self, reason: str) -> None:
        """Drop the queued items and let `receive` raise, as for a broken connection."""
        with self._handle.store.lock:
            self._failure = reason
            self._queue.clear()
        self._ready.set()

    async def change(self, add: Sequence[Filter], drop: Sequence[Filter]) -> None:
        with self._handle.store.lock:
            for each in add:
                self._table(each)[each.text] = each
                self._queue.append(Confirmed(each))
            for each in drop:
                self._table(each).pop(each.text, None)
        self._ready.set()

    def _table(self, each: Filter) -> dict[str, Filter]:
        return self._patterns if each.is_pattern else self._sharded if each.is_sharded else self._channels

    async def receive(self, timeout: float) -> Sequence[Frame | Confirmed | Refused]:
        if not self._interrupted:
            await self._ready.wait(timeout)
        with self._handle.store.lock:
            if self._failure is not None:
                raise ConnectionLostError(self._failure)
            arrived = tuple(self._queue)
            self._queue.clear()
            self._ready.clear()
        return arrived

    def interrupt(self) -> None:
        self._interrupted = True
        self._leave()
        self._ready.set()

    async def close(self) -> None:
        self._leave()

    def _leave(self) -> None:
        with self._handle.store.lock:
            if self in self._handle.store.listeners:
                self._handle.store.listeners.remove(self)
