"""Standalone objects: an interface made without a backend opens a backend of its own."""

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
    """The base of the interfaces: it finds the engine of an object's backend.

    An object that a backend made, such as ``backend.stream("tasks")``, uses that backend. A standalone object opens a
    backend of its own at its first use, and closes it when it is closed itself. Its class names the backend:
    ``class MyStream(Stream[T], opens=MyBackend)``. A class without `opens` has no standalone objects.

    Arguments:
        engine: The engine of the backend that made the object; None: the object is standalone.
        opens: A class of backends, or a function that gets the object and returns a backend for it.

    Raises:
        TypeError: `engine` is None, and the class was defined without `opens`.
    """

    _opens: ClassVar["staticmethod[[Any], HasEngine] | None"] = None

    def __init_subclass__(cls, *, opens: Callable[..., HasEngine] | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if opens is not None:
            cls._opens = staticmethod(_opens_class(opens) if isinstance(opens, type) else opens)

    def __init__(self, engine: Engine | None) -> None:
        if engine is None and self._opens is None:
            raise TypeError(
                f"{type(self).__name__} is abstract: get one from a backend, or use the class of a backend, such as "
                "ailf_redis.RedisStream or ailf_memory.MemoryStream"
            )
        self._given = engine
        self._own: Engine | None = None
        self._opening = threading.Lock()

    def _open_engine(self) -> Engine:
        """Open the backend of a standalone object."""
        assert self._opens is not None, "checked by __init__"  # noqa: S101 - for mypy
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
        """Close the backend that a standalone object has opened; do nothing for an object that a backend made."""
        if self._own is not None:
            await self._own.close()
