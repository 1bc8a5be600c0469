"""Listing in memory: no step under the store's lock grows with the store, and listings don't disturb each other."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import ailf
from ailf_memory import MemoryBackend, MemoryStore
from ailf_memory.state.listing import SortedNames
from ailf_memory.state.stream import StreamState

MANY = 100_000


class Watched(dict[str, StreamState]):
    """The streams of a store, which count what is asked for, and are never gone through while the lock is held.

    Attributes:
        asked: How many streams were asked for by name.
    """

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store.streams)
        self.asked = 0
        self._lock: Any = store.lock

    def get(self, name: str, default: Any = None) -> Any:
        """Return a stream."""
        self.asked += 1
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:
        assert not self._lock._is_owned(), "a step that grows with the streams holds the lock"
        return super().__iter__()


def filled() -> MemoryStore:
    """Return a store with many streams."""
    store = MemoryStore()
    with MemoryBackend(store=store) as backend:
        backend.stream("s0").add(1)
    state = store.streams["s0"]
    for number in range(1, MANY):
        store.streams[f"s{number}"] = state
    return store


def test_many_streams_in_bounded_steps() -> None:
    """Of 100,000 streams each comes once, in pages of 500; under the lock a page asks for its own 500 only."""
    store = filled()
    watched = store.streams = Watched(store)
    with MemoryBackend(store=store) as backend:
        began, names, cursor, steps = time.monotonic(), [], "", 0
        while not steps or cursor:
            watched.asked = 0
            page = backend.streams().page(cursor, 500)
            names += page.items
            cursor, steps = page.cursor, steps + 1
            assert len(page.items) <= 500
            assert watched.asked <= 500
        assert time.monotonic() - began < 10
        assert (len(names), len(set(names)), steps) == (MANY, MANY, 200)


def test_listings_at_the_same_time() -> None:
    """Listings of several threads each have every name, while other names come and go."""
    stays = {f"stays{number}" for number in range(500)}
    with MemoryBackend() as backend:
        for name in stays:
            backend.stream(name).add(1)
        found: list[set[str]] = []
        ended = threading.Event()

        def change() -> None:
            number = 0
            while not ended.is_set():
                backend.stream(f"other{number % 50}").add(1)
                backend.stream(f"other{(number + 25) % 50}").delete()
                number += 1

        def read() -> None:
            found.extend(set(backend.streams(page_size=size)) for size in (7, 50, 3))

        changing = threading.Thread(target=change)
        reading = [threading.Thread(target=read) for _ in range(4)]
        changing.start()
        for each in reading:
            each.start()
        for each in reading:
            each.join()
        ended.set()
        changing.join()
        assert len(found) == 12
        assert all(stays <= names for names in found)


def test_an_older_copy_replaces_no_newer_one() -> None:
    """N1: where two listings begin at the same time, the later one goes on with names that are not older than it."""
    live = ["a", "c"]

    def copy() -> list[str]:
        taken = list(live)
        if len(live) == 2:  # while this listing copies the names, a name comes and another listing begins
            live.append("b")
            assert names.page("", None, 1) == (["a"], True)
        return taken

    names: SortedNames[str] = SortedNames(copy, str.startswith, str)
    assert names.page("", None, 1) == (["a"], True)
    assert names.page("", "a", 1) == (["b"], True)


def test_a_dropped_listing_keeps_nothing() -> None:
    """A listing that is read to its end keeps no copy of the names."""
    with MemoryBackend() as backend:
        for number in range(10):
            backend.stream(f"s{number}").add(1)
        assert len(list(backend.streams(page_size=3))) == 10
        assert backend.store.stream_names._names is None
        assert isinstance(backend.streams().page(), ailf.Page)
