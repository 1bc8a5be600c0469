"""Ctrl-C at a chosen moment: what a signal's handler does that raises, without waiting for luck."""

import linecache
import sys
from types import FrameType
from typing import Any, Self

__all__ = ["Interruption"]


class Interruption:
    """Raises KeyboardInterrupt at the k-th line or call in some files, as a signal's handler might.

    Lines with ``with`` and ``try`` don't count. That of ``with`` is told once more where the block ends; no handler of
    a signal runs between that and ``__exit__``, nor at a ``try``.

    Attributes:
        at: Where it was raised; "" where the code ended before.
    """

    def __init__(self, moment: int, *, within: tuple[str, ...], spared: tuple[str, ...] = ()) -> None:
        """Choose the moment.

        Arguments:
            moment: The how many-th line or call it is.
            within: What a file's path has to contain, one of these, for its lines to count.
            spared: What the qualified names of functions end with whose lines don't.
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
        if not any(each in code.co_filename for each in self._within) or code.co_qualname.endswith(self._spared):
            return None
        if event == "call" or (event == "line" and not _enters(frame)):
            self._left -= 1
            if self._left == 0:
                self.at = f"{code.co_qualname} {event} {frame.f_lineno}"
                sys.settrace(None)
                raise KeyboardInterrupt(self.at)
        return self._trace


def _enters(frame: FrameType) -> bool:
    return (
        linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        .lstrip()
        .startswith(("with ", "async with ", "try:"))
    )
