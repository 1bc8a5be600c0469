"""The contract's fixtures, for ``pytest --pyargs contract_tests``."""

from contract_tests.fixtures import flavour, new_harness, pytest_generate_tests, pytest_pyfunc_call, world

__all__ = ["flavour", "new_harness", "pytest_generate_tests", "pytest_pyfunc_call", "world"]
