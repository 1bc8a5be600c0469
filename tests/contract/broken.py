"""Memory backends, each broken in one way, that the contract suite must catch."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import attrs

import ailf
from ailf.driver import (
    Action,
    BackendDriver,
    Confirmed,
    Fetched,
    Filter,
    Frame,
    Receipt,
    Refused,
    Settlement,
)
from ailf.runtime import AsyncioRuntime, Runtime, ThreadRuntime
from ailf_memory.backend import MemoryDriver
from ailf_memory.pubsub import MemoryListener, MemoryPubSubDriver
from ailf_memory.stream import MemoryStreamDriver, MemoryWaiter
from tests.contract.harnesses import MemoryHarness


class BrokenHarness(MemoryHarness):
    """Memory over drivers that are broken: override one of them."""

    pubsub_driver: ClassVar[type[MemoryPubSubDriver]] = MemoryPubSubDriver
    stream_driver: ClassVar[type[MemoryStreamDriver]] = MemoryStreamDriver

    def connect(self) -> ailf.Backend:
        """Open a blocking backend over the broken drivers."""
        return ailf.Backend(self.driver(ThreadRuntime()))

    def connect_async(self) -> ailf.AsyncBackend:
        """Open an asyncio backend over the broken drivers."""
        return ailf.AsyncBackend(self.driver(AsyncioRuntime()))

    def driver(self, runtime: Runtime) -> BackendDriver:
        """Return the broken driver."""
        harness = self

        class Driver(MemoryDriver):
            def pubsub(self) -> MemoryPubSubDriver:
                return harness.pubsub_driver(self)

            def stream(self) -> MemoryStreamDriver:
                return harness.stream_driver(self)

            def twin(self, runtime: Runtime) -> Any:
                return harness.driver(runtime)

        return Driver(self.store, runtime)


def with_stream(driver: type[MemoryStreamDriver]) -> type[BrokenHarness]:
    """Return a harness with this stream driver."""
    return type(driver.__name__, (BrokenHarness,), {"stream_driver": driver})


def with_listener(listener: type[MemoryListener]) -> type[BrokenHarness]:
    """Return a harness whose subscriptions use this listener."""

    class Driver(MemoryPubSubDriver):
        async def listen(self) -> MemoryListener:
            made = listener(self._backend)
            self._backend.store.listeners.append(made)
            return made

    return type(listener.__name__, (BrokenHarness,), {"pubsub_driver": Driver})


class LosesMessages(MemoryStreamDriver):
    """Every third entry is answered with an id and not kept."""

    added = 0

    async def add(self, stream: str, entries: Sequence[tuple[bytes, Mapping[str, str]]]) -> list[str]:
        ids = await super().add(stream, entries)
        state = self._state(stream)
        for _ in entries:
            type(self).added += 1
            if self.added % 3 == 0:
                state.keys.pop()
                state.records.pop()
        return ids


class DeliversTwice(MemoryStreamDriver):
    """The group's position doesn't move."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        fetched = await super().fetch(stream, group, consumer, **options)
        known = self._state(stream).groups[group]
        known.position = (0, 0)
        known.pending.clear()
        return fetched


