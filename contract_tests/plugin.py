"""The options of the contract suite. Every pytest run of every user loads this: it imports nothing but pytest."""

import pytest

__all__ = ["pytest_load_initial_conftests"]


def pytest_load_initial_conftests(parser: pytest.Parser, args: list[str]) -> None:
    """Add the options that name the backends to test, in runs that name the suite.

    In any other run they could collide with an option of the user's own, and pytest would not start.
    """
    if any("contract_tests" in each for each in args):
        group = parser.getgroup("ailf", "ailf contract tests (pytest --pyargs contract_tests)")
        group.addoption(
            "--backend", action="append", default=[], metavar="URL", help="a backend to hold to the contract"
        )
        group.addoption(
            "--harness", action="append", default=[], metavar="MODULE:CLASS", help="the same, by a subclass of Harness"
        )
