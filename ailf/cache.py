"""A cache of values that are made once for each key."""

from collections.abc import Callable
from typing import Final, TypeVar

__all__ = ["KeyedCache"]

K = TypeVar("K")
V = TypeVar("V")


class KeyedCache(dict[K, V]):
    """A dictionary that makes missing values, and is cleared when it is full.

    A hit, ``cache[key]``, costs no more than in any dictionary; `functools.lru_cache` packs its arguments first.

    Arguments:
        make: Returns the value of a key.
    """

    MOST: Final = 4096

    def __init__(self, make: Callable[[K], V]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: K) -> V:
        """Make the value and keep it."""
        if len(self) >= self.MOST:
            self.clear()
        value = self[key] = self._make(key)
        return value
