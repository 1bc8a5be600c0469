"""The runtimes for threads and asyncio: events, single flights, tasks and time for flows."""

from ailf.runtime.aio import AsyncioRuntime
from ailf.runtime.base import Event, Runtime, SingleFlight, Task, run
from ailf.runtime.thread_pool import ThreadPool
from ailf.runtime.threads import ThreadRuntime
from ailf.runtime.user_code import name_of

__all__ = [
    "AsyncioRuntime",
    "Event",
    "Runtime",
    "SingleFlight",
    "Task",
    "ThreadPool",
    "ThreadRuntime",
    "name_of",
    "run",
]
