"""Ctrl-C at a chosen moment: raise KeyboardInterrupt as a signal handler does, without waiting for luck."""

import linecache
import sys
from types import FrameType
from typing import Any, Self

__all__ = ["Interruption"]


class Interruption:
    """Raises KeyboardInterrupt at the k-th line or call in some files, as a signal handler might.

    Lines with ``with`` and ``try`` don't count. The trace reports a ``with`` line again at the end of its block; no
    signal handler runs between that and ``__exit__``, nor at a ``try``.

    Attributes:
        at: Where it was raised; "" if the code ended before.
    """

    def __init__(self, moment: int, *, within: tuple[str, ...], spared: tuple[str, ...] = ()) -> None:
        """Choose the moment.

        Arguments:
            moment: The number of the line or call, from 1.
            within: Only files whose path contains one of these count.
            spared: Functions whose qualified name ends with one of these don't count, nor do functions that they call.
        """
        self.at = ""
        self._left = moment
        self._within = within
        self._spared = spared

    def __enter__(self) -> Self:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if not any(each in code.co_filename for each in self._within) or self._spares(frame):
            return None
        if event == "call" or (event == "line" and not _enters(frame)):
            self._left -= 1
            if self._left == 0:
                self.at = f"{code.co_qualname} {event} {frame.f_lineno}"
                sys.settrace(None)
                raise KeyboardInterrupt(self.at)
        return self._trace

    def _spares(self, frame: FrameType) -> bool:
        return any(each.f_code.co_qualname.endswith(self._spared) for each in (frame, frame.f_back) if each is not None)


def _enters(frame: FrameType) -> bool:
    return (
        linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        .lstrip()
        .startswith(("with ", "async with ", "try:"))
    )
