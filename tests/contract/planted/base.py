"""Memory backends, each broken in one way, that the contract suite must catch.

Streams have files of their own: `broken_streams`, `broken_groups`, `broken_members`.
"""

import asyncio
import contextlib
import fnmatch
import functools
import inspect
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import ailf
from ailf.driver import (
    BackendDriver,
    Confirmed,
    Filter,
    Frame,
    Refused,
)
from ailf.patterns import matches
from ailf.runtime import AsyncioRuntime, Runtime, ThreadRuntime
from ailf_memory import AsyncMemoryStream, MemoryStore, MemoryStream
from ailf_memory.driver import MemoryDriver
from ailf_memory.pubsub import MemoryListener, MemoryPubSubDriver
from ailf_memory.state.group import GroupState
from ailf_memory.stream import MemoryStreamDriver
from contract_tests.harness import Harness
from tests.contract.harnesses import MemoryHarness


class BrokenHarness(MemoryHarness):
    """Memory over drivers that are broken: override one of them."""

    driver_class: ClassVar[type[MemoryDriver]] = MemoryDriver
    pubsub_driver: ClassVar[type[MemoryPubSubDriver]] = MemoryPubSubDriver
    stream_driver: ClassVar[type[MemoryStreamDriver]] = MemoryStreamDriver
    blocking: type[ailf.Backend] = ailf.Backend
    on_asyncio: type[ailf.AsyncBackend] = ailf.AsyncBackend
    keeps_time: ClassVar[bool] = True
    request_time = 0.0
    frozen = False

    @contextlib.contextmanager
    def hasty(self, timeout: float) -> Iterator[Harness]:
        """Open backends whose drivers can be silent."""
        place = type(self)()
        place.request_time = timeout
        yield place

    def freeze(self, *, frozen: bool) -> None:
        """Be silent, or answer again."""
        self.frozen = frozen

    def connect(self) -> ailf.Backend:
        """Open a blocking backend over the broken drivers."""
        return self.blocking(self.driver(ThreadRuntime(self.clock)))

    def connect_async(self) -> ailf.AsyncBackend:
        """Open an asyncio backend over the broken drivers."""
        return self.on_asyncio(self.driver(AsyncioRuntime(self.clock)))

    def driver(self, runtime: Runtime) -> BackendDriver:
        """Return the broken driver."""
        harness = self

        class Driver(self.driver_class):  # type: ignore[name-defined, misc]  # the harness chooses
            def pubsub(self) -> Any:
                return freezable(harness.pubsub_driver(self.handle), harness, self.runtime)

            def stream(self) -> Any:
                return freezable(harness.stream_driver(self.handle), harness, self.runtime)

            def lock(self) -> Any:
                return freezable(super().lock(), harness, self.runtime)

            def rate_limiter(self) -> Any:
                return freezable(super().rate_limiter(), harness, self.runtime)

            def with_runtime(self, runtime: Runtime) -> Any:
                return harness.driver(runtime)

        driver = Driver(self.store, runtime)
        if self.request_time:
            driver.timeout = self.request_time
        return driver


class _Freezable:
    """A driver that says nothing while its harness is frozen, and gives each request up when its time is over."""

    def __init__(self, inner: Any, harness: BrokenHarness, runtime: Runtime) -> None:
        self._inner = inner
        self._harness = harness
        self._runtime = runtime

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def request(*args: Any, **options: Any) -> Any:
            until = time.monotonic() + (self._harness.request_time if self._harness.keeps_time else 60)
            while self._harness.frozen:
                if time.monotonic() > until:
                    raise ailf.BackendTimeoutError("it says nothing", maybe_applied=True)
                await self._runtime.event().wait(0.02)
            return await found(*args, **options)

        return request


def freezable(driver: Any, harness: BrokenHarness, runtime: Runtime) -> Any:
    """Return a driver as it is, or for a harness that can be frozen one that can be, too."""
    return _Freezable(driver, harness, runtime) if harness.request_time else driver


class WaitsForEver(BrokenHarness):
    """Its drivers wait for an answer however long that takes."""

    keeps_time = False


