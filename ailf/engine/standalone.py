"""An object of a backend, or one that was made alone and opens a backend of its own."""

import threading
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from ailf.engine.engine import Engine

__all__ = ["StandaloneObject"]


class HasEngine(Protocol):
    """A backend."""

    @property
    def engine(self) -> Engine:
        """The backend's engine."""


def _opens_class(backend: Callable[[], HasEngine]) -> Callable[[Any], HasEngine]:
    return lambda _: backend()


class StandaloneObject:
    """Knows the engine of its backend.

    An object that a backend handed out uses that backend. One that was made alone opens a backend at its first use, not
    when it is made, and closes it again. Which backend that is, its class says: ``class MyStream(Stream[T],
    opens=MyBackend)``. A class without `opens` can't be made alone.

    Arguments:
        opens: A class of backends, or a function that returns a backend for the object it is given.
    """

    _opens: ClassVar["staticmethod[[Any], HasEngine] | None"] = None

    def __init_subclass__(cls, *, opens: Callable[..., HasEngine] | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if opens is not None:
            cls._opens = staticmethod(_opens_class(opens) if isinstance(opens, type) else opens)

    def __init__(self, engine: Engine | None) -> None:
        if engine is None and self._opens is None:
            raise TypeError(
                f"{type(self).__name__} is abstract: get one from a backend, or use a backend's own class, such as "
                "ailf_redis.RedisStream or ailf_memory.MemoryStream"
            )
        self._given = engine
        self._own: Engine | None = None
        self._opening = threading.Lock()

    def _open_engine(self) -> Engine:
        """Open the backend that an object made alone uses."""
        assert self._opens is not None, "checked when it was made"  # noqa: S101 - for mypy
        return self._opens(self).engine

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
