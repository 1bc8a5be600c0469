"""A fault script: what the next requests of a backend meet. It stands before the driver, so it works on every one."""

import math
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Final

import attrs

from ailf.backend import AsyncBackend, Backend
from ailf.checks import check_count, check_flag, check_kind, check_seconds
from ailf.driver import Action, BackendDriver, Charge, Settlement
from ailf.engine import Engine
from ailf.engine.renewed_lease import RenewedLease
from ailf.errors import BackendError, ConnectionLostError, InvalidArgumentError, OutcomeUnknownError
from ailf.lock.lease import LockGrantLease
from ailf.ratelimit.permit import PermitLease
from ailf.runtime import Runtime, ThreadRuntime, run
from ailf.stream.lease import DeliveryLease
from ailf.testing.faulty_driver import REQUESTS, FaultyDriver, FaultyListener
from ailf.testing.scheduled_loop import pause

__all__ = ["Faults"]

ANY: Final = "any"
"""Stands for every operation."""

_SCRIPTED: Final = "a fault that a test has scripted"

_MANY: Final = 2**31 - 1
"""More deliveries than any message has."""


@attrs.define
class _Fault:
    """A fault that has yet to happen.

    Attributes:
        interface: The interface whose driver makes the request; "" for any.
        name: The driver's method; `ANY` for every one.
        error: The error to raise.
        skip: How many more requests pass unharmed.
        times: How many more requests it happens to.
        carried_out: Whether the request is made, and only its reply is lost.
    """

    interface: str
    name: str
    error: type[BaseException] | BaseException
    skip: int
    times: int
    carried_out: bool

    def __str__(self) -> str:
        error = self.error if isinstance(self.error, type) else type(self.error)
        where = f"{self.interface}.{self.name}" if self.interface else self.name
        return f"{error.__name__} at {where} ({self.times} more, after {self.skip} others)"

    def fits(self, interface: str, name: str) -> bool:
        """Tell whether it is for this request."""
        return self.name in (ANY, name) and self.interface in ("", interface)

    def make(self, interface: str, name: str) -> BaseException:
        """Return the error to raise."""
        if not isinstance(self.error, type):
            return self.error
        text = f"{interface}.{name}: {_SCRIPTED}"
        if issubclass(self.error, BackendError):
            unknown = self.carried_out or issubclass(self.error, OutcomeUnknownError)
            return self.error(text, maybe_applied=unknown)
        return self.error(text)


