"""SIGTERM and Ctrl-C stop workers: one registry per process, for all workers and event loops.

The first signal stops every worker that handles it; a second one has its previous effect. By default workers handle a
signal where its handler is a default one: the system's, Python's, or that of `asyncio.Runner`. Any other handler is the
program's own and stays in place. With `signals=True` it is replaced, and called after the workers' callbacks.
"""

import asyncio
import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, Final

import attrs

from ailf.errors import InvalidArgumentError

__all__ = ["check_signals", "stopped_by_signals"]

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def check_signals(signals: object) -> bool | None:
    """Return the option `signals`.

    Raises:
        InvalidArgumentError: It is neither a bool nor None.
    """
    if signals is not None and not isinstance(signals, bool):
        raise InvalidArgumentError(
            f"signals must be True, False, or None (the signals whose handlers are the default ones), not {signals!r}"
        )
    return signals


@attrs.define(eq=False)
class _Watcher:
    """One worker.

    Attributes:
        callback: Called in the signal handler, on the first signal.
        numbers: The signals that it handles.
        installs: Whether it runs in the main thread, so that handlers stay installed until it ends.
        called: Whether `callback` was called.
    """

    callback: Callable[[], None]
    numbers: frozenset[int]
    installs: bool
    called: bool = False


class _Registry:
    """The workers that signals stop, and the handlers that ours replaced."""

    def __init__(self) -> None:
        self._watchers: list[_Watcher] = []
        self._previous: dict[int, Any] = {}
        self._pid = os.getpid()
        self._handler = self._handle  # one object, as a bound method is new at each access

    def numbers(self, wanted: bool | None, *, installs: bool) -> frozenset[int]:  # noqa: FBT001 - as the option has it
        """Return the signals that a worker handles.

        Outside the main thread these are all signals; they reach the worker while one of the main thread handles them.

        Raises:
            InvalidArgumentError: `signals=True` outside the main thread, where Python can't install a handler.
        """
        self._check_process()
        if wanted is False:
            return frozenset()
        if installs:
            return frozenset(each for each in SIGNALS if self._handles(signal.getsignal(each), wanted))
        if wanted and any(signal.getsignal(each) is not self._handler for each in SIGNALS):
            raise InvalidArgumentError(
                "signals=True works in the main thread only, where Python runs signal handlers. Call process or run "
                "there, or omit signals and call stop()"
            )
        return frozenset(SIGNALS)

    def _handles(self, handler: Any, wanted: bool | None) -> bool:  # noqa: FBT001 - as above
        if handler is None:  # C code installed it, so Python could not restore it
            return False
        return handler is self._handler or bool(wanted) or _is_default(handler)

    def add(self, watcher: _Watcher) -> None:
        """Add a worker, and install the handlers of its signals."""
        self._watchers.append(watcher)
        for number in watcher.numbers if watcher.installs else ():
            handler = signal.getsignal(number)
            if handler is not self._handler:
                self._previous[number] = handler
                signal.signal(number, self._handler)

    def remove(self, watcher: _Watcher) -> None:
        """Remove a worker; the last one restores the handlers."""
        if watcher not in self._watchers:  # a forked child has dropped its parent's workers
            return
        self._watchers.remove(watcher)
        if watcher.installs:
            kept = {number for each in self._watchers if each.installs for number in each.numbers}
            self._restore([number for number in watcher.numbers if number not in kept])

    def _restore(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            previous = self._previous.get(number)
            if previous is None:
                continue
            if signal.getsignal(number) is self._handler:  # else another one has replaced ours
                signal.signal(number, _python_default(number) if _is_stale(previous) else previous)
            del self._previous[number]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._check_process()
        previous = self._previous.get(number, _python_default(number))
        uncalled = [each for each in self._watchers if number in each.numbers and not each.called]
        for watcher in uncalled:
            watcher.called = True
            watcher.callback()
        finished = {each for each in self._previous if all(one.called for one in self._watchers if each in one.numbers)}
        self._restore(finished)  # a second signal has its previous effect
        if not uncalled or not _is_default(previous):
            _call_handler(previous, number, frame)

    def _check_process(self) -> None:
        """In a forked child, drop the parent's workers, which don't run there."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._watchers.clear()
            if threading.current_thread() is threading.main_thread():  # else the first signal restores them
                self._restore(tuple(self._previous))


def _python_default(number: int) -> Any:
    """Return the handler that Python installs at start."""
    return signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL


def _call_handler(handler: Any, number: int, frame: FrameType | None) -> None:
    """Call a handler; for the system's own, install it and send the signal again."""
    if callable(handler):
        handler(number, frame)
    elif handler == signal.SIG_DFL:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _is_default(handler: Any) -> bool:
    """Return whether a handler is the system's, Python's or asyncio's own, and not the program's."""
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        return True
    return _runner_of(handler) is not None


def _runner_of(handler: Any) -> asyncio.Runner | None:
    """Return the `asyncio.Runner` that installed this handler; None if none did."""
    function = handler.func if isinstance(handler, functools.partial) else handler
    runner = getattr(function, "__self__", None)
    return runner if isinstance(runner, asyncio.Runner) else None


def _is_stale(handler: Any) -> bool:
    """Return whether a handler belongs to a runner whose main task is done: it has nothing left to cancel."""
    if _runner_of(handler) is None or not isinstance(handler, functools.partial):
        return False
    task = handler.keywords.get("main_task")
    return isinstance(task, asyncio.Task) and task.done()


_registry = _Registry()


@contextlib.contextmanager
def stopped_by_signals(callback: Callable[[], None], signals: bool | None) -> Iterator[None]:  # noqa: FBT001 - as above
    """Call `callback` on the first SIGTERM or Ctrl-C within the context.

    Arguments:
        callback: Called in a signal handler, in the main thread: it must neither block nor take a lock.
        signals: True: both signals, even where the program has handlers of its own, which are called afterwards;
            False: neither; None: those whose handlers are the default ones.

    Raises:
        InvalidArgumentError: True outside the main thread, where Python can't install a handler.
    """
    installs = threading.current_thread() is threading.main_thread()
    numbers = _registry.numbers(signals, installs=installs)
    if not numbers:
        yield
        return
    watcher = _Watcher(callback, numbers, installs)
    try:
        _registry.add(watcher)
        yield
    finally:
        _registry.remove(watcher)
