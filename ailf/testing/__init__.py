"""Tools for tests of agents: a manual clock, a recorder, faults, schedules. `ailf.testing.plugin` is for pytest."""

from ailf.testing.clock import Clock, ManualClock, SystemClock
from ailf.testing.faults import Faults
from ailf.testing.idle import run_until_idle, run_until_idle_async
from ailf.testing.recorder import Recorder
from ailf.testing.schedule import explore_schedules, run_schedule

__all__ = [
    "Clock",
    "Faults",
    "ManualClock",
    "Recorder",
    "SystemClock",
    "explore_schedules",
    "run_schedule",
    "run_until_idle",
    "run_until_idle_async",
]
