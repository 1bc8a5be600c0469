"""What a memory backend keeps: one store is what a server is elsewhere. Everything in it happens under its lock."""

import weakref
from collections.abc import Callable
from typing import Protocol, TypeVar

from ailf.driver import LimiterKey
from ailf.driver.backend import Revocable
from ailf.errors import ClosedError
from ailf.runtime import Runtime
from ailf.runtime.clock import Clock, SystemClock
from ailf_memory.state.lock import LockState
from ailf_memory.state.ratelimit import LimiterState
from ailf_memory.state.stream import StreamState

__all__ = ["MemoryStore", "StoreHandle", "sweep"]

SWEEP = 1024


class Kept(Protocol):
    """What is kept under a name for as long as it matters."""

    def idle(self, now_ms: int) -> bool:
        """Tell whether nobody needs it any more."""


K = TypeVar("K")
V = TypeVar("V", bound=Kept)


def sweep(kept: dict[K, V], now_ms: int) -> None:
    """Make room for one more: now and then, what nobody needs any more goes."""
    if len(kept) % SWEEP == SWEEP - 1:
        for name in [each for each, state in kept.items() if state.idle(now_ms)]:
            del kept[name]


class StoreListener(Protocol):
    """Receives what is published in a store."""

    def offer(self, channel: str, body: bytes, *, sharded: bool = False) -> bool:
        """Take a body if it was asked for; return whether it was."""

    def fail(self, reason: str) -> None:
        """Lose what is queued, as a broken connection does."""

    def is_of(self, handle: "StoreHandle") -> bool:
        """Tell whether it belongs to the backend of this handle."""


class MemoryStore:
    """The state that memory backends share when they are opened on it, blocking and asyncio alike.

    Attributes:
        clock: Its *now*: the system's, or a `ManualClock` that a test moves.
        lock: Held by every step.
        streams: The streams by name.
        locks: The locks by name.
        limiters: What rate limiters have charged.
        leases: Those of this process's locks by token, to be told when they are broken.
        listeners: Who receives published messages.
        version: How often something may have become available in any of the streams.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.lock = self.clock.step_lock()
        self.streams: dict[str, StreamState] = {}
        self.locks: dict[str, LockState] = {}
        self.limiters: dict[LimiterKey, LimiterState] = {}
        self.leases: weakref.WeakValueDictionary[str, Revocable] = weakref.WeakValueDictionary()
        self.listeners: list[StoreListener] = []
        self.version = 0
        self._bells: list[Callable[[], None]] = []
        self.clock.on_move(self.ring)
        self.clock.on_move(self.wake_lines)

    def on_change(self, bell: Callable[[], None]) -> None:
        """Ring this whenever something may have become available; it may be called from any thread."""
        with self.lock:
            self._bells.append(bell)

    def off_change(self, bell: Callable[[], None]) -> None:
        """Ring it no more."""
        with self.lock:
            self._bells.remove(bell)

    def ring(self) -> None:
        """Wake everybody who waits; something may have become available."""
        with self.lock:
            self.version += 1
            bells = tuple(self._bells)
        for bell in bells:
            bell()

    def publish(self, channel: str, body: bytes, *, sharded: bool = False) -> int:
        """Offer a body to every listener; return how many wanted it."""
        with self.lock:
            return sum(listener.offer(channel, body, sharded=sharded) for listener in self.listeners)

    def wake_lines(self) -> None:
        """Wake everybody who stands in line for a lock or at a limiter: the clock was moved."""
        with self.lock:
            for line in [each.line for each in self.locks.values()] + [each.line for each in self.limiters.values()]:
                line.wake_all()

    def break_subscriptions(self, reason: str = "broken by a test") -> None:
        """Interrupt every subscription as a lost connection would: each comes back by itself and yields a `Gap`."""
        with self.lock:
            listeners = tuple(self.listeners)
        for listener in listeners:
            listener.fail(reason)


class StoreHandle:
    """What the drivers of one backend share: its store, until the backend is closed.

    Attributes:
        store: The store, which other backends may share.
        runtime: What the backend's flows wait with.
        url: What messages call the backend.
        closed: Whether the backend was closed.
    """

    def __init__(self, store: MemoryStore, runtime: Runtime, url: str) -> None:
        self.store = store
        self.runtime = runtime
        self.url = url
        self.closed = False

    def check_open(self) -> None:
        """Raise `ClosedError` after close."""
        if self.closed:
            raise ClosedError(f"the backend {self.url} is closed")
