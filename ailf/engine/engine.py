"""What an opened backend has, whichever its flavour: the driver, the closing, the retries, and what runs beside calls.

The rule of retries: a request that was certainly not carried out is repeated until `retry_for` seconds are over,
counted from the call's beginning; one that may have been carried out only where doing it twice is the same as once.
Otherwise it is an `OutcomeUnknownError`.
"""

import asyncio
import contextlib
import os
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

from ailf.checks import check_count, check_seconds
from ailf.driver import BackendDriver, Capability
from ailf.engine.inbox import ReplyInbox
from ailf.engine.outages import OutageLog
from ailf.engine.renewal import Renewer
from ailf.engine.subscriptions import SubscriptionManager
from ailf.errors import (
    BackendTimeoutError,
    ClosedError,
    ConnectionLostError,
    InvalidArgumentError,
    OutcomeUnknownError,
    UnsupportedError,
)
from ailf.runtime import Task
from ailf.runtime.semaphore import FairSemaphore

__all__ = ["AWAY", "Closable", "Engine"]

T = TypeVar("T")

AWAY: Final = (ConnectionLostError, BackendTimeoutError)
"""The errors of a backend that is away and may come back."""

LEAVING = 5.0
"""Seconds that closing spends at most on handing messages back, of all consumers together."""

GRACE = 2.0
"""Seconds that what was interrupted has for its end, all together."""

TOKEN, TOKENS = 16, 64
"""The bytes of a random token, and how many tokens are made at once."""

_RETRY_DELAYS = (0.02, 0.05, 0.1, 0.2, 0.4)


class Closable(Protocol):
    """What a backend closes before itself: consumers, subscriptions."""

    def stop(self) -> None:
        """Wake whoever waits in it, from any thread."""

    async def close(self) -> None:
        """Give back what it holds."""


class _Left:
    """What a backend leaves when nobody can use it any more. It doesn't refer to the engine, which it outlives.

    Attributes:
        driver: The backend's.
        pid: The process that it belongs to.
        renewer: What keeps leases alive.
        hub: The subscriptions, where there were any.
    """

    __slots__ = ("driver", "pid", "renewer", "subscriptions")

    def __init__(self, driver: BackendDriver) -> None:
        self.driver = driver
        self.pid = 0
        self.renewer: Renewer | None = None
        self.subscriptions: SubscriptionManager | None = None

    def give_back(self) -> None:
        """Give back connections and threads, and warn where there were any (B9)."""
        if self.pid != os.getpid():  # a forked child's copy: they are the parent's
            return
        if self.renewer is not None:
            self.renewer.abandon()
        if self.subscriptions is not None:
            self.subscriptions.give_back()
        had = self.driver.abandon()  # before the reader ends, and closes its connection itself
        if self.subscriptions is not None:
            self.subscriptions.wake()
        if had:
            warnings.warn(
                f"the backend {self.driver.url} was dropped without being closed; its connections were given back. "
                "Close the backend, or the object that was made alone: use it in `with` (`async with`), or call its "
                "close (aclose)",
                ResourceWarning,
                stacklevel=2,
            )


