"""Callers who wait for what one of them fetches: one leads, and the others sleep until there is something for them.

What comes wakes no more than it is for. It calls two, and each of them two more when he has come, as long as there is
something left: so where one takes everything before the others come, two have come for nothing, and not a hundred.

No call is lost: who was called and leaves without taking anything, because he was cancelled, his time was over or the
end had come, calls the next one by `rouse`; so does who stops leading.
"""

from collections.abc import Awaitable, Callable, Sized

import attrs

from ailf.runtime.base import Event, Runtime

__all__ = ["LeaderFollowers"]

AT_ONCE = 2
"""How many are called by one."""


@attrs.define(eq=False)
class _Turn:
    """One who sleeps: what wakes him, and what his leader failed with."""

    event: Event
    error: Exception | None = None


class LeaderFollowers:
    """Those who wait for the same things.

    Attributes:
        there: What has come and nobody has taken yet.
    """

    def __init__(self, runtime: Runtime, there: Sized) -> None:
        self.there = there
        self._runtime = runtime
        self._guard = runtime.guard()
        self._leading = False
        self._asleep: dict[_Turn, None] = {}  # in the order of arrival
        self._called: set[_Turn] = set()

    async def more(self, fetch: Callable[[], Awaitable[None]], timeout: float | None) -> None:
        """Fetch, where nobody does; else sleep until called, for so many seconds. There may be nothing afterwards.

        Raises:
            Exception: What fetching failed with, for all who waited for it.
        """
        with self._guard:
            leads, self._leading = not self._leading, True
            if not leads:
                turn = _Turn(self._runtime.event())
                self._asleep[turn] = None
        if leads:
            await self._lead(fetch)
        else:
            await self._sleep(turn, timeout)

    async def _lead(self, fetch: Callable[[], Awaitable[None]]) -> None:
        try:
            await fetch()
        except Exception as error:
            with self._guard:
                self._call(len(self._asleep), error)
            raise
        finally:
            with self._guard:  # who has just seen a leader has lain down when this one rouses
                self._leading = False

    async def _sleep(self, turn: _Turn, timeout: float | None) -> None:
        try:
            await turn.event.wait(timeout)
        finally:
            with self._guard:
                self._asleep.pop(turn, None)  # called by nobody: his time is over, or he was cancelled
                self._called.discard(turn)
                self._call(min(AT_ONCE, len(self.there) - 1 - len(self._called)))
        if turn.error is not None:
            raise turn.error

    def rouse(self) -> None:
        """Call some for what there is, or one to lead where nobody does, unless somebody is on his way already."""
        if self._called or not self._asleep:  # who lies down just now sees for himself, or has a leader who will rouse
            return
        with self._guard:
            self._call(min(AT_ONCE, max(len(self.there), not self._leading)))

    def _call(self, count: int, error: Exception | None = None) -> None:
        for turn in list(self._asleep)[: max(0, count)]:
            del self._asleep[turn]
            turn.error = error
            self._called.add(turn)
            turn.event.set()
