"""The id of this process without a system call, which takes a microsecond on some virtual machines."""

import os
from collections.abc import Callable
from functools import partial
from typing import Final

__all__ = ["process_id"]

_ids: Final = [os.getpid()]


def _set_id() -> None:
    _ids[0] = os.getpid()


if hasattr(os, "register_at_fork"):  # else the system can't fork
    os.register_at_fork(after_in_child=_set_id)

process_id: Callable[[], int] = partial(_ids.__getitem__, 0)
"""Return what `os.getpid` returns. Python itself notices a fork, whichever way it was made."""
