"""The contract on user-supplied redis-py clients: the tests that depend on connections. The campaigns run all tests."""

import pytest

from contract_tests.backend.test_backend import *  # noqa: F403 - every test of the suite
from contract_tests.backend.test_cancel import *  # noqa: F403
from contract_tests.backend.test_close import *  # noqa: F403
from contract_tests.backend.test_flavours import *  # noqa: F403
from contract_tests.backend.test_opening import *  # noqa: F403
from contract_tests.fixtures import NewHarness
from contract_tests.listing.test_listing import *  # noqa: F403
from contract_tests.listing.test_members import *  # noqa: F403
from contract_tests.pubsub.test_pubsub import *  # noqa: F403
from contract_tests.pubsub.test_request import *  # noqa: F403
from contract_tests.ratelimit.test_ratelimit_waiting import test_many_cancelled_tries  # noqa: F401 - many connections
from contract_tests.stream.test_worker import *  # noqa: F403
from tests.contract.harnesses import UserClientHarness
from tests.contract.test_redis import LACKS  # noqa: F401 - the suite looks for it here
from tests.support.servers import Server


@pytest.fixture
def new_harness(any_server: Server) -> NewHarness:
    """An empty namespace on the server."""
    return lambda: UserClientHarness(any_server.url)
