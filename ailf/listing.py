"""`Listing` and `AsyncListing`: names or values that a backend has, read page by page in bounded memory."""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Generic

from ailf.checks import check_count
from ailf.errors import InvalidArgumentError
from ailf.payload_types import T
from ailf.runtime import run
from ailf.values import Page

__all__ = ["PAGE", "AsyncListing", "Listing", "ReadPage"]


PAGE = 500
"""The default of ``page_size``."""

MOST = 10_000
"""The most items of a page."""

ReadPage = Callable[[str, int], Coroutine[Any, Any, Page[T]]]
"""Reads the page at a cursor, given the cursor and the most items of the page."""


def _checked_size(what: str, size: object) -> int:
    count = check_count(what, size)
    if count > MOST:
        raise InvalidArgumentError(f"{what} must be at most {MOST:,}, not {count}")
    return count


class _ListingBase(Generic[T]):
    """The shared implementation of both flavours: the checks."""

    def __init__(self, what: str, read: ReadPage[T], page_size: int) -> None:
        self._what = what
        self._read = read
        self._page_size = _checked_size("page_size", page_size)

    def _page(self, cursor: object, max_items: object) -> Coroutine[Any, Any, Page[T]]:
        if not isinstance(cursor, str):
            raise InvalidArgumentError(f"a cursor must be text, not {type(cursor).__name__}")
        return self._read(cursor, _checked_size("max_items", max_items))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._what}>"


class Listing(_ListingBase[T]):
    """The names or values of one kind that a backend has. `Backend.streams` and others return one.

    Iterating reads page after page, each when it is needed, so that memory is bounded. Each iteration begins anew.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:
    ...     first = backend.stream("tasks").add("a report")
    ...     assert list(backend.streams()) == ["tasks"]
    ...     assert backend.streams(prefix="t").page(max_items=10).items == ("tasks",)

    The order is not promised. An item that exists from the beginning of a listing to its end comes at least once; it
    may come twice. One that is added or removed meanwhile may come or not.
    """

    def page(self, cursor: str = "", max_items: int = 100) -> Page[T]:
        """Return one page, in one bounded step of the backend; it may be empty before the end.

        Arguments:
            cursor: `Page.cursor` of the page before; "" for the first page.
            max_items: The most items of the page, up to 10,000.

        Raises:
            InvalidArgumentError: ``cursor`` is not the cursor of a page of this kind of listing.
            UnsupportedError: The backend's user lacks a right that this listing needs.
            BackendError: The backend is unavailable, or refused the request.
        """
        return run(self._page(cursor, max_items))

    def __iter__(self) -> Iterator[T]:
        """Yield every item, page after page."""
        cursor = ""
        while True:
            page = self.page(cursor, self._page_size)
            yield from page.items
            cursor = page.cursor
            if not cursor:
                return


class AsyncListing(_ListingBase[T]):
    """The names or values of one kind that a backend has. `AsyncBackend.streams` and others return one.

    Iterating reads page after page, each when it is needed, so that memory is bounded. Each iteration begins anew.

    >>> import asyncio, ailf
    >>> async def main() -> None:
    ...     async with ailf.connect_async("memory://") as backend:
    ...         await backend.stream("tasks").add("a report")
    ...         assert [name async for name in backend.streams()] == ["tasks"]
    ...         assert (await backend.streams(prefix="t").page(max_items=10)).items == ("tasks",)
    >>> asyncio.run(main())

    The order is not promised. An item that exists from the beginning of a listing to its end comes at least once; it
    may come twice. One that is added or removed meanwhile may come or not.
    """

    async def page(self, cursor: str = "", max_items: int = 100) -> Page[T]:
        """Return one page, in one bounded step of the backend; it may be empty before the end.

        Arguments:
            cursor: `Page.cursor` of the page before; "" for the first page.
            max_items: The most items of the page, up to 10,000.

        Raises:
            InvalidArgumentError: ``cursor`` is not the cursor of a page of this kind of listing.
            UnsupportedError: The backend's user lacks a right that this listing needs.
            BackendError: The backend is unavailable, or refused the request.
        """
        return await self._page(cursor, max_items)

    async def __aiter__(self) -> AsyncIterator[T]:
        """Yield every item, page after page."""
        cursor = ""
        while True:
            page = await self.page(cursor, self._page_size)
            for item in page.items:
                yield item
            cursor = page.cursor
            if not cursor:
                return
