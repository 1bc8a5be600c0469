"""The options of the contract suite. Nothing else is here, because every pytest run of every user loads it."""

import pytest

__all__ = ["pytest_addoption"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that name the backends to test."""
    group = parser.getgroup("ailf", "ailf contract tests (pytest --pyargs contract_tests)")
    group.addoption("--backend", action="append", default=[], metavar="URL", help="a backend to hold to the contract")
    group.addoption(
        "--harness", action="append", default=[], metavar="MODULE:CLASS", help="the same, by a subclass of Harness"
    )
