"""Tools for tests of agents: a clock that is moved by hand."""

from ailf.testing.clock import Clock, ManualClock, SystemClock

__all__ = ["Clock", "ManualClock", "SystemClock"]
