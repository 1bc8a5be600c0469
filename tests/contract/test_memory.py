"""The contract on memory."""

import pytest

from contract_tests.fixtures import NewHarness
from contract_tests.test_backend import *  # noqa: F403 - every test of the suite
from contract_tests.test_pubsub import *  # noqa: F403
from contract_tests.test_stream import *  # noqa: F403
from contract_tests.test_worker import *  # noqa: F403
from tests.contract.harnesses import MemoryHarness


@pytest.fixture
def new_harness() -> NewHarness:
    """Memory, with a clock that is moved by hand."""
    return MemoryHarness
