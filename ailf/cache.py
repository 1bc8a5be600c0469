"""What is made once for each key and asked for again and again."""

from collections.abc import Callable
from typing import Final, TypeVar

__all__ = ["KeyedCache"]

K = TypeVar("K")
V = TypeVar("V")


class KeyedCache(dict[K, V]):
    """A dictionary that makes what it doesn't have, and keeps as much as is worth keeping.

    What it has, ``memo[key]`` finds as quickly as any dictionary does; `functools.lru_cache` looks at arguments first.

    Arguments:
        make: Returns what belongs to a key.
    """

    MOST: Final = 4096

    def __init__(self, make: Callable[[K], V]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: K) -> V:
        """Make it."""
        if len(self) >= self.MOST:
            self.clear()
        made = self[key] = self._make(key)
        return made
