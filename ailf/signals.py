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
from collections.abc import Callable, Iterator
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


@attrs.frozen(eq=False)
class _Watcher:
    """One worker.

    Attributes:
        callback: Called in the signal handler, on the first signal.
        numbers: The signals that it takes.
        installs: Whether it runs in the main thread, so that handlers stay installed while it lasts.
    """

    callback: Callable[[], None]
    numbers: frozenset[int]
    installs: bool


class _Registry:
    """The workers that signals stop, and the handlers that were there before ours."""

    def __init__(self) -> None:
        self._watchers: list[_Watcher] = []
        self._before: dict[int, Any] = {}
        self._pid = os.getpid()
        self._handler = self._handle  # one object, so that it can be recognised

    def numbers(self, wanted: bool | None, *, installs: bool) -> frozenset[int]:  # noqa: FBT001 - as the option has it
        """Return the signals that a worker takes.

        Raises:
            InvalidArgumentError: `signals=True`, where Python lets nobody install a handler.
        """
        if wanted is False:
            return frozenset()
        taken = {each for each in SIGNALS if self._takes(signal.getsignal(each), wanted, installs=installs)}
        if wanted and len(taken) < len(SIGNALS):
            raise InvalidArgumentError(
                "signals=True works in the main thread only, where Python handles signals. Call process or run there, "
                "or leave signals out and call stop()"
            )
        return frozenset(taken)

    def _takes(self, handler: Any, wanted: bool | None, *, installs: bool) -> bool:  # noqa: FBT001 - as above
        if handler is self._handler:
            return True
        if not installs or handler is None:  # None: it was installed by C code, and could not be put back
            return False
        return bool(wanted) or _is_default(handler)

    def add(self, watcher: _Watcher) -> None:
        """Tell this worker, too, of the first signal."""
        if self._pid != os.getpid():
            self._forget_parent()
        self._watchers.append(watcher)
        for number in watcher.numbers if watcher.installs else ():
            handler = signal.getsignal(number)
            if handler is not self._handler:
                self._before[number] = handler
                signal.signal(number, self._handler)

    def remove(self, watcher: _Watcher) -> None:
        """Tell this worker no more; the last one puts back the handlers."""
        if watcher in self._watchers:  # not where a child has left its parent's workers
            self._watchers.remove(watcher)
        if watcher.installs:
            kept = {number for each in self._watchers if each.installs for number in each.numbers}
            self._restore([number for number in watcher.numbers if number not in kept])

    def _restore(self, numbers: list[int]) -> None:
        for number in numbers:
            before = self._before.pop(number, None)
            if before is not None and signal.getsignal(number) is self._handler:  # else another one was put over ours
                signal.signal(number, before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(number)
        self._restore(list(self._before))
        if self._pid != os.getpid():
            self._forget_parent()
            os.kill(os.getpid(), number)
            return
        for watcher in tuple(self._watchers):
            if number in watcher.numbers:
                watcher.callback()
        if callable(before) and not _is_default(before):
            before(number, frame)

    def _forget_parent(self) -> None:
        """Drop what a forked child has inherited: its parent's workers don't run here."""
        self._watchers.clear()
        self._restore(list(self._before))
        self._pid = os.getpid()


def _is_default(handler: Any) -> bool:
    """Tell whether a handler is the system's, Python's or asyncio's own, and not the program's."""
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        return True
    function = handler.func if isinstance(handler, functools.partial) else handler
    return isinstance(getattr(function, "__self__", None), asyncio.Runner)


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
