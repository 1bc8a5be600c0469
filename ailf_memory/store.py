"""The store of memory backends, in place of a server. Every step runs under the lock of the store."""

import weakref
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from ailf.driver import LimiterKey
from ailf.driver.backend import Revocable
from ailf.errors import ClosedError
from ailf.runtime import Runtime
from ailf.runtime.clock import Clock, SystemClock
from ailf_memory.state.listing import SortedNames
from ailf_memory.state.lock import LockState
from ailf_memory.state.ratelimit import LimiterState
from ailf_memory.state.stream import StreamState

__all__ = ["MemoryStore", "StoreHandle", "SweptStates"]


class SweepableState(Protocol):
    """A state that can be removed when it is idle."""

    def idle(self, now_ms: int) -> bool:
        """Tell whether the state can be removed and made again without a difference."""


K = TypeVar("K")
V = TypeVar("V", bound=SweepableState)

CHECKED: Final = 2
"""The number of states that are checked for each one that is added: more than one, so that a check reaches them all."""


class SweptStates(dict[K, V]):
    """States by name, of which the idle ones are removed: two are checked, in turn, for each one that is added.

    Ctrl-C may come between any two steps. It may leave a name in the turn that has no state, or is there twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self._turn: deque[K] = deque()  # the names, the one that was checked longest ago first

    def sweep(self, now_ms: int) -> None:
        """Check the next states and remove the idle ones, before one is added and while none is in use."""
        for _ in range(min(CHECKED, len(self._turn))):
            name = self._turn[0]
            state = self.get(name)
            if state is not None and not state.idle(now_ms):
                self._turn.rotate(-1)
                continue
            self.pop(name, None)
            self._turn.popleft()

    def add(self, name: K, state: V) -> V:
        """Add the state of a missing name and return it."""
        self._turn.append(name)
        self[name] = state
        return state


def _name_of(branch: LimiterKey) -> tuple[str, str, str, str]:
    """Return the limiter, the key, the root and the limit of a branch."""
    return branch.limiter, branch.key, branch.root or "", branch.keys[0][0] if branch.keys else ""


class StoreListener(Protocol):
    """Receives the messages that are published in a store."""

    def offer(self, channel: str, body: bytes, *, sharded: bool = False) -> bool:
        """Queue a body if a filter matches; return whether one does."""

    def channels(self, *, sharded: bool) -> list[str]:
        """Return the names of the channels that it listens to."""

    def fail(self, reason: str) -> None:
        """Drop the queued items and report a lost connection."""

    def is_of(self, handle: "StoreHandle") -> bool:
        """Tell whether the listener belongs to the backend of this handle."""


class MemoryStore:
    """The state that memory backends share, blocking and asyncio alike.

    >>> from ailf_memory import MemoryBackend, MemoryStore
    >>> store = MemoryStore()
    >>> with MemoryBackend(store=store) as one, MemoryBackend(store=store) as other:
    ...     first = one.stream("shared").add("report")
    ...     assert [entry.data for entry in other.stream("shared").read()] == ["report"]

    Arguments:
        clock: The clock; None for the system's. A test moves a `ManualClock`.

    Attributes:
        clock: The clock, which says what *now* is.
        lock: Held by every step.
        streams: The streams by name.
        locks: The locks by name.
        limiters: The branches of rate limiters.
        leases: The leases of locks in this process by token, to revoke them when their grants are broken.
        listeners: The listeners, which receive published messages.
        version: The number of changes that may have made an entry of any stream available.
        stream_names: The names of the streams, for listings.
        lock_names: The names of the locks, for listings.
        limiter_names: The limiter, key, root and limit of each branch of a rate limiter, for listings; "" where it has
            no root and limit.
        moved: The version when the clock was moved by hand, which may have made an entry of every stream available.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.lock = self.clock.step_lock()
        self.streams: dict[str, StreamState] = {}
        self.locks: SweptStates[str, LockState] = SweptStates()
        self.limiters: SweptStates[LimiterKey, LimiterState] = SweptStates()
        self.leases: weakref.WeakValueDictionary[str, Revocable] = weakref.WeakValueDictionary()
        self.listeners: list[StoreListener] = []
        self.version = self.moved = 0
        self.stream_names: SortedNames[str] = SortedNames(lambda: list(self.streams), str.startswith, str)
        self.lock_names: SortedNames[str] = SortedNames(lambda: list(self.locks), str.startswith, str)
        self.limiter_names: SortedNames[tuple[str, str, str, str]] = SortedNames(
            lambda: {_name_of(each) for each in list(self.limiters)},
            lambda name, prefix: name[0].startswith(prefix),
            lambda prefix: (prefix, "", "", ""),
        )
        self._subscribers: list[Callable[[], None]] = []
        self.clock.on_move(self._on_move)
        self.clock.on_move(self.wake_queues)

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Let `notify` call a function, from any thread."""
        with self.lock:
            self._subscribers.append(callback)

    def unsubscribe(self, callback: Callable[[], None]) -> None:
        """Undo `subscribe`."""
        with self.lock:
            self._subscribers.remove(callback)

    def notify(self) -> None:
        """Call the subscribed functions: entries of streams may have become available."""
        with self.lock:
            self.version += 1
            callbacks = tuple(self._subscribers)
        for callback in callbacks:
            callback()

    def _on_move(self) -> None:
        with self.lock:
            self.moved = self.version + 1
        self.notify()

    def publish(self, channel: str, body: bytes, *, sharded: bool = False) -> int:
        """Offer a body to every listener; return the number of listeners that queued it."""
        with self.lock:
            return sum(listener.offer(channel, body, sharded=sharded) for listener in self.listeners)

    def wake_queues(self) -> None:
        """Wake all waiters in the wait queues of locks and limiters: the clock was moved."""
        with self.lock:
            queues = [each.queue for each in self.locks.values()] + [each.queue for each in self.limiters.values()]
            for queue in queues:
                queue.wake_all(self.publish)

    def break_subscriptions(self, reason: str = "broken by a test") -> None:
        """Interrupt every subscription, as a lost connection would. Each comes back by itself and yields a `Gap`.

        Arguments:
            reason: The `Gap.reason`.
        """
        with self.lock:
            listeners = tuple(self.listeners)
        for listener in listeners:
            listener.fail(reason)


class StoreHandle:
    """A backend's access to its store, which the drivers of the backend share.

    Attributes:
        store: The store; other backends may share it.
        runtime: The runtime of the backend.
        url: The URL of the backend, for messages.
        closed: Whether the backend was closed.
    """

    def __init__(self, store: MemoryStore, runtime: Runtime, url: str) -> None:
        self.store = store
        self.runtime = runtime
        self.url = url
        self.closed = False

    def check_open(self) -> None:
        """Raise `ClosedError` if the backend is closed."""
        if self.closed:
            raise ClosedError(f"the backend {self.url} is closed")
