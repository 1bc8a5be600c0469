"""The subscriptions of an executor to what Sentinels publish.

The rule of this file: looking after the subscriptions takes at most about `PATIENCE` seconds of a call, whatever the
Sentinels do.
"""

import asyncio
import logging
import select
import threading
from collections.abc import Callable
from typing import Any, Final

from ailf.errors import BackendError, ClosedError
from ailf.runtime import Runtime
from ailf.runtime.aio import start_task
from ailf_redis.connection.aio_link import LoopLink
from ailf_redis.connection.blocking_link import ThreadLink
from ailf_redis.connection.endpoint import Address, ServerEndpoint
from ailf_redis.connection.executor import Executor, Link
from ailf_redis.errors import BROKEN
from ailf_redis.sentinel.endpoint import SWITCHES, MasterState, SentinelEndpoint, new_master, questions

__all__ = ["FAILURES", "Poller", "Subscriptions"]

log = logging.getLogger("ailf.redis")

QUIET: Final = 10.0
"""Seconds after which a Sentinel that has said nothing is asked for a PONG."""

PATIENCE: Final = 1.0
"""Seconds that a Sentinel has to accept a subscription, or to answer a PING."""

LONG: Final = 0.25
"""Seconds of a call after which the next one goes on with looking after the subscriptions."""

PAUSES: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before the next try to subscribe, by how often it has failed before."""

FAILURES: Final = (*BROKEN, BackendError, ClosedError)
"""The errors of a Sentinel, or of the master, that doesn't answer or refuses."""


class _Subscription:
    """One Sentinel, and the subscription to it while there is one.

    Attributes:
        sentinel: The Sentinel.
        link: The subscribed connection.
        due: When to look after it: to subscribe, to send a PING, or to give it up.
        pinged: Whether a PING is unanswered.
        failures: How often in a row subscribing has failed.
    """

    def __init__(self, sentinel: ServerEndpoint) -> None:
        self.sentinel = sentinel
        self.link: Link | None = None
        self.due = 0.0
        self.pinged = False
        self.failures = 0


class _LoopSubscription(LoopLink):
    """On asyncio what arrives is handled at once, when `follow` is set: nobody has to look.

    Attributes:
        follow: Gets the replies, or None when the connection is lost.
    """

    follow: Callable[[list[Any] | None], None] | None = None

    def take(self, replies: list[Any]) -> None:
        if self.follow is None:
            super().take(replies)
        else:
            self._size = 0
            self.follow(replies)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.follow is not None:
            self.follow(None)


class Poller:
    """Tells on threads from which subscriptions something can be read; it serves one thread at a time.

    Arguments:
        subscriptions: The subscriptions.
        sock: A socket to watch beside them.
    """

    def __init__(self, subscriptions: "Subscriptions", sock: Any = None) -> None:
        self._subscriptions = subscriptions
        self._sock = sock
        self._version: object = None

    def poll(self, milliseconds: float) -> list[tuple[int, int]]:
        """Return the descriptors, with events, from which something can be read, or that have ended."""
        version = self._subscriptions.version
        if version is not self._version:
            self._poll = select.poll()
            for each in (self._sock, *self._subscriptions.links()):
                descriptor = -1 if each is None else each.fileno()
                if descriptor >= 0:  # another thread may just have closed it
                    self._poll.register(descriptor, select.POLLIN)
            self._version = version
        return self._poll.poll(milliseconds)


