"""Waiting for arrivals: of a group's waiters one watches, the others sleep until it hands over (``watch.lua``)."""

import math
import re
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Final, TypeVar

from ailf.checks import to_ms
from ailf.driver import StreamsWaiter, Waiter
from ailf.errors import BackendError, BackendTimeoutError, ClosedError, ProtocolError
from ailf.runtime.clock import SystemClock
from ailf.values import EARLIEST
from ailf_redis.connection.executor import Executor, Link
from ailf_redis.connection.resp import IDLE, Command, OversizeError
from ailf_redis.errors import MISREAD, mapped, misread
from ailf_redis.keys import Keys
from ailf_redis.replies import SLEEPS, as_flag
from ailf_redis.scripts import HAND_OVER

__all__ = ["RedisStreamsWaiter", "RedisWaiter", "is_oversize"]

T = TypeVar("T")

WATCH: Final = 0.6
"""The share of `alive` for which a waiter has the watch, as in ``watch.lua``."""

LAPSE: Final = 0.1
"""Seconds for which it has the watch after its callers have left, if others sleep: so long, to hand it over."""

_GIVEN: Final = re.compile(r"w ([0-9]{1,20}) ([0-9]{1,20}-[0-9]{1,20}) ([0-9]{1,20}-[0-9]{1,20}) (-1|[0-9]{1,16})")
"""The token that gives a waiter the watch: its name from then on, where it waits, and the ms until the next is due."""


def is_oversize(error: ProtocolError) -> bool:
    """Return whether a reply was refused for its size alone."""
    return isinstance(error.__cause__, OversizeError)


class _LinkWait:
    """A wait of the server's on a connection of its own, which can be interrupted: what the two waiters share."""

    MARGIN: Final = 2.0
    """Seconds that the server may be late with an empty reply; at most `timeout`."""

    def __init__(self, executor: Executor, near: str) -> None:
        self._executor = executor
        self._near = near  # the key for whose node the link is
        self._link: Link | None = None
        self._cut: Link | None = None  # the link that was interrupted
        self._used = 0.0
        self._margin = min(self.MARGIN, executor.settings.timeout)
        self._interrupted = False

    async def _wait(
        self, once: Callable[[Any, float], Awaitable[T]], position: Any, until: float, oversize: T
    ) -> T | None:
        """Wait once on the server; return None if the wait is interrupted.

        Arguments:
            once: Waits.
            position: Its first argument.
            until: Its second argument, when the wait ends.
            oversize: The result if something came that is too large for a reply.
        """
        try:
            return None if self._interrupted else await once(position, until)
        except (BackendError, ClosedError) as error:
            link = await self._drop()
            if self._interrupted or (link is not None and link is self._cut):
                return None
            if isinstance(error, ProtocolError) and is_oversize(error):
                return oversize
            raise
        except BaseException:  # cancelled: the reply still comes, and must reach no other call
            await self._drop()
            raise
        finally:
            self._interrupted = False

    async def _exchange(self, until: float, command: Callable[[float], Command]) -> Any:
        """Send a command that blocks, made for the seconds that are left; return the reply, None if time ran out."""
        link = await self._working_link()
        now = SystemClock.wait_time()
        if now >= until:  # connecting took all of the time
            return None
        self._used = now
        await link.send([command(until - now)])
        if self._interrupted:  # between the check above and the time when the link could be interrupted
            raise ClosedError("interrupted")
        replies = await link.receive(until + self._margin - SystemClock.wait_time())
        if not replies:
            raise BackendTimeoutError(f"{self._executor.where} did not reply in time", maybe_applied=True)
        if isinstance(replies[0], Exception):
            raise mapped(replies[0], self._executor.where, sent=True)
        return replies[0]

    async def _working_link(self) -> Link:
        """Return the link; after a long idle time, check it by a PING, as a firewall may have forgotten it."""
        link = self._link
        if link is not None and link is self._cut:
            await self._drop()
            link = None
        if link is not None and SystemClock.wait_time() - self._used >= IDLE:
            try:
                await link.send([("PING",)])
                if await link.receive(self._margin):
                    return link
            except BackendError:
                pass
            await self._drop()
            link = None
        if link is None:
            link = self._link = await self._executor.link(self._near)
        return link

    def interrupt(self) -> None:
        self._interrupted = True
        link = self._link
        if link is not None:
            self._cut = link
            link.interrupt()

    async def close(self) -> None:
        await self._drop()

    async def _drop(self) -> Link | None:
        """Close the link, and return it."""
        link, self._link = self._link, None
        if link is not None:
            await link.close()
        return link


