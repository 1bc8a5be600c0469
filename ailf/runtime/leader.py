"""Leader/followers: of all callers that wait on one buffer, one (the leader) fetches, and the others sleep.

New items wake two followers; each follower wakes two more while items are left. So one item costs at most two wake-ups,
not one per waiter (no thundering herd). No wake-up is lost: a follower that was woken and leaves without an item,
because it was cancelled or its time has passed, wakes the next one by `wake`; so does a leader that stops.

The fetch is a single flight: a leader that is cancelled leaves it under way, and the next leader waits for it.
"""

from collections.abc import Sized

import attrs

from ailf.runtime.base import Event, Flow, Runtime

__all__ = ["LeaderFollowers"]

WOKEN_AT_ONCE = 2
"""The number of followers that one `wake` wakes at most."""


@attrs.define(eq=False)
class _Follower:
    """A caller that sleeps: the event that wakes it, and the error of its leader's fetch."""

    event: Event
    error: Exception | None = None


class LeaderFollowers:
    """The callers that wait for items of one buffer.

    Arguments:
        runtime: The runtime of the callers.
        items: The buffer.

    Attributes:
        asleep: The callers that sleep, in the order of arrival.
        leading: Whether a caller leads.
    """

    def __init__(self, runtime: Runtime, items: Sized) -> None:
        self._items = items
        self._runtime = runtime
        self._guard = runtime.guard()
        self._fetching = runtime.single_flight()
        self.leading = False
        self.asleep: dict[_Follower, None] = {}
        self._woken: set[_Follower] = set()

    async def wait_for_item(self, fetch: Flow, timeout: float | None) -> None:
        """Fetch, if no caller does; else sleep until woken. There may be no item afterwards.

        Arguments:
            fetch: The flow that fetches; it fills the buffer and calls `wake`.
            timeout: Seconds to wait at most; None: without limit.

        Raises:
            Exception: The error of the fetch; every caller that waited for it gets it.
        """
        with self._guard:
            leads, self.leading = not self.leading, True
            if not leads:
                follower = _Follower(self._runtime.event())
                self.asleep[follower] = None
        if leads:
            await self._lead(fetch, timeout)
        else:
            await self._sleep(follower, timeout)

    async def _lead(self, fetch: Flow, timeout: float | None) -> None:
        try:
            await self._fetching.run(fetch, timeout)
        except Exception as error:
            with self._guard:
                self._wake(len(self.asleep), error)
            raise
        finally:
            with self._guard:  # a follower that saw `_leading` is registered before this caller wakes any
                self.leading = False

    async def _sleep(self, follower: _Follower, timeout: float | None) -> None:
        try:
            await follower.event.wait(timeout)
        finally:
            with self._guard:
                self.asleep.pop(follower, None)  # not woken: its time is over, or it was cancelled
                self._woken.discard(follower)
                self._wake(min(WOKEN_AT_ONCE, len(self._items) - 1 - len(self._woken)))
        if follower.error is not None:
            raise follower.error

    def wake(self) -> None:
        """Wake followers for the items in the buffer, or one to lead if none does; nothing while one is still awake."""
        if self._woken or not self.asleep:  # a follower that goes to sleep now has a leader
            return
        with self._guard:
            self._wake(min(WOKEN_AT_ONCE, max(len(self._items), not self.leading)))

    def _wake(self, count: int, error: Exception | None = None) -> None:
        for follower in list(self.asleep)[: max(0, count)]:
            del self.asleep[follower]
            follower.error = error
            self._woken.add(follower)
            follower.event.set()

    def waiting(self) -> bool:
        """Return whether any caller waits; a fetch may be under way although its leader was cancelled."""
        return self.leading or bool(self.asleep or self._woken)

    async def wait_idle(self, timeout: float) -> bool:
        """Wait until no fetch is under way, for `timeout` seconds at most; return whether that is so."""
        return await self._fetching.wait_idle(timeout)