class IgnoresLeases(MemoryStreamDriver):
    """A lease never ends by itself."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        return await super().fetch(stream, group, consumer, **{**options, "lease": 1e9})


class SettlesStale(MemoryStreamDriver):
    """Whoever once had a message may settle it."""

    def _mine(self, group: Any, receipt: Receipt) -> Any:
        return group.pending.get(tuple(int(part) for part in receipt.id.split("-")))


class CountsReleases(MemoryStreamDriver):
    """A release counts as an attempt."""

    def _release(self, group: Any, key: Any) -> None:
        self._park(group, key, 0.0)


class AcksOnNack(MemoryStreamDriver):
    """A nack loses the message."""

    async def settle(self, stream: str, group: str, settlements: Sequence[Settlement], **options: Any) -> list[bool]:
        changed = [
            attrs.evolve(each, action=Action.ACK) if each.action is Action.NACK else each for each in settlements
        ]
        return await super().settle(stream, group, changed, **options)


class DropsOnLeave(MemoryStreamDriver):
    """What a consumer held goes with it."""

    async def leave(self, stream: str, group: str, consumer: str) -> None:
        known = self._state(stream).groups.get(group)
        for key, pending in list(known.pending.items() if known else ()):
            if pending.holder == consumer:
                del known.pending[key]  # type: ignore[union-attr]  # it has items


class KeepsOnLeave(MemoryStreamDriver):
    """What a consumer held waits for its lease."""

    async def leave(self, stream: str, group: str, consumer: str) -> None:
        return


class MovesGroups(MemoryStreamDriver):
    """Opening a group again moves it."""

    async def open_group(self, stream: str, group: str, start: str) -> bool:
        made = await super().open_group(stream, group, start)
        self._state(stream).groups[group].position = self._position(self._state(stream), start)
        return made


class StartsLate(MemoryStreamDriver):
    """A new group starts at the end."""

    async def open_group(self, stream: str, group: str, start: str) -> bool:
        return await super().open_group(stream, group, ailf.LATEST if start == ailf.EARLIEST else start)


class LosesDeadLetters(MemoryStreamDriver):
    """What a group gives up on is gone."""

    def _bury(self, state: Any, group: Any, key: Any, reason: str, error: str) -> None:
        del group.pending[key]


class SharesObjects(MemoryStreamDriver):
    """The headers that were added are the headers that are received, the very same object."""

    async def add(self, stream: str, entries: Sequence[tuple[bytes, Mapping[str, str]]]) -> list[str]:
        ids = await super().add(stream, entries)
        state = self._state(stream)
        for index, (body, headers) in enumerate(entries, len(state.records) - len(entries)):
            state.records[index] = attrs.evolve(state.records[index], body=body, headers=SHARED or headers)
        SHARED.update(entries[-1][1])
        return ids


SHARED: dict[str, str] = {}


class ForgetsHeaders(MemoryStreamDriver):
    """Entries lose their headers."""

    async def add(self, stream: str, entries: Sequence[tuple[bytes, Mapping[str, str]]]) -> list[str]:
        return await super().add(stream, [(body, {}) for body, _ in entries])


class Reorders(MemoryStreamDriver):
    """A page of new entries leaves last first."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        fetched = await super().fetch(stream, group, consumer, **options)
        return attrs.evolve(fetched, claims=fetched.claims[::-1])


class NeverCloses(MemoryStreamDriver):
    """A wait is deaf to the end."""

    def waiter(self, stream: str, group: str | None) -> MemoryWaiter:
        class Deaf(MemoryWaiter):
            async def wait(self, position: Any, timeout: float) -> None:
                self._interrupted = False
                await super().wait(position, 60.0)

            def interrupt(self) -> None:
                return

        return Deaf(self._backend, stream)


class KeepsGroupsSilently(MemoryStreamDriver):
    """A group that vanished is made again and nobody is told."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        return attrs.evolve(await super().fetch(stream, group, consumer, **options), reset=False)


class SharesNames(MemoryStreamDriver):
    """What stands in braces is all that counts of a name."""

    def _state(self, stream: str) -> Any:
        inside = stream.partition("{")[2].partition("}")[0]
        return super()._state("braces" if "{" in stream else inside or stream)


class LosesPublished(MemoryListener):
    """The first message after a subscription is lost: it was confirmed too early."""

    async def change(self, add: Sequence[Filter], drop: Sequence[Filter]) -> None:
        await super().change(add, drop)
        self.deaf = bool(add)

    def offer(self, channel: str, body: bytes) -> None:
        if self.deaf:
            self.deaf = False
            return
        super().offer(channel, body)


class RepeatsMessages(MemoryListener):
    """A frame comes twice."""

    def offer(self, channel: str, body: bytes) -> None:
        super().offer(channel, body)
        super().offer(channel, body)


class SwapsMessages(MemoryListener):
    """Messages that arrive together are handed over last first."""

    async def receive(self, timeout: float) -> Sequence[Frame | Confirmed | Refused]:
        if self._ready.is_set():
            return (await super().receive(timeout))[::-1]
        await self._ready.wait(timeout)
        return ()

    def offer(self, channel: str, body: bytes) -> None:
        super().offer(channel, body)
        frames = [each for each in self._queue if isinstance(each, Frame)]
        if len(frames) == 1 and body == b"0":
            self._ready.clear()


class LiteralPatterns(MemoryListener):
    """A pattern is taken for a name."""

    def offer(self, channel: str, body: bytes) -> None:
        for chosen in (self._channels.get(channel), self._patterns.get(channel)):
            if chosen is not None:
                self._queue.append(Frame(chosen, channel, body))
                self._ready.set()
