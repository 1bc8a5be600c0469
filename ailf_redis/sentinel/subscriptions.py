"""The subscriptions of an executor to ``+switch-master`` on its Sentinels.

The rule of this file: a call spends at most the seconds that it allows, and at most `PATIENCE`, on maintaining the
subscriptions, even if all Sentinels are silent.
"""

import asyncio
import select
import threading
from collections.abc import Callable
from typing import Any, Final

from ailf.errors import BackendError, ClosedError
from ailf.logs import About, Log
from ailf.runtime import Runtime
from ailf.runtime.aio import start_task
from ailf_redis.connection.aio_link import LoopLink
from ailf_redis.connection.blocking_link import ThreadLink
from ailf_redis.connection.endpoint import Address, ServerEndpoint
from ailf_redis.connection.executor import Executor, Link
from ailf_redis.errors import BROKEN
from ailf_redis.sentinel.endpoint import SWITCHES, MasterState, SentinelEndpoint, new_master, state_requests

__all__ = ["FAILURES", "PATIENCE", "Poller", "Subscriptions"]

log = Log("ailf.redis")

QUIET: Final = 10.0
"""Seconds of silence after which a Sentinel gets a PING."""

PATIENCE: Final = 1.0
"""The most seconds that a Sentinel has to name the master, to accept a subscription, or to reply to a PING."""

LONG: Final = 0.25
"""Seconds of maintenance in one call, after which it is left to the next call."""

PAUSES: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before the next try to subscribe, by the number of failures before."""

FAILURES: Final = (*BROKEN, BackendError, ClosedError)
"""The errors of a Sentinel or a master that doesn't reply, or refuses."""


class _Subscription:
    """One Sentinel, and the subscription to it while there is one.

    Attributes:
        sentinel: The Sentinel.
        link: The subscribed connection, or None.
        due: When it needs maintenance: to subscribe, to send a PING, or to give it up.
        pinged: Whether it waits for the reply to a PING.
        failures: How many tries to subscribe have failed in a row.
    """

    def __init__(self, sentinel: ServerEndpoint) -> None:
        self.sentinel = sentinel
        self.link: Link | None = None
        self.due = 0.0
        self.pinged = False
        self.failures = 0


class _LoopSubscription(LoopLink):
    """A subscribed link on asyncio; once `follow` is set, replies are handled as they arrive.

    Attributes:
        follow: Called with the replies, or with None when the connection is lost.
    """

    follow: Callable[[list[Any] | None], None] | None = None

    def handle_replies(self, replies: list[Any]) -> None:
        if self.follow is None:
            super().handle_replies(replies)
        else:
            self._size = 0
            self.follow(replies)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.follow is not None:
            self.follow(None)


class Poller:
    """Polls the subscriptions, on threads; each thread needs a poller of its own.

    Arguments:
        subscriptions: The subscriptions.
        sock: A further socket to poll with them.
    """

    def __init__(self, subscriptions: "Subscriptions", sock: Any = None) -> None:
        self._subscriptions = subscriptions
        self._sock = sock
        self._version: object = None

    def poll(self, milliseconds: float) -> list[tuple[int, int]]:
        """Return the descriptors, with events, that can be read or have been closed."""
        version = self._subscriptions.version
        if version is not self._version:
            self._poll = select.poll()
            for each in (self._sock, *self._subscriptions.links()):
                descriptor = -1 if each is None else each.fileno()
                if descriptor >= 0:  # -1: another thread has just closed it
                    self._poll.register(descriptor, select.POLLIN)
            self._version = version
        return self._poll.poll(milliseconds)


