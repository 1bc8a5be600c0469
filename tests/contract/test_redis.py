"""The contract on redis."""

import pytest

from contract_tests.fixtures import NewHarness
from contract_tests.harness import UrlHarness
from contract_tests.test_backend import *  # noqa: F403 - every test of the suite
from contract_tests.test_pubsub import *  # noqa: F403
from contract_tests.test_stream import *  # noqa: F403
from contract_tests.test_worker import *  # noqa: F403
from tests.servers import Server


@pytest.fixture
def new_harness(server: Server) -> NewHarness:
    """A real server of each version."""
    return lambda: UrlHarness(server.url)
