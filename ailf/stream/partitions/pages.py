"""Requests to many partitions: how many go at once, and their results."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

__all__ = ["every", "pages"]

T = TypeVar("T")


def pages(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items in order, at most ``size`` at a time."""
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def every(results: Sequence[T | Exception]) -> list[T]:
    """Return the results of `StreamDriver.together`.

    Raises:
        Exception: The first error among them.
    """
    good: list[T] = []
    for each in results:
        if isinstance(each, Exception):
            raise each
        good.append(each)
    return good
