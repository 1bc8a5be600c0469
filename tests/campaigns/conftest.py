"""Long runs, for `make campaign`: collected only where AILF_CAMPAIGN=1 says so."""

from contract_tests.conftest import *  # noqa: F403 - the contract's fixtures
from tests.effort import CAMPAIGN

collect_ignore_glob = [] if CAMPAIGN else ["*"]
