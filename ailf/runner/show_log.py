r"""The log of the runner and its workers on stderr. Nothing else in here makes records or handles them.

Records quote messages and errors of users. What a terminal would interpret is written as an escape, such as ``\x1b``.
"""

import contextlib
import logging
from collections.abc import Iterator

from ailf.runner.options import FORMAT

__all__ = ["show_log", "shown_log"]


class _Formatter(logging.Formatter):
    """Formats a record without control characters, but for the ends of lines and tabs, which tracebacks have."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return "".join(map(_shown, super().format(record)))


def _shown(char: str) -> str:
    if char.isprintable() or char in "\n\t":
        return char
    return char.encode("unicode_escape", "surrogatepass").decode()


def _handler() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(FORMAT))
    return handler


@contextlib.contextmanager
def shown_log(level: str) -> Iterator[None]:
    """Within the block, show the log of the runner on stderr, unless the program shows logs itself."""
    if logging.getLogger().handlers:
        yield
        return
    log = logging.getLogger("ailf.runner")
    handler = _handler()
    before = log.level, log.propagate
    log.setLevel(level.upper())
    log.propagate = False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


def show_log(level: str) -> None:
    """Show the log of a worker process on stderr, that of the app's own code, too."""
    logging.basicConfig(level=level.upper(), handlers=[_handler()])