class RedisWaiter(_LinkWait, Waiter):
    """Blocks in XREAD on the stream and the group's wake-up stream; without a group, so it takes no message.

    Of a group's waiters only one does so: it has the watch. The others sleep in BLPOP until they are given the watch,
    or are told to fetch; see ``watch.lua``.

    Attributes:
        name: The name under which it has the watch, or asks for it.
        wake: The key of the tokens that wake it; None without a group.
    """

    def __init__(self, executor: Executor, keys: Keys, stream: str, group: str | None) -> None:
        self._stream = keys.stream(stream)
        super().__init__(executor, self._stream)
        self._group = group
        self._keys = None if group is None else keys.group(stream, group)
        self.wake = None if group is None else keys.wake(stream, group)
        self.name = secrets.token_hex(6)
        self._given: tuple[str, str] | None = None  # the position that came with the watch
        self._due = math.inf  # when the next message of the group is due, if it was given the watch
        self._alive = 0.0
        self._watches_until = 0.0
        self._asleep = False

    # --- the watch -----------------------------------------------------------------------------------------------

    def told(self, name: str, position: Any, alive: float, seconds: float) -> None:
        """Note the result of a fetch under `name`: whether this waiter has the watch. Its times are as for `fetch`."""
        self._alive = alive
        if name != self.name:  # meanwhile it was given the watch, under another name
            return
        self._given = None
        self._watches_until = 0.0
        if position is not None and position != SLEEPS:
            *_, others_sleep = position
            seconds += LAPSE if others_sleep else 0.0
            self._watches_until = SystemClock.wait_time() + min(WATCH * alive, seconds)
            if self._asleep:  # for another consumer of this process: now it has to watch
                self.interrupt()

    def _take(self, token: bytes) -> bool:
        """Take a token; return whether it says to fetch now."""
        given = _GIVEN.fullmatch(token.decode(errors="replace"))
        if given is None:
            return True
        self.name, last, rung, due = given.groups()
        self._given = (last, rung)
        now = SystemClock.wait_time()
        self._due = math.inf if due == "-1" else now + int(due) / 1000
        self._watches_until = now + WATCH * self._alive
        return False

    async def hand_over(self, position: Any) -> Any:
        if self._keys is None or self.wake is None or SystemClock.wait_time() >= self._watches_until:
            return position
        self._watches_until = 0.0
        arguments = (self._group, self.name, to_ms(self._alive))
        handed = await HAND_OVER.run(self._executor, (*self._keys, self.wake), arguments, as_flag)
        if handed:
            self._given = None
        return SLEEPS if handed else position

    # --- waiting -------------------------------------------------------------------------------------------------

    async def wait(self, position: Any, timeout: float) -> bool:
        until = SystemClock.wait_time() + timeout
        if position != SLEEPS:
            return bool(await self._wait(self._read, position, until, oversize=True))
        if self._given is None and await self._wait(self._pop, None, until, oversize=True):
            return True
        if self._given is None:
            return False
        came = await self._wait(self._read, self._given, min(until, self._due), oversize=True)
        if came or SystemClock.wait_time() >= self._due:
            self._given = None
            return True
        return False

    async def _read(self, position: Any, until: float) -> bool:
        """Wait for an entry after a position: of the stream, or of the stream and the wake-up stream."""
        last, rung, *_ = (position, None) if isinstance(position, str) else position
        keys, ids = [self._stream], ["0-0" if last == EARLIEST else last]
        if self._keys is not None and rung is not None:
            keys.append(self._keys.bell)
            ids.append(rung)
        reply = await self._exchange(
            until, lambda left: ("XREAD", "COUNT", 1, "BLOCK", max(1, to_ms(left)), "STREAMS", *keys, *ids)
        )
        return reply is not None

    async def _pop(self, _: Any, until: float) -> bool:
        """Sleep until a token comes; return whether it says to fetch now."""
        self._asleep = True
        try:
            reply = await self._exchange(until, lambda left: ("BLPOP", self.wake, f"{max(0.001, left):.3f}"))
        finally:
            self._asleep = False
        return reply is not None and self._take(reply[1])


class RedisStreamsWaiter(_LinkWait, StreamsWaiter):
    """Blocks in one XREAD on several streams and, with a group, on its wake-up stream in each of them.

    Every waiter does so, in each process: there is no watch to hand over.
    """

    def __init__(self, executor: Executor, keys: Keys, streams: Sequence[str], group: str | None) -> None:
        self._streams = [keys.stream(each) for each in streams]
        self._bells = [] if group is None else [keys.group(each, group).bell for each in streams]
        self._index = {key.encode(): at for names in (self._streams, self._bells) for at, key in enumerate(names)}
        super().__init__(executor, self._streams[0])

    async def wait(self, positions: Sequence[Any], timeout: float) -> Collection[int]:
        until = SystemClock.wait_time() + timeout
        return await self._wait(self._read, positions, until, range(len(self._streams))) or ()

    async def _read(self, positions: Sequence[Any], until: float) -> Collection[int]:
        """Wait for an entry after the position of any stream; return the indices of these streams."""
        pairs = [(each, "0-0") if isinstance(each, str) else each[:2] for each in positions]
        keys = (*self._streams, *self._bells)
        ids = ["0-0" if last == EARLIEST else last for last, _ in pairs]
        ids += [rung for _, rung in pairs] if self._bells else []
        reply = await self._exchange(
            until, lambda left: ("XREAD", "COUNT", 1, "BLOCK", max(1, to_ms(left)), "STREAMS", *keys, *ids)
        )
        try:
            return {self._index[key] for key, _ in reply or ()}
        except MISREAD as error:
            raise misread(error, self._executor.where) from error
