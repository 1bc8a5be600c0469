"""`SortedNames`: the sorted names of a store's states, so that each page of a listing takes a bounded step.

The first page of a listing copies and sorts the names, without the store's lock; the pages after it find their place by
bisection. A name that exists from the first page to the last is in every copy that is made meanwhile, so listings under
way at the same time may share the newest one.
"""

import bisect
import itertools
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

__all__ = ["SortedNames"]

K = TypeVar("K", str, tuple[str, str, str, str])


class SortedNames(Generic[K]):
    """The sorted names of one kind.

    Arguments:
        copy: Returns the names that there are now. It must need no lock, as ``list`` of a dict doesn't.
        begins: Tells whether a name begins with a prefix; those that do are next to each other in order.
        least: Returns the least name that can begin with a prefix.
    """

    def __init__(
        self, copy: Callable[[], Iterable[K]], begins: Callable[[K, str], bool], least: Callable[[str], K]
    ) -> None:
        self._copy: Callable[[], Iterable[K]] = copy
        self._begins: Callable[[K, str], bool] = begins
        self._least: Callable[[str], K] = least
        self._names: list[K] | None = None
        self._number = 0
        self._numbers = itertools.count(1)

    def page(self, prefix: str, after: K | None, limit: int) -> tuple[list[K], bool]:
        """Return the next names with a prefix, and whether there are more.

        Arguments:
            prefix: The prefix.
            after: The last name of the page before; None for the first page.
            limit: The most names.
        """
        names = self._names
        if after is None or names is None:
            names = self._sorted()
        start = bisect.bisect_left(names, self._least(prefix))
        if after is not None:
            start = max(start, bisect.bisect_right(names, after))
        page = list(itertools.takewhile(lambda name: self._begins(name, prefix), names[start : start + limit]))
        more = len(page) == limit and start + limit < len(names) and self._begins(names[start + limit], prefix)
        if not more:
            self._names = None  # another listing under way makes a copy of its own
        return page, more

    def _sorted(self) -> list[K]:
        number = next(self._numbers)
        names = sorted(self._copy())
        if number > self._number:  # else a newer copy was made meanwhile
            self._number, self._names = number, names
        return names
