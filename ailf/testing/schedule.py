"""Seeded schedules: an event loop that runs tasks in an order that a seed decides, so that a failing order is repeated.

Asyncio runs tasks first in, first out, and a step of the memory backend doesn't wait. So a race that shows on a server
may never show in a test. Here tasks that are ready run in a random order, some of them later, and each request of the
backend yields before and after it. The time is virtual: it jumps to the next timer when no task is ready.
"""

import asyncio
import os
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from ailf.backend import AsyncBackend
from ailf.checks import check_count, check_seconds
from ailf.errors import InvalidArgumentError
from ailf.testing.faults import Faults
from ailf.testing.scheduled_loop import ScheduledLoop, VirtualClock

__all__ = ["explore_schedules", "run_schedule"]

T = TypeVar("T")

VARIABLE: Final = "AILF_SEED"
"""The environment variable that names the one seed to run."""


def run_schedule(main: Callable[[AsyncBackend], Coroutine[Any, Any, T]], *, seed: int, timeout: float = 3600.0) -> T:
    """Run a coroutine function with a new memory backend, under the schedule of a seed; return its result.

    The same seed gives the same order of tasks again, as long as nothing else than tasks decides it: no threads, no
    sockets, no real time. The seed also goes for the module `random` while this runs.

    >>> import ailf
    >>> from ailf.testing import run_schedule
    >>> async def main(backend: ailf.AsyncBackend) -> ailf.StreamInfo:
    ...     await backend.stream("tasks").add(1)
    ...     return await backend.stream("tasks").info()
    >>> run_schedule(main, seed=7).length
    1

    Arguments:
        main: Called with the backend. The backend's time is virtual: it jumps to the next timer.
        seed: The seed.
        timeout: The seconds of virtual time after which `main` is cancelled.

    Raises:
        TimeoutError: ``main`` has not ended in time.
        BaseException: What ``main`` raises, with a note that names the seed.
    """
    from ailf_memory import AsyncMemoryBackend  # noqa: PLC0415 - only schedules need a backend

    check_seconds("timeout", timeout)
    clock = VirtualClock()

    async def run() -> T:
        async with asyncio.timeout(timeout), AsyncMemoryBackend(clock) as backend:
            Faults(backend)
            return await main(backend)

    state = random.getstate()
    random.seed(seed)
    try:
        with asyncio.Runner(loop_factory=lambda: ScheduledLoop(seed, clock)) as runner:
            return runner.run(run())
    except BaseException as error:
        error.add_note(
            f"The schedule of seed {seed} fails: run_schedule(…, seed={seed}) or {VARIABLE}={seed} repeats it"
        )
        raise
    finally:
        random.setstate(state)


def explore_schedules(
    main: Callable[[AsyncBackend], Coroutine[Any, Any, Any]], *, seeds: int = 100, timeout: float = 3600.0
) -> None:
    """Run a coroutine function under the schedules of many seeds, until one fails; see `run_schedule`.

    With the environment variable ``AILF_SEED`` only that seed is run.

    Arguments:
        main: Called with a new memory backend for each seed. It raises if the crew did wrong.
        seeds: How many seeds; the first is 0.
        timeout: As for `run_schedule`.

    Raises:
        InvalidArgumentError: ``AILF_SEED`` isn't a number.
        BaseException: What ``main`` raises, with a note that names the seed.
    """
    only = os.environ.get(VARIABLE)
    if only is not None and not only.strip().lstrip("-").isdecimal():
        raise InvalidArgumentError(f"{VARIABLE} must be a whole number, not {only!r}")
    for seed in range(check_count("seeds", seeds)) if only is None else [int(only)]:
        run_schedule(main, seed=seed, timeout=timeout)
