"""Pub/sub over Redis: it publishes through the executor, and listens on a link."""

from collections import deque
from collections.abc import Awaitable, Sequence
from typing import Any, Final

from ailf.cache import KeyedCache
from ailf.driver import Confirmed, Filter, Frame, Listener, PubSubDriver, Refused
from ailf.driver.listing import MOST_LISTED, too_many
from ailf.errors import ConnectionLostError, PermissionDeniedError, ProtocolError
from ailf.runtime.clock import SystemClock
from ailf.values import ChannelInfo
from ailf_redis.connection.executor import Executor, Link
from ailf_redis.connection.resp import CommandPrefix
from ailf_redis.errors import MISREAD, mapped, misread
from ailf_redis.keys import Keys
from ailf_redis.listing import encoded, needs_right
from ailf_redis.replies import is_text, name_of_bytes
from ailf_redis.waiter import is_oversize

__all__ = ["RedisPubSubDriver"]


QUIET: Final = 10.0
"""Seconds of silence after which a listener sends a PING."""

PATIENCE: Final = 5.0
"""The most seconds that the server has to reply to it."""


_SHARDED: Final = {b"smessage", b"ssubscribe", b"sunsubscribe"}


class RedisPubSubDriver(PubSubDriver):
    """Publishing and listening on one server."""

    def __init__(self, executor: Executor, keys: Keys) -> None:
        self._executor = executor
        self._keys = keys
        self._publishing: KeyedCache[str, CommandPrefix] = KeyedCache(
            lambda channel: CommandPrefix.of("PUBLISH", self._keys.channel(channel))
        )
        self._sharding: KeyedCache[str, CommandPrefix] = KeyedCache(
            lambda channel: CommandPrefix.of("SPUBLISH", self._keys.channel(channel))
        )

    def publish(
        self, messages: Sequence[tuple[str, bytes]], *, sharded: bool = False
    ) -> Awaitable[Sequence[int] | None]:
        if len(messages) != 1:
            return self._publish_many("SPUBLISH" if sharded else "PUBLISH", messages)
        ((channel, body),) = messages
        return self._executor.call_prefixed((self._sharding if sharded else self._publishing)[channel], body, _as_count)

    async def _publish_many(self, verb: str, messages: Sequence[tuple[str, bytes]]) -> Sequence[int]:
        replies = await self._executor.call_many(
            [(verb, self._keys.channel(channel), body) for channel, body in messages]
        )
        for reply in replies:
            if isinstance(reply, Exception):
                raise mapped(reply, self._executor.where, sent=True)
        try:
            return [int(each) for each in replies]
        except MISREAD as error:
            raise misread(error, self._executor.where) from error

    async def channels(self, prefix: str, *, sharded: bool = False) -> list[ChannelInfo]:
        pattern, kind = encoded(self._keys.channels_pattern(prefix)), "SHARD" if sharded else ""
        counts: dict[bytes, int] = {}
        try:
            for node in await self._executor.nodes():
                names = await self._ask(node, f"{kind}CHANNELS", pattern)
                if len(names) > MOST_LISTED:
                    raise self._too_many_channels()
                flat = await self._ask(node, f"{kind}NUMSUB", *names) if names else []
                for name, count in zip(flat[::2], flat[1::2], strict=True):
                    if int(count):  # else its last listener has left meanwhile
                        counts[name] = counts.get(name, 0) + int(count)
        except MISREAD as error:
            raise misread(error, self._executor.where) from error
        if len(counts) > MOST_LISTED:
            raise self._too_many_channels()
        return [ChannelInfo(self._keys.name(name_of_bytes(name)), count) for name, count in counts.items()]

    async def _ask(self, node: str, command: str, *arguments: bytes) -> list[Any]:
        """Return the reply of a node to PUBSUB."""
        try:
            return await self._executor.call_at(node, 1, "PUBSUB", command, *arguments)  # type: ignore[no-any-return]
        except PermissionDeniedError as error:
            rules = f"+pubsub|{command.lower()}"
            raise needs_right(error, self._executor.where, "PUBSUB", rules) from error
        except ProtocolError as error:
            raise (self._too_many_channels() if is_oversize(error) else error) from error

    def _too_many_channels(self) -> ProtocolError:
        return too_many(self._executor.where, "channels with subscribers; list them with a longer prefix")

    async def listen(self) -> Listener:
        return RedisListener(await self._executor.link(), self._executor, self._keys)


def _as_count(receivers: int) -> Sequence[int]:
    return (int(receivers),)


def _kind(each: Filter) -> str:
    """Return the prefix of the commands SUBSCRIBE and UNSUBSCRIBE for a filter."""
    return "P" if each.is_pattern else "S" if each.is_sharded else ""


