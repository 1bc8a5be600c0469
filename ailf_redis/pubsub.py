"""Pub/sub over Redis: publishing through the executor, listening on a link of its own."""

from collections import deque
from collections.abc import Awaitable, Sequence
from typing import Any, Final

from ailf.cache import KeyedCache
from ailf.driver import Confirmed, Filter, Frame, Listener, PubSubDriver, Refused
from ailf.errors import ConnectionLostError
from ailf.runtime.clock import SystemClock
from ailf_redis.connection.executor import Executor, Link
from ailf_redis.connection.resp import CommandPrefix
from ailf_redis.errors import MISREAD, mapped, misread
from ailf_redis.keys import Keys
from ailf_redis.replies import is_text

__all__ = ["RedisPubSubDriver"]


QUIET: Final = 10.0
"""Seconds without anything after which a listener asks the server whether it is still there."""

PATIENCE: Final = 5.0
"""Seconds that the server has to say so."""


_SHARDED: Final = {b"smessage", b"ssubscribe", b"sunsubscribe"}


class RedisPubSubDriver(PubSubDriver):
    """PUBLISH, and listeners."""

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
        return self._executor.call_prefixed((self._sharding if sharded else self._publishing)[channel], body, _alone)

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

    async def listen(self) -> Listener:
        return RedisListener(await self._executor.link(), self._executor, self._keys)


def _alone(heard: int) -> Sequence[int]:
    return (int(heard),)


def _decoded(name: bytes) -> str:
    """Return a channel's name; other programs may publish to one that is not UTF-8."""
    return name.decode("utf-8", "surrogateescape")


def _kind(each: Filter) -> str:
    """Return what the commands for such a filter begin with."""
    return "P" if each.is_pattern else "S" if each.is_sharded else ""


class RedisListener(Listener):
    """One subscribed connection.

    Errors come back in the order of the commands, so for each command that can be refused it is kept what it asked for.
    """

    def __init__(self, link: Link, executor: Executor, keys: Keys) -> None:
        self._link = link
        self._where = executor.where
        self._keys = keys
        self._asked: deque[set[Filter]] = deque()
        self._given_up: set[Filter] = set()
        self._named: dict[bytes, Filter] = {}  # what plain channels that were asked for are on the wire
        self._heard = SystemClock.wait_time()
        self._pinged = False

    async def change(self, add: Sequence[Filter], drop: Sequence[Filter]) -> None:
        commands: list[list[str]] = []
        for un, filters in (("", add), ("UN", drop)):
            for kind in ("", "P", "S"):
                chosen = [each for each in filters if _kind(each) == kind]
                if not chosen:
                    continue
                if not kind:
                    self._name(chosen, known=not un)
                commands.append([f"{kind}{un}SUBSCRIBE", *(self._wire_name(each) for each in chosen)])
                if un:
                    self._given_up.update(each for each in chosen if each.is_sharded)
                else:
                    self._asked.append(set(chosen))
        if commands:
            await self._link.send(commands)

    def _name(self, channels: Sequence[Filter], *, known: bool) -> None:
        """Know these channels by what they are on the wire, or know them no more."""
        for each in channels:
            wire_name = self._wire_name(each).encode()
            if known:
                self._named[wire_name] = each
            else:
                self._named.pop(wire_name, None)

    def _wire_name(self, each: Filter) -> str:
        return self._keys.pattern(each.text) if each.is_pattern else self._keys.channel(each.text)

    async def receive(self, timeout: float) -> Sequence[Frame | Confirmed | Refused]:
        replies = await self._link.receive(timeout)
        if not replies:
            await self._check_alive()
            return ()
        self._heard = SystemClock.wait_time()
        self._pinged = False
        events: list[Frame | Confirmed | Refused] = []
        try:
            for reply in replies:
                known = self._named.get(reply[1]) if type(reply) is list and reply[0] == b"message" else None
                if known is not None and type(reply[2]) is bytes:  # nearly every reply is one of these
                    events.append(Frame(known, known.text, reply[2]))
                else:
                    events += self._events(reply)
        except MISREAD as error:
            raise misread(error, self._where) from error
        return events

    async def _check_alive(self) -> None:
        quiet = SystemClock.wait_time() - self._heard
        if quiet > QUIET + PATIENCE:
            raise ConnectionLostError(f"{self._where} has said nothing for {quiet:.0f} s, not even to a PING")
        if quiet > QUIET and not self._pinged:
            self._pinged = True
            await self._link.send([("PING",)])

    def _events(self, reply: Any) -> Sequence[Frame | Confirmed | Refused]:
        if isinstance(reply, Exception):
            refused = self._asked.popleft() if self._asked else set()
            error = mapped(reply, self._where, sent=True)
            return [Refused(each, error) for each in refused]
        match reply:
            case [b"message" | b"pmessage" | b"smessage" as kind, name, *matched, bytes(body)]:
                channel = matched[0] if matched else name  # of a pattern's message both are told
                problem = "" if is_text(channel) else "the name of its channel is not UTF-8"
                return [Frame(self._filter(kind, name), self._keys.name(_decoded(channel)), body, problem)]
            case [b"subscribe" | b"psubscribe" | b"ssubscribe" as kind, name, _]:
                return self._confirmed(self._filter(kind, name))
            case [b"sunsubscribe" as kind, name, _]:
                self._left(self._filter(kind, name))
        return ()

    def _filter(self, kind: bytes, name: bytes) -> Filter:
        if kind.startswith(b"p"):
            return Filter(_decoded(name)[len(self._keys.pattern("")) :], is_pattern=True)
        return Filter(self._keys.name(_decoded(name)), is_sharded=kind in _SHARDED)

    def _left(self, channel: Filter) -> None:
        """Take note of a sharded channel's end: where nobody asked for it, its shard has moved."""
        if channel not in self._given_up:
            raise ConnectionLostError(
                f"{self._where} carries the channel {channel.text!r} no more: its shard has moved"
            )
        self._given_up.discard(channel)

    def _confirmed(self, confirmed: Filter) -> Sequence[Confirmed]:
        if self._asked:
            self._asked[0].discard(confirmed)
            if not self._asked[0]:
                self._asked.popleft()
        return [Confirmed(confirmed)]

    def interrupt(self) -> None:
        self._link.interrupt()

    async def close(self) -> None:
        await self._link.close()