class SharesNamespaces(BrokenHarness):
    """Another namespace is the same place."""

    def elsewhere(self) -> "SharesNamespaces":
        """Return the very same."""
        return self


class SharesNothing(BrokenHarness):
    """Whoever opens it gets a place of its own."""

    def driver(self, runtime: Runtime) -> BackendDriver:
        """Return a driver on a new store."""
        self.store = MemoryStore(self.clock)
        return super().driver(runtime)


def with_driver(driver: type[MemoryDriver]) -> type[BrokenHarness]:
    """Return a harness with this backend driver."""
    return type(driver.__name__, (BrokenHarness,), {"driver_class": driver})


def with_backend(blocking: type[ailf.Backend], on_asyncio: type[ailf.AsyncBackend]) -> type[BrokenHarness]:
    """Return a harness with these backends."""
    return type(blocking.__name__, (BrokenHarness,), {"blocking": blocking, "on_asyncio": on_asyncio})


def with_pubsub(driver: type[MemoryPubSubDriver]) -> type[BrokenHarness]:
    """Return a harness with this pub/sub driver."""
    return type(driver.__name__, (BrokenHarness,), {"pubsub_driver": driver})


def with_stream(driver: type[MemoryStreamDriver]) -> type[BrokenHarness]:
    """Return a harness with this stream driver."""
    return type(driver.__name__, (BrokenHarness,), {"stream_driver": driver})


def with_group(group: type[GroupState]) -> type[BrokenHarness]:
    """Return a harness whose streams have such groups."""
    return with_stream(type(group.__name__, (MemoryStreamDriver,), {"group_class": group}))


def with_listener(listener: type[MemoryListener]) -> type[BrokenHarness]:
    """Return a harness whose subscriptions use this listener."""

    class Driver(MemoryPubSubDriver):
        async def listen(self) -> MemoryListener:
            made = listener(self._handle)
            self._handle.store.listeners.append(made)
            return made

    return type(listener.__name__, (BrokenHarness,), {"pubsub_driver": Driver})


