"""Pub/sub of the memory backend with planted bugs: subscriptions, publishing, requests."""

import asyncio
import fnmatch
from collections.abc import Sequence

from ailf.codecs import open_envelope
from ailf.driver import Confirmed, Filter, Frame, Refused
from ailf.engine.inbox import REPLY_TO, REQUEST
from ailf.patterns import matches
from ailf_memory.pubsub import MemoryListener, MemoryPubSubDriver
from tests.contract.planted.base import caught_by

# --- subscriptions -----------------------------------------------------------------------------------------------


@caught_by("pubsub.test_pubsub.test_confirmed_on_entry")
class ConfirmsTooEarly(MemoryListener):
    """A subscription is confirmed too early, so that its first message is lost."""

    async def change(self, add: Sequence[Filter], drop: Sequence[Filter]) -> None:
        await super().change(add, drop)
        self.deaf = bool(add)

    def offer(self, channel: str, body: bytes, *, sharded: bool = False) -> bool:
        if self.deaf:
            self.deaf = False
            return True
        return super().offer(channel, body, sharded=sharded)


@caught_by("pubsub.test_pubsub.test_once_per_subscription")
class RepeatsMessages(MemoryListener):
    """Each message arrives twice."""

    def offer(self, channel: str, body: bytes, *, sharded: bool = False) -> bool:
        super().offer(channel, body, sharded=sharded)
        return super().offer(channel, body, sharded=sharded)


@caught_by("pubsub.test_pubsub.test_order_and_no_replay")
class ReversesMessages(MemoryListener):
    """Messages that arrive together are delivered in reverse."""

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


@caught_by("pubsub.test_pubsub.test_pattern_grammar")
class TakesPatternsLiterally(MemoryListener):
    """A pattern matches only the channel of the same name."""

    def offer(self, channel: str, body: bytes, *, sharded: bool = False) -> bool:
        for chosen in (self._channels.get(channel), self._patterns.get(channel)):
            if chosen is not None:
                self._queue.append(Frame(chosen, channel, body))
                self._ready.set()
        return True


@caught_by("pubsub.test_pubsub.test_confirmed_on_entry")
class NeverConfirms(MemoryListener):
    """No subscription is ever confirmed."""

    async def receive(self, timeout: float) -> Sequence[Frame | Confirmed | Refused]:
        return [each for each in await super().receive(timeout) if not isinstance(each, Confirmed)]


@caught_by("pubsub.test_pubsub.test_order_and_no_replay")
class ReplaysMessages(MemoryListener):
    """A new subscription begins with an earlier message."""

    async def change(self, add: Sequence[Filter], drop: Sequence[Filter]) -> None:
        await super().change(add, drop)
        self._queue.extend(Frame(each, each.text, b'"before"') for each in add if not each.is_pattern)


@caught_by("pubsub.test_pubsub.test_leaving_one_of_two")
class UnsubscribesFromAll(MemoryListener):
    """Unsubscribing from one channel unsubscribes from all."""

    async def change(self, add: Sequence[Filter], drop: Sequence[Filter]) -> None:
        await super().change(add, drop)
        if drop:
            self._channels.clear()
            self._patterns.clear()


def like_a_shell(pattern: str, channel: str) -> bool:
    """Return whether the pattern also matches by the grammar of a shell."""
    return matches(pattern, channel) and fnmatch.fnmatchcase(channel, pattern)


@caught_by("pubsub.test_pubsub.test_pattern_grammar")
class UsesShellPatterns(MemoryListener):
    """Patterns follow the grammar of a shell."""

    def offer(self, channel: str, body: bytes, *, sharded: bool = False) -> bool:
        chosen = [self._channels[channel]] if channel in self._channels else []
        chosen += [each for text, each in self._patterns.items() if like_a_shell(text, channel)]
        self._queue.extend(Frame(each, channel, body) for each in chosen)
        self._ready.set()
        return True


@caught_by("pubsub.test_pubsub.test_broken_messages")
class BreaksOnUndecodableChannels(MemoryListener):
    """A message on a channel that is not UTF-8 breaks the connection."""

    async def receive(self, timeout: float) -> Sequence[Frame | Confirmed | Refused]:
        events = await super().receive(timeout)
        for each in events:
            if isinstance(each, Frame):
                each.channel.encode()
        return events


@caught_by("pubsub.test_pubsub.test_broken_messages")
class DropsUndecodableChannels(MemoryListener):
    """A message on a channel that is not UTF-8 is dropped, and no hook is called."""

    def offer(self, channel: str, body: bytes, *, sharded: bool = False) -> bool:
        return "\udcff" not in channel and super().offer(channel, body, sharded=sharded)


@caught_by("pubsub.test_pubsub.test_gaps")
class HidesGaps(MemoryListener):
    """An interruption loses the messages under way, and yields no Gap."""

    def fail(self, reason: str) -> None:
        with self._handle.store.lock:
            self._queue.clear()


@caught_by("backend.test_close.test_ends_promptly")
class IgnoresInterrupts(MemoryListener):
    """Ending a subscription doesn't wake its reader."""

    def interrupt(self) -> None:
        return


# --- publishing and requests -------------------------------------------------------------------------------------


@caught_by("backend.test_backend.test_one_loop_after_another", asyncio_only=True)
class KeepsItsFirstEventLoop(MemoryPubSubDriver):
    """In every event loop it publishes over the connection of the first one."""

    async def publish(self, messages: Sequence[tuple[str, bytes]], *, sharded: bool = False) -> Sequence[int]:
        here = asyncio.get_running_loop()
        first = vars(self._handle).setdefault("first_loop", here)
        return await super().publish(messages, sharded=sharded) if here is first else [1]


@caught_by("pubsub.test_request.test_a_return_value_is_the_reply")
class ReportsNoSubscribers(MemoryPubSubDriver):
    """Each publish reports that there was no subscriber."""

    async def publish(self, messages: Sequence[tuple[str, bytes]], *, sharded: bool = False) -> Sequence[int]:
        await super().publish(messages, sharded=sharded)
        return [0] * len(messages)


@caught_by("pubsub.test_request.test_sharded_channels")
class IgnoresSharding(MemoryPubSubDriver):
    """Sharded channels are ordinary ones."""

    async def publish(self, messages: Sequence[tuple[str, bytes]], *, sharded: bool = False) -> Sequence[int]:
        heard = await super().publish(messages, sharded=False)
        return [sum(pair) for pair in zip(heard, await super().publish(messages, sharded=True), strict=True)]


@caught_by("pubsub.test_request.test_each_request_gets_its_own_reply")
class LosesReplies(MemoryPubSubDriver):
    """Every second reply is lost."""

    sent = 0

    async def publish(self, messages: Sequence[tuple[str, bytes]], *, sharded: bool = False) -> Sequence[int]:
        _, headers = open_envelope(messages[0][1])
        if REQUEST in headers and REPLY_TO not in headers:
            type(self).sent += 1
            if self.sent % 2:
                return [1]
        return await super().publish(messages, sharded=sharded)
