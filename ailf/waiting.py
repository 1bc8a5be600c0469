"""Standing in line at a backend until woken. Nobody polls.

Who is denied goes into a line at the backend, which wakes the first when something is freed. A wake-up that is lost is
repaired by trying again when what is in the way ends, or after `RECHECK` seconds.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from ailf.driver import Denied, Place
from ailf.engine import Engine
from ailf.errors import ClosedError
from ailf.requests import Ticket
from ailf.runtime import Event

__all__ = ["PLACE", "RECHECK", "WITHDRAW", "wait_in_line"]

T = TypeVar("T")

RECHECK = 3.0
"""Seconds after which a waiter tries again although nobody woke it; that also shows that it is alive."""

PLACE = 5.0
"""Seconds after which a waiter that has not tried again is taken for dead (L12)."""

WITHDRAW = 1.0
"""Seconds that a waiter who gives up spends at most on leaving the line."""


class _Waiter:
    """Somebody in line, as the backend knows him that is closed: he leaves it first (B3).

    Attributes:
        gone: Set when he has left.
    """

    def __init__(self, ticket: Ticket, gone: Event) -> None:
        self._ticket = ticket
        self.gone = gone

    def stop(self) -> None:
        self._ticket.fail(ClosedError("the backend was closed"))

    async def close(self) -> None:
        await self.gone.wait(WITHDRAW)


async def wait_in_line(
    engine: Engine,
    attempt: Callable[[str, Place], Awaitable[T | Denied]],
    withdraw: Callable[[str], Awaitable[None]],
    until: float,
) -> T | None:
    """Try, and try again when woken, until it is granted or the time is over: then return None.

    Arguments:
        engine: The backend's.
        attempt: Makes one try, given a token of this waiter and its place in line.
        withdraw: Leaves the line, and gives back what may have been granted meanwhile; called in every bad end.
        until: When the time is over, on the runtime's clock.
    """
    desk = engine.desk
    await desk.open()
    ticket = desk.expect()
    waiter = _Waiter(ticket, engine.runtime.event())
    engine.keep(waiter)
    try:
        while isinstance(found := await attempt(ticket.id, Place(desk.channel, PLACE)), Denied):
            left = until - engine.runtime.now()
            if left <= 0:
                await withdraw(ticket.id)
                return None
            await ticket.wake(min(left, max(found.retry_after, 0.001), RECHECK))
    except BaseException:
        await withdraw(ticket.id)
        raise
    finally:
        desk.forget(ticket)
        engine.forget(waiter)
        waiter.gone.set()
    return found
