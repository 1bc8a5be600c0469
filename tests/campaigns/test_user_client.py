"""The whole contract on user-supplied redis-py clients, on a real server."""

from contract_tests.suite import *  # noqa: F403 - every test of the suite
from tests.contract.test_user_client import LACKS, new_harness  # noqa: F401 - the suite looks for them here
