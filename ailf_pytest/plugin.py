"""The options of the contract suite, added in runs of the suite alone.

Every pytest run of every user loads this. So it imports nothing but pytest, and stands in a package of its own: a
project's folder ``contract_tests`` would hide a module of ours there, and pytest would not start.
"""

import re

import pytest

__all__ = ["pytest_load_initial_conftests"]

_SUITE = re.compile(r"contract_tests(\.|::|$)")


@pytest.hookimpl(trylast=True)  # after the user's conftest.py, whose options come first
def pytest_load_initial_conftests(parser: pytest.Parser, args: list[str]) -> None:
    """Add the options that name the backends to test, where the suite is run as a package.

    In any other run they could collide with an option of the user's own, and pytest would not start.
    """
    if "--pyargs" not in args or not any(map(_SUITE.match, args)):
        return
    group = parser.getgroup("ailf", "ailf contract tests (pytest --pyargs contract_tests)")
    try:
        group.addoption(
            "--backend", action="append", default=[], metavar="URL", help="a backend to hold to the contract"
        )
        group.addoption(
            "--harness", action="append", default=[], metavar="MODULE:CLASS", help="the same, by a subclass of Harness"
        )
    except ValueError as error:
        raise pytest.UsageError(
            f"the contract suite can't add its options, because a conftest.py or a plugin has them already ({error}); "
            "run it from another folder"
        ) from error
