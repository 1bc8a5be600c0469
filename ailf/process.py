"""The number of this process, as every call looks whether it was forked; the kernel takes longer to tell it.

Python itself runs what is registered here in a forked child, before anything else of it.
"""

import os
import sys
from typing import Final

__all__ = ["HERE"]


class _Process:
    """The process that looks at it.

    Attributes:
        pid: Its number.
    """

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.look()

    def look(self) -> None:
        """Ask for the number."""
        self.pid = os.getpid()


HERE: Final = _Process()

if sys.platform != "win32":  # which doesn't fork
    os.register_at_fork(after_in_child=HERE.look)
