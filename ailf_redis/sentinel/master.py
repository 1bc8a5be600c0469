"""Connections to the master that Sentinels name, and to no former one.

A connection goes to the server that the Sentinel with the newest configuration names, if that server confirms by ROLE
that it is a master. All of this has one deadline, and each step an even share of the time that is left, so that a
silent Sentinel leaves time for the others. When the master changes, all connections to the former one are closed, those
of pending calls too: the former master may be alive, and take writes that will be lost.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError

from ailf.logs import About, Log
from ailf.runtime import Runtime
from ailf.runtime.clock import SystemClock
from ailf_redis.connection.endpoint import Address, Endpoint, disconnect
from ailf_redis.connection.exchange import Port, port_of
from ailf_redis.connection.executor import Executor, Link, LinkAround
from ailf_redis.connection.resp import Command
from ailf_redis.errors import BROKEN, WrongTransportError
from ailf_redis.sentinel.endpoint import MasterState, SentinelEndpoint, ask, is_master
from ailf_redis.sentinel.subscriptions import FAILURES, PATIENCE, Poller, Subscriptions

__all__ = ["MasterTracker"]

log = Log("ailf.redis")

QUIET: Final = 10.0
"""Seconds of idleness after which a connection's server must confirm its ROLE before the connection is used."""

SLICE: Final = 0.25
"""Seconds after which a wait on a dedicated connection checks whether the master has changed."""


