"""Long runs, for `make campaign`: collected only where AILF_CAMPAIGN=1 says so."""

from contract_tests.fixtures import (
    new_harness,
    pytest_collection_modifyitems,
    pytest_generate_tests,
    pytest_pyfunc_call,
    pytest_report_collectionfinish,
    world,
)
from tests.effort import CAMPAIGN

__all__ = [
    "new_harness",
    "pytest_collection_modifyitems",
    "pytest_generate_tests",
    "pytest_pyfunc_call",
    "pytest_report_collectionfinish",
    "world",
]

collect_ignore_glob = [] if CAMPAIGN else ["*"]
