"""The whole contract on a cluster."""

from contract_tests.suite import *  # noqa: F403 - every test of the suite
from tests.contract.test_cluster import LACKS, new_harness, test_no_responder  # noqa: F401 - the suite looks for them here
