"""SIGTERM and Ctrl-C stop workers: one registry per process, whatever the number of workers and event loops.

The first signal stops every worker that takes it; a second one acts as it did before. A signal is taken by itself where
its handler is the default: the system's, Python's, or that of `asyncio.Runner`. Any other handler is the program's own
and stays, unless `signals=True` asks for more: then it is called too, after the workers were told.
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
    """Return the option `signals`, or say what is wrong with it."""
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
        numbers: The signals that it takes.
        installs: Whether it runs in the main thread, so that handlers stay installed while it lasts.
        told: Whether it was told to stop.
    """

    callback: Callable[[], None]
    numbers: frozenset[int]
    installs: bool
    told: bool = False


class _Registry:
    """The workers that signals stop, and the handlers that were there before ours."""

    def __init__(self) -> None:
        self._watchers: list[_Watcher] = []
        self._before: dict[int, Any] = {}
        self._pid = os.getpid()
        self._handler = self._handle  # one object, so that it can be recognised

    def numbers(self, wanted: bool | None, *, installs: bool) -> frozenset[int]:  # noqa: FBT001 - as the option has it
        """Return the signals that a worker takes; outside the main thread those that a worker of that thread takes.

        Raises:
            InvalidArgumentError: `signals=True`, where Python lets nobody install a handler.
        """
        self._check_process()
        if wanted is False:
            return frozenset()
        if installs:
            return frozenset(each for each in SIGNALS if self._takes(signal.getsignal(each), wanted))
        if wanted and any(signal.getsignal(each) is not self._handler for each in SIGNALS):
            raise InvalidArgumentError(
                "signals=True works in the main thread only, where Python handles signals. Call process or run there, "
                "or leave signals out and call stop()"
            )
        return frozenset(SIGNALS)

    def _takes(self, handler: Any, wanted: bool | None) -> bool:  # noqa: FBT001 - as above
        if handler is None:  # it was installed by C code, and could not be put back
            return False
        return handler is self._handler or bool(wanted) or _is_default(handler)

    def add(self, watcher: _Watcher) -> None:
        """Tell this worker, too, of the first signal."""
        self._watchers.append(watcher)
        for number in watcher.numbers if watcher.installs else ():
            handler = signal.getsignal(number)
            if handler is not self._handler:
                self._before[number] = handler
                signal.signal(number, self._handler)

    def remove(self, watcher: _Watcher) -> None:
        """Tell this worker no more; the last one puts back the handlers."""
        if watcher not in self._watchers:  # a forked child leaves its parent's workers
            return
        self._watchers.remove(watcher)
        if watcher.installs:
            kept = {number for each in self._watchers if each.installs for number in each.numbers}
            self._restore([number for number in watcher.numbers if number not in kept])

    def _restore(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            before = self._before.get(number)
            if before is None:
                continue
            if signal.getsignal(number) is self._handler:  # else another one was put over ours
                signal.signal(number, _standard(number) if _is_stale(before) else before)
            del self._before[number]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._check_process()
        before = self._before.get(number, _standard(number))
        waiting = [each for each in self._watchers if number in each.numbers and not each.told]
        for watcher in waiting:
            watcher.told = True
            watcher.callback()
        told = {each for each in self._before if all(one.told for one in self._watchers if each in one.numbers)}
        self._restore(told)  # a second signal acts as it did before
        if not waiting or not _is_default(before):
            _act(before, number, frame)

    def _check_process(self) -> None:
        """Drop what a forked child has inherited: its parent's workers don't run here."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._watchers.clear()
            if threading.current_thread() is threading.main_thread():  # else the first signal puts them back
                self._restore(tuple(self._before))


def _standard(number: int) -> Any:
    """Return the handler that Python itself installs."""
    return signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL


def _act(handler: Any, number: int, frame: FrameType | None) -> None:
    """Do what a handler does; the system's own is asked by sending the signal again."""
    if callable(handler):
        handler(number, frame)
    elif handler == signal.SIG_DFL:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _is_default(handler: Any) -> bool:
    """Tell whether a handler is the system's, Python's or asyncio's own, and not the program's."""
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        return True
    return _runner_of(handler) is not None


def _runner_of(handler: Any) -> asyncio.Runner | None:
    """Return the runner whose handler this is."""
    function = handler.func if isinstance(handler, functools.partial) else handler
    runner = getattr(function, "__self__", None)
    return runner if isinstance(runner, asyncio.Runner) else None


def _is_stale(handler: Any) -> bool:
    """Tell whether a handler is that of a runner whose main task is done: it would cancel nothing any more."""
    if _runner_of(handler) is None or not isinstance(handler, functools.partial):
        return False
    task = handler.keywords.get("main_task")
    return isinstance(task, asyncio.Task) and task.done()


_registry = _Registry()


@contextlib.contextmanager
def stopped_by_signals(callback: Callable[[], None], signals: bool | None) -> Iterator[None]:  # noqa: FBT001 - as above
    """Call back on the first SIGTERM or Ctrl-C while the context lasts.

    Arguments:
        callback: Called in a signal handler, in the main thread: it must neither block nor take a lock.
        signals: True: both, also where the program has handlers of its own, which are called after this; False:
            neither; None: those whose handlers are the default ones.

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
