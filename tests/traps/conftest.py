"""Traps in which other designs fail, for `make traps` and `make campaign`: collected only in these runs."""

import os
from collections.abc import Iterator

import pytest
import redis

import ailf
from tests.support.effort import CAMPAIGN
from tests.support.servers import Server

collect_ignore_glob = [] if CAMPAIGN or os.environ.get("AILF_TRAPS") == "1" else ["*"]


@pytest.fixture
def raw(server: Server) -> Iterator[redis.Redis]:
    """A client of redis-py."""
    with server.client() as client:
        yield client


@pytest.fixture
def backend(server: Server, namespace: str) -> Iterator[ailf.Backend]:
    """A backend with a namespace for the test."""
    with ailf.connect(f"{server.url}?namespace={namespace}") as opened:
        yield opened
