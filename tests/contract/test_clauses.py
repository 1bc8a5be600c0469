"""The clauses of docs/contract.md and the tests of the suite name each other."""

import importlib
import re
from pathlib import Path

import pytest

import contract_tests
from contract_tests.fixtures import clauses as clauses_of

ROOT = Path(__file__).parents[2]
SUITE = Path(contract_tests.__file__).parent


def clauses() -> set[str]:
    """Return the ids of the contract's clauses."""
    return set(re.findall(r"^- ([BPSLRN]\d+) ", (ROOT / "docs" / "contract.md").read_text(), re.MULTILINE))


def modules_of_the_suite() -> list[str]:
    """Return the sorted names of the suite's test modules."""
    files = sorted(SUITE.rglob("test_*.py"))
    return [".".join(("contract_tests", *each.relative_to(SUITE).with_suffix("").parts)) for each in files]


def suite() -> list[tuple[str, object]]:
    """Return the suite's tests with the names of their modules."""
    modules = [importlib.import_module(name) for name in modules_of_the_suite()]
    return [
        (module.__name__, member)
        for module in modules
        for name, member in vars(module).items()
        if name.startswith("test_") and getattr(member, "__module__", "") == module.__name__
    ]


def covered() -> set[str]:
    """Return the clause ids at the beginning of the docstrings of the suite's tests."""
    return {each for _, test in suite() for each in clauses_of(test)}


def test_every_clause_is_tested() -> None:
    """Each clause has a test."""
    assert clauses() - covered() == set()


def test_every_test_names_clauses_that_exist() -> None:
    """No test of the suite names a clause that the contract doesn't have."""
    assert covered() <= clauses()


def test_every_test_names_a_clause() -> None:
    """The docstring of each test of the suite begins with the ids of its clauses."""
    assert [test for _, test in suite() if not clauses_of(test)] == []


def test_one_module_has_the_whole_suite() -> None:
    """`contract_tests.suite` has every test: it imports each module, and no two tests have the same name."""
    text = (SUITE / "suite.py").read_text()
    assert re.findall(r"^from (contract_tests[\w.]+) import \*", text, re.MULTILINE) == modules_of_the_suite()
    names = [getattr(test, "__name__", "") for _, test in suite()]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    "module",
    [
        "contract/test_memory",
        "contract/test_redis",
        "campaigns/test_user_client",
        "campaigns/test_cluster",
        "campaigns/test_fake",
    ],
)
def test_our_backends_run_the_whole_suite(module: str) -> None:
    """The runs on ailf's own backends import the whole suite."""
    text = (ROOT / "tests" / f"{module}.py").read_text()
    assert "\nfrom contract_tests.suite import *" in text
