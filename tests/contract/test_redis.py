"""The contract on Redis, on a real server of each version."""

import pytest

from contract_tests.fixtures import NewHarness
from contract_tests.suite import *  # noqa: F403 - every test of the suite
from tests.contract.harnesses import RedisHarness
from tests.support.servers import Server

LACKS = {"step_back": "a server's clock can't be set back; tests/models/test_limits.py sets back that of the scripts"}


@pytest.fixture
def new_harness(server: Server) -> NewHarness:
    """An empty namespace on the server."""
    return lambda: RedisHarness(server.url)
