"""Mypy checks this file (`make lint`): a decorator keeps the signature of its function.

A line with ``type: ignore`` must be an error, as mypy reports an unneeded one.
"""

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

import ailf

blocking = ailf.connect("memory://").lock("l")
limiter = ailf.connect("memory://").rate_limiter("r", "5/hour")


@blocking.held(timeout=5, on_lost=ailf.OnLost.SIGNAL)
def plain(number: int, *, word: str = "") -> str:
    """Return text."""
    return word * number


@limiter.limited("key")
@blocking.held()
def stream(number: int) -> Iterator[str]:
    """Stream."""
    yield str(number)


class Agent:
    """A class with a decorated method."""

    @blocking.held()
    def act(self, number: int) -> str:
        """Return text."""
        return str(number)


def check_blocking() -> None:
    """Check the types of what the functions return, and of what they take."""
    assert_type(plain(1, word="x"), str)
    assert_type(stream(1), Iterator[str])
    assert_type(Agent().act(1), str)
    plain("1")  # type: ignore[arg-type]


async def check_asyncio(lock: ailf.AsyncLock, calls: ailf.AsyncRateLimiter) -> None:
    """Check the same on asyncio, where a plain function is refused."""

    @lock.held()
    async def coroutine(number: int) -> str:
        return str(number)

    @calls.limited("key")
    @lock.held()
    async def tokens(number: int) -> AsyncIterator[str]:
        yield str(number)

    assert_type(await coroutine(1), str)
    assert_type(tokens(1), AsyncIterator[str])
    await coroutine("1")  # type: ignore[arg-type]

    @lock.held()  # type: ignore[type-var]
    def blocks() -> str:
        return ""

    blocks()