class Subscriptions:
    """One executor's subscriptions to ``+switch-master`` on all Sentinels: any of them may publish a change first.

    No thread runs for it; calls do the work. On threads a call reads the messages that have arrived, and renews broken
    subscriptions. On asyncio messages are handled as they arrive, and a call starts a task that renews.

    Arguments:
        endpoint: The Sentinels, and the master's name.
        executor: The executor.
        runtime: Its runtime.
        on_switch: Called with the address of each new master that is published.
        on_state: Called with the master's state at each new subscription, since earlier messages were missed.

    Attributes:
        version: An object that is replaced at each change of `links`.
    """

    def __init__(
        self,
        endpoint: SentinelEndpoint,
        executor: Executor,
        runtime: Runtime,
        on_switch: Callable[[Address], None],
        on_state: Callable[[MasterState], None],
    ) -> None:
        self._endpoint = endpoint
        self._executor = executor
        self._runtime = runtime
        self._on_switch = on_switch
        self._on_state = on_state
        self._on_asyncio = runtime.flavour == "asyncio"
        self._inherited: list[Link] = []  # the parent's: kept alive, as collecting them would close them
        self._begin()

    def _begin(self) -> None:
        self._guard = self._runtime.guard()
        self._all = [_Subscription(each) for each in self._endpoint.sentinels]
        self.version = object()
        self._pollers = threading.local()
        self._due = 0.0
        self._maintaining = False
        self._task: asyncio.Task[None] | None = None
        self._unsubscribed = False

    def sentinels(self) -> list[ServerEndpoint]:
        """Return the Sentinels in the order in which to ask them: subscribed ones first, then as `prefer` says."""
        return [each.sentinel for each in sorted(self._all, key=lambda each: each.link is None)]

    def prefer(self, sentinel: ServerEndpoint) -> None:
        """Ask this Sentinel first from now on."""
        # The list is replaced in one step, as other threads may iterate over it.
        self._all = sorted(self._all, key=lambda each: each.sentinel is not sentinel)

    def links(self) -> list[Any]:
        """Return the subscribed connections."""
        return [link for each in self._all if (link := each.link) is not None]

    def has_news(self) -> bool:
        """Return, without waiting, whether `attend` has something to do; each call checks it."""
        if not self._on_asyncio:
            try:
                poller = self._pollers.poller
            except AttributeError:
                poller = self._pollers.poller = Poller(self)
            if poller.poll(0):
                return True
        return self._runtime.now() >= self._due

    async def attend(self, patience: float) -> None:
        """Handle the messages that have arrived; then `maintain` the subscriptions if one is due."""
        if not self._on_asyncio:
            await self.read()
        if self._runtime.now() >= self._due:
            await self.maintain(patience)

    async def read(self) -> None:
        """On threads, handle the messages that have arrived."""
        for each in self._all:
            if (link := each.link) is None:
                continue
            try:
                replies = await link.receive(0)
            except FAILURES:
                await self._close_link(each, link)
            else:
                self._handle(each, replies)

    def _handle(self, subscription: _Subscription, replies: list[Any]) -> None:
        if replies:
            subscription.pinged = False
            subscription.due = self._runtime.now() + QUIET
        for reply in replies:
            address = new_master(reply, self._endpoint.service)
            if address is not None:
                self.prefer(subscription.sentinel)  # other Sentinels may still name the former master
                self._on_switch(address)

    # --- maintenance ---------------------------------------------------------------------------------------------

    async def maintain(self, patience: float) -> None:
        """Subscribe where a subscription is missing, and find silent Sentinels; other calls go on meanwhile.

        Arguments:
            patience: The most seconds that it takes on threads; on asyncio a task does it, and the call doesn't wait.
        """
        if not self._on_asyncio and patience <= 0:
            return
        with self._guard:
            if self._maintaining or self._executor.closed or self._runtime.now() < self._due:
                return
            self._maintaining = True
        if self._on_asyncio:
            self._task = start_task(self._maintain(PATIENCE))
            self._task.add_done_callback(self._ended)
        else:
            await self._maintain(min(PATIENCE, patience))

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if task is self._task:  # it may have been cancelled before its first step
            self._maintaining = False

    async def _maintain(self, patience: float) -> None:
        begin = self._runtime.now()
        until = begin + patience
        try:
            for each in self._all:
                now = self._runtime.now()
                if now - begin > LONG or now >= until or self._executor.closed:
                    break
                if now >= each.due:
                    await self._maintain_one(each, until)
            with self._guard:
                self._due = min((each.due for each in self._all), default=float("inf"))
            self._log_outage()
        finally:
            self._maintaining = False

    async def _maintain_one(self, subscription: _Subscription, until: float) -> None:
        link = subscription.link
        if link is None:
            await self._subscribe(subscription, until)
        elif subscription.pinged:
            await self._close_link(subscription, link)
            await self._subscribe(subscription, until)
        else:
            subscription.pinged, subscription.due = True, self._runtime.now() + PATIENCE
            try:
                await link.send([("PING",)])
            except FAILURES:
                await self._close_link(subscription, link)

    async def _subscribe(self, subscription: _Subscription, until: float) -> None:
        try:
            link, replies = await self._open(subscription.sentinel, until)
        except FAILURES as error:
            log.debug(self._about(), "can't subscribe to the Sentinel %s: %s", subscription.sentinel.where, error)
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
            self._on_state(state)
        self._handle(subscription, replies[3:])
        if self._executor.closed:  # while it was being made
            await self._close_link(subscription, link)

    async def _open(self, sentinel: ServerEndpoint, until: float) -> tuple[Link, list[Any]]:
        """Return a subscribed connection, and the replies that have arrived: first those to `state_requests`.

        The requests for the master's state and the SUBSCRIBE are one write. So no change is lost between the state and
        the first message.
        """
        connection = await sentinel.within(until - self._runtime.now()).connect()
        kind: Callable[[Executor, Any], Link] = _LoopSubscription if self._on_asyncio else ThreadLink
        link = kind(self._executor, connection)
        try:
            commands = [*state_requests(self._endpoint.service), ("SUBSCRIBE", SWITCHES)]
            with sentinel.pending.track(connection):
                await link.send(commands)
                return link, await _receive(link, len(commands), self._runtime, until)
        except BaseException:
            await link.close()
            raise

    def _follower(self, subscription: _Subscription, link: Link) -> Callable[[list[Any] | None], None]:
        """Return the function that handles replies as they arrive, on asyncio."""

        def follow(replies: list[Any] | None) -> None:
            if replies is None:
                self._forget_link(subscription, link)
            elif subscription.link is link:
                self._handle(subscription, replies)

        return follow

    def _forget_link(self, subscription: _Subscription, link: Link) -> None:
        """Forget a broken link; the next call subscribes again."""
        with self._guard:
            if subscription.link is link:  # else another thread was quicker
                subscription.link, self.version = None, object()
                subscription.due = self._due = self._runtime.now()

    async def _close_link(self, subscription: _Subscription, link: Link) -> None:
        self._forget_link(subscription, link)
        await link.close()

    def _log_outage(self) -> None:
        """Log when the last subscription has ended, and when there is one again."""
        unsubscribed = all(each.link is None and each.failures for each in self._all)
        if unsubscribed and not self._unsubscribed:
            log.warning(self._about(), "can't subscribe to any Sentinel; a change of the master may be noticed late")
        elif self._unsubscribed and not unsubscribed:
            log.warning(self._about(), "subscribed to a Sentinel again")
        self._unsubscribed = unsubscribed

    def _about(self) -> About:
        """Return the subject of a record of the log."""
        return About(self._endpoint.where, {"backend": self._endpoint.where})

    # --- closing -------------------------------------------------------------------------------------------------

    def move(self, *, forked: bool) -> None:
        """Reset the state in a forked child, or in the next event loop after the last one has ended."""
        for link in self.links():
            if forked:
                self._inherited.append(link)
            else:
                link.drop()
        self._begin()

    async def close(self) -> None:
        """Close the subscriptions. The executor is closed already, so no new one is made."""
        if self._task is not None:
            self._task.cancel()
        until = self._runtime.now() + PATIENCE
        while self._maintaining and self._runtime.now() < until:
            await self._runtime.event().wait(0.001)
        for each in self._all:
            if each.link is not None:
                await self._close_link(each, each.link)


async def _receive(link: Link, count: int, runtime: Runtime, until: float) -> list[Any]:
    """Wait for at least `count` replies and return them; raise the last of these `count` if it is an error."""
    replies: list[Any] = []
    while len(replies) < count:
        arrived = await link.receive(max(0.0, until - runtime.now()))
        if not arrived:
            raise TimeoutError("it did not reply in time")
        replies += arrived
    if isinstance(replies[count - 1], Exception):
        raise replies[count - 1]
    return replies