class RedisListener(Listener):
    """One subscribed connection.

    An error reply doesn't name its command, but replies come in the order of the commands. So the filters of each
    SUBSCRIBE are kept in a queue until they are confirmed or refused.
    """

    def __init__(self, link: Link, executor: Executor, keys: Keys) -> None:
        self._link = link
        self._where = executor.where
        self._keys = keys
        self._pending: deque[set[Filter]] = deque()
        self._dropped: set[Filter] = set()
        self._channels: dict[bytes, Filter] = {}  # the filters of plain channels, by their names in Redis
        self._received = SystemClock.wait_time()
        self._pinged = False

    async def change(self, add: Sequence[Filter], drop: Sequence[Filter]) -> None:
        commands: list[list[str]] = []
        for un, filters in (("", add), ("UN", drop)):
            for kind in ("", "P", "S"):
                chosen = [each for each in filters if _kind(each) == kind]
                if not chosen:
                    continue
                if not kind:
                    self._index_channels(chosen, add=not un)
                commands.append([f"{kind}{un}SUBSCRIBE", *(self._redis_name(each) for each in chosen)])
                if un:
                    self._dropped.update(each for each in chosen if each.is_sharded)
                else:
                    self._pending.append(set(chosen))
        if commands:
            await self._link.send(commands)

    def _index_channels(self, channels: Sequence[Filter], *, add: bool) -> None:
        """Add plain channels to the index of filters, or remove them."""
        for each in channels:
            name = self._redis_name(each).encode()
            if add:
                self._channels[name] = each
            else:
                self._channels.pop(name, None)

    def _redis_name(self, each: Filter) -> str:
        return self._keys.pattern(each.text) if each.is_pattern else self._keys.channel(each.text)

    async def receive(self, timeout: float) -> Sequence[Frame | Confirmed | Refused]:
        replies = await self._link.receive(timeout)
        if not replies:
            await self._check_alive()
            return ()
        self._received = SystemClock.wait_time()
        self._pinged = False
        events: list[Frame | Confirmed | Refused] = []
        try:
            for reply in replies:
                channel = self._channels.get(reply[1]) if type(reply) is list and reply[0] == b"message" else None
                if channel is not None and type(reply[2]) is bytes:  # nearly every reply is one of these
                    events.append(Frame(channel, channel.text, reply[2]))
                else:
                    events += self._events(reply)
        except MISREAD as error:
            raise misread(error, self._where) from error
        return events

    async def _check_alive(self) -> None:
        quiet = SystemClock.wait_time() - self._received
        if quiet > QUIET + PATIENCE:
            raise ConnectionLostError(f"{self._where} has sent nothing for {quiet:.0f} s, not even a reply to PING")
        if quiet > QUIET and not self._pinged:
            self._pinged = True
            await self._link.send([("PING",)])

    def _events(self, reply: Any) -> Sequence[Frame | Confirmed | Refused]:
        if isinstance(reply, Exception):
            refused = self._pending.popleft() if self._pending else set()
            error = mapped(reply, self._where, sent=True)
            return [Refused(each, error) for each in refused]
        match reply:
            case [b"message" | b"pmessage" | b"smessage" as kind, name, *matched, bytes(body)]:
                channel = matched[0] if matched else name  # a message for a pattern has the pattern and the channel
                problem = "" if is_text(channel) else "the name of its channel is not UTF-8"
                return [Frame(self._filter(kind, name), self._keys.name(name_of_bytes(channel)), body, problem)]
            case [b"subscribe" | b"psubscribe" | b"ssubscribe" as kind, name, _]:
                return self._confirmed(self._filter(kind, name))
            case [b"sunsubscribe" as kind, name, _]:
                self._check_unsubscribed(self._filter(kind, name))
        return ()

    def _filter(self, kind: bytes, name: bytes) -> Filter:
        if kind.startswith(b"p"):
            return Filter(name_of_bytes(name)[len(self._keys.pattern("")) :], is_pattern=True)
        return Filter(self._keys.name(name_of_bytes(name)), is_sharded=kind in _SHARDED)

    def _check_unsubscribed(self, channel: Filter) -> None:
        """Handle the end of a sharded subscription: if `change` didn't ask for it, the channel's shard has moved."""
        if channel not in self._dropped:
            raise ConnectionLostError(
                f"{self._where} no longer carries the channel {channel.text!r}: its shard has moved"
            )
        self._dropped.discard(channel)

    def _confirmed(self, confirmed: Filter) -> Sequence[Confirmed]:
        if self._pending:
            self._pending[0].discard(confirmed)
            if not self._pending[0]:
                self._pending.popleft()
        return [Confirmed(confirmed)]

    def interrupt(self) -> None:
        self._link.interrupt()

    async def close(self) -> None:
        await self._link.close()
