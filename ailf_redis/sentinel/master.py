"""The master that Sentinels name: connections to it, and the end of those to a former one.

A connection is made to the server that the Sentinel with the newest configuration names, and only if that server says
itself (ROLE) that it is a master. When the master changes, all connections to the former one end, those of calls under
way too: it may be alive, and take writes that will be lost.
"""

import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError

from ailf.runtime import Runtime
from ailf_redis.connection.endpoint import Address, Endpoint, hang_up
from ailf_redis.connection.exchange import Port, port_of
from ailf_redis.connection.executor import Executor, Link, LinkAround
from ailf_redis.connection.resp import Command
from ailf_redis.errors import BROKEN
from ailf_redis.sentinel.endpoint import MasterState, SentinelEndpoint, ask, is_master
from ailf_redis.sentinel.subscriptions import FAILURES, Poller, Subscriptions

__all__ = ["MasterTracker"]

log = logging.getLogger("ailf.redis")

QUIET: Final = 10.0
"""Seconds after which an idle connection is asked for its ROLE before it is used."""

SLICE: Final = 0.25
"""Seconds after which a wait on a dedicated connection looks whether the master has changed."""


class MasterTracker(Endpoint):
    """Connections of one executor to the master, whichever server that is.

    Arguments:
        origin: The Sentinels and the master's name.
        executor: The executor that uses the connections.
        runtime: Its runtime.
        leave: Ends the executor's connections for calls, from any of its threads, because the master has changed.
    """

    def __init__(
        self, endpoint: SentinelEndpoint, executor: Executor, runtime: Runtime, leave: Callable[[], None]
    ) -> None:
        self.where = endpoint.where
        self._endpoint = endpoint
        self._executor = executor
        self._runtime = runtime
        self._leave = leave
        self._subscriptions = Subscriptions(endpoint, executor, runtime, self._heard, self._told)
        self._epoch = 0
        self._begin()

    def _begin(self) -> None:
        self._guard = self._runtime.guard()
        self._master: Address | None = None
        self._announced: Address | None = None
        self._changes = 0
        # The connections to the present master, each with what waits for its replies on threads, after its first one.
        self._held: weakref.WeakKeyDictionary[Any, Poller | None] = weakref.WeakKeyDictionary()

    # --- connecting ----------------------------------------------------------------------------------------------

    async def connect(self) -> Any:
        """Return a new connection to the master, which has confirmed that it is one.

        Raises:
            RedisError, OSError: It can't be made; nothing is left of it.
        """
        await self._subscriptions.look_after()
        changes = self._changes
        host, port = await self._address()
        connection = await self._endpoint.master.at((self._endpoint.forced_host or host, port)).connect()
        try:
            confirmed = await is_master(port_of(connection), self._executor.settings.timeout)
        except BaseException:
            await hang_up(connection)
            raise
        with self._guard:
            if confirmed and changes == self._changes:
                self._held[connection] = None
                return connection
        await hang_up(connection)
        why = "the master has just changed" if confirmed else f"{host}:{port}, which a Sentinel named, is a replica"
        raise RedisConnectionError(why)

    async def _address(self) -> Address:
        """Ask the Sentinels; believe one whose configuration is not older than what is known already.

        Just after a failover one Sentinel may still name the former master, and one that knows better may not yet have
        reached the new one. While that is so for all that know better, nobody is believed.
        """
        changes = self._changes
        states: list[MasterState] = []
        for sentinel in self._subscriptions.sentinels():
            try:
                state = await ask(sentinel, self._endpoint.service)
            except BROKEN:
                continue
            if state is None:
                continue
            states.append(state)
            if state.epoch >= self._epoch and self._believable(state):
                self._subscriptions.prefer(sentinel)
                break
        newest = max((each.epoch for each in states), default=0)
        found = next((each for each in states if each.epoch == newest and self._believable(each)), None)
        if found is None:
            raise RedisConnectionError(f"no Sentinel knows a healthy master {self._endpoint.service!r}")
        with self._guard:
            if changes == self._changes:  # else what was said may be of before the change
                self._epoch, self._master, self._announced = found.epoch, found.address, None
        return found.address

    def _believable(self, state: MasterState) -> bool:
        return state.healthy and state.peers >= self._endpoint.peers

    # --- using connections ---------------------------------------------------------------------------------------

    async def leads_to_master(self, connection: Any, port: Port, until: float) -> bool:
        """Tell, before a call, whether a connection leads to the master; one that was idle for long is asked.

        Arguments:
            connection: The connection.
            port: What sends and receives over it.
            until: When the call has to end, on the runtime's clock.
        """
        if self._subscriptions.has_news():
            await self._subscriptions.attend()
        now = self._runtime.now()
        if connection in self._held and now - port.used > QUIET:
            try:
                if not await is_master(port, (until - now) / 2):  # the other half is for a new connection and the call
                    return False
            except FAILURES:
                return False
        return connection in self._held

    async def wait_for_reply(self, connection: Any, sock: Any, until: float) -> None:
        """On threads, return when something arrives at the connection's `sock`; look at the Sentinels meanwhile.

        A change of the master ends the connection, so that the caller finds it broken.

        Raises:
            TimeoutError: Nothing arrives until then.
        """
        if sock is None:  # closed by another thread
            return
        poller = self._held.get(connection) or self._watched(connection, sock)
        here = sock.fileno()
        while (left := until - self._runtime.now()) > 0:
            ready = poller.poll(left * 1000)
            arrived = any(descriptor == here for descriptor, _ in ready)
            if len(ready) > arrived:
                await self._subscriptions.read()
            if arrived or connection not in self._held:
                return
        raise TimeoutError("the server is silent")

    def _watched(self, connection: Any, sock: Any) -> Poller:
        poller = Poller(self._subscriptions, sock)
        with self._guard:
            if connection in self._held:  # else it has ended, and is not used again
                self._held[connection] = poller
        return poller

    def link(self, link: Link, connection: Any) -> Link:
        """Return a dedicated connection that is lost when the master changes."""
        return _MasterLink(self, link, connection)

    async def look(self, connection: Any) -> None:
        """Take note of what the Sentinels have published, and then `check`."""
        if self._subscriptions.has_news():
            await self._subscriptions.attend()
        self.check(connection)

    def check(self, connection: Any) -> None:
        """Raise the error of a broken connection where the master has changed since it was made."""
        if connection not in self._held:
            raise self._executor.lost(ConnectionError("the master has changed"), sent=True)

    # --- changes -------------------------------------------------------------------------------------------------

    def _heard(self, address: Address) -> None:
        """Take note of what a Sentinel has published; each of them publishes each change once."""
        if address not in (self._master, self._announced):
            self._change(address, self._epoch + 1)

    def _told(self, state: MasterState) -> None:
        """Take note of a change that was published while nobody listened."""
        if state.epoch >= self._epoch and self._master not in (None, state.address):
            self._change(state.address, state.epoch)

    def _change(self, address: Address, epoch: int) -> None:
        """Leave the former master; the next connection asks who the new one is, in this configuration or a newer one.

        The address is not believed: messages of a Sentinel that lags behind may come out of order.
        """
        with self._guard:
            self._changes += 1
            before, self._master, self._announced, self._epoch = self._master, None, address, epoch
            self._held = weakref.WeakKeyDictionary()
        if before is not None:
            log.warning("%s: the master is %s:%d now, and no longer %s:%d", self.where, *address, *before)
        self._leave()

    # --- the end -------------------------------------------------------------------------------------------------

    def move(self, *, forked: bool) -> None:
        """Begin anew in a forked child, or in another event loop when the one before has ended."""
        self._subscriptions.move(forked=forked)
        self._begin()

    async def close(self) -> None:
        """Give back the subscriptions."""
        await self._subscriptions.close()


class _MasterLink(LinkAround):
    """A dedicated connection to the master: it is lost when another server becomes the master."""

    def __init__(self, tracker: MasterTracker, link: Link, connection: Any) -> None:
        super().__init__(link)
        self._tracker = tracker
        self._connection = connection

    async def send(self, commands: Sequence[Command]) -> None:
        await self._tracker.look(self._connection)
        await super().send(commands)

    async def receive(self, timeout: float) -> list[Any]:
        while True:
            await self._tracker.look(self._connection)
            part = min(timeout, SLICE)
            replies = await super().receive(part)
            timeout -= part
            if replies or timeout <= 0:
                return replies
