"""The event loop of a schedule: it runs the tasks that are ready in an order that a seed decides.

Only tasks change places. Other callbacks, such as those of futures, keep the order that asyncio promises. The time is
virtual: it jumps to the next timer when nothing is ready.
"""

import asyncio
import math
import random
from asyncio import _get_running_loop
from typing import Any, Final
from weakref import WeakKeyDictionary

from ailf.engine.renewal import Renewer
from ailf.testing.clock import ManualClock

__all__ = ["ScheduledLoop", "VirtualClock", "pause"]

MOST_PAUSES: Final = 2
"""The most passes of the event loop by which a request is delayed, before and after it."""

LATER: Final = 0.3
"""The share of the tasks that are ready which wait for another pass."""

RESOLUTION: Final = 0.001
"""The least move of the clock, in seconds."""

STEP: Final = 1 / 6
"""The share of the shortest lease by which the clock moves at most: a lease is renewed after a third."""


class VirtualClock(ManualClock):
    """A clock that only the event loop moves; real time doesn't count."""

    def wait_time(self) -> float:
        """Return the seconds by which the clock was advanced."""
        return self.lease_time()

    def pass_by(self, seconds: float) -> None:
        """Advance in steps so short that the leases which are held are renewed meanwhile."""
        until = self.lease_time() + seconds
        while (left := until - self.lease_time()) > 0:
            held = [
                lease.lease for each in tuple(self._followers) if isinstance(each, Renewer) for lease in each.leases()
            ]
            step = min(left, min(held, default=math.inf) * STEP)
            self.advance(max(RESOLUTION, math.ceil(step / RESOLUTION) * RESOLUTION))


class ScheduledLoop(asyncio.SelectorEventLoop):
    """An event loop that runs tasks in a random order."""

    def __init__(self, seed: int, clock: VirtualClock) -> None:
        self._chance = random.Random(seed)  # noqa: S311 - a test's, to be repeated
        self._virtual = clock
        self._numbers: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()
        self._count = 0
        super().__init__()

    def time(self) -> float:
        """Return the virtual time."""
        return self._virtual.lease_time()

    def pauses(self) -> int:
        """Return by how many passes the next request is delayed."""
        return self._chance.randint(0, MOST_PAUSES)

    def _run_once(self) -> None:
        """Run one pass: with the tasks shuffled, and the clock moved if nothing else can happen."""
        ready: Any = self._ready  # type: ignore[attr-defined]  # asyncio has no public name for its queue
        later = self._shuffle(ready) if len(ready) > 1 else []
        if not ready:
            self._skip_to_timer()
        try:
            super()._run_once()  # type: ignore[misc]  # as above
        finally:
            ready.extendleft(reversed(later))

    def _shuffle(self, ready: Any) -> list[Any]:
        """Shuffle the places of the tasks in the queue; remove some from it, and return these."""
        handles = list(ready)
        places = [place for place, handle in enumerate(handles) if _task_of(handle) is not None]
        tasks = sorted((handles[place] for place in places), key=self._number)
        self._chance.shuffle(tasks)
        for place, handle in zip(places, tasks, strict=True):
            handles[place] = handle
        later = [handle for handle in tasks[1:] if self._chance.random() < LATER]
        ready.clear()
        ready.extend(handle for handle in handles if handle not in later)
        return later

    def _number(self, handle: Any) -> int:
        """Return the number of a handle's task. Tasks that wait in a set are woken in any order, and so are sorted."""
        task = _task_of(handle)
        assert task is not None  # noqa: S101 - the caller has chosen such handles
        number = self._numbers.get(task)
        if number is None:
            self._count += 1
            number = self._numbers[task] = self._count
        return number

    def _skip_to_timer(self) -> None:
        """Move the clock to the next timer."""
        timers = [each.when() for each in self._scheduled if not each.cancelled()]  # type: ignore[attr-defined]
        left = min(timers, default=0.0) - self.time()
        if timers and left > 0:
            self._virtual.pass_by(left)


def _task_of(handle: Any) -> "asyncio.Task[Any] | None":
    """Return the task whose step a handle is; None for any other callback."""
    task = getattr(handle._callback, "__self__", None)  # noqa: SLF001 - as above
    return task if isinstance(task, asyncio.Task) else None


async def pause() -> None:
    """Let other tasks run before a request, by the seed, if a schedule is under way."""
    loop = _get_running_loop()
    if isinstance(loop, ScheduledLoop):
        for _ in range(loop.pauses()):
            await asyncio.sleep(0)