class LeavesThreads(MemoryDriver):
    """A thread of it outlives it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        threading.Thread(target=time.sleep, args=(2.0,), name="left behind", daemon=True).start()


class IsForgottenSilently(MemoryDriver):
    """Nobody learns that it was dropped."""

    def abandon(self) -> bool:
        super().abandon()
        return False


class IsNotGivenBack(MemoryDriver):
    """What it has when it is dropped stays."""

    def abandon(self) -> bool:
        threading.Thread(target=time.sleep, args=(2.0,), name="left behind", daemon=True).start()
        return super().abandon()


class _Unpacked:
    """Payloads that never become bytes."""

    def pack(self, data: Any, headers: Any) -> Any:
        return data, headers or {}

    def unpack(self, body: Any, headers: Any, **_: Any) -> Any:
        return body, headers


def _unpacked(stream: Any) -> Any:
    flow = type(stream).__mro__[1]._flow.func(stream)
    flow.payloads = _Unpacked()
    return flow


class _SharingStream(MemoryStream[Any]):
    _flow = functools.cached_property(_unpacked)


class _AsyncSharingStream(AsyncMemoryStream[Any]):
    _flow = functools.cached_property(_unpacked)


class SharesObjects(ailf.Backend):
    """What is added is what is received, the very same object."""

    stream_class = _SharingStream


class AsyncSharesObjects(ailf.AsyncBackend):
    """What is added is what is received, the very same object."""

    stream_class = _AsyncSharingStream


class LosesPublished(MemoryListener):
    """The first message after a subscription is lost: it was confirmed too early."""

    async def change(self, add: Sequence[Filter], drop: Sequence[Filter]) -> None:
        await super().change(add, drop)
        self.deaf = bool(add)

    def offer(self, channel: str, body: bytes, *, sharded: bool = False) -> bool:
        if self.deaf:
            self.deaf = False
            return True
        return super().offer(channel, body, sharded=sharded)


class RepeatsMessages(MemoryListener):
    """A frame comes twice."""

    def offer(self, channel: str, body: bytes, *, sharded: bool = False) -> bool:
        super().offer(channel, body, sharded=sharded)
        return super().offer(channel, body, sharded=sharded)


class SwapsMessages(MemoryListener):
    """Messages that arrive together are handed over last first."""

    async def receive(self, timeout: float) -> Sequence[Frame | Confirmed | Refused]:
        if self._ready.is_set():
            return (await super().receive(timeout))[::-1]
        await self._ready.wait(timeout)
        return ()

    def offer(self, channel: str, body: bytes, *, sharded: bool = False) -> bool:
        taken = super().offer(channel, body, sharded=sharded)
        frames = [each for each in self._queue if isinstance(each, Frame)]
        if len(frames) == 1 and body == b"0":
            self._ready.clear()
        return taken


class LiteralPatterns(MemoryListener):
    """A pattern is taken for a name."""

    def offer(self, channel: str, body: bytes, *, sharded: bool = False) -> bool:
        for chosen in (self._channels.get(channel), self._patterns.get(channel)):
            if chosen is not None:
                self._queue.append(Frame(chosen, channel, body))
                self._ready.set()
        return True


class NeverConfirms(MemoryListener):
    """A subscription is never confirmed."""

    async def receive(self, timeout: float) -> Sequence[Frame | Confirmed | Refused]:
        return [each for each in await super().receive(timeout) if not isinstance(each, Confirmed)]


class Replays(MemoryListener):
    """A new subscription begins with what was published before."""

    async def change(self, add: Sequence[Filter], drop: Sequence[Filter]) -> None:
        await super().change(add, drop)
        self._queue.extend(Frame(each, each.text, b'"before"') for each in add if not each.is_pattern)


class LeavesAll(MemoryListener):
    """Giving up one filter gives up all."""

    async def change(self, add: Sequence[Filter], drop: Sequence[Filter]) -> None:
        await super().change(add, drop)
        if drop:
            self._channels.clear()
            self._patterns.clear()


def like_a_shell(pattern: str, channel: str) -> bool:
    """Tell whether the shell agrees that this matches."""
    return matches(pattern, channel) and fnmatch.fnmatchcase(channel, pattern)


class ShellPatterns(MemoryListener):
    """Patterns are those of a shell."""

    def offer(self, channel: str, body: bytes, *, sharded: bool = False) -> bool:
        chosen = [self._channels[channel]] if channel in self._channels else []
        chosen += [each for text, each in self._patterns.items() if like_a_shell(text, channel)]
        self._queue.extend(Frame(each, channel, body) for each in chosen)
        self._ready.set()
        return True


class ReadsOnlyText(MemoryListener):
    """A message on a channel that is not UTF-8 breaks the connection."""

    async def receive(self, timeout: float) -> Sequence[Frame | Confirmed | Refused]:
        events = await super().receive(timeout)
        for each in events:
            if isinstance(each, Frame):
                each.channel.encode()
        return events


class HidesWhatIsNoText(MemoryListener):
    """A message on a channel that is not UTF-8 is dropped, and nobody is told."""

    def offer(self, channel: str, body: bytes, *, sharded: bool = False) -> bool:
        return "\udcff" not in channel and super().offer(channel, body, sharded=sharded)


class HidesGaps(MemoryListener):
    """An interruption loses what was on its way and is not told."""

    def fail(self, reason: str) -> None:
        with self._handle.store.lock:
            self._queue.clear()


class KeepsItsFirstLoop(MemoryPubSubDriver):
    """Whatever event loop asks, it publishes over a connection of the first one."""

    async def publish(self, messages: Sequence[tuple[str, bytes]], *, sharded: bool = False) -> Sequence[int]:
        here = asyncio.get_running_loop()
        first = vars(self._handle).setdefault("first_loop", here)
        return await super().publish(messages, sharded=sharded) if here is first else [1]


class EndsLate(MemoryListener):
    """Who waits is not told of the end."""

    def interrupt(self) -> None:
        return
