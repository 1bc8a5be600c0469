"""Waiting in a backend's wait queue until woken, without polling.

A request that is denied enters a wait queue at the backend, which wakes the first waiter over pub/sub when a lock or a
limit is free again. In case that wake-up is lost, a waiter tries again after the driver's `retry_after`, and after
`RECHECK` seconds at the latest. A wait continues through an outage of the backend (`Outage`).
"""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from ailf.driver import Denied, WaiterInfo
from ailf.engine.engine import Engine
from ailf.engine.inbox import PendingReply
from ailf.engine.outages import AWAY
from ailf.errors import ClosedError
from ailf.runtime import Event

__all__ = ["RECHECK", "WAITER_TTL", "WITHDRAW", "Outage", "wait_in_queue"]

T = TypeVar("T")

RECHECK = 3.0
"""Seconds after which a waiter tries again without a wake-up; that is also its heartbeat."""

WAITER_TTL = 5.0
"""Seconds without a try after which the backend counts a waiter as dead (L12)."""

WITHDRAW = 1.0
"""Seconds that a waiter that gives up spends at most on leaving the queue."""

LATE: Final = 0.05
"""Seconds past its deadline after which a waiter leaves the queue in the background."""

_BACKOFF = (0.1, 0.5, 2.0, 5.0)
"""Seconds between tries while the backend is unavailable."""


class Outage:
    """Repeats requests while the backend is unavailable, until a deadline.

    Arguments:
        engine: The backend's engine.
        what: The operation, for the log: "acquire lock 'a'".
        until: The deadline, on the runtime's clock.
    """

    def __init__(self, engine: Engine, what: str, until: float) -> None:
        self._engine = engine
        self._what = what
        self._until = until

    async def ask(self, request: Callable[[], Awaitable[T]], error: Exception | None = None) -> T:
        """Make a request, and repeat it while the backend is unavailable; return the reply.

        Arguments:
            request: Makes the request once.
            error: The error of a first try that the caller has made itself.

        Raises:
            ConnectionLostError: The backend is still unavailable at the deadline.
            BackendTimeoutError: As above.
            ClosedError: The backend was closed meanwhile.
        """
        failures = 0
        while True:
            if error is None:
                try:
                    reply = await request()
                except AWAY as raised:
                    error = raised
                else:
                    if failures:
                        self._engine.outages.worked()
                    return reply
            left = self._until - self._engine.runtime.now()
            if left <= 0:
                raise error
            self._engine.outages.failed(self._what, error)
            await self._engine.pause(min(left, _BACKOFF[min(failures, len(_BACKOFF) - 1)]))
            self._engine.check_open()
            failures, error = failures + 1, None


class _QueuedCall:
    """A call in the wait queue. The engine tracks it, so that it leaves the queue before the backend is closed (B3).

    Attributes:
        left: Set when it has left the queue.
    """

    def __init__(self, pending: PendingReply, left: Event) -> None:
        self._pending = pending
        self.left = left

    def stop(self) -> None:
        self._pending.fail(ClosedError("the backend was closed"))

    async def close(self) -> None:
        await self.left.wait(WITHDRAW)


async def wait_in_queue(
    engine: Engine,
    what: str,
    attempt: Callable[[str, WaiterInfo], Awaitable[T | Denied]],
    withdraw: Callable[[str], Coroutine[Any, Any, None]],
    until: float,
) -> T | None:
    """Try, and try again at each wake-up, until the attempt is granted; return None at the deadline.

    Arguments:
        engine: The backend's engine.
        what: The operation, for the log: "acquire lock 'a'".
        attempt: Makes one try, given the token of this waiter and where it is woken.
        withdraw: Leaves the queue, and releases a grant that came meanwhile. It is called unless a try is granted.
        until: The deadline, on the runtime's clock.

    Raises:
        BackendError: A try failed. Where the backend is unavailable, only at the deadline.
    """
    inbox, outage = engine.reply_inbox, Outage(engine, what, until)
    await outage.ask(lambda: inbox.open(until))
    pending = inbox.expect()
    call = _QueuedCall(pending, engine.runtime.event())
    engine.track(call)
    try:
        engine.check_open()  # a close that began before `track` doesn't wait for this call
        while isinstance(
            reply := await outage.ask(lambda: attempt(pending.id, WaiterInfo(inbox.channel, WAITER_TTL))), Denied
        ):
            left = until - engine.runtime.now()
            if left <= -LATE:
                engine.runtime.spawn(lambda: withdraw(pending.id), name="ailf-withdraw")  # the caller is late already
                return None
            if left <= 0:
                await withdraw(pending.id)
                return None
            await pending.wait(min(left, max(reply.retry_after, 0.001), RECHECK))
    except AWAY:
        engine.runtime.spawn(lambda: withdraw(pending.id), name="ailf-withdraw")  # the deadline has passed
        raise
    except BaseException:
        await withdraw(pending.id)
        raise
    finally:
        inbox.forget(pending)
        engine.untrack(call)
        call.left.set()
    return reply
