"""The engine of an opened backend, for both flavours: calls with retries, what runs beside them, and closing.

Rule: while the backend is unavailable, a request is repeated for `retry_for` seconds from the beginning of its call. A
request that may have been carried out is repeated only where that does no harm (`again`); else the call raises
`OutcomeUnknownError`.
"""

import asyncio
import contextlib
import os
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, Final, Protocol, TypeVar

from ailf.checks import check_count, check_seconds
from ailf.driver import BackendDriver, Capability
from ailf.engine.inbox import ReplyInbox
from ailf.engine.outages import AWAY, OutageLog
from ailf.engine.renewal import Renewer
from ailf.engine.spread_renewer import AnyRenewer, SpreadRenewer
from ailf.engine.subscriptions import SubscriptionManager
from ailf.errors import (
    ClosedError,
    InvalidArgumentError,
    OutcomeUnknownError,
    UnsupportedError,
)
from ailf.instruments import Instruments
from ailf.runtime import Task
from ailf.runtime.aio import asyncio_only, other_library
from ailf.runtime.semaphore import FairSemaphore

__all__ = ["Closable", "Engine"]

T = TypeVar("T")

LEAVING = 5.0
"""Seconds that closing spends at most on releasing messages, for all consumers together."""

GRACE = 2.0
"""Seconds that all interrupted calls together have to end."""

TOKEN, TOKENS = 16, 64
"""The bytes of a random token, and the number of tokens that are made at once."""

_NOWHERE: Final = object()
"""The home of an engine before its first use: it differs from every process and event loop, and from None."""

