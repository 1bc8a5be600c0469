"""An object of a backend: handed out by one, or made alone, and then with a backend of its own."""

import threading
from abc import ABC, abstractmethod

from ailf.engine import Engine

__all__ = ["Attached"]


class Attached(ABC):
    """Knows the engine of its backend.

    One that a backend handed out uses that backend. One that was made alone opens a backend at its first use, not when
    it is made, and closes it again.
    """

    def __init__(self, engine: Engine | None) -> None:
        self._given = engine
        self._own: Engine | None = None
        self._opening = threading.Lock()

    @abstractmethod
    def _open_engine(self) -> Engine:
        """Open the backend that an object made alone uses."""

    @property
    def _engine(self) -> Engine:
        if self._given is not None:
            return self._given
        with self._opening:
            if self._own is None:
                self._own = self._open_engine()
        return self._own

    async def _close(self) -> None:
        """Close the backend that this object opened itself; nothing where it was handed out by one."""
        if self._own is not None:
            await self._own.close()
