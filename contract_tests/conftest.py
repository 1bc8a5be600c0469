"""The contract's fixtures, for ``pytest --pyargs contract_tests``."""

from contract_tests.fixtures import (
    new_harness,
    pytest_collection_modifyitems,
    pytest_generate_tests,
    pytest_pyfunc_call,
    pytest_report_collectionfinish,
    world,
)

__all__ = [
    "new_harness",
    "pytest_collection_modifyitems",
    "pytest_generate_tests",
    "pytest_pyfunc_call",
    "pytest_report_collectionfinish",
    "world",
]