class Subscriptions:
    """Subscriptions of one executor to ``+switch-master`` on all Sentinels: any of them may be the first to know.

    Nothing runs beside calls: each call looks. On threads it then reads what has arrived, and subscribes again where a
    subscription has ended; on asyncio what arrives is handled as it arrives, and a task subscribes.

    Arguments:
        origin: The Sentinels, and the master's name.
        executor: The executor.
        runtime: Its runtime.
        heard: Gets the address of each new master that is published.
        told: Gets the master's state when a subscription is made: what was published before it was not heard.

    Attributes:
        version: Another object after each change of `links`.
    """

    def __init__(
        self,
        endpoint: SentinelEndpoint,
        executor: Executor,
        runtime: Runtime,
        heard: Callable[[Address], None],
        told: Callable[[MasterState], None],
    ) -> None:
        self._endpoint = endpoint
        self._executor = executor
        self._runtime = runtime
        self._heard = heard
        self._told = told
        self._on_asyncio = runtime.flavour == "asyncio"
        self._inherited: list[Link] = []  # a parent's: to be neither used nor collected
        self._begin()

    def _begin(self) -> None:
        self._guard = self._runtime.guard()
        self._all = [_Subscription(each) for each in self._endpoint.sentinels]
        self.version = object()
        self._pollers = threading.local()
        self._due = 0.0
        self._tending = False
        self._task: asyncio.Task[None] | None = None
        self._deaf = False

    def sentinels(self) -> list[ServerEndpoint]:
        """Return the Sentinels in the order in which to ask them: those that live first, then by `prefer`."""
        return [each.sentinel for each in sorted(self._all, key=lambda each: each.link is None)]

    def prefer(self, sentinel: ServerEndpoint) -> None:
        """Ask this Sentinel first from now on."""
        # In one step: other threads look through the list.
        self._all = sorted(self._all, key=lambda each: each.sentinel is not sentinel)

    def links(self) -> list[Any]:
        """Return the subscribed connections; on threads they can be polled."""
        return [link for each in self._all if (link := each.link) is not None]

    def has_news(self) -> bool:
        """Tell at once whether `attend` has something to do; each call asks."""
        if not self._on_asyncio:
            try:
                poller = self._pollers.poller
            except AttributeError:
                poller = self._pollers.poller = Poller(self)
            if poller.poll(0):
                return True
        return self._runtime.now() >= self._due

    async def attend(self) -> None:
        """Handle what has arrived, and look after the subscriptions where one is due."""
        if not self._on_asyncio:
            await self.read()
        if self._runtime.now() >= self._due:
            await self.look_after()

    async def read(self) -> None:
        """On threads, handle what has arrived."""
        for each in self._all:
            if (link := each.link) is None:
                continue
            try:
                replies = await link.receive(0)
            except FAILURES:
                await self._end(each, link)
            else:
                self._handle(each, replies)

    def _handle(self, subscription: _Subscription, replies: list[Any]) -> None:
        if replies:
            subscription.pinged = False
            subscription.due = self._runtime.now() + QUIET
        for reply in replies:
            address = new_master(reply, self._endpoint.service)
            if address is not None:
                self.prefer(subscription.sentinel)  # another one may still name the former master
                self._heard(address)

    # --- looking after them --------------------------------------------------------------------------------------

    async def look_after(self) -> None:
        """Subscribe, and find out which Sentinel is silent: one call does it, and others pass by meanwhile."""
        with self._guard:
            if self._tending or self._executor.closed or self._runtime.now() < self._due:
                return
            self._tending = True
        if self._on_asyncio:
            self._task = start_task(self._tend())
        else:
            await self._tend()

    async def _tend(self) -> None:
        begin = self._runtime.now()
        try:
            for each in self._all:
                now = self._runtime.now()
                if now - begin > LONG or self._executor.closed:
                    break
                if now >= each.due:
                    await self._tend_one(each)
            with self._guard:
                self._due = min((each.due for each in self._all), default=float("inf"))
            self._say_whether_deaf()
        finally:
            self._tending = False

    async def _tend_one(self, subscription: _Subscription) -> None:
        link = subscription.link
        if link is None:
            await self._subscribe(subscription)
        elif subscription.pinged:
            await self._end(subscription, link)
            await self._subscribe(subscription)
        else:
            subscription.pinged, subscription.due = True, self._runtime.now() + PATIENCE
            try:
                await link.send([("PING",)])
            except FAILURES:
                await self._end(subscription, link)

    async def _subscribe(self, subscription: _Subscription) -> None:
        try:
            link, replies = await self._subscribed(subscription.sentinel)
        except FAILURES as error:
            log.debug("can't subscribe to the Sentinel %s: %s", subscription.sentinel.where, error)
            subscription.due = self._runtime.now() + PAUSES[min(subscription.failures, len(PAUSES) - 1)]
            subscription.failures += 1
            return
        subscription.failures = 0
        subscription.pinged = False
        subscription.due = self._runtime.now() + QUIET
        subscription.link, self.version = link, object()
        if isinstance(link, _LoopSubscription):
            link.follow = self._follower(subscription, link)
        state = MasterState.of(replies[0], replies[1])
        if state is not None:
            self._told(state)
        self._handle(subscription, replies[3:])
        if self._executor.closed:  # while it was being made
            await self._end(subscription, link)

    async def _subscribed(self, sentinel: ServerEndpoint) -> tuple[Link, list[Any]]:
        """Return a subscribed connection, and what has arrived on it: the replies to `questions` first.

        The master's state is asked for in the same write, which the Sentinel reads at once. So no change can fall
        between the state and the first message.
        """
        connection = await sentinel.within(PATIENCE).connect()
        kind: Callable[[Executor, Any], Link] = _LoopSubscription if self._on_asyncio else ThreadLink
        link = kind(self._executor, connection)
        try:
            commands = [*questions(self._endpoint.service), ("SUBSCRIBE", SWITCHES)]
            await link.send(commands)
            return link, await _received(link, len(commands), self._runtime)
        except BaseException:
            await link.close()
            raise

    def _follower(self, subscription: _Subscription, link: Link) -> Callable[[list[Any] | None], None]:
        """Return what handles on asyncio what arrives."""

        def follow(replies: list[Any] | None) -> None:
            if replies is None:
                self._lose(subscription, link)
            elif subscription.link is link:
                self._handle(subscription, replies)

        return follow

    def _lose(self, subscription: _Subscription, link: Link) -> None:
        """Subscribe anew with the next call."""
        with self._guard:
            if subscription.link is link:  # else another thread was quicker
                subscription.link, self.version = None, object()
                subscription.due = self._due = self._runtime.now()

    async def _end(self, subscription: _Subscription, link: Link) -> None:
        self._lose(subscription, link)
        await link.close()

    def _say_whether_deaf(self) -> None:
        """Log when the last subscription has ended, and when there is one again."""
        deaf = all(each.link is None and each.failures for each in self._all)
        if deaf and not self._deaf:
            log.warning(
                "%s: no Sentinel can be subscribed to; a change of the master may be noticed late", self._endpoint.where
            )
        elif self._deaf and not deaf:
            log.warning("%s: a Sentinel can be subscribed to again", self._endpoint.where)
        self._deaf = deaf

    # --- the end -------------------------------------------------------------------------------------------------

    def move(self, *, forked: bool) -> None:
        """Begin anew in a forked child, or in another event loop when the one before has ended."""
        for link in self.links():
            if forked:
                self._inherited.append(link)
            else:
                link.drop()
        self._begin()

    async def close(self) -> None:
        """Give them back. The executor is closed, so none is made any more."""
        until = self._runtime.now() + 2 * PATIENCE
        while self._tending and self._runtime.now() < until:
            await self._runtime.event().wait(0.001)
        for each in self._all:
            if each.link is not None:
                await self._end(each, each.link)


async def _received(link: Link, count: int, runtime: Runtime) -> list[Any]:
    """Return at least `count` replies, of which the last must be no error."""
    replies: list[Any] = []
    until = runtime.now() + PATIENCE
    while len(replies) < count:
        arrived = await link.receive(max(0.0, until - runtime.now()))
        if not arrived:
            raise TimeoutError("it did not answer in time")
        replies += arrived
    if isinstance(replies[count - 1], Exception):
        raise replies[count - 1]
    return replies
