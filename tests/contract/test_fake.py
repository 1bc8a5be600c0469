"""The contract on fakeredis: some tests of each interface. The campaigns run all tests."""

from contract_tests.backend.test_close import *  # noqa: F403
from contract_tests.listing.test_listing import *  # noqa: F403
from contract_tests.listing.test_members import *  # noqa: F403
from contract_tests.lock.test_lock_hold import *  # noqa: F403
from contract_tests.pubsub.test_pubsub import *  # noqa: F403
from contract_tests.stream.test_stream import *  # noqa: F403
from tests.contract.harnesses import FakeHarness

HARNESS = FakeHarness
