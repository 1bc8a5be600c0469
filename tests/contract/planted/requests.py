"""Pub/sub drivers of memory, each broken in what asking and answering needs, that the contract suite must catch."""

from collections.abc import Sequence

from ailf.codecs import open_envelope
from ailf.engine.inbox import REPLY_TO, REQUEST
from ailf_memory.pubsub import MemoryPubSubDriver


class HearsNobody(MemoryPubSubDriver):
    """It says of every message that nobody heard it."""

    async def publish(self, messages: Sequence[tuple[str, bytes]], *, sharded: bool = False) -> Sequence[int]:
        await super().publish(messages, sharded=sharded)
        return [0] * len(messages)


class SharesShards(MemoryPubSubDriver):
    """Sharded channels are ordinary ones."""

    async def publish(self, messages: Sequence[tuple[str, bytes]], *, sharded: bool = False) -> Sequence[int]:
        heard = await super().publish(messages, sharded=False)
        return [sum(pair) for pair in zip(heard, await super().publish(messages, sharded=True), strict=True)]


class LosesReplies(MemoryPubSubDriver):
    """Every second reply doesn't arrive."""

    sent = 0

    async def publish(self, messages: Sequence[tuple[str, bytes]], *, sharded: bool = False) -> Sequence[int]:
        _, headers = open_envelope(messages[0][1])
        if REQUEST in headers and REPLY_TO not in headers:
            type(self).sent += 1
            if self.sent % 2:
                return [1]
        return await super().publish(messages, sharded=sharded)
