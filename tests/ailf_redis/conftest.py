"""Fixtures for tests that look at the keys and the commands of a server of their own."""

from collections.abc import Iterator

import pytest
import redis

import ailf
from tests.support.servers import Server


@pytest.fixture
def raw(own_server: Server) -> Iterator[redis.Redis]:
    """A client of redis-py, on an empty server that begins to count commands."""
    with own_server.client() as client:
        client.flushall()
        client.config_resetstat()
        yield client


@pytest.fixture
def backend(own_server: Server, raw: redis.Redis) -> Iterator[ailf.Backend]:
    """A backend with a short timeout, for a server that is stuck."""
    with ailf.connect(f"{own_server.url}?timeout=2&retry_for=0") as opened:
        yield opened
