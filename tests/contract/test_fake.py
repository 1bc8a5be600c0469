"""The contract on fakeredis: some of each interface; all of it in the campaigns."""

from contract_tests.backend.test_close import *  # noqa: F403
from contract_tests.lock.test_lock_hold import *  # noqa: F403
from contract_tests.pubsub.test_pubsub import *  # noqa: F403
from contract_tests.stream.test_stream import *  # noqa: F403
from tests.contract.harnesses import FakeHarness

HARNESS = FakeHarness
