"""The contract on our own backends."""

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
