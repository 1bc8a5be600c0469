"""The same test in both flavours and on both backends: what blocks in one flavour is awaited in the other."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import attrs
import pytest

import ailf

__all__ = ["Flavour", "flavours"]


@attrs.frozen
class Flavour:
    """One flavour on one backend.

    Attributes:
        url: The URL of the backend.
        is_async: Whether it is asyncio.
    """

    url: str
    is_async: bool

    def run(self, scenario: Callable[[Any], Coroutine[Any, Any, None]], *instruments: Any) -> None:
        """Run a scenario with an open backend."""

        async def main() -> None:
            if self.is_async:
                async with ailf.connect_async(self.url, instruments=instruments) as backend:
                    await scenario(backend)
            else:
                with ailf.connect(self.url, instruments=instruments) as blocking:
                    await scenario(blocking)

        asyncio.run(main())

    async def wait(self, result: Any) -> Any:
        """Return a result, awaited if it is awaitable."""
        return await result if isinstance(result, Awaitable) else result

    @contextlib.asynccontextmanager
    async def entered(self, context: Any) -> AsyncIterator[Any]:
        """Enter a context manager of either flavour."""
        if self.is_async:
            async with context as entered:
                yield entered
        else:
            with context as entered:
                yield entered

    def handler(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a function as a handler: on asyncio as a coroutine function that lets other tasks run first."""
        if not self.is_async:
            return function

        async def handle(handled: Any) -> Any:
            await asyncio.sleep(0)
            return function(handled)

        return handle


def flavours(request: pytest.FixtureRequest, namespace: str) -> Flavour:
    """Return the flavour of a fixture's parameter, such as ``redis-asyncio``."""
    backend, _, flavour = request.param.partition("-")
    if backend == "memory":
        return Flavour(f"memory://{namespace}", flavour == "asyncio")
    server = request.getfixturevalue("any_server")
    return Flavour(f"{server.url}?namespace={namespace}", flavour == "asyncio")
