"""The contract on our own backends."""

from contract_tests.fixtures import flavour, pytest_generate_tests, pytest_pyfunc_call, world

__all__ = ["flavour", "pytest_generate_tests", "pytest_pyfunc_call", "world"]
