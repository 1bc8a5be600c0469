"""The contract on fakeredis: some of each interface; all of it in the campaigns."""

from contract_tests.test_close import *  # noqa: F403
from contract_tests.test_lock_holding import *  # noqa: F403
from contract_tests.test_pubsub import *  # noqa: F403
from contract_tests.test_stream import *  # noqa: F403
from tests.contract.harnesses import FakeHarness

HARNESS = FakeHarness
