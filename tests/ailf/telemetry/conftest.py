"""The fixture `flavour`: memory and Redis, blocking and asyncio."""

import pytest

from tests.support.flavours import Flavour, flavours


@pytest.fixture(params=["memory-blocking", "memory-asyncio", "redis-blocking", "redis-asyncio"])
def flavour(request: pytest.FixtureRequest, namespace: str) -> Flavour:
    """A backend in one flavour."""
    return flavours(request, namespace)