class MasterTracker(Endpoint):
    """Makes one executor's connections to the master, and closes them when the master changes.

    Arguments:
        endpoint: The Sentinels and the master's name.
        executor: The executor that uses the connections.
        runtime: Its runtime.
        leave: Closes the executor's connections for calls, from any of its threads.
    """

    def __init__(
        self, endpoint: SentinelEndpoint, executor: Executor, runtime: Runtime, leave: Callable[[], None]
    ) -> None:
        self.where = endpoint.where
        self._endpoint = endpoint
        self._executor = executor
        self._runtime = runtime
        self._leave = leave
        self._subscriptions = Subscriptions(endpoint, executor, runtime, self._on_switch, self._on_state)
        self._epoch = 0
        self._begin()

    def _begin(self) -> None:
        self._guard = self._runtime.guard()
        self._master: Address | None = None
        self._announced: Address | None = None
        self._changes = 0
        # The connections to the present master, each with its poller: on threads, once it has waited for a reply.
        self._held: weakref.WeakKeyDictionary[Any, Poller | None] = weakref.WeakKeyDictionary()

    # --- connecting ----------------------------------------------------------------------------------------------

    async def connect(self) -> Any:
        """Return a new connection to the master, which has confirmed its role.

        It takes at most the master's ``socket_connect_timeout`` in all, even if Sentinels are silent.

        Raises:
            RedisError, OSError: The connection can't be made; nothing of it stays open.
        """
        until = self._runtime.now() + self._endpoint.master.options["socket_connect_timeout"]
        await self._subscriptions.maintain(self._share(until, len(self._endpoint.sentinels) + 1))
        changes = self._changes
        host, port = await self._address(until)
        master = self._endpoint.master.at((self._endpoint.forced_host or host, port))
        connection = await master.within(self._share(until, 0)).connect()
        try:
            with master.pending.track(connection):
                confirmed = await is_master(port_of(connection), until)
        except BaseException:
            await disconnect(connection)
            raise
        with self._guard:
            if confirmed and changes == self._changes:
                self._held[connection] = None
                return connection
        await disconnect(connection)
        reason = "the master has just changed" if confirmed else f"{host}:{port}, which a Sentinel named, is a replica"
        raise RedisConnectionError(reason)

    def _share(self, until: float, others: int) -> float:
        """Return the seconds that one step may take, if `others` more steps follow.

        Raises:
            TimeoutError: No time is left.
        """
        left = until - self._runtime.now()
        if left <= 0:
            raise TimeoutError("the Sentinels took all of the time for a connection")
        return left / (others + 1)

    async def _address(self, until: float) -> Address:
        """Ask the Sentinels for the master; believe one whose configuration is not older than the newest known one.

        Just after a failover one Sentinel may still name the former master, and another may know the new one but not
        have reached it yet. If all Sentinels with the newest configuration are like that, none is believed.
        """
        changes = self._changes
        states: list[MasterState] = []
        sentinels = self._subscriptions.sentinels()
        for others, sentinel in zip(range(len(sentinels), 0, -1), sentinels, strict=True):
            try:
                state = await ask(sentinel, self._endpoint.service, min(PATIENCE, self._share(until, others)))
            except WrongTransportError:
                raise
            except BROKEN:
                continue
            if state is None:
                continue
            states.append(state)
            if state.epoch >= self._epoch and self._believable(state):
                self._subscriptions.prefer(sentinel)
                break
        newest = max((each.epoch for each in states), default=0)
        chosen = next((each for each in states if each.epoch == newest and self._believable(each)), None)
        if chosen is None:
            raise RedisConnectionError(f"no Sentinel knows a healthy master {self._endpoint.service!r}")
        with self._guard:
            if changes == self._changes:  # else the reply may be older than the change
                self._epoch, self._master, self._announced = chosen.epoch, chosen.address, None
        return chosen.address

    def _believable(self, state: MasterState) -> bool:
        return state.healthy and state.peers >= self._endpoint.peers

    # --- using connections ---------------------------------------------------------------------------------------

    async def leads_to_master(self, connection: Any, port: Port, until: float) -> bool:
        """Return, before a call, whether a connection leads to the master; after a long idle time, ask its server.

        Arguments:
            connection: The connection.
            port: The port over it.
            until: The end of the call's time, on the runtime's clock.
        """
        if self._subscriptions.has_news():
            await self._subscriptions.attend((until - self._runtime.now()) / 2)  # the other half is for the call
        now = self._runtime.now()
        if connection in self._held and now - port.used > QUIET:
            try:
                # The other half is for a new connection and the call.
                if not await is_master(port, now + (until - now) / 2):
                    return False
            except FAILURES:
                return False
        return connection in self._held

    async def wait_for_reply(self, connection: Any, sock: Any, until: float) -> None:
        """On threads, wait until something arrives on the connection's `sock`; read the subscriptions meanwhile.

        A change of the master closes the connection, and the caller finds it broken.

        Raises:
            TimeoutError: Nothing arrived before `until`.
        """
        if sock is None:  # closed by another thread
            return
        poller = self._held.get(connection) or self._new_poller(connection, sock)
        own = sock.fileno()
        while (left := until - self._runtime.now()) > 0:
            ready = poller.poll(left * 1000)
            arrived = any(descriptor == own for descriptor, _ in ready)
            if len(ready) > arrived:
                await self._subscriptions.read()
            if arrived or connection not in self._held:
                return
        raise TimeoutError("the server is silent")

    def _new_poller(self, connection: Any, sock: Any) -> Poller:
        poller = Poller(self._subscriptions, sock)
        with self._guard:
            if connection in self._held:  # else it was closed, and is not used again
                self._held[connection] = poller
        return poller

    def link(self, link: Link, connection: Any) -> Link:
        """Return a dedicated connection that is lost when the master changes."""
        return _MasterLink(self, link, connection)

    async def attend(self, connection: Any, patience: float) -> None:
        """Handle, within `patience` seconds, the messages of the Sentinels; then `check` the connection."""
        if self._subscriptions.has_news():
            await self._subscriptions.attend(patience)
        self.check(connection)

    def check(self, connection: Any) -> None:
        """Raise the error of a broken connection if the master has changed since the connection was made."""
        if connection not in self._held:
            raise self._executor.lost(ConnectionError("the master has changed"), sent=True)

    # --- changes -------------------------------------------------------------------------------------------------

    def _on_switch(self, address: Address) -> None:
        """Handle the address of a new master that a Sentinel has published; each Sentinel publishes it once."""
        if address not in (self._master, self._announced):
            self._change(address, self._epoch + 1)

    def _on_state(self, state: MasterState) -> None:
        """Handle the master's state at a new subscription: the change may have been published before it."""
        if state.epoch >= self._epoch and self._master not in (None, state.address):
            self._change(state.address, state.epoch)

    def _change(self, address: Address, epoch: int) -> None:
        """Leave the former master; the next connection asks for the new one, in configuration `epoch` or a newer one.

        `address` is not used for it: messages of a Sentinel that lags behind may arrive out of order.
        """
        with self._guard:
            self._changes += 1
            before, self._master, self._announced, self._epoch = self._master, None, address, epoch
            self._held = weakref.WeakKeyDictionary()
        if before is not None:
            about = About(self.where, {"backend": self.where})
            log.warning(about, "the master is %s:%d now, and no longer %s:%d", *address, *before)
        self._leave()

    # --- closing -------------------------------------------------------------------------------------------------

    def move(self, *, forked: bool) -> None:
        """Reset the state in a forked child, or in the next event loop after the last one has ended."""
        self._subscriptions.move(forked=forked)
        self._begin()

    async def close(self) -> None:
        """Close the subscriptions."""
        await self._subscriptions.close()


class _MasterLink(LinkAround):
    """A dedicated connection to the master; it is lost when another server becomes the master."""

    def __init__(self, tracker: MasterTracker, link: Link, connection: Any) -> None:
        super().__init__(link)
        self._tracker = tracker
        self._connection = connection

    async def send(self, commands: Sequence[Command]) -> None:
        await self._tracker.attend(self._connection, 0.0)  # `receive` maintains the subscriptions
        await super().send(commands)

    async def receive(self, timeout: float) -> list[Any]:
        until = SystemClock.wait_time() + timeout
        left = timeout
        while True:
            await self._tracker.attend(self._connection, left)
            left = until - SystemClock.wait_time()
            replies = await super().receive(max(0.0, min(left, SLICE)))
            left = until - SystemClock.wait_time()
            if replies or left <= 0:
                return replies
