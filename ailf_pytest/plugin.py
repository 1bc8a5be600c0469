"""Add the options of the contract suite, only in runs of the suite.

Every pytest run of every user loads this module, so it imports only pytest. It is not in ``contract_tests``, because a
user's folder of that name would hide it, and pytest would not start.
"""

import re

import pytest

__all__ = ["pytest_load_initial_conftests"]

_SUITE = re.compile(r"contract_tests(\.|::|$)")


@pytest.hookimpl(trylast=True)  # after the user's conftest.py, whose options come first
def pytest_load_initial_conftests(parser: pytest.Parser, args: list[str]) -> None:
    """Add the options that name the backends to test, if the suite is run as a package.

    In any other run they could clash with the user's own options, and pytest would not start.
    """
    if "--pyargs" not in args or not any(map(_SUITE.match, args)):
        return
    group = parser.getgroup("ailf", "ailf contract tests (pytest --pyargs contract_tests)")
    try:
        group.addoption("--backend", action="append", default=[], metavar="URL", help="the URL of a backend to test")
        group.addoption(
            "--harness", action="append", default=[], metavar="MODULE:CLASS", help="a subclass of Harness to test with"
        )
    except ValueError as error:
        raise pytest.UsageError(
            f"the contract suite can't add its options, because a conftest.py or a plugin has them already ({error}). "
            "Run the suite from another folder"
        ) from error
