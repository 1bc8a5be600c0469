"""Standing in line at a backend until woken. Nobody polls.

Who is denied goes into a line at the backend, which wakes the first when something is freed. A wake-up that is lost is
repaired by trying again when what is in the way ends, or after `RECHECK` seconds. An outage of the backend is waited
out as well (`Outage`).
"""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from ailf.driver import Denied, WaiterInfo
from ailf.engine.engine import AWAY, Engine
from ailf.engine.inbox import PendingReply
from ailf.errors import ClosedError
from ailf.runtime import Event

__all__ = ["PLACE", "RECHECK", "WITHDRAW", "Outage", "wait_in_queue"]

T = TypeVar("T")

RECHECK = 3.0
"""Seconds after which a waiter tries again although nobody woke it; that also shows that it is alive."""

PLACE = 5.0
"""Seconds after which a waiter that has not tried again is taken for dead (L12)."""

WITHDRAW = 1.0
"""Seconds that a waiter who gives up spends at most on leaving the line."""

LATE: Final = 0.05
"""Seconds past its time after which a waiter leaves the line without waiting for the answer."""

_PAUSES = (0.1, 0.5, 2.0, 5.0)
"""Seconds between tries while the backend is away."""


class Outage:
    """Waits while the backend is away, as part of a wait that has time left.

    Arguments:
        engine: The backend's.
        what: What is asked, for the log: "acquire lock 'a'".
        until: When the time is over, on the runtime's clock.
    """

    def __init__(self, engine: Engine, what: str, until: float) -> None:
        self._engine = engine
        self._what = what
        self._until = until

    async def ask(self, request: Callable[[], Awaitable[T]], error: Exception | None = None) -> T:
        """Make a request, again and again while the backend is away; return the answer.

        Arguments:
            request: Makes it once.
            error: What it has failed with already, where the first time was elsewhere.

        Raises:
            ConnectionLostError: The time is over, and the backend is still away.
            BackendTimeoutError: As above.
            ClosedError: The backend was closed meanwhile.
        """
        failures = 0
        while True:
            if error is None:
                try:
                    answer = await request()
                except AWAY as raised:
                    error = raised
                else:
                    if failures:
                        self._engine.outages.worked()
                    return answer
            left = self._until - self._engine.runtime.now()
            if left <= 0:
                raise error
            self._engine.outages.failed(self._what, error)
            await self._engine.pause(min(left, _PAUSES[min(failures, len(_PAUSES) - 1)]))
            self._engine.check_open()
            failures, error = failures + 1, None


class _Waiter:
    """Somebody in line, as the backend knows him that is closed: he leaves it first (B3).

    Attributes:
        gone: Set when he has left.
    """

    def __init__(self, ticket: PendingReply, gone: Event) -> None:
        self._ticket = ticket
        self.gone = gone

    def stop(self) -> None:
        self._ticket.fail(ClosedError("the backend was closed"))

    async def close(self) -> None:
        await self.gone.wait(WITHDRAW)


async def wait_in_queue(
    engine: Engine,
    what: str,
    attempt: Callable[[str, WaiterInfo], Awaitable[T | Denied]],
    withdraw: Callable[[str], Coroutine[Any, Any, None]],
    until: float,
) -> T | None:
    """Try, and try again when woken, until it is granted or the time is over: then return None.

    Arguments:
        engine: The backend's.
        what: What is asked, for the log: "acquire lock 'a'".
        attempt: Makes one try, given a token of this waiter and its place in line.
        withdraw: Leaves the line, and gives back what may have been granted meanwhile; called in every bad end.
        until: When the time is over, on the runtime's clock.

    Raises:
        BackendError: What a try failed with; where the backend is away, only when the time is over.
    """
    desk, outage = engine.reply_inbox, Outage(engine, what, until)
    await outage.ask(lambda: desk.open(until))
    ticket = desk.expect()
    waiter = _Waiter(ticket, engine.runtime.event())
    engine.keep(waiter)
    try:
        engine.check_open()  # a close that has begun before it was kept doesn't wait for it
        while isinstance(
            found := await outage.ask(lambda: attempt(ticket.id, WaiterInfo(desk.channel, PLACE))), Denied
        ):
            left = until - engine.runtime.now()
            if left <= -LATE:
                engine.runtime.spawn(lambda: withdraw(ticket.id), name="ailf-withdraw")  # the caller's time is over
                return None
            if left <= 0:
                await withdraw(ticket.id)
                return None
            await ticket.wake(min(left, max(found.retry_after, 0.001), RECHECK))
    except AWAY:
        engine.runtime.spawn(lambda: withdraw(ticket.id), name="ailf-withdraw")  # the caller's time is over
        raise
    except BaseException:
        await withdraw(ticket.id)
        raise
    finally:
        desk.forget(ticket)
        engine.forget(waiter)
        waiter.gone.set()
    return found
