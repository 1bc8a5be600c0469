"""The log of the runner and its workers on stderr. Nothing else in here makes records or handles them."""

import contextlib
import logging
from collections.abc import Iterator

from ailf.runner.options import FORMAT

__all__ = ["show_log", "shown_log"]


@contextlib.contextmanager
def shown_log(level: str) -> Iterator[None]:
    """Within the block, show the log of the runner on stderr, unless the program shows logs itself."""
    if logging.getLogger().handlers:
        yield
        return
    log = logging.getLogger("ailf.runner")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT))
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
    logging.basicConfig(level=level.upper(), format=FORMAT)
