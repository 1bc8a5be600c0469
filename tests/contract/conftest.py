"""The contract on our own backends."""

from contract_tests.conftest import *  # noqa: F403 - the contract's fixtures