_RETRY_DELAYS = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Seconds before each repetition; the last value repeats."""


class Closable(Protocol):
    """An object that the engine closes before the backend: a consumer, a subscription, a waiting call."""

    def stop(self) -> None:
        """Wake every call that waits in it. Any thread may call this."""

    async def close(self) -> None:
        """Release what it holds at the backend."""


class _Resources:
    """The resources of an engine, for its finalizer. It doesn't refer to the engine, which it outlives.

    Attributes:
        driver: The backend's driver.
        pid: The process that the resources belong to.
        renewer: Renews the leases; None before the engine has started.
        subscriptions: The subscriptions; None if there were none.
    """

    __slots__ = ("driver", "pid", "renewer", "subscriptions")

    def __init__(self, driver: BackendDriver) -> None:
        self.driver = driver
        self.pid = 0
        self.renewer: AnyRenewer | None = None
        self.subscriptions: SubscriptionManager | None = None

    def give_back(self) -> None:
        """Give back connections and threads, and warn if there were any connections (B9)."""
        if self.pid != os.getpid():  # the copy in a forked child: the resources are the parent's
            return
        if self.renewer is not None:
            self.renewer.abandon()
        if self.subscriptions is not None:
            self.subscriptions.give_back()
        had_connections = self.driver.abandon()  # before the reader ends, which closes its own connection
        if self.subscriptions is not None:
            self.subscriptions.wake()
        if had_connections:
            warnings.warn(
                f"the backend {self.driver.url} was dropped without being closed; its connections were given back. "
                "Close the backend, or the standalone object: use it in `with` (`async with`), or call its "
                "close (aclose)",
                ResourceWarning,
                stacklevel=2,
            )


class Engine:
    """The core that the interfaces of one backend share, whichever its flavour.

    It belongs to one process, and on asyncio to one event loop at a time: the one in which it is first used and, when
    that has ended, the next one in which it is used. State that is bound to an event loop is then made anew (B4).

    Attributes:
        driver: The backend's driver.
        runtime: The driver's runtime.
        retry_for: Seconds for which a failed request is repeated.
        closed: Whether it was closed.
        in_loop: Whether the requests are steps in the event loop itself: on asyncio, with a backend in this process.
        here: Returns the current process id or event loop; see `Runtime`.
        instruments: The instruments that observe the backend.
        outages: Logs the backend's outages.
        renewer: Renews leases.
        home: The process id or event loop that it belongs to; another object before its first use. Each public call
            compares it with `here()`.
        patience: Seconds that opening the backend may take longer than one try.
        wrapped: Whether `wrap_driver` has replaced its driver.
        declared: The numbers of partitions that were found stored, by stream; see `Declaration`, which bounds it.
    """

    def __init__(self, driver: BackendDriver, *, retry_for: float = 5.0) -> None:
        self.driver = driver
        self.runtime = driver.runtime
        self.instruments = Instruments(driver.url)
        self.retry_for = check_seconds("retry_for", retry_for)
        check_count("max_payload", driver.max_payload)
        self.patience = 0.0
        self.closed = self.wrapped = False
        self.declared: dict[str, int] = {}
        self.in_loop = self.runtime.flavour == "asyncio" and Capability.PROCESSES not in driver.capabilities
        self.here = self.runtime.here
        self.home: object = _NOWHERE
        self._thread = ""  # the name of the thread of `home`
        self._ended = False
        self._resources = _Resources(driver)
        self._finalizer = weakref.finalize(self, self._resources.give_back)
        self._finalizer.atexit = False  # the end of the process gives everything back
        self._start()

    def _start(self) -> None:
        """Make the state of one process; a forked child makes its own."""
        self._pid = self._resources.pid = os.getpid()
        self._closing = self.runtime.event()
        self._ending = self.runtime.single_flight()
        self._open: weakref.WeakSet[Closable] = weakref.WeakSet()
        self.outages = OutageLog(self.driver, self.instruments)
        renewer = SpreadRenewer if self.driver.several_servers else Renewer
        self.renewer: AnyRenewer = renewer(self.driver, self.outages, self.instruments)
        self._resources.renewer = self.renewer
        self._tokens: list[str] = []
        self._start_in_loop()

    def _start_in_loop(self) -> None:
        """Make the state of one event loop."""
        self._subscriptions: SubscriptionManager | None = None
        self._resources.subscriptions = None
        self._reply_inbox: ReplyInbox | None = None
        self._shared: weakref.WeakValueDictionary[tuple[Hashable, ...], Any] = weakref.WeakValueDictionary()

    def wrap_driver(self, wrap: Callable[[BackendDriver], BackendDriver]) -> None:
        """Put a driver between this engine and its own one, for tests of faults.

        From then on requests aren't steps in the event loop itself: the driver may wait, as one over a network does.

        It doesn't tie the engine to an event loop: that is done by its first use.

        Raises:
            ClosedError: The backend is closed.
            InvalidArgumentError: Leases, subscriptions or consumers use the driver already.
        """
        if self.closed:
            raise ClosedError(f"the backend {self.driver.url} is closed; open another one")
        if self._open or self._subscriptions is not None or not self.renewer.idle:
            raise InvalidArgumentError(
                f"the backend {self.driver.url} is in use: it has consumers, subscriptions or leases. Wrap its driver "
                "right after it was opened"
            )
        self.driver = self._resources.driver = wrap(self.driver)
        self.wrapped, self.in_loop = True, False
        self._start()

    # --- state ---------------------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Check that the backend can be used here; move to a forked child or to the next event loop.

        Raises:
            ClosedError: The backend is closed.
            InvalidArgumentError: It belongs to another event loop, which still runs.
            UnsupportedError: It is for asyncio, and another library runs here, such as trio.
        """
        if self.closed:
            raise ClosedError(f"the backend {self.driver.url} is closed; open another one")
        self.check_home()

    def _weak_check(self) -> Callable[[], None]:
        """Return `check_open` for objects that must not keep the engine alive."""
        reference = weakref.ref(self)

        def check() -> None:
            engine = reference()
            if engine is not None:
                engine.check_open()

        return check

    def check_home(self) -> None:
        """Move to a forked child or to the next event loop, even after `close`.

        Raises:
            InvalidArgumentError: It belongs to another event loop, which still runs.
        """
        if self.home != self.here():
            self._move()

    def _move(self) -> None:
        """Move to the process and event loop that run now."""
        here = self.here()
        if self._pid != os.getpid():
            inherited = self._subscriptions
            self._start()
            if inherited is not None:
                inherited.end_in_child(ClosedError("the subscription belongs to the parent process; listen again here"))
        elif here is None:  # outside of an event loop objects may be made, but no request
            if other_library():
                raise asyncio_only(f"the backend {self.driver.url}")
            return
        elif isinstance(self.home, asyncio.AbstractEventLoop):
            if self.home.is_running():
                raise InvalidArgumentError(
                    f"the backend {self.driver.url} belongs to the event loop of thread {self._thread!r}, which still "
                    "runs; open one backend in each event loop"
                )
            ended = self._subscriptions
            self._start_in_loop()
            if ended is not None:
                ended.abandon(ClosedError("the event loop of the subscription has ended; listen again in this one"))
        self.home, self._thread = here, threading.current_thread().name

    def require(self, capability: Capability, what: str) -> None:
        """Raise `UnsupportedError` if the driver doesn't declare the capability (B2).

        Arguments:
            capability: The capability.
            what: The feature, for the message: "sharded channels".
        """
        self.check_open()
        if capability not in self.driver.capabilities:
            declared = ", ".join(sorted(each.value for each in self.driver.capabilities)) or "nothing"
            reason = self.driver.reasons.get(capability, f"it declares: {declared}")
            raise UnsupportedError(f"the backend {self.driver.url} has no {what}; {reason}")

    def track(self, closable: Closable) -> None:
        """Remember to close this object before the backend, by a weak reference."""
        self._open.add(closable)

    def untrack(self, closable: Closable) -> None:
        """Stop tracking an object that has closed."""
        self._open.discard(closable)

    @property
    def subscriptions(self) -> SubscriptionManager:
        """The subscriptions of this backend, which share one connection."""
        self.check_open()
        if self._subscriptions is None:
            self._subscriptions = self._resources.subscriptions = SubscriptionManager(
                self.driver, self._weak_check(), self.outages, self.instruments
            )
        return self._subscriptions

    @property
    def reply_inbox(self) -> ReplyInbox:
        """The inbox for replies and wake-ups of this backend."""
        subscriptions = self.subscriptions
        if self._reply_inbox is None:
            self._reply_inbox = ReplyInbox(subscriptions, self.runtime)
        return self._reply_inbox

    def token(self) -> str:
        """Return 128 random bits as text. They are read for many tokens at once, which takes no longer than for one."""
        if self.home != self.here():
            self.check_open()
        try:
            return self._tokens.pop()
        except IndexError:
            bits = os.urandom(TOKEN * TOKENS).hex()
            token, *self._tokens = [bits[at : at + 2 * TOKEN] for at in range(0, len(bits), 2 * TOKEN)]
            return token

    def local_queue(self, names: tuple[str, ...]) -> FairSemaphore:
        """Return the in-process queue for these lock names: only its head competes at the backend."""
        return self.shared(("local queue", *names), lambda: FairSemaphore(self.runtime, 1))

    def shared(self, key: tuple[Hashable, ...], make: Callable[[], T]) -> T:
        """Return the object that this process or event loop shares under a key; make it unless it is in use."""
        if self.home != self.here():
            self.check_open()
        made = self._shared.get(key)
        if made is None:
            made = self._shared.setdefault(key, make())
        result: T = made
        return result

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
        """Make one request of the driver, and repeat it by the rule of this module.

        Arguments:
            what: The operation, for messages: "add to stream 'tasks'"; or a function that returns it, given `args`.
            request: The driver's method.
            args: Its arguments.
            again: Whether the request is repeated although it may have been carried out.
            until: A deadline for repetitions, on the runtime's clock, where it is before the end of `retry_for`; 0: no
                repetition. The call ends one request after it at the latest; the driver bounds the request.
            options: Its keyword arguments.

        Raises:
            OutcomeUnknownError: It may have been carried out, and `again` is False.
            ClosedError: The backend was closed meanwhile.
        """
        if self.closed or self.home != self.here():
            self.check_open()
            if self.here() is None:
                raise asyncio_only(f"the backend {self.driver.url}")
        begin = self.runtime.now()
        tries = 0
        while True:
            try:
                reply = await request(*args, **options)
            except AWAY as error:
                description = what if isinstance(what, str) else what(*args)
                if self.closed:
                    raise ClosedError(f"the backend {self.driver.url} was closed during: {description}") from error
                if error.maybe_applied and not again:
                    raise OutcomeUnknownError(
                        f"{description}: the request was sent and got no reply ({error}). It may have been carried "
                        "out, so it was not repeated; repeat it if doing it twice does no harm",
                        maybe_applied=True,
                    ) from error
                await self.wait_out(error, begin, tries, until)
                tries += 1
            else:
                if tries:
                    self.outages.worked()
                return reply

    async def call_timed(
        self,
        what: str,
        request: Callable[..., Awaitable[T]],
        *args: Any,
        until: float | None = None,
    ) -> tuple[float, T]:
        """Make a request like `call` with ``again=True``; return when the last try was sent, and its reply.

        The time is on the clock for leases: a lease that the reply grants counts from then.
        """

        async def timed() -> tuple[float, T]:
            sent = self.runtime.lease_now()
            return sent, await request(*args)

        return await self.call(what, timed, again=True, until=until)

    async def wait_out(self, error: Exception, begin: float, tries: int, until: float | None = None) -> None:
        """Pause before a request is repeated, or raise its error if it must not be repeated any more.

        Arguments:
            error: The error of the last try.
            begin: When the first try began.
            tries: The number of repetitions so far.
            until: See `call`.

        Raises:
            Exception: `error`.
            ClosedError: The backend was closed meanwhile.
        """
        last = begin + self.retry_for if until is None else min(until, begin + self.retry_for)
        if (left := last - self.runtime.now()) <= 0:
            raise error
        await self.pause(min(left, _RETRY_DELAYS[min(tries, len(_RETRY_DELAYS) - 1)]))
        self.check_open()

    async def pause(self, seconds: float) -> bool:
        """Wait for `seconds`, or until the backend is closed; return whether it is closed."""
        return await self._closing.wait(seconds)

    # --- closing -------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Wake every blocked call, release unsettled messages, and end every connection, thread and task (B3).

        Raises:
            InvalidArgumentError: It belongs to another event loop, which still runs.
        """
        if not self.closed:
            self.check_open()
        self.closed = True
        await self._ending.run(self._end)

    async def _end(self) -> None:
        """Close once. If the caller is cancelled, this continues, and the next call of `close` waits for it."""
        if self._ended:
            return
        self._ended = True
        self._finalizer.detach()
        leaving = await self._close_tracked()
        self.driver.interrupt()  # from here on no request is made
        until = self.runtime.now() + GRACE
        if self._subscriptions is not None:
            await self._subscriptions.close(until)
        await self.renewer.close(until)
        await self.driver.close()
        for each in leaving:
            if not await each.join(max(0.0, until - self.runtime.now())):
                each.cancel()

    async def _close_tracked(self) -> list[Task]:
        """Wake every call, and close all tracked objects within `LEAVING` seconds; return those that still close."""
        self._closing.set()
        closables = list(self._open)
        for closable in closables:
            closable.stop()
        if self._subscriptions is not None:
            self._subscriptions.stop()
        if self.runtime.uses_caller:
            await self._close_one_by_one(closables)
            return []
        until = self.runtime.now() + LEAVING
        leaving = [self.runtime.spawn(each.close, name="ailf-leave") for each in closables]
        return [each for each in leaving if not await each.join(max(0.0, until - self.runtime.now()))]

    async def _close_one_by_one(self, closables: Sequence[Closable]) -> None:
        """Close one after another; after `LEAVING` seconds interrupt the request under way and all that follow."""
        finished = self.runtime.event()

        async def watch() -> None:
            if not await finished.wait(LEAVING):
                self.driver.interrupt()

        watcher = None
        with contextlib.suppress(RuntimeError):  # the interpreter is ending and starts no threads
            watcher = self.runtime.spawn(watch, name="ailf-close") if closables else None
        try:
            for closable in closables:
                await closable.close()
        finally:
            finished.set()
            if watcher is not None:
                await watcher.join(GRACE)