class Engine:
    """The one thing that both flavours of a backend share.

    It belongs to one process, and on asyncio to one event loop at a time: the one in which it is first used, and when
    that has ended, the next one in which it is used. What can't be taken along is made anew (B4).

    Attributes:
        driver: The backend's driver.
        runtime: What its flows wait with.
        retry_for: For how many seconds a request is repeated.
        closed: Whether it was closed.
        here: Returns the process or the event loop that runs; see `Runtime`.
        outages: What the log says of them.
        home: The one that it belongs to; None before its first use. Each public call compares the two.
        patience: Seconds that opening the backend may take longer than one try.
    """

    def __init__(self, driver: BackendDriver, *, retry_for: float = 5.0) -> None:
        self.driver = driver
        self.runtime = driver.runtime
        self.retry_for = check_seconds("retry_for", retry_for)
        check_count("max_payload", driver.max_payload)
        self.patience = 0.0
        self.closed = False
        self.here = self.runtime.here
        self.home: object = None
        self._thread = ""  # whose loop that is
        self._ended = False
        self._left = _Left(driver)
        self._drop = weakref.finalize(self, self._left.give_back)
        self._drop.atexit = False  # the process gives everything back
        self._start()

    def _start(self) -> None:
        """Make what belongs to one process: after a fork the child makes its own."""
        self._pid = self._left.pid = os.getpid()
        self._closing = self.runtime.event()
        self._ending = self.runtime.single_flight()
        self._open: weakref.WeakSet[Closable] = weakref.WeakSet()
        self.outages = OutageLog(self.driver)
        self.renewer = self._left.renewer = Renewer(self.driver, self.outages)
        self._tokens: list[str] = []
        self._start_in_loop()

    def _start_in_loop(self) -> None:
        """Make what belongs to one event loop."""
        self._subscriptions: SubscriptionManager | None = None
        self._left.subscriptions = None
        self._reply_inbox: ReplyInbox | None = None
        self._local_queues: weakref.WeakValueDictionary[tuple[str, ...], FairSemaphore] = weakref.WeakValueDictionary()

    # --- state ---------------------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raise `ClosedError` after close; in a forked child or the next event loop, begin anew.

        Raises:
            ClosedError: It is closed.
            InvalidArgumentError: It belongs to another event loop, which still runs.
        """
        if self.closed:
            raise ClosedError(f"the backend {self.driver.url} is closed; open another one")
        self.check_home()

    def _weak_check(self) -> Callable[[], None]:
        """Return `check_open` for what must not keep a backend alive that nobody uses any more."""
        known = weakref.ref(self)

        def check() -> None:
            engine = known()
            if engine is not None:
                engine.check_open()

        return check

    def check_home(self) -> None:
        """In a forked child or the next event loop, begin anew, also where it is closed.

        Raises:
            InvalidArgumentError: It belongs to another event loop, which still runs.
        """
        if self.home != self.here():
            self._move()

    def _move(self) -> None:
        """Belong to the process and event loop that runs now."""
        here = self.here()
        if self._pid != os.getpid():
            hub = self._subscriptions
            self._start()
            if hub is not None:
                hub.disown(ClosedError("the subscription belongs to the parent process; listen again in this one"))
        elif here is None:  # outside of any event loop nothing is asked of the backend
            return
        elif isinstance(self.home, asyncio.AbstractEventLoop):
            if self.home.is_running():
                raise InvalidArgumentError(
                    f"the backend {self.driver.url} belongs to the event loop of thread {self._thread!r}, which still "
                    "runs; open a backend of its own in each event loop"
                )
            hub = self._subscriptions
            self._start_in_loop()
            if hub is not None:
                hub.abandon(ClosedError("the event loop of the subscription has ended; listen again in this one"))
        self.home, self._thread = here, threading.current_thread().name

    def require(self, capability: Capability, what: str) -> None:
        """Raise `UnsupportedError` where the driver doesn't declare the capability (B2)."""
        self.check_open()
        if capability not in self.driver.capabilities:
            able = ", ".join(sorted(each.value for each in self.driver.capabilities)) or "nothing"
            raise UnsupportedError(f"the backend {self.driver.url} has no {what}; it declares: {able}")

    def keep(self, closable: Closable) -> None:
        """Remember what must be closed before the backend; it is forgotten with its last user."""
        self._open.add(closable)

    def forget(self, closable: Closable) -> None:
        """It is closed."""
        self._open.discard(closable)

    @property
    def subscriptions(self) -> SubscriptionManager:
        """The subscriptions of this backend, over one connection."""
        self.check_open()
        if self._subscriptions is None:
            self._subscriptions = self._left.subscriptions = SubscriptionManager(
                self.driver, self._weak_check(), self.outages
            )
        return self._subscriptions

    @property
    def reply_inbox(self) -> ReplyInbox:
        """The requests of this backend that wait for replies."""
        hub = self.subscriptions
        if self._reply_inbox is None:
            self._reply_inbox = ReplyInbox(hub, self.runtime)
        return self._reply_inbox

    def token(self) -> str:
        """Return 128 random bits, as text; they are asked of the system for many at once, which takes it as long."""
        if self.home != self.here():
            self.check_open()
        try:
            return self._tokens.pop()
        except IndexError:
            bits = os.urandom(TOKEN * TOKENS).hex()
            token, *self._tokens = [bits[at : at + 2 * TOKEN] for at in range(0, len(bits), 2 * TOKEN)]
            return token

    def local_queue(self, names: tuple[str, ...]) -> FairSemaphore:
        """Return the queue of this process for these lock names: only its head competes at the backend."""
        if self.home != self.here():
            self.check_open()
        found = self._local_queues.get(names)
        if found is None:
            found = self._local_queues.setdefault(names, FairSemaphore(self.runtime, 1))
        return found

    # --- calls ---------------------------------------------------------------------------------------------------

    async def call(
        self,
        what: str | Callable[..., str],
        request: Callable[..., Awaitable[T]],
        *args: Any,
        again: bool,
        until: float | None = None,
        **options: Any,
    ) -> T:
        """Make one request of the driver, repeated by the rule of this module.

        Arguments:
            what: What is asked, for messages: "add to stream 'tasks'"; or what says it, given the request's arguments.
            request: The driver's method.
            args: Its arguments.
            again: Whether doing it twice is the same as doing it once.
            until: When repetitions end, on the runtime's clock, where that is before `retry_for` is over; 0: none. The
                call ends one request later at the latest, which the driver bounds.
            options: Its keyword arguments.
        """
        if self.closed or self.home != self.here():
            self.check_open()
        begin = self.runtime.now()
        tries = 0
        while True:
            try:
                answer = await request(*args, **options)
            except AWAY as error:
                said = what if isinstance(what, str) else what(*args)
                if self.closed:
                    raise ClosedError(f"the backend {self.driver.url} was closed during: {said}") from error
                if error.maybe_applied and not again:
                    raise OutcomeUnknownError(
                        f"{said}: the request was sent and no answer came ({error}). It may have been carried out, so "
                        "it is not repeated; repeat it if twice does no harm",
                        maybe_applied=True,
                    ) from error
                await self.wait_out(error, begin, tries, until)
                tries += 1
            else:
                if tries:
                    self.outages.worked()
                return answer

    async def call_timed(
        self,
        what: str,
        request: Callable[..., Awaitable[T]],
        *args: Any,
        until: float | None = None,
    ) -> tuple[float, T]:
        """Make one request as `call` does, which may be repeated; return also when the one that was answered was sent.

        That time is on the clock for leases: what the answer grants for a time counts from then.
        """

        async def timed() -> tuple[float, T]:
            since = self.runtime.lease_now()
            return since, await request(*args)

        return await self.call(what, timed, again=True, until=until)

    async def wait_out(self, error: Exception, begin: float, tries: int, until: float | None = None) -> None:
        """Pause before a request is repeated, or raise its error where the time for that is over.

        Arguments:
            error: What it failed with.
            begin: When it was first made.
            tries: How often it was repeated already.
            until: See `call`.

        Raises:
            Exception: The error.
            ClosedError: The backend was closed meanwhile.
        """
        last = begin + self.retry_for if until is None else min(until, begin + self.retry_for)
        if (left := last - self.runtime.now()) <= 0:
            raise error
        await self.pause(min(left, _RETRY_DELAYS[min(tries, len(_RETRY_DELAYS) - 1)]))
        self.check_open()

    async def pause(self, seconds: float) -> bool:
        """Wait so long, or until the backend is closed; return whether it is."""
        return await self._closing.wait(seconds)

    # --- closing -------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Wake every blocked call, hand messages back, and give back every connection, thread and task (B3).

        Raises:
            InvalidArgumentError: It belongs to another event loop, which still runs.
        """
        if not self.closed:
            self.check_open()
        self.closed = True
        await self._ending.run(self._end)

    async def _end(self) -> None:
        """Close, once; a caller who was cancelled meanwhile leaves this running, and the next one waits for it."""
        if self._ended:
            return
        self._ended = True
        self._drop.detach()
        leaving = await self._end_users()
        self.driver.interrupt()  # from here on nothing is asked of the backend
        until = self.runtime.now() + GRACE
        if self._subscriptions is not None:
            await self._subscriptions.close(until)
        await self.renewer.close(until)
        await self.driver.close()
        for each in leaving:
            if not await each.join(max(0.0, until - self.runtime.now())):
                each.cancel()

    async def _end_users(self) -> list[Task]:
        """Wake everybody, and close what users hold, within `LEAVING` seconds; return what still closes then."""
        self._closing.set()
        closables = list(self._open)
        for closable in closables:
            closable.stop()
        if self._subscriptions is not None:
            self._subscriptions.stop()
        if self.runtime.uses_caller:
            await self._close_in_turn(closables)
            return []
        until = self.runtime.now() + LEAVING
        leaving = [self.runtime.spawn(each.close, name="ailf-leave") for each in closables]
        return [each for each in leaving if not await each.join(max(0.0, until - self.runtime.now()))]

    async def _close_in_turn(self, closables: Sequence[Closable]) -> None:
        """Close one after another; when the time for all is over, end the request under way, and those that follow."""
        over = self.runtime.event()

        async def watch() -> None:
            if not await over.wait(LEAVING):
                self.driver.interrupt()

        watcher = None
        with contextlib.suppress(RuntimeError):  # the interpreter ends, and starts no more threads
            watcher = self.runtime.spawn(watch, name="ailf-close") if closables else None
        try:
            for closable in closables:
                await closable.close()
        finally:
            over.set()
            if watcher is not None:
                await watcher.join(GRACE)