class Faults:
    """A script of faults for backends of a test. It is the same for the memory backend, Redis and any other.

    >>> import ailf
    >>> from ailf.testing import Faults
    >>> with ailf.connect("memory://") as backend:
    ...     faults = Faults(backend)
    ...     faults.next("add", ailf.BackendFullError)
    ...     try:
    ...         backend.stream("tasks").add(1)
    ...     except ailf.BackendFullError:
    ...         print("full")
    full

    Make it right after the backend was opened, before an object is taken from it. An operation has the name of the
    driver's method, such as "add", "fetch", "settle", "publish", "acquire", "decide"; "lock.extend" where several
    interfaces have one of that name; "any" for every request. The engine repeats requests as always: a
    `ConnectionLostError` that happens once is hidden where a repetition does no harm.

    Arguments:
        backends: The backends, blocking or asyncio, that meet these faults.
    """

    def __init__(self, *backends: Backend | AsyncBackend) -> None:
        self._guard = threading.Lock()
        self._faults: list[_Fault] = []
        self._away_until = -math.inf
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        self._listeners: weakref.WeakSet[FaultyListener] = weakref.WeakSet()
        for each in backends:
            self.install(each)

    def install(self, backend: Backend | AsyncBackend) -> None:
        """Let another backend meet these faults.

        Raises:
            InvalidArgumentError: It isn't a backend, or it has consumers, subscriptions or leases already.
        """
        if not isinstance(backend, Backend | AsyncBackend):
            raise InvalidArgumentError(f"faults are for a Backend or AsyncBackend, not {type(backend).__name__}")
        backend.engine.wrap_driver(lambda driver: FaultyDriver(driver, self))
        self._engines.add(backend.engine)

    # --- the script ----------------------------------------------------------------------------------------------

    def next(
        self,
        operation: str,
        error: type[BaseException] | BaseException = ConnectionLostError,
        *,
        nth: int = 1,
        times: int = 1,
        carried_out: bool = False,
    ) -> None:
        """Let the next request of an operation raise an error.

        Arguments:
            operation: The name of the driver's method, or "any".
            error: The class of the error, or the error itself.
            nth: Which request it is, counted from now: 1 for the next one.
            times: How many requests in a row raise it, from that one on.
            carried_out: Whether the request is made, and only its reply is lost; else nothing is sent.

        Raises:
            InvalidArgumentError: There is no such operation, or an argument is invalid.
        """
        interface, name = _operation(operation)
        kind = error if isinstance(error, type) else type(error)
        if not issubclass(kind, BaseException):
            raise InvalidArgumentError(f"error must be an exception or a class of exceptions, not {error!r}")
        fault = _Fault(
            interface,
            name,
            error,
            check_count("nth", nth) - 1,
            check_count("times", times),
            check_flag("carried_out", carried_out),
        )
        with self._guard:
            self._faults.append(fault)

    def drop_reply(self, operation: str = ANY, *, nth: int = 1) -> None:
        """Lose a reply: the request is carried out, and then the connection breaks.

        Arguments:
            operation: The name of the driver's method, or "any".
            nth: Which reply it is, counted from now: 3 for the third.
        """
        self.next(operation, ConnectionLostError, nth=nth, carried_out=True)

    def backend_away(self, seconds: float = math.inf) -> None:
        """Let every request raise `ConnectionLostError`, and break the subscriptions, until the backend is back.

        Arguments:
            seconds: How long, in real time and by moves of a clock; inf: until `backend_back`.
        """
        if seconds != math.inf:
            check_seconds("seconds", seconds)
        with self._guard:
            self._away_until = self._now() + seconds
        self.gap("the backend is away")

    def backend_back(self) -> None:
        """End `backend_away`."""
        with self._guard:
            self._away_until = -math.inf

    def gap(self, reason: str = "a test has interrupted the subscriptions") -> None:
        """Interrupt every subscription now, as a lost connection does; each yields a `Gap` and is restored."""
        for each in tuple(self._listeners):
            each.break_(reason)

    def lose_leases(self) -> int:
        """End every lease now: of deliveries, locks and concurrency slots; return how many.

        The messages count as failed deliveries, and are available to other consumers at once; locks and slots are free.
        Their holders know when this returns: ``delivery.lost`` and ``lease.lost`` are true, handlers on asyncio are
        cancelled.
        """
        return sum(_lose_leases(each) for each in tuple(self._engines))

    @property
    def pending(self) -> list[str]:
        """The faults that have not happened yet, as text. A test checks that there are none at its end."""
        with self._guard:
            return [str(each) for each in self._faults]

    def clear(self) -> None:
        """Forget all faults that have not happened, and bring the backend back."""
        with self._guard:
            self._faults.clear()
            self._away_until = -math.inf

    # --- what drivers ask ----------------------------------------------------------------------------------------

    async def request(self, interface: str, name: str, runtime: Runtime, make: Callable[[], Awaitable[Any]]) -> Any:
        """Make a request, unless a fault happens before it."""
        if runtime.flavour == "asyncio":
            await pause()
        fault = self._take(interface, name)
        if fault is not None and not fault.carried_out:
            raise fault.make(interface, name)
        if self._now() < self._away_until:
            raise ConnectionLostError(f"{interface}.{name}: the backend is away, as a test has asked for")
        reply = await make()
        if fault is not None:
            raise fault.make(interface, name)
        if runtime.flavour == "asyncio":
            await pause()
        return reply

    def listens(self, listener: FaultyListener) -> None:
        """Note a listener, to interrupt it."""
        self._listeners.add(listener)

    def _take(self, interface: str, name: str) -> _Fault | None:
        """Return the fault that happens to this request, if any."""
        with self._guard:
            chosen: _Fault | None = None
            for each in self._faults:
                if not each.fits(interface, name):
                    continue
                if each.skip:
                    each.skip -= 1
                elif chosen is None:
                    chosen = each
            if chosen is not None:
                chosen.times -= 1
                if not chosen.times:
                    self._faults.remove(chosen)
            return chosen

    def _now(self) -> float:
        """Return the time of the backends' clock, by which an absence is counted."""
        return max((each.runtime.now() for each in tuple(self._engines)), default=0.0)


def _operation(operation: str) -> tuple[str, str]:
    """Return the interface, or "", and the method of an operation's name."""
    check_kind("operation", operation, str)
    interface, _, name = operation.rpartition(".")
    known = {ANY, "ping", "listen"}.union(*REQUESTS.values()) if not interface else REQUESTS.get(interface, frozenset())
    if name not in known:
        names = ", ".join(f"{each}: {' '.join(sorted(methods))}" for each, methods in REQUESTS.items())
        raise InvalidArgumentError(f"there is no operation {operation!r}; the operations are {names}; or any")
    return interface, name


# --- leases ------------------------------------------------------------------------------------------------------


def _lose_leases(engine: Engine) -> int:
    """End the leases that an engine renews, at the backend and here; return how many there were."""
    leases = engine.renewer.leases()
    if not leases:
        return 0
    outer = engine.driver
    inner = outer.inner if isinstance(outer, FaultyDriver) else outer
    driver = inner.with_runtime(ThreadRuntime())
    try:
        for each in leases:
            run(_end(driver, each))
    finally:
        run(driver.close())
    for each in leases:
        engine.renewer.discard(each)
        each.take()
        each.observe_lost(engine.instruments, "a test has ended it")
    return len(leases)


async def _end(driver: BackendDriver, lease: RenewedLease) -> None:
    """End a lease at the backend."""
    if isinstance(lease, DeliveryLease):
        stream, group = lease.liveness.stream, lease.liveness.group
        await driver.stream().settle(stream, group, [Settlement(lease.receipt, Action.NACK)], max_deliveries=_MANY)
    elif isinstance(lease, LockGrantLease):
        await driver.lock().release(lease.request)
    elif isinstance(lease, PermitLease):
        charges = [Charge(name, limit, 1) for name, limit in lease.slots.limits]
        await driver.rate_limiter().settle(lease.slots.limiter_key, lease.slots.token, charges)
