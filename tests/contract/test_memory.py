"""The contract on the memory backend."""

from contract_tests.suite import *  # noqa: F403 - every test of the suite
from tests.contract.harnesses import MemoryHarness

HARNESS = MemoryHarness
